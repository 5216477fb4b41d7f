"""The training loop: learning rate, records, and resuming after every kind of interruption."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support import warm
from tests.support.lamb import same as same_state
from tests.support.waiting import wait_for
from ttt.errors import CheckpointError, InvalidInput
from ttt.train.loop import StatelessTask, TrainingLoop, run
from ttt.train.recipe import Recipe


class Line(StatelessTask):
    """The smallest task: fit y = 2 x with noise that comes from the step's random numbers."""

    name = "line"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(4, 4)

    def backward(self, step: int) -> dict[str, float]:
        x = torch.randn(8, 4)
        loss = (self.module(x) - 2 * x).square().mean()
        loss.backward()
        return {"loss": loss.item(), "seen": float(step)}

    def evaluate(self) -> dict[str, float]:
        return {"weight": self.module.weight.mean().item()}


RECIPE = Recipe(steps=40, batch_size=8, learning_rate=0.05, warmup=0.25, state_bits=32)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_the_learning_rate_rises_and_falls_in_straight_lines(tmp_path: Path) -> None:
    rates = []

    class OneWeight(StatelessTask):
        name = "one"
        module = nn.Linear(1, 1)

        def backward(self, step: int) -> dict[str, float]:
            rates.append(loop.optimizer.param_groups[0]["lr"])
            self.module(torch.ones(1, 1)).sum().backward()
            return {"loss": 0.0}

        def evaluate(self) -> dict[str, float]:
            return {}

    loop = TrainingLoop(OneWeight(), RECIPE, tmp_path)
    loop.run()
    assert rates[5] == pytest.approx(0.025)
    assert rates[10] == pytest.approx(0.05) == max(rates)
    assert rates[25] == pytest.approx(0.025)
    assert 0 < rates[-1] < 0.002


def test_the_loss_falls(tmp_path: Path) -> None:
    run(Line(), RECIPE.model_copy(update={"steps": 300, "learning_rate": 0.2}), tmp_path, evaluate_every=10)
    lines = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10, 301, 10))
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]


@pytest.mark.parametrize("bits", [8, 32])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, bits: int) -> None:
    recipe = Recipe(steps=40, batch_size=8, learning_rate=0.05, state_bits=bits)
    whole = run(Line(), recipe, tmp_path / "whole", evaluate_every=3)
    for until in (7, 26, None):
        TrainingLoop(Line(), recipe, tmp_path / "parts").run(until=until, evaluate_every=3)
    parts = TrainingLoop(Line(), recipe, tmp_path / "parts").task.module
    assert same(whole.state_dict(), parts.state_dict())
    records = [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for folder in ("whole", "parts")
        for line in (tmp_path / folder / "line.jsonl").read_text().splitlines()
        if json.loads(line)["step"] % 3 == 0
    ]
    assert len(records) == 26 and records[:13] == records[13:]


def test_steps_after_the_checkpoint_are_not_recorded_twice(tmp_path: Path) -> None:
    TrainingLoop(Line(), RECIPE, tmp_path).run(until=20, evaluate_every=5)
    lines = (tmp_path / "line.jsonl").read_text()
    (tmp_path / "line.jsonl").write_text(lines + '{"step": 25, "loss": 9.0}\n{"step": 30, "lo')
    run(Line(), RECIPE, tmp_path, evaluate_every=5)
    steps = [json.loads(line)["step"] for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]


@pytest.mark.parametrize("content", [b"not a checkpoint", b"", b"PK\x03\x04" + bytes(100)])
def test_a_broken_checkpoint_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "line.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"line\.pt cannot be resumed"):
        run(Line(), RECIPE, tmp_path)
    assert (tmp_path / "line.pt").read_bytes() == content


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model": Evil(), "step": 1}, tmp_path / "line.pt")
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        run(Line(), RECIPE, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    TrainingLoop(Line(), RECIPE, tmp_path).run(until=2)
    other = Line()
    other.module = nn.Linear(5, 4)
    with pytest.raises(CheckpointError, match=r"line\.pt"):
        run(other, RECIPE, tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Bad(Line):
        def backward(self, step: int) -> dict[str, float]:
            figures = super().backward(step)
            if step == 10:
                self.module.bias.grad[0] = float("nan")
            return figures

    with pytest.raises(CheckpointError, match="step 10 is NaN or infinite"):
        run(Bad(), RECIPE, tmp_path, save_every=0)
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 10


def test_after_save_is_called_again_if_a_kill_prevented_it(tmp_path: Path) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrainingLoop(Line(), RECIPE, tmp_path, after_save=killed).run()
    written = Line()
    again = TrainingLoop(
        task := Line(), RECIPE, tmp_path, after_save=lambda: written.module.load_state_dict(task.module.state_dict())
    )
    again.run()
    assert again.step == RECIPE.steps
    assert same(written.module.state_dict(), torch.load(tmp_path / "line.pt", weights_only=True)["model"])


def test_a_step_without_a_usable_gradient_changes_nothing(tmp_path: Path) -> None:
    """The step is repeated, with the same random numbers, until its gradient can be used."""
    calls: list[int] = []

    class Overflowing(Line):
        def backward(self, step: int) -> dict[str, float] | None:
            calls.append(step)
            values = super().backward(step)
            if step in (3, 20) and calls.count(step) < 4:
                self.module.weight.grad.fill_(float("nan"))
                return None
            return values

    task = Overflowing()
    loop = TrainingLoop(task, RECIPE, tmp_path)
    loop.run(until=3)
    before = [copy.deepcopy(part.state_dict()) for part in (task.module, loop.optimizer, loop.schedule)]
    assert not loop._one_step()
    after = [part.state_dict() for part in (task.module, loop.optimizer, loop.schedule)]
    assert same_state(before, after) and loop.step == 3
    loop.run(evaluate_every=1)
    assert calls.count(3) == calls.count(20) == 4
    steps = [json.loads(line)["step"] for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert steps == [3, *range(4, 41)]
    assert same(run(Line(), RECIPE, tmp_path / "whole").state_dict(), task.module.state_dict())


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"batch_size": 0}, {"warmup": 1.5}, {"state_bits": 16}, {"steps": 1.5}]
)
def test_a_recipe_out_of_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        Recipe(**settings)


class Slow(Line):
    """Waits in every step, and shows by a file that it trains."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def backward(self, step: int) -> dict[str, float]:
        if step == 2:
            (self.folder / "trains").touch()
        time.sleep(0.05)
        return super().backward(step)


def train_slowly(folder: Path, save_every: float) -> None:
    try:
        run(Slow(folder), RECIPE, folder, save_every=save_every)
    except KeyboardInterrupt:
        sys.exit(130)


def test_kill_minus_nine_loses_only_steps_after_the_last_checkpoint(tmp_path: Path) -> None:
    process = warm.start(train_slowly, tmp_path, 0.0)
    assert wait_for((tmp_path / "trains").exists, 120, every=0.01)
    process.kill()
    process.join()
    assert 0 < torch.load(tmp_path / "line.pt", weights_only=True)["step"] < RECIPE.steps
    resumed = run(Line(), RECIPE, tmp_path).state_dict()
    assert same(run(Line(), RECIPE, tmp_path / "whole").state_dict(), resumed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_current_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    process = warm.start(train_slowly, tmp_path, 1e9)
    assert wait_for((tmp_path / "trains").exists, 120, every=0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 130
    assert 0 < torch.load(tmp_path / "line.pt", weights_only=True)["step"] < RECIPE.steps
    assert same(run(Line(), RECIPE, tmp_path / "whole").state_dict(), run(Line(), RECIPE, tmp_path).state_dict())
