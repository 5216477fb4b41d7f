"""What flows between the rooms.

Axis letters, everywhere: b batch, n sequence, m codes so far, h heads, d channels of a head, c channels,
v vocabulary, k keys. VQGAN indices are *codes*, transformer ids are *tokens*, CLIP outputs are *scores*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Stage = Literal["reading", "painting", "decoding", "ranking", "done"]


@dataclass(frozen=True)
class RankedImage:
    """One candidate, its CLIP score (higher is better) and what is needed to paint it again."""

    image: Image
    score: float
    candidate: int
    """Number of the candidate, from 0; ties in score are broken by it."""
    seed: int
    """Seed of the request; with `candidate` it fixes the random numbers of this picture."""


@dataclass(frozen=True)
class Progress:
    """A moment of `TextToImage.stream`."""

    stage: Stage
    fraction: float
    """Of the whole request, 0 to 1; never falls."""
    sheet: Image | None = None
    """Contact sheet of all candidates as far as they are painted; None when nothing new is to be shown."""
    images: tuple[RankedImage, ...] = ()
    """The best `keep`, best first; only in the last one (stage "done")."""
    ranking: tuple[RankedImage, ...] = ()
    """All candidates, best first; only in the last one."""


@dataclass(frozen=True)
class Batch:
    """Training data: text [b, text_seq_len] int64 tokens, codes [b, image_seq_len] int64."""

    text: Tensor
    codes: Tensor
