"""Applies a setup to a model: the changed architecture, its adapters, and the step to simulate.

Refuses techniques that the model does not support.
"""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures import Architecture
from calculator.errors import CalculatorError
from calculator.families.common import Tensor
from calculator.optimizers import Sizes
from calculator.setup import TrainingSetup
from calculator.simulate import SimulatedStep

LONGEST_DEFAULT = 2048
"""Longer sequences are never assumed, only used on request."""
LEARNED_POSITIONS = ("bert", "gpt2", "opt", "clip")


def with_techniques(a: Architecture, setup: TrainingSetup) -> Architecture:
    """Return the model with the setup's sharing, tying and reversibility; refuses what the family does not support."""
    if setup.shared_groups is not None:
        most = min(a.layers, a.decoder_layers or a.layers, a.vision.layers if a.vision else a.layers)
        if setup.shared_groups > most:
            raise CalculatorError(
                f"shared_groups must be from 1 to the number of layers, {most}, got {setup.shared_groups}"
            )
        a = replace(a, groups=setup.shared_groups)
    if setup.tied_embeddings is not None and setup.tied_embeddings != a.tied:
        if a.head not in ("default", "masked-lm") or a.family in ("vit", "clip", "dalle"):
            raise CalculatorError(
                f"tied_embeddings does not apply to {a.family} models: they have no separate output layer"
            )
        a = replace(a, tied=setup.tied_embeddings)
    if setup.reversible is not None and setup.reversible != a.reversible:
        if a.family != "dalle":
            raise CalculatorError(f"{a.family} models have no reversible layers; only ttt-dalle has")
        a = replace(a, reversible=setup.reversible)
    if a.reversible and setup.every:
        raise CalculatorError(
            "reversible layers save no activations, so checkpointing gains nothing: set reversible to False"
        )
    if setup.adapter != "none" and a.variant == "mixtral":
        raise CalculatorError(
            "adapters are not supported for Mixtral: transformers stores its experts in one tensor, which peft and "
            "bitsandbytes leave as it is"
        )
    if setup.adapter != "none" and a.family == "dalle":
        raise CalculatorError("adapters are not supported for ttt's own model; it is small enough for full training")
    return a


def repeat(a: Architecture, x: Tensor) -> int:
    """Return the number of copies of a tensor, given the layers that share weights."""
    return min(a.groups, x.repeat) if a.groups and x.shared and x.repeat > 1 else x.repeat


def adapters(sizes: Sizes, rank: int) -> Sizes:
    """Return LoRA's two matrices for every matrix of the layers."""
    result: Sizes = []
    for x, repeat in sizes:
        if x.is_matrix:
            rows, columns = x.shape
            result += [
                (Tensor(f"{x.name}.lora_A", (rank, columns)), repeat),
                (Tensor(f"{x.name}.lora_B", (rows, rank)), repeat),
            ]
    return result


def sequence_length(a: Architecture, setup: TrainingSetup) -> int:
    """Return the setup's sequence length, or the model's default; refuses lengths that the model does not support."""
    if a.family == "vit":
        if setup.sequence_length not in (None, a.patches + 1):
            raise CalculatorError(f"the sequence length of a vit follows from its image size: {a.patches + 1}")
        return a.patches + 1
    s = setup.sequence_length
    if a.family == "dalle" and s not in (None, a.positions):
        raise CalculatorError(
            f"this model is trained on whole images: leave sequence_length out, or set it to {a.positions}"
        )
    if s is None:
        return a.positions if a.family in ("dalle", *LEARNED_POSITIONS) else min(a.positions, LONGEST_DEFAULT)
    if a.family in LEARNED_POSITIONS and s > a.positions:
        raise CalculatorError(f"sequence_length must be at most the model's {a.positions} positions, got {s}")
    return s


def step(a: Architecture, setup: TrainingSetup, ahead: int = 0) -> SimulatedStep:
    """Return the step to simulate; refuses techniques that transformers does not implement for the family.

    ahead: bytes, see SimulatedStep.
    """
    s = sequence_length(a, setup)
    if setup.target_length is not None and a.family != "t5":
        raise CalculatorError("target_length applies to encoder-decoder models (t5) only")
    has_sdpa = a.family != "gptj" and a.variant != "gemma2"
    if setup.attention == "sdpa" and not has_sdpa:
        name = "GPT-J" if a.family == "gptj" else "Gemma 2"
        raise CalculatorError(f"transformers has no sdpa attention for {name}: set attention to eager or auto")
    eager = setup.attention == "eager" or not has_sdpa
    return SimulatedStep(
        batch=setup.batch_size, sequence=s, target=setup.target_length or s, width=setup.width, half=setup.half,
        eager=eager, dropout=setup.dropout, groups=a.groups or None, every=setup.every, reversible=a.reversible,
        rank=setup.lora_rank if setup.adapter != "none" else 0, quantized=setup.adapter == "qlora",
        gradient_parts=setup.gpus if setup.zero_stage >= 2 else 1, ahead=ahead,
    )  # fmt: skip
