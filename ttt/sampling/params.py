"""SamplingParams: the settings of a request, with their ranges and help. Independent of torch and of any model."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ttt.fields import CheckedModel

MAX_SEED = 2**63 - 1
DEFAULT_KEEP = 4


class SamplingParams(CheckedModel):
    """Settings of a request. Command line, forms and docs take ranges, help and defaults from these fields."""

    candidates: int = Field(
        default=128, ge=1, le=1024, description="Images to generate; CLIP ranks them and the best are kept."
    )
    keep: int = Field(
        default_factory=lambda values: min(DEFAULT_KEEP, values.get("candidates", DEFAULT_KEEP)),
        ge=1,
        le=1024,
        description=f"Best images to return. Default: {DEFAULT_KEEP}, or all candidates if there are fewer.",
    )
    top_k: int | None = Field(
        default=256,
        ge=1,
        le=1 << 20,
        description="Sample each code from the k most likely ones. Off: from all.",
    )
    top_p: float | None = Field(
        default=0.75,
        gt=0.0,
        le=1.0,
        description="Keep only the most likely codes whose probabilities add up to p. Off: keep all.",
    )
    temperature: float = Field(
        default=1.0,
        gt=0.0,
        le=100.0,
        description="Below 1, likely codes become more likely; above 1, the probabilities become more equal.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=MAX_SEED,
        description="The same seed and settings give the same images on the same device.",
    )

    @model_validator(mode="after")
    def _keep_at_most_all(self) -> SamplingParams:
        if self.keep > self.candidates:
            raise ValueError(f"keep must be from 1 to the number of candidates ({self.candidates}), got {self.keep}")
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplingParams:
        """Missing names take their defaults; unknown ones raise InvalidInput."""
        return cls(**values)
