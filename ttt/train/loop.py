"""The one training loop: steps, schedule, LAMB, checkpoints, resume, records. Knows neither model nor data.

    task.backward(step) -> clip -> optimizer.step() -> schedule.step() -> every minute: checkpoint

A killed run goes on from its last checkpoint as if nothing had happened: weights, optimizer, schedule, the task's own
state (where its data stands) and the records are all of that moment, and random numbers depend on the step alone.
"""

from __future__ import annotations

import json
import os
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

from ttt.errors import CheckpointError
from ttt.train.optimizer import Lamb, linear_schedule, parameter_groups
from ttt.train.recipe import Recipe

SMOOTHING = 0.98
"""Of the running means in the records."""


class Task(Protocol):
    """One model, its data and what to minimise."""

    name: str

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def backward(self, step: int) -> dict[str, float]:
        """Add the gradients of this step's batch to those of the module (which are zero); figures to record, `loss`
        among them. The random generator is seeded by the step before each call.
        """

    def evaluate(self) -> dict[str, float]:
        """Figures on data that training never sees."""

    def state_dict(self) -> dict[str, Any]:
        """What the task must know to go on, in JSON's types: where its data stands."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class StatelessTask:
    """Of a task whose data depends on the step alone: nothing has to be remembered."""

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
    """Trains a task in a folder, where it leaves `<name>.pt` (checkpoint) and `<name>.jsonl` (records)."""

    def __init__(self, task: Task, recipe: Recipe, folder: Path, *, after_save: Callable[[], None] | None = None):
        """Goes on where the folder's checkpoint stands; CheckpointError where it cannot be used."""
        self.task, self.recipe, self.folder, self.after_save = task, recipe, folder, after_save
        folder.mkdir(parents=True, exist_ok=True)
        self.optimizer = make_optimizer(task.module, recipe)
        self.schedule = linear_schedule(self.optimizer, total_steps=recipe.steps, warmup_steps=recipe.warmup_steps)
        self.step, self.seconds = 0, 0.0
        self.running: dict[str, float] = {}
        if self.checkpoint.exists():
            self._resume()
            if self.after_save:  # which a kill may have kept from following the checkpoint
                self.after_save()

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.task.name}.pt"

    @property
    def records(self) -> Path:
        return self.folder / f"{self.task.name}.jsonl"

    def run(self, *, save_every: float = 60.0, evaluate_every: int = 500, until: int | None = None) -> nn.Module:
        """Train to the recipe's last step (or to step `until`); returns the module in eval mode.

        save_every: seconds between checkpoints. Ctrl-C and SIGTERM end the step, save, and raise KeyboardInterrupt.
        """
        last = min(self.recipe.steps, until or self.recipe.steps)
        bar = tqdm(initial=self.step, total=self.recipe.steps, desc=self.task.name, mininterval=5.0)
        started = saved = time.monotonic()
        before = self.seconds
        with bar, _asked_to_stop() as stop:
            while self.step < last:
                self._one_step()
                self.seconds = before + time.monotonic() - started
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix({k: f"{v:.4f}" for k, v in self.running.items()}, refresh=False)
                if self.step == last or self.step % evaluate_every == 0:
                    self._record()
                if self.step == last or stop.is_set() or time.monotonic() - saved > save_every:
                    self.save()
                    saved = time.monotonic()
                if stop.is_set():
                    raise KeyboardInterrupt
        return self.task.module.eval()

    def _one_step(self) -> None:
        self.task.module.train()
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        self.optimizer.zero_grad(set_to_none=True)
        figures = self.task.backward(self.step)
        skipped = self.optimizer.skipped
        self.optimizer.step()
        if self.optimizer.skipped > skipped:
            raise CheckpointError(
                f"{self.task.name}: the gradient of step {self.step} is not finite; the last checkpoint is whole. "
                "Train on from its weights in a new folder, with a lower learning rate"
            )
        self.schedule.step()
        self.step += 1
        for key, value in figures.items():
            mean = self.running.get(key)
            self.running[key] = value if mean is None else SMOOTHING * mean + (1 - SMOOTHING) * value

    def _record(self) -> None:
        self.task.module.eval()
        line = {"step": self.step, "seconds": round(self.seconds, 1), **self.running, **self.task.evaluate()}
        with self.records.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Replace the checkpoint, all of it or nothing."""
        state = {
            "model": self.task.module.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "task": self.task.state_dict(), "running": self.running,
            "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        part = self.checkpoint.with_suffix(".tmp")
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.checkpoint)
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
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{self.checkpoint} cannot be resumed from ({reason}); remove it to start again"
            ) from None
        self._forget_records_after(self.step)

    def _forget_records_after(self, step: int) -> None:
        """What was recorded after the checkpoint happens again."""
        if self.records.exists():
            lines = self.records.read_text().splitlines(keepends=True)
            self.records.write_text("".join(line for line in lines if _step_of(line) <= step))


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; a second one acts at once. Only the main thread is sent signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut short by a power failure
        return float("inf")


def run(task: Task, recipe: Recipe, folder: Path, *, save_every: float = 60.0, evaluate_every: int = 500) -> nn.Module:
    """Train, or go on training, until the recipe's last step."""
    return TrainingLoop(task, recipe, folder).run(save_every=save_every, evaluate_every=evaluate_every)
