"""Sends the curves of a run to Trackio or Weights & Biases, if TTT_TRACK names one of them. Independent of the swarm.

Neither package is required. It is imported with the first values, on the thread that sends them, so that a slow or
broken tracker affects only its own curves.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

TRACKER, PROJECT = "TTT_TRACK", "TTT_TRACK_PROJECT"
"""Environment variables for the tracker and for its project."""
TRACKERS = ("trackio", "wandb")
DEFAULT_PROJECT = "training-transformers-together"
MAX_QUEUED = 256
"""Steps queued for a slow tracker before further ones are dropped."""
FINISH_SECONDS = 10.0
"""Time that a tracker has at the end of the process."""

Values = dict[str, float | int]


class Tracker:
    """Sends the values of each step once, in order, in the background. A failure ends the tracking, not the run."""

    def __init__(self, kind: str, run: str, project: str) -> None:
        self.kind, self.run, self.project = kind, run, project
        self._last = -1
        self._waiting: queue.Queue[tuple[int, Values] | None] = queue.Queue(MAX_QUEUED)
        self._thread: threading.Thread | None = None
        self._full = False

    def offer(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Queue the values of a step and return at once. Leaves out None, and steps not later than the last one."""
        if step <= self._last:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
            self._thread.start()
        self._last = step
        if not self._put((step, {name: value for name, value in values.items() if value is not None})):
            if not self._full and self._thread.is_alive():
                logger.warning("%s is too slow: its curves will lack steps from %d on", self.kind, step)
            self._full = True

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Send what is still queued; wait at most so many seconds."""
        if self._thread is not None and self._thread.is_alive() and self._put(None):
            self._thread.join(seconds)

    def _put(self, item: tuple[int, Values] | None) -> bool:
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            return False
        return True

    def _work(self) -> None:
        try:
            self._track()
        except ImportError as error:
            logger.warning(
                "%s=%s, but it cannot be imported (%s): pip install %s; the run continues without it",
                TRACKER, self.kind, error, self.kind,
            )  # fmt: skip
        except BaseException as error:  # these packages also raise SystemExit
            why = str(error).strip().splitlines()[:1] or [type(error).__name__]
            logger.warning("%s failed, the run continues without it: %s", self.kind, why[0])

    def _track(self) -> None:
        package: Any = importlib.import_module(self.kind)
        tracked = package.init(project=self.project, name=self.run, resume="allow")
        atexit.register(self.finish)  # registered after the package's own handler, so that it runs before it
        while (item := self._waiting.get()) is not None:
            step, values = item
            tracked.log(values, step=step)
        tracked.finish()


def open_tracker(run: Callable[[], str], environment: Mapping[str, str] | None = None) -> Tracker | None:
    """Return the tracker that the environment names; None if it names none. run: returns the run's name."""
    env = os.environ if environment is None else environment
    kind = env.get(TRACKER, "").strip().lower()
    if kind in TRACKERS:
        return Tracker(kind, run(), env.get(PROJECT) or DEFAULT_PROJECT)
    if kind:
        logger.warning("%s is %r, which must be %s: nothing is tracked", TRACKER, kind, " or ".join(TRACKERS))
    return None
