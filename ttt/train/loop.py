"""The training loop: steps, learning rate, checkpoints, resuming and records. Independent of model and data.

    task.backward(step) -> clip -> optimizer.step() -> schedule.step() -> every minute: checkpoint

A killed training resumes from its last checkpoint as if it had never been interrupted: weights, optimizer, schedule,
position in the data and records are all of the same step, and random numbers depend on the step alone.
"""

from __future__ import annotations

import json
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from ttt.atomic import atomic_file
from ttt.errors import CheckpointError
from ttt.text import first_line
from ttt.train.optimizer import Lamb, linear_schedule, parameter_groups
from ttt.train.recipe import Recipe

SMOOTHING = 0.98
"""Decay of the running means in the records."""


class Task(Protocol):
    """One model, its data and the loss to minimise."""

    name: str

    @property
    def module(self) -> nn.Module:
        """The module that is trained."""

    def backward(self, step: int) -> dict[str, float] | None:
        """Compute the gradients of this step's batch; returns the values to record, `loss` among them.

        None: no gradient is usable (float16 overflowed); the step is repeated with the next batch. The gradients of the
        module are zero before each call, and the random generator is seeded by the step.
        """

    def evaluate(self) -> dict[str, float]:
        """Values to record, measured on data that training never sees."""

    def state_dict(self) -> dict[str, Any]:
        """What the task needs to resume, in JSON types: the position in its data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""


class StatelessTask:
    """Base of tasks whose data depends on the step alone, so that they have no state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def make_optimizer(module: nn.Module, recipe: Recipe) -> Lamb:
    return Lamb(
        parameter_groups(module, recipe.weight_decay),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        state_bits=8 if recipe.state_bits == 8 else 32,
        bias_correction=recipe.bias_correction,
        state_device="cpu",
    )


class TrainingLoop:
    """Trains a task in a folder, where it writes `<name>.pt` (checkpoint) and `<name>.jsonl` (records)."""

    def __init__(self, task: Task, recipe: Recipe, folder: Path, *, after_save: Callable[[], None] | None = None):
        """Resumes from the checkpoint in the folder, if there is one; CheckpointError if it cannot be used.

        after_save: called after each checkpoint.
        """
        self.task, self.recipe, self.folder, self.after_save = task, recipe, folder, after_save
        folder.mkdir(parents=True, exist_ok=True)
        self.optimizer = make_optimizer(task.module, recipe)
        self.schedule = linear_schedule(self.optimizer, total_steps=recipe.steps, warmup_steps=recipe.warmup_steps)
        self.step, self.seconds = 0, 0.0
        self.running: dict[str, float] = {}
        if self.checkpoint.exists():
            self._resume()
            if self.after_save:  # a kill may have come between the checkpoint and this call
                self.after_save()

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.task.name}.pt"

    @property
    def records(self) -> Path:
        return self.folder / f"{self.task.name}.jsonl"

    def run(self, *, save_every: float = 60.0, evaluate_every: int = 500, until: int | None = None) -> nn.Module:
        """Train to the recipe's last step (or to step `until`); returns the module in eval mode.

        save_every: seconds between checkpoints. After Ctrl-C or SIGTERM the current step is completed and saved, and
        KeyboardInterrupt is raised.
        """
        last = min(self.recipe.steps, until or self.recipe.steps)
        bar = tqdm(initial=self.step, total=self.recipe.steps, desc=self.task.name, mininterval=5.0)
        started = saved = time.monotonic()
        seconds_before = self.seconds
        with bar, stop_signals() as stop:
            while self.step < last:
                if self._one_step():
                    self.seconds = seconds_before + time.monotonic() - started
                    bar.update()
                    if self.step % 20 == 0:
                        bar.set_postfix({k: f"{v:.4f}" for k, v in self.running.items()}, refresh=False)
                    if self.step == last or self.step % evaluate_every == 0:
                        self._record()
                    if self.step == last or time.monotonic() - saved > save_every:
                        self.save()
                        saved = time.monotonic()
                if stop.is_set():
                    self.save()
                    raise KeyboardInterrupt
        return self.task.module.eval()

    def _one_step(self) -> bool:
        """One step; False if nothing changed, because no gradient was usable."""
        self.task.module.train()
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)  # of the step alone, so that resuming is exact
        self.optimizer.zero_grad(set_to_none=True)
        values = self.task.backward(self.step)
        if values is None:
            return False
        skipped = self.optimizer.skipped
        self.optimizer.step()
        if self.optimizer.skipped > skipped:
            raise CheckpointError(
                f"{self.task.name}: the gradient of step {self.step} is NaN or infinite. The last checkpoint is "
                "intact; continue from its weights in a new folder, with a lower learning rate"
            )
        self.schedule.step()
        self.step += 1
        for key, value in values.items():
            mean = self.running.get(key)
            self.running[key] = value if mean is None else SMOOTHING * mean + (1 - SMOOTHING) * value
        return True

    def _record(self) -> None:
        self.task.module.eval()
        line = {"step": self.step, "seconds": round(self.seconds, 1), **self.running, **self.task.evaluate()}
        with self.records.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Replace the checkpoint atomically."""
        state = {
            "model": self.task.module.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "task": self.task.state_dict(), "running": self.running,
            "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        with atomic_file(self.checkpoint, durable=True) as partial, partial.open("wb") as file:
            torch.save(state, file)
        if self.after_save:
            self.after_save()

    def _resume(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.task.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.task.load_state_dict(state["task"])
            self.step, self.seconds, self.running = int(state["step"]), float(state["seconds"]), dict(state["running"])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{self.checkpoint} cannot be resumed ({first_line(error)}); remove it to start again"
            ) from None
        self._forget_records_after(self.step)

    def _forget_records_after(self, step: int) -> None:
        """Drop the records of steps that will be repeated."""
        if self.records.exists():
            lines = self.records.read_text().splitlines(keepends=True)
            self.records.write_text("".join(line for line in lines if _step_of(line) <= step))


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one acts at once. Only the main thread gets signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off by a power failure
        return float("inf")


def run(task: Task, recipe: Recipe, folder: Path, *, save_every: float = 60.0, evaluate_every: int = 500) -> nn.Module:
    """Start or resume training, up to the recipe's last step."""
    return TrainingLoop(task, recipe, folder).run(save_every=save_every, evaluate_every=evaluate_every)
