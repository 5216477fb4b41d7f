"""Estimates what a run needs of a machine before a peer starts: memory, micro-batch, speed.

Independent of the network. Nothing is downloaded, and no model is built: the calculator does the arithmetic, so that a
web form can be checked while the user types.
"""

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
"""Fraction of a CPU's speed in large matrix products that a training step reaches."""


@dataclass(frozen=True)
class ResourceEstimate:
    """The needs of one run on one machine."""

    run: str
    title: str
    global_batch: int
    parameters: int = 0
    """0 if the model is not on this machine yet: then all that follows is unknown."""
    micro_batch: int = 0
    """The largest that fits in the given memory; 0: none fits."""
    memory: int = 0
    """Peak bytes with this micro-batch, or with 1 if none fits."""
    shared_memory: int = 0
    """Bytes of /dev/shm."""
    flops_per_sample: float = 0.0
    """Of training."""

    @property
    def known(self) -> bool:
        return self.parameters > 0

    def cpu_samples_per_second(self, flops_per_second: float) -> float:
        """Return the samples per second that a CPU of this speed may reach."""
        return CPU_SHARE * flops_per_second / self.flops_per_sample if self.flops_per_sample else 0.0


def estimate_resources(run: str, memory: int, *, cuda: bool) -> ResourceEstimate:
    """Estimate for `memory` usable bytes of a GPU or of RAM. Raises TTTError if the run file cannot be used.

    run: path or URL of the run file. A model on the Hub is not downloaded: then `parameters` is 0.
    """
    settings = read_run_file(run)
    name, title = settings.run.name, settings.run.title or settings.run.name
    config = _local_config(settings)
    if config is None:
        return ResourceEstimate(name, title, settings.batch.global_batch)
    import torch

    from calculator import TrainingSetup, estimate
    from ttt.hardware import flops_per_sample
    from ttt.swarm.training.memory_plan import min_bytes, plan_micro_batch
    from ttt.train.micro_batch import as_architecture

    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    try:
        plan = plan_micro_batch(config, device, dtype, settings.batch.global_batch, free=memory)
        micro_batch, needed = plan.micro_batch, plan.bytes
    except InvalidInput:
        micro_batch, needed = 0, min_bytes(config, device, dtype)
    parameters = estimate(as_architecture(config), TrainingSetup()).parameter_count
    shared = shared_memory_needed(parameters, trains=True, eight_bit=settings.optimizer.eight_bit)
    return ResourceEstimate(
        name, title, settings.batch.global_batch, parameters, micro_batch, needed, shared,
        flops_per_sample(config),
    )  # fmt: skip


def measure_cpu_flops(seconds: float = 0.2) -> float:
    """Measure the floating-point operations per second of float32 matrix products."""
    import torch

    side = 512
    a, b = torch.randn(side, side), torch.randn(side, side)
    a @ b  # the first product starts torch's threads
    began, products = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        a @ b
        products += 1
    return products * 2 * side**3 / elapsed


def _local_config(settings: RunSettings) -> DalleConfig | None:
    """Return the configuration of the transformer if its bundle is on this machine."""
    bundle = settings.model.bundle
    folder = DEMO_FOLDER if bundle == "demo" else Path(bundle).expanduser()
    return dalle_config(settings, read_bundle(folder).dalle) if folder.is_dir() else None
