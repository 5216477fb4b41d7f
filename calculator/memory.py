"""estimate(model, setup) -> MemoryEstimate: bytes on the GPU and in RAM for each phase of a training step.

Combines the simulated activations with the static memory. Pure arithmetic, independent of devices and of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calculator import optimizers
from calculator.architectures import Architecture
from calculator.errors import CalculatorError
from calculator.families import FAMILIES
from calculator.presets import PRESETS
from calculator.setup import TrainingSetup
from calculator.simulate import Activity, Peak, simulate, tensors
from calculator.static_memory import PREFETCHED_LAYERS, StaticMemory, layer_bytes, ram
from calculator.swarm import SwarmTraffic, traffic
from calculator.techniques import adapters, repeat, step, with_techniques

GIB = 2**30
CONTEXT = (int(0.3 * GIB), 2 * GIB)
"""Bytes of a CUDA context with its kernels, at least and at most, depending on card and driver."""
FRAGMENTATION = 0.10
"""Largest share of the peak that the caching allocator loses to fragmentation, for setups that fit at all."""


@dataclass(frozen=True)
class Phase:
    """A phase of a step, and the bytes on the GPU at its peak by component; they add up to `gpu_total`."""

    name: str
    gpu: Mapping[str, int]

    @property
    def gpu_total(self) -> int:
        return sum(self.gpu.values())


@dataclass(frozen=True)
class MemoryEstimate:
    """The estimated memory of a training step; every size is a whole number of bytes.

    parameters: weights on the GPU; gradients: of all parameters; optimizer: the whole state, on the GPU or in RAM;
    activations, logits, temporaries: their maximum over the phases.
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
    """CUDA context and fragmentation, at least and at most; not included in `gpu_total`."""
    swarm: SwarmTraffic | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the model that the estimate does not count."""
        quantization = self.model.quantization
        if not quantization or (self.setup.adapter == "qlora" and "4-bit" in quantization):
            return ()
        return (
            f"This config.json is quantised ({quantization}). The estimate counts unquantised weights; "
            f"choose QLoRA to count 4-bit weights.",
        )

    @property
    def peak(self) -> Phase:
        """The phase with the largest total."""
        return max(self.phases, key=lambda phase: phase.gpu_total)

    @property
    def gpu_total(self) -> int:
        return self.peak.gpu_total

    @property
    def ram_total(self) -> int:
        return sum(self.ram.values())


def estimate(model: Architecture | str, setup: TrainingSetup | None = None) -> MemoryEstimate:
    """Estimate the memory of training `model` (an Architecture, or the name of a preset) with `setup`.

    Raises CalculatorError if the model is unknown or does not support a technique of the setup.
    """
    setup = setup or TrainingSetup()
    a = with_techniques(_model(model), setup)
    inventory = tensors(a)
    sizes = [(x, repeat(a, x)) for x in inventory]
    trained = adapters(sizes, setup.lora_rank) if setup.adapter != "none" else sizes
    simulated = step(a, setup, PREFETCHED_LAYERS * layer_bytes(sizes, setup) if setup.zero_stage == 3 else 0)
    activity = simulate(a, inventory, simulated)
    static = StaticMemory(a, setup, sizes, trained)
    static.buffers += FAMILIES[a.family].inputs(a, simulated.batch, simulated.sequence, simulated.target, setup.width)
    phases = _phases(setup, activity, static)
    n = optimizers.count(trained)
    peak = max(phase.gpu_total for phase in phases)

    def most(component: str) -> int:
        return max(phase.gpu[component] for phase in phases)

    return MemoryEstimate(
        model=a, setup=setup, parameter_count=optimizers.count(sizes), trained_count=n, parameters=most("weights"),
        gradients=static.gradients, optimizer=static.state, activations=most("activations"), logits=most("logits"),
        temporaries=most("temporaries"), phases=phases, ram=ram(setup, n, static),
        overhead=(CONTEXT[0], CONTEXT[1] + int(FRAGMENTATION * peak)),
        swarm=traffic(trained, setup) if setup.swarm else None,
    )  # fmt: skip


def parameter_count(model: Architecture | str) -> int:
    """Number of unique parameters: shared and tied ones count once."""
    a = _model(model)
    return sum(x.n * repeat(a, x) for x in tensors(a))


def _model(model: Architecture | str) -> Architecture:
    if isinstance(model, Architecture):
        return model
    if model not in PRESETS:
        raise CalculatorError(f"unknown model {model!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[model]


def _phases(setup: TrainingSetup, activity: Activity, static: StaticMemory) -> tuple[Phase, ...]:
    keeps = setup.accumulation_steps > 1 or setup.swarm
    bucket = setup.offload_optimizer == "zero-offload"
    fixed = {"buffers": static.buffers + static.accumulators, "optimizer": static.state_on_gpu}

    def phase(name: str, peak: Peak, *, head: bool) -> Phase:
        gradients = 0 if bucket else peak.gradients
        activation_gradients, rest = peak.activation_gradients, peak.total - peak.gradients - peak.activation_gradients
        if keeps:
            gradients, rest = static.gradients, max(rest, peak.accumulating - activation_gradients)
        casts = activity.casts if name == "forward" or (name == "loss" and not setup.every) else 0
        casts = min(casts, rest)
        activations = min(rest - casts, max(0, activity.kept - casts)) if head else rest
        logits = rest - activations - casts + (activation_gradients if head else 0)
        return Phase(name, {
            "weights": static.weights + static.gathered, **fixed, "gradients": gradients,
            "activations": activations, "logits": logits, "temporaries": casts if head else activation_gradients,
        })  # fmt: skip

    return (
        phase("forward", activity.forward, head=True),
        phase("loss", activity.loss, head=True),
        phase("backward", activity.backward, head=False),
        Phase("optimizer step", {
            "weights": static.weights, **fixed, "gradients": 0 if bucket else static.gradients,
            "activations": 0, "logits": 0, "temporaries": static.step,
        }),
    )  # fmt: skip
