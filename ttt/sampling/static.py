"""A step of painting as fixed operations on fixed tensors, the position one of them: what a CUDA graph can replay.
Knows no graphs and no threads.

`decode.py` chooses in Python what to read and write at a position. Here tables, looked up with the position on the
device, say the same as indices and as biases of 0 or -inf, so the operations are those of every other position.
Candidates come before heads in all layouts: no attention output or score is copied into another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.config import AttentionKind, DalleConfig
from ttt.sampling.cache import PrefillResult, bytes_per_candidate, place_of, slots_of, unseen_slots, window_of
from ttt.sampling.decode import feed_body, logits_after, normed, pick
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights, LayerWeights

PROMPT_MULTIPLE = 8
"""The prompt's keys are filled up to a multiple of this: rows of 16-bit numbers that don't begin at whole 16 bytes keep
a GPU's libraries from their fast products."""


@dataclass(frozen=True)
class Place:
    """Where layers of one kind keep the key of the code at hand, and which keys it sees."""

    group: Tensor
    """int64 [1]."""
    slot: Tensor
    """int64 [1]."""
    bias: Tensor
    """Of scores, [1, t + k]: 0 for keys that are seen, else -inf."""


@dataclass(frozen=True)
class Places:
    """All that a step looks up by its position."""

    shift_from: Tensor
    """Rows of a branch's shift state to read, int64 [2]: above, left."""
    shift_to: Tensor
    """The same, to write."""
    of: dict[AttentionKind, Place]


class PlaceTable:
    """`Places` of every position of an image."""

    def __init__(self, config: DalleConfig, dtype: torch.dtype, device: torch.device) -> None:
        n, fmap, window = config.image_seq_len, config.image_fmap_size, window_of(config)
        self.kinds = sorted(set(config.layer_kinds))
        left, nothing = fmap, fmap + 1
        rows = []
        for position in range(n):
            column = position % fmap
            row = [column, left if column else nothing, column, left]
            for kind in self.kinds:
                group, slot = place_of(kind, position, fmap, window)
                row += [group, slot, position if kind == "conv" else slot]
            rows.append(row)
        self.rows = torch.tensor(rows, device=device)  # int64 [n, 4 + 3 kinds]
        self.bias = {kind: _bias(kind, config).to(device, dtype) for kind in self.kinds}

    def at(self, position: Tensor) -> Places:
        """position int64 [1]."""
        row = self.rows.index_select(0, position)[0]
        of = {}
        for kind, place in zip(self.kinds, row[4:].view(-1, 3), strict=True):
            group, slot, line = place.split(1)
            of[kind] = Place(group, slot, self.bias[kind].index_select(0, line))
        return Places(row[:2], row[2:4], of)


class StaticStep:
    """`b` candidates of one prompt from their first code to their last, one code a call.

        step.begin(random)
        for _ in range(n - 1):
            step()                      # or the replay of its recording: step.codes [n, b] fills up

    Calls read and write the same memory every time, wait for nothing and decide nothing on the host.
    """

    def __init__(self, weights: DecoderWeights, prompt: PrefillResult, params: SamplingParams, b: int) -> None:
        config, dtype, device = weights.config, weights.dtype, weights.device
        n, h, d = config.image_seq_len, config.heads, config.dim_head
        self.weights, self.params, self.b = weights, params, b
        self.first_logits = prompt.logits
        self.prompt = [(_filled_up(k), _filled_up(v)) for k, v in zip(prompt.keys, prompt.values, strict=True)]
        self.table = PlaceTable(config, dtype, device)
        self.keys = []
        """Of each layer [groups, 2, b * h, slots, d]; as in `ImageKeys`, but for the order of candidates and heads."""
        for kind in config.layer_kinds:
            groups, slots = slots_of(kind, config)
            self.keys.append(torch.zeros(groups, 2, b * h, slots, d, dtype=dtype, device=device))
        rows = config.image_fmap_size + 2
        self.shifts = torch.zeros(2 * config.depth, rows, b, config.dim // 4, dtype=dtype, device=device)
        """Of each branch: a quarter of the last code of every column, one of the last code, and zeros."""
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.codes = torch.zeros(n, b, dtype=torch.long, device=device)
        self.random = torch.zeros(n, b, device=device)
        self.total = torch.zeros((), device=device)
        """Sum of all logits so far, which is not finite once one of them was not."""

    def begin(self, random: Tensor) -> None:
        """Start anew with random numbers [n, b] in [0, 1), one a code."""
        self.random.copy_(random)
        self.restart()

    def restart(self) -> None:
        """Back to the first code, with the same random numbers."""
        for kept in (*self.keys, self.shifts, self.position, self.codes, self.total):
            kept.zero_()
        self.codes[0] = pick(self.first_logits.expand(self.b, -1), self.random[0], self.params)

    def __call__(self) -> None:
        """Choose the code after `position`, and go there."""
        logits, following = self.decode(), self.position + 1
        self.total.add_(logits.sum())
        chosen = pick(logits, self.random.index_select(0, following)[0], self.params)
        self.codes.index_copy_(0, following, chosen[None])
        self.position.copy_(following)

    def decode(self) -> Tensor:
        """Logits [b, v] float32 after the code at `position`, as `decode_one_code`."""
        weights, places, angle = self.weights, self.table.at(self.position), self.weights.rotary.angle(self.position)
        x1 = F.embedding(self.codes.index_select(0, self.position)[0], weights.embedding)  # [b, c]
        x2 = x1.clone()
        for i, layer in enumerate(weights.layers):
            x = self._shift(self.shifts[2 * i], normed(layer.attention_norm, x2, weights), places)
            x1.addcmul_(self._attend(i, layer, x, places.of[layer.kind], angle), layer.attention_scale)
            x = self._shift(self.shifts[2 * i + 1], normed(layer.feed_forward_norm, x1, weights), places)
            x2.addcmul_(feed_body(layer, x), layer.feed_forward_scale)
        return logits_after(weights, x1, x2)

    def _shift(self, kept: Tensor, x: Tensor, places: Places) -> Tensor:
        """As `ShiftState.shift`: kept [fmap + 2, b, c / 4], x [b, c] -> [b, c]."""
        quarter = kept.shape[-1]
        above, left = kept.index_select(0, places.shift_from).unbind(0)
        shifted = torch.cat((above, left, x[:, 2 * quarter :]), dim=-1)
        kept.index_copy_(0, places.shift_to, x[:, : 2 * quarter].unflatten(1, (2, quarter)).transpose(0, 1))
        return shifted

    def _attend(self, i: int, layer: LayerWeights, x: Tensor, place: Place, angle: tuple[Tensor, ...]) -> Tensor:
        """Attention of layer i: x [b, c] -> [b, c], not yet scaled."""
        weights, (h, d) = self.weights, (self.weights.config.heads, self.weights.config.dim_head)
        qkv = weights.rotary.code(layer.to_qkv(x).view(self.b, 3, h, d), angle).to(weights.dtype)  # [3, b, h, d]
        kept = self.keys[i]
        kept[place.group, :, :, place.slot] = qkv[1:].view(1, 2, self.b * h, d)
        own = kept[0] if len(kept) == 1 else kept.index_select(0, place.group)[0]
        return layer.to_out(attend_biased(qkv[0], *self.prompt[i], own, place.bias))


def attend_biased(q: Tensor, prompt_keys: Tensor, prompt_values: Tensor, own: Tensor, bias: Tensor) -> Tensor:
    """`decode.attend` in another order: q [b, h, d] (scaled), the prompt's [h, t, d], own keys and values
    [2, b * h, k, d], bias [1, t + k] -> [b, h * d]. Products write their part of scores and output in place.
    """
    b, h, d = q.shape
    t, k = prompt_keys.shape[1], own.shape[2]
    scores = q.new_empty(b, h, t + k)
    of_prompt, of_own = scores[..., :t].transpose(0, 1), scores[..., t:].view(b * h, 1, k)
    torch.bmm(q.transpose(0, 1), prompt_keys.transpose(1, 2), out=of_prompt)
    torch.bmm(q.view(b * h, 1, d), own[0].transpose(1, 2), out=of_own)
    p = torch.softmax(scores.add_(bias), dim=-1)  # computed in float32 and rounded once, in 16 bits too
    out = q.new_empty(b, h, d)
    torch.bmm(p[..., :t].transpose(0, 1), prompt_values, out=out.transpose(0, 1))
    out.view(b * h, 1, d).baddbmm_(p[..., t:].view(b * h, 1, k), own[1])
    return out.view(b, h * d)


def static_bytes_per_candidate(config: DalleConfig, dtype: torch.dtype) -> int:
    """Size of what a StaticStep keeps of one candidate."""
    last_code_and_zeros = 2 * config.depth * 2 * (config.dim // 4) * dtype.itemsize
    codes_and_random = config.image_seq_len * (torch.long.itemsize + torch.float32.itemsize)
    return bytes_per_candidate(config, dtype) + last_code_and_zeros + codes_and_random


def prompt_slots(config: DalleConfig) -> int:
    """Keys of a prompt, those that fill up counted."""
    return -(-config.text_len // PROMPT_MULTIPLE) * PROMPT_MULTIPLE


def _filled_up(x: Tensor) -> Tensor:
    """[h, t, d] -> [h, prompt_slots, d]."""
    return F.pad(x, (0, 0, 0, -x.shape[1] % PROMPT_MULTIPLE))


def _bias(kind: AttentionKind, config: DalleConfig) -> Tensor:
    """[slots or n, prompt_slots + k], as `unseen_slots`, with the prompt's keys before."""
    unseen = unseen_slots(kind, config)
    prompt = torch.arange(prompt_slots(config)) >= config.text_len
    hidden = torch.cat((prompt.expand(len(unseen), -1), unseen), dim=1)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
