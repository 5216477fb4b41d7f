"""The cases of `benchmarks.calculator`: real models and the setups that they are trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calculator import PRESETS, Architecture, TrainingSetup
from calculator.hf_config import from_config


@dataclass(frozen=True)
class Case:
    """One model and one setup. `config` overrides the family's default configuration."""

    family: str
    setup: TrainingSetup
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        default = TrainingSetup()
        changed = {k: v for k, v in vars(self.setup).items() if v != getattr(default, k)}
        parts = [f"{k}={v}" for k, v in {**self.config, **changed}.items()]
        return f"{self.family} " + " ".join(parts)


FAMILIES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 4}),
    "gpt2-large": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 36, "n_embd": 1280, "n_head": 20}),
    "gpt3": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 4, "n_embd": 1024, "n_head": 16, "n_positions": 2048}),
    "bert": ("BertConfig", "BertForPreTraining", {"num_hidden_layers": 4}),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", {"n_layer": 4, "n_embd": 1024, "n_head": 16}),
    "t5": ("T5Config", "T5ForConditionalGeneration", {"num_layers": 4}),
    "t5-1.1": ("T5Config", "T5ForConditionalGeneration", {
        "num_layers": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_ff": 1024}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
        "num_key_value_heads": 4}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 16,
        "num_key_value_heads": 8, "sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 40_000}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 32_000}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 32_000}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 32_000}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
        "num_key_value_heads": 4}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}),
    "falcon": ("FalconConfig", "FalconForCausalLM", {
        "num_hidden_layers": 4, "hidden_size": 1024, "num_attention_heads": 16, "new_decoder_architecture": True,
        "num_kv_heads": 4, "vocab_size": 32_000}),
    "opt": ("OPTConfig", "OPTForCausalLM", {"num_hidden_layers": 4}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", {"num_hidden_layers": 4, "max_position_embeddings": 514}),
    "distilbert": ("DistilBertConfig", "DistilBertForMaskedLM", {"n_layers": 4}),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", {"num_layers": 4, "vocab_size": 32_000}),
    "umt5": ("UMT5Config", "UMT5ForConditionalGeneration", {"num_layers": 4, "vocab_size": 32_000}),
    "bert-classifier": ("BertConfig", "BertForSequenceClassification", {"num_hidden_layers": 4}),
    "llama-classifier": ("LlamaConfig", "LlamaForSequenceClassification", {
        "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
        "num_key_value_heads": 4, "pad_token_id": 1}),
    "vit": ("ViTConfig", "ViTForImageClassification", {"num_hidden_layers": 4}),
    "clip": ("CLIPConfig", "CLIPModel", {}),
}  # fmt: skip


def transformers_config(case: Case) -> Any:
    """The transformers configuration of a case."""
    import transformers

    name, _, overrides = FAMILIES[case.family]
    extra: dict[str, Any] = {"attn_implementation": attention(case), **overrides, **case.config}
    if case.family not in ("vit", "clip", "distilbert") and not case.family.startswith("bert"):
        extra["use_cache"] = False
    if case.family.startswith(("t5", "mt5", "umt5")):
        extra |= {"decoder_start_token_id": 0, "pad_token_id": 0}
    if case.family == "clip":
        towers: dict[str, Any] = {"attn_implementation": attention(case)}
        towers |= {"num_hidden_layers": 4}
        extra |= {"text_config": dict(towers), "vision_config": dict(towers)}
    config = getattr(transformers, name)(**extra)
    if not case.setup.dropout:
        for key in vars(config):
            if "drop" in key and isinstance(getattr(config, key), float):
                setattr(config, key, 0.0)
    return config


def attention(case: Case) -> str:
    if case.family in ("gptj", "gemma2"):
        return "eager"
    return "sdpa" if case.setup.attention == "auto" else case.setup.attention


def architecture(case: Case) -> Architecture:
    """Return the calculator's architecture of a case."""
    if case.family == "ttt":
        names = {"dim": "hidden", "depth": "layers", "heads": "heads"}
        changes = {names[k]: v for k, v in case.config.items() if k in names}
        paper = PRESETS["ttt-dalle"]
        hidden = changes.get("hidden", paper.hidden)
        layers = changes.get("layers", paper.layers)
        return replace(paper, **changes, feed_forward=4 * hidden, groups=min(paper.groups, layers))
    return from_config({**transformers_config(case).to_dict(), "architectures": [FAMILIES[case.family][1]]})


Loss = Callable[[nn.Module], Tensor]


def build(case: Case) -> tuple[nn.Module, Loss, list[Tensor]]:
    """Return the real model in the current default dtype, a function from the model to its loss, and the batch."""
    model = _build_ttt(case) if case.family == "ttt" else _build_transformers(case)
    inputs = _inputs(case)
    batch = [x for x in inputs.values() if isinstance(x, Tensor)]
    if case.family == "ttt":
        return Trained(model), lambda m: m(**inputs), batch
    return model, lambda m: m(**inputs).loss, batch


def _build_ttt(case: Case) -> nn.Module:
    from ttt.config import PAPER
    from ttt.model.dalle import Dalle

    setup = case.setup
    changes: dict[str, Any] = dict(case.config)
    if setup.reversible is not None:
        changes["reversible"] = setup.reversible
    if setup.shared_groups is not None:
        changes["share_layers"] = setup.shared_groups < changes.get("depth", PAPER.depth)
    return Dalle(replace(PAPER, **changes))


def _build_transformers(case: Case) -> nn.Module:
    import transformers

    setup = case.setup
    config = transformers_config(case)
    model = getattr(transformers, FAMILIES[case.family][1])(config)
    if setup.shared_groups:
        for layers in _stacks(model):
            for i in range(len(layers)):
                layers[i] = layers[i % setup.shared_groups]
    if setup.every == 1:
        model.gradient_checkpointing_enable()
    elif setup.every:
        for layers in _stacks(model):
            segments = [Segment(layers[i : i + setup.every]) for i in range(0, len(layers), setup.every)]
            model.config.num_hidden_layers = len(segments)
            while len(layers):
                del layers[-1]
            layers.extend(segments)
    return model


class Trained(nn.Module):
    """Calls `loss` as a forward pass: MemTracker tracks calls of one module."""

    def __init__(self, dalle: nn.Module) -> None:
        super().__init__()
        self.dalle = dalle

    def forward(self, **inputs: Tensor) -> Tensor:
        loss: Tensor = self.dalle.loss(**inputs)  # type: ignore[operator]
        return loss


class Segment(nn.Module):
    """Several layers in one checkpoint."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def run(x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, *args, **kwargs)
            return x

        return checkpoint(run, x, use_reentrant=False)


def _stacks(model: nn.Module) -> list[nn.ModuleList]:
    """Return the longest module lists of a model: its layers (two lists in t5 and clip)."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 3]
    return [m for m in lists if len(m) == max(map(len, lists))]


def _inputs(case: Case) -> dict[str, Any]:
    a, s = architecture(case), case.setup
    b, ids = s.batch_size, torch.int64
    n = s.sequence_length or a.positions
    if case.family == "ttt":
        return {"text": torch.zeros(b, 256, dtype=ids), "codes": torch.zeros(b, 1024, dtype=ids)}
    side = (a.vision or a).image_size
    images = torch.zeros(b, (a.vision or a).channels, side, side)
    if case.family == "vit":
        return {"pixel_values": images, "labels": torch.zeros(b, dtype=ids)}
    tokens, labels = torch.zeros(b, n, dtype=ids), torch.zeros(b, n, dtype=ids)
    if a.head == "sequence":
        return {"input_ids": tokens, "labels": torch.zeros(b, dtype=ids)}
    if case.family == "clip":
        return {"pixel_values": images, "input_ids": tokens, "return_loss": True}
    if case.family == "bert":
        return {"input_ids": tokens, "labels": labels, "next_sentence_label": torch.zeros(b, dtype=ids)}
    return {"input_ids": tokens, "labels": labels}


def _case(family: str, config: dict[str, Any] | None = None, **setup: Any) -> Case:
    return Case(family, TrainingSetup(**setup), config or {})


def _all() -> list[Case]:
    cases = []
    for family, s in (("gpt2", 512), ("bert", 256), ("t5", 256), ("llama", 512)):
        common: dict[str, Any] = {"batch_size": 2, "sequence_length": s}
        cases += [
            _case(family, **common, precision=precision, attention=mode)
            for precision, mode in (("float32", "eager"), ("float32", "sdpa"), ("mixed-fp16", "eager"),
                                    ("mixed-bf16", "sdpa"), ("pure-bf16", "eager"), ("pure-bf16", "sdpa"))
        ]  # fmt: skip
        cases += [
            _case(family, **common, precision=precision, attention=mode, gradient_checkpointing=True)
            for precision, mode in (("float32", "eager"), ("mixed-fp16", "sdpa"), ("pure-bf16", "sdpa"))
        ]
        cases.append(_case(family, batch_size=4, sequence_length=s, shared_groups=2))
        cases.append(_case(family, batch_size=4, sequence_length=s, dropout=False, optimizer="sgd"))
        cases.append(_case(family, batch_size=1, sequence_length=64, optimizer_implementation="for-loop"))
        cases.append(_case(family, batch_size=1, sequence_length=s, accumulation_steps=2))
    for family in ("gpt2", "llama"):
        cases.append(_case(family, batch_size=8, sequence_length=512, gradient_checkpointing=2))
        cases.append(_case(family, batch_size=4, sequence_length=512, shared_groups=2, gradient_checkpointing=True))
    cases.append(_case("t5", batch_size=2, sequence_length=128, precision="pure-fp16"))
    cases += [
        _case("gptj", batch_size=2, sequence_length=512, precision=p) for p in ("float32", "mixed-fp16", "pure-bf16")
    ]
    cases.append(_case("gptj", batch_size=2, sequence_length=512, gradient_checkpointing=True))
    for family in ("gpt3", "mistral", "qwen2", "qwen3", "t5-1.1"):
        s = 512 if family != "gpt3" else 2048
        cases.append(_case(family, batch_size=2, sequence_length=s))
    cases.append(_case("qwen3", batch_size=2, sequence_length=512, precision="mixed-bf16", gradient_checkpointing=True))
    for family, b in (("vit", 32), ("clip", 16)):
        for precision in ("float32", "mixed-fp16"):
            cases.append(_case(family, batch_size=b, precision=precision))
        cases.append(_case(family, batch_size=b, gradient_checkpointing=True))
        cases.append(_case(family, batch_size=b, attention="eager"))
    for family, b, s in (("gemma", 4, 512), ("gemma2", 4, 512), ("gemma3", 4, 512), ("phi3", 4, 512),
                         ("gpt_neox", 8, 512), ("falcon", 4, 512), ("opt", 8, 512), ("roberta", 16, 512),
                         ("distilbert", 16, 512), ("mt5", 8, 256), ("umt5", 8, 256)):  # fmt: skip
        cases += [
            _case(family, batch_size=b, sequence_length=s),
            _case(family, batch_size=b, sequence_length=s, precision="mixed-bf16", attention="eager"),
            _case(family, batch_size=b, sequence_length=s, precision="pure-bf16"),
            _case(family, batch_size=b, sequence_length=s, precision="mixed-bf16", gradient_checkpointing=True),
        ]
    cases.append(_case("bert-classifier", batch_size=32, sequence_length=256))
    cases.append(_case("llama-classifier", batch_size=8, sequence_length=512, precision="mixed-bf16"))
    cases.append(_case("gpt2-large", batch_size=1, sequence_length=1024, gradient_checkpointing=True))
    cases.append(_case("gpt2-large", batch_size=1, sequence_length=1024, precision="mixed-fp16"))
    small = {"depth": 9}
    extras: tuple[dict[str, Any], ...] = ({}, {"precision": "mixed-bf16"}, {"reversible": False}, {"shared_groups": 9})
    cases += [_case("ttt", small, batch_size=2, optimizer="sgd", **extra) for extra in extras]
    cases.append(_case("ttt", None, batch_size=1))
    return cases + _held_out()


def _held_out() -> list[Case]:
    """Cases chosen after the calculator was written, with large activations: the peak is never the optimizer step."""
    bert, llama, t5 = ({"batch_size": b, "sequence_length": s} for b, s in ((16, 512), (4, 1024), (6, 256)))
    return [
        _case("bert", **bert, attention="eager"),
        _case("bert", **bert, precision="pure-bf16"),
        _case("bert", **bert, gradient_checkpointing=2, precision="mixed-fp16"),
        _case("bert", {"hidden_act": "relu"}, **bert),
        _case("llama", **llama),
        _case("llama", **llama, precision="mixed-bf16", gradient_checkpointing=True),
        _case("llama", {"attention_bias": True, "mlp_bias": True}, **llama),
        _case("llama", batch_size=3, sequence_length=777, precision="pure-bf16"),
        _case("mistral", {"head_dim": 128}, batch_size=4, sequence_length=600, precision="mixed-bf16"),
        _case("qwen2", {"tie_word_embeddings": False}, batch_size=4, sequence_length=512, gradient_checkpointing=True),
        _case("qwen3", {"tie_word_embeddings": True}, batch_size=4, sequence_length=640, precision="pure-bf16"),
        _case("t5", batch_size=8, sequence_length=384, precision="mixed-bf16", gradient_checkpointing=True),
        _case("t5-1.1", **t5, precision="pure-bf16"),
        _case("t5-1.1", **t5, attention="eager", gradient_checkpointing=True),
        _case("gptj", {"resid_pdrop": 0.1, "attn_pdrop": 0.1}, batch_size=2, sequence_length=512),
        _case("vit", {"image_size": 384}, batch_size=16),
        _case("vit", batch_size=64, precision="pure-bf16"),
        _case("clip", batch_size=128),
        _case("clip", batch_size=128, gradient_checkpointing=True),
        _case("clip", batch_size=128, precision="mixed-bf16", attention="eager", optimizer="sgd"),
        _case("gpt2", {"activation_function": "gelu"}, batch_size=8, sequence_length=1024, precision="mixed-bf16"),
        _case("gpt2", {"tie_word_embeddings": False}, batch_size=4, sequence_length=768),
        _case("gpt3", batch_size=1, sequence_length=2048, precision="pure-bf16", gradient_checkpointing=2),
    ]


CASES = _all()
