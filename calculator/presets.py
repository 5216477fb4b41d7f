"""Presets: the dimensions of published models, as literals."""

from __future__ import annotations

from calculator.architectures import Architecture


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

PRESETS: dict[str, Architecture] = {architecture.name: architecture for architecture in _ALL}
"""Presets by name; the names are part of the public interface."""
