"""The training loop: steps, schedule, clipping, checkpoints, resume, records. Knows neither model nor data.

    task.loss(step) -> loss.backward() -> clip -> optimizer.step() -> every minute: checkpoint

A killed run goes on from its last checkpoint with the same batches and the same random numbers: both depend on
the step alone.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ttt.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast one model is trained."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 50
    """Steps of linear warm-up."""
    decay: float = 0.3
    """Last share of the steps, in which the learning rate falls to zero (cosine)."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    """Largest norm of all gradients together."""
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: warm-up, plateau, decay."""
        start = self.steps * (1 - self.decay)
        progress = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * progress))


class Task(Protocol):
    """One model and what to minimise."""

    name: str

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of the batch of this step, and figures to record; called with the random generator seeded."""

    def evaluate(self) -> dict[str, float]:
        """Figures on data that training never sees."""


def run(task: Task, recipe: Recipe, folder: Path, *, save_every: float = 60.0, evaluate_every: int = 500) -> nn.Module:
    """Train, or go on training, until `recipe.steps`; returns the module in eval mode.

    Leaves `<name>.pt` (checkpoint) and `<name>.jsonl` (records) in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        _decayed_apart(task.module, recipe.weight_decay), lr=recipe.learning_rate, betas=recipe.betas
    )
    first, spent = _resume(task, optimizer, folder)
    started, saved = time.monotonic(), time.monotonic()
    running: dict[str, float] = {}
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc=task.name, mininterval=5.0)
    for step in bar:
        task.module.train()
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        loss, figures = task.loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(task.module.parameters(), recipe.clip)
        if not torch.isfinite(norm):
            raise CheckpointError(f"{task.name}: the gradient of step {step} is not finite; lower the learning rate")
        optimizer.step()
        for key, value in {"loss": loss.item(), **figures}.items():
            running[key] = value if key not in running else 0.98 * running[key] + 0.02 * value
        if step % 20 == 0:
            bar.set_postfix({k: f"{v:.4f}" for k, v in running.items()}, refresh=False)
        done = step + 1 == recipe.steps
        if done or (step + 1) % evaluate_every == 0:
            task.module.eval()
            seconds = spent + time.monotonic() - started
            _record(folder, task, {"step": step + 1, "seconds": round(seconds, 1), **running, **task.evaluate()})
        if done or time.monotonic() - saved > save_every:
            _save(folder, task, optimizer, step + 1, spent + time.monotonic() - started)
            saved = time.monotonic()
    return task.module.eval()


def _decayed_apart(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; biases, norms and scales are not."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2 and min(p.shape[:2]) > 1]
    known = {id(p) for p in matrices}
    vectors = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _resume(task: Task, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[int, float]:
    path = folder / f"{task.name}.pt"
    if not path.exists():
        return 0, 0.0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        task.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), float(state["seconds"])
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be resumed from ({reason}); remove it to start again") from None


def _save(folder: Path, task: Task, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    path = folder / f"{task.name}.pt"
    state = {
        "model": task.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds,
    }  # fmt: skip
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _record(folder: Path, task: Task, figures: dict[str, float]) -> None:
    with (folder / f"{task.name}.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")
