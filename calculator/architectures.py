"""Architecture: the family and the dimensions of a model, checked. Independent of training and of memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from calculator.checks import boolean, one_of, whole_number
from calculator.errors import CalculatorError

Family = Literal["bert", "t5", "gpt2", "gptj", "gpt_neox", "falcon", "opt", "llama", "vit", "clip", "dalle"]
Variant = Literal["", "roberta", "distilbert", "umt5", "gemma", "gemma2", "gemma3", "phi3", "mixtral"]
Head = Literal["default", "masked-lm", "sequence", "tokens", "span", "none"]
Activation = Literal[
    "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh"
]  # fmt: skip

LARGEST_DIMENSION = 10**7
"""Larger dimensions are refused: they are typing errors."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The dimensions of a model, trained as its Hugging Face class with a loss (the paper's own as `ttt` trains it).

    bert: BERT, RoBERTa, DistilBERT; t5: T5, mT5, UMT5; llama: Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma 1 to 3,
    Phi-3; dalle: the transformer of Borzunov et al. 2022; the other families are named after transformers' model types.
    """

    family: Family
    variant: Variant = ""
    """A model type whose layers differ from those of its family."""
    head: Head = "default"
    """The output layer and its loss. default: what the family is pretrained with (both BERT losses, the next token,
    image labels, CLIP's contrastive loss); masked-lm; a label per sequence or per token; the span of an answer; none:
    no output layer, trained on the mean of the last hidden state."""
    name: str = "custom"
    hidden: int
    layers: int
    """Layers; of an encoder-decoder model, those of the encoder."""
    heads: int
    feed_forward: int
    vocabulary: int = 0
    positions: int = 0
    """The longest sequence that the model supports."""
    head_size: int = 0
    """Channels per head; 0: hidden / heads."""
    key_value_heads: int = 0
    """Key and value heads of grouped-query attention; 0: as many as heads."""
    decoder_layers: int = 0
    activation: Activation = "gelu"
    gated: bool = False
    """The feed-forward is gated (T5 1.1; always in llama and dalle)."""
    tied: bool = True
    """The output layer shares the embedding's weights."""
    dropout: bool = False
    attention_dropout: bool = False
    query_bias: bool = True
    """Queries, keys and values have biases (llama, vit)."""
    output_bias: bool = True
    """The projection after attention has a bias (llama)."""
    feed_forward_bias: bool = True
    query_norm: bool = False
    """RMSNorm on the queries and keys of every head (Qwen3)."""
    rotary: int = 0
    """Rotated channels per head (gptj, dalle)."""
    experts: int = 0
    experts_per_token: int = 2
    """Experts that each token is routed to (mixtral)."""
    parallel: bool = True
    """Attention and feed-forward read the same input (falcon, gpt_neox)."""
    norms: int = 2
    """LayerNorms per layer (falcon)."""
    norm_first: bool = True
    """LayerNorm before attention and feed-forward instead of after them (opt)."""
    norm_weights: bool = True
    """LayerNorms have weights and biases (opt)."""
    final_norm: bool = True
    """A LayerNorm follows the last layer (opt)."""
    embedding: int = 0
    """Channels of the token embedding, projected to and from `hidden` (opt); 0: hidden."""
    broadcast_keys: bool = False
    """Keys and values are copied to all heads before attention (falcon's new architecture)."""
    attention_softcap: bool = False
    logit_softcap: bool = False
    """Scores or logits are limited with tanh (gemma2)."""
    quantization: str = ""
    """Quantisation of the published weights, as text; "" if there is none."""
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
    """Sets of weights that the layers share by design; 0: one set per layer."""
    reversible: bool = False
    text_positions: int = 0
    """Text positions, before the image codes (dalle)."""
    image_vocabulary: int = 0
    """The part of the vocabulary that is image codes (dalle)."""

    def __post_init__(self) -> None:
        one_of("family", self.family, get_args(Family))
        one_of("variant", self.variant, get_args(Variant))
        one_of("head", self.head, get_args(Head))
        one_of("activation", self.activation, get_args(Activation))
        for name in ("hidden", "layers", "heads", "feed_forward", "image_size", "patch_size", "channels", "labels",
                     "projection"):  # fmt: skip
            _check(self, name, 1)
        for field in fields(self):
            if field.type == "int":
                _check(self, field.name, 0)
            if field.type == "bool":
                boolean(field.name, getattr(self, field.name))
        if self.family not in ("vit",):
            _check(self, "vocabulary", 1)
            _check(self, "positions", 1)
        if not self.head_size:
            if self.hidden % self.heads:
                raise CalculatorError(
                    f"hidden {self.hidden} is not divisible by {self.heads} heads: change one of them, or set head_size"
                )
            object.__setattr__(self, "head_size", self.hidden // self.heads)
        if not self.key_value_heads:
            object.__setattr__(self, "key_value_heads", self.heads)
        if self.heads % self.key_value_heads:
            raise CalculatorError(f"{self.heads} heads are not divisible by {self.key_value_heads} key_value_heads")
        if self.groups > self.layers:
            raise CalculatorError(f"groups must be at most the number of layers, {self.layers}, got {self.groups}")
        if not self.embedding:
            object.__setattr__(self, "embedding", self.hidden)
        if self.family == "t5" and self.head != "none":
            _check(self, "decoder_layers", 1)
        if self.variant == "mixtral":
            _check(self, "experts", 1)
        if self.family == "clip" and self.vision is None:
            raise CalculatorError("a clip model needs its image tower: vision=Architecture(family='vit', ...)")
        if self.family in ("vit", "clip") and (self.vision or self).image_size < (self.vision or self).patch_size:
            raise CalculatorError("image_size must be at least patch_size")
        if self.rotary > self.head_size:
            raise CalculatorError(f"rotary must be at most head_size, {self.head_size}, got {self.rotary}")

    @property
    def inner(self) -> int:
        """Channels of all heads together."""
        return self.heads * self.head_size

    @property
    def key_value(self) -> int:
        """Channels of all key heads together."""
        return self.key_value_heads * self.head_size

    @property
    def outputs(self) -> int:
        """Numbers that the output layer produces per position or sequence; 0 without an output layer."""
        sizes = {"none": 0, "span": 2, "sequence": self.labels, "tokens": self.labels}
        return sizes.get(self.head, self.vocabulary or self.labels)

    @property
    def patches(self) -> int:
        """Patches per image."""
        return (self.image_size // self.patch_size) ** 2


def _check(architecture: Architecture, name: str, least: int) -> None:
    whole_number(name, getattr(architecture, name), least, LARGEST_DIMENSION)
