"""Predicted against measured: `python -m benchmarks.calculator [--only gpt2] [--markdown FILE] [--gpu]`.

Real PyTorch models take two training steps under FakeTensorMode (no memory, no GPU) and MemTracker; the peak of the
second is compared with `calculator.estimate`. Then parameter counts against the meta device and optimizer states
against bitsandbytes' real tensors. `--gpu` compares with `torch.cuda.max_memory_allocated` of real steps instead.
Prints a table and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.calculator_cases import CASES, Case, Loss, architecture, build
from benchmarks.fake_cuda import cuda_like
from calculator import PRESETS, TrainingSetup, estimate, parameter_count

MIB = 2**20


@dataclass(frozen=True)
class Row:
    name: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def predict(case: Case) -> int:
    """Peak in bytes, by the calculator alone."""
    return estimate(architecture(case), case.setup).gpu_total


def measure(case: Case) -> int:
    """Peak in bytes of the second training step under MemTracker; nothing is computed and nothing allocated."""
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
    """What a plain training loop does, and PyTorch's documentation shows."""
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
    """The model of a case in its precision, its loss and its batch."""
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
    """Checks that look at values cannot run on fake tensors; these are their answers for ordinary data."""
    import transformers.masking_utils

    import ttt.model.dalle

    stack = ExitStack()
    stack.enter_context(patch.object(transformers.masking_utils, "find_packed_sequence_indices", lambda *_: None))
    stack.enter_context(patch.object(ttt.model.dalle, "check_tokens", lambda *_: None))
    stack.enter_context(patch.object(torch, "equal", lambda *_: True))
    stack.enter_context(patch.object(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor))
    return stack


def parameter_rows() -> list[Row]:
    """Parameters of every preset against a real model on the meta device."""
    return [Row(name, parameter_count(name), _meta_parameters(name)) for name in PRESETS]


def _meta_parameters(name: str) -> int:
    import transformers as hf

    a = PRESETS[name]
    common = {"vocab_size": a.vocabulary}
    gpt = {"n_embd": a.hidden, "n_layer": a.layers, "n_head": a.heads, "n_positions": a.positions}
    with torch.device("meta"):
        model: nn.Module
        if a.family == "bert":
            model = hf.BertForPreTraining(hf.BertConfig(
                hidden_size=a.hidden, num_hidden_layers=a.layers, num_attention_heads=a.heads,
                intermediate_size=a.feed_forward, **common))  # fmt: skip
        elif a.family == "t5":
            model = hf.T5ForConditionalGeneration(hf.T5Config(
                d_model=a.hidden, num_layers=a.layers, num_heads=a.heads, d_kv=a.head_size, d_ff=a.feed_forward,
                **common))  # fmt: skip
        elif a.family == "gptj":
            model = hf.GPTJForCausalLM(hf.GPTJConfig(**gpt, **common))
        elif a.family == "gpt2":
            model = hf.GPT2LMHeadModel(hf.GPT2Config(**gpt, **common))
        else:
            from ttt.config import PAPER
            from ttt.model.dalle import Dalle

            model = Dalle(PAPER)
    return sum(p.numel() for p in model.parameters())


def optimizer_rows() -> list[Row]:
    """Bytes of optimizer state against the real tensors of bitsandbytes and PyTorch, for GPT-2's tensor shapes."""
    import bitsandbytes as bnb

    a = PRESETS["gpt2"].__class__(
        family="gpt2", hidden=192, layers=2, heads=3, feed_forward=768, vocabulary=5003, positions=128
    )
    made: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "adam8bit": bnb.optim.Adam8bit, "adamw8bit": bnb.optim.AdamW8bit, "lamb8bit": bnb.optim.LAMB8bit,
        "lion8bit": bnb.optim.Lion8bit, "sgd8bit": lambda p: bnb.optim.SGD8bit(p, lr=1e-3, momentum=0.9),
        "adam": bnb.optim.Adam, "lamb": bnb.optim.LAMB, "lion": bnb.optim.Lion, "adafactor": _adafactor,
    }  # fmt: skip
    rows = []
    for name, make in made.items():
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(n_embd=192, n_layer=2, n_head=3, vocab_size=5003, n_positions=128)
        parameters = list(GPT2LMHeadModel(config).parameters())
        optimizer = make(parameters)
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        tensors = {id(t): t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)}
        measured = sum(t.numel() * t.element_size() for t in tensors.values() if t.dim())
        rows.append(Row(name, estimate(a, TrainingSetup(optimizer=name)).optimizer, measured))
    return rows


def _adafactor(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(parameters, lr=1e-3, relative_step=False, scale_parameter=False)


def gpu_cases() -> list[Case]:
    """For a machine with a GPU: three families; GPT-2 Large with 8-bit Adam and the paper's model among them."""
    small = [
        c for c in CASES if c.family in ("gpt2", "bert", "llama") and c.setup.optimizer_implementation == "foreach"
    ]
    large: dict[str, Any] = {"batch_size": 1, "sequence_length": 1024, "optimizer": "adam8bit"}
    extra = [
        Case("gpt2-large", TrainingSetup(**large)),
        Case("gpt2-large", TrainingSetup(**large, gradient_checkpointing=True)),
        Case("gpt2-large", TrainingSetup(**large, precision="mixed-fp16", gradient_checkpointing=True)),
        Case("ttt", TrainingSetup(batch_size=1)),
        Case("ttt", TrainingSetup(batch_size=4, precision="mixed-bf16")),
    ]
    return [*extra, *small[:: max(1, len(small) // 24)]]


def measure_gpu(case: Case) -> int:
    """`max_memory_allocated` of a real step on the GPU, after two to warm up."""
    with torch.device("cuda"):
        model, loss = _model(case)
    optimizer = make_optimizer(case.setup, list(model.parameters()))
    before = torch.cuda.memory_allocated() - sum(p.numel() * p.element_size() for p in model.parameters())
    for i in range(3):
        if i == 2:
            torch.cuda.reset_peak_memory_stats()
        train_step(case.setup, model, loss, optimizer, "cuda")
    return torch.cuda.max_memory_allocated() - max(0, before)


def table(rows: Iterable[Row], unit: str = "MiB") -> str:
    size = MIB if unit == "MiB" else 1
    lines = [f"| case | predicted, {unit} | measured, {unit} | error |", "|---|---:|---:|---:|"]
    for r in rows:
        digits = ".1f" if size > 1 else ",d"
        p, m = (r.predicted / size, r.measured / size) if size > 1 else (r.predicted, r.measured)
        lines.append(f"| {r.name} | {p:{digits}} | {m:{digits}} | {100 * r.error:+.2f} % |")
    return "\n".join(lines)


def run(cases: list[Case], measured_by: Callable[[Case], int], cache: Path | None) -> list[Row]:
    known: dict[str, int] = json.loads(cache.read_text()) if cache and cache.exists() else {}
    rows = []
    for case in cases:
        started = time.perf_counter()
        if case.name not in known:
            try:
                known[case.name] = measured_by(case)
            except Exception as error:
                print("FAILED", case.name, repr(error)[:300], flush=True)
                continue
            if cache:
                cache.write_text(json.dumps(known))
        rows.append(Row(case.name, predict(case), known[case.name]))
        print(f"{100 * rows[-1].error:+7.2f} %  {time.perf_counter() - started:5.1f} s  {case.name}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--shuffle", action="store_true", help="in a random order")
    parser.add_argument("--cache", type=Path, help="JSON file of measurements already made")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    parser.add_argument("--gpu", action="store_true", help="against a real GPU's allocator")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA device, and PyTorch finds none")
    cases = [c for c in (gpu_cases() if arguments.gpu else CASES) if arguments.only in c.name]
    if arguments.shuffle:
        random.Random(0).shuffle(cases)
    rows = run(cases, measure_gpu if arguments.gpu else measure, arguments.cache)
    errors = [abs(r.error) for r in rows] or [0.0]
    parameters, optimizers = ([], []) if arguments.gpu or arguments.only else (parameter_rows(), optimizer_rows())
    tables = {"Peak of a step": table(rows), "Parameters": table(parameters, "count"),
              "Optimizer state": table(optimizers, "bytes")}  # fmt: skip
    text = "\n\n".join(f"### {title}\n\n{body}" for title, body in tables.items())
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    exact = [r.predicted == r.measured for r in (*parameters, *optimizers)]
    print(json.dumps({
        "benchmark": "calculator", "device": "cuda" if arguments.gpu else "fake", "cases": len(rows),
        "median_error": statistics.median(errors), "worst_error": max(errors), "exact": sum(exact), "of": len(exact),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
