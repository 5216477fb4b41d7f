"""What a run trains, made from its settings: transformer, batches, optimizer, schedule. Knows no network."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ttt.bundle import Bundle
from ttt.bundle.weights import load_dalle_from
from ttt.data.stream import open_stream
from ttt.model.dalle import Dalle
from ttt.swarm.averaging.training_state import OptimizerSpec, parameter_names
from ttt.swarm.config.run_config import OptimizerSection, RunSettings, dalle_config
from ttt.train.optimizer import Lamb, linear_schedule, parameter_groups
from ttt.types import BatchStream

logger = logging.getLogger(__name__)


@dataclass
class Task:
    """The model of a run, and the bundle that its codes and captions belong to."""

    settings: RunSettings
    bundle: Bundle
    dalle: Dalle

    def optimizer_spec(self) -> OptimizerSpec:
        """For hivemind: parameters, and factories of optimizer and schedule."""
        optimizer = self.settings.optimizer
        groups = parameter_groups(self.dalle, optimizer.weight_decay)
        return OptimizerSpec(
            groups=groups,
            names=parameter_names(groups, self.dalle),
            make_optimizer=lambda params: make_optimizer(params, optimizer),
            make_schedule=lambda made: linear_schedule(
                made, total_steps=optimizer.total_steps, warmup_steps=optimizer.warmup_steps
            ),
        )

    def batches(self, micro_batch: int, seed: int) -> BatchStream:
        """An endless stream that no other seed repeats."""
        return open_stream(self.settings.data.source, self.bundle, self.dalle.config, batch_size=micro_batch, seed=seed)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.dalle.parameters())


def load_task(
    settings: RunSettings, bundle: Bundle, device: torch.device | str = "cpu", *, remember: bool = False
) -> Task:
    """The run's transformer: the bundle's, or a new one of the run's seed.

    remember: keep activations instead of computing them again; faster, more memory, the same gradients.
    """
    config = dalle_config(settings, bundle.dalle)
    if remember:
        config = replace(config, reversible=False)
    torch.manual_seed(settings.run.seed)
    dalle = Dalle(config)
    if settings.model.from_bundle:
        dalle.load_state_dict(load_dalle_from(bundle).state_dict())
    return Task(settings, bundle, dalle.to(device).train())


def make_optimizer(groups: Any, settings: OptimizerSection) -> torch.optim.Optimizer:
    """Of the run, over tensors on the CPU (hivemind's offloaded copy of the parameters)."""
    betas = (settings.beta1, settings.beta2)
    if settings.name == "adamw":
        return ClippedAdamW(groups, lr=settings.learning_rate, betas=betas, max_grad_norm=settings.max_grad_norm)
    return Lamb(
        groups,
        lr=settings.learning_rate,
        betas=betas,
        state_bits=8 if settings.name == "lamb8bit" else 32,
        max_grad_norm=settings.max_grad_norm,
        bias_correction=settings.bias_correction,
    )


class ClippedAdamW(torch.optim.AdamW):
    """torch's AdamW with the step's gradients scaled down to a joint norm of `max_grad_norm`.

    As with `Lamb`, gradients are not changed, and a step changes nothing where they are not all finite: scaled, all
    of them would be NaN.
    """

    def __init__(self, params: Any, *, max_grad_norm: float, **kwargs: Any) -> None:
        self.max_grad_norm = max_grad_norm
        super().__init__(params, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies of the optimizer: torch would forget what is not in `defaults`."""
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        given = [p.grad for p in trained]
        norm = float(torch.nn.utils.get_total_norm(given))
        if not math.isfinite(norm):
            logger.warning("a step was skipped, its gradients are not finite")
            return loss
        try:
            if norm > self.max_grad_norm:
                for p in trained:
                    p.grad = p.grad * (self.max_grad_norm / norm)
            super().step()
        finally:
            for p, gradient in zip(trained, given, strict=True):
                p.grad = gradient
        return loss
