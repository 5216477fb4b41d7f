"""The command line: exit codes and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calculator.__main__ import main
from calculator.advice import cheapest, largest_batch, longest_sequence
from calculator.devices import find_device, verdict
from calculator.memory import estimate
from calculator.setup import TrainingSetup


def test_the_exit_code_shows_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    techniques = ["--optimizer", "adam8bit", "--gradient-checkpointing"]
    assert main(["gpt2-large", *techniques, "--fits", "RTX 3060"]) == 0
    assert main(["gpt2-large", "--batch-size", "4", "--fits", "RTX 3060"]) == 1
    shown = capsys.readouterr().out
    assert "RTX 3060 (11.8 GiB): fits" in shown
    assert "does not fit" in shown
    assert "gradient checkpointing" in shown


def test_json_is_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpt2", "--json", "--offload-optimizer", "--fits", "24"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["parameter_count"] == 124_439_808
    assert answer["ram_total"] == 16 * 124_439_808
    assert answer["verdict"] == "fits"
    assert answer["largest_batch"] >= 1
    assert answer["longest_sequence"] == 1024


@pytest.mark.parametrize(
    "arguments",
    [
        ["gpt9"],
        ["openai-community/gpt2"],
        ["bert-base-cased"],
        ["gpt2", "--batch-size", "0"],
        ["gpt2", "--fits", "toaster"],
        ["x.json"],
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_config_file_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"]["hidden"] == 64


def test_a_family_with_its_dimensions_is_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", "vit", "--hidden", "384", "--heads", "6", "--feed-forward", "1536", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"]["hidden"] == 384
    assert main(["--family", "rnn"]) == 2
    assert main(["--hidden", "384"]) == 2
    assert main(["--family", "gpt2", "--heads", "7"]) == 2
    assert "dimensions need a family" in capsys.readouterr().err


def test_the_largest_sizes_fit_and_the_next_larger_ones_do_not() -> None:
    device, setup = find_device("T4"), TrainingSetup(optimizer="adam8bit")
    b = largest_batch("gpt2", setup, device)
    assert verdict(estimate("gpt2", TrainingSetup(optimizer="adam8bit", batch_size=b)), device) != "does not fit"
    assert verdict(estimate("gpt2", TrainingSetup(optimizer="adam8bit", batch_size=b + 1)), device) == "does not fit"
    assert longest_sequence("gpt2", setup, device) == 1024  # the model's positions
    assert largest_batch("gpt3-175b", setup, device) == 0


def test_advice_fits_and_the_fastest_comes_first() -> None:
    device, setup = find_device("RTX 3060"), TrainingSetup(batch_size=8)
    found = cheapest("gpt2-large", setup, device)
    assert found
    assert [a.time for a in found] == sorted(a.time for a in found)
    for advice in found:
        assert verdict(estimate("gpt2-large", advice.setup), device) == advice.verdict != "does not fit"


def test_advice_changes_the_setup_and_uses_a_precision_that_the_gpu_supports() -> None:
    for name, precision in (("T4", "fp16"), ("RTX 3060", "bf16")):
        found = cheapest("gpt2-large", TrainingSetup(batch_size=8), find_device(name))
        words = {word for advice in found for word in advice.changes}
        assert f"mixed precision ({precision})" in words
        assert words & {"mixed precision (fp16)", "mixed precision (bf16)"} == {f"mixed precision ({precision})"}
        assert "sdpa attention" not in words  # "auto" is sdpa already
    eager = cheapest("gpt2", TrainingSetup(batch_size=16, attention="eager"), find_device("12"))
    assert any("sdpa attention" in advice.changes for advice in eager)


@pytest.mark.parametrize(
    "name",
    ["T4", "V100 16GB", "V100 32GB", "P100", "RTX 3060", "RTX 3090", "RTX 4090", "RTX 5090", "L4", "A10G", "A100 40GB",
     "A100 80GB", "H100", "H200", "B200", "Apple 64GB"],
)  # fmt: skip
def test_every_listed_gpu_has_a_verdict(name: str) -> None:
    device = find_device(name)
    assert verdict(estimate("bert-base"), device) == "fits"
    assert verdict(estimate("gpt3-175b"), device) == "does not fit"
