"""estimate(model, setup) -> MemoryEstimate: bytes on the GPU and in RAM, phase by phase. Pure arithmetic.

Puts together what is played on the tape and what lives for the whole step; knows no devices and no user interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calculator import optimizers
from calculator.applied import adapters, repeat, step, with_techniques
from calculator.architectures import Architecture
from calculator.errors import CalculatorError
from calculator.families import FAMILIES
from calculator.presets import PRESETS
from calculator.setup import TrainingSetup
from calculator.shares import AHEAD, Shares, layer_bytes, ram
from calculator.simulate import Activity, Peak, simulate, tensors
from calculator.swarm import SwarmTraffic, traffic

GIB = 2**30
CONTEXT = (int(0.3 * GIB), 2 * GIB)
"""Bytes of a CUDA context with its kernels, by card and driver."""
FRAGMENTATION = 0.10
"""Of what the caching allocator holds, at worst, for setups that fit at all."""


@dataclass(frozen=True)
class Phase:
    """A part of a step, and what is on the GPU at its worst moment; the parts add up to `gpu_total`."""

    name: str
    gpu: Mapping[str, int]

    @property
    def gpu_total(self) -> int:
        return sum(self.gpu.values())


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, all of them whole numbers.

    parameters, gradients: of the weights on the GPU, and of the gradients once all of them exist; optimizer: its
    whole state, wherever it lives; activations: the most in any phase; the same for logits and temporaries.
    """

    model: Architecture
    setup: TrainingSetup
    parameter_count: int
    trained_count: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    temporaries: int
    phases: tuple[Phase, ...]
    ram: Mapping[str, int]
    overhead: tuple[int, int]
    """CUDA context and fragmentation, at least and at most: beside `gpu_total`, never in it."""
    swarm: SwarmTraffic | None

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.gpu_total)

    @property
    def gpu_total(self) -> int:
        return self.peak.gpu_total

    @property
    def ram_total(self) -> int:
        return sum(self.ram.values())


def estimate(model: Architecture | str, setup: TrainingSetup | None = None) -> MemoryEstimate:
    """Memory of training `model` (an Architecture, or the name of a preset) with `setup`."""
    setup = setup or TrainingSetup()
    a = with_techniques(_model(model), setup)
    inventory = tensors(a)
    sizes = [(x, repeat(a, x)) for x in inventory]
    trained = adapters(sizes, setup.lora_rank) if setup.adapter != "none" else sizes
    played = step(a, setup, AHEAD * layer_bytes(sizes, setup) if setup.zero_stage == 3 else 0)
    activity = simulate(a, inventory, played)
    shares = Shares(a, setup, sizes, trained)
    shares.buffers += FAMILIES[a.family].inputs(a, played.batch, played.sequence, played.target, setup.width)
    phases = _phases(setup, activity, shares)
    n = optimizers.count(trained)
    peak = max(phase.gpu_total for phase in phases)

    def most(component: str) -> int:
        return max(phase.gpu[component] for phase in phases)

    return MemoryEstimate(
        model=a, setup=setup, parameter_count=optimizers.count(sizes), trained_count=n, parameters=most("weights"),
        gradients=shares.gradients, optimizer=shares.state, activations=most("activations"), logits=most("logits"),
        temporaries=most("temporaries"), phases=phases, ram=ram(setup, n, shares),
        overhead=(CONTEXT[0], CONTEXT[1] + int(FRAGMENTATION * peak)),
        swarm=traffic(trained, setup) if setup.swarm else None,
    )  # fmt: skip


def parameter_count(model: Architecture | str) -> int:
    """Unique parameters: shared and tied ones once."""
    a = _model(model)
    return sum(x.n * repeat(a, x) for x in tensors(a))


def _model(model: Architecture | str) -> Architecture:
    if isinstance(model, Architecture):
        return model
    if model not in PRESETS:
        raise CalculatorError(f"unknown model {model!r}; known: {', '.join(PRESETS)}, or an Architecture of your own")
    return PRESETS[model]


def _phases(setup: TrainingSetup, activity: Activity, shares: Shares) -> tuple[Phase, ...]:
    keeps = setup.accumulation_steps > 1 or setup.swarm
    bucket = setup.offload_optimizer == "zero-offload"
    fixed = {"buffers": shares.buffers + shares.accumulators, "optimizer": shares.state_on_gpu}

    def phase(name: str, peak: Peak, *, head: bool) -> Phase:
        gradients = 0 if bucket else peak.gradients
        flow, rest = peak.flow, peak.total - peak.gradients - peak.flow
        if keeps:
            gradients, rest = shares.gradients, max(rest, peak.accumulating - flow)
        casts = activity.casts if name == "forward" or (name == "loss" and not setup.every) else 0
        casts = min(casts, rest)
        activations = min(rest - casts, max(0, activity.kept - casts)) if head else rest
        logits = rest - activations - casts + (flow if head else 0)
        return Phase(name, {
            "weights": shares.weights + shares.gathered, **fixed, "gradients": gradients,
            "activations": activations, "logits": logits, "temporaries": casts if head else flow,
        })  # fmt: skip

    return (
        phase("forward", activity.forward, head=True),
        phase("loss", activity.loss, head=True),
        phase("backward", activity.backward, head=False),
        Phase("optimizer step", {
            "weights": shares.weights, **fixed, "gradients": 0 if bucket else shares.gradients,
            "activations": 0, "logits": 0, "temporaries": shares.step,
        }),
    )  # fmt: skip
