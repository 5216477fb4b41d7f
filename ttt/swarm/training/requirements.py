"""What a run asks of the machine that would take part: memory, micro-batch, pace. Knows no network and no processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ttt.bundle import DEMO_FOLDER, read_bundle
from ttt.config import DalleConfig
from ttt.errors import InvalidInput
from ttt.swarm.config.run_config import RunSettings, dalle_config
from ttt.swarm.config.run_file import read_run_file
from ttt.swarm.process.lifecycle import shared_memory_needed

CPU_SHARE = 0.35
"""Of a CPU's speed in large matrix products, what a training step reaches."""


@dataclass(frozen=True)
class Demand:
    run: str
    title: str
    global_batch: int
    parameters: int = 0
    """0 where the model is not on this machine yet, and nothing more can be said."""
    micro_batch: int = 0
    """The largest that fits in the memory given; 0: none does."""
    needs: int = 0
    """Bytes at that micro-batch, or at 1 where none fits."""
    shared_memory: int = 0
    """Bytes of /dev/shm."""
    flops: float = 0.0
    """Of one training sample."""

    @property
    def known(self) -> bool:
        return self.parameters > 0

    def cpu_pace(self, flops_per_second: float) -> float:
        """Samples per second that a CPU of this speed may reach."""
        return CPU_SHARE * flops_per_second / self.flops if self.flops else 0.0


def demand_of(run: str, memory: int, *, cuda: bool) -> Demand:
    """The verdict for `memory` free bytes of a GPU or of RAM; TTTError where the run file cannot be used.

    A model that lies on the Hub is not fetched for this.
    """
    settings = read_run_file(run)
    name, title = settings.run.name, settings.run.title or settings.run.name
    config = _config(settings)
    if config is None:
        return Demand(name, title, settings.batch.global_batch)
    import torch

    from calculator import TrainingSetup, estimate
    from ttt.swarm.training.memory_plan import least, plan
    from ttt.train.micro_batch import as_architecture

    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    try:
        fitted = plan(config, device, dtype, settings.batch.global_batch, free=memory)
        size, needs = fitted.micro_batch, fitted.bytes
    except InvalidInput:
        size, needs = 0, least(config, device, dtype)
    parameters = estimate(as_architecture(config), TrainingSetup()).parameter_count
    shared = shared_memory_needed(parameters, trains=True, eight_bit=settings.optimizer.eight_bit)
    return Demand(
        name, title, settings.batch.global_batch, parameters, size, needs, shared, flops_per_sample(config)
    )  # fmt: skip


def flops_per_sample(config: DalleConfig) -> float:
    """Six operations a weight and position (forward two, backward four); attention's own products are left out."""
    attention = 4 * config.dim * config.heads * config.dim_head
    feed_forward = 3 * config.dim * config.dim * config.ff_mult
    head = config.dim * config.total_tokens
    return 6.0 * config.seq_len * (config.depth * (attention + feed_forward) + head)


def cpu_speed(seconds: float = 0.2) -> float:
    """Floating-point operations per second in float32 matrix products, measured for a moment."""
    import torch

    side = 512
    a, b = torch.randn(side, side), torch.randn(side, side)
    a @ b
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        a @ b
        done += 1
    return done * 2 * side**3 / spent


def _config(settings: RunSettings) -> DalleConfig | None:
    """The transformer's configuration where the bundle lies on this machine."""
    bundle = settings.model.bundle
    folder = DEMO_FOLDER if bundle == "demo" else Path(bundle)
    return dalle_config(settings, read_bundle(folder).dalle) if folder.is_dir() else None
