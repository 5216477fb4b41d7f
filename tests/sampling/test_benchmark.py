"""The benchmark of sampling counts what there is and times real steps, without saying how long they should take."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import sampling
from benchmarks.sampling_floor import bytes_moved
from benchmarks.sampling_steps import Steps
from tests.support.tiny import TINY_DALLE, tiny_dalle
from ttt.errors import TTTError
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "float8"], "allowed: 'auto', 'float32'"),
        (["--device", "xyz"], "cannot be used here"),
        (["--rounds", "0"], "not a whole number from 1"),
        (["--steps", "-2"], "not a whole number from 1"),
        (["--batches", "4", "0"], "not a whole number from 1"),
        (["--reference-batches", "x"], "not a whole number from 1"),
        (["--end-to-end", "--candidates", "2000"], "from 1 to 1024"),
        pytest.param(
            ["--gpu"], "cannot be used here", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")
        ),
    ],
)
def test_a_bad_option_is_told_before_anything_is_measured(options, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.sampling", *options])
    with pytest.raises(SystemExit) as ended:
        sampling.main()
    out, error = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and said in error


def test_what_was_measured_is_told_though_the_rest_fails(monkeypatch, capsys):
    def failing(options, report):
        report["steps"] = [{"batch": 1}]
        raise TTTError("there is not enough memory")

    monkeypatch.setattr(sys, "argv", ["benchmarks.sampling"])
    monkeypatch.setattr(sampling, "bandwidth", lambda device: 1e9)
    monkeypatch.setattr(sampling, "_measure", failing)
    with pytest.raises(SystemExit):
        sampling.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["steps"] == [{"batch": 1}] and "not enough memory" in report["error"]
