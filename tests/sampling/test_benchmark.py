"""The benchmark of sampling: it counts bytes and times real steps; no test depends on how long these take."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.sampling import __main__ as sampling
from benchmarks.sampling import steps as sampling_steps
from benchmarks.sampling.floor import bandwidth, bytes_moved, products_alone
from benchmarks.sampling.steps import Steps
from tests.support.tiny import TINY_DALLE, tiny_dalle
from ttt.errors import TTTError
from ttt.sampling.decode import decode_one_code, prefill
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


def model_and_prompt():
    weights = DecoderWeights(tiny_dalle())
    with torch.inference_mode():
        return weights, prefill(weights, torch.ones(1, TINY_DALLE.text_seq_len, dtype=torch.long))


def test_a_row_of_the_table_comes_from_real_steps():
    steps = Steps(*model_and_prompt(), 5)
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
def test_a_bad_option_is_reported_before_anything_is_measured(options, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.sampling", *options])
    with pytest.raises(SystemExit) as ended:
        sampling.main()
    out, error = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and said in error


def test_measurements_are_reported_even_if_a_later_one_fails(monkeypatch, capsys):
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


@pytest.mark.parametrize("candidates", [1, 5])
def test_a_batch_that_does_not_fit_has_no_times(candidates, monkeypatch):
    def crowded(weights, cache, codes, position):
        if cache.b > 2 or candidates == 1:
            raise MemoryError
        return torch.zeros(len(codes), weights.config.num_image_tokens)

    monkeypatch.setattr(sampling_steps, "decode_one_code", crowded)
    monkeypatch.setattr(sampling_steps, "MIN_ROWS", 1)
    steps = Steps(*model_and_prompt(), candidates)
    steps.run(1)
    assert steps.row() == {"batch": candidates, "fits": False}


def test_the_table_continues_after_a_batch_that_does_not_fit(monkeypatch, capsys):
    def crowded(weights, cache, codes, position):
        if len(codes) > 4:
            raise MemoryError
        return decode_one_code(weights, cache, codes, position)

    monkeypatch.setattr(sampling_steps, "decode_one_code", crowded)
    monkeypatch.setattr(sys, "argv", ["benchmarks.sampling", "--batches", "40", "4", "--steps", "1", "--rounds", "1"])
    rows = list(sampling._steps(*model_and_prompt(), sampling._options(), None, 1e9))
    assert rows[0] == {"batch": 40, "fits": False} and rows[1]["bytes_ratio"] == rows[1]["step_s"] / rows[1]["bytes_s"]
    assert "batch 40 does not fit" in capsys.readouterr().out
    best = sampling._best([rows[0], rows[1] | {"reference_s": 2 * rows[1]["step_s"]}])
    assert best["times_faster"] == pytest.approx(2)


def test_processor_time_is_reported_only_for_steps():
    steps = Steps(*model_and_prompt(), 12)
    before = torch.get_num_threads()
    try:
        for cores, threads, known in ((1, 1, True), (3, 3, True), (7, 3, False)):
            torch.set_num_threads(cores)
            steps.run(1)
            assert steps.threads == threads and ("ratio_cpu" in steps.row()) is known
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process can be reset on Linux")
def test_measuring_the_bandwidth_takes_no_memory_of_this_process():
    def megabytes(name):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    assert bandwidth(torch.device("cpu")) > 0
    assert megabytes("VmHWM") - before < 100, "the tensor that is read has 512"


def test_products_of_a_prompt_have_logits_of_one_row(monkeypatch):
    weights, rows = DecoderWeights(tiny_dalle()), []
    for linear in (weights.to_logits, weights.layers[0].up):
        monkeypatch.setattr(type(linear), "__call__", lambda self, x: rows.append((self, len(x))))
    products_alone(weights, TINY_DALLE.text_len, logit_rows=1)
    assert rows[-1] == (weights.to_logits, 1) and {n for _, n in rows[:-1]} == {TINY_DALLE.text_len}
