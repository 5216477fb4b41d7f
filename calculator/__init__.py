"""The memory calculator: `estimate(PRESETS["gpt2-large"], TrainingSetup(optimizer="adam8bit"))`.

Independent of torch, of Gradio and of `ttt`.
"""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.custom import custom
from calculator.errors import CalculatorError
from calculator.memory import MemoryEstimate, Phase, estimate, parameter_count
from calculator.presets import PRESETS
from calculator.setup import OPTIMIZERS, TrainingSetup

__all__ = [
    "OPTIMIZERS",
    "PRESETS",
    "Architecture",
    "CalculatorError",
    "MemoryEstimate",
    "Phase",
    "TrainingSetup",
    "custom",
    "estimate",
    "parameter_count",
]
