"""Training on one machine, without a swarm, in a folder that is a bundle all the time.

OUT/            a bundle: TextToImage.from_pretrained(OUT) works from the start
OUT/training/   checkpoint, settings and records
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
    """A training on one machine: model, data, recipe and device."""

    data: str
    """"scenes", a folder or glob of shards, a URL, or a Hub data set."""
    parts: Bundle
    """The bundle whose VQGAN, tokenizer and CLIP the model uses."""
    config: DalleConfig
    recipe: Recipe
    weights: Bundle | None = None
    """The bundle whose weights to start from; None: random weights."""
    held_out: str | None = None
    """Shards to evaluate on; scenes have a held-out part of their own."""
    device: str = "auto"
    precision: Precision | str = "auto"
    micro_batch: int | None = None
    """Samples computed at once; None: the largest micro-batch that fits in memory."""
    token: str | None = None
    """Token for gated data on the Hub."""


def train(training: Training, out: Path, *, save_every: float = 60.0, evaluate_every: int = 500) -> Bundle:
    """Start or resume training, up to the recipe's last step; returns the bundle."""
    loop = prepare(training, out)
    loop.run(save_every=save_every, evaluate_every=evaluate_every)
    return read_bundle(out)


def prepare(training: Training, out: Path) -> TrainingLoop:
    """Open the stream, put the model on its device, write the bundle to `out` and resume from its checkpoint."""
    _check_same_run(training, out)
    dalle, plan = _model(training)
    stream = _stream(training, training.recipe.batch_size)
    if not (out / CONFIG).exists():
        next(iter(_stream(training, 1)))  # unreadable data is an error before anything is written
    task = DalleTask(
        dalle, stream, micro_batch=plan.micro_batch, precision=training.precision, held_out=_held_out(training)
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
                f"{training.weights.root} holds a model of other dimensions; start from random weights, or train a "
                "model of its dimensions"
            )
        dalle.load_state_dict(load_dalle_from(training.weights).state_dict())
    dtype = choose_training_dtype(training.precision, device)
    if training.micro_batch is None:
        plan = plan_memory(config, device, recipe.batch_size, dtype)
    else:
        plan = MemoryPlan(training.micro_batch, config.reversible, 0)
    on_device = Dalle(replace(config, reversible=plan.reversible)).to(device)
    on_device.load_state_dict(dalle.state_dict())
    return on_device, probe(plan, on_device, precision=training.precision)


def _as_configured(dalle: Dalle, training: Training) -> Dalle:
    """The same weights with the bundle's configuration: `reversible` is a choice for this device, not of the model."""
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
    """The settings that must stay the same for training to be resumed exactly."""
    return {
        "data": training.data, "dalle": training.config.to_dict(), "recipe": training.recipe.model_dump(),
        "parts": training.parts.name,
    }  # fmt: skip


def _check_same_run(training: Training, out: Path) -> None:
    path = out / FOLDER / SETTINGS
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise InvalidInput(f"{out} is not empty and does not hold a training; choose another folder")
        return
    now = json.loads(json.dumps(_settings(training)))
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in now if before[key] != now[key]]
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"{path} is broken; choose another folder, or remove {out} to start again") from None
    if different:
        key = different[0]
        raise InvalidInput(
            f"{out} holds a training with another {key}: {_difference(before[key], now[key])}. Use the same settings "
            "to resume it, or another folder to start a new one"
        )


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in keys[:3])
    return f"was {before}, now {now}"
