"""Job queue: runs one job at a time and serves the users in turn. Independent of Gradio, the model and files."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from ttt.errors import Cancelled, TTTError

log = logging.getLogger(__name__)

MAX_PENDING = 64
MAX_PENDING_PER_USER = 4
MAX_REMEMBERED = 200
GRACE_SECONDS = 4.0
"""How long a job outlives its page: long enough for a reload to find it again."""

Phase = Literal["loading", "waiting", "working", "finished", "failed", "stopped"]
ENDED: frozenset[Phase] = frozenset({"finished", "failed", "stopped"})
_ORDER: dict[Phase, int] = {"loading": 0, "waiting": 1, "working": 2, "finished": 3, "failed": 3, "stopped": 3}


class QueueFull(TTTError):
    """Too many jobs are pending."""


@dataclass(frozen=True)
class Update:
    """The state of a job; a newer update replaces it completely."""

    phase: Phase
    message: str = ""
    """What is being loaded, or why the job failed."""
    ahead: int = 0
    """Jobs that will be served before this one."""
    stage: str = ""
    fraction: float = 0.0
    preview: bytes | None = None
    """The newest preview as JPEG."""
    result: str | None = None
    """Id of the stored result, once finished."""
    since: float = field(default_factory=time.monotonic)
    """When this phase began."""

    @property
    def ended(self) -> bool:
        return self.phase in ENDED


class Job:
    """One request: its latest update, its watchers and its own cancel event."""

    def __init__(self, user: str, *, grace: float = 0.0, on_stop: Callable[[Job], None] | None = None) -> None:
        self.id = secrets.token_urlsafe(18)
        self.user = user
        self.cancel = threading.Event()
        self._grace = grace
        self._on_stop = on_stop
        self._changed = threading.Condition()
        self._update = Update("loading")
        self._version = 0
        self._watchers = 0

    @property
    def update(self) -> Update:
        return self._update

    def publish(self, update: Update) -> None:
        """Replace the latest update. An earlier phase never returns, and after the end nothing changes."""
        with self._changed:
            if self._update.ended or _ORDER[update.phase] < _ORDER[self._update.phase]:
                return
            if update.phase == self._update.phase:
                update = replace(update, since=self._update.since)
            self._update = update
            self._version += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """End this job alone, whether it waits or works."""
        self.cancel.set()
        self.publish(Update("stopped", fraction=self._update.fraction, preview=self._update.preview))
        if self._on_stop:
            self._on_stop(self)

    def watch(self, heartbeat: float = 0.5) -> Iterator[Update]:
        """Yield every update, and the same one again at each heartbeat. Closing the last watcher stops the job.

        The heartbeat lets a server notice, between two yields, that the client has disconnected.
        """
        with self._changed:
            self._watchers += 1
        try:
            seen = -1
            while True:
                with self._changed:
                    if self._version == seen:
                        self._changed.wait(heartbeat)
                    seen, update = self._version, self._update
                yield update
                if update.ended:
                    return
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._watchers -= 1
            abandoned = self._watchers == 0 and not self._update.ended
        if not abandoned:
            return
        if self._grace == 0:
            self.stop()
            return
        timer = threading.Timer(self._grace, self._stop_if_abandoned)
        timer.daemon = True
        timer.start()

    def _stop_if_abandoned(self) -> None:
        with self._changed:
            abandoned = self._watchers == 0 and not self._update.ended
        if abandoned:
            self.stop()


JobFunction = Callable[[Job], None]
"""Does the work of a job: publishes updates, the last of which ends it, and checks `job.cancel`."""


class JobQueue:
    """One queue per user and one worker thread. Users take turns, so many requests of one do not delay the others."""

    def __init__(self, *, max_pending: int = MAX_PENDING, max_per_user: int = MAX_PENDING_PER_USER) -> None:
        self._max_pending = max_pending
        self._max_per_user = max_per_user
        self._pending_by_user: OrderedDict[str, deque[tuple[Job, JobFunction]]] = OrderedDict()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._running: Job | None = None
        self._wakeup = threading.Condition()
        self._worker: threading.Thread | None = None

    def create(self, user: str, *, grace: float = 0.0) -> Job:
        """A new job of this user, not queued yet. Raises QueueFull if there are too many."""
        with self._wakeup:
            alive = [job for job in self._jobs.values() if not job.update.ended]
            if len(alive) >= self._max_pending:
                raise QueueFull(f"{len(alive)} requests are waiting, the most this server accepts; try again later")
            if sum(job.user == user for job in alive) >= self._max_per_user:
                raise QueueFull(f"you already have {self._max_per_user} requests waiting or running, the most allowed")
            job = Job(user, grace=grace, on_stop=self._remove)
            self._jobs[job.id] = job
            while len(self._jobs) > MAX_REMEMBERED:
                oldest = next((key for key, old in self._jobs.items() if old.update.ended), None)
                if oldest is None:
                    break
                del self._jobs[oldest]
        return job

    def find(self, job_id: object) -> Job | None:
        """The job of this (unguessable) id, or None if it is unknown."""
        return self._jobs.get(job_id) if isinstance(job_id, str) else None

    def enqueue(self, job: Job, function: JobFunction) -> None:
        """Put the job at the end of its user's queue."""
        with self._wakeup:
            if job.update.ended:
                return
            self._pending_by_user.setdefault(job.user, deque()).append((job, function))
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="ttt-job-queue", daemon=True)
                self._worker.start()
            self._wakeup.notify_all()
        self._publish_positions()

    def service_order(self) -> list[Job]:
        """The pending jobs in the order in which they will be served: one of each user, then the next of each."""
        with self._wakeup:
            queues = [[job for job, _ in pending] for pending in self._pending_by_user.values()]
        rounds = max(map(len, queues), default=0)
        return [queue[i] for i in range(rounds) for queue in queues if i < len(queue)]

    def _publish_positions(self) -> None:
        running = 1 if self._running is not None else 0
        for index, job in enumerate(self.service_order()):
            job.publish(Update("waiting", ahead=index + running))

    def _remove(self, job: Job) -> None:
        with self._wakeup:
            pending = self._pending_by_user.get(job.user)
            if pending is not None:
                others = deque(item for item in pending if item[0] is not job)
                if others:
                    self._pending_by_user[job.user] = others
                else:
                    del self._pending_by_user[job.user]
        self._publish_positions()

    def _next(self) -> tuple[Job, JobFunction]:
        with self._wakeup:
            while not self._pending_by_user:
                self._wakeup.wait()
            user, pending = self._pending_by_user.popitem(last=False)
            item = pending.popleft()
            if pending:
                self._pending_by_user[user] = pending  # to the end: the other users come first
            self._running = item[0]
            return item

    def _work(self) -> None:
        while True:
            job, function = self._next()
            self._publish_positions()
            run_job(job, function)
            with self._wakeup:
                self._running = None


def run_job(job: Job, function: JobFunction) -> None:
    """Run the function and make sure that the job ends, whatever happens."""
    if job.cancel.is_set():
        return
    job.publish(Update("working", stage="prefill"))
    try:
        function(job)
        job.publish(Update("failed", message="The model stopped without a result."))
    except Cancelled:
        job.stop()
    except TTTError as error:
        job.publish(Update("failed", message=str(error)))
    except Exception as error:
        log.exception("a request failed")
        job.publish(Update("failed", message=f"Something went wrong inside the app ({type(error).__name__})."))
