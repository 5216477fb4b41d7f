"""Weights for the parity tests, generated from the names of the tensors, so that the goldens need not store them.

Knows the published names on its own, without `ttt`, so that both sides of a comparison are independent.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import cycle, islice
from math import sqrt
from typing import Any

import numpy as np

FIELDS = (
    "dim", "depth", "heads", "dim_head", "text_seq_len", "image_fmap_size", "num_text_tokens", "num_image_tokens"
)  # fmt: skip
CASES: dict[str, dict[str, int]] = {
    name: dict(zip(FIELDS, numbers, strict=True))
    for name, *numbers in (
        ("small", 16, 6, 2, 16, 4, 4, 11, 7),
        ("one_layer", 20, 1, 1, 64, 6, 8, 9, 12),
        ("odd_head", 28, 9, 3, 23, 9, 8, 13, 10),
        ("deep", 12, 26, 2, 40, 5, 8, 8, 9),
        ("large_image", 16, 4, 1, 32, 8, 16, 6, 8),
    )
}
"""Fields of `DalleConfig`; the rest is as published."""

FORMATS = ("training", "inference")


def parts(case: dict[str, int]) -> list[int]:
    """How many codes of the image are given: none, one, half a row more than one row, all but one, all."""
    fmap = case["image_fmap_size"]
    return [0, 1, fmap + fmap // 2, fmap**2 - 1, fmap**2]


def inputs(case: dict[str, int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Text [2, text_seq_len], the end of which is padding (0), and codes [2, n]."""
    random = np.random.RandomState(0)
    text = random.randint(1, case["num_text_tokens"], (2, case["text_seq_len"]))
    text[0, -2:] = text[1, -1:] = 0
    return text, random.randint(0, case["num_image_tokens"], (2, case["image_fmap_size"] ** 2))


def names(case: dict[str, int], form: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(published name, name of the tensor that it shares with others, shape), `transformer.pos_emb` left out."""
    dim, inner, wide = case["dim"], case["heads"] * case["dim_head"], 4 * case["dim"]
    vocabulary = case["num_text_tokens"] + case["text_seq_len"] + case["num_image_tokens"]
    attention, feed_forward = {"training": (".fn" * 3, ".fn" * 3), "inference": (".fn" * 5, ".fn" * 4)}[form]
    bodies = {
        f"f.net{attention}.to_qkv.weight": (3 * inner, dim),
        f"f.net{attention}.to_out.0.weight": (dim, inner),
        f"f.net{attention}.to_out.0.bias": (dim,),
        f"g.net{feed_forward}.net.0.weight": (2 * wide, dim),
        f"g.net{feed_forward}.net.0.bias": (2 * wide,),
        f"g.net{feed_forward}.net.3.weight": (dim, wide),
        f"g.net{feed_forward}.net.3.bias": (dim,),
    }
    for layer, shared in enumerate([*islice(cycle("0123"), case["depth"] - 1), "w_conv"]):
        block = f"transformer.layers.blocks.{layer}."
        for half in "fg":
            yield f"{block}{half}.net.scale", f"{block}{half}.scale", (1, 1, dim)
            yield f"{block}{half}.net.fn.norm.weight", f"{block}{half}.norm.weight", (dim,)
            yield f"{block}{half}.net.fn.norm.bias", f"{block}{half}.norm.bias", (dim,)
        for name, shape in bodies.items():
            yield block + name, f"{shared}.{name[0]}{name.partition('.fn.fn')[2].replace('.fn', '')}", shape
    yield "to_logits.0.weight", "output.norm.weight", (dim,)
    yield "to_logits.0.bias", "output.norm.bias", (dim,)
    for owner in ("to_logits.1", "text_emb.linear", "image_emb.linear"):
        yield f"{owner}.weight", "output.weight", (vocabulary, dim)
        yield f"{owner}.bias", "output.bias", (vocabulary,)


def values(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """float32 numbers of the tensor `name`, of a size that keeps every part of the model audible."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("norm.weight"):
        noise = 1 + 0.2 * noise
    elif name.endswith("scale"):
        noise = 0.3 * noise
    elif name.endswith("bias"):
        noise = 0.1 * noise
    else:
        noise = noise * 1.2 / sqrt(shape[-1])
    return noise.astype(np.float32)


def state(case: dict[str, int], form: str) -> dict[str, np.ndarray[Any, Any]]:
    """A whole state dict under published names, but for `transformer.pos_emb`."""
    return {name: values(shared, shape) for name, shared, shape in names(case, form)}
