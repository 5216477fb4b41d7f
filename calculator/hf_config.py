"""Reads a Hugging Face config.json into an Architecture.

Keys that are missing have the defaults of transformers' config classes, because transformers does not write values that
equal them. A config.json that would be counted wrongly is refused with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from calculator.architectures import Architecture, Head
from calculator.errors import CalculatorError
from calculator.families.t5 import BUCKETS
from calculator.hub import LARGEST_FILE, fetch

Config = Mapping[str, Any]

ACTIVATIONS = {
    "swish": "silu", "gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_10": "gelu", "gelu_accurate": "gelu_python",
}  # fmt: skip
"""Other names of activation functions, in transformers.activations."""


def from_json(text: str | bytes) -> Architecture:
    """Return the model of a config.json, given as its text; a byte-order mark is skipped. Raises CalculatorError."""
    if len(text) > LARGEST_FILE:
        raise CalculatorError(f"a config.json has at most {LARGEST_FILE:,} bytes, this one has {len(text):,}")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CalculatorError(f"this is not the JSON of a config.json: {error}") from None
    if not isinstance(config, dict):
        raise CalculatorError("a config.json is a JSON object: {...}")
    return from_config(config)


def from_config(config: Config) -> Architecture:
    """Return the model of a parsed config.json. Raises CalculatorError if it is not supported."""
    kind = _model_type(config)
    if config.get("add_cross_attention"):
        raise CalculatorError(f"this {kind} model has cross-attention (add_cross_attention), which is not supported")
    reader = READERS[kind]
    c = {**reader.defaults, **{reader.aliases.get(key, key): value for key, value in config.items()}}
    _check_heads(c, config, kind)
    try:
        a = reader.read(c)
        labels = c.get("id2label")
        count = len(labels) if isinstance(labels, dict) and labels else c.get("num_labels", 2)
        return replace(
            a, name=_name(config, kind), head=_head(config, kind), labels=count, quantization=_quantization(config)
        )
    except CalculatorError:
        raise
    except KeyError as error:
        raise CalculatorError(f"this {kind} config.json has no {error}") from None
    except (TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise CalculatorError(f"this {kind} config.json has a value of the wrong type: {error}") from None


def from_hub(repo_id: str, *, token: str | None = None) -> Architecture:
    """Download a Hub model's config.json and return its model; `token` is for gated models. Raises CalculatorError."""
    return from_json(fetch(repo_id, token=token))


def _model_type(config: Config) -> str:
    kind, classes = config.get("model_type"), config.get("architectures")
    if kind is None and isinstance(classes, list) and classes and isinstance(classes[0], str):
        kind = next((kind for kind, reader in READERS.items() if classes[0] in reader.classes), None)
    if isinstance(kind, str) and kind in READERS:
        return kind
    supported = f"supported: {', '.join(READERS)}"
    if "peft_type" in config:
        base = config.get("base_model_name_or_path") or "its base model"
        raise CalculatorError(
            f"this is an adapter_config.json; use the config.json of {str(base)[:80]} and choose LoRA"
        )
    if kind is None:
        raise CalculatorError(
            f'this config.json has no model_type; add one, for example "model_type": "bert"; {supported}'
        )
    inner = config.get("text_config")
    if isinstance(inner, dict) and inner.get("model_type") in READERS:
        raise CalculatorError(
            f"model_type {kind!r} is not supported, but its text model is: use the value of text_config"
        )
    raise CalculatorError(f"model_type {str(kind)[:80]!r} is not supported; {supported}")


def _check_heads(c: Config, config: Config, kind: str) -> None:
    """Explain key_value_heads that are a class default and do not divide the heads of the file."""
    heads, groups = c.get("num_attention_heads"), c.get("num_key_value_heads")
    if "num_key_value_heads" in config or not isinstance(heads, int) or not isinstance(groups, int):
        return
    if groups > 0 and heads % groups:
        raise CalculatorError(
            f"this {kind} config.json has no num_key_value_heads, and transformers' default, {groups}, does not divide "
            f"its {heads} attention heads: add num_key_value_heads"
        )


def _head(config: Config, kind: str) -> Head:
    """The head of the class in `architectures`; the default of the family without `architectures`."""
    classes = config.get("architectures")
    if not isinstance(classes, list) or not classes:
        return "default"
    known = READERS[kind].classes
    if classes[0] not in known:
        raise CalculatorError(f"{str(classes[0])[:80]} is not supported; supported {kind} classes: {', '.join(known)}")
    return known[classes[0]]


def _quantization(config: Config) -> str:
    q = config.get("quantization_config")
    if not isinstance(q, dict):
        return ""
    method = str(q.get("quant_method") or "unknown method")[:40]
    bits = 4 if q.get("load_in_4bit") else 8 if q.get("load_in_8bit") else q.get("bits")
    return f"{method}, {bits}-bit" if isinstance(bits, int) else method


def _name(config: Config, kind: str) -> str:
    name = config.get("_name_or_path")
    return name[:80] if isinstance(name, str) and name else kind


def _on(*rates: float | None) -> bool:
    """True if any of these dropout rates is above 0."""
    return any((rate or 0) > 0 for rate in rates)


def _side(config: Config, name: str) -> Any:
    """The side of a square, which some files give as [side, side]."""
    value = config[name]
    if isinstance(value, list) and len(value) == 2:
        if value[0] != value[1]:
            raise CalculatorError(f"{name} {value} is not square; only square images and patches are supported")
        return value[0]
    return value


def _activation(name: str) -> Any:
    return ACTIVATIONS.get(name, name)


def _bert(c: Config) -> Architecture:
    return Architecture(
        family="bert", hidden=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"],
        feed_forward=c["intermediate_size"], vocabulary=c["vocab_size"], positions=c["max_position_embeddings"],
        token_types=c["type_vocab_size"], activation=_activation(c["hidden_act"]),
        dropout=_on(c["hidden_dropout_prob"]), attention_dropout=_on(c["attention_probs_dropout_prob"]),
        tied=c["tie_word_embeddings"], variant="" if c.get("model_type", "bert") == "bert" else "roberta",
    )  # fmt: skip


def _distilbert(c: Config) -> Architecture:
    return Architecture(
        family="bert", variant="distilbert", hidden=c["dim"], layers=c["n_layers"], heads=c["n_heads"],
        feed_forward=c["hidden_dim"], vocabulary=c["vocab_size"], positions=c["max_position_embeddings"], token_types=0,
        activation=_activation(c["activation"]), dropout=_on(c["dropout"]),
        attention_dropout=_on(c["attention_dropout"]), tied=c["tie_word_embeddings"],
    )  # fmt: skip


def _gpt2(c: Config) -> Architecture:
    return Architecture(
        family="gpt2", hidden=c["n_embd"], layers=c["n_layer"], heads=c["n_head"],
        feed_forward=c["n_inner"] or 4 * c["n_embd"], vocabulary=c["vocab_size"], positions=c["n_positions"],
        activation=_activation(c["activation_function"]), dropout=_on(c["resid_pdrop"]),
        attention_dropout=_on(c["attn_pdrop"]), tied=c["tie_word_embeddings"],
    )  # fmt: skip


def _gptj(c: Config) -> Architecture:
    return replace(_gpt2(c), family="gptj", rotary=c["rotary_dim"] or c["n_embd"] // c["n_head"])


def _gpt_neox(c: Config) -> Architecture:
    head = c["hidden_size"] // c["num_attention_heads"]
    rope = c.get("rope_parameters") or {}
    return Architecture(
        family="gpt_neox", hidden=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"],
        feed_forward=c["intermediate_size"], vocabulary=c["vocab_size"], positions=c["max_position_embeddings"],
        activation=_activation(c["hidden_act"]), rotary=int(head * rope.get("partial_rotary_factor", c["rotary_pct"])),
        tied=c["tie_word_embeddings"], parallel=c["use_parallel_residual"], query_bias=c["attention_bias"],
        output_bias=c["attention_bias"], dropout=_on(c["hidden_dropout"]),
        attention_dropout=_on(c["attention_dropout"]),
    )  # fmt: skip


def _falcon(c: Config) -> Architecture:
    if c["alibi"]:
        raise CalculatorError("Falcon models with alibi positions are not supported, only those with rotary positions")
    heads, new = c["num_attention_heads"], c["new_decoder_architecture"]
    return Architecture(
        family="falcon", hidden=c["hidden_size"], layers=c["num_hidden_layers"], heads=heads, broadcast_keys=new,
        key_value_heads=(c["num_kv_heads"] or heads) if new else 1 if c["multi_query"] else heads,
        feed_forward=c["ffn_hidden_size"] or 4 * c["hidden_size"], vocabulary=c["vocab_size"],
        positions=c["max_position_embeddings"], activation=_activation(c["activation"]), parallel=c["parallel_attn"],
        norms=c["num_ln_in_parallel_attn"] or (2 if new else 1), query_bias=c["bias"], tied=c["tie_word_embeddings"],
        dropout=_on(c["hidden_dropout"]), attention_dropout=False,
    )  # fmt: skip


def _opt(c: Config) -> Architecture:
    return Architecture(
        family="opt", hidden=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"],
        feed_forward=c["ffn_dim"], vocabulary=c["vocab_size"], positions=c["max_position_embeddings"],
        activation=_activation(c["activation_function"]), embedding=c["word_embed_proj_dim"] or c["hidden_size"],
        query_bias=c["enable_bias"], norm_first=c["do_layer_norm_before"],
        norm_weights=c["layer_norm_elementwise_affine"], tied=c["tie_word_embeddings"], dropout=_on(c["dropout"]),
        final_norm=c["do_layer_norm_before"] and not c["_remove_final_layer_norm"],
        attention_dropout=_on(c["attention_dropout"]),
    )  # fmt: skip


def _t5(c: Config) -> Architecture:
    if c["relative_attention_num_buckets"] != BUCKETS:
        raise CalculatorError(f"relative_attention_num_buckets must be {BUCKETS}, as in every published T5")
    projection = c["feed_forward_proj"]
    encoder = _head(c, c.get("model_type", "t5")) == "none" and "Encoder" in c["architectures"][0]
    return Architecture(
        family="t5", variant="umt5" if c.get("model_type") == "umt5" else "", hidden=c["d_model"],
        layers=c["num_layers"], head="none" if encoder else "default",
        decoder_layers=0 if encoder else c["num_decoder_layers"] or c["num_layers"], heads=c["num_heads"],
        head_size=c["d_kv"], feed_forward=c["d_ff"], vocabulary=c["vocab_size"], positions=c["n_positions"] or 512,
        activation="gelu_new" if projection == "gated-gelu" else _activation(projection.removeprefix("gated-")),
        gated=projection.startswith("gated-"), dropout=_on(c["dropout_rate"]), attention_dropout=_on(c["dropout_rate"]),
        tied=True,  # transformers ties these models' embeddings whatever tie_word_embeddings is
    )  # fmt: skip


def _llama(c: Config) -> Architecture:
    """Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma 1 to 3 and Phi-3."""
    kind = str(c.get("model_type", "llama")).removesuffix("_text")
    heads = c["num_attention_heads"]
    # The other classes ignore these keys.
    bias = kind in ("llama", "qwen3", "gemma", "gemma2", "gemma3") and bool(c.get("attention_bias"))
    feed_forward_bias = kind == "llama" and bool(c.get("mlp_bias"))
    variants: dict[str, Any] = {name: name for name in ("gemma", "gemma2", "gemma3", "phi3", "mixtral")}
    return Architecture(
        family="llama", variant=variants.get(kind, ""), hidden=c["hidden_size"], layers=c["num_hidden_layers"],
        heads=heads, key_value_heads=heads if c["num_key_value_heads"] is None else c["num_key_value_heads"],
        head_size=c.get("head_dim") or 0, feed_forward=c["intermediate_size"], vocabulary=c["vocab_size"],
        positions=c["max_position_embeddings"], gated=True, tied=c["tie_word_embeddings"],
        activation=_activation(c.get("hidden_activation") or c["hidden_act"]), dropout=_on(c.get("resid_pdrop")),
        attention_dropout=_on(c["attention_dropout"]), query_bias=kind == "qwen2" or bias, output_bias=bias,
        feed_forward_bias=feed_forward_bias,
        query_norm=kind in ("qwen3", "gemma3"), experts=c.get("num_local_experts", 0),
        experts_per_token=c.get("num_experts_per_tok", 2),
        attention_softcap=kind == "gemma2" and c["attn_logit_softcapping"] is not None,
        logit_softcap=kind in ("gemma2", "gemma3") and c["final_logit_softcapping"] is not None,
    )  # fmt: skip


def _vit(c: Config) -> Architecture:
    if c["pooler_output_size"] not in (None, c["hidden_size"]):
        raise CalculatorError("pooler_output_size must be the hidden size; other poolers are not supported")
    return Architecture(
        family="vit", hidden=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"],
        feed_forward=c["intermediate_size"], image_size=_side(c, "image_size"), patch_size=_side(c, "patch_size"),
        channels=c["num_channels"], activation=_activation(c["hidden_act"]), dropout=_on(c["hidden_dropout_prob"]),
        query_bias=c["qkv_bias"], attention_dropout=_on(c["attention_probs_dropout_prob"]),
    )  # fmt: skip


def _clip(c: Config) -> Architecture:
    # As CLIPConfig does: a *_config_dict is completed with the class's defaults and replaces the *_config.
    text = {**CLIP_TEXT, **(c.get("text_config_dict") or c.get("text_config") or {})}
    vision = {**CLIP_VISION, **(c.get("vision_config_dict") or c.get("vision_config") or {})}
    tower = Architecture(
        family="vit", name="image tower", hidden=vision["hidden_size"], layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"], feed_forward=vision["intermediate_size"],
        image_size=_side(vision, "image_size"), patch_size=_side(vision, "patch_size"), channels=vision["num_channels"],
        activation=_activation(vision["hidden_act"]), attention_dropout=_on(vision["attention_dropout"]),
    )  # fmt: skip
    return Architecture(
        family="clip", hidden=text["hidden_size"], layers=text["num_hidden_layers"], heads=text["num_attention_heads"],
        feed_forward=text["intermediate_size"], vocabulary=text["vocab_size"],
        positions=text["max_position_embeddings"], activation=_activation(text["hidden_act"]),
        projection=c["projection_dim"], vision=tower, attention_dropout=_on(text["attention_dropout"]),
    )  # fmt: skip


# -- class defaults of transformers 5.23 ------------------------------------------------------------------------------

_BERT: Config = {
    "vocab_size": 30_522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512, "type_vocab_size": 2, "tie_word_embeddings": True,
}  # fmt: skip
_ROBERTA: Config = {**_BERT, "vocab_size": 50_265}
_DISTILBERT: Config = {
    "vocab_size": 30_522, "max_position_embeddings": 512, "n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072,
    "dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu", "tie_word_embeddings": True,
}  # fmt: skip
_GPT2: Config = {
    "vocab_size": 50_257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "activation_function": "gelu_new", "resid_pdrop": 0.1, "attn_pdrop": 0.1, "tie_word_embeddings": True,
}  # fmt: skip
_GPTJ: Config = {
    **_GPT2, "vocab_size": 50_400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64,
    "resid_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": False,
}  # fmt: skip
_GPT_NEOX: Config = {
    "vocab_size": 50_432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
    "intermediate_size": 24_576, "hidden_act": "gelu", "attention_dropout": 0.0, "hidden_dropout": 0.0,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "use_parallel_residual": True,
    "attention_bias": True, "rotary_pct": 0.25,
}  # fmt: skip
_FALCON: Config = {
    "vocab_size": 65_024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
    "num_ln_in_parallel_attn": None, "hidden_dropout": 0.0, "attention_dropout": 0.0, "num_kv_heads": None,
    "alibi": False, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False,
    "max_position_embeddings": 2048, "ffn_hidden_size": None, "activation": "gelu", "tie_word_embeddings": True,
}  # fmt: skip
_OPT: Config = {
    "vocab_size": 50_272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
    "max_position_embeddings": 2048, "do_layer_norm_before": True, "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None, "dropout": 0.1, "attention_dropout": 0.0, "num_attention_heads": 12,
    "activation_function": "relu", "enable_bias": True, "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}  # fmt: skip
_T5: Config = {
    "vocab_size": 32_128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": None,
    "num_heads": 8, "relative_attention_num_buckets": 32, "dropout_rate": 0.1, "feed_forward_proj": "relu",
    "n_positions": 512,
}  # fmt: skip
_MT5: Config = {
    **_T5, "vocab_size": 250_112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_LLAMA: Config = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "hidden_act": "silu", "max_position_embeddings": 2048,
    "tie_word_embeddings": False, "attention_dropout": 0.0,
}  # fmt: skip
_MISTRAL: Config = {
    **_LLAMA, "intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
}  # fmt: skip
_QWEN2: Config = {
    **_LLAMA, "vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
}  # fmt: skip
_GEMMA: Config = {
    **_LLAMA, "vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA2: Config = {
    **_GEMMA, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}  # fmt: skip
_GEMMA3: Config = {
    **_GEMMA2, "vocab_size": 262_208, "max_position_embeddings": 131_072, "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}  # fmt: skip
_PHI3: Config = {
    **_LLAMA, "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
}  # fmt: skip
_VIT: Config = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "image_size": 224,
    "patch_size": 16, "num_channels": 3, "qkv_bias": True, "pooler_output_size": None,
}  # fmt: skip
CLIP_TEXT: Config = {
    "vocab_size": 49_408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "attention_dropout": 0.0,
}  # fmt: skip
CLIP_VISION: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "attention_dropout": 0.0,
}  # fmt: skip

_TASKS: dict[str, Head] = {
    "Model": "none", "ForSequenceClassification": "sequence", "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "span",
}  # fmt: skip
_GPT2_ALIASES = {
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}  # fmt: skip
_T5_ALIASES = {
    "hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers", "head_dim": "d_kv",
}  # fmt: skip
_DISTILBERT_ALIASES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}


@dataclass(frozen=True)
class Reader:
    """Reads the config.json of one model type."""

    read: Callable[[Config], Architecture]
    defaults: Config
    classes: Mapping[str, Head]
    """Supported classes of `architectures`, and the head of each."""
    aliases: Mapping[str, str]
    """Other names of keys (`attribute_map` in transformers)."""


def _decoder(read: Callable[[Config], Architecture], defaults: Config, prefix: str, **aliases: str) -> Reader:
    classes = {f"{prefix}ForCausalLM": "default", **{prefix + name: head for name, head in _TASKS.items()}}
    return Reader(read, defaults, classes, aliases)


def _masked(defaults: Config, prefix: str) -> Reader:
    classes: dict[str, Head] = {f"{prefix}ForMaskedLM": "default", f"{prefix}ForCausalLM": "default"}
    return Reader(_bert, defaults, {**classes, **{prefix + name: head for name, head in _TASKS.items()}}, {})


def _encoder_decoder(defaults: Config, prefix: str) -> Reader:
    classes: dict[str, Head] = {
        f"{prefix}ForConditionalGeneration": "default", f"{prefix}Model": "none", f"{prefix}EncoderModel": "none",
    }  # fmt: skip
    if prefix == "T5":
        classes["T5WithLMHeadModel"] = "default"
    return Reader(_t5, defaults, classes, _T5_ALIASES)


READERS: dict[str, Reader] = {
    "bert": Reader(_bert, _BERT, {
        "BertForPreTraining": "default", "BertForMaskedLM": "masked-lm", "BertLMHeadModel": "masked-lm",
        **{"Bert" + name: head for name, head in _TASKS.items()}}, {}),
    "roberta": _masked(_ROBERTA, "Roberta"),
    "xlm-roberta": _masked(_BERT, "XLMRoberta"),
    "camembert": _masked(_BERT, "Camembert"),
    "distilbert": Reader(_distilbert, _DISTILBERT, {
        "DistilBertForMaskedLM": "default", **{"DistilBert" + name: head for name, head in _TASKS.items()},
    }, _DISTILBERT_ALIASES),
    "t5": _encoder_decoder(_T5, "T5"), "mt5": _encoder_decoder(_MT5, "MT5"), "umt5": _encoder_decoder(_MT5, "UMT5"),
    "gpt2": Reader(_gpt2, _GPT2, {
        "GPT2LMHeadModel": "default", **{"GPT2" + name: head for name, head in _TASKS.items()}}, _GPT2_ALIASES),
    "gptj": _decoder(_gptj, _GPTJ, "GPTJ", **_GPT2_ALIASES),
    "gpt_neox": _decoder(_gpt_neox, _GPT_NEOX, "GPTNeoX"),
    "falcon": _decoder(_falcon, _FALCON, "Falcon", n_embed="hidden_size"),
    "opt": _decoder(_opt, _OPT, "OPT"),
    "llama": _decoder(_llama, _LLAMA, "Llama"),
    "mistral": _decoder(_llama, _MISTRAL, "Mistral"),
    "mixtral": _decoder(_llama, {**_MISTRAL, "num_experts_per_tok": 2, "num_local_experts": 8}, "Mixtral",
                        num_experts="num_local_experts"),
    "qwen2": _decoder(_llama, _QWEN2, "Qwen2"),
    "qwen3": _decoder(_llama, {**_QWEN2, "head_dim": 128}, "Qwen3"),
    "gemma": _decoder(_llama, _GEMMA, "Gemma"), "gemma2": _decoder(_llama, _GEMMA2, "Gemma2"),
    "gemma3_text": Reader(_llama, _GEMMA3, {
        "Gemma3ForCausalLM": "default", "Gemma3TextModel": "none", "Gemma3TextForSequenceClassification": "sequence",
    }, {}),
    "phi3": _decoder(_llama, _PHI3, "Phi3"),
    "vit": Reader(_vit, _VIT, {"ViTForImageClassification": "default", "ViTModel": "none"}, {}),
    "clip": Reader(_clip, {"projection_dim": 512}, {"CLIPModel": "default"}, {}),
}  # fmt: skip
"""Readers by `model_type`."""
