"""The model of a run as its settings define it, with its optimizer and its batches. Independent of the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ttt.bundle import Bundle
from ttt.bundle.weights import load_dalle_from
from ttt.data.stream import open_stream
from ttt.model.dalle import Dalle
from ttt.swarm.averaging.training_state import OptimizerSpec, parameter_names
from ttt.swarm.config.run_config import OptimizerSection, RunSettings, dalle_config
from ttt.train.optimizer import ClippedAdamW, Lamb, linear_schedule, parameter_groups
from ttt.types import BatchStream


@dataclass(frozen=True)
class RunModel:
    """The transformer of a run, and the bundle with the image codec and the tokenizer of its data."""

    settings: RunSettings
    bundle: Bundle
    dalle: Dalle

    def optimizer_spec(self) -> OptimizerSpec:
        """The parameters, and factories of their optimizer and learning-rate schedule, as hivemind takes them."""
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
        """An endless stream of training batches; each seed gives another order of the data."""
        return open_stream(self.settings.data.source, self.bundle, self.dalle.config, batch_size=micro_batch, seed=seed)

    @property
    def device(self) -> torch.device:
        return next(self.dalle.parameters()).device

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.dalle.parameters())


def load_run_model(
    settings: RunSettings, bundle: Bundle, device: torch.device | str = "cpu", *, keep_activations: bool = False
) -> RunModel:
    """Build the transformer of the run: the one of the bundle, or a new one from the seed of the run.

    keep_activations: keep them for the backward pass instead of recomputing them. Faster, but takes more memory; the
    gradients are the same.
    """
    config = dalle_config(settings, bundle.dalle)
    if keep_activations:
        config = replace(config, reversible=False)
    torch.manual_seed(settings.run.seed)
    dalle = Dalle(config)
    if settings.model.from_bundle:
        dalle.load_state_dict(load_dalle_from(bundle).state_dict())
    return RunModel(settings, bundle, dalle.to(device).train())


def make_optimizer(groups: Any, settings: OptimizerSection) -> torch.optim.Optimizer:
    """Make the optimizer of a run over tensors in RAM: hivemind's offloaded copy of the parameters."""
    betas = (settings.beta1, settings.beta2)
    if settings.name == "adamw":
        return ClippedAdamW(groups, lr=settings.learning_rate, betas=betas, max_grad_norm=settings.max_grad_norm)
    return Lamb(
        groups,
        lr=settings.learning_rate,
        betas=betas,
        state_bits=8 if settings.eight_bit else 32,
        max_grad_norm=settings.max_grad_norm,
        bias_correction=settings.bias_correction,
    )
