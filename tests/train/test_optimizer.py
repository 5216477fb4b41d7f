"""LAMB against its formula, and the size of its 8-bit state against the calculator."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calculator import Architecture, TrainingSetup, estimate
from tests.support.lamb import LARGE, Oracle, distance, give_gradients, parameters, same
from tests.support.tiny import TINY_DALLE, tiny_dalle
from ttt.config import DalleConfig
from ttt.model.dalle import Dalle
from ttt.train import moments, optimizer
from ttt.train.optimizer import Lamb, parameter_groups


@pytest.mark.parametrize("debias", [False, True])
def test_with_32_bits_it_is_the_formula(debias: bool) -> None:
    params = parameters(LARGE, (300,), (), (0, 4), (3, 5, 7))
    ours, oracle = Lamb(params, state_bits=32, bias_correction=debias), Oracle(params, debias=debias)
    for i in range(10):
        oracle.step(give_gradients(params, i))
        ours.step()
    for p, reference in zip(params, oracle.params, strict=True):
        torch.testing.assert_close(p.detach(), reference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("seen", "bound"), [(1.0, 0.06), (0.05, 0.12)])
def test_with_8_bits_it_stays_within_the_quantization_error(seen: float, bound: float) -> None:
    """Every row has a gradient, or one in twenty as in an embedding; with squares of 0 the error would be 105 %."""
    params = parameters(LARGE, (300, 300), (300,))
    start = [p.detach().clone() for p in params]
    ours, oracle = Lamb(params), Oracle(params)
    errors = {}
    for i in range(1, 101):
        gradients = give_gradients(params, i)
        for g in gradients[:2]:
            g *= torch.rand(g.shape[0], 1, generator=torch.Generator().manual_seed(i)) < seen
        oracle.step(gradients)
        ours.step()
        errors[i] = distance(params, oracle, start)
    assert errors[20] < bound and errors[100] < bound


def test_a_small_model_learns_equally_with_8_and_32_bits() -> None:
    config = DalleConfig(
        dim=64, depth=5, heads=2, dim_head=32, text_seq_len=8, image_fmap_size=4, num_text_tokens=1200,
        num_image_tokens=32,
    )  # fmt: skip
    torch.manual_seed(0)
    text, codes = torch.randint(1, 1200, (4, 8)), torch.randint(0, 32, (4, 16))
    curves = []
    for bits in (8, 32):
        torch.manual_seed(1)
        model = Dalle(config)
        ours = Lamb(parameter_groups(model, 0.045), lr=1e-2, state_bits=bits)  # type: ignore[arg-type]
        assert any(t.dtype == torch.uint8 for s in ours.state.values() for t in s.values()) == (bits == 8)
        curve = []
        for _ in range(100):
            ours.zero_grad()
            loss = model.loss(text, codes)
            loss.backward()
            ours.step()
            curve.append(float(loss.detach()))
        curves.append(torch.tensor(curve))
    eight, full = curves
    assert full[-1] < 0.5 * full[0]
    assert (eight - full).abs().max() < 0.03 * full[0]


def test_the_size_of_the_pieces_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for cached, piece in ((2**20, 2**24), (4096, 8192)):
        monkeypatch.setattr(optimizer, "CACHED", cached)
        monkeypatch.setattr(optimizer, "PIECE", piece)
        params = parameters((66_001,), (257, 300))
        ours = Lamb(params)
        for i in range(3):
            give_gradients(params, i)
            ours.step()
        results.append((params, ours.state_dict()["state"]))
    (whole, state), (pieces, state_of_pieces) = results
    for number, tensors in state.items():
        assert all(torch.equal(t, state_of_pieces[number][name]) for name, t in tensors.items())
    for p, q in zip(whole, pieces, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bits", [8, 32])
def test_the_trust_ratio_is_real(bits: Any) -> None:
    """Weights 100 times as large take steps 100 times as large, until the clamp."""
    moved = []
    for scale, clamp in ((0.02, 1e4), (2.0, 1e4), (2.0, 1.0)):
        params = parameters(LARGE, scale=scale)
        before = params[0].detach().clone()
        ours = Lamb(params, state_bits=bits, weight_decay=0.0, clamp_value=clamp)
        give_gradients(params, 0)
        ours.step()
        moved.append(float((params[0].detach() - before).norm()))
        assert moved[-1] == pytest.approx(2.5e-3 * min(float(before.norm()), clamp), rel=1e-2)
    assert moved[1] == pytest.approx(100 * moved[0], rel=1e-3)


def test_weights_of_zero_can_change() -> None:
    p = nn.Parameter(torch.zeros(5))
    p.grad = torch.ones(5)
    Lamb([p], state_bits=32, max_grad_norm=None).step()
    torch.testing.assert_close(p.detach(), torch.full((5,), -2.5e-3 * 0.1 / (0.2 + 1e-6)))


def test_gradients_are_clipped_together_and_not_changed() -> None:
    params = parameters((50,), (70,))
    given = [g.clone() for g in give_gradients(params, 0, scale=1e3)]
    ours = Lamb([{"params": params[:1]}, {"params": params[1:]}], state_bits=32)
    ours.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, given, strict=True) if p.grad is not None)
    norm = torch.cat(given).norm()
    for p, g in zip(params, given, strict=True):
        torch.testing.assert_close(ours.state[p]["exp_avg"], 0.1 * g * 4 / norm, rtol=1e-5, atol=0.0)


def test_biases_norms_and_scales_do_not_decay_and_shared_weights_count_once() -> None:
    model = tiny_dalle()
    matrices, others = parameter_groups(model, 0.045)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.045, 0.0)
    names = {p: name for name, p in model.named_parameters()}
    assert {names[p] for p in others["params"]} == {
        n for n in names.values() if n.endswith(("bias", "scale")) or "norm" in n
    }
    assert sorted(names[p] for g in (matrices, others) for p in g["params"]) == sorted(names.values())
    tied = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    tied[1].weight = tied[0].weight  # type: ignore[assignment]
    (group,) = parameter_groups(tied, 0.1)
    assert len(group["params"]) == 1
    tied[0].weight.requires_grad_(False)
    assert parameter_groups(tied, 0.1) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_gradients_that_are_not_finite_changes_nothing(bad: float) -> None:
    params = parameters(LARGE, (9,))
    ours = Lamb(params)
    give_gradients(params, 0)
    ours.step()
    before = copy.deepcopy((ours.state_dict(), [p.detach() for p in params]))
    assert params[1].grad is not None
    params[1].grad[3] = bad
    ours.step()
    assert ours.skipped == 1
    state, weights = before
    assert same(state, ours.state_dict())
    assert all(torch.equal(p.detach(), w) for p, w in zip(params, weights, strict=True))
    give_gradients(params, 1)
    ours.step()
    assert ours.skipped == 1 and not torch.equal(params[0].detach(), weights[0])


@pytest.mark.parametrize("dim", [16, 64, 256])
def test_state_has_the_bytes_of_the_calculator(dim: int) -> None:
    config = DalleConfig(**{**TINY_DALLE.to_dict(), "dim": dim, "num_text_tokens": 1000})
    with torch.device("meta"):
        shapes = [p.shape for p in Dalle(config).parameters()]
    ours = Lamb([nn.Parameter(torch.zeros(shape)) for shape in shapes])
    architecture = Architecture(
        family="dalle", hidden=dim, layers=5, heads=2, head_size=8, feed_forward=4 * dim, groups=5,
        vocabulary=config.total_tokens, image_vocabulary=config.num_image_tokens, positions=config.seq_len,
        text_positions=config.text_seq_len, reversible=True,
    )  # fmt: skip
    setup = TrainingSetup(optimizer="lamb8bit-cpu", offload_optimizer=True)
    assert estimate(architecture, setup).optimizer == ours.state_bytes()


@settings(max_examples=30)
@given(
    shape=st.sampled_from(
        [
            (),
            (0,),
            (3, 0),
            (1,),
            (4095,),
            (4096,),
            (4097,),
            (65_535,),
            (65_536,),
            (65_537,),
            (69_632,),
            (16, 4096),
            (2, 3),
        ]
    )
    | st.lists(st.integers(0, 60), max_size=3).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    transposed=st.booleans(),
)
def test_any_shape_type_and_layout(shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    """Two steps are those of a contiguous float32 oracle, rounded to the parameter's type."""
    (p,) = parameters(shape, dtype=dtype)
    if transposed:
        p = nn.Parameter(p.detach().permute(tuple(reversed(range(p.dim())))))
    start = p.detach().clone()
    ours, oracle = Lamb([p], lr=0.1), Oracle([p])
    blocks = -(-p.numel() // 4096)
    assert ours.state_bytes() == (2 * p.numel() + 8 * blocks if p.numel() >= 65_536 else 8 * p.numel())
    for i in range(2):
        oracle.step(give_gradients([p], i), lr=0.1)
        ours.step()
    if p.numel():
        exact = dtype != torch.bfloat16 and p.numel() < 65_536
        assert distance([p], oracle, [start]) < (1e-5 if exact else 0.05)


@given(st.integers(0, 2**31), st.integers(1, 20_000), st.sampled_from([1e-30, 1.0, 1e20]), st.integers(0, 4))
@settings(max_examples=30)
def test_quantization_takes_the_nearest_code(seed: int, n: int, scale: float, spread: int) -> None:
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    values = values * (torch.randn(n, generator=torch.Generator().manual_seed(seed + 1)) * spread).exp()
    for name, moment in (("exp_avg", values * scale), ("exp_avg_sq", values.square())):
        blocks = -(-n // 4096)
        state = {f"{name}_codes": torch.zeros(n, dtype=torch.uint8), f"{name}_scales": torch.zeros(blocks)}
        moments.store(state, name, slice(0, n), moment.clone())  # type: ignore[arg-type]
        back = moments.decayed(state, name, slice(0, n), 1.0)  # type: ignore[arg-type]
        largest = torch.stack([block.abs().max() for block in moment.split(4096)])
        assert torch.equal(state[f"{name}_scales"], largest)
        code = moments._code(name, moment.device)  # type: ignore[arg-type]
        exact = (moment / largest.repeat_interleave(4096)[:n]).double()
        allowed = code if name == "exp_avg" else code[1:]  # a square never becomes 0
        best = (exact[:, None] - allowed.double()).abs().amin(1)
        error = (back / largest.repeat_interleave(4096)[:n] - exact).abs()
        assert (error <= best + 2e-3 * exact.abs() + 1e-7).all()
