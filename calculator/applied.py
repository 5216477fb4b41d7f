"""A model as a set-up changes it, and the step that is played of it. Refuses what a model cannot be; knows no bytes."""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures import Architecture
from calculator.errors import CalculatorError
from calculator.families.common import Tensor
from calculator.optimizers import Sizes
from calculator.setup import TrainingSetup
from calculator.simulate import Step

LONGEST_DEFAULT = 2048
LEARNED_POSITIONS = ("bert", "gpt2", "clip")
NO_SDPA = ("gptj",)


def with_techniques(a: Architecture, setup: TrainingSetup) -> Architecture:
    """The model as the set-up changes it: shared, tied, reversible. Refuses what it cannot be."""
    if setup.shared_groups is not None:
        most = min(a.layers, a.decoder_layers or a.layers, a.vision.layers if a.vision else a.layers)
        if setup.shared_groups > most:
            raise CalculatorError(f"shared_groups {setup.shared_groups} are more than the layers; allowed: 1 to {most}")
        a = replace(a, groups=setup.shared_groups)
    if setup.tied_embeddings is not None and setup.tied_embeddings != a.tied:
        if a.family in ("vit", "clip", "dalle"):
            raise CalculatorError(f"a {a.family} model has no output layer that could be tied or untied")
        a = replace(a, tied=setup.tied_embeddings)
    if setup.reversible is not None and setup.reversible != a.reversible:
        if a.family != "dalle":
            raise CalculatorError(f"reversible layers are another architecture; {a.family} has none (ttt-dalle has)")
        a = replace(a, reversible=setup.reversible)
    if a.reversible and setup.every:
        raise CalculatorError("reversible layers keep nothing that checkpoints could save: set reversible to False too")
    if setup.adapter != "none" and a.family == "dalle":
        raise CalculatorError("adapters for ttt's own model do not exist; it is small enough to be trained whole")
    return a


def repeat(a: Architecture, x: Tensor) -> int:
    """How many of this tensor there are, with layers sharing theirs."""
    return min(a.groups, x.repeat) if a.groups and x.shared and x.repeat > 1 else x.repeat


def adapters(sizes: Sizes, rank: int) -> Sizes:
    """LoRA's two matrices for every matrix of the layers."""
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
    """The set-up's, or the model's own; refuses what the model cannot do."""
    if a.family == "vit":
        if setup.sequence_length not in (None, a.patches + 1):
            raise CalculatorError(f"the sequence of a vit follows from its image: {a.patches + 1}")
        return a.patches + 1
    s = setup.sequence_length
    if a.family == "dalle" and s not in (None, a.positions):
        raise CalculatorError(f"this model is trained on whole images: sequence_length {a.positions}")
    if s is None:
        return a.positions if a.family in ("dalle", *LEARNED_POSITIONS) else min(a.positions, LONGEST_DEFAULT)
    if a.family in LEARNED_POSITIONS and s > a.positions:
        raise CalculatorError(f"sequence_length {s} is longer than the model's {a.positions} positions")
    return s


def step(a: Architecture, setup: TrainingSetup, ahead: int = 0) -> Step:
    """How the step is played; refuses techniques that the family has no code for. ahead: bytes, see Step."""
    s = sequence_length(a, setup)
    if setup.target_length is not None and a.family != "t5":
        raise CalculatorError("target_length is of encoder-decoder models (t5) alone")
    if setup.attention == "sdpa" and a.family in NO_SDPA:
        raise CalculatorError("transformers has no sdpa attention for GPT-J: set attention to eager or auto")
    eager = setup.attention == "eager" or a.family in NO_SDPA
    return Step(
        batch=setup.batch_size, sequence=s, target=setup.target_length or s, width=setup.width, half=setup.half,
        eager=eager, dropout=setup.dropout, groups=a.groups or None, every=setup.every, reversible=a.reversible,
        rank=setup.lora_rank if setup.adapter != "none" else 0, quantized=setup.adapter == "qlora",
        gradient_parts=setup.gpus if setup.zero_stage >= 2 else 1, ahead=ahead,
    )  # fmt: skip
