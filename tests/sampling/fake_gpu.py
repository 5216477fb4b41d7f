"""Weights and prompts made of fake tensors on a GPU, which hold no data and refuse operations across devices."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

GPU = torch.device("cuda", 0)


def on_fake_gpu(things: Any, mode: FakeTensorMode) -> Any:
    """A copy with every tensor replaced by a fake one on GPU; layers that share weights still do."""
    memo: dict[int, Any] = {}
    _add_fakes(things, mode, memo, set())
    return deepcopy(things, memo)


def _add_fakes(things: Any, mode: FakeTensorMode, memo: dict[int, Any], seen: set[int]) -> None:
    if id(things) in seen:
        return
    seen.add(id(things))
    if isinstance(things, nn.Module):
        memo[id(things)] = None  # sampling never reads it
    elif isinstance(things, torch.device):
        memo[id(things)] = GPU
    elif isinstance(things, Tensor):
        with mode:
            memo[id(things)] = torch.empty(things.shape, dtype=things.dtype, device=GPU)
    elif isinstance(things, (list, tuple)):
        for thing in things:
            _add_fakes(thing, mode, memo, seen)
    elif is_dataclass(things):
        for field in fields(things):
            _add_fakes(getattr(things, field.name), mode, memo, seen)
    elif hasattr(things, "__dict__"):
        for thing in vars(things).values():
            _add_fakes(thing, mode, memo, seen)
