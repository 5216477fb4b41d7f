"""Presets: the dimensions of published models, as literals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calculator.architectures import Architecture
from calculator.hf_config import from_config


def _bert(name: str, hidden: int, layers: int, heads: int) -> Architecture:
    return Architecture(
        family="bert", name=name, hidden=hidden, layers=layers, heads=heads, feed_forward=4 * hidden,
        vocabulary=30_522, positions=512, dropout=True, attention_dropout=True,
    )  # fmt: skip


def _t5(name: str, hidden: int, layers: int, heads: int, head_size: int, feed_forward: int) -> Architecture:
    return Architecture(
        family="t5", name=name, hidden=hidden, layers=layers, decoder_layers=layers, heads=heads, head_size=head_size,
        feed_forward=feed_forward, vocabulary=32_128, positions=512, activation="relu", dropout=True,
        attention_dropout=True,
    )  # fmt: skip


def _gpt(name: str, hidden: int, layers: int, heads: int, positions: int = 1024) -> Architecture:
    return Architecture(
        family="gpt2", name=name, hidden=hidden, layers=layers, heads=heads, feed_forward=4 * hidden,
        vocabulary=50_257, positions=positions, activation="gelu_new", dropout=True, attention_dropout=True,
    )  # fmt: skip


_ALL = (
    _bert("bert-base", 768, 12, 12),
    _bert("bert-large", 1024, 24, 16),
    _t5("t5-small", 512, 6, 8, 64, 2048),
    _t5("t5-base", 768, 12, 12, 64, 3072),
    _t5("t5-large", 1024, 24, 16, 64, 4096),
    _t5("t5-3b", 1024, 24, 32, 128, 16_384),
    _t5("t5-11b", 1024, 24, 128, 128, 65_536),
    _gpt("gpt2", 768, 12, 12),
    _gpt("gpt2-medium", 1024, 24, 16),
    _gpt("gpt2-large", 1280, 36, 20),
    _gpt("gpt2-xl", 1600, 48, 25),
    # GPT-3: Brown et al. 2020, table 2.1. XL has 24 heads there, which do not divide 2048: 16 heads of its 128 do.
    # 13B has 5140 channels there, which its 40 heads of 128 contradict: 5120.
    _gpt("gpt3-small", 768, 12, 12, 2048),
    _gpt("gpt3-medium", 1024, 24, 16, 2048),
    _gpt("gpt3-large", 1536, 24, 16, 2048),
    _gpt("gpt3-xl", 2048, 24, 16, 2048),
    _gpt("gpt3-2.7b", 2560, 32, 32, 2048),
    _gpt("gpt3-6.7b", 4096, 32, 32, 2048),
    _gpt("gpt3-13b", 5120, 40, 40, 2048),
    _gpt("gpt3-175b", 12_288, 96, 96, 2048),
    Architecture(
        family="gptj", name="gpt-j-6b", hidden=4096, layers=28, heads=16, feed_forward=16_384, vocabulary=50_400,
        positions=2048, activation="gelu_new", tied=False, rotary=64,
    ),
    # DALL-E: Ramesh et al. 2021, appendix B: 64 layers, 62 heads of 64; 256 text tokens of 16,384, 1024 codes of 8192.
    Architecture(
        family="gpt2", name="dalle-12b", hidden=3968, layers=64, heads=62, feed_forward=4 * 3968,
        vocabulary=16_384 + 8192, positions=1280, activation="gelu_new",
    ),
    # Borzunov et al. 2022, section 3.1: layers repeat (row, column, row, row), one set of weights per position; the
    # last layer, convolutional, has its own. Text: t5-small's 32,100 tokens and one padding token per position; rotary
    # over 3 x 20 channels.
    Architecture(
        family="dalle", name="ttt-dalle", hidden=1024, layers=64, heads=16, feed_forward=4096,
        vocabulary=32_100 + 256 + 8192, image_vocabulary=8192, positions=1280, text_positions=256, groups=5,
        reversible=True, rotary=60,
    ),
)  # fmt: skip


Named = tuple[str, dict[str, Any]]


def _config(name: str, model_type: str, **values: Any) -> Named:
    """A preset by its config.json: the values that differ from the defaults of transformers' config class."""
    return name, {"model_type": model_type, **values}


def _llama(name: str, kind: str, hidden: int, layers: int, heads: int, groups: int, feed: int, vocabulary: int,
           positions: int, *, tied: bool = False, **values: Any) -> Named:  # fmt: skip
    return _config(
        name, kind, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, intermediate_size=feed, vocab_size=vocabulary, max_position_embeddings=positions,
        tie_word_embeddings=tied, **values,
    )  # fmt: skip


_LONG = 131_072
_LLMS = (
    _llama("llama-3.2-1b", "llama", 2048, 16, 32, 8, 8192, 128_256, _LONG, tied=True),
    _llama("llama-3.2-3b", "llama", 3072, 28, 24, 8, 8192, 128_256, _LONG, tied=True),
    _llama("llama-3.1-8b", "llama", 4096, 32, 32, 8, 14_336, 128_256, _LONG),
    _llama("llama-3.1-70b", "llama", 8192, 80, 64, 8, 28_672, 128_256, _LONG),
    _llama("tinyllama-1.1b", "llama", 2048, 22, 32, 4, 5632, 32_000, 2048),
    _llama("mistral-7b", "mistral", 4096, 32, 32, 8, 14_336, 32_768, 32_768),
    _llama("mixtral-8x7b", "mixtral", 4096, 32, 32, 8, 14_336, 32_000, 32_768),
    _llama("qwen2.5-0.5b", "qwen2", 896, 24, 14, 2, 4864, 151_936, 32_768, tied=True),
    _llama("qwen2.5-1.5b", "qwen2", 1536, 28, 12, 2, 8960, 151_936, _LONG, tied=True),
    _llama("qwen2.5-3b", "qwen2", 2048, 36, 16, 2, 11_008, 151_936, 32_768, tied=True),
    _llama("qwen2.5-7b", "qwen2", 3584, 28, 28, 4, 18_944, 152_064, _LONG),
    _llama("qwen2.5-14b", "qwen2", 5120, 48, 40, 8, 13_824, 152_064, _LONG),
    _llama("qwen2.5-32b", "qwen2", 5120, 64, 40, 8, 27_648, 152_064, _LONG),
    _llama("qwen2.5-72b", "qwen2", 8192, 80, 64, 8, 29_568, 152_064, _LONG),
    _llama("qwen3-0.6b", "qwen3", 1024, 28, 16, 8, 3072, 151_936, 40_960, tied=True),
    _llama("qwen3-1.7b", "qwen3", 2048, 28, 16, 8, 6144, 151_936, 40_960, tied=True),
    _llama("qwen3-4b", "qwen3", 2560, 36, 32, 8, 9728, 151_936, 40_960, tied=True),
    _llama("qwen3-8b", "qwen3", 4096, 36, 32, 8, 12_288, 151_936, 40_960),
    _llama("qwen3-14b", "qwen3", 5120, 40, 40, 8, 17_408, 151_936, 40_960),
    _llama("qwen3-32b", "qwen3", 5120, 64, 64, 8, 25_600, 151_936, 40_960),
    _llama("gemma-2-2b", "gemma2", 2304, 26, 8, 4, 9216, 256_000, 8192, tied=True),
    _llama("gemma-2-9b", "gemma2", 3584, 42, 16, 8, 14_336, 256_000, 8192, tied=True),
    _llama("gemma-2-27b", "gemma2", 4608, 46, 32, 16, 36_864, 256_000, 8192, tied=True, head_dim=128),
    _llama("gemma-3-1b", "gemma3_text", 1152, 26, 4, 1, 6912, 262_144, 32_768, tied=True),
    _llama("phi-3-mini", "phi3", 3072, 32, 32, 32, 8192, 32_064, 4096),
    _llama("phi-4", "phi3", 5120, 40, 40, 10, 17_920, 100_352, 16_384),
    _config("falcon-7b", "falcon"),
    _config("pythia-1.4b", "gpt_neox", hidden_size=2048, num_hidden_layers=24, num_attention_heads=16,
            intermediate_size=8192, vocab_size=50_304),
    _config("pythia-6.9b", "gpt_neox", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
            intermediate_size=16_384),
    _config("opt-1.3b", "opt", hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192),
    _config("opt-6.7b", "opt", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, ffn_dim=16_384),
)  # fmt: skip
_ENCODERS = (
    _config("roberta-base", "roberta", max_position_embeddings=514, type_vocab_size=1),
    _config("roberta-large", "roberta", max_position_embeddings=514, type_vocab_size=1, hidden_size=1024,
            num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    _config("distilbert-base", "distilbert"),
)  # fmt: skip
_VISION = (
    _config("vit-base-16", "vit", num_labels=1000),
    _config("vit-large-16", "vit", num_labels=1000, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
            intermediate_size=4096),
    _config("vit-huge-14", "vit", num_labels=1000, hidden_size=1280, num_hidden_layers=32, num_attention_heads=16,
            intermediate_size=5120, patch_size=14),
    _config("clip-vit-b-32", "clip"),
    _config("clip-vit-l-14", "clip", projection_dim=768,
            text_config={"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
            vision_config={"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                           "intermediate_size": 4096, "patch_size": 14}),
)  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = dict((*_LLMS, *_ENCODERS, *_VISION))
"""The config.json of the presets that have one here, by name."""
PRESETS: dict[str, Architecture] = {architecture.name: architecture for architecture in _ALL}
PRESETS |= {name: replace(from_config(config), name=name) for name, config in CONFIGS.items()}
"""Presets by name; the names are part of the public interface."""

GROUPS: dict[str, tuple[str, ...]] = {
    "LLM": tuple(name for name, _ in _LLMS),
    "Vision": tuple(name for name, _ in _VISION),
    "Text": tuple(name for name in PRESETS if name.startswith(("gpt2", "bert", "roberta", "distilbert", "t5"))),
    "2021 paper": ("ttt-dalle", "dalle-12b"),
    "Older LLM": tuple(name for name in PRESETS if name.startswith(("gpt3", "gpt-j"))),
}  # fmt: skip
"""The presets by kind, in the order in which the Memory tab lists them."""
