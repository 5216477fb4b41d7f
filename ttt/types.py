"""Types that several packages exchange, and the axis letters of shapes.

Axis letters, everywhere: b batch, n sequence, m codes so far, h heads, d channels of a head, c channels,
v vocabulary, k keys. VQGAN indices are *codes*, transformer ids are *tokens*, CLIP outputs are *scores*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Stage = Literal["prefill", "sampling", "decoding", "ranking", "done"]


@dataclass(frozen=True)
class RankedImage:
    """One candidate, its CLIP score (higher is better) and the values that reproduce it."""

    image: Image
    score: float
    candidate: int
    """Number of the candidate, from 0; breaks ties of the score."""
    seed: int
    """Seed of the request; with `candidate`, it determines the random numbers of this image."""


@dataclass(frozen=True)
class Progress:
    """One update of `TextToImage.stream`."""

    stage: Stage
    fraction: float
    """Fraction of the whole request that is done, 0 to 1; never falls."""
    sheet: Image | None = None
    """Preview of all candidates as far as they are sampled; None if there is nothing new to show."""
    images: tuple[RankedImage, ...] = ()
    """The best `keep`, best first; only in the last update (stage "done")."""
    ranking: tuple[RankedImage, ...] = ()
    """All candidates, best first; only in the last update."""


@dataclass(frozen=True)
class Batch:
    """Training data: text [b, text_seq_len] int64 tokens, codes [b, image_seq_len] int64."""

    text: Tensor
    codes: Tensor


class BatchStream(Protocol):
    """An endless stream of training batches that can be interrupted and resumed."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position; a second call continues there and does not restart."""

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was returned, in JSON types."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at that position: the next batch is the one that would have come next."""
