"""Parameters, tensor by tensor, against real models on the meta device and against published counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from calculator import PRESETS, CalculatorError, TrainingSetup, custom, estimate, parameter_count
from calculator.custom import FIELDS, SIZES
from calculator.hf_config import READERS, from_config
from calculator.presets import CONFIGS, GROUPS
from calculator.simulate import tensors

MODELS: dict[str, tuple[Any, Any]] = {
    "gpt2": (hf.GPT2Config(n_layer=2, n_embd=96, n_head=3), hf.GPT2LMHeadModel),
    "gpt2 untied": (hf.GPT2Config(n_layer=2, tie_word_embeddings=False), hf.GPT2LMHeadModel),
    "bert": (hf.BertConfig(num_hidden_layers=3, hidden_size=128, num_attention_heads=2), hf.BertForPreTraining),
    "gptj": (hf.GPTJConfig(n_layer=2, n_embd=256, n_head=4), hf.GPTJForCausalLM),
    "t5": (hf.T5Config(num_layers=2, num_decoder_layers=3, d_kv=48), hf.T5ForConditionalGeneration),
    "t5 1.1": (
        hf.T5Config(num_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        hf.T5ForConditionalGeneration,
    ),
    "llama": (
        hf.LlamaConfig(num_hidden_layers=2, hidden_size=256, num_attention_heads=8, num_key_value_heads=2,
                       intermediate_size=704),
        hf.LlamaForCausalLM,
    ),
    "mistral": (hf.MistralConfig(num_hidden_layers=2, hidden_size=512, num_attention_heads=8), hf.MistralForCausalLM),
    "qwen2": (hf.Qwen2Config(num_hidden_layers=2, hidden_size=256, num_attention_heads=8, num_key_value_heads=4),
              hf.Qwen2ForCausalLM),
    "qwen3": (hf.Qwen3Config(num_hidden_layers=2, hidden_size=256, num_attention_heads=8, num_key_value_heads=4,
                             head_dim=64), hf.Qwen3ForCausalLM),
    "vit": (hf.ViTConfig(num_hidden_layers=2), hf.ViTForImageClassification),
    "clip": (hf.CLIPConfig(text_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 3}), hf.CLIPModel),
}  # fmt: skip

SHORT = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 700}
MODELS |= {
    "llama, one key head, tied": (hf.LlamaConfig(**SHORT, num_key_value_heads=1, tie_word_embeddings=True),
                                  hf.LlamaForCausalLM),
    "llama with biases": (hf.LlamaConfig(**SHORT, attention_bias=True, mlp_bias=True), hf.LlamaForCausalLM),
    "mistral, wide heads": (hf.MistralConfig(**SHORT, head_dim=128, num_key_value_heads=2), hf.MistralForCausalLM),
    "mistral, sliding, tied": (hf.MistralConfig(**SHORT, num_key_value_heads=8, sliding_window=128,
                                                tie_word_embeddings=True), hf.MistralForCausalLM),
    "qwen2 tied": (hf.Qwen2Config(**SHORT, num_key_value_heads=2, tie_word_embeddings=True), hf.Qwen2ForCausalLM),
    "qwen3 with biases, tied": (hf.Qwen3Config(**SHORT, num_key_value_heads=2, head_dim=64, attention_bias=True,
                                               tie_word_embeddings=True), hf.Qwen3ForCausalLM),
    "vit without biases": (hf.ViTConfig(**SHORT, image_size=384, patch_size=32, qkv_bias=False, num_labels=10),
                           hf.ViTForImageClassification),
    "vit of one channel": (hf.ViTConfig(**SHORT, num_channels=1, image_size=(96, 96)), hf.ViTForImageClassification),
    "clip, large towers": (
        hf.CLIPConfig(projection_dim=768, text_config={"hidden_size": 768, "num_attention_heads": 12,
                      "intermediate_size": 3072, "num_hidden_layers": 2}, vision_config={"hidden_size": 1024,
                      "num_attention_heads": 16, "intermediate_size": 4096, "patch_size": 14, "num_hidden_layers": 2}),
        hf.CLIPModel,
    ),
    "t5 gated, tied": (hf.T5Config(num_layers=2, num_decoder_layers=4, d_ff=999, feed_forward_proj="gated-silu"),
                       hf.T5ForConditionalGeneration),
    "gptj tied": (hf.GPTJConfig(n_layer=2, n_embd=256, n_head=4, tie_word_embeddings=True), hf.GPTJForCausalLM),
    "gptj inner": (hf.GPTJConfig(n_layer=2, n_embd=256, n_head=4, n_inner=777, rotary_dim=32), hf.GPTJForCausalLM),
    "gpt2 inner": (hf.GPT2Config(n_layer=2, n_embd=96, n_head=3, n_inner=500), hf.GPT2LMHeadModel),
    "bert untied": (hf.BertConfig(num_hidden_layers=2, tie_word_embeddings=False), hf.BertForPreTraining),
}  # fmt: skip
REFUSED: dict[str, tuple[Any, str]] = {
    "cross-attention": (hf.GPT2Config(add_cross_attention=True), "add_cross_attention"),
    "buckets": (hf.T5Config(relative_attention_num_buckets=64), "must be 32"),
    "oblong": (hf.ViTConfig(image_size=(224, 320)), "not square"),
}

PUBLISHED = {
    "bert-base": 110_106_428, "bert-large": 336_226_108, "t5-small": 60_506_624, "t5-base": 222_903_552,
    "t5-large": 737_668_096, "t5-3b": 2_851_598_336, "t5-11b": 11_307_321_344, "gpt2": 124_439_808,
    "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824, "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496, "tinyllama-1.1b": 1_100_048_384, "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704, "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360, "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264, "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320, "gemma-3-1b": 999_885_952, "phi-3-mini": 3_821_079_552, "phi-4": 14_659_507_200,
    "falcon-7b": 6_921_720_704, "pythia-1.4b": 1_414_647_808, "pythia-6.9b": 6_857_302_016, "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984, "roberta-base": 124_697_433, "roberta-large": 355_412_057,
    "distilbert-base": 66_985_530, "vit-base-16": 86_567_656, "vit-large-16": 304_326_632,
    "clip-vit-b-32": 151_277_313, "clip-vit-l-14": 427_616_513,
    "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200, "gpt-j-6b": 6_050_882_784,
}  # fmt: skip
"""Parameters of the Hugging Face models."""


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_family_is_counted(name: str) -> None:
    config, model = MODELS[name]
    with torch.device("meta"):
        real = {n: tuple(p.shape) for n, p in model(config).named_parameters()}
    ours = {
        t.name.replace("{}", str(i)): t.shape for t in tensors(from_config(config.to_dict())) for i in range(t.repeat)
    }
    assert ours == real


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_would_be_counted_wrongly_are_refused(name: str) -> None:
    config, message = REFUSED[name]
    with pytest.raises(CalculatorError, match=message):
        from_config(config.to_dict())


CUSTOM = {
    "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel), "bert": (hf.BertConfig, hf.BertForPreTraining),
    "gptj": (hf.GPTJConfig, hf.GPTJForCausalLM), "t5": (hf.T5Config, hf.T5ForConditionalGeneration),
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM), "vit": (hf.ViTConfig, hf.ViTForImageClassification),
    "clip": (hf.CLIPConfig, hf.CLIPModel),
}  # fmt: skip


@pytest.mark.parametrize("family", CUSTOM)
def test_a_model_by_its_dimensions_is_the_default_of_its_family(family: str) -> None:
    sizes = {"hidden": 256, "layers": 2, "heads": 4, "feed_forward": 600, "vocabulary": 999, "positions": 64}
    tower = {"vision_hidden": 128, "vision_layers": 3, "vision_heads": 2, "vision_feed_forward": 300, "projection": 96}
    config, model = CUSTOM[family]
    fields = {theirs: {**SIZES, **sizes, **tower}[ours] for theirs, ours in FIELDS[family].items()}
    if family == "t5":
        fields["d_kv"] = 64
    if family == "clip":
        seen = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 300}
        fields = {"text_config": fields, "vision_config": {**seen, "patch_size": 16}, "projection_dim": 96}
    if family == "llama":
        fields["num_key_value_heads"] = 4
    with torch.device("meta"):
        real = sum(p.numel() for p in model(config(**fields)).parameters())
    assert parameter_count(custom(family, **sizes, **tower)) == real


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert parameter_count(name) == PUBLISHED[name]
    assert estimate(name, TrainingSetup(batch_size=1)).parameters == 4 * PUBLISHED[name]


@pytest.mark.parametrize(("name", "billions"), [("gpt3-small", 0.12523), ("gpt3-xl", 1.31572), ("gpt3-2.7b", 2.65155),
                                                ("gpt3-175b", 174.604), ("dalle-12b", 12.198)])  # fmt: skip
def test_models_without_weights_follow_the_formula(name: str, billions: float) -> None:
    assert parameter_count(name) == pytest.approx(billions * 1e9, rel=1e-4)


def test_the_paper_preset_matches_the_model_that_is_trained() -> None:
    from ttt.config import PAPER
    from ttt.model.dalle import Dalle

    with torch.device("meta"):
        shared = sum(p.numel() for p in Dalle(PAPER).parameters())
    assert parameter_count("ttt-dalle") == shared
    unshared = estimate("ttt-dalle", TrainingSetup(shared_groups=64)).parameter_count
    assert 8.8 < unshared / shared < 8.9


def test_all_presets_are_there() -> None:
    old = (
        "bert-base", "bert-large", "t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b", "gpt2", "gpt2-medium",
        "gpt2-large", "gpt2-xl", "gpt3-small", "gpt3-medium", "gpt3-large", "gpt3-xl", "gpt3-2.7b", "gpt3-6.7b",
        "gpt3-13b", "gpt3-175b", "gpt-j-6b", "dalle-12b", "ttt-dalle",
    )  # fmt: skip
    assert tuple(PRESETS)[: len(old)] == old
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(PRESETS)
    assert all(name == a.name for name, a in PRESETS.items())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CONFIGS)
def test_presets_with_a_config_have_the_parameters_of_the_real_model(name: str) -> None:
    config = hf.AutoConfig.for_model(**CONFIGS[name])
    model = getattr(hf, next(iter(READERS[CONFIGS[name]["model_type"]].classes)))
    with torch.device("meta"):
        real = sum(p.numel() for p in model(config).parameters())
    assert parameter_count(name) == real
