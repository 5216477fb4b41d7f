"""Transfer of the training state between peers: upload slots of a donor, and checked downloads from any donor.

A donor publishes in the DHT that it offers its state, and the step that the state is of. A newcomer asks donors in
turn; each answers with a stream of messages:

    first message    metadata: format, step, names of the tensors in order, numbers ("scalars");
                     and the first chunk of the first tensor
    other messages   a chunk of a tensor; a chunk with a `dtype` begins the next tensor

The records of donors are unsigned, and a donor states itself how new its state is. So no claim above the credible step
of the swarm (`progress.py`) counts, and donors with equal claims are asked in random order, those that failed before
last. `IncomingState` checks every message as it arrives; the first one that does not fit ends the download, and the
next donor is asked. The caller states which tensors and numbers it expects, so nothing here depends on the optimizer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hivemind.compression import deserialize_torch_tensor
from hivemind.p2p import PeerID
from hivemind.proto import averaging_pb2, runtime_pb2
from hivemind.utils import MSGPackSerializer, get_logger
from hivemind.utils.streaming import combine_from_streaming
from torch import Tensor

from ttt.errors import CheckpointError
from ttt.swarm.averaging.allreduce import Traffic, count, validate_tensor
from ttt.swarm.averaging.progress import credible_epoch
from ttt.swarm.averaging.training_state import TrainingState, check_state
from ttt.swarm.dht.access import AccessPolicy, Action
from ttt.swarm.dht.records import MAX_STEP

logger = get_logger(__name__)
STATE_FORMAT = 1
MAX_EPOCH_LEAD = 1
"""Steps by which a donor may be ahead of the credible step of the swarm: it may just have made one."""
MIN_BYTES_PER_SECOND = 1 << 20
"""A transfer may be as slow as this: 8 Mbit/s, at which the state of the paper's model takes 12 minutes."""
MAX_ATTEMPT_TIMEOUTS = 3
"""A search for a donor is given up after this many timeouts of one donor; donors may be slow on purpose."""
MAX_UPLOADS = 4
"""Downloads that one donor serves at a time."""
UPLOAD_GRACE_SECONDS = 60.0
"""Time for an upload beyond that of the state at `MIN_BYTES_PER_SECOND`."""


def state_bytes(state: Mapping[str, Any]) -> int:
    """Total size of the tensors of a state."""
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


def max_transfer_seconds(size: int) -> float:
    """Seconds that a transfer of so many bytes may take."""
    return size / MIN_BYTES_PER_SECOND


class UploadSlots:
    """Limits the downloads that a donor serves: a few at a time, one for each peer, each for a limited time.

    Every upload holds a copy of the whole state, so many clients, or one client that asks again and again, could
    exhaust the memory of the donor. A client without a slot gets an empty answer and asks the next donor.
    """

    def __init__(self, grace_seconds: float = UPLOAD_GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self._clients: set[str] = set()
        self._pending: dict[asyncio.Task[Any], asyncio.Future[Any]] = {}

    @contextlib.contextmanager
    def acquire(self, client: str, size: int) -> Iterator[bool]:
        """Hold a slot for a client; yields False if there is none for it.

        The task that serves the client is cancelled when its time is over, even while it waits for the client to
        read. size: bytes of the state.
        """
        task = asyncio.current_task()
        if task is None or client in self._clients or len(self._clients) >= MAX_UPLOADS:
            yield False
            return
        self._clients.add(client)
        seconds = self._grace_seconds + max_transfer_seconds(size)
        timer = asyncio.get_running_loop().call_later(seconds, task.cancel)
        try:
            yield True
        finally:
            timer.cancel()
            pending = self._pending.pop(task, None)
            if pending is not None and not pending.done():
                pending.add_done_callback(lambda _: self._clients.discard(client))
            else:
                self._clients.discard(client)

    def hold_until(self, snapshot: asyncio.Future[Any]) -> None:
        """Keep the slot of the current task until its snapshot of the state is complete, even if the client leaves.

        Otherwise a client could trigger any number of copies by connecting and disconnecting.
        """
        if (task := asyncio.current_task()) is not None:
            self._pending[task] = snapshot


@dataclass
class IncomingState:
    """A state that is being downloaded. Raises CheckpointError at the first thing that does not fit."""

    expected: Mapping[str, Any]
    """Name -> our own tensor or number, of the shape and type that the donor's must have."""
    min_epoch: int
    max_epoch: int
    epoch: int = -1
    names: list[str] = field(default_factory=list)
    scalars: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _chunks: list[runtime_pb2.Tensor] = field(default_factory=list)
    _chunk_bytes: int = 0

    def add(self, message: averaging_pb2.DownloadData) -> None:
        if not self.names:
            self._read_metadata(message.metadata)
        chunk = message.tensor_part
        if chunk.dtype and self._chunks:  # hivemind sets the type only in the first chunk of a tensor
            self._finish_tensor()
        elif self._chunks and not chunk.buffer:  # would keep the connection open forever
            raise CheckpointError("it sends empty messages")
        self._chunk_bytes += len(chunk.buffer)
        if self._chunk_bytes > self._expected_tensor.numel() * self._expected_tensor.element_size():
            raise CheckpointError(f"it sends more than {self._name} holds")
        self._chunks.append(chunk)

    def finish(self) -> TrainingState:
        if not self.names:
            raise CheckpointError("it offers no state, or has no free upload slot")
        if self._chunks:
            self._finish_tensor()
        state = TrainingState(self.epoch, self.tensors, self.scalars)
        check_state(self.expected, state)  # nothing is missing, and the numbers are of the right types
        return state

    @property
    def _name(self) -> str:
        if len(self.tensors) == len(self.names):
            raise CheckpointError("it sends more tensors than it announced")
        return self.names[len(self.tensors)]

    @property
    def _expected_tensor(self) -> Tensor:
        return self.expected[self._name]

    def _read_metadata(self, data: bytes) -> None:
        metadata = MSGPackSerializer.loads(data) if data else None
        if not isinstance(metadata, dict) or metadata.get("format") != STATE_FORMAT:
            raise CheckpointError("it runs another version of this program")
        epoch, names, scalars = metadata.get("epoch"), metadata.get("names"), metadata.get("scalars")
        if type(epoch) is not int or not self.min_epoch <= epoch <= self.max_epoch:
            raise CheckpointError(f"its step is {epoch!r}, expected {self.min_epoch} to {self.max_epoch}")
        tensors = {name for name, value in self.expected.items() if isinstance(value, Tensor)}
        # Elements of any type may arrive, so they are converted to text before they are put into a set.
        if not isinstance(names, list) or len(names) != len(tensors) or {*map(str, names)} != tensors:
            raise CheckpointError("its tensors are not those of our model and optimizer")
        if not isinstance(scalars, dict) or not {*map(str, scalars)} <= self.expected.keys():
            raise CheckpointError("its numbers are not those of our optimizer")
        self.epoch, self.names, self.scalars = epoch, names, scalars

    def _finish_tensor(self) -> None:
        name, expected = self._name, self._expected_tensor
        message = combine_from_streaming(self._chunks)
        # Checked before deserialising, which would allocate whatever the message claims to hold.
        if message.compression != runtime_pb2.CompressionType.NONE or tuple(message.size) != tuple(expected.shape):
            raise CheckpointError(f"{name} is {list(message.size)}, expected {list(expected.shape)}, uncompressed")
        tensor = deserialize_torch_tensor(message).detach()
        if reason := validate_tensor(tensor, expected.shape, expected.dtype):
            raise CheckpointError(f"{name}: {reason}")
        self.tensors[name] = tensor
        self._chunks, self._chunk_bytes = [], 0


def rank_donors(donors: Mapping[Any, float], credible: int, failures: Mapping[Any, int]) -> list[Any]:
    """Order donors by claim, newest first, then by failures, then at random. No claim counts above `credible`."""
    claims = {donor: min(claim, credible) for donor, claim in donors.items() if math.isfinite(claim)}
    return sorted(claims, key=lambda donor: (-claims[donor], failures.get(donor, 0), random.random()))


class StateDownloader:
    """Downloads a state from the best donor, asking one donor after the other until a state fits."""

    def __init__(
        self,
        request: Callable[[PeerID], Awaitable[AsyncIterator[averaging_pb2.DownloadData]]],
        *,
        access: AccessPolicy,
        traffic: Traffic,
    ) -> None:
        """request: opens the stream of a donor's messages; the stream raises an error if the donor is silent."""
        self._request, self._access, self._traffic = request, access, traffic
        self._failures: Counter[PeerID] = Counter()

    async def download(
        self,
        donors: Mapping[PeerID, float],
        expected: Callable[[], Mapping[str, Any]],
        *,
        min_epoch: int,
        credible: int | None,
        timeout: float | None,
    ) -> TrainingState | None:
        """Return a donor's state of step `min_epoch` or later, or None if no donor has one that fits.

        donors: peer -> the step that its state is said to be of. expected: our own state, read again for each donor,
        as it may change meanwhile. credible: the credible step of the swarm; None where no peer reports progress.
        timeout: seconds for one donor.
        """
        if credible is None:  # no peer trains: the donors' claims are all there is to judge by
            credible = credible_epoch([int(min(max(claim, 0), MAX_STEP)) for claim in donors.values()])
        started = time.monotonic()
        for donor in rank_donors(donors, credible, self._failures):
            # One timeout is left for the donor that is asked last.
            if timeout is not None and time.monotonic() - started > (MAX_ATTEMPT_TIMEOUTS - 1) * timeout:
                break
            if not self._access.allows(str(donor), Action.STATE_DOWNLOAD):
                continue
            try:
                incoming = IncomingState(expected(), min_epoch, credible + MAX_EPOCH_LEAD)
                return await asyncio.wait_for(self._receive(donor, incoming), timeout)
            except Exception as error:  # whatever a donor sends must not keep us from the next one
                self._failures[donor] += 1
                logger.warning(f"The state of {donor} was not loaded: {error or type(error).__name__}")
        return None

    async def _receive(self, donor: PeerID, incoming: IncomingState) -> TrainingState:
        async for message in await self._request(donor):
            count(self._traffic.state_received, message)
            incoming.add(message)
        return incoming.finish()
