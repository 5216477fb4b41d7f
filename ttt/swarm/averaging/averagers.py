"""hivemind's averagers as this project runs them: with guarded entry points, checked input, and a report of each round.

An averager is a process of its own. Methods that begin with `rpc_` and `_` run there unless they say otherwise; the
others run in the process that trains. The two share memory (`traffic`) and pipes (`_outer_pipe` of hivemind's for
commands, `_reports` for `RoundRecord`s). Classes are patched in the averager's process only.

What differs from hivemind 1.1.12, and why, is listed in docs/hivemind.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing as mp
import time
from collections.abc import Callable, Sequence
from typing import Any, AsyncIterator  # noqa: UP035 (hivemind reads the annotations of rpc_* and knows these alone)

import hivemind.averaging.averager as hivemind_averager
import torch
from hivemind.averaging.averager import DecentralizedAverager
from hivemind.averaging.control import StepControl
from hivemind.averaging.group_info import GroupInfo
from hivemind.compression import CompressionInfo
from hivemind.optim.grad_averager import GradientAverager
from hivemind.optim.power_sgd_averager import PowerSGDGradientAverager
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MPFuture, get_logger
from hivemind.utils.asyncio import aiter_with_timeout
from torch import Tensor

from ttt.errors import Cancelled
from ttt.swarm.averaging.allreduce import Aggregator, CheckedAllReduce, Traffic, count
from ttt.swarm.averaging.group_messages import gathered_epoch, parse_gathered
from ttt.swarm.averaging.matchmaking import EpochMatchmaking
from ttt.swarm.averaging.state_transfer import (
    MAX_ATTEMPT_TIMEOUTS,
    STATE_FORMAT,
    StateDownloader,
    UploadSlots,
    max_transfer_seconds,
    state_bytes,
)
from ttt.swarm.averaging.training_state import TrainingState
from ttt.swarm.dht.access import AccessPolicy, Action, AllowAll
from ttt.swarm.dht.node import parse_donors
from ttt.swarm.process.lifecycle import init_child_process
from ttt.swarm.process.status import RoundRecord

logger = get_logger(__name__)
POLL_SECONDS = 0.5
"""How soon a download notices that the peer is asked to stop."""


class GuardedAverager(DecentralizedAverager):
    """An averager that asks the access policy, checks what it receives, limits uploads, and reports each round."""

    kind = "gradients"
    matchmaking: type[EpochMatchmaking] = EpochMatchmaking
    stop_requested: Callable[[], bool] = staticmethod(lambda: False)
    """Returns True when the peer is asked to leave, which ends the wait for a download."""

    def __init__(
        self,
        *args: Any,
        access: AccessPolicy | None = None,
        max_weight: float = 1.0,
        aggregator: Aggregator | None = None,
        threads: int = 1,
        **kwargs: Any,
    ) -> None:
        """max_weight: parts of a groupmate with a larger weight are left out; aggregator: averages the parts; threads:
        of torch in the averager's process."""
        self.access, self.threads = access or AllowAll(), threads
        self.max_weight, self.aggregator = max_weight, aggregator
        self.traffic = Traffic()
        self._reports, self._report_sender = mp.Pipe(duplex=False)
        self._runners: list[CheckedAllReduce] = []
        self._upload_slots = UploadSlots()
        self._downloader = StateDownloader(self._request_state, access=self.access, traffic=self.traffic)
        super().__init__(*args, **kwargs)  # may start the process, so it comes last

    def expected_state(self) -> dict[str, Any]:
        """Return name -> tensor or number of our own state, which a donor's must match. Implemented by each kind."""
        raise NotImplementedError

    def run(self) -> None:
        init_child_process(self._parent_pid)
        # hivemind looks both classes up in its module. This is the averager's own process: nothing else uses them here.
        hivemind_averager.Matchmaking = self.matchmaking
        hivemind_averager.AllReduceRunner = CheckedAllReduce
        torch.set_num_threads(self.threads)  # the other cores are for training
        self.matchmaking_kwargs["access"] = self.access
        super().run()

    # Averaging rounds

    def take_reports(self) -> list[RoundRecord]:
        """Return the rounds that ended since the last call (in the training process)."""
        records = []
        with contextlib.suppress(EOFError, OSError):
            while self._reports.poll():
                records.append(RoundRecord.model_validate(self._reports.recv()))
        return records

    async def _aggregate_with_group(self, group_info: GroupInfo, *args: Any, **kwargs: Any) -> Any:
        """Run a round and report how it went: hivemind logs a round in which nothing was exchanged as a success."""
        started, failed = time.time(), ""
        sent, received = self.traffic.sent.value, self.traffic.received.value
        self._runners = []
        try:
            return await super()._aggregate_with_group(group_info, *args, **kwargs)
        except asyncio.CancelledError:  # by hivemind, which waits for a round with a time-out
            failed = "not finished within averaging_timeout"
            raise
        except BaseException as error:
            failed = str(error)[:300]
            raise
        finally:
            self._report_sender.send(
                {
                    **self._describe_round(group_info),
                    "time": time.time(),
                    "seconds": time.time() - started,
                    "sent_bytes": self.traffic.sent.value - sent,
                    "received_bytes": self.traffic.received.value - received,
                    "failed": failed,
                }
            )

    def _describe_round(self, group: GroupInfo) -> dict[str, Any]:
        """Summarise the all-reduces of the round, one or (PowerSGD) two, as fields of a `RoundRecord`."""
        runners = self._runners
        size = sum(runner.tensor_part_container.total_size for runner in runners)
        lost = sum(runner.tensor_part_container.failed_size for runner in runners)
        reducers = [runner.tensor_part_reducer for runner in runners]
        expected = sum(reducer.num_parts * reducer.num_senders for reducer in reducers)
        arrived = sum(sum(reducer.num_parts_received) for reducer in reducers)
        rejections = {f"{peer}: {reason}" for runner in runners for peer, reason in runner.report.rejections()}
        return {
            "kind": self.kind,
            "step": gathered_epoch(group.gathered[group.peer_ids.index(self.peer_id)]),
            "group_size": len(group.peer_ids),
            "results_received": 1 - lost / size if size else 0.0,
            "inputs_received": arrived / expected if expected else 1.0,
            "peers": sorted(str(peer) for peer in group.peer_ids),
            "weights": {peer: weight for runner in runners for peer, weight in runner.report.weights.items()},
            "refused": sorted(rejections)[:16],  # strangers determine how many there are
        }

    async def _run_allreduce_inplace_(
        self, tensors: Sequence[Tensor], group_info: GroupInfo, group_id: bytes | None = None, **kwargs: Any
    ) -> None:
        future = self._running_groups[group_info.group_id if group_id is None else group_id]
        # hivemind does not pass on the modes, so its all-reduce takes an auxiliary peer for one that sends.
        modes = tuple(gathered.mode for gathered in map(parse_gathered, group_info.gathered) if gathered is not None)
        kwargs |= {
            "max_weight": self.max_weight, "aggregator": self.aggregator, "traffic": self.traffic, "modes": modes,
        }  # fmt: skip
        try:
            await super()._run_allreduce_inplace_(tensors, group_info, group_id, **kwargs)
        finally:  # a failed round is reported, too
            if future.done() and not future.cancelled() and future.exception() is None:
                self._runners.append(future.result())

    # Entry points for other peers

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
        with self._upload_slots.acquire(str(context.remote_id), state_bytes(self.expected_state())) as acquired:
            if not acquired:
                return
            async for message in super().rpc_download_state(request, context):
                count(self.traffic.state_sent, message)
                yield message

    async def _get_current_state_from_host_process(self) -> Any:
        snapshot = asyncio.ensure_future(super()._get_current_state_from_host_process())
        self._upload_slots.hold_until(snapshot)
        return await asyncio.shield(snapshot)  # the training process finishes it even if the client disconnects

    def _may(self, context: P2PContext, action: Action) -> bool:
        decision = self.access.allows(str(context.remote_id), action)
        if not decision:
            logger.warning(f"{context.remote_id} may not {action.value}: {decision.reason}")
        return bool(decision)

    # Downloading a state

    def download_state(self, min_epoch: int, credible: int | None, timeout: float | None) -> TrainingState | None:
        """Return a donor's state of step `min_epoch` or later, or None if no donor has one that fits.

        Runs in the training process. credible: the credible step of the swarm; None where no peer reports progress.
        timeout: seconds for one donor, beyond those that a state of this size may take. Raises
        Cancelled when asked to stop meanwhile.
        """
        future = MPFuture()
        if timeout is not None:
            timeout += max_transfer_seconds(state_bytes(self.expected_state()))
        arguments = {"future": future, "timeout": timeout, "min_epoch": min_epoch, "credible": credible}
        self._outer_pipe.send(("_load_state_from_peers", [], arguments))
        # One timeout more than the averager's process takes, which has to find the donors first.
        deadline = math.inf if timeout is None else time.monotonic() + (MAX_ATTEMPT_TIMEOUTS + 1) * timeout
        while time.monotonic() < deadline:
            try:
                return future.result(POLL_SECONDS)
            except TimeoutError:
                if self.stop_requested():
                    raise Cancelled("stopped while downloading the state from another peer") from None
        return None

    async def _load_state_from_peers(
        self, future: MPFuture, timeout: float | None = None, min_epoch: int = 0, credible: int | None = None
    ) -> None:
        state = None
        try:
            key = f"{self._matchmaking.group_key_manager.prefix}.all_averagers"
            answer = await asyncio.wait_for(self.dht.get(key, latest=True, return_future=True), timeout)
            donors = parse_donors(answer.value if answer is not None else None)
            donors.pop(self.peer_id, None)
            state = await self._downloader.download(
                donors, self.expected_state, min_epoch=min_epoch, credible=credible, timeout=timeout
            )
        except Exception as error:
            logger.warning(f"The donors of the state could not be found: {error!r}")
        finally:
            future.set_result(state)

    async def _request_state(self, donor: PeerID) -> AsyncIterator[averaging_pb2.DownloadData]:
        stub = self.get_stub(self._p2p, donor, namespace=self.prefix)
        stream = await stub.rpc_download_state(averaging_pb2.DownloadRequest())
        return aiter_with_timeout(stream, self.next_chunk_timeout)


class SwarmGradientAverager(GuardedAverager, GradientAverager):
    """Averages the gradients of one step, `current_epoch()`."""

    current_epoch: Callable[[], int] = staticmethod(lambda: 0)

    def schedule_step(self, scheduled_time: float | None = None, **kwargs: Any) -> StepControl:
        kwargs.setdefault("gather", self.current_epoch())  # matchmaking makes it part of the group key
        return super().schedule_step(scheduled_time, **kwargs)


class SwarmPowerSGDAverager(SwarmGradientAverager, PowerSGDGradientAverager):
    """Averages gradients as factors of low rank and carries the error over to the next step (Vogels et al. 2019)."""

    async def _aggregate_with_group(self, group_info: GroupInfo, *args: Any, **kwargs: Any) -> Any:
        """Run a round; undo the error feedback (hivemind's `_ms`) of a failed one, and clear it if it is not finite.

        hivemind adds the gradients to the feedback before the round. After a failure the optimizer uses them as they
        are, so that they would count twice; and a NaN would stay in the feedback for the rest of the run.
        """
        saved = [feedback.clone() for feedback in self._ms]
        try:
            return await super()._aggregate_with_group(group_info, *args, **kwargs)
        except BaseException:
            for feedback, before in zip(self._ms, saved, strict=True):
                feedback.copy_(before)
            raise
        finally:
            for feedback in self._ms:
                if not bool(torch.isfinite(feedback).all()):
                    feedback.zero_()

    def expected_state(self) -> dict[str, Any]:
        return {f"factor/{number}": factor for number, factor in enumerate(self._qs)}

    def get_current_state(self) -> tuple[dict[str, Any], list[Tensor], list[CompressionInfo]]:
        """Return the factors that all peers share, in the format of a state."""
        with torch.no_grad(), self.lock_averaged_tensors:
            tensors = [factor.clone() for factor in self._qs]
        return describe_state(self.current_epoch(), list(self.expected_state()), {}, tensors)

    def load_state_from_peers(self, timeout: float | None = None, credible: int | None = None) -> bool:
        """Load the factors of another peer; return False if none has any that fit.

        Without them the first rounds only approximate the gradients less well.
        """
        state = self.download_state(0, credible, timeout)
        if state is None:
            return False
        with torch.no_grad(), self.lock_averaged_tensors:
            for name, factor in self.expected_state().items():
                factor.copy_(state.tensors[name])
        return True


def describe_state(
    epoch: int, names: Sequence[str], scalars: dict[str, Any], tensors: list[Tensor]
) -> tuple[dict[str, Any], list[Tensor], list[CompressionInfo]]:
    """Return what hivemind sends to a client: metadata, tensors, and how to compress each (not at all)."""
    infos = [CompressionInfo.from_tensor(tensor, key=i) for i, tensor in enumerate(tensors)]
    metadata = {"format": STATE_FORMAT, "epoch": epoch, "names": list(names), "scalars": scalars}
    return metadata, tensors, infos
