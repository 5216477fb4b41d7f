"""estimate(model, setup) -> MemoryEstimate: bytes on the GPU and in RAM, phase by phase. Pure arithmetic.

Knows architectures, the tape and the optimizers' layouts; no devices and no user interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from calculator import optimizers
from calculator.architectures import Architecture
from calculator.errors import CalculatorError
from calculator.families import FAMILIES
from calculator.families.common import Tensor
from calculator.optimizers import Sizes
from calculator.presets import PRESETS
from calculator.setup import TrainingSetup
from calculator.simulate import Activity, Peak, Step, simulate, tensors
from calculator.swarm import SwarmTraffic, traffic

GIB = 2**30
LONGEST_DEFAULT = 2048
CONTEXT = (int(0.3 * GIB), 2 * GIB)
"""Bytes of a CUDA context with its kernels, by card and driver."""
FRAGMENTATION = 0.10
"""Of what the caching allocator holds, at worst, for setups that fit at all."""
LEARNED_POSITIONS = ("bert", "gpt2", "clip")
NO_SDPA = ("gptj",)


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
    a = _with_techniques(_model(model), setup)
    inventory = tensors(a)
    sizes = [(x, _repeat(a, x)) for x in inventory]
    trained = _adapters(sizes, setup.lora_rank) if setup.adapter != "none" else sizes
    activity = simulate(a, inventory, _step(a, setup))
    shares = _Shares(a, setup, sizes, trained)
    phases = _phases(setup, activity, shares)
    n = optimizers.count(trained)
    peak = max(phase.gpu_total for phase in phases)
    return MemoryEstimate(
        model=a,
        setup=setup,
        parameter_count=optimizers.count(sizes),
        trained_count=n,
        parameters=shares.weights,
        gradients=shares.gradients,
        optimizer=shares.state,
        activations=max(phase.gpu["activations"] for phase in phases),
        logits=max(phase.gpu["logits"] for phase in phases),
        temporaries=max(phase.gpu["temporaries"] for phase in phases),
        phases=phases,
        ram=_ram(setup, n, shares),
        overhead=(CONTEXT[0], CONTEXT[1] + int(FRAGMENTATION * peak)),
        swarm=traffic(trained, setup) if setup.swarm else None,
    )


def parameter_count(model: Architecture | str) -> int:
    """Unique parameters: shared and tied ones once."""
    a = _model(model)
    return sum(x.n * _repeat(a, x) for x in tensors(a))


def _model(model: Architecture | str) -> Architecture:
    if isinstance(model, Architecture):
        return model
    if model not in PRESETS:
        raise CalculatorError(f"unknown model {model!r}; known: {', '.join(PRESETS)}, or an Architecture of your own")
    return PRESETS[model]


def _with_techniques(a: Architecture, setup: TrainingSetup) -> Architecture:
    """The model as the set-up changes it: shared, tied, reversible. Refuses what it cannot be."""
    if setup.shared_groups is not None:
        most = min(a.layers, a.decoder_layers or a.layers, a.vision.layers if a.vision else a.layers)
        if setup.shared_groups > most:
            raise CalculatorError(f"shared_groups {setup.shared_groups} are more than the layers; allowed: 1 to {most}")
        a = replace(a, groups=setup.shared_groups)
    if setup.tied_embeddings is not None and setup.tied_embeddings != a.tied:
        if a.family in ("vit", "clip", "dalle"):
            raise CalculatorError(f"a {a.family} model has no output layer that could be tied or untied")
        a = replace(a, tied=setup.tied_embeddings)
    if setup.reversible is not None and setup.reversible != a.reversible:
        if a.family != "dalle":
            raise CalculatorError(f"reversible layers are another architecture; {a.family} has none (ttt-dalle has)")
        a = replace(a, reversible=setup.reversible)
    if a.reversible and setup.every:
        raise CalculatorError("reversible layers keep nothing that checkpoints could save: set reversible to False too")
    if setup.adapter != "none" and a.family == "dalle":
        raise CalculatorError("adapters for ttt's own model do not exist; it is small enough to be trained whole")
    return a


def _repeat(a: Architecture, x: Tensor) -> int:
    return min(a.groups, x.repeat) if a.groups and x.shared and x.repeat > 1 else x.repeat


def _adapters(sizes: Sizes, rank: int) -> Sizes:
    """LoRA's two matrices for every matrix of the layers."""
    result: Sizes = []
    for x, repeat in sizes:
        if x.is_matrix:
            rows, columns = x.shape
            result += [
                (Tensor(f"{x.name}.lora_A", (rank, columns)), repeat),
                (Tensor(f"{x.name}.lora_B", (rows, rank)), repeat),
            ]
    return result


def sequence_length(a: Architecture, setup: TrainingSetup) -> int:
    """The set-up's, or the model's own; refuses what the model cannot do."""
    if a.family == "vit":
        if setup.sequence_length not in (None, a.patches + 1):
            raise CalculatorError(f"the sequence of a vit follows from its image: {a.patches + 1}")
        return a.patches + 1
    s = setup.sequence_length
    if a.family == "dalle" and s not in (None, a.positions):
        raise CalculatorError(f"this model is trained on whole images: sequence_length {a.positions}")
    if s is None:
        return a.positions if a.family in ("dalle", *LEARNED_POSITIONS) else min(a.positions, LONGEST_DEFAULT)
    if a.family in LEARNED_POSITIONS and s > a.positions:
        raise CalculatorError(f"sequence_length {s} is longer than the model's {a.positions} positions")
    return s


def _step(a: Architecture, setup: TrainingSetup) -> Step:
    s = sequence_length(a, setup)
    if setup.target_length is not None and a.family != "t5":
        raise CalculatorError("target_length is of encoder-decoder models (t5) alone")
    if setup.attention == "sdpa" and a.family in NO_SDPA:
        raise CalculatorError("transformers has no sdpa attention for GPT-J: set attention to eager or auto")
    eager = setup.attention == "eager" or a.family in NO_SDPA
    return Step(
        batch=setup.batch_size, sequence=s, target=setup.target_length or s, width=setup.width, half=setup.half,
        eager=eager, dropout=setup.dropout, groups=a.groups or None, every=setup.every, reversible=a.reversible,
        rank=setup.lora_rank if setup.adapter != "none" else 0, quantized=setup.adapter == "qlora",
    )  # fmt: skip


class _Shares:
    """What lives on one GPU for the whole step, after ZeRO's splits, adapters and offload."""

    def __init__(self, a: Architecture, setup: TrainingSetup, sizes: Sizes, trained: Sizes) -> None:
        parts = setup.gpus if setup.zero_stage else 1
        width = 4 if setup.adapter != "none" else setup.width
        adapters = optimizers.count(trained) * 4 if setup.adapter != "none" else 0
        whole = _weight_bytes(sizes, setup) + adapters
        layer = sum(x.n * setup.width for x, repeat in sizes if repeat > 1)
        self.weights = -(-whole // parts) + layer if setup.zero_stage >= 3 else whole
        self.gathered = layer if setup.zero_stage >= 3 else 0
        self.all_gradients = optimizers.count(trained) * width
        self.gradient_parts = parts if setup.zero_stage >= 2 else 1
        self.gradients = -(-self.all_gradients // self.gradient_parts)
        state, pageable = optimizers.state_bytes(trained, setup)
        self.state = -(-state // parts)
        self.paged = -(-pageable // parts)
        offloaded = setup.offload_optimizer != "none"
        self.state_on_gpu = 0 if offloaded else self.state - self.paged
        self.step = 0 if offloaded else -(-optimizers.step_temporaries(trained, setup, width) // parts)
        own = getattr(FAMILIES[a.family], "buffers", None)
        self.buffers = own(a, setup.width) if own else 0
        self.accumulators = 4 * optimizers.count(trained) if setup.swarm and not setup.reuse_grad_buffers else 0
        self.weights = min(self.weights, whole)


def _weight_bytes(sizes: Sizes, setup: TrainingSetup) -> int:
    if setup.adapter != "qlora":
        return optimizers.count(sizes) * setup.width
    total = 0
    for x, repeat in sizes:
        blocks = -(-x.n // 64)  # NF4: half a byte a weight, 8-bit scales of 64 weights, 32-bit ones of 256 scales
        total += repeat * (-(-x.n // 2) + blocks + 4 * -(-blocks // 256) if x.is_matrix else x.n * setup.width)
    return total


def _phases(setup: TrainingSetup, activity: Activity, shares: _Shares) -> tuple[Phase, ...]:
    keeps = setup.accumulation_steps > 1 or setup.swarm
    bucket = setup.offload_optimizer == "zero-offload"

    def phase(name: str, peak: Peak, *, head: bool) -> Phase:
        gradients = 0 if bucket else peak.gradients
        flow, rest = peak.flow, peak.total - peak.gradients - peak.flow
        if keeps:
            gradients, rest = shares.all_gradients, max(rest, peak.accumulating - flow)
        casts = activity.casts if name == "forward" or (name == "loss" and not setup.every) else 0
        casts = min(casts, rest)
        activations = min(rest - casts, max(0, activity.kept - casts)) if head else rest
        logits = rest - activations - casts + (flow if head else 0)
        return Phase(name, {
            "weights": shares.weights, "buffers": shares.buffers + shares.accumulators,
            "optimizer": shares.state_on_gpu, "gradients": -(-gradients // shares.gradient_parts),
            "activations": activations, "logits": logits, "temporaries": casts if head else flow,
        })  # fmt: skip

    gradients = 0 if bucket else shares.gradients
    step = Phase("optimizer step", {
        "weights": shares.weights, "buffers": shares.buffers + shares.accumulators, "optimizer": shares.state_on_gpu,
        "gradients": gradients, "activations": 0, "logits": 0, "temporaries": shares.step,
    })  # fmt: skip
    return (
        phase("forward", activity.forward, head=True),
        phase("loss", activity.loss, head=True),
        phase("backward", activity.backward, head=False),
        step,
    )


def _ram(setup: TrainingSetup, n: int, shares: _Shares) -> dict[str, int]:
    """What the optimizer and hivemind keep in RAM; the Python process itself is not counted."""
    if setup.offload_optimizer == "zero-offload":
        return {"zero-offload": int(max(4 * setup.gpus, 16) * n * 1.5)}
    ram = {}
    if setup.offload_optimizer == "hivemind" or setup.swarm:
        ram = {"master weights": 4 * n, "averaged gradients": 4 * n}
    if setup.offload_optimizer == "hivemind":
        ram["optimizer"] = shares.state
    if setup.paged_optimizer:
        ram["paged optimizer (at most)"] = shares.paged
    return ram
