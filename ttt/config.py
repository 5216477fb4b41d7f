"""Configurations of the models as frozen dataclasses, and the presets PAPER and DEMO. Independent of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import cycle, islice
from typing import Any, Literal, get_args

from ttt.errors import InvalidInput
from ttt.fields import check_whole_number

AttentionKind = Literal["row", "column", "conv", "full"]
DTYPE_NAMES = ("float32", "bfloat16", "float16", "int8")
"""Precisions that a user may choose; `ttt.hardware.DTYPES` has torch's types."""


@dataclass(frozen=True, kw_only=True)
class DalleConfig:
    """The text-to-image transformer (Borzunov et al. 2022, section 3.1; dalle-pytorch 1.6.6).

    The sequence is `<bos>`, `text_seq_len` text tokens, then `image_fmap_size ** 2` image codes.
    """

    dim: int
    depth: int
    heads: int
    dim_head: int = 64
    text_seq_len: int = 256
    image_fmap_size: int = 32
    num_text_tokens: int = 32_100
    """Size of the tokenizer's vocabulary, before the `text_seq_len` padding tokens."""
    num_image_tokens: int = 8192
    ff_mult: int = 4
    attention_cycle: tuple[AttentionKind, ...] = ("row", "column", "row", "row")
    """Masks of the layers, repeated; the last layer has `last_attention` instead."""
    last_attention: AttentionKind | None = "conv"
    conv_kernel: int = 5
    share_layers: bool = True
    """One set of weights per position in `attention_cycle`; the last layer always has its own."""
    reversible: bool = True
    loss_image_weight: float = 7.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention_cycle", tuple(self.attention_cycle))
        for name in ("dim", "depth", "heads", "dim_head", "text_seq_len", "image_fmap_size",
                     "num_text_tokens", "num_image_tokens", "ff_mult", "conv_kernel"):  # fmt: skip
            object.__setattr__(self, name, check_whole_number(f"DalleConfig.{name}", getattr(self, name), 1))
        if self.dim % 4:
            raise InvalidInput(f"DalleConfig.dim must be a multiple of 4 (token shift moves quarters), got {self.dim}")
        if self.dim_head < 6:
            raise InvalidInput(
                f"DalleConfig.dim_head must be at least 6 (a third of it is rotated in pairs), got {self.dim_head}"
            )
        if self.conv_kernel % 2 == 0:
            raise InvalidInput(f"DalleConfig.conv_kernel must be odd, got {self.conv_kernel}")
        if not self.attention_cycle:
            raise InvalidInput("DalleConfig.attention_cycle must name at least one mask")
        allowed = get_args(AttentionKind)
        for kind in (*self.attention_cycle, *([self.last_attention] if self.last_attention else [])):
            if kind not in allowed:
                raise InvalidInput(f"attention kind {kind!r} is unknown; allowed: {', '.join(allowed)}")

    @property
    def image_seq_len(self) -> int:
        """Number of codes of an image."""
        return self.image_fmap_size**2

    @property
    def text_len(self) -> int:
        """Positions before the first code: `<bos>` and the text."""
        return self.text_seq_len + 1

    @property
    def seq_len(self) -> int:
        """Positions that the transformer processes; the last code is not an input, because it predicts nothing."""
        return self.text_seq_len + self.image_seq_len

    @property
    def text_vocab(self) -> int:
        """Rows of the output layer for text: the tokenizer's vocabulary and one padding token per position."""
        return self.num_text_tokens + self.text_seq_len

    @property
    def total_tokens(self) -> int:
        return self.text_vocab + self.num_image_tokens

    @property
    def layer_kinds(self) -> tuple[AttentionKind, ...]:
        """Mask of every layer."""
        if self.last_attention is None:
            return tuple(islice(cycle(self.attention_cycle), self.depth))
        return (*islice(cycle(self.attention_cycle), self.depth - 1), self.last_attention)

    @property
    def weight_ids(self) -> tuple[int, ...]:
        """Index of the attention and feed-forward weights that each layer uses."""
        if not self.share_layers:
            return tuple(range(self.depth))
        group = len(self.attention_cycle)
        if self.last_attention is None:
            return tuple(i % group for i in range(self.depth))
        return (*(i % group for i in range(self.depth - 1)), min(group, self.depth - 1))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DalleConfig:
        return cls(**_known(cls, values))


@dataclass(frozen=True, kw_only=True)
class VqganConfig:
    """Encoder, Gumbel quantiser and decoder (Esser et al. 2021), named as in taming's `model.yaml`."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (32,)
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 8192
    dropout: float = 0.0
    norm_groups: int = 32
    """Groups of every GroupNorm. In a small model taming's 32 would amount to instance norm, which loses colours."""

    def __post_init__(self) -> None:
        for name in ("ch_mult", "attn_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.resolution % self.downscale:
            raise InvalidInput(
                f"VqganConfig.resolution {self.resolution} must be a multiple of the down-scaling {self.downscale}"
            )

    @property
    def downscale(self) -> int:
        """Side of a code in pixels (f)."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def fmap_size(self) -> int:
        """Side of an image in codes."""
        return self.resolution // self.downscale

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VqganConfig:
        return cls(**_known(cls, values))


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise InvalidInput(f"{cls.__name__} has no field {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    return values


PAPER = DalleConfig(dim=1024, depth=64, heads=16, dim_head=64)
"""The model of the 2021 run: 125.9 M unique parameters, used as 1.1 B."""

PAPER_VQGAN = VqganConfig()
"""taming-transformers' Gumbel f8-8192."""

DEMO = DalleConfig(
    dim=192,
    depth=9,
    heads=6,
    dim_head=32,
    text_seq_len=32,
    image_fmap_size=8,
    num_text_tokens=432,
    num_image_tokens=1024,
)
"""The model that ships in `ttt/demo`: all features of the paper's, with 64x64 images."""

DEMO_VQGAN = VqganConfig(
    ch=32,
    ch_mult=(1, 1, 2, 4),
    num_res_blocks=1,
    attn_resolutions=(),
    resolution=64,
    z_channels=32,
    embed_dim=32,
    n_embed=1024,
    norm_groups=8,
)
