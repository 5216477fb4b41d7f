"""What flows between the rooms.

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


class BatchStream(Protocol):
    """An endless stream of training batches that can be left and taken up again."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches from where the stream stands; a second call goes on, it does not begin anew."""

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, in JSON's types: after the last batch that was handed out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: the next batch is the one that would have come."""
