"""How long and how fast a model is trained: plain settings. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ttt.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast one model is trained; the defaults are the 2021 run's."""

    steps: int = 31_250
    batch_size: int = 4096
    """Samples of a step."""
    learning_rate: float = 2.5e-3
    """At its peak; it falls to zero in a straight line."""
    warmup: float = 0.1
    """First share of the steps, in which the learning rate rises."""
    weight_decay: float = 0.045
    """Of matrices; biases, norms and scales have none."""
    betas: tuple[float, float] = (0.9, 0.96)
    clip: float = 4.0
    """Largest norm of all gradients together."""
    state_bits: int = 8
    """Of the optimizer's state: 8 or 32."""
    bias_correction: bool = False
    """Adam's, which the 2021 run left out; short runs need it."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise InvalidInput(f"warmup is a share of the steps, from 0 to 1; got {self.warmup}")

    @property
    def warmup_steps(self) -> int:
        return max(1, round(self.warmup * self.steps))
