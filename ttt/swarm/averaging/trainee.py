"""What a swarm trains, as hivemind wants it: parameters, names, makers of optimizer and schedule. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ttt.swarm.averaging.training_state import initialize


@dataclass
class Trainee:
    """Parameters in the optimizer's order, their names, and how to make optimizer and schedule."""

    groups: list[dict[str, Any]]
    names: list[str]
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    make_schedule: Callable[[torch.optim.Optimizer], Any]

    def optimizer(self, groups: Any) -> torch.optim.Optimizer:
        return initialize(self.make_optimizer(groups))


def names_of(groups: Sequence[dict[str, Any]], model: torch.nn.Module) -> list[str]:
    """Names of the parameters in the groups' order."""
    known = {id(p): name for name, p in model.named_parameters()}
    return [known[id(p)] for group in groups for p in group["params"]]
