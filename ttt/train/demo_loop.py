"""The training loop of the demo's stages: a budget in hours, checkpoints, records, resume.

The learning rate follows the time spent and not the step, so a stage fits its budget on any machine: a short warm-up,
a constant rate, then a straight line to zero over the last quarter. A larger budget resumes the constant part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ttt.atomic import atomic_file
from ttt.train.loop import stop_signals

DECAY = 0.25
"""Last share of the budget, in which the learning rate falls to zero."""
SMOOTHING = 0.98
"""Of the running means in the records."""


class Task(Protocol):
    """One model, its data and what to minimise."""

    name: str
    learning_rate: float
    warmup_steps: int
    clip: float

    @property
    def module(self) -> nn.Module:
        """The module that is trained."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its learning rate is set before each step."""

    def step(self, step: int) -> tuple[int, dict[str, float]]:
        """Add the gradients of a batch; returns its number of samples, and figures to record."""

    def after_step(self) -> None:
        """Whatever follows the optimizer's step."""

    def evaluate(self) -> dict[str, float]:
        """Figures on data that training never sees."""

    def state_dict(self) -> dict[str, Any]:
        """State beside the module's and the optimizer's: tensors and numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class BudgetLoop:
    """Trains a task in a folder, where it leaves `<name>.pt` (checkpoint) and `<name>.jsonl` (records)."""

    def __init__(self, task: Task, folder: Path, hours: float) -> None:
        """Resumes from the folder's checkpoint."""
        self.task, self.folder, self.budget = task, folder, hours * 3600
        self.number, self.samples, self.seconds = 0, 0, 0.0
        self.running: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / f"{task.name}.pt"
        self.records = folder / f"{task.name}.jsonl"
        if self.checkpoint.exists():
            self._load()

    @property
    def done(self) -> bool:
        return self.seconds >= self.budget

    def rate(self) -> float:
        """Share of the full learning rate at this moment."""
        left = 1 - self.seconds / self.budget
        return min(1.0, (self.number + 1) / self.task.warmup_steps, max(0.0, left) / DECAY)

    def run(
        self,
        *,
        save_every: float = 120.0,
        evaluate_every: float = 600.0,
        after_evaluation: Callable[[], None] | None = None,
    ) -> nn.Module:
        """Train until the budget is spent; returns the module in eval mode.

        save_every, evaluate_every: seconds. SIGINT and SIGTERM save and raise KeyboardInterrupt.
        """
        last = saved = evaluated = time.monotonic()
        with stop_signals() as stop:
            while not self.done:
                self._one_step()
                now = time.monotonic()
                self.seconds, last = self.seconds + now - last, now
                if stop.is_set() or self.done or now - saved > save_every:
                    self.save()
                    saved = now
                if stop.is_set():
                    raise KeyboardInterrupt
                if self.done or now - evaluated > evaluate_every:
                    self._record()
                    if after_evaluation:
                        after_evaluation()
                    evaluated = last = time.monotonic()  # evaluation is not training
        return self.task.module.eval()

    def _one_step(self) -> None:
        task = self.task
        task.module.train()
        for group in task.optimizer.param_groups:
            group["lr"] = task.learning_rate * self.rate()
        torch.manual_seed(self.number)
        task.optimizer.zero_grad(set_to_none=True)
        samples, figures = task.step(self.number)
        parameters = [p for group in task.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, task.clip)
        if torch.isfinite(norm):
            task.optimizer.step()
            task.after_step()
        self.number += 1
        self.samples += samples
        for key, value in (figures | {"gradient": float(norm)}).items():
            mean = self.running.get(key, value)
            self.running[key] = SMOOTHING * mean + (1 - SMOOTHING) * value

    def _record(self) -> None:
        self.task.module.eval()
        line = {
            "time": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": round(self.seconds), "step": self.number,
            "samples": self.samples, "rate": round(self.rate(), 3),
            **{key: round(value, 5) for key, value in (self.running | self.task.evaluate()).items()},
        }  # fmt: skip
        with self.records.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(self.task.name, line, flush=True)

    def save(self) -> None:
        """Replace the checkpoint, all of it or nothing."""
        state = {
            "model": self.task.module.state_dict(), "optimizer": self.task.optimizer.state_dict(),
            "task": self.task.state_dict(), "running": self.running,
            "step": self.number, "samples": self.samples, "seconds": self.seconds,
        }  # fmt: skip
        with atomic_file(self.checkpoint, durable=True) as partial:
            torch.save(state, partial)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.task.module.load_state_dict(state["model"])
        self.task.optimizer.load_state_dict(state["optimizer"])
        self.task.load_state_dict(state["task"])
        self.number, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        self.running = dict(state["running"])
