"""The recipe of a training run: how long and how fast a model is trained. Independent of torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from ttt.fields import CheckedModel


class Recipe(CheckedModel):
    """How long and how fast one model is trained; the defaults are the 2021 run's, except for the batch size."""

    steps: int = Field(default=31_250, ge=1, description="Optimizer steps.")
    batch_size: int = Field(
        default=64, ge=1, description="Samples per step; the peers of the 2021 run computed 4,096 together."
    )
    learning_rate: float = Field(
        default=2.5e-3, ge=0.0, description="Peak learning rate; from there it falls linearly to zero."
    )
    warmup: float = Field(
        default=0.1, ge=0.0, le=1.0, description="Share of the steps in which the learning rate rises linearly."
    )
    weight_decay: float = Field(
        default=0.045, ge=0.0, description="Weight decay of matrices; biases, norms and scales have none."
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.96), description="Decay of the optimizer's state per step.", json_schema_extra={"option": None}
    )
    clip: float = Field(
        default=4.0, gt=0.0, description="Largest joint norm of all gradients; larger ones are scaled down to it."
    )
    state_bits: int = Field(default=8, description="Bits per number in the optimizer's state: 8 or 32.")
    bias_correction: bool = Field(
        default=False,
        description="Adam's bias correction, which the 2021 run left out; short runs need it.",
        json_schema_extra={"option": None},
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the initial weights, of the order of the data and of all random numbers."
    )

    @model_validator(mode="after")
    def _check_state_bits(self) -> Recipe:
        if self.state_bits not in (8, 32):
            raise ValueError(f"state_bits must be 8 or 32, got {self.state_bits}")
        return self

    @property
    def warmup_steps(self) -> int:
        return max(1, round(self.warmup * self.steps))
