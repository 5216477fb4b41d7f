"""Loss and gradients: micro-batches, reversible layers and 16 bits against one plain backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.tiny import TINY_DALLE, tiny_dalle
from ttt.config import DEMO
from ttt.errors import CheckpointError, InvalidInput
from ttt.hardware import choose_training_dtype
from ttt.model.dalle import Dalle
from ttt.train.loop import TrainingLoop
from ttt.train.recipe import Recipe
from ttt.train.step import DalleTask, TrainingStep, split
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
    """The oracle: one forward and backward pass of the whole batch in float32, with stored activations."""
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
    """The scaling of float16 with the arithmetic of float32, which a CPU supports."""
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


class Repeated:
    """A stream of the same batch."""

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(batch(6))

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def float16_task(model: Dalle, scale: float) -> DalleTask:
    """A task whose matrix products really are float16, on the CPU."""
    task = DalleTask(model, Repeated(), micro_batch=3, precision="float32")
    task.step.dtype, task.step.scale = torch.float16, scale
    return task


def weights_of(model: Dalle) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_float16_steps_that_overflow_change_nothing_until_the_scale_fits(tmp_path: Path) -> None:
    model = tiny_dalle()
    task = float16_task(model, scale=2.0**40)
    loop = TrainingLoop(task, Recipe(steps=100, learning_rate=1e-2, state_bits=32), tmp_path)
    before = weights_of(model)
    while not loop._one_step():
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert (loop.step, loop.optimizer.param_groups[0]["step"], loop.schedule.last_epoch) == (0, 0, 0)
    assert 1 < task.step.scale < 2.0**40 and task.step.overflows >= 10
    assert loop.step == 1 and 3 < loop.running["loss"] < 30


def test_float16_that_overflows_without_scaling_ends_training(tmp_path: Path) -> None:
    model = tiny_dalle()
    task = float16_task(model, scale=2.0**16)
    loop = TrainingLoop(task, Recipe(steps=100, learning_rate=1e-2, state_bits=32), tmp_path)
    loop.save()
    saved = loop.checkpoint.read_bytes()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if p.dim() > 1)[0, 0] = 1e30
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="float16 overflows in step 0 even without scaling.*--precision"):
        loop.run(save_every=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert loop.checkpoint.read_bytes() == saved
    assert task.step.scale == 1.0 and not loop.running


def test_the_loss_of_a_batch_leaves_overflowing_micro_batches_out() -> None:
    model = tiny_dalle()
    step = scaled(model, 2.0**10)
    backward, parts = step.backward, iter([1e39 * 10, 2.0**10, 2.0**10])

    def with_scale(data: Batch, share: float = 1.0) -> float:
        step.scale = next(parts)
        loss = backward(data, share)
        return loss if step.overflows == 0 or step.scale == 2.0**10 else float("nan")

    step.backward = with_scale  # type: ignore[method-assign]
    loss = step.accumulate(batch(6), 2)
    assert step.overflows == 1
    losses = [model.loss(part.text, part.codes).item() for part in split(batch(6), 2)]
    assert loss == pytest.approx(sum(losses[1:]) / 2, rel=1e-5)


def test_parts_of_a_batch_are_the_batch() -> None:
    data = batch(7)
    parts = list(split(data, 3))
    assert [len(p.text) for p in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([p.codes for p in parts]), data.codes)
    with pytest.raises(InvalidInput, match="micro_batch must be a whole number of at least 1"):
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
