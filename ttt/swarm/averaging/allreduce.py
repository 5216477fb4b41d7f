"""All-reduce that checks what it is sent and what it is answered. Knows neither epochs nor models.

In hivemind 1.1.12 one NaN makes everybody's average NaN, a weight of 1e9 that a peer gives itself replaces the
average, a part of the wrong shape stalls the group until the timeout, and only zero weights divide zero by zero. Here
each incoming part is checked; a bad one counts as received, with weight 0; an `Aggregator` makes the average of the
others. What a reducer answers is checked too: where it does not fit, this peer keeps its own values, as hivemind does
for a reducer that went away.

What this does not see: values that are finite, of the right shape, and wrong. For the parts that is the aggregator's
matter (centred clipping, Karimireddy et al. 2021; Gorbunov et al. 2021), for a reducer's answers nothing checks them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.averaging.partition import TensorPartContainer, TensorPartReducer
from hivemind.p2p import PeerID
from hivemind.utils import get_logger
from torch import Tensor

logger = get_logger(__name__)


class Aggregator(ABC):
    """Makes one average of what the peers sent for one part of the tensors."""

    @abstractmethod
    def aggregate(self, parts: Sequence[Tensor], weights: Sequence[float], senders: Sequence[str]) -> Tensor:
        """parts: at least one, all of one shape and type, finite; weights: > 0, finite; senders: libp2p ids.

        Returns a new tensor of that shape and type.
        """


class WeightedMean(Aggregator):
    """Each peer counts by its samples."""

    def aggregate(self, parts: Sequence[Tensor], weights: Sequence[float], senders: Sequence[str]) -> Tensor:
        total = math.fsum(weights)
        mean = torch.zeros_like(parts[0])
        for part, weight in zip(parts, weights, strict=True):
            mean.add_(part, alpha=weight / total)
        return mean


@dataclass
class Findings:
    """What one all-reduce saw of each groupmate, by libp2p id."""

    weights: dict[str, float] = field(default_factory=dict)
    """The weight that it gave itself and that was accepted; the least of its parts'."""
    bad_parts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(sender, reason) -> parts that were left out."""
    bad_results: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(reducer, reason) -> averages that were not taken over."""


class CheckedReducer(TensorPartReducer):
    """Averages the parts that this peer is responsible for."""

    def __init__(
        self,
        own_parts: Sequence[Tensor],
        senders: Sequence[str],
        *,
        max_weight: float,
        aggregator: Aggregator,
        findings: Findings,
    ) -> None:
        self._dtypes = [part.dtype for part in own_parts]
        self._senders, self._max_weight = list(senders), max_weight
        self._aggregator, self._findings = aggregator, findings
        super().__init__(tuple(part.shape for part in own_parts), len(self._senders))

    def reset_accumulators(self) -> None:
        super().reset_accumulators()
        if not self.finished.is_set():
            shape, dtype = self.part_shapes[self.current_part_index], self._dtypes[self.current_part_index]
            self.accumulator = _Parts(shape, dtype, self._aggregator)

    async def accumulate_part(
        self, sender_index: int, part_index: int, tensor_part: Tensor, weight: float = 1.0
    ) -> Tensor:
        sender, parts = self._senders[sender_index], None
        if 0 <= part_index < self.num_parts:
            reason = self._reason_to_drop(part_index, tensor_part, weight)
            if reason:
                if not any(peer == sender for peer, _ in self._findings.bad_parts):
                    logger.warning(f"A part from {sender} was left out of the average: {reason}")
                self._findings.bad_parts[sender, reason] += 1
            else:
                parts = (sender, tensor_part)
                self._findings.weights[sender] = min(weight, self._findings.weights.get(sender, math.inf))
        return await super().accumulate_part(sender_index, part_index, parts, weight if parts else 0.0)

    def _reason_to_drop(self, part_index: int, part: Tensor, weight: float) -> str:
        if not math.isfinite(weight) or weight < 0:
            return "its weight is no positive number"
        if weight > self._max_weight:
            return f"its weight is above {self._max_weight:g}, all that one peer can have computed"
        return misfit(part, self.part_shapes[part_index], self._dtypes[part_index])


class _Parts:
    """Stands where hivemind keeps a running sum: keeps the parts, and averages them when all have come."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, aggregator: Aggregator) -> None:
        self._shape, self._dtype, self._aggregator = shape, dtype, aggregator
        self._received: list[tuple[str, Tensor, float]] = []

    def add_(self, part: tuple[str, Tensor] | None, alpha: float) -> None:
        if part is not None:
            self._received.append((*part, alpha))

    def div_(self, _total: float) -> Tensor:
        """The average; of peers without a sample where nobody has one, zeros where nobody sent anything usable."""
        weighted = [one for one in self._received if one[2] > 0] or [(s, part, 1.0) for s, part, _ in self._received]
        if not weighted:
            return torch.zeros(self._shape, dtype=self._dtype)
        senders, parts, weights = zip(*weighted, strict=True)
        return self._aggregator.aggregate(parts, weights, senders)


class CheckedContainer(TensorPartContainer):
    """Splits this peer's tensors, and takes over only averages that fit."""

    def __init__(self, *args: Any, peers: Sequence[str], findings: Findings, **kwargs: Any) -> None:
        self._peers, self._findings = list(peers), findings
        super().__init__(*args, **kwargs)

    def register_processed_part(self, peer_index: int, part_index: int, part: Tensor) -> None:
        parts = self._input_parts_by_peer[peer_index]  # emptied when all is over
        own = parts[part_index][0] if 0 <= part_index < len(parts) else None
        if own is not None and (reason := misfit(part, own.shape, own.dtype)):
            self._findings.bad_results[self._peers[peer_index], reason] += 1
            self.failed_size += own.numel()
            part = torch.zeros_like(own) if self.return_deltas else own
        super().register_processed_part(peer_index, part_index, part)


class CheckedRunner(AllReduceRunner):
    """One all-reduce whose parts and averages are checked; `findings` tells what came."""

    tensor_part_reducer: Any

    def __init__(
        self,
        *,
        tensors: Sequence[Tensor],
        ordered_peer_ids: Sequence[PeerID],
        peer_fractions: tuple[float, ...],
        modes: Sequence[Any] | None = None,
        weight: float | None = None,
        sender_timeout: float | None = None,
        reducer_timeout: float | None = None,
        max_weight: float = math.inf,
        aggregator: Aggregator | None = None,
        p2p: Any,
        servicer_type: Any,
        prefix: str | None,
        group_id: bytes,
        **container: Any,
    ) -> None:
        """max_weight: parts of a peer that claims more are left out: the run's global batch for gradients, 1 for
        parameters. The other arguments are hivemind's."""
        self.findings = Findings()
        super().__init__(
            p2p=p2p, servicer_type=servicer_type, prefix=prefix, group_id=group_id, tensors=tensors, weight=weight,
            ordered_peer_ids=ordered_peer_ids, peer_fractions=peer_fractions, modes=modes,
            sender_timeout=sender_timeout, reducer_timeout=reducer_timeout, **container,
        )  # fmt: skip
        peers = [str(peer) for peer in ordered_peer_ids]
        self.tensor_part_container = CheckedContainer(
            tensors, peer_fractions, return_deltas=True, peers=peers, findings=self.findings, **container
        )
        own = self.tensor_part_container.get_raw_input_parts(peers.index(str(self.peer_id)))
        self.parts_for_local_averaging = own
        self.tensor_part_reducer.finished.set()  # hivemind's own, never used: no word about what it did not receive
        self.tensor_part_reducer = CheckedReducer(
            own,
            [str(peer) for peer in self.sender_peer_ids],
            max_weight=max_weight,
            aggregator=aggregator or WeightedMean(),
            findings=self.findings,
        )


def misfit(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> str:
    """Why a tensor cannot stand for one of this shape and type; "" where it can."""
    if tuple(tensor.shape) != tuple(shape):
        return f"its shape is not {list(shape)}"
    if tensor.dtype != dtype:
        return f"its type is not {dtype}"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return "it holds NaN or infinity"
    return ""
