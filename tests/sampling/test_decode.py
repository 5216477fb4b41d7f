"""The cached decoder against the plain forward, and what it costs in memory."""

from __future__ import annotations

import pytest
import torch

from tests.sampling.oracle import KINDS, SIZES, config_of, plain_logits, request
from tests.support.tiny import tiny_dalle
from ttt.config import DEMO, PAPER
from ttt.errors import CheckpointError
from ttt.model.dalle import Dalle
from ttt.sampling.cache import Cache, bytes_per_candidate, unseen_slots
from ttt.sampling.decode import decode_one_code, prefill
from ttt.sampling.weights import DecoderWeights


@torch.inference_mode()
def cached_logits(dalle: Dalle, text: torch.Tensor, codes: torch.Tensor, **how: object) -> torch.Tensor:
    """Logits [b, n, v] before each of the codes."""
    b, n = codes.shape
    weights = DecoderWeights(dalle, **how)  # type: ignore[arg-type]
    prompt = prefill(weights, text)
    cache = Cache(dalle.config, prompt, b, weights.dtype, weights.device)
    logits = [prompt.logits.expand(b, -1)]
    logits += [decode_one_code(weights, cache, codes[:, i], i) for i in range(n - 1)]
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("b", [1, 5])
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_cached_logits_equal_the_plain_forward_at_every_position(size: str, kinds: str, b: int):
    config = config_of(size, kinds)
    dalle = tiny_dalle(3, config)
    text, codes = request(config, b)
    expected = plain_logits(dalle, text, codes)
    assert expected.abs().max() > 0.5, "logits near zero would prove nothing"
    torch.testing.assert_close(cached_logits(dalle, text, codes), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("more", [{"share_layers": False}, {"reversible": False}, {"conv_kernel": 3}, {"ff_mult": 1}])
def test_every_other_option_is_followed_too(more: dict[str, object]):
    config = config_of("tiny", "paper", **more)
    dalle = tiny_dalle(4, config)
    text, codes = request(config, 3)
    torch.testing.assert_close(cached_logits(dalle, text, codes), plain_logits(dalle, text, codes), atol=1e-4, rtol=0)


def test_the_demo_size_is_equal_too():
    dalle = Dalle(DEMO).eval()
    with torch.no_grad():
        for parameter in dalle.parameters():
            parameter.normal_(std=0.1)
    text, codes = request(DEMO, 2)
    codes = codes[:, : 5 * DEMO.image_fmap_size + 3]
    expected = plain_logits(dalle, text, codes)
    torch.testing.assert_close(cached_logits(dalle, text, codes), expected, atol=1e-4, rtol=0)


def test_library_layout_of_weights_changes_nothing_but_rounding():
    dalle = tiny_dalle(3)
    text, codes = request(dalle.config, 4)
    packed, plain = (cached_logits(dalle, text, codes, pack=pack) for pack in (True, False))
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)


def test_a_loaded_angle_table_is_used():
    dalle = tiny_dalle(3)
    text, codes = request(dalle.config, 2)
    before = cached_logits(dalle, text, codes)
    dalle.transformer.pos_emb.mul_(0.5)
    after = cached_logits(dalle, text, codes)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, plain_logits(dalle, text, codes), atol=1e-4, rtol=0)


def test_the_ring_of_the_convolution_shows_the_corner_above_and_to_the_left():
    config = config_of("tiny", "conv", conv_kernel=3)  # 4 x 4 codes, a ring of 3 rows
    unseen = unseen_slots("conv", config).view(4, 4, 3, 4)

    def drawn(row: int, column: int) -> list[str]:
        return ["".join(".x"[int(not hidden)] for hidden in line) for line in unseen[row, column].tolist()]

    assert drawn(0, 0) == ["x...", "....", "...."]
    assert drawn(1, 2) == ["xxx.", "xxx.", "...."]
    assert drawn(2, 3) == [".xxx", ".xxx", ".xxx"]
    assert drawn(3, 1) == ["xx..", "xx..", "xx.."], "row 3 has taken the place of row 0"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_keep_the_distribution(dtype: torch.dtype, seed: int):
    dalle = tiny_dalle(6, config_of("wide", "paper"))
    text, codes = request(dalle.config, 4, seed)
    expected = plain_logits(dalle, text, codes).log_softmax(-1)
    logits = cached_logits(dalle, text, codes, dtype=dtype)
    assert logits.dtype == torch.float32
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), expected, reduction="none", log_target=True).sum(-1)
    assert kl.mean() < 1e-2


def test_candidates_do_not_touch_each_other():
    """Bitwise: a candidate's logits don't depend on who is computed beside it."""
    dalle = Dalle(DEMO).eval()
    text, codes = request(DEMO, 16)
    codes = codes[:, :40]
    together = cached_logits(dalle, text, codes)
    for some in (slice(0, 4), slice(3, 10), slice(9, 16)):
        assert torch.equal(cached_logits(dalle, text, codes[some]), together[some])


def test_the_papers_caches_take_less_than_80_mb_a_candidate():
    assert bytes_per_candidate(PAPER, torch.bfloat16) == 2 * (
        2 * (47 * 32 + 16 * 1024 + 5 * 32) * 1024 + 128 * 32 * 256
    )
    assert bytes_per_candidate(PAPER, torch.bfloat16) < 80e6


def test_the_stated_bytes_are_those_allocated():
    config = config_of("wide", "mixed")
    dalle = tiny_dalle(0, config)
    weights = DecoderWeights(dalle)
    cache = Cache(config, prefill(weights, request(config, 1)[0]), 3, weights.dtype, weights.device)
    tensors = [keys.buffer for keys in cache.images]
    tensors += [shift.above for shift in (*cache.attention_shifts, *cache.feed_forward_shifts)]
    assert sum(t.numel() * t.element_size() for t in tensors) == 3 * bytes_per_candidate(config, torch.float32)


def test_layers_of_a_group_share_their_packed_weights():
    weights = DecoderWeights(tiny_dalle())
    assert weights.layers[0].to_qkv is not weights.layers[1].to_qkv
    config = config_of("odd head", "paper")  # six layers: row column row row row conv
    weights = DecoderWeights(tiny_dalle(0, config))
    assert weights.layers[0].to_qkv is weights.layers[4].to_qkv
    assert weights.layers[0].attention_norm is not weights.layers[4].attention_norm


def test_broken_weights_are_reported_before_painting():
    dalle = tiny_dalle()
    with torch.no_grad():
        dalle.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        prefill(DecoderWeights(dalle), torch.ones(1, dalle.config.text_seq_len, dtype=torch.long))
