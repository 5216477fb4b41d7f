"""`python -m ttt peer ...` whose gradients or parameters become NaN after some micro-batches.

`sick_peer.py KIND peer ...`, where KIND is gradients or parameters. Everything else is the real program.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from ttt.__main__ import main
from ttt.train.step import TrainingStep

HEALTHY = 30
KIND = sys.argv.pop(1)
computed, noticed = 0, False
backward = TrainingStep.backward


def sick(self: TrainingStep, *args: Any, **kwargs: Any) -> float:
    global computed, noticed
    loss = backward(self, *args, **kwargs)
    computed += 1
    noticed = noticed or not math.isfinite(loss)
    # Parameters are broken again until a loss shows it: a step that happens right now replaces them.
    if computed == HEALTHY or (KIND == "parameters" and computed > HEALTHY and not noticed):
        with torch.no_grad():
            parameter = self.parameters[0]
            broken = parameter if KIND == "parameters" else parameter.grad
            assert broken is not None
            broken.view(-1)[0] = float("nan")
    return loss


TrainingStep.backward = sick
sys.argv[0] = "ttt"
main()
