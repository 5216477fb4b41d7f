"""Bad input is refused with a message that says what is allowed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from calculator import Architecture, CalculatorError, TrainingSetup, estimate
from calculator.devices import custom_gpu, find_device
from calculator.hf_config import from_hub, from_json
from calculator.hub import LARGEST_FILE

SIZES: dict[str, Any] = {
    "family": "gpt2", "hidden": 64, "layers": 2, "heads": 4, "feed_forward": 128, "vocabulary": 100, "positions": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be a whole number from 1"),
        ({"heads": 3}, "not divisible by 3 heads"),
        ({"hidden": -64}, "hidden must be"),
        ({"hidden": math.nan}, "hidden must be"),
        ({"hidden": 64.0}, "hidden must be"),
        ({"layers": True}, "layers must be"),
        ({"hidden": 10**9}, "to 10,000,000"),
        ({"family": "rnn"}, "family must be one of bert"),
        ({"groups": 3}, "at most the number of layers, 2"),
        ({"vocabulary": 0}, "vocabulary must be"),
        ({"activation": "swish2"}, "activation must be one of"),
        ({"key_value_heads": 3}, "key_value_heads"),
    ],
)
def test_invalid_dimensions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        Architecture(**{**SIZES, **changes})


@pytest.mark.parametrize(
    ("techniques", "message"),
    [
        ({"batch_size": -1}, "batch_size must be a whole number from 1"),
        ({"batch_size": math.nan}, "batch_size must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"sequence_length": 0}, "sequence_length must be"),
        ({"optimizer": "adagrad"}, "optimizer must be one of adam"),
        ({"precision": "fp8"}, "precision must be one of float32"),
        ({"bandwidth_mbit": math.nan}, "above 0"),
        ({"bandwidth_mbit": 0}, "above 0"),
        ({"zero_stage": 4}, "zero_stage must be"),
        ({"zero_stage": 1}, "set gpus"),
        ({"zero_stage": 1, "gpus": 2, "swarm": True}, "choose one"),
        ({"offload_optimizer": "zero-offload"}, "pure-fp16 or pure-bf16"),
        ({"offload_optimizer": "zero-offload", "precision": "pure-fp16", "optimizer": "lamb"}, "adam or adamw"),
        ({"offload_optimizer": True, "precision": "pure-bf16"}, "float32 or mixed"),
        ({"offload_optimizer": "disk"}, "offload_optimizer must be one of"),
        ({"optimizer": "lamb8bit-cpu"}, "set offload_optimizer"),
        ({"optimizer": "lamb8bit", "paged_optimizer": True}, "paged versions"),
        ({"embeddings_32bit": True}, "8-bit optimizers only"),
        ({"adapter": "qlora"}, "pure-bf16"),
        ({"adapter": "lora", "shared_groups": 2}, "turn off shared_groups"),
        ({"reuse_grad_buffers": True}, "set swarm"),
        ({"delayed_updates": True, "swarm": True}, "set swarm and offload_optimizer"),
        ({"reversible": True, "gradient_checkpointing": True}, "choose one"),
        ({"dropout": "yes"}, "dropout must be True or False"),
    ],
)
def test_invalid_setups(techniques: dict[str, Any], message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        TrainingSetup(**techniques)


@pytest.mark.parametrize(
    ("model", "techniques", "message"),
    [
        ("gpt5", {}, "presets: bert-base"),
        ("gpt2", {"shared_groups": 13}, "from 1 to the number of layers, 12"),
        ("gpt2", {"sequence_length": 1025}, "1024 positions"),
        ("gpt2", {"reversible": True}, "no reversible layers"),
        ("gpt2", {"target_length": 5}, "encoder-decoder"),
        ("gpt-j-6b", {"attention": "sdpa"}, "eager or auto"),
        ("ttt-dalle", {"gradient_checkpointing": True}, "set reversible to False"),
        ("ttt-dalle", {"sequence_length": 100}, "whole images"),
        ("ttt-dalle", {"adapter": "lora"}, "adapters"),
        ("ttt-dalle", {"tied_embeddings": False}, "no separate output layer"),
    ],
)
def test_techniques_that_a_model_does_not_support(model: str, techniques: dict[str, Any], message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        estimate(model, TrainingSetup(**techniques))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "not the JSON"),
        ("{}", "supported: bert"),
        ('{"model_type": "mamba"}', "'mamba' is not supported"),
        ('{"model_type": "gpt2", "n_embd": null}', "wrong type|hidden"),
        (
            '{"model_type": "gpt2", "n_embd": "x", "n_layer": 2, "n_head": 2, "vocab_size": 9, "n_positions": 9}',
            "hidden",
        ),
        (
            '{"model_type": "gpt2", "n_embd": NaN, "n_layer": 2, "n_head": 2, "vocab_size": 9, "n_positions": 9}',
            "hidden",
        ),
        ("x" * (LARGEST_FILE + 1), "at most 1,000,000 bytes"),
    ],
)
def test_hostile_configs(text: str, message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        from_json(text)


def test_a_config_is_read() -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}
    assert from_json(json.dumps(config)).hidden == 64


@pytest.mark.parametrize("repo", ["", "../../etc/passwd", "a b", "http://example.com/x", "a/b/c"])
def test_strings_that_are_not_hub_ids_are_never_downloaded(repo: str) -> None:
    with pytest.raises(CalculatorError, match="not a Hub model id"):
        from_hub(repo)


@pytest.mark.parametrize("name", ["RTX 3060", "rtx3060", "A100 80GB", "12", "12.5 GiB", "t4", "3090", "24 GB"])
def test_gpus_by_name_or_size(name: str) -> None:
    assert find_device(name).bytes > 0


NVIDIA_SMI = {
    "Tesla T4": "T4", "NVIDIA A100-SXM4-80GB": "A100 80GB", "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A100-PCIE-40GB": "A100 40GB", "Tesla V100-SXM2-16GB": "V100 16GB", "Tesla V100-SXM2-32GB": "V100 32GB",
    "Tesla P100-PCIE-16GB": "P100", "NVIDIA GeForce RTX 3090": "RTX 3090", "NVIDIA GeForce RTX 3080 Ti": "RTX 3080 Ti",
    "NVIDIA GeForce GTX 1080 Ti": "GTX 1080 Ti", "NVIDIA A10G": "A10G", "NVIDIA A10": "A10", "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S", "NVIDIA RTX A6000": "RTX A6000", "NVIDIA RTX A5000": "RTX A5000",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada", "Quadro RTX 8000": "Quadro RTX 8000",
    "NVIDIA H100 80GB HBM3": "H100", "NVIDIA H100 PCIe": "H100", "NVIDIA H100 NVL": "H100 NVL", "NVIDIA H200": "H200",
    "NVIDIA B200": "B200", "NVIDIA GH200 480GB": "GH200", "AMD Instinct MI300X": "MI300X",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "RTX 4090 Laptop", "NVIDIA GeForce RTX 4070 Ti SUPER": "RTX 4070 Ti SUPER",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000 Blackwell",
}  # fmt: skip


@pytest.mark.parametrize("name", NVIDIA_SMI)
def test_gpus_as_nvidia_smi_prints_them(name: str) -> None:
    assert find_device(name).name == NVIDIA_SMI[name]


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4060 Ti", "NVIDIA GeForce RTX 5060 Ti", "A100", "Tesla V100"])
def test_a_gpu_sold_with_several_sizes_is_a_question(name: str) -> None:
    with pytest.raises(CalculatorError, match="different memory sizes: choose .*(8|16|40)GB or"):
        find_device(name)


def test_a_size_in_gb_is_that_of_the_smallest_card_sold_with_it() -> None:
    assert find_device("24 GB").gib == 22.0  # A10 and L4 report less than an RTX 3090
    assert find_device("24 GiB").gib == 24.0
    assert find_device("24564MiB").gib == pytest.approx(23.99, abs=0.01)


@pytest.mark.parametrize("name", ["", "RTX 1", "-3", "nan", "1e99", "8x A100", "2x3090", "Tesla K80"])
def test_unknown_gpus_are_refused_with_a_list(name: str) -> None:
    with pytest.raises(CalculatorError, match="known|name one GPU"):
        find_device(name)


def test_the_memory_of_a_custom_gpu_is_a_number() -> None:
    with pytest.raises(CalculatorError, match="above 0"):
        custom_gpu(math.nan)
