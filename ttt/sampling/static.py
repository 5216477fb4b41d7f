"""A sampling step as fixed operations on fixed tensors, of which the position is one: a CUDA graph can replay it.

`decode.py` chooses in Python what to read and write at a position. Here the position selects indices, and biases of 0
or -inf, from tables on the device, so the operations are the same at every position. Candidates come before heads in
all layouts, so no attention output or score is copied into another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.config import AttentionKind, DalleConfig
from ttt.sampling.cache import PrefillResult, bytes_per_candidate, slot_mask, slot_of, slots_of, window_of
from ttt.sampling.decode import feed_body, logits_after, normed, pick
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights, LayerWeights

PROMPT_MULTIPLE = 8
"""The prompt's keys are padded to a multiple of this: a GPU's fast products need rows that start at multiples of 16
bytes."""


@dataclass(frozen=True)
class KVSlot:
    """Slot in which layers of one kind store the key of the current code, and the mask of the keys that it sees."""

    group: Tensor
    """int64 [1]."""
    slot: Tensor
    """int64 [1]."""
    bias: Tensor
    """Added to the scores, [1, t + k]: 0 for visible keys, -inf for others."""


@dataclass(frozen=True)
class StepIndices:
    """Everything that a step looks up by its position."""

    shift_from: Tensor
    """Rows of a branch's shift state to read, int64 [2]: above, left."""
    shift_to: Tensor
    """Rows to write, int64 [2]."""
    slots: dict[AttentionKind, KVSlot]


class PositionTable:
    """`StepIndices` of every position of an image."""

    def __init__(self, config: DalleConfig, dtype: torch.dtype, device: torch.device) -> None:
        n, fmap, window = config.image_seq_len, config.image_fmap_size, window_of(config)
        self.kinds = sorted(set(config.layer_kinds))
        left, zeros = fmap, fmap + 1  # rows of the shift state after those of the columns
        rows = []
        for position in range(n):
            column = position % fmap
            row = [column, left if column else zeros, column, left]
            for kind in self.kinds:
                group, slot = slot_of(kind, position, fmap, window)
                row += [group, slot, position if kind == "conv" else slot]
            rows.append(row)
        self.rows = torch.tensor(rows, device=device)  # int64 [n, 4 + 3 kinds]
        self.bias = {kind: _bias(kind, config).to(device, dtype) for kind in self.kinds}

    def at(self, position: Tensor) -> StepIndices:
        """position int64 [1]."""
        row = self.rows.index_select(0, position)[0]
        slots = {}
        for kind, indices in zip(self.kinds, row[4:].view(-1, 3), strict=True):
            group, slot, bias_row = indices.split(1)
            slots[kind] = KVSlot(group, slot, self.bias[kind].index_select(0, bias_row))
        return StepIndices(row[:2], row[2:4], slots)


class StaticStep:
    """Samples `b` candidates of one prompt, one code per call.

        step.begin(random)
        for _ in range(n - 1):
            step()                      # or the replay of its capture; fills step.codes [n, b]

    Every call reads and writes the same memory, and the host neither waits nor decides anything.
    """

    def __init__(self, weights: DecoderWeights, prompt: PrefillResult, params: SamplingParams, b: int) -> None:
        config, dtype, device = weights.config, weights.dtype, weights.device
        n, h, d = config.image_seq_len, config.heads, config.dim_head
        self.weights, self.params, self.b = weights, params, b
        self.first_logits = prompt.logits
        self.prompt = [(_padded(k), _padded(v)) for k, v in zip(prompt.keys, prompt.values, strict=True)]
        self.table = PositionTable(config, dtype, device)
        self.keys = []
        """Keys and values of each layer, [groups, 2, b * h, slots, d], as in `ImageKeys` but with candidates first."""
        for kind in config.layer_kinds:
            groups, slots = slots_of(kind, config)
            self.keys.append(torch.zeros(groups, 2, b * h, slots, d, dtype=dtype, device=device))
        rows = config.image_fmap_size + 2
        self.shifts = torch.zeros(2 * config.depth, rows, b, config.dim // 4, dtype=dtype, device=device)
        """Shift state of each branch: channels of the last code in every column, of the last code, and zeros."""
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.codes = torch.zeros(n, b, dtype=torch.long, device=device)
        self.random = torch.zeros(n, b, device=device)
        self.total = torch.zeros((), device=device)
        """Sum of all logits so far: NaN or infinite as soon as one of them was."""

    def begin(self, random: Tensor) -> None:
        """Restart with random numbers [n, b] in [0, 1), one for each code."""
        self.random.copy_(random)
        self.restart()

    def restart(self) -> None:
        """Go back to the first code, with the same random numbers."""
        for state in (*self.keys, self.shifts, self.position, self.codes, self.total):
            state.zero_()
        self.codes[0] = pick(self.first_logits.expand(self.b, -1), self.random[0], self.params)

    def __call__(self) -> None:
        """Sample the code after `position`, and advance to it."""
        logits, next_position = self.decode(), self.position + 1
        self.total.add_(logits.sum())
        codes = pick(logits, self.random.index_select(0, next_position)[0], self.params)
        self.codes.index_copy_(0, next_position, codes[None])
        self.position.copy_(next_position)

    def decode(self) -> Tensor:
        """Logits [b, v] float32 after the code at `position`, equal to those of `decode_one_code`."""
        weights, indices = self.weights, self.table.at(self.position)
        angle = weights.rotary.at(self.position + weights.config.text_len)
        x1 = F.embedding(self.codes.index_select(0, self.position)[0], weights.embedding)  # [b, c]
        x2 = x1.clone()  # the two streams of a reversible network, both updated in place
        for i, layer in enumerate(weights.layers):
            x = self._shift(self.shifts[2 * i], normed(layer.attention_norm, x2, weights), indices)
            x1.addcmul_(self._attend(i, layer, x, indices.slots[layer.kind], angle), layer.attention_scale)
            x = self._shift(self.shifts[2 * i + 1], normed(layer.feed_forward_norm, x1, weights), indices)
            x2.addcmul_(feed_body(layer, x), layer.feed_forward_scale)
        return logits_after(weights, x1, x2)

    def _shift(self, state: Tensor, x: Tensor, indices: StepIndices) -> Tensor:
        """As `ShiftState.shift`: state [fmap + 2, b, c / 4], x [b, c] -> [b, c]."""
        quarter = state.shape[-1]
        above, left = state.index_select(0, indices.shift_from).unbind(0)
        shifted = torch.cat((above, left, x[:, 2 * quarter :]), dim=-1)
        new_rows = x[:, : 2 * quarter].unflatten(1, (2, quarter)).transpose(0, 1)  # [2, b, c / 4]
        state.index_copy_(0, indices.shift_to, new_rows)
        return shifted

    def _attend(self, i: int, layer: LayerWeights, x: Tensor, at: KVSlot, angle: tuple[Tensor, ...]) -> Tensor:
        """Attention of layer i: x [b, c] -> [b, c], not yet scaled."""
        weights, (h, d) = self.weights, (self.weights.config.heads, self.weights.config.dim_head)
        qkv = weights.rotary.rotate_code(layer.to_qkv(x).view(self.b, 3, h, d), angle).to(weights.dtype)  # [3, b, h, d]
        keys = self.keys[i]
        keys[at.group, :, :, at.slot] = qkv[1:].view(1, 2, self.b * h, d)
        own = keys[0] if len(keys) == 1 else keys.index_select(0, at.group)[0]  # [2, b * h, slots, d]
        return layer.to_out(attend_biased(qkv[0], *self.prompt[i], own, at.bias))


def attend_biased(q: Tensor, prompt_keys: Tensor, prompt_values: Tensor, own: Tensor, bias: Tensor) -> Tensor:
    """`decode.attend` with candidates before heads.

    q [b, h, d] (scaled), keys and values of the prompt [h, t, d] and of the codes [2, b * h, k, d], bias [1, t + k]
    -> [b, h * d]. The products write into their part of the scores and of the output, which saves concatenating them.
    """
    b, h, d = q.shape
    t, k = prompt_keys.shape[1], own.shape[2]
    scores = q.new_empty(b, h, t + k)
    # Views of the two parts of `scores`: heads first for the prompt (a product per head), one row per candidate and
    # head for the codes.
    of_prompt, of_own = scores[..., :t].transpose(0, 1), scores[..., t:].view(b * h, 1, k)
    torch.bmm(q.transpose(0, 1), prompt_keys.transpose(1, 2), out=of_prompt)
    torch.bmm(q.view(b * h, 1, d), own[0].transpose(1, 2), out=of_own)
    p = torch.softmax(scores.add_(bias), dim=-1)  # also in 16 bits computed in float32 and rounded once
    out = q.new_empty(b, h, d)
    torch.bmm(p[..., :t].transpose(0, 1), prompt_values, out=out.transpose(0, 1))
    out.view(b * h, 1, d).baddbmm_(p[..., t:].view(b * h, 1, k), own[1])
    return out.view(b, h * d)


def static_bytes_per_candidate(config: DalleConfig, dtype: torch.dtype) -> int:
    """Memory that a StaticStep holds for one candidate."""
    last_code_and_zeros = 2 * config.depth * 2 * (config.dim // 4) * dtype.itemsize
    codes_and_random = config.image_seq_len * (torch.long.itemsize + torch.float32.itemsize)
    return bytes_per_candidate(config, dtype) + last_code_and_zeros + codes_and_random


def prompt_slots(config: DalleConfig) -> int:
    """Keys of a prompt, including the padding."""
    return -(-config.text_len // PROMPT_MULTIPLE) * PROMPT_MULTIPLE


def _padded(x: Tensor) -> Tensor:
    """[h, t, d] -> [h, prompt_slots, d]."""
    return F.pad(x, (0, 0, 0, -x.shape[1] % PROMPT_MULTIPLE))


def _bias(kind: AttentionKind, config: DalleConfig) -> Tensor:
    """`slot_mask` as a bias, after that of the prompt's keys: [slots or n, prompt_slots + k]."""
    of_codes = slot_mask(kind, config)
    padding = torch.arange(prompt_slots(config)) >= config.text_len
    hidden = torch.cat((padding.expand(len(of_codes), -1), of_codes), dim=1)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
