"""Loss and gradients: micro-batches, reversible layers and 16 bits against the plain way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.tiny import TINY_DALLE, tiny_dalle
from ttt.config import DEMO
from ttt.errors import InvalidInput
from ttt.hardware import choose_training_dtype
from ttt.model.dalle import Dalle
from ttt.train.step import TrainingStep, split
from ttt.types import Batch


def batch(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    config = TINY_DALLE
    return Batch(
        torch.randint(config.num_text_tokens, (size, config.text_seq_len), generator=generator),
        torch.randint(config.num_image_tokens, (size, config.image_seq_len), generator=generator),
    )


def gradients(model: Dalle) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def plain(size: int) -> tuple[float, torch.Tensor]:
    """The oracle: one forward and backward of everything, float32, activations remembered."""
    model = tiny_dalle(config=replace(TINY_DALLE, reversible=False))
    data = batch(size)
    loss = model.loss(data.text, data.codes)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("reversible", [True, False])
def test_micro_batches_of_any_size_give_the_gradient_of_the_whole_batch(micro: int, reversible: bool) -> None:
    model = tiny_dalle(config=replace(TINY_DALLE, reversible=reversible))
    loss = TrainingStep(model, precision="float32").accumulate(batch(7), micro)
    expected_loss, expected = plain(7)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert torch.allclose(gradients(model), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("reversible", [True, False])
def test_bfloat16_gives_nearly_the_same_gradient_in_float32(reversible: bool) -> None:
    model = tiny_dalle(config=replace(TINY_DALLE, reversible=reversible))
    loss = TrainingStep(model, precision="bfloat16").accumulate(batch(7), 4)
    expected_loss, expected = plain(7)
    assert loss == pytest.approx(expected_loss, rel=0.02)
    found = gradients(model)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99
    assert found.norm() == pytest.approx(expected.norm().item(), rel=0.05)


def scaled(model: Dalle, scale: float) -> TrainingStep:
    """What float16 does on a GPU, with arithmetic that a CPU has."""
    step = TrainingStep(model, precision="float32")
    step.scale = scale
    step.backward = lambda data, share=1.0: (loss := step.loss(data), step._backward_scaled(loss * share))[0].item()  # type: ignore[method-assign]
    return step


def test_a_scaled_loss_gives_unscaled_gradients_that_add_up() -> None:
    model = tiny_dalle()
    step = scaled(model, 2.0**10)
    step.accumulate(batch(7), 2)
    _, expected = plain(7)
    assert torch.allclose(gradients(model), expected, atol=1e-5 * float(expected.abs().max()))
    assert step.overflows == 0


def test_an_overflow_adds_nothing_and_lowers_the_scale() -> None:
    model = tiny_dalle()
    step = scaled(model, 2.0**10)
    step.backward(batch(3))
    before = gradients(model).clone()
    step.scale = 1e38 * 10
    step.backward(batch(3, seed=1))
    assert step.overflows == 1 and step.scale < 1e39
    assert torch.equal(gradients(model), before)


def test_pieces_of_a_batch_are_the_batch() -> None:
    data = batch(7)
    parts = list(split(data, 3))
    assert [len(p.text) for p in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([p.codes for p in parts]), data.codes)
    with pytest.raises(InvalidInput, match="at least 1"):
        list(split(data, 0))


@pytest.mark.parametrize(("name", "message"), [("float64", "unknown; allowed: 'auto'"), ("float16", "needs a GPU")])
def test_an_impossible_precision_is_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        choose_training_dtype(name, torch.device("cpu"))


def test_activations_of_reversible_layers_do_not_grow_with_depth() -> None:
    """Counted from what autograd saves for the backward pass."""
    sizes = {}
    for reversible in (True, False):
        for depth in (3, 9):
            model = Dalle(replace(DEMO, depth=depth, reversible=reversible))
            step = TrainingStep(model, precision="float32")
            saved: dict[int, int] = {}

            def keep(x: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
                if not isinstance(x, torch.nn.Parameter):
                    saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            text = torch.randint(DEMO.num_text_tokens, (2, DEMO.text_seq_len))
            codes = torch.randint(DEMO.num_image_tokens, (2, DEMO.image_seq_len))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                step.loss(Batch(text, codes))
            sizes[reversible, depth] = sum(saved.values())
    assert sizes[True, 9] == pytest.approx(sizes[True, 3], rel=0.02)
    assert sizes[False, 9] > 2 * sizes[False, 3]
