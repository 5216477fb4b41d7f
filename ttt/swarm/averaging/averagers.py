"""hivemind's averagers as this project runs them: measured, gated, and one group an epoch. Knows no model.

What differs from hivemind 1.1.12, and why:
- peers look for a group of their own epoch. hivemind's groups carry none, so that with delayed steps rounds of
  different epochs match each other, wait for one another until the timeout, and are logged as a success;
- every round reports what really arrived, since an exchange that moved nothing is logged as a success too;
- the access is asked who may join a group, send a part, or download the state; what comes is checked before it is used;
- an auxiliary peer sends nothing of its own; hivemind forgets to tell its all-reduce who is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing as mp
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, AsyncIterator  # noqa: UP035 (hivemind reads the annotations of rpc_* and knows these alone)

import hivemind.averaging.averager as hivemind_averager
import torch
from hivemind.averaging.allreduce import AveragingMode
from hivemind.averaging.control import StepControl
from hivemind.averaging.group_info import GroupInfo
from hivemind.compression import CompressionInfo
from hivemind.optim.grad_averager import GradientAverager
from hivemind.optim.power_sgd_averager import PowerSGDGradientAverager
from hivemind.p2p import P2PContext
from hivemind.proto import averaging_pb2
from hivemind.utils import get_logger
from torch import Tensor

from ttt.swarm.averaging.allreduce import Aggregator
from ttt.swarm.averaging.downloads import Downloads
from ttt.swarm.averaging.group_messages import gathered_epoch, parse_gathered
from ttt.swarm.averaging.matchmaking import EpochMatchmaking, MeasuredRunner
from ttt.swarm.averaging.state_transfer import STATE_FORMAT, Taking, state_bytes
from ttt.swarm.averaging.traffic import RECEIVED, SENT, STATE_SENT, count, count_into
from ttt.swarm.dht.access import AccessPolicy, Action, AllowAll
from ttt.swarm.process.lifecycle import become_child
from ttt.swarm.process.status import RoundRecord

logger = get_logger(__name__)


class Reporting(Taking):
    """An averager that tells how each round went, asks the access, and checks what comes."""

    kind = "gradients"
    matchmaking: type[EpochMatchmaking] = EpochMatchmaking

    def __init__(
        self,
        *args: Any,
        access: AccessPolicy | None = None,
        max_weight: float = 1.0,
        aggregator: Aggregator | None = None,
        threads: int = 1,
        **kwargs: Any,
    ) -> None:
        """max_weight: what no groupmate can honestly weigh; aggregator: makes one average of the parts."""
        self.access, self.threads = access or AllowAll(), threads
        self.max_weight, self.aggregator = max_weight, aggregator
        self.reports, self._report = mp.Pipe(duplex=False)
        self.traffic: Any = mp.Array("q", 4)
        self._runners: list[MeasuredRunner] = []
        self._failures, self._downloads = Counter(), Downloads()
        super().__init__(*args, **kwargs)

    def run(self) -> None:
        become_child(self._parent_pid)
        # hivemind takes both from its module: here, in the averager's own process, that is nobody else's.
        hivemind_averager.Matchmaking = self.matchmaking
        hivemind_averager.AllReduceRunner = MeasuredRunner
        torch.set_num_threads(self.threads)
        count_into(self.traffic)
        self.matchmaking_kwargs["access"] = self.access
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
            "step": gathered_epoch(group.gathered[group.peer_ids.index(self.peer_id)]),
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
            kwargs |= {"max_weight": self.max_weight, "aggregator": self.aggregator, "modes": _modes(group_info)}
            await super()._run_allreduce_inplace_(tensors, group_info, group_id, **kwargs)
        finally:
            if running.done() and not running.cancelled() and running.exception() is None:
                self._runners.append(running.result())

    async def rpc_join_group(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.MessageFromLeader]:
        if not self._may(context, Action.JOIN_GROUP):
            yield averaging_pb2.MessageFromLeader(code=averaging_pb2.PROTOCOL_VIOLATION)
            return
        async for message in super().rpc_join_group(request, context):
            yield message

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        if not self._may(context, Action.GRADIENT_PART):
            yield averaging_pb2.AveragingData(code=averaging_pb2.PROTOCOL_VIOLATION)
            return
        async for message in super().rpc_aggregate_part(stream, context):
            yield message

    async def rpc_download_state(
        self, request: averaging_pb2.DownloadRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.DownloadData]:
        if not self.allow_state_sharing or not self._may(context, Action.STATE_DOWNLOAD):
            return
        with self._downloads.place(str(context.remote_id), state_bytes(self.expected_state())) as free:
            if not free:
                return
            async for message in super().rpc_download_state(request, context):
                count(STATE_SENT, message)
                yield message

    async def _get_current_state_from_host_process(self) -> Any:
        """Whoever asked and has gone keeps the place until the copy is made, or could have any number made."""
        answer = asyncio.ensure_future(super()._get_current_state_from_host_process())
        self._downloads.owe(answer)
        return await asyncio.shield(answer)

    def _may(self, context: P2PContext, action: Action) -> bool:
        decision = self.access.allows(str(context.remote_id), action)
        if not decision:
            logger.warning(f"{context.remote_id} may not {action.value}: {decision.reason}")
        return bool(decision)


class SwarmGradientAverager(Reporting, GradientAverager):
    """Averages the gradients of one epoch; `current_epoch` tells which."""

    current_epoch: Callable[[], int] = staticmethod(lambda: 0)

    def schedule_step(self, scheduled_time: float | None = None, **kwargs: Any) -> StepControl:
        kwargs.setdefault("gather", self.current_epoch())
        return super().schedule_step(scheduled_time, **kwargs)


class SwarmPowerSGDAverager(SwarmGradientAverager, PowerSGDGradientAverager):
    """The same in factors of low rank (Vogels et al. 2019), with what it left out added to the next step."""

    async def _aggregate_with_group(self, group_info: GroupInfo, *args: Any, **kwargs: Any) -> Any:
        """A failed round must not leave its gradients in what is carried over, nor NaN stay there for ever."""
        carried = [feedback.clone() for feedback in self._ms]
        try:
            return await super()._aggregate_with_group(group_info, *args, **kwargs)
        except BaseException:
            for feedback, before in zip(self._ms, carried, strict=True):
                feedback.copy_(before)
            raise
        finally:
            for feedback in self._ms:
                if not bool(torch.isfinite(feedback).all()):
                    feedback.zero_()

    def expected_state(self) -> dict[str, Any]:
        return {f"factor/{number}": factor for number, factor in enumerate(self._qs)}

    def get_current_state(self) -> tuple[dict[str, Any], list[Tensor], list[CompressionInfo]]:
        """The factors that all peers have in common, in the same form as parameters."""
        with torch.no_grad(), self.lock_averaged_tensors:
            tensors = [factor.clone() for factor in self._qs]
        return describe_state(self.current_epoch(), list(self.expected_state()), {}, tensors)

    def load_state_from_peers(self, timeout: float | None = None, newest: int | None = None) -> bool:
        """Whether somebody gave factors that fit; without them the first rounds say a little less."""
        state = self.take_state(0, newest, timeout)
        if state is None:
            return False
        with torch.no_grad(), self.lock_averaged_tensors:
            for name, factor in self.expected_state().items():
                factor.copy_(state.tensors[name])
        return True


def describe_state(
    epoch: int, names: Sequence[str], scalars: dict[str, Any], tensors: list[Tensor]
) -> tuple[dict[str, Any], list[Tensor], list[CompressionInfo]]:
    """What a newcomer gets: numbers, tensors, and how to compress each."""
    infos = [CompressionInfo.from_tensor(tensor, key=i) for i, tensor in enumerate(tensors)]
    metadata = {"format": STATE_FORMAT, "epoch": epoch, "names": list(names), "scalars": scalars}
    return metadata, tensors, infos


def _modes(group: GroupInfo) -> tuple[AveragingMode, ...]:
    """Of each member; matchmaking has read them all before."""
    return tuple(gathered.mode for gathered in map(parse_gathered, group.gathered) if gathered is not None)
