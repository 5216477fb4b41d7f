"""One all-reduce, with every part and every average checked, and the bytes counted. Independent of steps and models.

In an all-reduce each peer of a group *reduces* one share of the tensors: the others send it that share in *parts*, it
averages each part over all senders, and answers with the difference between the average and what the sender sent.

    sender                                                                 reducer
      | -- stream of (part, weight) ------------------------------------->  PartReducer.accumulate_part
      |                                             waits until every remaining sender delivered this part
      | <------------------------------------------ average - part --------
    CheckedPartContainer.register_processed_part

In hivemind 1.1.12 one NaN makes the average of every peer NaN, a peer that claims a weight of 1e9 replaces the average,
a part of the wrong shape stalls the group until its timeout, and weights that are all zero divide zero by zero. Here
the reducer checks each part and counts an invalid one as received with weight 0, and an `Aggregator` averages the
others. The sender checks each answer: where it is invalid, the sender keeps its own values, as it does for a reducer
that has disconnected.

Not detected: values that are finite, of the right shape, and wrong. For parts that is the task of the aggregator
(centred clipping, Karimireddy et al. 2021; Gorbunov et al. 2021); the answers of a reducer are checked no further.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing as mp
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, AsyncIterator  # noqa: UP035 (hivemind reads the annotations of rpc_* and knows these alone)

import torch
from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.averaging.partition import AllreduceException, BannedException, TensorPartContainer
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import get_logger
from torch import Tensor

logger = get_logger(__name__)


class Aggregator(ABC):
    """Makes one average of the parts that the peers sent."""

    @abstractmethod
    def aggregate(self, parts: Sequence[Tensor], weights: Sequence[float], senders: Sequence[str]) -> Tensor:
        """Average one part.

        parts: at least one, all of one shape and type, finite; weights: positive, finite; senders: libp2p ids.
        Returns a new tensor of that shape and type.
        """


class WeightedMean(Aggregator):
    """The mean of all parts, weighted by samples."""

    def aggregate(self, parts: Sequence[Tensor], weights: Sequence[float], senders: Sequence[str]) -> Tensor:
        total = math.fsum(weights)
        mean = torch.zeros_like(parts[0])
        for part, weight in zip(parts, weights, strict=True):
            mean.add_(part, alpha=weight / total)
        return mean


@dataclass
class AllReduceReport:
    """What one peer observed of its groupmates in one all-reduce. Peers are libp2p ids."""

    weights: dict[str, float] = field(default_factory=dict)
    """The smallest weight of each sender's accepted parts."""
    rejected_parts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(sender, reason) -> number of parts that were left out of the average."""
    rejected_averages: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(reducer, reason) -> number of averages that were discarded."""

    def rejections(self) -> list[tuple[str, str]]:
        """Return (peer, reason) for everything unusable that arrived."""
        return [*self.rejected_parts, *self.rejected_averages]


class PartReducer:
    """Averages the parts that this peer is responsible for. Replaces hivemind's TensorPartReducer.

    The attributes and methods without an underscore are those that `AllReduceRunner` uses. A sender delivers its parts
    in order and waits for each average, so all senders are always at the same part or one apart.
    """

    def __init__(
        self,
        own_parts: Sequence[Tensor],
        senders: Sequence[str],
        *,
        max_weight: float,
        aggregator: Aggregator,
        report: AllReduceReport,
    ) -> None:
        """own_parts: what this peer would send itself, for shapes and types; senders: libp2p ids in hivemind's order;
        max_weight: parts with more are left out."""
        self._expected = [(part.shape, part.dtype) for part in own_parts]
        self._senders, self._max_weight = list(senders), max_weight
        self._aggregator, self._report = aggregator, report
        self._accepted: list[tuple[Tensor, float, str]] = []
        self._current = 0
        self._average: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self._failed = [False] * len(self._senders)
        self.num_parts, self.num_senders = len(self._expected), len(self._senders)
        self.num_parts_received = [0] * self.num_senders
        self.finished = asyncio.Event()
        if not self.num_parts:
            self.finished.set()

    async def accumulate_part(self, sender_index: int, part_index: int, part: Tensor, weight: float = 1.0) -> Tensor:
        """Take one sender's part, wait until every remaining sender delivered theirs, and return the average.

        Raises BannedException for a sender that has failed before, AllreduceException for a part that is not the next.
        """
        if self._failed[sender_index]:
            raise BannedException(f"sender {sender_index} failed earlier in this all-reduce")
        if self.finished.is_set() or part_index != self._current:
            raise AllreduceException(f"part {part_index} is not the next one of {self.num_parts}")
        sender, (shape, dtype) = self._senders[sender_index], self._expected[part_index]
        reason = self._check_weight(weight) or validate_tensor(part, shape, dtype)
        if reason:
            if not any(peer == sender for peer, _ in self._report.rejected_parts):  # log once for each sender
                logger.warning(f"A part from {sender} was left out of the average: {reason}")
            self._report.rejected_parts[sender, reason] += 1
        else:
            self._accepted.append((part, weight, sender))
            self._report.weights[sender] = min(weight, self._report.weights.get(sender, math.inf))
        # A rejected part counts as received, too: otherwise the group would wait for it until the timeout.
        self.num_parts_received[sender_index] += 1
        average = self._average
        self._average_if_complete()
        # All senders await the same future. Without the shield, cancelling the call of one would cancel it for all.
        return await asyncio.shield(average)

    def on_sender_failed(self, sender_index: int) -> None:
        """Stop waiting for a sender. Parts that it has delivered still count."""
        self._failed[sender_index] = True
        self._average_if_complete()

    def finalize(self) -> None:
        """End the all-reduce; calls that still wait for an average are cancelled."""
        self._average.cancel()
        self._accepted.clear()
        self.finished.set()

    def _average_if_complete(self) -> None:
        if self.finished.is_set() or any(
            received <= self._current and not failed
            for received, failed in zip(self.num_parts_received, self._failed, strict=True)
        ):
            return
        if all(self._failed):  # no sender is left to wait for an average, or to deliver the next part
            return
        self._average.set_result(self._aggregate())
        self._accepted.clear()
        self._current += 1
        if self._current == self.num_parts:
            self.finished.set()
        else:
            self._average = asyncio.get_running_loop().create_future()

    def _aggregate(self) -> Tensor:
        # Peers that joined with weight 0 count only where no peer has samples.
        weighted = [entry for entry in self._accepted if entry[1] > 0] or [
            (part, 1.0, sender) for part, _, sender in self._accepted
        ]
        if not weighted:
            shape, dtype = self._expected[self._current]
            return torch.zeros(shape, dtype=dtype)
        parts, weights, senders = zip(*weighted, strict=True)
        return self._aggregator.aggregate(parts, weights, senders)

    def _check_weight(self, weight: float) -> str:
        if not math.isfinite(weight) or weight < 0:
            return "its weight is not a finite number of at least 0"
        if weight > self._max_weight:
            return f"its weight is above {self._max_weight:g}, the most that one peer can have computed"
        return ""


class CheckedPartContainer(TensorPartContainer):
    """Splits this peer's tensors into parts, and discards averages that are invalid."""

    def __init__(self, *args: Any, peers: Sequence[str], report: AllReduceReport, **kwargs: Any) -> None:
        self._peers, self._report = list(peers), report
        super().__init__(*args, **kwargs)

    def register_processed_part(self, peer_index: int, part_index: int, part: Tensor) -> None:
        own_parts = self._input_parts_by_peer[peer_index]  # emptied once the all-reduce is over
        own = own_parts[part_index][0] if 0 <= part_index < len(own_parts) else None
        if own is not None and (reason := validate_tensor(part, own.shape, own.dtype)):
            self._report.rejected_averages[self._peers[peer_index], reason] += 1
            self.failed_size += own.numel()
            part = torch.zeros_like(own) if self.return_deltas else own  # a delta of zero keeps our own values
        super().register_processed_part(peer_index, part_index, part)


class Traffic:
    """Bytes of tensors that one averager sent and received, counted in its process for the training process to read."""

    def __init__(self) -> None:
        self.sent, self.received = mp.Value("q"), mp.Value("q")
        """In averaging rounds."""
        self.state_sent, self.state_received = mp.Value("q"), mp.Value("q")
        """In state downloads."""

    @property
    def total_sent(self) -> int:
        return int(self.sent.value + self.state_sent.value)

    @property
    def total_received(self) -> int:
        return int(self.received.value + self.state_received.value)


def count(counter: Any, message: Any) -> None:
    """Add the size of a protobuf message to one of the counters of `Traffic`."""
    with counter.get_lock():
        counter.value += message.ByteSize()


async def counted(stream: AsyncIterator[Any], counter: Any) -> AsyncIterator[Any]:
    async for message in stream:
        count(counter, message)
        yield message


class CheckedAllReduce(AllReduceRunner):
    """One all-reduce whose parts and averages are checked and counted; `report` has the result of the checks."""

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
        traffic: Traffic | None = None,
        p2p: Any,
        servicer_type: Any,
        prefix: str | None,
        group_id: bytes,
        **container: Any,
    ) -> None:
        """max_weight: parts with a larger weight are left out: more than the run's global batch for gradients, more
        than 1 for parameters. The other arguments are those of hivemind's runner."""
        self.report, self._traffic = AllReduceReport(), traffic or Traffic()
        super().__init__(
            p2p=p2p, servicer_type=servicer_type, prefix=prefix, group_id=group_id, tensors=tensors, weight=weight,
            ordered_peer_ids=ordered_peer_ids, peer_fractions=peer_fractions, modes=modes,
            sender_timeout=sender_timeout, reducer_timeout=reducer_timeout, **container,
        )  # fmt: skip
        # hivemind has no parameter for the classes of the container and the reducer, so both are replaced afterwards.
        peers = [str(peer) for peer in ordered_peer_ids]
        self.tensor_part_container = CheckedPartContainer(
            tensors, peer_fractions, return_deltas=True, peers=peers, report=self.report, **container
        )
        self.parts_for_local_averaging = self.tensor_part_container.get_raw_input_parts(peers.index(str(self.peer_id)))
        # hivemind's reducer would warn, when it is deleted, that it received nothing.
        self.tensor_part_reducer.finished.set()
        self.tensor_part_reducer = PartReducer(
            self.parts_for_local_averaging,
            [str(peer) for peer in self.sender_peer_ids],
            max_weight=max_weight,
            aggregator=aggregator or WeightedMean(),
            report=self.report,
        )

    def _get_peer_stub(self, peer: PeerID) -> Any:
        return _CountingStub(super()._get_peer_stub(peer), self._traffic)

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        async for message in super().rpc_aggregate_part(counted(stream, self._traffic.received), context):
            count(self._traffic.sent, message)
            yield message


class _CountingStub:
    """Stands for a groupmate in `AllReduceRunner`, which calls nothing else of it."""

    def __init__(self, stub: Any, traffic: Traffic) -> None:
        self._stub, self._traffic = stub, traffic

    async def rpc_aggregate_part(self, parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
        answers = await self._stub.rpc_aggregate_part(counted(parts, self._traffic.sent))
        return counted(answers, self._traffic.received)


def validate_tensor(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> str:
    """Return why a tensor is not a finite one of this shape and type, or "" if it is."""
    if tuple(tensor.shape) != tuple(shape):
        return f"its shape is not {list(shape)}"
    if tensor.dtype != dtype:
        return f"its type is not {dtype}"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return "it holds NaN or infinity"
    return ""
