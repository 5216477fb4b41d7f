"""What a model is: its family and its dimensions, checked. Knows no presets, no set-up and no bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from calculator.errors import CalculatorError

Family = Literal["bert", "t5", "gpt2", "gptj", "llama", "vit", "clip", "dalle"]
Activation = Literal["gelu", "gelu_new", "relu", "silu", "quick_gelu", "gelu_pytorch_tanh"]

MOST = 10**7
"""No dimension is larger; a typing error is likelier."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model of one of the families, trained as its Hugging Face class with a loss (the paper's own as `ttt` does).

    bert: BertForPreTraining; t5: T5ForConditionalGeneration; gpt2: GPT2LMHeadModel; gptj: GPTJForCausalLM;
    llama: LlamaForCausalLM, Mistral, Qwen2, Qwen3; vit: ViTForImageClassification; clip: CLIPModel;
    dalle: the transformer of Borzunov et al. 2022.
    """

    family: Family
    name: str = "custom"
    hidden: int
    layers: int
    """Of the encoder, where there is also a decoder."""
    heads: int
    feed_forward: int
    vocabulary: int = 0
    positions: int = 0
    """The longest sequence the model is made for."""
    head_size: int = 0
    """Channels of one head; 0: hidden / heads."""
    key_value_heads: int = 0
    """Groups of grouped-query attention; 0: as many as heads."""
    decoder_layers: int = 0
    activation: Activation = "gelu"
    gated: bool = False
    """The feed-forward has a gate (T5 1.1; always in llama and dalle)."""
    tied: bool = True
    """The output layer is the embedding."""
    dropout: bool = False
    attention_dropout: bool = False
    query_bias: bool = True
    """Biases of queries, keys and values (llama, vit)."""
    output_bias: bool = True
    """Bias after attention (llama)."""
    feed_forward_bias: bool = True
    query_norm: bool = False
    """RMSNorm of the queries and keys of every head (Qwen3)."""
    rotary: int = 0
    """Channels of a head that are rotated (gptj, dalle)."""
    token_types: int = 2
    labels: int = 1000
    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    pooler: bool = False
    projection: int = 512
    vision: Architecture | None = None
    """The image tower (clip)."""
    groups: int = 0
    """Sets of weights that the layers share by design; 0: each layer has its own."""
    reversible: bool = False
    text_positions: int = 0
    """Positions of text, before the codes (dalle)."""
    image_vocabulary: int = 0
    """Thereof of the vocabulary: image codes (dalle)."""

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise CalculatorError(f"unknown family {self.family!r}; known: {', '.join(get_args(Family))}")
        if self.activation not in get_args(Activation):
            raise CalculatorError(f"unknown activation {self.activation!r}; known: {', '.join(get_args(Activation))}")
        for name in ("hidden", "layers", "heads", "feed_forward", "image_size", "patch_size", "channels", "labels"):
            _check(self, name, 1)
        for field in fields(self):
            if field.type == "int":
                _check(self, field.name, 0)
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                raise CalculatorError(f"{field.name} must be True or False, got {getattr(self, field.name)!r}")
        if self.family not in ("vit",):
            _check(self, "vocabulary", 1)
            _check(self, "positions", 1)
        if not self.head_size:
            if self.hidden % self.heads:
                raise CalculatorError(
                    f"hidden {self.hidden} cannot be divided among {self.heads} heads; "
                    f"allowed: a number of heads that divides it, or a head_size of your own"
                )
            object.__setattr__(self, "head_size", self.hidden // self.heads)
        if not self.key_value_heads:
            object.__setattr__(self, "key_value_heads", self.heads)
        if self.heads % self.key_value_heads:
            raise CalculatorError(f"{self.heads} heads cannot be divided among {self.key_value_heads} key_value_heads")
        if self.groups > self.layers:
            raise CalculatorError(
                f"groups {self.groups} are more than the {self.layers} layers; allowed: 1 to {self.layers}"
            )
        if self.family == "t5":
            _check(self, "decoder_layers", 1)
        if self.family == "clip" and self.vision is None:
            raise CalculatorError(
                "a clip model needs the dimensions of its image tower: vision=Architecture(family='vit', ...)"
            )
        if self.family in ("vit", "clip") and (self.vision or self).image_size < (self.vision or self).patch_size:
            raise CalculatorError("image_size must be at least patch_size")
        if self.rotary > self.head_size:
            raise CalculatorError(f"rotary {self.rotary} must be at most head_size {self.head_size}")

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_size

    @property
    def key_value(self) -> int:
        """Channels of all key heads."""
        return self.key_value_heads * self.head_size

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def _check(architecture: Architecture, name: str, least: int) -> None:
    value = getattr(architecture, name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise CalculatorError(f"{name} must be a whole number from {least} to {MOST:,}, got {value!r}")
