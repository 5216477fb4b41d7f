"""The values of the tab's controls, and the model, GPU and setup that they describe. Independent of Gradio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from calculator.architectures import Architecture
from calculator.custom import SIZES, USED, custom
from calculator.devices import Device, custom_gpu, find_device
from calculator.errors import CalculatorError
from calculator.hf_config import from_json
from calculator.memory import MemoryEstimate, estimate
from calculator.presets import PRESETS
from calculator.setup import TrainingSetup

Form = dict[str, Any]
"""Values of the controls by name: the fields of TrainingSetup, `model`, `gpu`, `gib`, `config` and the dimensions."""

CUSTOM, CONFIG = "custom dimensions", "config.json"
DIMENSIONS: Form = {"family": "gpt2", **SIZES}
MODEL_FIELDS = ("model", "gpu", "gib", "config", *DIMENSIONS)
DEFAULTS: Form = {
    "model": "gpt2-large", "gpu": "RTX 3060", "gib": 0, "config": "", **DIMENSIONS,
    **{f.name: f.default for f in fields(TrainingSetup)},
    "optimizer": "adamw", "offload_optimizer": "none",
}  # fmt: skip
OPTIONAL = ("sequence_length", "target_length", "shared_groups")
"""Numbers for which 0 or an empty field means the model's default."""
THREE_WAYS = ("reversible", "tied_embeddings")
OWN: dict[Any, bool | None] = {"model default": None, "yes": True, "no": False}
CHECKPOINTING = ("off", "every layer", "every 2 layers", "every 4 layers", "every 8 layers")
METHODS = {"Full": "none", "LoRA": "lora", "QLoRA": "qlora"}
"""Fine-tuning methods on the page, and their adapters."""

LABELS = {
    "model": "Model", "gpu": "GPU", "gib": "Or GPU memory (GiB)", "config": "Your own model", "adapter": "Method",
    "batch_size": "Batch size per GPU", "sequence_length": "Sequence length",
    "accumulation_steps": "Gradient accumulation steps", "optimizer": "Optimizer", "precision": "Precision",
    "gradient_checkpointing": "Gradient checkpointing", "offload_optimizer": "Optimizer offload (CPU)",
    "attention": "Attention", "shared_groups": "Shared layer groups", "reversible": "Reversible layers",
    "tied_embeddings": "Tied embeddings", "dropout": "Dropout", "target_length": "Target length (T5)",
    "optimizer_implementation": "Optimizer implementation", "paged_optimizer": "Paged optimizer (bitsandbytes)",
    "embeddings_32bit": "32-bit state for embeddings", "lora_rank": "LoRA rank", "zero_stage": "ZeRO stage",
    "gpus": "Number of GPUs", "swarm": "Swarm (hivemind)", "swarm_peers": "Peers",
    "reuse_grad_buffers": "Reuse gradient buffers", "delayed_updates": "Delayed updates",
    "compression": "Compression", "bandwidth_mbit": "Bandwidth, Mbit/s", "family": "Family",
    **{name: name.replace("_", " ").capitalize() for name in SIZES},
}  # fmt: skip
"""Labels of the controls."""

EXAMPLES: dict[str, Form] = {
    "GPT-2 Large, 8-bit Adam, 12 GB": {"model": "gpt2-large", "gpu": "RTX 3060", "optimizer": "adam8bit",
                                       "sequence_length": 1024},
    "Llama 3.1 8B, LoRA, 24 GB": {"model": "llama-3.1-8b", "gpu": "RTX 3090", "adapter": "lora",
                                  "precision": "pure-bf16", "gradient_checkpointing": True},
    "The 2021 run's DALL-E on a T4": {"model": "ttt-dalle", "gpu": "T4", "optimizer": "lamb8bit-cpu", "swarm": True,
                                      "offload_optimizer": "hivemind", "precision": "mixed-fp16", "batch_size": 4,
                                      "accumulation_steps": 16},
    "GPT-3 175B on 64 H100": {"model": "gpt3-175b", "gpu": "H100", "precision": "pure-bf16",
                              "gradient_checkpointing": True, "zero_stage": 3, "gpus": 64},
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """The estimate of a form, and that of the same sizes with plain float32 AdamW."""

    estimate: MemoryEstimate
    plain: MemoryEstimate
    device: Device


def answer(form: Mapping[str, Any]) -> Answer:
    """Return the estimates for a form. Raises CalculatorError."""
    form = {**DEFAULTS, **form}
    model, device, setup = read_model(form), read_device(form["gpu"], form["gib"]), read_setup(form)
    plain = TrainingSetup(
        batch_size=setup.batch_size, sequence_length=setup.sequence_length, target_length=setup.target_length,
        attention="auto" if setup.attention == "auto" else "eager",
    )  # fmt: skip
    return Answer(estimate(model, setup), estimate(model, plain), device)


def read_device(gpu: Any, gib: Any = 0) -> Device:
    """Return the GPU of this name, or a GPU with `gib` of memory."""
    return custom_gpu(gib) if gib else find_device(str(gpu))


def read_model(form: Mapping[str, Any]) -> Architecture:
    """Return the model that the form describes."""
    name = form["model"]
    if name == CONFIG:
        if not str(form["config"] or "").strip():
            raise CalculatorError("paste or drop a config.json, or choose a model from the list")
        return from_json(form["config"])
    if name == CUSTOM:
        used = USED.get(form["family"], ())
        return custom(form["family"], **{name: _whole(form[name]) for name in used})
    if name not in PRESETS:
        raise CalculatorError(
            f"unknown model {str(name)[:80]!r}; presets: {', '.join(PRESETS)}. "
            f"For another model, use its config.json or its Hub id"
        )
    return PRESETS[name]


def read_setup(form: Mapping[str, Any]) -> TrainingSetup:
    """Return the setup that the form describes."""
    result: Form = {}
    for f in fields(TrainingSetup):
        value = form[f.name]
        if f.name in OPTIONAL:
            value = None if value in (None, "", 0) else _whole(value)
        elif f.name == "gradient_checkpointing":
            value = checkpointing(value)
        elif f.name in THREE_WAYS:
            value = OWN.get(value, value)
        elif f.name == "adapter":
            value = METHODS.get(value, value)
        elif isinstance(f.default, int) and not isinstance(f.default, bool):
            value = _whole(value)
        result[f.name] = value
    return TrainingSetup(**result)


def checkpointing(value: Any) -> bool | int:
    """Return the value of TrainingSetup for a choice of the page."""
    if isinstance(value, str):
        if value not in CHECKPOINTING:
            raise CalculatorError(f"gradient_checkpointing must be one of {', '.join(CHECKPOINTING)}; got {value!r}")
        return value == "every layer" or (value != "off" and int(value.split()[1]))
    return value if isinstance(value, bool) else int(_whole(value))


def _whole(value: Any) -> Any:
    """A browser sends numbers as floats: turn 2.0 into 2, and leave anything else to the checks."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def control_values(form: Form, names: list[str]) -> list[Any]:
    """Return the values of the controls with these names."""
    words = {value: word for word, value in OWN.items()}
    methods = {adapter: method for method, adapter in METHODS.items()}
    result = []
    for name in names:
        value = form[name]
        if name == "gradient_checkpointing" and not isinstance(value, str):
            value = "off" if not value else CHECKPOINTING[1] if value is True or value == 1 else f"every {value} layers"
        elif name in THREE_WAYS:
            value = words.get(value, value)
        elif name in OPTIONAL:
            value = value or 0
        elif name == "adapter":
            value = methods.get(value, value)
        result.append(value)
    return result


# -- choices that imply others -----------------------------------------------------------------------------------------

_ADAPTER = ({"precision": "pure-bf16", "gradient_checkpointing": "every layer", "shared_groups": 0},
            "the frozen weights are in 16 bits, with gradient checkpointing, as usual")  # fmt: skip


def implied(form: Form, changed: str) -> tuple[Form, str]:
    """Return the controls that a changed control implies, with their new values, and a sentence about them.

    QLoRA needs 16-bit weights and ZeRO needs several GPUs, for example: the page sets these instead of refusing.
    """
    value, changes, reason = form[changed], {}, ""
    value = METHODS.get(value, value) if changed == "adapter" else value
    bf16 = _has_bf16(form)
    if changed == "adapter" and value != "none":
        changes, reason = dict(_ADAPTER[0]), _ADAPTER[1]
        changes["precision"] = "pure-bf16" if bf16 else "pure-fp16"
        if str(form["precision"]).startswith("pure"):
            changes.pop("precision")
        if form["gradient_checkpointing"] not in (False, "off"):
            changes.pop("gradient_checkpointing")
        if form["offload_optimizer"] != "none":
            changes["offload_optimizer"] = "none"
    elif changed == "adapter" and str(form["precision"]).startswith("pure"):
        changes, reason = {"precision": "float32"}, "full training keeps float32 weights"
    elif changed == "precision" and form["adapter"] in ("QLoRA", "qlora") and not str(value).startswith("pure"):
        changes, reason = {"adapter": "LoRA"}, "QLoRA needs 16-bit weights"
    elif changed == "precision" and str(value).startswith("pure") and form["offload_optimizer"] == "hivemind":
        changes, reason = {"offload_optimizer": "none"}, "hivemind's offload needs float32 weights"
    elif changed == "zero_stage" and value and (form["gpus"] or 0) < 2:
        changes, reason = {"gpus": 2}, "ZeRO needs several GPUs"
    elif changed == "gpus" and isinstance(value, (int, float)) and value > 1 and not form["zero_stage"]:
        changes, reason = {"zero_stage": 1}, "ZeRO splits the training state across GPUs"
    elif changed == "offload_optimizer" and value == "zero-offload":
        changes, reason = {"optimizer": "adamw", "swarm": False}, "ZeRO-Offload runs 32-bit Adam on 16-bit weights"
        if not str(form["precision"]).startswith("pure"):
            changes["precision"] = "pure-bf16" if bf16 else "pure-fp16"
    elif changed == "offload_optimizer" and value == "hivemind" and str(form["precision"]).startswith("pure"):
        changes, reason = {"precision": "mixed-bf16"}, "hivemind's offload needs float32 weights"
    elif changed == "offload_optimizer" and value == "none" and form["optimizer"] == "lamb8bit-cpu":
        changes, reason = {"optimizer": "lamb8bit"}, "lamb8bit-cpu needs an offloaded optimizer"
    elif changed == "optimizer" and value == "lamb8bit-cpu":
        changes, reason = {"offload_optimizer": "hivemind"}, "lamb8bit-cpu runs on the CPU"
        if str(form["precision"]).startswith("pure"):
            changes["precision"] = "mixed-bf16" if bf16 else "mixed-fp16"
    elif changed == "delayed_updates" and value:
        changes, reason = {"swarm": True, "offload_optimizer": "hivemind"}, "delayed updates need hivemind's offload"
    elif changed == "reuse_grad_buffers" and value:
        changes, reason = {"swarm": True}, "hivemind owns these buffers"
    elif changed == "swarm" and value:
        changes, reason = {"zero_stage": 0, "gpus": 1}, "every peer of a swarm keeps the whole model"
    elif changed == "swarm":
        changes, reason = {"delayed_updates": False, "reuse_grad_buffers": False}, "these are options of hivemind"
    elif changed == "embeddings_32bit" and value and "8bit" not in str(form["optimizer"]):
        changes, reason = {"optimizer": "adamw8bit"}, "this option is for 8-bit optimizers"
    elif changed == "config":
        changes = {"model": CONFIG}
        if _four_bit(form):
            changes |= {"adapter": "QLoRA", **_ADAPTER[0]}
            reason = "the file describes 4-bit weights"
    changes = {name: new for name, new in changes.items() if form[name] != new}
    shown = ", ".join(f"{LABELS[name]}: {_word(new)}" for name, new in changes.items() if name != "model")
    return changes, f"Also set {shown} ({reason})." if shown else ""


def _word(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _has_bf16(form: Form) -> bool:
    try:
        return read_device(form["gpu"], form["gib"]).bf16
    except CalculatorError:
        return True


def _four_bit(form: Form) -> bool:
    try:
        return "4-bit" in from_json(form["config"]).quantization
    except (CalculatorError, TypeError):
        return False
