"""The benchmark of sampling counts what there is and times real steps, without saying how long they should take."""

from __future__ import annotations

import pytest
import torch

from benchmarks.sampling_floor import bytes_moved
from benchmarks.sampling_steps import Steps
from tests.support.tiny import TINY_DALLE, tiny_dalle
from ttt.sampling.decode import prefill
from ttt.sampling.weights import DecoderWeights


def test_bytes_of_a_step_are_weights_prompt_and_one_group_of_keys_a_candidate():
    config = TINY_DALLE  # row column row row conv, 4 x 4 codes, a window of 4
    weights = DecoderWeights(tiny_dalle(), pack=False)
    with torch.inference_mode():
        prompt = prefill(weights, torch.ones(1, config.text_seq_len, dtype=torch.long))
    layer = 4 * 16 * 16 + 3 * 16 * 64
    shared = 5 * layer + config.num_image_tokens * 16 + 5 * 2 * config.text_len * 16
    own = (4 * 4 + 16) * 2 * 16
    assert bytes_moved(weights, prompt, 3) == 4 * (shared + 3 * own)


def test_a_row_of_the_table_comes_from_real_steps():
    weights = DecoderWeights(tiny_dalle())
    with torch.inference_mode():
        prompt = prefill(weights, torch.ones(1, TINY_DALLE.text_seq_len, dtype=torch.long))
    steps = Steps(weights, prompt, 5)
    steps.run(3)
    steps.run(3)
    assert len(steps.times.step) == len(steps.times.floor) == 6, "of one thread, that of the first step left out"
    row = steps.row()
    assert row["ratio"] == row["step_s"] / row["floor_s"] > 0
    assert row["candidates_s"] * row["step_s"] * TINY_DALLE.image_seq_len == pytest.approx(5, rel=1e-12)
