"""Training steps of real models under FakeTensorMode and MemTracker: predicted and measured peaks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.calculator.cases import Case, Loss, architecture, build
from benchmarks.calculator.fake_cuda import cuda_like
from calculator import TrainingSetup, estimate


def predict(case: Case) -> int:
    """Return the calculator's peak in bytes."""
    return estimate(architecture(case), case.setup).gpu_total


def measure(case: Case) -> int:
    """Return the peak in bytes of the second training step under MemTracker; nothing is computed or allocated."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode(allow_non_fake_inputs=True), as_on_real_data(), cuda_like(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, loss, batch = made(case)
        optimizer = make_optimizer(case.setup, list(model.parameters()))
        tracker = MemTracker()
        tracker.track_external(model, optimizer, *batch)
        peak = 0
        for _ in range(2):
            tracker.reset_mod_stats()
            with tracker:
                train_step(case.setup, model, loss, optimizer, "cpu", tracker.reset_mod_stats)
                peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
        return int(peak)


def train_step(
    setup: TrainingSetup,
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    device: str,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Run one training step, as in PyTorch's documentation."""
    for _ in range(setup.accumulation_steps):
        between()
        with autocast(setup, device):
            value = loss(model)
        value.backward()  # type: ignore[no-untyped-call]
        del value
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def autocast(setup: TrainingSetup, device: str) -> Any:
    if not setup.half:
        return nullcontext()
    return torch.autocast(device, dtype=torch.float16 if setup.precision.endswith("fp16") else torch.bfloat16)


def made(case: Case) -> tuple[nn.Module, Loss, list[torch.Tensor]]:
    """Return the model of a case in its precision, its loss and its batch."""
    types = {"pure-fp16": torch.float16, "pure-bf16": torch.bfloat16}
    before = torch.get_default_dtype()
    torch.set_default_dtype(types.get(case.setup.precision, torch.float32))
    try:
        model, loss, batch = build(case)
    finally:
        torch.set_default_dtype(before)
    return model.train(), loss, batch


def make_optimizer(setup: TrainingSetup, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    foreach = setup.optimizer_implementation == "foreach"
    if setup.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=foreach)
    if setup.optimizer == "adam8bit":
        import bitsandbytes

        return bitsandbytes.optim.Adam8bit(parameters, lr=1e-3)  # type: ignore[no-any-return]
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=foreach)


def as_on_real_data() -> ExitStack:
    """Patch checks of tensor values, which fail on fake tensors, to return their results for ordinary data."""
    import transformers.masking_utils

    import ttt.model.dalle

    stack = ExitStack()
    stack.enter_context(patch.object(transformers.masking_utils, "find_packed_sequence_indices", lambda *_: None))
    stack.enter_context(patch.object(ttt.model.dalle, "check_tokens", lambda *_: None))
    stack.enter_context(patch.object(torch, "equal", lambda *_: True))
    stack.enter_context(patch.object(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor))
    return stack
