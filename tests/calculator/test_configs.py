"""config.json files as transformers writes them: every parameter is counted, or the file is refused by name.

transformers leaves out values that equal the defaults of the class, so these files also test the defaults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from calculator import CalculatorError, TrainingSetup, estimate, parameter_count
from calculator.hf_config import READERS, from_config, from_json
from calculator.simulate import tensors

SMALL = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 700}
GQA = {**SMALL, "num_key_value_heads": 2}
DEEP: dict[str, dict[str, Any]] = {
    # These classes' defaults are too large to build in a test, even without memory.
    "GPTNeoX": {"num_hidden_layers": 2}, "Falcon": {"num_hidden_layers": 2}, "Mixtral": {"num_hidden_layers": 2},
}  # fmt: skip

CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: (config class, model class, values)
    **{f"{kind} defaults": (f"{kind}Config", f"{kind}{model}", {}) for kind, model in (
        ("Llama", "ForCausalLM"), ("Mistral", "ForCausalLM"), ("Qwen2", "ForCausalLM"), ("Qwen3", "ForCausalLM"),
        ("Gemma", "ForCausalLM"), ("Gemma2", "ForCausalLM"), ("Phi3", "ForCausalLM"), ("OPT", "ForCausalLM"),
        ("GPT2", "LMHeadModel"), ("GPTJ", "ForCausalLM"), ("Bert", "ForMaskedLM"), ("Roberta", "ForMaskedLM"),
        ("DistilBert", "ForMaskedLM"), ("T5", "ForConditionalGeneration"), ("MT5", "ForConditionalGeneration"),
        ("UMT5", "ForConditionalGeneration"), ("ViT", "ForImageClassification"), ("CLIP", "Model"),
        ("XLMRoberta", "ForMaskedLM"), ("Camembert", "ForMaskedLM"), ("Bert", "ForPreTraining"))},
    **{f"{kind} defaults, 2 layers": (f"{kind}Config", f"{kind}ForCausalLM", values) for kind, values in DEEP.items()},
    "gemma 3 text defaults": ("Gemma3TextConfig", "Gemma3ForCausalLM", {}),
    "llama, grouped": ("LlamaConfig", "LlamaForCausalLM", GQA),
    "llama, one key head, tied": ("LlamaConfig", "LlamaForCausalLM",
                                  {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, biases": ("LlamaConfig", "LlamaForCausalLM", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("LlamaConfig", "LlamaForCausalLM", {**GQA, "head_dim": 64}),
    "llama, bare": ("LlamaConfig", "LlamaModel", GQA),
    "llama, reward model": ("LlamaConfig", "LlamaForSequenceClassification", {**GQA, "num_labels": 1}),
    "llama, token labels": ("LlamaConfig", "LlamaForTokenClassification", {**GQA, "num_labels": 9}),
    "llama, answers": ("LlamaConfig", "LlamaForQuestionAnswering", GQA),
    "mistral, sliding, tied": ("MistralConfig", "MistralForCausalLM",
                               {**GQA, "sliding_window": 128, "tie_word_embeddings": True}),
    "mistral, null window": ("MistralConfig", "MistralForCausalLM", {**GQA, "sliding_window": None}),
    "mistral, wide heads": ("MistralConfig", "MistralForCausalLM", {**GQA, "head_dim": 128}),
    "mistral, embedding model": ("MistralConfig", "MistralModel", GQA),
    "qwen2, tied": ("Qwen2Config", "Qwen2ForCausalLM", {**GQA, "tie_word_embeddings": True}),
    "qwen2, classifier": ("Qwen2Config", "Qwen2ForSequenceClassification", GQA),
    "qwen3, biases": ("Qwen3Config", "Qwen3ForCausalLM", {**GQA, "attention_bias": True}),
    "qwen3, tied, heads of 32": ("Qwen3Config", "Qwen3ForCausalLM",
                                 {**GQA, "head_dim": 32, "tie_word_embeddings": True}),
    "gemma, one key head": ("GemmaConfig", "GemmaForCausalLM", {**SMALL, "num_key_value_heads": 1, "head_dim": 48}),
    "gemma2, untied": ("Gemma2Config", "Gemma2ForCausalLM", {**GQA, "tie_word_embeddings": False}),
    "gemma2, classifier": ("Gemma2Config", "Gemma2ForSequenceClassification", GQA),
    "gemma3 text, biases": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**GQA, "attention_bias": True}),
    "phi3, grouped, tied": ("Phi3Config", "Phi3ForCausalLM", {**GQA, "tie_word_embeddings": True}),
    "mixtral, 4 experts": ("MixtralConfig", "MixtralForCausalLM", {**GQA, "num_local_experts": 4}),
    "falcon, new architecture": ("FalconConfig", "FalconForCausalLM",
                                 {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8,
                                  "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, new, one norm": ("FalconConfig", "FalconForCausalLM",
                              {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8,
                               "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon, sequential, biases": ("FalconConfig", "FalconForCausalLM",
                                   {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8,
                                    "parallel_attn": False, "multi_query": False, "bias": True}),
    "falcon, untied, wide": ("FalconConfig", "FalconForCausalLM",
                             {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8,
                              "ffn_hidden_size": 999, "tie_word_embeddings": False}),
    "opt, projected, norms after": ("OPTConfig", "OPTForCausalLM",
                                    {"num_hidden_layers": 2, "hidden_size": 256, "word_embed_proj_dim": 96,
                                     "num_attention_heads": 8, "do_layer_norm_before": False}),
    "opt, no biases, no norm weights": ("OPTConfig", "OPTForCausalLM",
                                        {"num_hidden_layers": 2, "enable_bias": False,
                                         "layer_norm_elementwise_affine": False}),
    "opt, untied": ("OPTConfig", "OPTForCausalLM", {"num_hidden_layers": 2, "tie_word_embeddings": False}),
    "opt, classifier": ("OPTConfig", "OPTForSequenceClassification",
                        {"num_hidden_layers": 2, "word_embed_proj_dim": 96}),
    "pythia": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**SMALL, "vocab_size": 50_304}),
    "gpt-neox, sequential, no biases, tied": ("GPTNeoXConfig", "GPTNeoXForCausalLM",
                                              {**SMALL, "use_parallel_residual": False, "attention_bias": False,
                                               "tie_word_embeddings": True}),
    "gpt2, inner": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 2, "n_inner": 500}),
    "gpt2, bare": ("GPT2Config", "GPT2Model", {"n_layer": 2}),
    "gpt2, classifier": ("GPT2Config", "GPT2ForSequenceClassification", {"n_layer": 2, "num_labels": 5}),
    "gptj, classifier": ("GPTJConfig", "GPTJForSequenceClassification", {"n_layer": 2, "n_embd": 256, "n_head": 4}),
    "bert, classifier": ("BertConfig", "BertForSequenceClassification", {"num_labels": 3}),
    "bert, token labels": ("BertConfig", "BertForTokenClassification", {"num_labels": 9}),
    "bert, answers": ("BertConfig", "BertForQuestionAnswering", {}),
    "bert, bare": ("BertConfig", "BertModel", {"num_hidden_layers": 3}),
    "bert, masked, untied": ("BertConfig", "BertForMaskedLM", {"num_hidden_layers": 2, "tie_word_embeddings": False}),
    "roberta, classifier": ("RobertaConfig", "RobertaForSequenceClassification",
                            {"max_position_embeddings": 514, "type_vocab_size": 1}),
    "roberta, untied": ("RobertaConfig", "RobertaForMaskedLM", {"num_hidden_layers": 2, "tie_word_embeddings": False}),
    "distilbert, classifier": ("DistilBertConfig", "DistilBertForSequenceClassification", {"n_layers": 2}),
    "distilbert, answers": ("DistilBertConfig", "DistilBertForQuestionAnswering", {"dim": 384, "hidden_dim": 999}),
    "distilbert, untied": ("DistilBertConfig", "DistilBertForMaskedLM", {"n_layers": 2, "tie_word_embeddings": False}),
    "t5 encoder": ("T5Config", "T5EncoderModel", {"num_layers": 3}),
    "t5 1.1": ("T5Config", "T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 3}),
    "umt5 encoder": ("UMT5Config", "UMT5EncoderModel", {"num_layers": 3}),
    "mt5, wide heads": ("MT5Config", "MT5ForConditionalGeneration", {"d_kv": 96, "num_heads": 4}),
    "vit, no biases": ("ViTConfig", "ViTForImageClassification", {**SMALL, "qkv_bias": False, "num_labels": 10}),
    "vit, bare": ("ViTConfig", "ViTModel", {"num_hidden_layers": 2, "image_size": 384, "patch_size": 32}),
    "clip, large": ("CLIPConfig", "CLIPModel",
                    {"projection_dim": 768,
                     "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
                     "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096,
                                       "patch_size": 14, "num_hidden_layers": 24}}),
}  # fmt: skip

REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "mamba": ("MambaConfig", "MambaForCausalLM", {}, "'mamba' is not supported; supported: bert"),
    "bloom": ("BloomConfig", "BloomForCausalLM", {}, "'bloom' is not supported"),
    "gemma 3 with images": ("Gemma3Config", "Gemma3ForConditionalGeneration", {}, "use the value of text_config"),
    "llama 4": ("Llama4Config", "Llama4ForConditionalGeneration", {}, "'llama4' is not supported"),
    "siglip": ("SiglipConfig", "SiglipModel", {}, "'siglip' is not supported"),
    "deberta": ("DebertaV2Config", "DebertaV2ForMaskedLM", {}, "'deberta-v2' is not supported"),
    "albert": ("AlbertConfig", "AlbertForMaskedLM", {}, "'albert' is not supported"),
    "bart": ("BartConfig", "BartForConditionalGeneration", {}, "'bart' is not supported"),
    "deepseek v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {}, "'deepseek_v3' is not supported"),
    "qwen2 mixture": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM", {}, "'qwen2_moe' is not supported"),
    "falcon with alibi": ("FalconConfig", "FalconForCausalLM", {"alibi": True}, "alibi positions are not supported"),
    "double heads": ("GPT2Config", "GPT2DoubleHeadsModel", {}, "GPT2DoubleHeadsModel is not supported; supported gpt2"),
    "multiple choice": ("BertConfig", "BertForMultipleChoice", {}, "BertForMultipleChoice is not supported"),
    "t5 classifier": ("T5Config", "T5ForSequenceClassification", {}, "T5ForSequenceClassification is not supported"),
    "cross-attention": ("GPT2Config", "GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention"),
}  # fmt: skip


def written(config: str, model: str, values: dict[str, Any], *, diff: bool = True) -> str:
    made = getattr(hf, config)(**values)
    made.architectures = [model]
    return str(made.to_json_string(use_diff=diff))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_a_written_config_is_counted(name: str) -> None:
    config, model, values = CONFIGS[name]
    with torch.device("meta"):
        real = sum(p.numel() for p in getattr(hf, model)(getattr(hf, config)(**values)).parameters())
    for diff in (True, False):
        assert parameter_count(from_json(written(config, model, values, diff=diff))) == real


def test_there_are_configs_of_every_supported_model_type() -> None:
    kinds = {getattr(hf, config).model_type for config, _, _ in CONFIGS.values()}
    assert kinds == set(READERS)
    assert len(CONFIGS) >= 60


def test_a_saved_config_is_read(tmp_path: Path) -> None:
    hf.Qwen2Config(num_hidden_layers=2, tie_word_embeddings=True).save_pretrained(tmp_path)
    with torch.device("meta"):
        real = sum(
            p.numel() for p in hf.AutoModelForCausalLM.from_config(hf.AutoConfig.from_pretrained(tmp_path)).parameters()
        )
    assert parameter_count(from_json((tmp_path / "config.json").read_bytes())) == real


NEW_FAMILIES = (
    "opt, projected, norms after", "pythia", "falcon, new architecture", "falcon, sequential, biases",
    "phi3, grouped, tied", "gemma3 text, biases", "mixtral, 4 experts", "Roberta defaults", "DistilBert defaults",
    "UMT5 defaults",
)  # fmt: skip


@pytest.mark.parametrize("name", NEW_FAMILIES)
def test_tensors_of_new_families_have_transformers_names_and_shapes(name: str) -> None:
    config, model, values = CONFIGS[name]
    with torch.device("meta"):
        real = {n: tuple(p.shape) for n, p in getattr(hf, model)(getattr(hf, config)(**values)).named_parameters()}
    a = from_json(written(config, model, values))
    assert {t.name.replace("{}", str(i)): t.shape for t in tensors(a) for i in range(t.repeat)} == real


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_config_is_refused_by_name(name: str) -> None:
    config, model, values, message = REFUSED[name]
    with pytest.raises(CalculatorError, match=message):
        from_json(written(config, model, values))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("setup", [TrainingSetup(sequence_length=None),
                                   TrainingSetup(precision="mixed-bf16", gradient_checkpointing=True, batch_size=2)],
                         ids=["plain", "mixed"])  # fmt: skip
def test_every_config_has_an_estimate(name: str, setup: TrainingSetup) -> None:
    m = estimate(from_json(written(*CONFIGS[name])), setup)
    assert m.gpu_total > 12 * m.parameter_count


PUBLISHED = {
    # What people paste: files of published models, cut to the keys that set the size.
    "llama-3-8b": ({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}, 8_030_261_248),
    "qwen3 without head_dim": ({"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
                                "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
                                "vocab_size": 151936, "tie_word_embeddings": True}, 596_049_920),
    "e5-mistral": ({"architectures": ["MistralModel"], "model_type": "mistral"}, 7_110_660_096),
    "reward": ({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "hidden_size": 4096,
                "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "vocab_size": 128256, "id2label": {"0": "LABEL_0"}}, 7_504_928_768),
    "t5 encoder of flux": ({"architectures": ["T5EncoderModel"], "model_type": "t5", "d_ff": 10240, "d_model": 4096,
                            "feed_forward_proj": "gated-gelu", "num_heads": 64, "num_layers": 24}, 4_762_310_656),
    "mt5-small": ({"model_type": "mt5", "vocab_size": 250112}, 172_119_424),
    "umt5-small": ({"model_type": "umt5", "vocab_size": 256384}, 175_333_376),
    "no model_type, but a class": ({"architectures": ["BertForMaskedLM"]}, 109_514_298),
    "other names": ({"model_type": "gpt2", "hidden_size": 768, "num_hidden_layers": 12}, 124_439_808),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name: str) -> None:
    config, parameters = PUBLISHED[name]
    assert parameter_count(from_config(config)) == parameters


@pytest.mark.parametrize("activation", ["swish", "gelu_python", "gelu_fast", "gelu_10", "gelu_pytorch_tanh", "tanh"])
def test_names_of_activation_functions(activation: str) -> None:
    assert estimate(from_config({"model_type": "bert", "hidden_act": activation, "num_hidden_layers": 2})).gpu_total


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 768}, 'no model_type; add one, for example "model_type": "bert"'),
        ({"peft_type": "LORA", "base_model_name_or_path": "a/b"}, "adapter_config.json; use the config.json of a/b"),
        ({"model_type": "qwen2", "num_attention_heads": 16, "hidden_size": 1024}, "add num_key_value_heads"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLMEagle"]}, "LlamaForCausalLMEagle is not supported"),
    ],
)
def test_refusals_say_what_to_do(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        from_config(config)


def test_a_byte_order_mark_is_skipped() -> None:
    text = json.dumps({"model_type": "gpt2"})
    assert from_json("\ufeff" + text) == from_json(b"\xef\xbb\xbf" + text.encode()) == from_json(text)


def test_quantisation_is_read() -> None:
    config = {"model_type": "llama", "quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}
    assert from_config(config).quantization == "bitsandbytes, 4-bit"
    assert from_config({**config, "quantization_config": {"quant_method": "fp8"}}).quantization == "fp8"


NAN, INFINITY = float("nan"), float("inf")
HOSTILE: tuple[Any, ...] = (None, "x", -1, 0, 1.5, NAN, INFINITY, True, [], [1], {}, {"a": []}, 10**30, "9" * 50)


@pytest.mark.parametrize("kind", READERS)
def test_no_value_of_any_key_gets_past_the_checks(kind: str) -> None:
    others = [
        "architectures",
        "id2label",
        "quantization_config",
        "rope_parameters",
        "text_config",
        "vision_config",
        "head_dim",
    ]
    keys = [*READERS[kind].defaults, *READERS[kind].aliases, *others, "attention_bias", "_name_or_path"]
    refused = 0
    for key in keys:
        for value in HOSTILE:
            try:
                a = from_config({"model_type": kind, key: value})
                estimate(a, TrainingSetup(sequence_length=None if kind == "vit" else 16))
            except CalculatorError:  # anything else fails the test
                refused += 1
    assert refused > len(keys)
