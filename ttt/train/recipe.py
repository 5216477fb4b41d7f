"""The recipe of a training run: how long and how fast a model is trained. Independent of torch."""

from __future__ import annotations

from dataclasses import dataclass

from ttt.options import check_settings, setting


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast one model is trained; the defaults are those of the 2021 run."""

    steps: int = setting(31_250, "Optimizer steps.", minimum=1)
    batch_size: int = setting(4096, "Samples per step.", minimum=1)
    learning_rate: float = setting(2.5e-3, "Peak learning rate; it then falls linearly to zero.", minimum=0.0)
    warmup: float = setting(
        0.1, "Share of the steps in which the learning rate rises linearly.", minimum=0.0, maximum=1.0
    )
    weight_decay: float = setting(0.045, "Weight decay of matrices; biases, norms and scales have none.", minimum=0.0)
    betas: tuple[float, float] = (0.9, 0.96)
    clip: float = setting(4.0, "Largest joint norm of all gradients; larger ones are scaled down.", minimum=0.0)
    state_bits: int = setting(8, "Bits per number of the optimizer's state: 8 or 32.", choices=(8, 32))
    bias_correction: bool = False
    """Adam's bias correction, which the 2021 run left out; short runs need it."""
    seed: int = setting(0, "Seed of the first weights, of the data order and of all random numbers.", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def warmup_steps(self) -> int:
        return max(1, round(self.warmup * self.steps))
