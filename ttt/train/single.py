"""Training on one machine, without a swarm: data, a model and a folder that is a bundle all along.

OUT/            a bundle: TextToImage.from_pretrained(OUT) works from the first minute on
OUT/training/   checkpoint and records
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ttt.bundle import Bundle, read_bundle
from ttt.bundle.spec import CONFIG
from ttt.bundle.weights import load_dalle_from, replace_dalle, write_bundle_like
from ttt.config import DalleConfig
from ttt.data.stream import SCENES, open_stream
from ttt.errors import InvalidInput
from ttt.hardware import choose_device, choose_training_dtype
from ttt.model.dalle import Dalle
from ttt.train.loop import TrainingLoop
from ttt.train.micro_batch import MemoryPlan, plan_memory, probe
from ttt.train.recipe import Recipe
from ttt.train.step import DalleTask, Precision
from ttt.types import Batch, BatchStream

FOLDER, SETTINGS = "training", "settings.json"
HELD_OUT_SEED, HELD_OUT_SAMPLES = 3_000_000, 96


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained on what, and how."""

    data: str
    """"scenes", a folder or glob of shards, a URL, or a Hub data set."""
    parts: Bundle
    """Whose VQGAN, tokenizer and CLIP the model works with."""
    config: DalleConfig
    recipe: Recipe
    weights: Bundle | None = None
    """Where to start from; None: from nothing."""
    held_out: str | None = None
    """More shards, to evaluate on; scenes have their own."""
    device: str = "auto"
    precision: Precision | str = "auto"
    micro_batch: int | None = None
    """Samples at once; None: as many as fit."""
    token: str | None = None
    """For gated data on the Hub."""


def train(training: Training, out: Path, *, save_every: float = 60.0, evaluate_every: int = 500) -> Bundle:
    """Train, or go on training, until the recipe's last step; returns the bundle."""
    loop = prepare(training, out)
    loop.run(save_every=save_every, evaluate_every=evaluate_every)
    return read_bundle(out)


def prepare(training: Training, out: Path) -> TrainingLoop:
    """Everything in place: the stream open, the model on its device, the bundle in `out`, a checkpoint resumed."""
    _check_same_run(training, out)
    dalle, fitted = _model(training)
    stream = _stream(training, training.recipe.batch_size)
    if not (out / CONFIG).exists():
        next(iter(_stream(training, 1)))  # data that cannot be read is told before anything is written
    task = DalleTask(
        dalle, stream, micro_batch=fitted.micro_batch, precision=training.precision, held_out=_held_out(training)
    )
    if (out / CONFIG).exists():
        bundle = read_bundle(out)
    else:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        (out / FOLDER / SETTINGS).write_text(json.dumps(_settings(training), indent=2) + "\n")
        configured = _as_configured(dalle, training)
        bundle = write_bundle_like(out, training.parts, configured, name=out.resolve().name, overwrite=True)
    return TrainingLoop(task, training.recipe, out / FOLDER, after_save=lambda: replace_dalle(bundle, dalle))


def _stream(training: Training, batch_size: int) -> BatchStream:
    return open_stream(
        training.data, training.parts, training.config,
        batch_size=batch_size, seed=training.recipe.seed + 1, token=training.token,
    )  # fmt: skip


def _model(training: Training) -> tuple[Dalle, MemoryPlan]:
    device = choose_device(training.device)
    recipe, config = training.recipe, training.config
    torch.manual_seed(recipe.seed)
    dalle = Dalle(config)
    if training.weights is not None:
        if replace(training.weights.dalle, reversible=config.reversible) != config:
            raise InvalidInput(
                f"{training.weights.root} holds a model of other dimensions; start from nothing, or train a model "
                "of its dimensions"
            )
        dalle.load_state_dict(load_dalle_from(training.weights).state_dict())
    dtype = choose_training_dtype(training.precision, device)
    if training.micro_batch is None:
        fitted = plan_memory(config, device, recipe.batch_size, dtype)
    else:
        fitted = MemoryPlan(training.micro_batch, config.reversible, 0)
    on_device = Dalle(replace(config, reversible=fitted.reversible)).to(device)
    on_device.load_state_dict(dalle.state_dict())
    return on_device, probe(fitted, on_device, precision=training.precision)


def _as_configured(dalle: Dalle, training: Training) -> Dalle:
    """The same weights; whether activations are remembered here is nothing that a bundle tells."""
    with torch.device("meta"):
        model = Dalle(training.config)
    model.load_state_dict(dalle.state_dict(), assign=True)
    return model


def _held_out(training: Training) -> Sequence[Batch]:
    source = training.held_out or training.data
    if training.held_out is None and source != SCENES:
        return ()
    size = min(HELD_OUT_SAMPLES, training.recipe.batch_size)
    stream = open_stream(
        source, training.parts, training.config,
        batch_size=size, seed=HELD_OUT_SEED, held_out=source == SCENES, token=training.token,
    )  # fmt: skip
    return list(islice(stream, max(1, HELD_OUT_SAMPLES // size)))


def _settings(training: Training) -> dict[str, Any]:
    """What a run must keep to, to go on as if nothing had happened."""
    return {
        "data": training.data, "dalle": training.config.to_dict(), "recipe": training.recipe.model_dump(),
        "parts": training.parts.name,
    }  # fmt: skip


def _check_same_run(training: Training, out: Path) -> None:
    path = out / FOLDER / SETTINGS
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise InvalidInput(f"{out} is not empty and holds no training; choose another folder")
        return
    wanted = json.loads(json.dumps(_settings(training)))
    try:
        had = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in wanted if had[key] != wanted[key]]
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"{path} is broken; choose another folder, or remove {out} to start again") from None
    if different:
        key = different[0]
        raise InvalidInput(
            f"{out} holds a training with another {key}: {_difference(had[key], wanted[key])}. Use the same settings "
            "to go on, or another folder to start anew"
        )


def _difference(had: Any, wanted: Any) -> str:
    if isinstance(had, dict) and isinstance(wanted, dict):
        keys = [key for key in {**had, **wanted} if had.get(key) != wanted.get(key)]
        return ", ".join(f"{key} was {had.get(key)}, now {wanted.get(key)}" for key in keys[:3])
    return f"was {had}, now {wanted}"
