"""Who works when: one request at a time, users in turn, each stoppable alone. Knows no model, files or gradio."""

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

MAX_WAITING = 64
MAX_WAITING_PER_USER = 4
KEEP_FINISHED = 200
GRACE_SECONDS = 4.0
"""How long a request outlives its page: long enough for a reload to find it again."""

Phase = Literal["loading", "waiting", "working", "finished", "failed", "stopped"]
ENDED: frozenset[Phase] = frozenset({"finished", "failed", "stopped"})
_ORDER: dict[Phase, int] = {"loading": 0, "waiting": 1, "working": 2, "finished": 3, "failed": 3, "stopped": 3}


class Busy(TTTError):
    """Too many requests are waiting already."""


@dataclass(frozen=True)
class Update:
    """The latest that is known of a request; a newer one replaces it whole."""

    phase: Phase
    message: str = ""
    """What is being loaded, or why it failed."""
    ahead: int = 0
    """Requests that will be served before this one."""
    stage: str = ""
    fraction: float = 0.0
    sheet: bytes | None = None
    """The newest contact sheet as JPEG."""
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
        self._news = threading.Condition()
        self._update = Update("loading")
        self._version = 0
        self._watchers = 0

    @property
    def update(self) -> Update:
        return self._update

    def publish(self, update: Update) -> None:
        """Replace the latest update; a phase that is over never returns, and after the end nothing changes."""
        with self._news:
            if self._update.ended or _ORDER[update.phase] < _ORDER[self._update.phase]:
                return
            if update.phase == self._update.phase:
                update = replace(update, since=self._update.since)
            self._update = update
            self._version += 1
            self._news.notify_all()

    def stop(self) -> None:
        """End this request alone, whether it waits or works."""
        self.cancel.set()
        self.publish(Update("stopped", fraction=self._update.fraction, sheet=self._update.sheet))
        if self._on_stop:
            self._on_stop(self)

    def watch(self, heartbeat: float = 0.5) -> Iterator[Update]:
        """Yield every update, and at each heartbeat the same one again; closing the last watcher stops the work.

        The heartbeat is what lets a server notice, between two yields, that nobody listens any more.
        """
        with self._news:
            self._watchers += 1
        try:
            seen = -1
            while True:
                with self._news:
                    if self._version == seen:
                        self._news.wait(heartbeat)
                    seen, update = self._version, self._update
                yield update
                if update.ended:
                    return
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._news:
            self._watchers -= 1
            deserted = self._watchers == 0 and not self._update.ended
        if not deserted:
            return
        if self._grace == 0:
            self.stop()
            return
        timer = threading.Timer(self._grace, self._stop_if_deserted)
        timer.daemon = True
        timer.start()

    def _stop_if_deserted(self) -> None:
        with self._news:
            deserted = self._watchers == 0 and not self._update.ended
        if deserted:
            self.stop()


Work = Callable[[Job], None]
"""Does the job's work: publishes updates, the last of which ends it; minds `job.cancel`."""


class Desk:
    """A queue for each user and one worker: the users take turns, whoever asks most waits longest."""

    def __init__(self, *, max_waiting: int = MAX_WAITING, max_per_user: int = MAX_WAITING_PER_USER) -> None:
        self._max_waiting = max_waiting
        self._max_per_user = max_per_user
        self._lines: OrderedDict[str, deque[tuple[Job, Work]]] = OrderedDict()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._running: Job | None = None
        self._bell = threading.Condition()
        self._worker: threading.Thread | None = None

    def open(self, user: str, *, grace: float = 0.0) -> Job:
        """A new request of this user, not in the queue yet; Busy when there are too many."""
        with self._bell:
            alive = [job for job in self._jobs.values() if not job.update.ended]
            if len(alive) >= self._max_waiting:
                raise Busy(f"{len(alive)} requests are waiting, which is the most this server takes; try again later")
            if sum(job.user == user for job in alive) >= self._max_per_user:
                raise Busy(f"you have {self._max_per_user} requests waiting or running, which is the most at a time")
            job = Job(user, grace=grace, on_stop=self._withdraw)
            self._jobs[job.id] = job
            while len(self._jobs) > KEEP_FINISHED:
                oldest = next((key for key, old in self._jobs.items() if old.update.ended), None)
                if oldest is None:
                    break
                del self._jobs[oldest]
        return job

    def find(self, job_id: object) -> Job | None:
        """The request with this (unguessable) id, if it is still known."""
        return self._jobs.get(job_id) if isinstance(job_id, str) else None

    def enqueue(self, job: Job, work: Work) -> None:
        """Put the job at the end of its user's line."""
        with self._bell:
            if job.update.ended:
                return
            self._lines.setdefault(job.user, deque()).append((job, work))
            if self._worker is None:
                self._worker = threading.Thread(target=self._serve, name="ttt-desk", daemon=True)
                self._worker.start()
            self._bell.notify_all()
        self._tell_places()

    def in_turn(self) -> list[Job]:
        """The waiting jobs, in the order in which they will be served: one of each user, then again."""
        with self._bell:
            lines = [[job for job, _ in line] for line in self._lines.values()]
        rounds = max(map(len, lines), default=0)
        return [line[i] for i in range(rounds) for line in lines if i < len(line)]

    def _tell_places(self) -> None:
        ahead = 1 if self._running is not None else 0
        for index, job in enumerate(self.in_turn()):
            job.publish(Update("waiting", ahead=index + ahead))

    def _withdraw(self, job: Job) -> None:
        with self._bell:
            line = self._lines.get(job.user)
            if line is not None:
                kept = deque(item for item in line if item[0] is not job)
                if kept:
                    self._lines[job.user] = kept
                else:
                    del self._lines[job.user]
        self._tell_places()

    def _next(self) -> tuple[Job, Work]:
        with self._bell:
            while not self._lines:
                self._bell.wait()
            user, line = self._lines.popitem(last=False)
            item = line.popleft()
            if line:
                self._lines[user] = line  # back to the end: the others come first
            self._running = item[0]
            return item

    def _serve(self) -> None:
        while True:
            job, work = self._next()
            self._tell_places()
            run_work(job, work)
            with self._bell:
                self._running = None


def run_work(job: Job, work: Work) -> None:
    """Run the work and see to it that the job ends, whatever happens."""
    if job.cancel.is_set():
        return
    job.publish(Update("working", stage="reading"))
    try:
        work(job)
        job.publish(Update("failed", message="The model stopped without a result."))
    except Cancelled:
        job.stop()
    except TTTError as error:
        job.publish(Update("failed", message=str(error)))
    except Exception as error:
        log.exception("a request failed")
        job.publish(Update("failed", message=f"Something went wrong inside the app ({type(error).__name__})."))
