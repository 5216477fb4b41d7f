"""`python -m ttt peer ...`, but after some micro-batches its numbers are none any more: `sick_peer.py KIND peer ...`.

KIND: gradients, or parameters. Everything else is the real program.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ttt.__main__ import main
from ttt.train.step import TrainingStep

HEALTHY = 30
KIND = sys.argv.pop(1)
computed = 0
backward = TrainingStep.backward


def sick(self: TrainingStep, *args: Any, **kwargs: Any) -> float:
    global computed
    loss = backward(self, *args, **kwargs)
    computed += 1
    if computed == HEALTHY:
        with torch.no_grad():
            parameter = self.parameters[0]
            broken = parameter if KIND == "parameters" else parameter.grad
            assert broken is not None
            broken.view(-1)[0] = float("nan")
    return loss


TrainingStep.backward = sick
sys.argv[0] = "ttt"
main()
