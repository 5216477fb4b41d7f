"""The published columns, and the settings of a data set: which pairs are kept, and how they are encoded.

| column                          | content                                                   |
|---------------------------------|-----------------------------------------------------------|
| caption                         | text                                                      |
| NSFW                            | UNLIKELY, UNSURE or NSFW, from LAION's classifier         |
| original_width, original_height | pixels of the image before it was encoded                 |
| code                            | bytes of the codes in raster order, little-endian int16   |
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from ttt.fields import CheckedModel

CAPTION, NSFW, WIDTH, HEIGHT, CODE = COLUMNS = ("caption", "NSFW", "original_width", "original_height", "code")
ANY_LABEL = "any"


class Filters(CheckedModel):
    """Which pairs are worth training on; the defaults are those of the 2021 run, which skipped about 10 % of LAION."""

    min_caption: int = Field(default=3, ge=0, description="Skip captions of fewer characters.")
    nsfw: str | None = Field(
        default="UNLIKELY", description=f"Keep only pairs with this NSFW label; {ANY_LABEL!r} keeps all."
    )
    """None keeps all pairs and does not need the column NSFW."""
    max_aspect: float | None = Field(
        default=2.0, ge=1.0, description="Skip images whose longer side is more than this many times the shorter one."
    )
    """None keeps all pairs and does not need the columns of the original size."""

    @field_validator("nsfw", mode="before")
    @classmethod
    def _any_label(cls, value: Any) -> Any:
        return None if value == ANY_LABEL else value

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a shard must have for these filters, in the order of `COLUMNS`."""
        needed = {CAPTION, CODE}
        needed |= {NSFW} if self.nsfw is not None else set()
        needed |= {WIDTH, HEIGHT} if self.max_aspect is not None else set()
        return tuple(name for name in COLUMNS if name in needed)

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump()

    def refusal(self, caption: str | None, nsfw: str | None, width: int | None, height: int | None) -> str | None:
        """The kind under which a pair is counted if it is to be skipped, or None if it is to be kept."""
        if caption is None:
            return "bad_caption"
        if len(caption) < self.min_caption:
            return "short_caption"
        if self.nsfw is not None and nsfw != self.nsfw:
            return "nsfw"
        if self.max_aspect is not None:
            if not (isinstance(width, (int, float)) and isinstance(height, (int, float)) and width > 0 and height > 0):
                return "bad_size"
            if max(width, height) > self.max_aspect * min(width, height):
                return "extreme_aspect"
        return None


class EncodeSettings(Filters):
    """What the shards depend on, besides the images and the VQGAN: the filters, and how the pairs are encoded."""

    unlabelled: str = Field(default="UNLIKELY", description="NSFW label for images that have none: you vouch for them.")
    shard_size: int = Field(default=10_000, ge=1, description="Pairs per shard.")
    batch_size: int = Field(default=16, ge=1, description="Images that the VQGAN encodes at once.")
