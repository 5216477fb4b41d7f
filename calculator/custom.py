"""A custom model: its family and dimensions from a form or a command line; all else as the family's defaults."""

from __future__ import annotations

from typing import Any

from calculator.architectures import LARGEST_DIMENSION, Architecture
from calculator.checks import one_of, whole_number
from calculator.errors import CalculatorError
from calculator.hf_config import from_config

SIZES: dict[str, int] = {
    "hidden": 768, "layers": 12, "heads": 12, "feed_forward": 3072, "vocabulary": 50_257, "positions": 1024,
    "key_value_heads": 0, "image_size": 224, "patch_size": 16, "vision_hidden": 768, "vision_layers": 12,
    "vision_heads": 12, "vision_feed_forward": 3072, "projection": 512,
}  # fmt: skip
"""Default of every dimension; key_value_heads 0: as many as heads."""
LAYERS, TEXT, IMAGE = ("hidden", "layers", "heads", "feed_forward"), ("vocabulary", "positions"), (
    "image_size", "patch_size",
)  # fmt: skip
TOWER = ("vision_hidden", "vision_layers", "vision_heads", "vision_feed_forward", "projection")
USED: dict[str, tuple[str, ...]] = {
    "gpt2": LAYERS + TEXT, "bert": LAYERS + TEXT, "t5": LAYERS + TEXT, "gptj": LAYERS + TEXT,
    "llama": (*LAYERS, *TEXT, "key_value_heads"), "vit": LAYERS + IMAGE, "clip": LAYERS + TEXT + IMAGE + TOWER,
}  # fmt: skip
"""Dimensions used by each family; clip's layers are those of its text tower."""

_BERT = {
    "hidden_size": "hidden", "num_hidden_layers": "layers", "num_attention_heads": "heads",
    "intermediate_size": "feed_forward", "vocab_size": "vocabulary", "max_position_embeddings": "positions",
}  # fmt: skip
_GPT = {
    "n_embd": "hidden", "n_layer": "layers", "n_head": "heads", "n_inner": "feed_forward", "vocab_size": "vocabulary",
    "n_positions": "positions",
}  # fmt: skip
_T5 = {
    "d_model": "hidden", "num_layers": "layers", "num_heads": "heads", "d_ff": "feed_forward",
    "vocab_size": "vocabulary", "n_positions": "positions",
}  # fmt: skip
FIELDS = {
    "gpt2": _GPT, "gptj": _GPT, "bert": _BERT, "t5": _T5, "clip": _BERT,
    "llama": {**_BERT, "num_key_value_heads": "key_value_heads"},
    "vit": {**_BERT, "image_size": "image_size", "patch_size": "patch_size"},
}  # fmt: skip
"""Names in a config.json and their names here."""


def custom(family: str, **sizes: Any) -> Architecture:
    """Return a model of `family` with these SIZES (whole numbers); all else is as in transformers' default config.

    Dimensions that the family does not use are ignored. Raises CalculatorError.
    """
    one_of("family", family, USED)
    unknown = sorted(set(sizes) - set(SIZES))
    if unknown:
        raise CalculatorError(f"unknown dimensions {', '.join(unknown)}; known: {', '.join(SIZES)}")
    sizes = {**SIZES, **sizes}
    for name in USED[family]:
        whole_number(name, sizes[name], 0 if name == "key_value_heads" else 1, LARGEST_DIMENSION)
    config: dict[str, Any] = {theirs: sizes[ours] for theirs, ours in FIELDS[family].items()}
    config |= {"model_type": family, "_name_or_path": f"custom {family}"}
    if family == "t5":
        config["d_kv"] = _divided(sizes["hidden"], sizes["heads"])
    if family == "clip":
        tower = {theirs: sizes[f"vision_{ours}"] for theirs, ours in list(_BERT.items())[:4]}
        tower |= {name: sizes[name] for name in IMAGE}
        config = {**config, "text_config": config, "vision_config": tower, "projection_dim": sizes["projection"]}
    return from_config(config)


def _divided(hidden: int, heads: int) -> int:
    if hidden % heads:
        raise CalculatorError(f"hidden {hidden} is not divisible by {heads} heads: change one of them")
    return hidden // heads
