"""Training Transformers Together: a text-to-image transformer that volunteers train over the Internet.

The public names are imported on first use, so `import ttt` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttt.pipeline import TextToImage
    from ttt.sampling.params import SamplingParams
    from ttt.types import RankedImage

__all__ = ["RankedImage", "SamplingParams", "TextToImage"]
__version__ = "0.1.0"

_HOMES = {"TextToImage": "ttt.pipeline", "SamplingParams": "ttt.sampling.params", "RankedImage": "ttt.types"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ttt' has no attribute {name!r}")
