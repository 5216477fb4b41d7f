"""`python -m benchmarks.train_step`: samples/s and peak memory of a training step, against dalle-pytorch's.

Both run in processes of their own, with the same libraries, and in turns, so that other load affects both; the best
of the rounds counts. Timed are the forward and backward pass of random codes with random weights of the same sizes. The
step of the optimizer, which comes once per batch of thousands, is timed by `benchmarks.optimizer`. `--depths` shows how
memory grows with the number of layers.
Prints a table and ends with one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.sampling.references import python_of
from ttt.config import DEMO, PAPER, DalleConfig

WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parents[2]
MIB = 2**20


@dataclass
class Worker:
    """A process that runs one implementation, and its measurements."""

    label: str
    name: str
    precision: str
    reversible: bool
    answers: list[dict[str, Any]] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def start(self, config: DalleConfig, threads: int) -> None:
        python = sys.executable if self.name == "ours" else str(python_of(self.name))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        sizes = json.dumps(config.to_dict())
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(WORKER), self.name, sizes, self.precision, str(self.reversible), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()

    def ask(self, batch: int) -> dict[str, Any]:
        """Run a step with so many samples."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps({"batch": batch}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def best(self, key: str) -> float:
        return min(float(answer[key]) for answer in self.answers)

    def most(self, key: str) -> float:
        return max(float(answer[key]) for answer in self.answers)

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label} ended with exit code {self.process.wait()}; see its output above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def workers(reference: bool, fast: bool) -> list[Worker]:
    running = [Worker("ours, bfloat16, reversible", "ours", "bfloat16", True)]
    if fast:
        running.append(Worker("ours, bfloat16, activations stored", "ours", "bfloat16", False))
    running.append(Worker("ours, float32, reversible", "ours", "float32", True))
    if reference:
        running.append(Worker("dalle-pytorch 1.6.6, float32, reversible", "dalle-pytorch", "float32", True))
    return running


def compare(config: DalleConfig, batch: int, rounds: int, threads: int, *, reference: bool, fast: bool) -> list[Worker]:
    running = workers(reference, fast)
    try:
        for worker in running:
            worker.start(config, threads)
        for i in range(rounds + 1):
            for worker in running:
                answer = worker.ask(batch)
                worker.answers += [answer] if i else []  # the first step is a warm-up
        return running
    finally:
        for worker in running:
            worker.stop()


def main(
    size: Annotated[str, typer.Option(help="paper or demo.")] = "demo",
    batch: Annotated[int, typer.Option(help="Samples per step; 0: 1 for paper, 16 for demo.", min=0)] = 0,
    rounds: Annotated[int, typer.Option(help="Steps of each implementation; the best counts.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0: one per core.", min=0)] = 0,
    depth: Annotated[int, typer.Option(help="Layers; 0: those of the size.", min=0)] = 0,
    depths: Annotated[bool, typer.Option(help="Also measure memory at a quarter, half and all of the layers.")] = True,
    reference: Annotated[bool, typer.Option(help="Also run dalle-pytorch.")] = True,
) -> None:
    """Samples per second and memory of the forward and backward pass."""
    if size not in ("paper", "demo"):
        raise typer.BadParameter(f"size must be paper or demo, got {size!r}")
    config = {"paper": PAPER, "demo": DEMO}[size]
    config = replace(config, depth=depth) if depth else config
    batch = batch or (1 if size == "paper" else 16)
    threads = threads or torch.get_num_threads()
    result: dict[str, Any] = {
        "size": size, "depth": config.depth, "batch": batch, "threads": threads, "load": os.getloadavg()[0],
    }  # fmt: skip
    measured = compare(config, batch, rounds, threads, reference=reference, fast=size == "demo")
    base = measured[-1]
    print(f"{f'forward and backward, batch {batch}':42} {'samples/s':>10} {'ratio':>7} {'CPU s':>8} {'peak MiB':>9}")
    for worker in measured:
        row = {
            "samples_per_second": round(batch / worker.best("seconds"), 4),
            "ratio": round(base.best("seconds") / worker.best("seconds"), 2),
            "cpu_seconds": round(worker.best("cpu"), 2),
            "peak_mib": round(worker.most("peak") / MIB),
            "loss": round(worker.answers[-1]["result"], 4),
        }
        print(
            f"{worker.label:42} {row['samples_per_second']:10.3f} {row['ratio']:6.1f}x {row['cpu_seconds']:8.2f} "
            f"{row['peak_mib']:9}"
        )
        result[worker.label] = row
    if depths:
        result["peak_mib_by_depth"] = by_depth(config, batch, threads)
    print(json.dumps(result))


def by_depth(config: DalleConfig, batch: int, threads: int) -> dict[str, dict[str, int]]:
    """Peak above the weights with reversible layers and with stored activations, for growing depths."""
    table: dict[str, dict[str, int]] = {}
    for reversible in (True, False):
        label = "reversible" if reversible else "stored"
        for layers in sorted({max(2, config.depth // 4), config.depth // 2, config.depth}):
            worker = Worker(label, "ours", "bfloat16", reversible)
            try:
                worker.start(replace(config, depth=layers), threads)
                peak = worker.ask(batch)["peak"]
            finally:
                worker.stop()
            table.setdefault(label, {})[str(layers)] = round(peak / MIB)
            print(f"{label}, {layers} layers: {peak / MIB:.0f} MiB")
    return table


if __name__ == "__main__":
    typer.run(main)
