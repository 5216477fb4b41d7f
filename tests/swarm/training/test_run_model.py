"""The optimizer of a run, as its settings say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ttt.swarm.averaging.training_state import parameters_of
from ttt.swarm.config.run_config import OptimizerSection
from ttt.swarm.training.run_model import make_optimizer

SETTINGS = OptimizerSection.model_validate({"name": "adamw", "learning_rate": 0.1, "max_grad_norm": 2.0})
SCALES = (0.01, 100.0, 1.0)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]


def gradients(scale: float) -> list[Tensor]:
    """Together as long as `scale`."""
    found = [torch.arange(1.0, 13).view(3, 4), torch.ones(5)]
    norm = torch.cat([g.flatten() for g in found]).norm()
    return [g * scale / norm for g in found]


def adamw(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]
    return make_optimizer(groups, SETTINGS)


def take_step(optimizer: torch.optim.Optimizer, found: list[Tensor]) -> None:
    for p, g in zip(parameters_of(optimizer), found, strict=True):
        p.grad = g.clone()
    optimizer.step()
    assert all(map(torch.equal, [p.grad for p in parameters_of(optimizer) if p.grad is not None], found))


def assert_alike(one: torch.optim.Optimizer, two: torch.optim.Optimizer) -> None:
    for p, q in zip(parameters_of(one), parameters_of(two), strict=True):
        torch.testing.assert_close(p, q)
        assert one.state[p].keys() == two.state[q].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in one.state[p].items():
            torch.testing.assert_close(value, two.state[q][name])


def test_adamw_scales_long_gradients_down_to_their_joint_norm() -> None:
    ours = adamw(parameters())
    first, second = parameters()
    theirs = torch.optim.AdamW(
        [{"params": [first], "weight_decay": 0.1}, {"params": [second], "weight_decay": 0.0}],
        lr=SETTINGS.learning_rate, betas=(SETTINGS.beta1, SETTINGS.beta2),
    )  # fmt: skip
    for scale in SCALES:
        take_step(ours, gradients(scale))
        take_step(theirs, gradients(min(scale, SETTINGS.max_grad_norm)))
    assert_alike(ours, theirs)


def test_a_copy_of_adamw_and_one_that_took_over_its_state_clip_too() -> None:
    original = adamw(parameters())
    take_step(original, gradients(1.0))
    copied = copy.deepcopy(original)
    loaded = adamw([nn.Parameter(p.detach().clone()) for p in parameters_of(original)])
    loaded.load_state_dict(copy.deepcopy(original.state_dict()))
    for one in (original, copied, loaded):
        take_step(one, gradients(100.0))
    assert_alike(original, copied)
    assert_alike(original, loaded)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_adamw_skips_a_step_that_is_not_finite(bad: float) -> None:
    ours, untouched = adamw(parameters()), adamw(parameters())
    for one in (ours, untouched):
        take_step(one, gradients(1.0))
    parameters_of(ours)[1].grad = torch.full((5,), bad)
    ours.step()
    assert_alike(ours, untouched)
