"""Speed and memory of painting, next to what the hardware allows: `python -m benchmarks.sampling --size demo`.

Prints a table and ends with one JSON line. Weights are random, so nothing is downloaded. A step is one code of every
candidate: decode_one_code and pick. Its floor is the time of the products with the weights alone, at the same shapes,
precision and threads, measured in turn with the steps so that noise hits both.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from typing import Any

import torch

from ttt.config import DEMO, DEMO_VQGAN, PAPER, PAPER_VQGAN, DalleConfig
from ttt.model.dalle import Dalle
from ttt.sampling.cache import Cache, Prompt, bytes_per_candidate
from ttt.sampling.crew import Crew
from ttt.sampling.decode import decode_one_code, pick, prefill, uniforms
from ttt.sampling.device import choose_device, choose_dtype, flop_per_code
from ttt.sampling.linear import MIN_ROWS
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights

SIZES = {"demo": (DEMO, DEMO_VQGAN), "paper": (PAPER, PAPER_VQGAN)}
PARAMS = SamplingParams()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--steps", type=int, default=8, help="steps timed at each batch, spread over the picture")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--end-to-end", action="store_true", help="also codes, images and scores of 128 candidates")
    options = parser.parse_args()

    config, _ = SIZES[options.size]
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device, config)
    torch.manual_seed(0)
    dalle = Dalle(config).eval().to(device)
    weights = DecoderWeights(dalle, dtype)
    text = torch.randint(1, config.num_text_tokens, (1, config.text_seq_len), device=device)
    with torch.inference_mode():
        prompt = prefill(weights, text)
        report: dict[str, Any] = {
            "benchmark": "sampling", "size": options.size, "device": str(device), "threads": torch.get_num_threads(),
            "dtype": str(dtype).removeprefix("torch."),
            "prefill_s": best_of(3, lambda: prefill(weights, text), device),
            "cache_mb_per_candidate": bytes_per_candidate(config, dtype) / 1e6,
            "cache_mb_per_candidate_16_bit": bytes_per_candidate(config, torch.bfloat16) / 1e6,
        }  # fmt: skip
    print_head(report)
    report["steps"] = [measure(weights, prompt, b, options.steps) for b in options.batches]
    if options.end_to_end:
        report["end_to_end"] = end_to_end(options.size, device, dtype)
    report["peak_mb"] = peak_mb(device)
    print(f"peak memory {report['peak_mb']:.0f} MB")
    print(json.dumps(report))


def print_head(report: dict[str, Any]) -> None:
    print(f"{report['size']}, {report['device']}, {report['dtype']}, {report['threads']} threads")
    print(f"prefill {report['prefill_s'] * 1e3:.1f} ms")
    print(
        f"caches {report['cache_mb_per_candidate']:.2f} MB a candidate "
        f"({report['cache_mb_per_candidate_16_bit']:.2f} MB in 16 bits)"
    )
    print(f"{'batch':>6} {'step ms':>9} {'floor ms':>9} {'ratio':>6} {'GFLOP/s':>8} {'candidates/s':>13}")


def measure(weights: DecoderWeights, prompt: Prompt, b: int, steps: int) -> dict[str, float]:
    """Median step and floor, in seconds, of `b` candidates on the threads that painting would use."""
    config = weights.config
    taken: list[tuple[float, float]] = []

    def work(piece: range, crew: Crew) -> None:
        rows = max(len(piece), MIN_ROWS)
        cache = Cache(config, prompt, rows, weights.dtype, weights.device)
        codes = torch.zeros(rows, dtype=torch.long, device=weights.device)
        random = uniforms(0, range(rows), 1)[:, 0].to(weights.device)
        for i in range(-2, steps):  # the first two are not counted
            position = max(i, 0) * (config.image_seq_len - 1) // steps
            start = clock(weights.device)
            codes = pick(decode_one_code(weights, cache, codes, position), random, PARAMS)
            middle = clock(weights.device)
            products_alone(weights, rows)
            if i >= 0:
                taken.append((middle - start, clock(weights.device) - middle))

    for _ in Crew(b, b, work, weights.device).run():
        pass
    step, floor = (statistics.median(values) for values in zip(*taken, strict=True))
    row = {
        "batch": b, "step_s": step, "floor_s": floor, "ratio": step / floor,
        "gflop_s": b * flop_per_code(config) / step / 1e9, "candidates_s": b / (step * config.image_seq_len),
    }  # fmt: skip
    print(
        f"{b:>6} {step * 1e3:>9.2f} {floor * 1e3:>9.2f} {row['ratio']:>6.2f} {row['gflop_s']:>8.0f} "
        f"{row['candidates_s']:>13.4f}",
        flush=True,
    )
    return row


def products_alone(weights: DecoderWeights, rows: int) -> None:
    """All products with weights of one step, in its order."""
    config: DalleConfig = weights.config
    x = torch.ones(rows, config.dim, dtype=weights.dtype, device=weights.device)
    inner = x.new_ones(rows, config.heads * config.dim_head)
    wide = x.new_ones(rows, config.dim * config.ff_mult)
    for layer in weights.layers:
        layer.to_qkv(x)
        layer.to_out(inner)
        layer.up(x)
        layer.down(wide)
    weights.to_logits(x.float())


def end_to_end(size: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """128 candidates: codes, images and scores, with random weights; seconds by stage."""
    import open_clip
    from tokenizers import Tokenizer, models

    from ttt.model.vqgan import Vqgan
    from ttt.pipeline import TextToImage
    from ttt.rerank import ClipScorer
    from ttt.tokenizer import TextTokenizer

    config, vqgan = SIZES[size]
    scorer = ClipScorer(open_clip.create_model("ViT-B-32"), open_clip.get_tokenizer("ViT-B-32"), device)
    words = TextTokenizer(Tokenizer(models.WordLevel({"x": 1}, unk_token="x")), config.text_seq_len, 0)
    pipe = TextToImage(
        dalle=Dalle(config), vqgan=Vqgan(vqgan), tokenizer=words, scorer=scorer, device=device, dtype=dtype
    )
    _ = pipe.palette
    start, first = time.perf_counter(), None
    for progress in pipe.stream("a red circle", PARAMS):
        if first is None and progress.sheet is not None:
            first = time.perf_counter() - start
    total = time.perf_counter() - start
    stages = {stage: share * total for stage, share in pipe.shares.items()}
    print(f"128 candidates, end to end: {total:.2f} s, first preview after {first:.2f} s; " + ", ".join(
        f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()
    ))  # fmt: skip
    return {"total_s": total, "first_preview_s": first, **{f"{k}_s": v for k, v in stages.items()}}


def best_of(n: int, function: Any, device: torch.device) -> float:
    times = []
    for _ in range(n):
        start = clock(device)
        function()
        times.append(clock(device) - start)
    return min(times)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
