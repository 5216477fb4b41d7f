"""Hugging Face `config.json` -> Architecture. Knows the names of their fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from calculator.architectures import Architecture
from calculator.errors import CalculatorError
from calculator.families.t5 import BUCKETS
from calculator.hub import LARGEST_FILE, fetch

Config = Mapping[str, Any]


def from_json(text: str | bytes) -> Architecture:
    """The text of a config.json, pasted or uploaded."""
    if len(text) > LARGEST_FILE:
        raise CalculatorError(f"a config.json has at most {LARGEST_FILE:,} bytes, this one has {len(text):,}")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CalculatorError(f"this is not the JSON of a config.json: {error}") from None
    if not isinstance(config, dict):
        raise CalculatorError("a config.json is a JSON object: {...}")
    return from_config(config)


def from_config(config: Config) -> Architecture:
    """A parsed config.json; the family is its `model_type`."""
    kind = config.get("model_type")
    if kind not in READERS:
        raise CalculatorError(f"unknown model_type {kind!r}; known: {', '.join(sorted(READERS))}")
    if config.get("add_cross_attention"):
        raise CalculatorError(f"this {kind} has cross-attention (add_cross_attention), which is not counted here")
    try:
        return READERS[kind](config)
    except KeyError as error:
        raise CalculatorError(f"this {kind} config.json lacks {error}") from None
    except (TypeError, AttributeError) as error:
        raise CalculatorError(f"this {kind} config.json has a value of a wrong type: {error}") from None


def from_hub(repo_id: str, *, token: str | None = None) -> Architecture:
    """A Hub model; `token` for gated ones."""
    return from_json(fetch(repo_id, token=token))


def _name(config: Config) -> str:
    name = config.get("_name_or_path")
    return name[:80] if isinstance(name, str) and name else str(config["model_type"])


def _on(config: Config, *names: str, default: float) -> bool:
    value = next((config[n] for n in names if config.get(n) is not None), default)
    return value > 0


def _side(config: Config, name: str, default: int) -> Any:
    """Of a square, which some files give as [side, side]."""
    value = config.get(name, default)
    if isinstance(value, list) and len(value) == 2:
        if value[0] != value[1]:
            raise CalculatorError(f"{name} {value} is no square; only square ones are known here")
        return value[0]
    return value


def _bert(c: Config) -> Architecture:
    return Architecture(
        family="bert", name=_name(c), hidden=c["hidden_size"], layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"], feed_forward=c["intermediate_size"], vocabulary=c["vocab_size"],
        positions=c["max_position_embeddings"], token_types=c.get("type_vocab_size", 2),
        activation=c.get("hidden_act", "gelu"), dropout=_on(c, "hidden_dropout_prob", default=0.1),
        attention_dropout=_on(c, "attention_probs_dropout_prob", default=0.1),
        tied=c.get("tie_word_embeddings", True),
    )  # fmt: skip


def _gpt2(c: Config) -> Architecture:
    return Architecture(
        family="gpt2", name=_name(c), hidden=c["n_embd"], layers=c["n_layer"], heads=c["n_head"],
        feed_forward=c.get("n_inner") or 4 * c["n_embd"], vocabulary=c["vocab_size"], positions=c["n_positions"],
        activation=c.get("activation_function", "gelu_new"), dropout=_on(c, "resid_pdrop", default=0.1),
        attention_dropout=_on(c, "attn_pdrop", default=0.1), tied=c.get("tie_word_embeddings", True),
    )  # fmt: skip


def _gptj(c: Config) -> Architecture:
    return Architecture(
        family="gptj", name=_name(c), hidden=c["n_embd"], layers=c["n_layer"], heads=c["n_head"],
        feed_forward=c.get("n_inner") or 4 * c["n_embd"], vocabulary=c["vocab_size"], positions=c["n_positions"],
        activation=c.get("activation_function", "gelu_new"), rotary=c.get("rotary_dim") or c["n_embd"] // c["n_head"],
        dropout=_on(c, "resid_pdrop", default=0.0), attention_dropout=_on(c, "attn_pdrop", default=0.0),
        tied=c.get("tie_word_embeddings", False),
    )  # fmt: skip


def _t5(c: Config) -> Architecture:
    if c.get("relative_attention_num_buckets", BUCKETS) != BUCKETS:
        raise CalculatorError(f"relative_attention_num_buckets must be {BUCKETS}, as in every published T5")
    projection = c.get("feed_forward_proj", "relu")
    gated = projection.startswith("gated-")
    activation = {"gated-gelu": "gelu_new"}.get(projection, projection.removeprefix("gated-"))
    return Architecture(
        family="t5", name=_name(c), hidden=c["d_model"], layers=c["num_layers"],
        decoder_layers=c.get("num_decoder_layers") or c["num_layers"], heads=c["num_heads"], head_size=c["d_kv"],
        feed_forward=c["d_ff"], vocabulary=c["vocab_size"], positions=c.get("n_positions") or 512,
        activation=activation, gated=gated, tied=c.get("tie_word_embeddings", True),
        dropout=_on(c, "dropout_rate", default=0.1), attention_dropout=_on(c, "dropout_rate", default=0.1),
    )  # fmt: skip


def _llama(c: Config) -> Architecture:
    kind = c["model_type"]
    bias = c.get("attention_bias", False)
    return Architecture(
        family="llama", name=_name(c), hidden=c["hidden_size"], layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"], key_value_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
        head_size=c.get("head_dim") or 0, feed_forward=c["intermediate_size"], vocabulary=c["vocab_size"],
        positions=c.get("max_position_embeddings", 4096), activation=c.get("hidden_act", "silu"), gated=True,
        tied=c.get("tie_word_embeddings", False), attention_dropout=_on(c, "attention_dropout", default=0.0),
        query_bias=True if kind == "qwen2" else bias, output_bias=False if kind == "qwen2" else bias,
        feed_forward_bias=c.get("mlp_bias", False), query_norm=kind == "qwen3",
    )  # fmt: skip


def _vit(c: Config) -> Architecture:
    return Architecture(
        family="vit", name=_name(c), hidden=c["hidden_size"], layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"], feed_forward=c["intermediate_size"], image_size=_side(c, "image_size", 224),
        patch_size=_side(c, "patch_size", 16), channels=c.get("num_channels", 3),
        activation=c.get("hidden_act", "gelu"), dropout=_on(c, "hidden_dropout_prob", default=0.0),
        query_bias=c.get("qkv_bias", True), attention_dropout=_on(c, "attention_probs_dropout_prob", default=0.0),
        labels=len(c.get("id2label") or {}) or c.get("num_labels", 2),
    )  # fmt: skip


def _clip(c: Config) -> Architecture:
    text, vision = c.get("text_config") or {}, c.get("vision_config") or {}
    tower = Architecture(
        family="vit", name="image tower", hidden=vision.get("hidden_size", 768),
        layers=vision.get("num_hidden_layers", 12), heads=vision.get("num_attention_heads", 12),
        feed_forward=vision.get("intermediate_size", 3072), image_size=_side(vision, "image_size", 224),
        patch_size=_side(vision, "patch_size", 32), channels=vision.get("num_channels", 3),
        activation=vision.get("hidden_act", "quick_gelu"),
        attention_dropout=_on(vision, "attention_dropout", default=0.0),
    )  # fmt: skip
    return Architecture(
        family="clip", name=_name(c), hidden=text.get("hidden_size", 512), layers=text.get("num_hidden_layers", 12),
        heads=text.get("num_attention_heads", 8), feed_forward=text.get("intermediate_size", 2048),
        vocabulary=text.get("vocab_size", 49_408), positions=text.get("max_position_embeddings", 77),
        activation=text.get("hidden_act", "quick_gelu"), projection=c.get("projection_dim", 512), vision=tower,
        attention_dropout=_on(text, "attention_dropout", default=0.0),
    )  # fmt: skip


READERS: dict[str, Callable[[Config], Architecture]] = {
    "bert": _bert, "gpt2": _gpt2, "gptj": _gptj, "t5": _t5, "llama": _llama, "mistral": _llama, "qwen2": _llama,
    "qwen3": _llama, "vit": _vit, "clip": _clip,
}  # fmt: skip
"""By `model_type`."""
