"""Logits, loss and gradients equal those recorded from dalle-pytorch 1.6.6 (tests/goldens/record.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.goldens.weights import CASES, FORMATS, inputs, names, parts, state
from ttt.checkpoint import load_dalle, load_state
from ttt.config import DalleConfig
from ttt.model.dalle import Dalle

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "reference.npz")
TOLERANCE = 3e-5
"""The promise is 1e-4; these sizes come closer."""


def golden(case: str, key: str) -> Tensor:
    return torch.from_numpy(GOLDENS[f"{case}.{key}"])


def config_of(case: str, **changes: Any) -> DalleConfig:
    return replace(DalleConfig(**CASES[case]), **changes)


def published(case: str, form: str = "inference") -> dict[str, Tensor]:
    weights = {name: torch.from_numpy(value) for name, value in state(CASES[case], form).items()}
    return weights | {"transformer.pos_emb": golden(case, "pos_emb")}


def tokens(case: str) -> tuple[Tensor, Tensor]:
    text, codes = inputs(CASES[case])
    return torch.from_numpy(text), torch.from_numpy(codes)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_logits_of_partial_images(case: str, form: str, prefix: str, tmp_path: Path) -> None:
    torch.save({prefix + name: tensor for name, tensor in published(case, form).items()}, tmp_path / "model.pt")
    dalle = load_dalle(tmp_path / "model.pt", config_of(case))
    text, codes = tokens(case)
    for m in parts(CASES[case]):
        with torch.no_grad():
            logits = dalle(text, codes[:, :m])
        expected = golden(case, f"logits.{m}")
        assert expected[expected > -1e30].abs().max() > 1
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_loss(case: str, reversible: bool) -> None:
    dalle = load_state(Dalle(config_of(case, reversible=reversible)), published(case))
    torch.testing.assert_close(dalle.loss(*tokens(case)), golden(case, "loss"), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("reversible", [True, False])
def test_gradients(reversible: bool) -> None:
    dalle = load_state(Dalle(config_of("small", reversible=reversible)), published("small"))
    dalle.loss(*tokens("small")).backward()
    recorded = {name: golden("small", f"gradient.{shared}") for name, shared, _ in names(CASES["small"], "inference")}
    recorded["transformer.pos_emb"] = golden("small", "pos_emb")
    expected = dict(load_state(Dalle(config_of("small")), recorded).named_parameters())
    for name, parameter in dalle.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].detach(), atol=TOLERANCE, rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_new_model_has_the_same_angles(case: str) -> None:
    torch.testing.assert_close(
        Dalle(config_of(case)).transformer.pos_emb, golden(case, "pos_emb"), atol=1e-6, rtol=1e-6
    )


def test_without_an_image_equals_an_empty_image() -> None:
    dalle = load_state(Dalle(config_of("small")), published("small"))
    text, codes = tokens("small")
    assert torch.equal(dalle(text), dalle(text, codes[:, :0]))
