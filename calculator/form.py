"""The values of the tab's controls, and how a model, a GPU and a setup are read from them. Knows no gradio."""

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
"""Values of the controls, by name: those of TrainingSetup, `model`, `gpu`, `config` and the dimensions."""

CUSTOM, CONFIG = "custom dimensions", "config.json"
DIMENSIONS: Form = {"family": "gpt2", **SIZES}
MODEL_FIELDS = ("model", "gpu", "gib", "config", *DIMENSIONS)
DEFAULTS: Form = {
    "model": "gpt2-large", "gpu": "RTX 3060", "gib": 0, "config": "", **DIMENSIONS,
    **{f.name: f.default for f in fields(TrainingSetup)},
    "optimizer": "adamw", "offload_optimizer": "none",
}  # fmt: skip
OPTIONAL = ("sequence_length", "target_length", "shared_groups")
"""Numbers for which 0 and nothing mean the model's own."""
THREE_WAYS = ("reversible", "tied_embeddings")
OWN: dict[Any, bool | None] = {"model's own": None, "yes": True, "no": False}
CHECKPOINTING = ("off", "every layer", "every 2 layers", "every 4 layers", "every 8 layers")

EXAMPLES: dict[str, Form] = {
    "GPT-2 Large on 12 GB": {"model": "gpt2-large", "gpu": "RTX 3060", "optimizer": "adam8bit", "sequence_length": 1024,
                             "precision": "mixed-fp16", "gradient_checkpointing": True},
    "The swarm's DALL-E on a T4": {"model": "ttt-dalle", "gpu": "T4", "optimizer": "lamb8bit-cpu", "swarm": True,
                                   "offload_optimizer": "hivemind", "precision": "mixed-fp16", "batch_size": 4,
                                   "accumulation_steps": 16},
    "T5-11B": {"model": "t5-11b", "gpu": "A100 80GB", "optimizer": "adafactor", "precision": "pure-bf16",
               "gradient_checkpointing": True},
    "GPT-3 175B": {"model": "gpt3-175b", "gpu": "H100", "precision": "pure-bf16", "gradient_checkpointing": True,
                   "zero_stage": 3, "gpus": 64},
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    estimate: MemoryEstimate
    before: MemoryEstimate
    device: Device


def answer(form: Mapping[str, Any]) -> Answer:
    """The estimate a form asks for, and that of the same sizes without techniques."""
    form = {**DEFAULTS, **form}
    model, device, setup = read_model(form), read_device(form["gpu"], form["gib"]), read_setup(form)
    plain = TrainingSetup(
        batch_size=setup.batch_size, sequence_length=setup.sequence_length, target_length=setup.target_length,
        attention="auto" if setup.attention == "auto" else "eager",
    )  # fmt: skip
    return Answer(estimate(model, setup), estimate(model, plain), device)


def read_device(gpu: Any, gib: Any = 0) -> Device:
    """The GPU of this name, or one of one's own with so many GiB."""
    return custom_gpu(gib) if gib else find_device(str(gpu))


def read_model(form: Mapping[str, Any]) -> Architecture:
    name = form["model"]
    if name == CONFIG:
        if not str(form["config"] or "").strip():
            raise CalculatorError("paste or upload a config.json, or choose a model from the list")
        return from_json(form["config"])
    if name == CUSTOM:
        used = USED.get(form["family"], ())
        return custom(form["family"], **{name: _whole(form[name]) for name in used})
    if name not in PRESETS:
        raise CalculatorError(f"unknown model {name!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[name]


def read_setup(form: Mapping[str, Any]) -> TrainingSetup:
    """Numbers of a browser are floats, and nothing where a field is empty."""
    values: Form = {}
    for f in fields(TrainingSetup):
        value = form[f.name]
        if f.name in OPTIONAL:
            value = None if value in (None, "", 0) else _whole(value)
        elif f.name == "gradient_checkpointing":
            value = checkpointing(value)
        elif f.name in THREE_WAYS:
            value = OWN.get(value, value)
        elif isinstance(f.default, int) and not isinstance(f.default, bool):
            value = _whole(value)
        values[f.name] = value
    return TrainingSetup(**values)


def checkpointing(value: Any) -> bool | int:
    if isinstance(value, str):
        if value not in CHECKPOINTING:
            raise CalculatorError(f"gradient_checkpointing must be one of {', '.join(CHECKPOINTING)}; got {value!r}")
        return value == "every layer" or (value != "off" and int(value.split()[1]))
    return value if isinstance(value, bool) else _whole(value)


def _whole(value: Any) -> Any:
    """A browser sends numbers as floats: turn 2.0 into 2, and leave anything else to the checks."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def values(form: Form, names: list[str]) -> list[Any]:
    """A form as values of the controls with these names."""
    words = {None: "model's own", True: "yes", False: "no"}
    result = []
    for name in names:
        value = form[name]
        if name == "gradient_checkpointing" and not isinstance(value, str):
            value = "off" if not value else CHECKPOINTING[1] if value is True or value == 1 else f"every {value} layers"
        elif name in THREE_WAYS:
            value = words.get(value, value)
        elif name in OPTIONAL:
            value = value or 0
        result.append(value)
    return result
