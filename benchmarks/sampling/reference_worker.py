"""Another implementation in its own environment: reads questions and writes answers, one line of JSON each.

    {"do": "prefill"} -> {"seconds": ..., "cpu": ...}
    {"do": "ready", "batch": 8} -> {"gigabytes": ...}   # caches as they are half-way through the image
    {"do": "step"} -> {"seconds": ..., "cpu": ...}      # one code of each candidate of the batch, sampled

The first answer is {"device": ...}: the requested device, or null, and then the process ends, if its torch lacks CUDA.
Half-way is the average: the cost of a step grows linearly with the number of codes before it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from reference_dalle import published_dalle  # in the folder of this script
from torch import Tensor


class DallePytorch:
    """dalle-pytorch 1.6.6 as published for inference: dense cached attention under static masks, float32."""

    def __init__(self, sizes: dict[str, Any], device: str) -> None:
        self.dalle = published_dalle(sizes, reversible=True, optimize_for_inference=True).eval().to(device)
        self.text = torch.randint(1, sizes["num_text_tokens"], (1, sizes["text_seq_len"]), device=device)
        positions = sizes["image_fmap_size"] ** 2
        self.half_way = positions // 2
        self.codes = torch.randint(0, sizes["num_image_tokens"], (1, positions), device=device)
        self.half: dict[Any, Any] = {}

    def prefill(self) -> None:
        self.dalle(self.text, self.codes[:, :0], cache={})

    def ready(self, batch: int) -> None:
        """The caches of one candidate after half of its codes, repeated for every candidate."""
        self.batch, self.sampled = batch, self.half_way
        self.caches: dict[Any, Any] = {}
        if not self.half:
            self.dalle(self.text, self.codes[:, : self.sampled], cache=self.half)
        self.caches = {key: repeated(value, batch) for key, value in self.half.items()}

    def step(self) -> None:
        from dalle_pytorch.dalle_pytorch import gumbel_sample, top_k

        self.sampled += 1
        text, codes = self.text.expand(self.batch, -1), self.codes[:, : self.sampled].expand(self.batch, -1)
        logits = self.dalle(text, codes, cache=self.caches)[:, -1]
        gumbel_sample(top_k(logits, thres=0.97), temperature=1.0, dim=-1)

    def bytes_held(self) -> int:
        return sum(map(size_of, self.caches.values()))


class MinDalle:
    """min-dalle 0.4.11 at the size of DALL-E Mini, random weights, float32; twice the rows, for its guidance."""

    def __init__(self, _: dict[str, Any], __: str) -> None:
        from min_dalle.models import DalleBartDecoder, DalleBartEncoder

        shape = {"attention_head_count": 16, "embed_count": 1024, "glu_embed_count": 2730, "layer_count": 12}
        self.encoder = DalleBartEncoder(text_token_count=64, text_vocab_count=50264, device="cpu", **shape).eval()
        self.decoder = DalleBartDecoder(image_vocab_count=16384, device="cpu", **shape).eval()
        self.text = torch.randint(2, 50264, (2, 64))

    def prefill(self) -> None:
        self.state = self.encoder(self.text)

    def ready(self, batch: int) -> None:
        self.prefill()
        rows = [0] * batch + [1] * batch
        self.mask = self.text[rows].not_equal(1)[:, None, None, :]
        self.encoded = self.state[rows]
        self.caches = torch.zeros(12, 4 * batch, 256, 1024)
        self.tokens = torch.zeros(batch, 1, dtype=torch.long)

    def step(self) -> None:
        self.decoder.sample_tokens(
            settings=torch.tensor([1.0, 256, 16]), attention_mask=self.mask, encoder_state=self.encoded,
            attention_state=self.caches, prev_tokens=self.tokens, token_index=torch.tensor([128]),
        )  # fmt: skip

    def bytes_held(self) -> int:
        return size_of(self.caches)


def repeated(value: Any, b: int) -> Any:
    """A cache of one candidate -> the same of `b`."""
    if isinstance(value, Tensor):
        return value.repeat(b, *[1] * (value.ndim - 1))
    if isinstance(value, (tuple, deque)):
        return type(value)(repeated(part, b) for part in value)
    return value


def size_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(size_of, value)) if isinstance(value, (tuple, deque)) else 0


def timed(function: Callable[[], None], wait: Callable[[], None]) -> dict[str, float]:
    """wait: returns when the device has finished."""
    wait()
    start, cpu = time.perf_counter(), time.process_time()
    function()
    wait()
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


@torch.inference_mode()
def main() -> None:
    name, sizes, threads, device = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the libraries' own output must not mix with the answers
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print(json.dumps({"device": None}), file=answers, flush=True)
        return
    wait: Callable[[], None] = partial(torch.cuda.synchronize, device) if on_gpu else lambda: None
    torch.manual_seed(0)
    reference = {"dalle-pytorch": DallePytorch, "min-dalle": MinDalle}[name](json.loads(sizes), device)
    torch.set_num_threads(int(threads))  # min-dalle sets its own at import
    print(json.dumps({"device": device}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "ready":
            reference.ready(question["batch"])
            answer = {"gigabytes": reference.bytes_held() / 1e9}
        else:
            answer = timed(getattr(reference, question["do"]), wait)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
