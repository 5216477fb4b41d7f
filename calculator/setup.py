"""How a model is trained: every technique, checked one by one and together. Knows no model and no bytes."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from calculator.errors import CalculatorError

OptimizerName = Literal["adam", "adamw", "lamb", "sgd", "lion", "adafactor", "adafactor-momentum"]
Precision = Literal["float32", "mixed-fp16", "mixed-bf16", "pure-fp16", "pure-bf16"]
Attention = Literal["auto", "eager", "sdpa"]
Offload = Literal["none", "hivemind", "zero-offload"]
Implementation = Literal["foreach", "for-loop", "fused"]
Adapter = Literal["none", "lora", "qlora"]
Compression = Literal["none", "16-bit", "8-bit", "run"]

OPTIMIZERS: tuple[str, ...] = (
    "adam", "adamw", "adam16bit", "adamw16bit", "adam8bit", "adamw8bit", "lamb", "lamb16bit", "lamb8bit",
    "lamb8bit-cpu", "sgd", "sgd16bit", "sgd8bit", "lion", "lion16bit", "lion8bit", "adafactor", "adafactor-momentum",
)  # fmt: skip
"""8-bit: bitsandbytes' layout (blocks of 256); lamb8bit-cpu: the 2021 run's own, for an optimizer on the CPU
(blocks of 4096, float32 below 65,536 elements); sgd has momentum; 16-bit: states in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """A set of techniques. Every default is what PyTorch and transformers do when nothing is said."""

    optimizer: str = "adamw"
    """One of OPTIMIZERS."""
    optimizer_implementation: Implementation = "foreach"
    """PyTorch's way to run a step on a GPU: all tensors at once (its default), one by one, or one fused kernel."""
    paged_optimizer: bool = False
    """bitsandbytes' paged state: tensors of at least 100,000 elements may leave the GPU for RAM."""
    embeddings_32bit: bool = False
    """8-bit optimizers keep 32-bit state for embeddings (bitsandbytes' StableEmbedding, transformers' Trainer)."""
    offload_optimizer: bool | Offload = False
    """True or "hivemind": master weights, averaged gradients and state in RAM; "zero-offload": DeepSpeed's."""
    gradient_checkpointing: bool | int = False
    """True: every layer; a number k: every k layers."""
    reversible: bool | None = None
    """None: as the model is."""
    shared_groups: int | None = None
    """Sets of weights among the layers; None: as the model is. As many as layers: no sharing."""
    tied_embeddings: bool | None = None
    """None: as the model is."""
    precision: Precision = "float32"
    """mixed: float32 weights under autocast; pure: everything in 16 bits."""
    attention: Attention = "auto"
    """sdpa: flash or memory-efficient kernels; auto: sdpa where transformers has it."""
    dropout: bool = True
    """False: set the model's dropout to 0."""
    batch_size: int = 1
    """Sequences in one micro-batch, on one GPU."""
    sequence_length: int | None = None
    """None: the model's longest, at most 2048."""
    target_length: int | None = None
    """Of the decoder's sequence (t5); None: as long as the encoder's."""
    accumulation_steps: int = 1
    """Micro-batches of a step."""
    zero_stage: int = 0
    """0 to 3: over `gpus`, optimizer state (1), gradients (2) and weights (3) are each kept in parts."""
    gpus: int = 1
    adapter: Adapter = "none"
    """lora: adapters on every matrix of the layers, all else frozen; qlora: and those matrices in 4 bits."""
    lora_rank: int = 16
    swarm: bool = False
    """Trained with hivemind: its buffers in RAM."""
    swarm_peers: int = 16
    compression: Compression = "run"
    """Of what a swarm exchanges; run: 8-bit for tensors of at least 65,536 elements, 16-bit for the rest."""
    reuse_grad_buffers: bool = False
    """hivemind accumulates in the model's own gradients."""
    delayed_updates: bool = False
    """hivemind's delay_optimizer_step: the step overlaps with the next batches."""
    bandwidth_mbit: float = 100.0
    """Of one peer, in each direction, for the time of an exchange."""

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            _choice(name, getattr(self, name), kind)
        _choice("optimizer", self.optimizer, OPTIMIZERS)
        offload: Any = self.offload_optimizer
        if isinstance(offload, bool):
            offload = "hivemind" if offload else "none"
        object.__setattr__(self, "offload_optimizer", offload)
        _choice("offload_optimizer", offload, get_args(Offload))
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if value is not None:
                _whole(name, value, least, most)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise CalculatorError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("reversible", "tied_embeddings"):
            if getattr(self, name) not in (None, True, False):
                raise CalculatorError(f"{name} must be True, False or None, got {getattr(self, name)!r}")
        if not (isinstance(self.bandwidth_mbit, (int, float)) and math.isfinite(self.bandwidth_mbit)):
            raise CalculatorError(f"bandwidth_mbit must be a number above 0, got {self.bandwidth_mbit!r}")
        if self.bandwidth_mbit <= 0:
            raise CalculatorError(f"bandwidth_mbit must be a number above 0, got {self.bandwidth_mbit!r}")
        _check_together(self)

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.precision.startswith("pure") else 4

    @property
    def half(self) -> int | None:
        """Bytes of autocast's type."""
        return 2 if self.precision.startswith("mixed") else None

    @property
    def every(self) -> int | None:
        """Layers of a checkpoint."""
        return int(self.gradient_checkpointing) or None

    @property
    def bits(self) -> int:
        """Of the optimizer's state."""
        return 8 if "8bit" in self.optimizer else 16 if "16bit" in self.optimizer else 32


_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer_implementation": get_args(Implementation), "precision": get_args(Precision),
    "attention": get_args(Attention), "adapter": get_args(Adapter), "compression": get_args(Compression),
}  # fmt: skip
_RANGES = (
    ("gradient_checkpointing", 0, 10_000), ("batch_size", 1, 1_000_000), ("sequence_length", 1, 10_000_000),
    ("target_length", 1, 10_000_000), ("accumulation_steps", 1, 1_000_000), ("zero_stage", 0, 3), ("gpus", 1, 100_000),
    ("lora_rank", 1, 65_536), ("swarm_peers", 1, 1_000_000), ("shared_groups", 1, 10_000),
)  # fmt: skip
_FLAGS = (
    "paged_optimizer", "embeddings_32bit", "dropout", "swarm", "reuse_grad_buffers", "delayed_updates",
)  # fmt: skip


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise CalculatorError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def _whole(name: str, value: Any, least: int, most: int) -> None:
    boolean = isinstance(value, bool) and name != "gradient_checkpointing"
    if boolean or not isinstance(value, int) or not least <= value <= most:
        raise CalculatorError(f"{name} must be a whole number from {least} to {most:,}, got {value!r}")


def _check_together(s: TrainingSetup) -> None:
    """Refuse what cannot be combined, with the reason."""
    for refused, reason in (
        (s.zero_stage and s.gpus < 2, "ZeRO splits states over several GPUs: set gpus to 2 or more"),
        (s.zero_stage and s.swarm, "hivemind keeps a whole copy on every peer, which ZeRO would split: choose one"),
        (s.zero_stage and s.offload_optimizer == "hivemind",
         "hivemind's offload is of one whole copy; with ZeRO take offload_optimizer='zero-offload'"),
        (s.offload_optimizer == "zero-offload" and s.width != 2,
         "ZeRO-Offload keeps 16-bit weights on the GPU: set precision to pure-fp16 or pure-bf16"),
        (s.offload_optimizer == "zero-offload" and s.optimizer not in ("adam", "adamw"),
         "ZeRO-Offload runs DeepSpeed's 32-bit CPU Adam: set optimizer to adam or adamw"),
        (s.offload_optimizer == "zero-offload" and s.swarm, "hivemind and DeepSpeed both want to own the optimizer"),
        (s.offload_optimizer == "hivemind" and s.width == 2,
         "hivemind's offload needs float32 weights on the GPU: set precision to float32 or mixed"),
        (s.paged_optimizer and s.bits != 8 and s.optimizer not in ("adam", "adamw", "lion"),
         "bitsandbytes has paged variants of adam, adamw and lion, in 32 and 8 bits"),
        (s.paged_optimizer and s.optimizer.startswith(("sgd", "lamb")),
         "bitsandbytes has paged variants of adam, adamw and lion, in 32 and 8 bits"),
        (s.paged_optimizer and s.offload_optimizer != "none", "a paged state is already allowed to leave the GPU"),
        (s.embeddings_32bit and s.bits != 8, "embeddings_32bit concerns 8-bit optimizers alone"),
        (s.optimizer == "lamb8bit-cpu" and s.offload_optimizer != "hivemind",
         "lamb8bit-cpu runs on the CPU: set offload_optimizer"),
        (s.adapter == "qlora" and s.precision in ("float32", "mixed-fp16", "mixed-bf16"),
         "QLoRA computes in 16 bits around its 4-bit weights: set precision to pure-bf16"),
        (s.adapter != "none" and s.shared_groups, "adapters belong to pretrained weights, which share nothing"),
        (s.adapter != "none" and s.offload_optimizer == "zero-offload",
         "the state of adapters is too small to be worth ZeRO-Offload"),
        (s.reuse_grad_buffers and not s.swarm, "reuse_grad_buffers is hivemind's: set swarm"),
        (s.delayed_updates and not (s.swarm and s.offload_optimizer == "hivemind"),
         "hivemind delays the step of an optimizer in RAM alone: set swarm and offload_optimizer"),
        (s.reversible and s.every, "reversible layers keep nothing that checkpoints could save: choose one"),
    ):  # fmt: skip
        if refused:
            raise CalculatorError(reason)


FIELDS: tuple[str, ...] = tuple(f.name for f in fields(TrainingSetup))


def field_help() -> dict[str, str]:
    """What stands under each field of TrainingSetup, for command lines and pages."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == TrainingSetup.__name__)
    result = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
            result[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return result
