"""Bytes that hivemind's Optimizer keeps in RAM and on the GPU, counted in a separate process on loopback.

`python -m benchmarks.calculator.hivemind_buffers` is that process: hivemind needs the main thread and leaves daemon
processes behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch
from torch import nn

from benchmarks.calculator.cases import Case, architecture
from benchmarks.calculator.counts import Row, unique_bytes
from benchmarks.calculator.steps import made
from calculator import TrainingSetup, estimate

TINY: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 1003, "n_positions": 32}
HIVEMIND: tuple[tuple[str, dict[str, Any]], ...] = (
    ("offload", {"offload_optimizer": True}),
    ("offload, own buffers reused", {"offload_optimizer": True, "reuse_grad_buffers": True}),
    ("offload, delayed", {"offload_optimizer": True, "delayed_updates": True}),
    ("offload, delayed, reused", {"offload_optimizer": True, "delayed_updates": True, "reuse_grad_buffers": True}),
    ("on the GPU", {}),
    ("on the GPU, reused", {"reuse_grad_buffers": True}),
    ("on the GPU, 16-bit weights", {"precision": "pure-bf16"}),
)


def hivemind_rows() -> list[Row]:
    """Compare the bytes that hivemind keeps in RAM and on the GPU."""
    child = [sys.executable, "-m", "benchmarks.calculator.hivemind_buffers"]
    done = subprocess.run(child, capture_output=True, text=True, timeout=900, start_new_session=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    rows = []
    for name, measured in json.loads(done.stdout.splitlines()[-1]).items():
        setup = TrainingSetup(swarm=True, batch_size=1, **dict(HIVEMIND)[name])
        m = estimate(architecture(Case("gpt2", setup, TINY)), setup)
        state = m.optimizer if setup.offload_optimizer == "none" else 0
        accumulators = 0 if setup.reuse_grad_buffers else m.gradients
        rows.append(Row(f"hivemind, {name}: RAM", m.ram_total, measured["ram"]))
        on_gpu = m.parameters + m.gradients + accumulators + state
        rows.append(Row(f"hivemind, {name}: GPU", on_gpu, measured["gpu"]))
    return rows


def measure_hivemind() -> dict[str, dict[str, int]]:
    """Return the bytes of all tensors that hivemind keeps after a step, by variant. Run it in the main thread."""
    import hivemind

    dht = hivemind.DHT(start=True, startup_timeout=60)
    measured = {}
    for number, (name, techniques) in enumerate(HIVEMIND):
        setup = TrainingSetup(swarm=True, **techniques)
        model, loss, _ = made(Case("gpt2", TrainingSetup(batch_size=1, precision=setup.precision), TINY))
        delayed = {"delay_optimizer_step": True, "delay_grad_averaging": True} if setup.delayed_updates else {}
        optimizer = hivemind.Optimizer(
            dht=dht, run_id=f"run{number}", target_batch_size=2, batch_size_per_step=1, params=list(model.parameters()),
            optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), offload_optimizer=setup.offload_optimizer != "none",
            reuse_grad_buffers=setup.reuse_grad_buffers, matchmaking_time=1.0, averaging_timeout=5, **delayed,
        )  # fmt: skip
        for _ in range(4):
            loss(model).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if not setup.reuse_grad_buffers:
                for p in model.parameters():
                    p.grad.zero_()  # type: ignore[union-attr]
        measured[name] = _hivemind_bytes(optimizer, list(model.parameters()))
        optimizer.shutdown()
    dht.shutdown()
    return measured


def _hivemind_bytes(optimizer: Any, parameters: list[nn.Parameter]) -> dict[str, int]:
    states, gradients = optimizer.state_averager, optimizer.grad_averager
    inner = states.optimizer
    state = [t for s in inner.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.dim()]
    theirs = [p for group in inner.param_groups for p in group["params"]]
    with gradients.get_tensors() as averaged, states.get_tensors() as averaged_state:
        shared = [*averaged, *averaged_state]
    on_gpu = [*parameters, *(p.grad for p in parameters), *(gradients._local_accumulators or ())]
    in_ram = shared
    if states.offload_optimizer:
        in_ram += [*theirs, *(p.grad for p in theirs), *state]
    else:
        on_gpu += state
    return {"ram": unique_bytes(in_ram), "gpu": unique_bytes(on_gpu)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure_hivemind()), flush=True)
