"""A run's curves for Trackio or Weights & Biases, where TTT_TRACK asks for one of them. Knows neither swarm nor files.

Neither package is required: it is imported when the first values come, in the thread that hands them over, so that
whatever is slow or broken about it costs its own curves alone.
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
"""Environment variables: which tracker, and under which project."""
TRACKERS = ("trackio", "wandb")
DEFAULT_PROJECT = "training-transformers-together"
MOST_WAITING = 256
"""Steps that wait for a slow tracker, before later ones are left out."""
FINISH_SECONDS = 10.0
"""That a tracker may take at the end of the process."""

Values = dict[str, float | int]


class Tracker:
    """Hands each step's values over once, in order and in the background; a failure ends the tracking alone."""

    def __init__(self, kind: str, run: str, project: str) -> None:
        self.kind, self.run, self.project = kind, run, project
        self._last = -1
        self._waiting: queue.Queue[tuple[int, Values] | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._full = False

    def offer(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Returns at once; what is None is left out, and so is a step that is not later than the one before."""
        if step <= self._last:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
            self._thread.start()
        self._last = step
        if not self._put((step, {name: value for name, value in values.items() if value is not None})):
            if not self._full and self._thread.is_alive():
                logger.warning("%s is too slow: steps from %d on are left out of its curves", self.kind, step)
            self._full = True

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Let the tracker have what still waits, as far as that goes in so many seconds."""
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
                "%s=%s, but it cannot be imported (%s): pip install %s; the run goes on without it",
                TRACKER, self.kind, error, self.kind,
            )  # fmt: skip
        except BaseException as error:  # its packages also leave by SystemExit
            why = str(error).strip().splitlines()[:1] or [type(error).__name__]
            logger.warning("%s failed, the run goes on without it: %s", self.kind, why[0])

    def _track(self) -> None:
        package: Any = importlib.import_module(self.kind)
        tracked = package.init(project=self.project, name=self.run, resume="allow")
        atexit.register(self.finish)  # after the package's own, so that it is called before
        while (item := self._waiting.get()) is not None:
            step, values = item
            tracked.log(values, step=step)
        tracked.finish()


def open_tracker(run: Callable[[], str], environment: Mapping[str, str] | None = None) -> Tracker | None:
    """What the environment asks for; None where that is nothing, or unknown. run: gives the run's name."""
    env = os.environ if environment is None else environment
    kind = env.get(TRACKER, "").strip().lower()
    if kind in TRACKERS:
        return Tracker(kind, run(), env.get(PROJECT) or DEFAULT_PROJECT)
    if kind:
        logger.warning("%s is %r, which is neither of %s: nothing is tracked", TRACKER, kind, " and ".join(TRACKERS))
    return None
