"""A whole request with random weights: codes, images, scores, previews."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks.sampling.floor import clock, products_of
from ttt.config import DalleConfig, VqganConfig
from ttt.hardware import memory_budget
from ttt.linear import MIN_ROWS
from ttt.model.dalle import Dalle
from ttt.model.vqgan import Vqgan
from ttt.pipeline import TextToImage
from ttt.preview import ContactSheet
from ttt.rerank import ClipScorer
from ttt.sampling.params import SamplingParams
from ttt.sampling.sampler import memory_per_candidate
from ttt.tokenizer import TextTokenizer
from ttt.workers import WorkerPool


def end_to_end(
    config: DalleConfig, vqgan: VqganConfig, device: torch.device, dtype: torch.dtype, params: SamplingParams
) -> dict[str, Any]:
    """Seconds by stage, and the share of previews in sampling; CLIP is open_clip's ViT-B-32, as in the paper."""
    pipe, candidates = _pipe(config, vqgan, device, dtype), params.candidates
    _ = pipe.palette
    at_once = memory_budget(device) // memory_per_candidate(config, pipe.dtype)
    start, first, shown, last_printed = time.perf_counter(), 0.0, 0, 0.0
    for progress in pipe.stream("a red circle", params):
        elapsed = time.perf_counter() - start
        if progress.stage == "sampling" and progress.sheet is not None:
            first, shown = first or elapsed, shown + 1
        if elapsed - last_printed > 60:  # a request takes minutes at the paper's size
            last_printed = elapsed
            print(f"  {elapsed:6.0f} s: {progress.stage}, {progress.fraction:.1%} of the request", flush=True)
    total = time.perf_counter() - start
    stages = {f"{stage}_s": share * total for stage, share in pipe.shares.items()}
    report = {
        "candidates": candidates, "total_s": total, "first_preview_s": first, **stages, "previews": shown,
        "preview_share": shown * _preview_seconds(pipe, candidates) / stages["sampling_s"],
    }  # fmt: skip
    floor = _sampling_floor(pipe, candidates, at_once)
    report |= {"sampling_floor_s": floor, "sampling_ratio": report["sampling_s"] / floor}
    print(
        f"{candidates} candidates, end to end: {total:.2f} s ("
        + ", ".join(f"{stage} {share * total:.2f}" for stage, share in pipe.shares.items())
        + f"), products of sampling {floor:.2f} s, first preview after {first:.2f} s, "
        f"previews {report['preview_share']:.1%} of sampling"
    )
    return report


def _pipe(config: DalleConfig, vqgan: VqganConfig, device: torch.device, dtype: torch.dtype) -> TextToImage:
    import open_clip
    from tokenizers import Tokenizer, models

    return TextToImage(
        dalle=Dalle(config),
        vqgan=Vqgan(vqgan),
        tokenizer=TextTokenizer(Tokenizer(models.WordLevel({"x": 1}, unk_token="x")), config.text_seq_len, 0),
        scorer=ClipScorer(open_clip.create_model("ViT-B-32"), open_clip.get_tokenizer("ViT-B-32"), device),
        device=device,
        dtype=dtype,
    )


def _sampling_floor(pipe: TextToImage, candidates: int, at_once: int) -> float:
    """Seconds of all products with weights, from those of one step in the pieces of sampling."""
    seconds: list[float] = []

    def work(piece: range, pool: WorkerPool) -> None:
        products, times = products_of(pipe.weights, max(len(piece), MIN_ROWS)), []
        for _ in range(4):
            start = clock(pipe.device)
            products()
            times.append(clock(pipe.device) - start)
        seconds.append(statistics.median(times[1:]))

    pool = WorkerPool(candidates, at_once, work, pipe.device)
    for _ in pool.run():
        pass
    return (pipe.dalle.config.image_seq_len - 1) * sum(seconds) / pool.threads


def _preview_seconds(pipe: TextToImage, candidates: int) -> float:
    """Wall time of one preview when nothing else runs."""
    config = pipe.dalle.config
    sheet = ContactSheet(candidates, config.image_fmap_size, pipe.palette)
    codes = np.random.default_rng(0).integers(0, config.num_image_tokens, (candidates, config.image_seq_len))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        sheet.show_codes(codes, [config.image_seq_len // 2] * candidates)
        sheet.image()
        best = min(best, time.perf_counter() - start)
    return best
