"""Predicted against measured: `python -m benchmarks.calculator [--only gpt2] [--write] [--gpu]`.

Real PyTorch models run two training steps under FakeTensorMode (without memory and without a GPU) and MemTracker; the
peak of the second step is compared with `calculator.estimate`. Parameter counts are compared with the meta device,
optimizer states with bitsandbytes' real tensors, and techniques with the objects of their libraries
(`benchmarks.calculator.techniques`). `--write` writes the tables to docs/calculator.md, from which the Memory tab reads
them. `--gpu` compares with `torch.cuda.max_memory_allocated` of real steps. Prints tables and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.calculator.cases import CASES, Case
from benchmarks.calculator.counts import Row, optimizer_rows, parameter_rows, table
from benchmarks.calculator.gpu import gpu_cases, measure_gpu
from benchmarks.calculator.steps import measure, predict
from benchmarks.calculator.techniques import GROUPS
from calculator.validation import BEGIN, DOCUMENT, END


def run(cases: list[Case], measured_by: Callable[[Case], int], cache: Path | None) -> list[Row]:
    known: dict[str, int] = json.loads(cache.read_text()) if cache and cache.exists() else {}
    rows = []
    for case in cases:
        started = time.perf_counter()
        if case.name not in known:
            try:
                known[case.name] = measured_by(case)
            except Exception as error:
                raise SystemExit(f"cannot measure {case.name}: {error!r}") from error
            if cache:
                cache.write_text(json.dumps(known))
        rows.append(Row(case.name, predict(case), known[case.name]))
        print(f"{100 * rows[-1].error:+7.2f} %  {time.perf_counter() - started:5.1f} s  {case.name}", flush=True)
    return rows


def report(title: str, rows: list[Row], unit: str) -> str:
    """Return a heading, a summary and the table."""
    errors = [abs(r.error) for r in rows]
    exact = sum(r.predicted == r.measured for r in rows)
    summary = f"{len(rows)} cases, {exact} of them exact" if unit != "MiB" else f"{len(rows)} cases"
    figures = f"median error {100 * statistics.median(errors):.3f} %, worst {100 * max(errors):.2f} %"
    return f"### {title}\n\n{summary}: {figures}.\n\n{table(rows, unit)}"


def write(text: str) -> None:
    """Replace the section between the marks in the docs."""
    document = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = document.partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only the cases whose name contains this")
    parser.add_argument("--cache", type=Path, help="JSON file that caches measurements")
    parser.add_argument("--write", action="store_true", help="write the tables to docs/calculator.md")
    parser.add_argument("--gpu", action="store_true", help="measure on a real GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA device, and PyTorch finds none")
    cases = [c for c in (gpu_cases() if arguments.gpu else CASES) if arguments.only in c.name]
    rows = run(cases, measure_gpu if arguments.gpu else measure, arguments.cache)
    if not rows:
        parser.error(f"no case contains {arguments.only!r}")
    tables = [report("Peak of a step", rows, "MiB")]
    exact: list[Row] = []
    if not arguments.gpu and not arguments.only:
        parameters, optimizers = parameter_rows(), optimizer_rows()
        exact = [*parameters, *optimizers]
        tables += [report("Parameters", parameters, "count"), report("Optimizer state", optimizers, "bytes")]
        tables += [report(name, group(), "bytes") for name, group in GROUPS.items()]
    text = "\n\n".join(tables)
    print(text)
    if arguments.write and not arguments.only and not arguments.gpu:
        write(text)
    errors = [abs(r.error) for r in rows]
    print(json.dumps({
        "benchmark": "calculator", "device": "cuda" if arguments.gpu else "fake", "cases": len(rows),
        "median_error": statistics.median(errors), "worst_error": max(errors),
        "exact": sum(r.predicted == r.measured for r in exact), "of": len(exact),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
