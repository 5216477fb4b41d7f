"""Techniques against the real objects of their libraries: `python -m benchmarks.calculator.techniques`.

hivemind's Optimizer (`benchmarks.calculator.hivemind_buffers`), bitsandbytes' 4-bit tensors, LoRA's modules under
MemTracker, torch's fully_shard (ZeRO 2 and 3) and ZeroRedundancyOptimizer (ZeRO 1) in a fake process group. No GPU is
needed. Prints a table and ends with one JSON line.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from benchmarks.calculator.cases import Case, architecture, transformers_config
from benchmarks.calculator.counts import Row, table, unique_bytes
from benchmarks.calculator.fake_cuda import cuda_like
from benchmarks.calculator.hivemind_buffers import TINY, hivemind_rows
from benchmarks.calculator.steps import as_on_real_data, autocast, made, make_optimizer, predict
from calculator import TrainingSetup
from calculator.simulate import tensors
from calculator.static_memory import fullest, nf4_bytes

# -- LoRA and QLoRA ---------------------------------------------------------------------------------------------------


class Lora(nn.Module):
    """LoRA as in peft: `base(x) + B(A(x)) * scale`, with A and B in float32 and the result in the base's dtype."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        rows, columns = base.weight.shape
        if type(base).__name__ == "Conv1D":
            rows, columns = columns, rows
        self.base = base
        self.down = nn.Linear(columns, rank, bias=False, dtype=torch.float32)
        self.up = nn.Linear(rank, rows, bias=False, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        kind = y.dtype
        if not torch.is_autocast_enabled("cpu"):
            x = x.to(self.down.weight.dtype)
        return (y + self.up(self.down(x)) * 2.0).to(kind)


def adapt(model: nn.Module, rank: int) -> nn.Module:
    """Freeze the model and wrap every linear layer of its layers."""
    model.requires_grad_(False)
    kinds = (nn.Linear,)
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds) or type(m).__name__ == "Conv1D"]
    for name, module in linear:
        if any(part in name for part in ("h.", "layer", "block")):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Lora(module, rank))
    return model


LORA: tuple[Case, ...] = tuple(
    Case(family, TrainingSetup(adapter="lora", batch_size=4, sequence_length=256, **techniques))
    for family in ("gpt2", "llama")
    for techniques in (
        {}, {"precision": "mixed-bf16"}, {"precision": "pure-bf16", "lora_rank": 8},
        {"precision": "mixed-bf16", "gradient_checkpointing": True},
    )
)  # fmt: skip


def lora_rows(cases: Iterable[Case] = LORA) -> list[Row]:
    return [Row(case.name, predict(case), measure_lora(case)) for case in cases]


def measure_lora(case: Case) -> int:
    """Return the peak in bytes of the second step, as `benchmarks.calculator.steps.measure` does."""
    from torch.distributed._tools.mem_tracker import MemTracker

    with _fake_step(), _hooks_on_trained_alone():
        model, loss, batch = made(case)
        model = adapt(model, case.setup.lora_rank).train()
        if case.setup.every:
            model.enable_input_require_grads()  # type: ignore[operator]
        optimizer = make_optimizer(case.setup, [p for p in model.parameters() if p.requires_grad])
        tracker = MemTracker()
        tracker.track_external(model, optimizer, *batch)
        return _second_peak(tracker, case, model, loss, optimizer)


@contextmanager
def _fake_step() -> Iterator[None]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), as_on_real_data(), cuda_like(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _second_peak(tracker: Any, case: Case, model: nn.Module, loss: Any, optimizer: torch.optim.Optimizer) -> int:
    for _ in range(2):
        tracker.reset_mod_stats()
        with tracker:
            with autocast(case.setup, "cpu"):
                value = loss(model)
            value.backward()
            del value
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    return int(peak)


@contextmanager
def _hooks_on_trained_alone() -> Iterator[None]:
    """Skip frozen parameters: MemTracker hooks every parameter, which PyTorch refuses for frozen ones."""

    def careful(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def wrapped(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return method(self, *args, **kwargs) if self.requires_grad else RemovableHandle(OrderedDict())

        return wrapped

    with ExitStack() as stack:
        for name in ("register_hook", "register_post_accumulate_grad_hook"):
            stack.enter_context(patch.object(torch.Tensor, name, careful(getattr(torch.Tensor, name))))
        yield


def qlora_rows() -> list[Row]:
    """Compare with matrices in bitsandbytes' NF4 with double quantisation."""
    return [Row(f"NF4, {shape}", nf4_bytes(shape[0] * shape[1]), measure_nf4(shape))
            for shape in ((1024, 1024), (2816, 1024), (768, 3072), (100, 77))]  # fmt: skip


def measure_nf4(shape: tuple[int, int]) -> int:
    """Return the bytes of one matrix, without the map of its scales, which all matrices share."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(shape), blocksize=64, compress_statistics=True, quant_type="nf4")
    return unique_bytes([packed, state.absmax, state.code, state.offset, state.state2.absmax])


# -- ZeRO -------------------------------------------------------------------------------------------------------------

ZERO: tuple[tuple[int, int, dict[str, Any]], ...] = (
    (4, 1, {"n_layer": 12}), (4, 8, {"n_layer": 12, "vocab_size": 1000}), (8, 1, {"n_layer": 24, "vocab_size": 1000}),
)  # fmt: skip
"""GPUs, batch size and overrides of GPT-2's configuration."""


def zero_rows() -> list[Row]:
    """Stage 1: optimizer state of the fullest rank. Stages 2 and 3: the peak of a step on one rank."""
    rows = []
    for gpus, batch, config in ZERO:
        for stage in (2, 3):
            sizes: dict[str, Any] = {"batch_size": batch, "sequence_length": 256}
            case = Case("gpt2", TrainingSetup(**sizes, zero_stage=stage, gpus=gpus), config)
            rows.append(Row(case.name, predict(case), measure_sharded(case)))
    setup = TrainingSetup(zero_stage=1, gpus=3)
    case = Case("gpt2", setup, TINY)
    sizes1 = [(t, t.repeat) for t in tensors(architecture(case))]
    rows.append(Row("ZeRO 1, 3 GPUs: state of the fullest", fullest(sizes1, setup), measure_fullest_rank(case)))
    return rows


@contextmanager
def _fake_group(rank: int, size: int) -> Iterator[None]:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def measure_sharded(case: Case) -> int:
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    gpus, again = case.setup.gpus, case.setup.zero_stage == 3
    with ExitStack() as stack:
        stack.enter_context(_fake_group(0, gpus))
        mesh = init_device_mesh("cpu", (gpus,))  # of real tensors
        stack.enter_context(_fake_step())
        model, loss, batch = made(case)
        for layer in model.transformer.h:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh, reshard_after_forward=again)  # type: ignore[arg-type]
        fully_shard(model, mesh=mesh, reshard_after_forward=again)
        optimizer = make_optimizer(case.setup, list(model.parameters()))
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs(tuple(batch))
        return _second_peak(tracker, case, model, loss, optimizer)


def measure_fullest_rank(case: Case) -> int:
    """Return the largest state of any rank under ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from transformers import GPT2LMHeadModel

    model, most = GPT2LMHeadModel(transformers_config(case)), 0
    for rank in range(case.setup.gpus):
        with _fake_group(rank, case.setup.gpus):
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-3)
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
            state = [t for s in optimizer.optim.state.values() for t in s.values()]
            most = max(most, unique_bytes(t for t in state if isinstance(t, torch.Tensor) and t.dim()))
    return most


GROUPS: dict[str, Callable[[], list[Row]]] = {
    "Swarm": hivemind_rows, "LoRA": lora_rows, "QLoRA": qlora_rows, "ZeRO": zero_rows,
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    selected = [group for name, group in GROUPS.items() if not sys.argv[1:] or name.split()[0] in sys.argv[1:]]
    rows = [row for group in selected for row in group()]
    print(table(rows, "bytes"))
    errors = [abs(row.error) for row in rows]
    print(json.dumps({"benchmark": "calculator_techniques", "cases": len(rows), "worst_error": max(errors)}))


if __name__ == "__main__":
    main()
