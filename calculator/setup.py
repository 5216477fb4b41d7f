"""TrainingSetup: how a model is trained, with every technique checked by itself and against the others.

Independent of models and of memory. Each field declares its default, its range and its help text once; the command
line, the Memory tab and the docs read them from `dataclasses.fields(TrainingSetup)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from calculator.checks import boolean, number_above_zero, one_of, whole_number
from calculator.errors import CalculatorError

TrainingPrecision = Literal["float32", "mixed-fp16", "mixed-bf16", "pure-fp16", "pure-bf16"]
AttentionKernel = Literal["auto", "eager", "sdpa"]
Offload = Literal["none", "hivemind", "zero-offload"]
Implementation = Literal["foreach", "for-loop", "fused"]
Adapter = Literal["none", "lora", "qlora"]
WireCompression = Literal["none", "16-bit", "8-bit", "run"]

OPTIMIZERS: tuple[str, ...] = (
    "adam", "adamw", "adam16bit", "adamw16bit", "adam8bit", "adamw8bit", "lamb", "lamb16bit", "lamb8bit",
    "lamb8bit-cpu", "sgd", "sgd16bit", "sgd8bit", "lion", "lion16bit", "lion8bit", "adafactor", "adafactor-momentum",
)  # fmt: skip
"""8bit: bitsandbytes' layout (blocks of 256); lamb8bit-cpu: the 2021 run's own, for an optimizer on the CPU
(blocks of 4096, float32 below 65,536 elements); 16bit: states in bfloat16; sgd has momentum."""

PAGED = ("adam", "adamw", "lion", "adam8bit", "adamw8bit", "lion8bit")
"""Optimizers of which bitsandbytes has a paged version."""


def setting(text: str, *, choices: tuple[str, ...] = (), least: int | None = None, most: int = 0) -> dict[str, Any]:
    """Metadata of a field of TrainingSetup: its help text, and its choices or its range of whole numbers."""
    return {"help": text, "choices": choices, "least": least, "most": most}


def help_text(name: str) -> str:
    """The help text of a field of TrainingSetup."""
    return str(TrainingSetup.__dataclass_fields__[name].metadata["help"])


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """A set of training techniques. The defaults are those of PyTorch and transformers.

    Raises CalculatorError for a value out of range and for combinations that cannot work.
    """

    optimizer: str = field(default="adamw", metadata=setting("the optimizer", choices=OPTIMIZERS))
    optimizer_implementation: Implementation = field(
        default="foreach",
        metadata=setting(
            "how PyTorch runs the optimizer step: all tensors at once (its default), one by one, or fused",
            choices=get_args(Implementation),
        ),
    )
    paged_optimizer: bool = field(
        default=False,
        metadata=setting(
            "bitsandbytes' paged state: tensors of at least 100,000 elements can move from the GPU to RAM"
        ),
    )
    embeddings_32bit: bool = field(
        default=False,
        metadata=setting("32-bit state for embeddings with an 8-bit optimizer (bitsandbytes' StableEmbedding)"),
    )
    offload_optimizer: bool | Offload = field(
        default=False,
        metadata=setting(
            "keep the optimizer in RAM: hivemind (master weights, averaged gradients and state; also without a "
            "value) or zero-offload (DeepSpeed's)",
            choices=get_args(Offload),
        ),
    )
    gradient_checkpointing: bool | int = field(
        default=False,
        metadata=setting(
            "recompute activations in the backward pass: every layer, or a number k for every k layers",
            least=0,
            most=10_000,
        ),
    )
    reversible: bool | None = field(
        default=None, metadata=setting("reversible layers (ttt-dalle); default: as in the model")
    )
    shared_groups: int | None = field(
        default=None,
        metadata=setting("sets of weights shared by the layers; default: as in the model", least=1, most=10_000),
    )
    tied_embeddings: bool | None = field(
        default=None, metadata=setting("the output layer shares the embedding's weights; default: as in the model")
    )
    precision: TrainingPrecision = field(
        default="float32",
        metadata=setting(
            "mixed: float32 weights under autocast; pure: 16-bit weights, gradients and activations",
            choices=get_args(TrainingPrecision),
        ),
    )
    attention: AttentionKernel = field(
        default="auto",
        metadata=setting(
            "sdpa: flash or memory-efficient kernels; auto: sdpa if transformers has it for the model",
            choices=get_args(AttentionKernel),
        ),
    )
    dropout: bool = field(default=True, metadata=setting("train with the model's dropout"))
    batch_size: int = field(
        default=1, metadata=setting("sequences per micro-batch on one GPU", least=1, most=1_000_000)
    )
    sequence_length: int | None = field(
        default=None,
        metadata=setting("tokens per sequence; default: the model's longest, at most 2048", least=1, most=10_000_000),
    )
    target_length: int | None = field(
        default=None,
        metadata=setting(
            "tokens per decoder sequence (t5); default: as long as the encoder's", least=1, most=10_000_000
        ),
    )
    accumulation_steps: int = field(
        default=1, metadata=setting("micro-batches per optimizer step", least=1, most=1_000_000)
    )
    zero_stage: int = field(
        default=0,
        metadata=setting(
            "ZeRO over --gpus: split the optimizer state (1), also the gradients (2), also the weights (3)",
            least=0,
            most=3,
        ),
    )
    gpus: int = field(default=1, metadata=setting("number of GPUs for ZeRO", least=1, most=100_000))
    adapter: Adapter = field(
        default="none",
        metadata=setting(
            "lora: train adapters on every matrix of the layers and freeze the rest; qlora: also store these "
            "matrices in 4 bits",
            choices=get_args(Adapter),
        ),
    )
    lora_rank: int = field(default=16, metadata=setting("rank of the adapters", least=1, most=65_536))
    swarm: bool = field(default=False, metadata=setting("train with hivemind: count its buffers and its traffic"))
    swarm_peers: int = field(default=16, metadata=setting("peers in the swarm", least=1, most=1_000_000))
    compression: WireCompression = field(
        default="run",
        metadata=setting(
            "compression of what peers exchange; run: as in 2021, 8-bit for tensors of at least 65,536 elements "
            "and 16-bit for smaller ones",
            choices=get_args(WireCompression),
        ),
    )
    reuse_grad_buffers: bool = field(
        default=False, metadata=setting("let hivemind accumulate in the model's own gradients")
    )
    delayed_updates: bool = field(
        default=False,
        metadata=setting("hivemind's delay_optimizer_step: the optimizer step overlaps with the next batches"),
    )
    bandwidth_mbit: float = field(default=100.0, metadata=setting("bandwidth of one peer in each direction, Mbit/s"))

    def __post_init__(self) -> None:
        if isinstance(self.offload_optimizer, bool):
            object.__setattr__(self, "offload_optimizer", "hivemind" if self.offload_optimizer else "none")
        for f in fields(self):
            _check(f.name, str(f.type), getattr(self, f.name), f.metadata)
        _check_together(self)

    @property
    def width(self) -> int:
        """Bytes per weight."""
        return 2 if self.precision.startswith("pure") else 4

    @property
    def half(self) -> int | None:
        """Bytes per number in autocast's dtype; None without autocast."""
        return 2 if self.precision.startswith("mixed") else None

    @property
    def every(self) -> int | None:
        """Layers per checkpoint; None without checkpointing."""
        return int(self.gradient_checkpointing) or None

    @property
    def bits(self) -> int:
        """Bits of the optimizer's state."""
        return 8 if "8bit" in self.optimizer else 16 if "16bit" in self.optimizer else 32


def _check(name: str, annotation: str, value: Any, metadata: Any) -> None:
    if metadata["choices"]:
        one_of(name, value, metadata["choices"])
    elif metadata["least"] is not None:
        optional = value is None and "None" in annotation
        if not optional and not (isinstance(value, bool) and "bool" in annotation):
            whole_number(name, value, metadata["least"], metadata["most"])
    elif annotation == "bool":
        boolean(name, value)
    elif annotation == "bool | None":
        if value not in (None, True, False):
            raise CalculatorError(f"{name} must be True, False or None, got {value!r}")
    else:
        number_above_zero(name, value)


def _check_together(s: TrainingSetup) -> None:
    """Refuse combinations that cannot work, with the reason and the remedy."""
    for refused, reason in (
        (s.zero_stage and s.gpus < 2, "ZeRO splits the training state over several GPUs: set gpus to 2 or more"),
        (s.zero_stage and s.swarm, "ZeRO splits the model, but hivemind keeps a full copy on every peer: choose one"),
        (s.zero_stage and s.offload_optimizer == "hivemind",
         "hivemind's offload needs a full copy of the model; with ZeRO use offload_optimizer='zero-offload'"),
        (s.offload_optimizer == "zero-offload" and s.width != 2,
         "ZeRO-Offload keeps 16-bit weights on the GPU: set precision to pure-fp16 or pure-bf16"),
        (s.offload_optimizer == "zero-offload" and s.optimizer not in ("adam", "adamw"),
         "ZeRO-Offload runs DeepSpeed's 32-bit CPU Adam: set optimizer to adam or adamw"),
        (s.offload_optimizer == "zero-offload" and s.swarm,
         "hivemind and ZeRO-Offload would both own the optimizer: choose one"),
        (s.offload_optimizer == "hivemind" and s.width == 2,
         "hivemind's offload needs float32 weights on the GPU: set precision to float32 or mixed"),
        (s.paged_optimizer and s.optimizer not in PAGED,
         "bitsandbytes has paged versions of adam, adamw and lion, in 32 and 8 bits"),
        (s.paged_optimizer and s.offload_optimizer != "none",
         "the optimizer is already offloaded to RAM: turn off paged_optimizer"),
        (s.embeddings_32bit and s.bits != 8, "embeddings_32bit applies to 8-bit optimizers only"),
        (s.optimizer == "lamb8bit-cpu" and s.offload_optimizer != "hivemind",
         "lamb8bit-cpu runs on the CPU: set offload_optimizer"),
        (s.adapter == "qlora" and s.width != 2,
         "QLoRA computes in 16 bits around its 4-bit weights: set precision to pure-bf16"),
        (s.adapter != "none" and s.shared_groups,
         "adapters are trained on pretrained weights, which are not shared by layers: turn off shared_groups"),
        (s.adapter != "none" and s.offload_optimizer == "zero-offload",
         "ZeRO-Offload saves nothing here: the optimizer state of adapters is small"),
        (s.reuse_grad_buffers and not s.swarm, "reuse_grad_buffers is an option of hivemind: set swarm"),
        (s.delayed_updates and not (s.swarm and s.offload_optimizer == "hivemind"),
         "hivemind can delay only the step of an offloaded optimizer: set swarm and offload_optimizer"),
        (s.reversible and s.every, "reversible layers save no activations, so checkpointing gains nothing: choose one"),
    ):  # fmt: skip
        if refused:
            raise CalculatorError(reason)
