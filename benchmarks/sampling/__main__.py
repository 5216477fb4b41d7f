"""Speed and memory of sampling, compared with what the hardware allows: `python -m benchmarks.sampling --size paper`.

Prints a table and ends with one JSON line. Weights are random, so nothing is downloaded. A step is one code of every
candidate: decode_one_code and pick. Its floor is the time of the products with weights alone, with the same shapes,
precision and threads. The first ratio is to the floor, the second to the time that the memory traffic needs. All are
measured in turns, round by round, so that noise affects all of them: our step, its floor, and with `--reference` the
cached step of dalle-pytorch 1.6.6 (float32) half-way through the image.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.sampling.end_to_end import end_to_end
from benchmarks.sampling.floor import bandwidth, bytes_moved, clock, products_of
from benchmarks.sampling.references import Reference
from benchmarks.sampling.steps import Steps
from ttt.config import DEMO, DEMO_VQGAN, PAPER, PAPER_VQGAN, DalleConfig
from ttt.errors import TTTError
from ttt.fields import describe
from ttt.hardware import choose_device, choose_dtype, flop_per_code, free_memory, is_small
from ttt.model.dalle import Dalle
from ttt.sampling.cache import PrefillResult, bytes_per_candidate
from ttt.sampling.decode import prefill
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights, cache_dtype
from ttt.workers import Work, WorkerPool

SIZES = {"demo": (DEMO, DEMO_VQGAN), "paper": (PAPER, PAPER_VQGAN)}


def main() -> None:
    options = _options()
    config, device, dtype = SIZES[options.size][0], options.device, options.dtype
    report: dict[str, Any] = {
        "benchmark": "sampling", "size": options.size, "device": _name(device), "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "cache_mb_per_candidate": bytes_per_candidate(config, cache_dtype(dtype)) / 1e6,
        "cache_mb_per_candidate_16_bit": bytes_per_candidate(config, torch.bfloat16) / 1e6,
        "bandwidth_gb_s": bandwidth(device) / 1e9,
    }  # fmt: skip
    print(f"{options.size}, {report['device']}, {report['dtype']}, {report['threads']} threads")
    try:
        _measure(options, report)
    except (TTTError, SystemExit) as error:
        report["error"] = str(error)
        print(error, file=sys.stderr)
    finally:  # print the measurements so far even after an error
        report["peak_mb"] = peak_mb(device)
        print(
            f"caches {report['cache_mb_per_candidate']:.2f} MB a candidate "
            f"({report['cache_mb_per_candidate_16_bit']:.2f} MB in 16 bits), peak memory {report['peak_mb']:.0f} MB"
        )
        print(json.dumps(report))
    if "error" in report:
        sys.exit(1)


def _measure(options: argparse.Namespace, report: dict[str, Any]) -> None:
    (config, vqgan), device, dtype = SIZES[options.size], options.device, options.dtype
    if options.batches:
        weights, text = _weights(config, device, dtype)
        reference = _reference(config, device, report) if options.reference else None
        report["prefill"], prompt = _prefill(weights, text, options.rounds, reference)
        report["steps"] = []
        for row in _steps(weights, prompt, options, reference, report["bandwidth_gb_s"] * 1e9):
            report["steps"].append(row)
        if reference:
            reference.close()
            report["best"] = _best(report["steps"])
        del weights, prompt
    if options.min_dalle:
        report["min_dalle"] = _min_dalle(report["threads"], options.rounds)
    if options.end_to_end:
        report["end_to_end"] = end_to_end(config, vqgan, device, dtype, options.params)


def _reference(config: DalleConfig, device: torch.device, report: dict[str, Any]) -> Reference | None:
    """Start the reference on the same GPU as ours, or on the CPU."""
    where = str(device) if device.type == "cuda" else "cpu"
    reference = Reference("dalle-pytorch", config.to_dict(), report["threads"], where)
    report["reference_device"] = reference.device
    if reference.device is None:
        reference.close()
        print("dalle-pytorch was not measured on the GPU: the torch of its environment has no CUDA")
        return None
    return reference


def _options() -> argparse.Namespace:
    """Parsed options with the chosen `device` and `dtype`, and `params` of the request end to end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument(
        "--batches", type=_from_1, nargs="*", default=[1, 8, 32, 128], help="empty: only the other measurements"
    )
    parser.add_argument("--rounds", type=_from_1, default=2, help="rounds of each measurement")
    parser.add_argument("--steps", type=_from_1, default=4, help="steps per round, spread over the image")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 or int8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--gpu", action="store_true", help="on a GPU; an error if there is none")
    parser.add_argument("--reference", action="store_true", help="also measure dalle-pytorch 1.6.6, in turns")
    parser.add_argument("--reference-batches", type=_from_1, nargs="+", default=[1, 8, 32])
    parser.add_argument("--min-dalle", action="store_true", help="also measure a step of min-dalle (DALL-E Mini)")
    parser.add_argument("--end-to-end", action="store_true", help="also measure a whole request")
    parser.add_argument(
        "--candidates",
        type=_from_1,
        default=128,
        help=f"candidates of the whole request: {describe(SamplingParams, 'candidates').allowed}",
    )
    options = parser.parse_args()
    try:
        options.params = SamplingParams(candidates=options.candidates)
        options.device = choose_device("cuda" if options.gpu else options.device, options.dtype)
        options.dtype = choose_dtype(options.dtype, options.device, SIZES[options.size][0])
    except TTTError as error:
        parser.error(str(error))
    return options


def _from_1(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) < 10 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number from 1")
    return value


def _weights(config: DalleConfig, device: torch.device, dtype: torch.dtype) -> tuple[DecoderWeights, torch.Tensor]:
    torch.manual_seed(0)
    text = torch.randint(1, config.num_text_tokens, (1, config.text_seq_len), device=device)
    return DecoderWeights(Dalle(config).eval().to(device), dtype), text


def _prefill(
    weights: DecoderWeights, text: torch.Tensor, rounds: int, reference: Reference | None
) -> tuple[dict[str, float], PrefillResult]:
    """Times of the prefill of one prompt and of its products alone; the first round is warm-up."""
    cores = 1 if is_small(weights.config) else None
    prompts: list[PrefillResult] = []
    products: list[Callable[[], None]] = []
    ours, floors, theirs = [], [], []

    def read(piece: range, pool: WorkerPool) -> None:
        prompts[:] = [prefill(weights, text)]

    def multiply(piece: range, pool: WorkerPool) -> None:
        if not products:
            products.append(products_of(weights, weights.config.text_len, logit_rows=1))
        floors.append(_timed(products[0], weights))

    def run(work: Work) -> None:
        for _ in WorkerPool(1, 1, work, weights.device, cores=cores).run():
            pass

    for i in range(rounds + 1):
        seconds = _timed(partial(run, read), weights)
        run(multiply)
        answer = reference.ask(do="prefill") if reference else {"seconds": 0.0}
        if i:
            ours.append(seconds)
            theirs.append(answer["seconds"])
    report = {"seconds": statistics.median(ours), "floor_s": statistics.median(floors[1:])}
    report["ratio"] = report["seconds"] / report["floor_s"]
    text_flop = flop_per_code(weights.config) * text.shape[1]
    line = (
        f"prefill {report['seconds'] * 1e3:.1f} ms ({text_flop / report['seconds'] / 1e9:.0f} GFLOP/s), "
        f"products {report['floor_s'] * 1e3:.1f} ms, ratio {report['ratio']:.2f}"
    )
    if reference:
        report |= {
            "reference_s": statistics.median(theirs),
            "times_faster": statistics.median(theirs) / report["seconds"],
        }
        line += f"; dalle-pytorch {report['reference_s'] * 1e3:.0f} ms, {report['times_faster']:.1f} times as long"
    print(line, flush=True)
    return report, prompts[0]


def _steps(
    weights: DecoderWeights,
    prompt: PrefillResult,
    options: argparse.Namespace,
    reference: Reference | None,
    bytes_s: float,
) -> Iterator[dict[str, Any]]:
    print(
        f"{'batch':>6} {'step ms':>9} {'products':>9} {'ratio':>6} {'(CPU)':>6} {'bytes ms':>9} {'ratio':>6} "
        f"{'GFLOP/s':>8} {'candidates/s':>13} {'reference ms':>13} {'times':>6} {'(CPU)':>6}"
    )
    for b in options.batches:
        ours, asks = Steps(weights, prompt, b), b in options.reference_batches and _fits(reference, weights.config, b)
        theirs: list[dict[str, float]] = []
        if reference and asks:
            reference.ask(do="ready", batch=b)
            reference.ask(do="step")
        for _ in range(options.rounds):
            ours.run(options.steps)
            if not ours.fits:
                break
            if reference and asks:
                theirs.append(reference.ask(do="step"))
        if reference and asks:
            reference.ask(do="ready", batch=1)  # frees its caches
        row = ours.row()
        if not ours.fits:
            print(f"batch {b} does not fit", flush=True)
            yield row
            continue
        row["bytes_s"] = bytes_moved(weights, prompt, b) / bytes_s
        row["bytes_ratio"] = row["step_s"] / row["bytes_s"]
        row["gflop_s"] = b * flop_per_code(weights.config) / row["step_s"] / 1e9
        if theirs:
            row["reference_s"] = statistics.median(t["seconds"] for t in theirs)
            row["times_faster"] = row["reference_s"] / row["step_s"]
            if ours.cpu_is_known:
                our_cpu = row["step_cpu_s"] * ours.threads
                row["times_faster_cpu"] = statistics.median(t["cpu"] for t in theirs) / our_cpu
        _print_row(row)
        yield row


def _print_row(row: dict[str, Any]) -> None:
    line = (
        f"{row['batch']:>6} {row['step_s'] * 1e3:>9.2f} {row['floor_s'] * 1e3:>9.2f} {row['ratio']:>6.2f} "
        f"{_or_dash(row, 'ratio_cpu', 2)} {row['bytes_s'] * 1e3:>9.2f} {row['bytes_ratio']:>6.2f} "
        f"{row['gflop_s']:>8.0f} {row['candidates_s']:>13.4f}"
    )
    if "reference_s" in row:
        line += f" {row['reference_s'] * 1e3:>13.0f} {row['times_faster']:>6.1f} {_or_dash(row, 'times_faster_cpu', 1)}"
    if "loop_s" in row:
        line += f"  without graphs {row['loop_s'] * 1e3:.2f} ms"
    print(line, flush=True)


def _or_dash(row: dict[str, Any], name: str, digits: int) -> str:
    return f"{row[name]:>6.{digits}f}" if name in row else f"{'-':>6}"


def _fits(reference: Reference | None, config: DalleConfig, b: int) -> bool:
    """True if the reference's caches of half an image fit in memory twice: a step makes new ones beside the old."""
    keys = config.text_len + config.image_seq_len // 2
    needed = int(1.2 * b * keys * config.depth * 2 * config.heads * config.dim_head * 4)
    there = free_memory(torch.device(reference.device if reference and reference.device else "cpu"))
    if reference and needed > there:
        print(f"reference at batch {b}: needs {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free; not measured")
    return needed <= there


def _best(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Candidates per second of each side's best batch."""
    known = [row for row in rows if "reference_s" in row]
    if not known:
        return {}
    ours = max(row["candidates_s"] for row in rows if "candidates_s" in row)
    # In a row of the table, both sides sample the same number of codes per candidate.
    theirs = max(row["candidates_s"] * row["step_s"] / row["reference_s"] for row in known)
    print(f"best batch: {ours:.4f} candidates/s, dalle-pytorch {theirs:.5f}: {ours / theirs:.1f} times as many")
    return {"candidates_s": ours, "reference_candidates_s": theirs, "times_faster": ours / theirs}


def _min_dalle(threads: int, rounds: int) -> dict[str, float]:
    """Seconds per code and candidate. An image of min-dalle has 256 codes; guidance doubles its rows."""
    reference, found = Reference("min-dalle", {}, threads), {}
    for b in (1, 9):
        reference.ask(do="ready", batch=b)
        reference.ask(do="step")
        found[f"code_s_{b}"] = statistics.median(reference.ask(do="step")["seconds"] for _ in range(2 * rounds)) / b
        print(f"min-dalle (Mini, float32), batch {b}: {found[f'code_s_{b}'] * 1e3:.1f} ms a code and candidate")
    reference.close()
    return found


def _timed(function: Callable[[], object], weights: DecoderWeights) -> float:
    start = clock(weights.device)
    function()
    return clock(weights.device) - start


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
