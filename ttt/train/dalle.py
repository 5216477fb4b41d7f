"""The transformer as a task for the training loop: batches of a stream, in micro-batches. Knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ttt.model.dalle import Dalle
from ttt.train.step import Precision, TrainingStep, split
from ttt.types import Batch, BatchStream


class DalleTask:
    """The loss of the paper's model on whatever a stream hands out."""

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
        """micro_batch: samples that go through the model at once; held_out: what `evaluate` measures the loss on."""
        self.module = dalle
        self.stream, self.micro_batch, self.held_out = stream, micro_batch, held_out
        self.step = TrainingStep(dalle, precision=precision)
        self._batches = iter(stream)

    def backward(self, step: int) -> dict[str, float]:
        return {"loss": self.step.accumulate(next(self._batches), self.micro_batch)}

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
