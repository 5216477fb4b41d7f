"""The three steps of sampling codes: prefill, decode_one_code, pick.

    prompt = prefill(weights, text)                              # once per prompt
    cache = Cache(config, prompt, b, weights.dtype, weights.device)
    codes[:, 0] = pick(prompt.logits.expand(b, -1), uniforms[:, 0], params)
    codes[:, m + 1] = pick(decode_one_code(weights, cache, codes[:, m], m), uniforms[:, m + 1], params)

All candidates share the prompt's keys and values, so attention to them is one matrix product (the shared prefix of
Hydragen, Juravsky et al. 2024); one softmax covers these scores and those of each candidate's own few keys.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.errors import CheckpointError
from ttt.model.layers import shift_tokens
from ttt.sampling.cache import Cache, PrefillResult
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights, LayerWeights, Norm

MIN_TEMPERATURE = 1e-6
"""Lower temperatures also always take the most likely code, but would divide by zero in float32."""


def prefill(weights: DecoderWeights, text: Tensor, *, check: Callable[[], None] | None = None) -> PrefillResult:
    """text int64 [1, text_seq_len] -> keys and values of `<bos>` and the text, and the logits of the first code.

    check: called before every layer; an exception that it raises ends the work.
    """
    config = weights.config
    # The two streams start equal; their sum is read at the end. Not in place, because both names share one tensor.
    x1 = x2 = weights.dalle.embed_text(text.to(weights.device))[0].float()  # [t, c]
    keys, values = [], []
    for layer in weights.layers:
        if check is not None:
            check()
        added, k, v = _attend_text(weights, layer, x2)
        x1 = x1 + added
        x2 = x2 + _feed(layer, shift_tokens(normed(layer.feed_forward_norm, x1, weights)[None], config.text_len, 1)[0])
        keys.append(k)
        values.append(v)
    logits = logits_after(weights, x1[-1:], x2[-1:])[0]
    check_logits(logits)
    return PrefillResult(keys, values, logits)


def check_logits(logits: Tensor) -> None:
    """Raise CheckpointError if logits, or their sum, are NaN or infinite. Waits for the device."""
    if not torch.isfinite(logits).all():
        raise CheckpointError(
            "the model's logits are NaN or infinite: its weights are broken, or too large for float16; download it "
            "again, or choose dtype 'float32'"
        )


def decode_one_code(weights: DecoderWeights, cache: Cache, codes: Tensor, position: int) -> Tensor:
    """codes int64 [b] at `position` -> logits [b, v] float32 of the next codes.

    Must be called for positions 0, 1, 2 ... in order, because the cache holds those before.
    """
    column, angle = position % cache.fmap, weights.rotary.at(weights.config.text_len + position)
    x1 = F.embedding(codes, weights.embedding)  # [b, c]
    x2 = x1.clone()  # the two streams of a reversible network, both updated in place
    for i, layer in enumerate(weights.layers):
        x = cache.attention_shifts[i].shift(normed(layer.attention_norm, x2, weights), column)
        x1.addcmul_(_attend_code(weights, layer, cache, i, x, position, angle), layer.attention_scale)
        x = cache.feed_forward_shifts[i].shift(normed(layer.feed_forward_norm, x1, weights), column)
        x2.addcmul_(feed_body(layer, x), layer.feed_forward_scale)
    return logits_after(weights, x1, x2)


def pick(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> Tensor:
    """Logits [b, v], uniforms [b] in [0, 1) -> codes [b], by inverting the cumulative distribution.

    The distribution is restricted to the `top_k` most likely codes, renormalised, and then to the fewest of these whose
    probabilities add up to `top_p`.
    """
    v = logits.shape[-1]
    k = v if params.top_k is None else min(params.top_k, v)
    # Sorting is needed for a cut only: without one, the codes stay in their order and need no gather at the end.
    if k == v and params.top_p is None:
        scores, codes = logits.float(), None
    else:
        scores, codes = logits.float().topk(k, dim=-1)  # most likely first
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / max(params.temperature, MIN_TEMPERATURE)
    cumulative = scores.softmax(dim=-1).cumsum(dim=-1)  # [b, k]
    total = cumulative[:, -1:]
    last = torch.full_like(total, k - 1, dtype=torch.long)
    if params.top_p is not None and params.top_p < 1:
        # The float32 sum may end just below a top_p close to 1; the clamp then keeps all codes.
        last = torch.searchsorted(cumulative, torch.full_like(total, params.top_p)).clamp_(max=k - 1)
        total = cumulative.gather(-1, last)
    # right=True: a uniform number of 0 picks the first code with a probability above 0.
    choice = torch.searchsorted(cumulative, uniforms.float()[:, None] * total, right=True)
    choice = torch.minimum(choice, last)
    return (choice if codes is None else codes.gather(-1, choice))[:, 0]


def uniforms(seed: int, candidates: range, n: int) -> Tensor:
    """Random numbers in [0, 1), float32 [b, n], of the candidates with these numbers.

    Each candidate has its own stream (Philox, keyed by seed and number), so its codes do not depend on which other
    candidates are sampled beside it.
    """
    streams = (np.random.Generator(np.random.Philox(key=(number << 64) | seed)) for number in candidates)
    rows = [stream.random(n, dtype=np.float32) for stream in streams]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, n)


def attend(q: Tensor, prompt_keys: Tensor, prompt_values: Tensor, own: Tensor, hidden: Tensor) -> Tensor:
    """q [h, b, d] (scaled), keys and values of the prompt [h, t, d] and of the codes [2, h * b, k, d] -> [b, h * d].

    hidden: bool [k], True for the codes' keys that must not be seen.
    """
    h, b, d = q.shape
    t, k = prompt_keys.shape[1], own.shape[2]
    # The prompt's keys have no batch dimension: all candidates of a head share one product.
    of_prompt = torch.bmm(q, prompt_keys.transpose(1, 2))  # [h, b, t]
    of_own = torch.bmm(q.reshape(h * b, 1, d), own[0].transpose(1, 2)).view(h, b, k)
    scores = torch.cat((of_prompt, of_own.masked_fill_(hidden, float("-inf"))), dim=-1)
    p = torch.softmax(scores, dim=-1)  # also in 16 bits computed in float32 and rounded once
    out = torch.bmm(p[..., :t], prompt_values).view(h * b, 1, d)
    out = torch.baddbmm(out, p[..., t:].reshape(h * b, 1, k), own[1])
    return out.view(h, b, d).transpose(0, 1).reshape(b, h * d)


def _attend_code(
    weights: DecoderWeights,
    layer: LayerWeights,
    cache: Cache,
    i: int,
    x: Tensor,
    position: int,
    angle: tuple[Tensor, ...],
) -> Tensor:
    """Attention of layer i for one code: x [b, c] -> [b, c], not yet scaled."""
    b, (h, d) = len(x), (weights.config.heads, weights.config.dim_head)
    qkv = weights.rotary.rotate_code(layer.to_qkv(x).view(b, 3 * h, d), angle).to(weights.dtype)  # [3h, b, d]
    own, hidden = cache.images[i].add(qkv[h:].view(2, h * b, d), position)
    return layer.to_out(attend(qkv[:h], cache.prompt.keys[i], cache.prompt.values[i], own, hidden))


def _attend_text(weights: DecoderWeights, layer: LayerWeights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [t, c] -> the residual of attention [t, c], keys and values [h, t, d]."""
    t, (h, d) = len(x), (weights.config.heads, weights.config.dim_head)
    shifted = shift_tokens(normed(layer.attention_norm, x, weights)[None], t, 1)[0]
    qkv = layer.to_qkv(shifted).view(t, 3, h, d).permute(1, 2, 0, 3)  # [3, h, t, d]
    q, k, v = weights.rotary(qkv).unbind(0)
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=1.0)[0]
    return layer.to_out(out.transpose(0, 1).reshape(t, h * d)) * layer.attention_scale, k.contiguous(), v.contiguous()


def normed(norm: Norm, x: Tensor, weights: DecoderWeights) -> Tensor:
    return norm(x).to(weights.dtype)


def _feed(layer: LayerWeights, x: Tensor) -> Tensor:
    return feed_body(layer, x) * layer.feed_forward_scale


def feed_body(layer: LayerWeights, x: Tensor) -> Tensor:
    value, gate = layer.up(x).chunk(2, dim=-1)
    return layer.down(value * F.gelu(gate))


def logits_after(weights: DecoderWeights, x1: Tensor, x2: Tensor) -> Tensor:
    return weights.to_logits(weights.norm((x1 + x2) / 2))
