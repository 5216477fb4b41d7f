"""Computes the loss and the gradients of a batch, in micro-batches and in 16 bits.

Independent of the optimizer and of files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ttt.errors import CheckpointError
from ttt.fields import check_whole_number
from ttt.hardware import choose_training_dtype
from ttt.model.dalle import Dalle
from ttt.types import Batch, BatchStream

Precision = Literal["auto", "float32", "bfloat16", "float16"]

FIRST_SCALE, MIN_SCALE, STEPS_TO_DOUBLE = 2.0**16, 1.0, 2000
"""Scale of the loss in float16: halved if gradients overflow, doubled after so many micro-batches in a row without."""


class TrainingStep:
    """Forward and backward pass of micro-batches; gradients accumulate in `parameter.grad`, in the parameter's type.

        step = TrainingStep(dalle, precision="auto")
        loss = step.backward(batch)          # one micro-batch
        loss = step.accumulate(batch, 4)     # the same gradients, in micro-batches of 4

    Parameters stay float32 and matrix products run under autocast (Micikevicius et al. 2018). In float16 the loss is
    scaled, so that small gradients do not vanish: a micro-batch whose gradients overflow adds nothing, is counted in
    `overflows`, and halves the scale.
    """

    def __init__(self, dalle: Dalle, *, precision: Precision | str = "auto") -> None:
        self.dalle = dalle
        self.parameters = [p for p in dalle.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.dtype = choose_training_dtype(precision, self.device)
        self.scale = FIRST_SCALE if self.dtype == torch.float16 else 1.0
        self.overflows = 0
        self._finite_in_a_row = 0

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of text and codes, with the codes weighted by `loss_image_weight` (a scalar)."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return self.dalle.loss(batch.text.to(self.device), batch.codes.to(self.device))

    def backward(self, batch: Batch, share: float = 1.0) -> float:
        """Add `share` times the gradient of this batch; returns its loss, without share and scale."""
        loss = self.loss(batch)
        if self.dtype != torch.float16:
            (loss * share).backward()
        else:
            self._backward_scaled(loss * share)
        return loss.item()

    def accumulate(self, batch: Batch, micro_batch: int) -> float:
        """Add the gradient of the mean loss of a batch, `micro_batch` samples at a time; returns that loss.

        In float16 the loss is that of the samples whose gradients were added; NaN if there are none.
        """
        size = len(batch.text)
        total, used = 0.0, 0
        for part in split(batch, micro_batch):
            overflows = self.overflows
            loss = self.backward(part, share=len(part.text) / size)
            if self.overflows == overflows:
                total, used = total + len(part.text) * loss, used + len(part.text)
        return total / used if used else float("nan")

    def _backward_scaled(self, loss: Tensor) -> None:
        # The gradients so far are put aside: an overflow must not reach them, and they are not scaled.
        before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        (loss * self.scale).backward()
        used = [(p, old) for p, old in zip(self.parameters, before, strict=True) if p.grad is not None]
        gradients = [p.grad for p, _ in used if p.grad is not None]
        torch._foreach_div_(gradients, self.scale)
        if all(bool(norm.isfinite()) for norm in torch._foreach_norm(gradients)):
            for (p, old), gradient in zip(used, gradients, strict=True):
                p.grad = gradient if old is None else old.add_(gradient)
            self._finite_in_a_row += 1
            if self._finite_in_a_row >= STEPS_TO_DOUBLE:
                self.scale, self._finite_in_a_row = self.scale * 2, 0
        else:
            for p, old in used:
                p.grad = torch.zeros_like(p) if old is None else old  # hivemind averages no missing gradients
            self.scale, self._finite_in_a_row = max(MIN_SCALE, self.scale / 2), 0
            self.overflows += 1
        for p, old in zip(self.parameters, before, strict=True):
            if p.grad is None:
                p.grad = old


class DalleTask:
    """Trains the transformer on the batches of a stream."""

    name = "dalle"

    def __init__(
        self,
        dalle: Dalle,
        stream: BatchStream,
        *,
        micro_batch: int,
        precision: Precision | str = "auto",
        held_out: Sequence[Batch] = (),
    ) -> None:
        """micro_batch: samples computed at once. held_out: batches for `evaluate`."""
        self.module = dalle
        self.stream, self.micro_batch, self.held_out = stream, micro_batch, held_out
        self.step = TrainingStep(dalle, precision=precision)
        self._batches = iter(stream)

    def backward(self, step: int) -> dict[str, float] | None:
        loss = self.step.accumulate(next(self._batches), self.micro_batch)
        if self.step.dtype != torch.float16 or math.isfinite(loss):
            return {"loss": loss}
        if self.step.scale <= MIN_SCALE:
            raise CheckpointError(
                f"float16 overflows in step {step} even without scaling the loss: a weight or the loss is too large or "
                "NaN. The last checkpoint is intact; continue from its weights in a new folder, with another "
                "--precision or a lower learning rate"
            )
        return None

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        if not self.held_out:
            return {}
        parts = [part for batch in self.held_out for part in split(batch, self.micro_batch)]
        total = sum(self.step.loss(part).item() * len(part.text) for part in parts)
        return {"held_out_loss": total / sum(len(part.text) for part in parts)}

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.stream.state_dict(), "scale": self.step.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        self.step.scale = float(state["scale"])
        self._batches = iter(self.stream)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of at most `size` samples."""
    check_whole_number("micro_batch", size, 1)
    for text, codes in zip(batch.text.split(size), batch.codes.split(size), strict=True):
        yield Batch(text, codes)
