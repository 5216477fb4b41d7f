"""The state of LAMB: resuming, refused states, schedules, and use inside hivemind."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.lamb import LARGE, give_gradients, parameters, same
from ttt.errors import CheckpointError, InvalidInput
from ttt.train import moments
from ttt.train.optimizer import Lamb, linear_schedule


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_continues_exactly(bits: Any, dtype: torch.dtype) -> None:
    def started() -> tuple[list[nn.Parameter], Lamb, Any]:
        params = parameters(LARGE, (11,), dtype=dtype)
        ours = Lamb(params, state_bits=bits, bias_correction=True)
        return params, ours, linear_schedule(ours, total_steps=10, warmup_steps=2)

    def run(state: tuple[list[nn.Parameter], Lamb, Any], steps: range) -> None:
        for i in steps:
            give_gradients(state[0], i)
            state[1].step()
            state[2].step()

    whole, first, second = started(), started(), started()
    run(whole, range(6))
    run(first, range(3))
    file = io.BytesIO()
    torch.save([first[0], first[1].state_dict(), first[2].state_dict()], file)
    file.seek(0)
    weights, state, schedule = torch.load(file, weights_only=True)
    with torch.no_grad():
        for p, w in zip(second[0], weights, strict=True):
            p.copy_(w)
    second[1].load_state_dict(state)
    second[2].load_state_dict(schedule)
    assert same(second[1].state_dict(), first[1].state_dict())
    run(second, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(whole[0], second[0], strict=True))
    assert same(whole[1].state_dict(), second[1].state_dict())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d["state"][0].update(exp_avg_codes=torch.zeros(3)), "uint8"),
        (lambda d: d["state"][0].pop("exp_avg_codes"), "state_bits"),
        (lambda d: d["state"].pop(0), "nothing"),
        (lambda d: d["state"][0]["exp_avg_scales"].fill_(float("nan")), "impossible"),
        (lambda d: d["state"][1]["exp_avg_sq"].fill_(-1.0), "impossible"),
        (lambda d: d["param_groups"][0].update(lr=-1.0), "lr"),
        (lambda d: d["param_groups"][0].update(betas=("a", 0)), "out of range"),
        (lambda d: d["param_groups"][0]["params"].pop(), "parameters"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage: Any, message: str) -> None:
    params = parameters(LARGE, (9,))
    ours = Lamb(params)
    give_gradients(params, 0)
    ours.step()
    before = copy.deepcopy(ours.state_dict())
    damaged = copy.deepcopy(before)
    damage(damaged)
    with pytest.raises(CheckpointError, match=message):
        ours.load_state_dict(damaged)
    assert same(before, ours.state_dict())


def test_a_copy_of_the_optimizer_keeps_its_settings() -> None:
    ours = Lamb(parameters(LARGE), max_grad_norm=None)
    twin = copy.deepcopy(ours)
    assert (twin.state_bits, twin.max_grad_norm, twin.skipped) == (8, None, 0)
    give_gradients(twin.param_groups[0]["params"], 0)
    twin.step()
    assert not same(twin.state_dict()["state"], ours.state_dict()["state"])


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"lr": -1.0}, "lr must be"), ({"lr": float("nan")}, "lr must be"), ({"betas": (1.0, 0.9)}, "betas must be"),
        ({"betas": (0.9, -0.1)}, "betas must be"), ({"eps": 0.0}, "eps must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"), ({"clamp_value": 0.0}, "clamp_value must be"),
        ({"state_bits": 16}, "8 or 32"), ({"max_grad_norm": 0.0}, "max_grad_norm must be"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Lamb(parameters((3,)), **settings_)


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(InvalidInput, match="complex64"):
        Lamb([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    table = nn.Embedding(5, 3, sparse=True)
    ours = Lamb(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InvalidInput, match="sparse=False"):
        ours.step()


def test_without_bitsandbytes_the_error_names_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    moments.bitsandbytes.cache_clear()
    params = [nn.Parameter(torch.ones(70_000))]
    params[0].grad = torch.ones(70_000)
    Lamb(params, state_bits=32).step()
    with pytest.raises(InvalidInput, match="state_bits=32"):
        Lamb(params)


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    ours = Lamb(parameters((3,)), state_bits=32)
    schedule = linear_schedule(ours, total_steps=40, warmup_steps=4)
    rates = []
    for _ in range(42):
        rates.append(schedule.get_last_lr()[0])
        ours.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0, 2.5e-3 / 4, 2.5e-3 / 2, 2.5e-3 * 3 / 4, 2.5e-3])
    assert rates[22] == pytest.approx(1.25e-3) and rates[40:] == [0, 0]
    for total, warmup in ((0, 0), (5, 6), (5, -1)):
        with pytest.raises(InvalidInput, match="total_steps"):
            linear_schedule(ours, total_steps=total, warmup_steps=warmup)


def test_the_loss_of_a_closure_is_returned() -> None:
    (p,) = parameters((4,))
    ours = Lamb([p], state_bits=32)

    def closure() -> Tensor:
        ours.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    first = ours.step(closure)
    assert float(ours.step(closure).detach()) < float(first.detach())


ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux alone")
def test_it_works_inside_hivemind() -> None:
    """One peer with an offloaded optimizer, whose state is serialised by hivemind; in a process of its own."""
    command = [sys.executable, "-m", "tests.train.lamb_in_hivemind"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "good"
