"""Both decoders, eager and static, against the plain forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tests.sampling.oracle import (
    KINDS,
    SIZES,
    cached_logits,
    config_of,
    needs_vnni,
    plain_logits,
    request,
    static_logits,
)
from tests.support.tiny import tiny_dalle
from ttt.bundle import find_bundle
from ttt.bundle.weights import load_dalle_from
from ttt.config import DEMO
from ttt.model.dalle import Dalle

INT8 = pytest.param(torch.int8, marks=needs_vnni)
Decoder = Callable[..., torch.Tensor]
both = pytest.mark.parametrize("logits", [cached_logits, static_logits], ids=["loop", "static"])


@both
@pytest.mark.parametrize("b", [1, 5])
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_logits_equal_the_plain_forward_at_every_position(size: str, kinds: str, b: int, logits: Decoder) -> None:
    dalle = tiny_dalle(3, config_of(size, kinds))
    text, codes = request(dalle.config, b)
    expected = plain_logits(dalle, text, codes)
    assert expected.abs().max() > 0.5, "logits near zero would prove nothing"
    torch.testing.assert_close(logits(dalle, text, codes), expected, atol=1e-4, rtol=0)


@both
@pytest.mark.parametrize("more", [{"share_layers": False}, {"reversible": False}, {"conv_kernel": 3}, {"ff_mult": 1}])
def test_other_options_of_the_model_are_followed(more: dict[str, object], logits: Decoder) -> None:
    dalle = tiny_dalle(4, config_of("tiny", "paper", **more))
    text, codes = request(dalle.config, 3)
    torch.testing.assert_close(logits(dalle, text, codes), plain_logits(dalle, text, codes), atol=1e-4, rtol=0)


@both
def test_the_demo_size_is_equal_too(logits: Decoder) -> None:
    dalle = Dalle(DEMO).eval()
    with torch.no_grad():
        for parameter in dalle.parameters():
            parameter.normal_(std=0.1)
    text, codes = request(DEMO, 2)
    codes = codes[:, : 5 * DEMO.image_fmap_size + 3]
    torch.testing.assert_close(logits(dalle, text, codes), plain_logits(dalle, text, codes), atol=1e-4, rtol=0)


def divergence(dalle: Dalle, logits: Decoder, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """KL [b, n] of the next code's distribution from that of the plain forward, of random codes."""
    text, codes = request(dalle.config, 4, seed)
    expected = plain_logits(dalle, text, codes).log_softmax(-1)
    rounded = logits(dalle, text, codes, dtype=dtype)
    assert rounded.dtype == torch.float32
    return F.kl_div(rounded.log_softmax(-1), expected, reduction="none", log_target=True).sum(-1)


@both
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, INT8])
def test_fewer_bits_keep_the_distribution(dtype: torch.dtype, seed: int, logits: Decoder) -> None:
    kl = divergence(tiny_dalle(6, config_of("wide", "paper")), logits, dtype, seed)
    assert kl.mean() < 1e-2


@both
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1e-3), pytest.param(torch.int8, 1e-2, marks=needs_vnni)])
def test_fewer_bits_keep_the_distribution_of_a_trained_model(dtype: torch.dtype, most: float, logits: Decoder) -> None:
    """Whose weights and activations have outliers. Measured: 1.5e-4 in bfloat16, 3e-3 in 8 bits."""
    dalle = load_dalle_from(find_bundle("demo"), torch.device("cpu"))
    kl = divergence(dalle, logits, dtype, 0)
    assert 0 < kl.mean() < most
