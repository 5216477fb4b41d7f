"""A PyTorch of sizes only: which bytes a training step has alive at every moment. Knows no model.

The forward functions in `families` are written like PyTorch code. Every operation here allocates what PyTorch's
kernel allocates, keeps what its autograd node saves (torch/tools/autograd/derivatives.yaml), and on the way back
allocates the gradients it returns. A tensor lives as long as something refers to it, exactly as in PyTorch: the
storage counts itself in when it is made, and out when Python drops its last reference.
"""

from __future__ import annotations

from calculator.tape.ledger import Flow, Memory, Storage
from calculator.tape.operations import Tape
from calculator.tape.values import FULL, PASS, Leaf, Parameter, Slot, Value

__all__ = ["FULL", "PASS", "Flow", "Leaf", "Memory", "Parameter", "Slot", "Storage", "Tape", "Value"]
