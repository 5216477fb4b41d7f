"""The reversible execution is the plain one, with memory that does not grow with depth."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ttt.config import DalleConfig
from ttt.model.dalle import Dalle

CONFIG = DalleConfig(
    dim=32, depth=6, heads=2, dim_head=16, text_seq_len=6, image_fmap_size=4, num_text_tokens=20, num_image_tokens=12
)


def twins(config: DalleConfig = CONFIG) -> tuple[Dalle, Dalle]:
    """A reversible and a plain model of the same weights."""
    torch.manual_seed(0)
    reversible, plain = Dalle(config), Dalle(replace(config, reversible=False))
    with torch.no_grad():
        for name, parameter in reversible.named_parameters():
            if name.endswith("scale"):
                parameter.normal_(std=0.5)
    plain.load_state_dict(reversible.state_dict())
    return reversible, plain


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(20, (3, 6), generator=g), torch.randint(12, (3, 16), generator=g)


def assert_same_gradients(a: Dalle, b: Dalle, *, atol: float = 1e-6) -> None:
    others = dict(b.named_parameters())
    for name, parameter in a.named_parameters():
        expected = others[name].grad
        assert parameter.grad is not None, name
        assert expected is not None, name
        torch.testing.assert_close(parameter.grad, expected, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize("depth", [1, 6])
def test_same_loss_and_gradients(depth: int, share_layers: bool) -> None:
    reversible, plain = twins(replace(CONFIG, depth=depth, share_layers=share_layers))
    losses = [dalle.loss(*batch()) for dalle in (reversible, plain)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert_same_gradients(reversible, plain)


def test_gradients_accumulate() -> None:
    reversible, plain = twins()
    for seed in (1, 2, 3):
        for dalle in (reversible, plain):
            dalle.loss(*batch(seed)).backward()
    assert_same_gradients(reversible, plain)


def test_gradients_can_be_asked_for() -> None:
    reversible, plain = twins()
    found = torch.autograd.grad(reversible.loss(*batch()), list(reversible.parameters()))
    expected = torch.autograd.grad(plain.loss(*batch()), list(plain.parameters()))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in reversible.parameters())


def test_frozen_parameters_get_none() -> None:
    reversible, plain = twins()
    for dalle in (reversible, plain):
        dalle.transformer.attentions.requires_grad_(False)
        dalle.to_logits.requires_grad_(False)
        dalle.loss(*batch()).backward()
    assert all(parameter.grad is None for parameter in reversible.transformer.attentions.parameters())
    for a, b in zip(reversible.transformer.layers.parameters(), plain.transformer.layers.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside: bool) -> None:
    """The backward pass computes again in the precision of the forward one, whether autocast is still on or not."""
    reversible, plain = twins()
    for dalle in (reversible, plain):
        with torch.autocast("cpu", torch.bfloat16) as autocast:
            loss = dalle.loss(*batch())
            if inside:
                loss.backward()
        del autocast
        if not inside:
            loss.backward()
    assert all(parameter.grad is not None for parameter in reversible.parameters())
    for (name, a), b in zip(reversible.named_parameters(), plain.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.nn.functional.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0) > 0.99, name


def test_autocast_keeps_the_streams_in_float32() -> None:
    reversible, _ = twins()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert reversible.transformer(torch.randn(1, 9, 32)).dtype == torch.float32


def saved_bytes(config: DalleConfig) -> int:
    """Bytes kept for the backward pass, parameters aside."""
    dalle = Dalle(config)
    own = {parameter.untyped_storage().data_ptr() for parameter in dalle.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = dalle.loss(*batch())
    del loss
    return sum(saved.values())


def test_memory_is_independent_of_depth() -> None:
    shallow, deep = (saved_bytes(replace(CONFIG, depth=depth)) for depth in (2, 16))
    assert 0 < deep <= shallow * 1.01
    plain_shallow, plain_deep = (saved_bytes(replace(CONFIG, depth=depth, reversible=False)) for depth in (2, 16))
    assert plain_deep > 4 * plain_shallow
    assert plain_deep > 10 * deep


def test_nothing_is_kept_without_gradients() -> None:
    reversible, plain = twins()
    with torch.inference_mode():
        first = reversible(*batch())
    with torch.no_grad():
        assert torch.equal(first, plain(*batch()))
    with nullcontext():
        reversible.loss(*batch()).backward()  # what inference mode has cached does not disturb training
    assert reversible.to_logits.weight.grad is not None
