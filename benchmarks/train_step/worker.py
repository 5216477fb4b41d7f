"""Runs one implementation of a training step in a process of its own: one JSON request per line, one response per line.

    {"batch": 4} -> {"seconds": ..., "cpu": ..., "peak": bytes, "result": loss}    forward and backward

`peak` is the highest resident memory since the model was created, minus that at its creation: gradients and temporary
tensors of a step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.sampling.reference_dalle import published_dalle


class Ours:
    """`ttt.train.step` in some precision, with reversible layers or with stored activations."""

    def __init__(self, sizes: dict[str, Any], precision: str, reversible: bool) -> None:
        from ttt.config import DalleConfig
        from ttt.model.dalle import Dalle
        from ttt.train.step import TrainingStep

        self.dalle = Dalle(DalleConfig.from_dict({**sizes, "reversible": reversible}))
        self.training = TrainingStep(self.dalle, precision=precision)

    def step(self, text: torch.Tensor, codes: torch.Tensor) -> float:
        from ttt.types import Batch

        self.dalle.zero_grad(set_to_none=True)
        return self.training.backward(Batch(text, codes))


class DallePytorch:
    """dalle-pytorch 1.6.6 as it trains: reversible, float32."""

    def __init__(self, sizes: dict[str, Any], precision: str, reversible: bool) -> None:
        self.dalle = published_dalle(sizes, reversible=reversible)

    def step(self, text: torch.Tensor, codes: torch.Tensor) -> float:
        self.dalle.zero_grad(set_to_none=True)
        loss = self.dalle(text, codes, return_loss=True)
        loss.backward()
        return float(loss)


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "result": result}


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM (its high-water mark) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads memory from /proc and needs Linux")


def main() -> None:
    name, sizes_text, precision, reversible, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like a response
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    sizes = json.loads(sizes_text)
    model = {"ours": Ours, "dalle-pytorch": DallePytorch}[name](sizes, precision, reversible == "True")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        b, fmap = json.loads(line)["batch"], sizes["image_fmap_size"]
        generator = torch.Generator().manual_seed(1)
        text = torch.randint(1, sizes["num_text_tokens"], (b, sizes["text_seq_len"]), generator=generator)
        codes = torch.randint(0, sizes["num_image_tokens"], (b, fmap * fmap), generator=generator)
        answer = timed(lambda text=text, codes=codes: model.step(text, codes))
        answer["peak"] = resident("VmHWM") - before
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
