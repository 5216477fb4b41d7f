"""Captures steps on a CPU, as strictly as a CUDA graph does.

It stores operations with the tensors that they read and wrote, and repeats only these: values computed by Python during
the capture stay constant. It refuses what a capture refuses, and overwrites temporary memory between replays, as other
work on a GPU may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAIT_FOR_THE_DEVICE = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique",
                       "lift_fresh", "bincount", "repeat_interleave.Tensor", "record_stream", "pin_memory")  # fmt: skip


class NotCapturable(RuntimeError):
    """A capture on a GPU would fail at this operation."""


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.temporary: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.")
        if any(name == word or name.startswith(f"{word}.") for word in WAIT_FOR_THE_DEVICE):
            raise NotCapturable(f"{func} waits for the device, or sends it something of the host's")
        if any(t.dtype == torch.bool for t in _tensors(args[1:])) and name.startswith("index"):
            raise NotCapturable(f"{func} with a mask waits for the device to count")
        given = {_memory(t) for t in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        made = _tensors(out)
        self.calls.append((func, args, kwargs, made))
        self.temporary += [t for t in made if _memory(t) not in given]
        return out

    def replay(self) -> None:
        with torch.inference_mode():
            for tensor in self.temporary:
                tensor.fill_(torch.nan if tensor.is_floating_point() or tensor.is_complex() else 99)
            for func, args, kwargs, made in self.calls:
                for captured, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                    if captured.data_ptr() != new.data_ptr():
                        captured.copy_(new)


def taped(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """As `ttt.sampling.graph.cuda_graph`, on a CPU."""
    with torch.inference_mode(), Tape() as tape:
        step()
    return tape.replay


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.layout == torch.strided]


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
