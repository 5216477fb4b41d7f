"""A simulation of PyTorch's memory: it tracks the sizes of tensors and computes no values. Independent of any model.

The forward functions in `families` are written like PyTorch code. Every operation here allocates what PyTorch's
kernel allocates, keeps what its autograd node saves (torch/tools/autograd/derivatives.yaml), and allocates the
gradients that the node returns in the backward pass. A tensor lives as long as something refers to it, as in PyTorch:
its storage adds its bytes when it is created and subtracts them when Python drops the last reference.
"""

from __future__ import annotations

from calculator.tape.operations import Tape
from calculator.tape.storage import ActivationGradient, Memory, Storage
from calculator.tape.values import FLOAT32, PASS_THROUGH, Leaf, Parameter, Slot, Value

__all__ = [
    "FLOAT32",
    "PASS_THROUGH",
    "ActivationGradient",
    "Leaf",
    "Memory",
    "Parameter",
    "Slot",
    "Storage",
    "Tape",
    "Value",
]
