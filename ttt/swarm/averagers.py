"""hivemind's averagers as this project runs them: measured, gated, and one group an epoch. Knows no model.

What differs from hivemind 1.1.12, and why:
- peers look for a group of their own epoch. hivemind's groups carry none, so that with delayed steps rounds of
  different epochs match each other, wait for one another until the timeout, and are logged as a success;
- every round reports what really arrived, since an exchange that moved nothing is logged as a success too;
- the gate is asked who may join a group, send a part, or download the state; what comes is checked before it is used;
- a peer offers its state only once it has one, and names its tensors, so that nothing is matched by position alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing as mp
import time
from collections.abc import Callable, Sequence
from typing import Any, AsyncIterator  # noqa: UP035 (hivemind reads the annotations of rpc_* and knows these alone)

import torch
from hivemind.averaging.averager import DecentralizedAverager
from hivemind.averaging.control import StepControl
from hivemind.averaging.group_info import GroupInfo
from hivemind.compression import CompressionInfo, deserialize_torch_tensor
from hivemind.optim.grad_averager import GradientAverager
from hivemind.optim.power_sgd_averager import PowerSGDGradientAverager
from hivemind.optim.state_averager import TrainingStateAverager
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import get_logger
from hivemind.utils.asyncio import aiter_with_timeout
from hivemind.utils.streaming import combine_from_streaming
from torch import Tensor

from ttt.errors import CheckpointError
from ttt.swarm.gate import Entrance, Gate, OpenGate
from ttt.swarm.matchmaking import (
    RECEIVED,
    SENT,
    STATE_RECEIVED,
    STATE_SENT,
    MeasuredRunner,
    count,
    count_into,
    gathered_epoch,
)
from ttt.swarm.processes import become_child
from ttt.swarm.reducer import Aggregator
from ttt.swarm.state import TrainingState, restore, snapshot
from ttt.swarm.status import RoundRecord

logger = get_logger(__name__)
STATE_FORMAT = 1


class Reporting(DecentralizedAverager):
    """An averager that tells how each round went, asks the gate, and checks what comes."""

    kind = "gradients"

    def __init__(
        self,
        *args: Any,
        gate: Gate | None = None,
        max_weight: float = 1.0,
        aggregator: Aggregator | None = None,
        threads: int = 1,
        **kwargs: Any,
    ) -> None:
        """max_weight: what no groupmate can honestly weigh; aggregator: makes one average of the parts."""
        self.gate, self.threads = gate or OpenGate(), threads
        self.max_weight, self.aggregator = max_weight, aggregator
        self.reports, self._report = mp.Pipe(duplex=False)
        self.traffic: Any = mp.Array("q", 4)
        self._runners: list[MeasuredRunner] = []
        super().__init__(*args, **kwargs)

    def run(self) -> None:
        become_child(self._parent_pid)
        torch.set_num_threads(self.threads)
        count_into(self.traffic)
        super().run()

    def take_reports(self) -> list[RoundRecord]:
        """Rounds that ended since the last call."""
        found = []
        with contextlib.suppress(EOFError, OSError):
            while self.reports.poll():
                found.append(RoundRecord.model_validate(self.reports.recv()))
        return found

    async def _aggregate_with_group(self, group_info: GroupInfo, *args: Any, **kwargs: Any) -> Any:
        began, before, failed = time.time(), list(self.traffic), ""
        self._runners = []
        try:
            return await super()._aggregate_with_group(group_info, *args, **kwargs)
        except asyncio.CancelledError:
            failed = "not finished within averaging_timeout"
            raise
        except BaseException as error:
            failed = str(error)[:300]
            raise
        finally:
            self._report.send(self._told(group_info, began, before, failed))

    def _told(self, group: GroupInfo, began: float, before: list[int], failed: str) -> dict[str, Any]:
        size = sum(runner.tensor_part_container.total_size for runner in self._runners)
        lost = sum(runner.tensor_part_container.failed_size for runner in self._runners)
        reducers = [runner.tensor_part_reducer for runner in self._runners]
        expected = sum(reducer.num_parts * reducer.num_senders for reducer in reducers)
        arrived = sum(sum(reducer.num_parts_received) for reducer in reducers)
        return {
            "kind": self.kind,
            "epoch": gathered_epoch(group.gathered[group.peer_ids.index(self.peer_id)]),
            "time": time.time(),
            "seconds": time.time() - began,
            "group_size": len(group.peer_ids),
            "received": 1 - lost / size if size else 0.0,
            "gathered": arrived / expected if expected else 1.0,
            "sent_bytes": self.traffic[SENT] - before[SENT],
            "received_bytes": self.traffic[RECEIVED] - before[RECEIVED],
            "peers": sorted(str(peer) for peer in group.peer_ids),
            "weights": {peer: weight for runner in self._runners for peer, weight in runner.findings.weights.items()},
            "refused": sorted({f"{peer}: {why}" for runner in self._runners for peer, why in runner.refused()})[:16],
            "failed": failed,
        }

    async def _run_allreduce_inplace_(
        self, tensors: Sequence[Tensor], group_info: GroupInfo, group_id: bytes | None = None, **kwargs: Any
    ) -> None:
        running = self._running_groups[group_info.group_id if group_id is None else group_id]
        try:
            kwargs |= {"max_weight": self.max_weight, "aggregator": self.aggregator}
            await super()._run_allreduce_inplace_(tensors, group_info, group_id, **kwargs)
        finally:
            if running.done() and not running.cancelled() and running.exception() is None:
                self._runners.append(running.result())

    async def rpc_join_group(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.MessageFromLeader]:
        if not self._may(context, Entrance.JOIN_GROUP):
            yield averaging_pb2.MessageFromLeader(code=averaging_pb2.PROTOCOL_VIOLATION)
            return
        async for message in super().rpc_join_group(request, context):
            yield message

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        if not self._may(context, Entrance.GRADIENT_PART):
            yield averaging_pb2.AveragingData(code=averaging_pb2.PROTOCOL_VIOLATION)
            return
        async for message in super().rpc_aggregate_part(stream, context):
            yield message

    async def rpc_download_state(
        self, request: averaging_pb2.DownloadRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.DownloadData]:
        if self._may(context, Entrance.STATE_DOWNLOAD):
            async for message in super().rpc_download_state(request, context):
                count(STATE_SENT, message)
                yield message

    def _may(self, context: P2PContext, entrance: Entrance) -> bool:
        decision = self.gate.allows(str(context.remote_id), entrance)
        if not decision:
            logger.warning(f"{context.remote_id} may not {entrance.value}: {decision.reason}")
        return bool(decision)


class SwarmGradientAverager(Reporting, GradientAverager):
    """Averages the gradients of one epoch; `current_epoch` tells which."""

    current_epoch: Callable[[], int] = staticmethod(lambda: 0)

    def schedule_step(self, scheduled_time: float | None = None, **kwargs: Any) -> StepControl:
        kwargs.setdefault("gather", self.current_epoch())
        return super().schedule_step(scheduled_time, **kwargs)


class SwarmPowerSGDAverager(SwarmGradientAverager, PowerSGDGradientAverager):
    """The same in factors of low rank (Vogels et al. 2019)."""


class SwarmStateAverager(Reporting, TrainingStateAverager):
    """Holds parameters and optimizer; averages the parameters, offers the state to newcomers, fetches it."""

    kind = "state"

    def __init__(self, *args: Any, names: Sequence[str], on_step: Callable[[int], None] | None = None, **kwargs: Any):
        """names: of the parameters, in the optimizer's order; on_step: told the epoch after each optimizer step."""
        self.names, self._on_step = list(names), on_step
        super().__init__(*args, **kwargs)

    def state(self, *, copy: bool = False) -> TrainingState:
        with torch.no_grad(), self.lock_averaged_tensors:
            return snapshot(self.optimizer, self.names, self.local_epoch, copy=copy)

    @functools.cached_property
    def _most_bytes(self) -> int:
        """That a donor may send: twice what our own state takes."""
        tensors = snapshot(self.optimizer, self.names, 0).tensors.values()
        return 2 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) + (1 << 20)

    def load(self, state: TrainingState) -> None:
        """Take over a state; CheckpointError, and nothing changed, where it does not fit."""
        with self.lock_averaged_tensors:
            restore(self.optimizer, self.names, state)
        if self.offload_optimizer:
            self._apply_optimizer_parameters_()
        if not self.reuse_tensors:
            self._load_local_tensors_into_averager_()
        self.local_epoch = state.epoch
        self._set_learning_rate()

    def get_current_state(self) -> tuple[dict[str, Any], list[Tensor], list[CompressionInfo]]:
        """What a newcomer gets, in this process: numbers, tensors, and how to compress each."""
        state = self.state(copy=True)
        tensors = list(state.tensors.values())
        infos = [CompressionInfo.from_tensor(tensor, key=i) for i, tensor in enumerate(tensors)]
        metadata = {
            "format": STATE_FORMAT, "epoch": state.epoch, "names": list(state.tensors), "scalars": state.scalars,
        }  # fmt: skip
        return metadata, tensors, infos

    def load_state_from_peers(self, wait: bool = True, timeout: float | None = None) -> bool:
        """Whether a donor was found whose state fits and is not older than ours."""
        loaded = DecentralizedAverager.load_state_from_peers(self, wait=True, timeout=timeout)
        if loaded is None:
            return False
        try:
            state = _received_state(*loaded)
            if state.epoch < self.local_epoch:
                raise CheckpointError(f"the donor is at step {state.epoch}, we are at step {self.local_epoch}")
            self.load(state)
        except CheckpointError as error:
            logger.warning(f"A donor's state was refused: {error}")
            return False
        return True

    async def _load_state_from_peers(self, future: Any, timeout: float | None = None) -> None:
        """In the averager's process: the state of the first donor that answers, the newest first."""
        try:
            found = await self.dht.get(
                f"{self._matchmaking.group_key_manager.prefix}.all_averagers", latest=True, return_future=True
            )
            donors = {
                PeerID(peer): float(entry.value)
                for peer, entry in (found.value if found and isinstance(found.value, dict) else {}).items()
                if isinstance(entry.value, (int, float))
            }
            for donor in sorted(donors, key=lambda peer: donors[peer], reverse=True):
                decision = self.gate.allows(str(donor), Entrance.STATE_DOWNLOAD)
                if donor == self.peer_id or not decision:
                    continue
                try:
                    loaded = await asyncio.wait_for(self._download_from(donor), timeout)
                except Exception as error:
                    logger.warning(f"{donor} did not deliver its state: {error!r}")
                    continue
                if loaded is not None:
                    future.set_result(loaded)
                    return
        except Exception as error:
            logger.warning(f"No donor could be asked: {error!r}")
        finally:
            if not future.done():
                future.set_result(None)

    async def _download_from(self, donor: PeerID) -> tuple[Any, list[Tensor]] | None:
        stub = self.get_stub(self._p2p, donor, namespace=self.prefix)
        stream = await stub.rpc_download_state(averaging_pb2.DownloadRequest())
        metadata, size = None, 0
        tensors: list[Tensor] = []
        parts: list[Any] = []
        async for message in aiter_with_timeout(stream, self.next_chunk_timeout):
            count(STATE_RECEIVED, message)
            size += message.ByteSize()
            if size > self._most_bytes:
                raise CheckpointError(f"it sends more than {self._most_bytes} bytes")
            if message.metadata:
                metadata = self.serializer.loads(message.metadata)
            if message.tensor_part.dtype and parts:  # a type marks the first part of the next tensor
                tensors.append(deserialize_torch_tensor(combine_from_streaming(parts)))
                parts = []
            parts.append(message.tensor_part)
        if parts:
            tensors.append(deserialize_torch_tensor(combine_from_streaming(parts)))
        return (metadata, tensors) if metadata else None

    def _do(self, *args: Any, **kwargs: Any) -> None:
        epoch = self.local_epoch
        super()._do(*args, **kwargs)
        if self._on_step is not None:
            self._on_step(epoch)

    def _set_learning_rate(self) -> None:
        """The schedule's, for this epoch; the scheduler only knows how to step forward."""
        if self.scheduler is not None:
            if self.scheduler._step_count > self.local_epoch + 1:
                self.scheduler._step_count, self.scheduler.last_epoch = 1, 0
            self._update_scheduler()


def _received_state(metadata: Any, tensors: list[Tensor]) -> TrainingState:
    """Nothing here is trusted; `restore` compares names, shapes, types and numbers with our own."""
    if not isinstance(metadata, dict) or metadata.get("format") != STATE_FORMAT:
        raise CheckpointError("the donor runs another version of this program")
    epoch, names, scalars = metadata.get("epoch"), metadata.get("names"), metadata.get("scalars")
    if type(epoch) is not int or not 0 <= epoch < 2**40:
        raise CheckpointError(f"its step is {epoch!r}")
    if not isinstance(names, list) or len(names) != len(tensors) or not all(isinstance(n, str) for n in names):
        raise CheckpointError("its names do not fit its tensors")
    if not isinstance(scalars, dict):
        raise CheckpointError("its numbers are missing")
    return TrainingState(epoch, dict(zip(names, tensors, strict=True)), scalars)
