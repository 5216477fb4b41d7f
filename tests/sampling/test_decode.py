"""The caches of sampling: which keys they show and how much memory they take; and the packed weights."""

from __future__ import annotations

import pytest
import torch

from tests.sampling.oracle import cached_logits, config_of, plain_logits, request, static_logits
from tests.support.tiny import tiny_dalle
from ttt.config import DEMO, PAPER
from ttt.errors import Cancelled, CheckpointError
from ttt.model.dalle import Dalle
from ttt.sampling.cache import Cache, bytes_per_candidate, slot_mask
from ttt.sampling.decode import prefill
from ttt.sampling.weights import DecoderWeights


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


def test_a_loaded_angle_table_may_rotate_the_channels_of_a_pair_differently():
    dalle = tiny_dalle(3)
    text, codes = request(dalle.config, 2)
    dalle.transformer.pos_emb[..., ::2] *= -1
    expected = plain_logits(dalle, text, codes)
    for logits in (cached_logits, static_logits):
        torch.testing.assert_close(logits(dalle, text, codes), expected, atol=1e-4, rtol=0)


def test_the_ring_of_the_convolution_shows_the_corner_above_and_to_the_left():
    config = config_of("tiny", "conv", conv_kernel=3)  # 4 x 4 codes, a ring of 3 rows
    hidden_slots = slot_mask("conv", config).view(4, 4, 3, 4)

    def drawn(row: int, column: int) -> list[str]:
        return ["".join(".x"[int(not hidden)] for hidden in line) for line in hidden_slots[row, column].tolist()]

    assert drawn(0, 0) == ["x...", "....", "...."]
    assert drawn(1, 2) == ["xxx.", "xxx.", "...."]
    assert drawn(2, 3) == [".xxx", ".xxx", ".xxx"]
    assert drawn(3, 1) == ["xx..", "xx..", "xx.."], "row 3 has taken the place of row 0"


def test_candidates_do_not_influence_each_other():
    """Bitwise: logits of a candidate do not depend on which others are computed beside it."""
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


def test_broken_weights_are_reported_before_sampling():
    dalle = tiny_dalle()
    with torch.no_grad():
        dalle.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        prefill(DecoderWeights(dalle), torch.ones(1, dalle.config.text_seq_len, dtype=torch.long))


def test_prefill_can_be_stopped_before_every_layer():
    weights, calls = DecoderWeights(tiny_dalle()), list[int]()
    text = torch.ones(1, weights.config.text_seq_len, dtype=torch.long)
    prefill(weights, text, check=lambda: calls.append(len(calls)))
    assert len(calls) == weights.config.depth

    def stop() -> None:
        calls.append(0)
        raise Cancelled("stopped on request")

    calls.clear()
    with pytest.raises(Cancelled):
        prefill(weights, text, check=stop)
    assert len(calls) == 1
