"""Dalle: embeddings, transformer and output layer; from tokens and codes to logits or the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.config import DalleConfig
from ttt.errors import InvalidInput
from ttt.model.transformer import Transformer


class Dalle(nn.Module):
    """The text-to-image transformer.

        dalle = Dalle(config)
        logits = dalle(text, codes)      # text int64 [b, text_seq_len], codes int64 [b, m] or None
        loss = dalle.loss(text, codes)   # a whole image: m == image_seq_len

    A cached decoder needs these parts:

        x = dalle.embed_text(text)       # [b, text_len, c]: <bos>, then the text
        rotary = Rotary(dalle.transformer.pos_emb, dim_head)   # code i is at position text_len + i
        for layer in dalle.transformer.layers:
            layer.kind, layer.attention (.to_qkv, .to_out), layer.attention_norm, layer.attention_scale
            layer.feed_forward (.up, .down), layer.feed_forward_norm, layer.feed_forward_scale
        # two streams: y1 = x1 + attend(x2), y2 = x2 + feed(y1), where each branch is
        # scale * body(shift_tokens(norm(x))); both start as x, and their mean is the output:
        logits = dalle.image_logits(x)   # [..., num_image_tokens]

    The output layer's weight is also the embedding: rows of text tokens, of padding tokens, then of codes.
    """

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.norm = nn.LayerNorm(config.dim)
        self.to_logits = nn.Linear(config.dim, config.total_tokens)

    def forward(self, text: Tensor, codes: Tensor | None = None) -> Tensor:
        """Logits [b, text_len + m, v] of the next token at each position (a complete image's last one is dropped).

        Text predicts text and codes predict codes: the logits of the other kind are the lowest finite number.
        """
        x = self._run(self.token_ids(text, codes)[:, : self.config.seq_len])
        t = self.config.text_seq_len
        text_logits, image_logits = self.text_logits(x[:, :t]), self.image_logits(x[:, t:])
        never = -torch.finfo(text_logits.dtype).max
        return torch.cat(
            (
                F.pad(text_logits, (0, self.config.num_image_tokens), value=never),
                F.pad(image_logits, (self.config.text_vocab, 0), value=never),
            ),
            dim=1,
        )

    def loss(self, text: Tensor, codes: Tensor) -> Tensor:
        """Weighted mean of the cross-entropies: 1 for text and `loss_image_weight` for codes."""
        config, t = self.config, self.config.text_seq_len
        ids = self.token_ids(text, codes)
        if ids.shape[1] != config.seq_len + 1:
            raise InvalidInput(
                f"the loss needs whole images of {config.image_seq_len} codes, got {ids.shape[1] - config.text_len}"
            )
        x, labels = self._run(ids[:, :-1]), ids[:, 1:]
        # The positions of text and codes have separate vocabularies, so only their own logits are computed.
        text_logits, image_logits = self.text_logits(x[:, :t]), self.image_logits(x[:, t:])
        text_loss = F.cross_entropy(text_logits.flatten(0, 1).float(), labels[:, :t].flatten())
        image_loss = F.cross_entropy(image_logits.flatten(0, 1).float(), labels[:, t:].flatten() - config.text_vocab)
        weight = config.loss_image_weight
        return (text_loss + weight * image_loss) / (weight + 1)

    def token_ids(self, text: Tensor, codes: Tensor | None = None) -> Tensor:
        """Embedding rows [b, text_len + m]: `<bos>`, text (id 0 becomes the padding token of its position), codes."""
        config = self.config
        check_tokens("text", text, config.num_text_tokens)
        if text.shape[1] != config.text_seq_len:
            raise InvalidInput(f"text must be [b, {config.text_seq_len}] tokens, got {list(text.shape)}")
        # Every padded position has a token of its own, so that the model can tell positions after the text apart.
        padding = torch.arange(config.num_text_tokens, config.text_vocab, device=text.device)
        ids = F.pad(torch.where(text == 0, padding, text.long()), (1, 0))
        if codes is None:
            return ids
        check_tokens("codes", codes, config.num_image_tokens)
        if codes.shape[0] != text.shape[0] or codes.shape[1] > config.image_seq_len:
            raise InvalidInput(f"codes must be [{text.shape[0]}, 0 to {config.image_seq_len}], got {list(codes.shape)}")
        return torch.cat((ids, codes.long() + config.text_vocab), dim=1)

    def embed_text(self, text: Tensor) -> Tensor:
        """[b, text_seq_len] tokens -> [b, text_len, c], `<bos>` first."""
        return F.embedding(self.token_ids(text), self.to_logits.weight)

    def text_logits(self, x: Tensor) -> Tensor:
        """Output of the transformer [..., c] -> [..., text_vocab]."""
        v = self.config.text_vocab
        return F.linear(self.norm(x), self.to_logits.weight[:v], self.to_logits.bias[:v])

    def image_logits(self, x: Tensor) -> Tensor:
        """Output of the transformer [..., c] -> [..., num_image_tokens]."""
        v = self.config.text_vocab
        return F.linear(self.norm(x), self.to_logits.weight[v:], self.to_logits.bias[v:])

    def _run(self, ids: Tensor) -> Tensor:
        return self.transformer(F.embedding(ids, self.to_logits.weight))


def check_tokens(name: str, tokens: Tensor, size: int) -> None:
    """Raise InvalidInput unless `tokens` is a [b, n] tensor of whole numbers from 0 to size - 1."""
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise InvalidInput(f"{name} must be a [b, n] tensor of whole numbers, got {tokens.dtype} {list(tokens.shape)}")
    if tokens.numel() and not tokens.is_meta:
        low, high = (int(v) for v in tokens.aminmax())
        if low < 0 or high >= size:
            raise InvalidInput(f"{name} must be from 0 to {size - 1}, got {low} to {high}")
