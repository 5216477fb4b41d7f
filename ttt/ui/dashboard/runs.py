"""Finds the runs on this machine and reads their histories, once for all visitors. Independent of Gradio and of SQL."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ttt.errors import InvalidInput, TTTError
from ttt.swarm.history import summary
from ttt.swarm.history.reader import HistoryReader
from ttt.swarm.history.schema import HISTORY_FILE
from ttt.swarm.history.summary import Axis, Curve, LeaderboardEntry, Progress, Series
from ttt.swarm.history.types import CheckpointEntry, Event, SampleImage

EXPORT_FILE = "history.json"
FOLDERS = ("", "*/", "*/*/")
"""A run's folder, a folder of runs, or one of runs with a coordinator's folder in each, as `ttt coordinator` makes."""
MAX_RUNS = 100
SEARCH_SECONDS = 10.0
"""Between two searches for new runs, once a run is found."""
CHECK_SECONDS = 1.0
"""Between two checks for changes of a history, for all visitors together."""
MAX_PLACES = 1000
SILENT = "/silent"
"""Appended to the version of a run whose coordinator has stopped reporting."""
CURVES: tuple[tuple[summary.Series, summary.Axis], ...] = (
    ("loss", "samples"), ("loss", "time"), ("peers", "time"), ("samples_per_second", "time"), ("step", "time"),
    ("learning_rate", "samples"),
)  # fmt: skip

NO_RUNS = (
    "this server has no run yet. Start one: `make swarm` for a demo on this machine, or "
    "`python -m ttt run new run.toml` and `python -m ttt coordinator --run run.toml` for your own"
)


@dataclass(frozen=True)
class RunName:
    """A run that can be chosen."""

    key: str
    """Its name in the form, in links and in the API."""
    label: str
    """For the list, which shows it as text: not escaped."""


@dataclass(frozen=True)
class RunData:
    """Everything the dashboard shows of a run, with curves downsampled to what a screen can show."""

    key: str
    title: str
    version: str
    """Changes with the data, so that the same data is read and rendered only once."""
    progress: Progress | None
    """None before the coordinator's first report."""
    curves: Mapping[tuple[Series, Axis], Curve]
    places: Sequence[LeaderboardEntry]
    """By credited training time."""
    checkpoints: Sequence[CheckpointEntry]
    """Newest first."""
    sample_images: Mapping[str, Sequence[SampleImage]]
    """Prompt -> oldest first."""
    events: Sequence[Event]
    """Newest first."""
    status: Mapping[str, Any] = field(default_factory=dict)
    """The answer of the endpoint `/swarm_status`."""
    folder: Path = Path()
    """Base of the sample images' paths."""


class RunSource(Protocol):
    """A source of runs, such as `RunFolders`."""

    def names(self) -> list[RunName]:
        """Running ones first, then the newest."""
        ...

    def read(self, key: str) -> RunData:
        """Raises InvalidInput, which names the known runs, or SwarmError, which says what is wrong with a history.

        May be called concurrently and often: returns the same object until the data changes.
        """
        ...


@dataclass
class _Run:
    key: str
    path: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: HistoryReader | None = None
    inode: int = 0
    stamp: str = ""
    checked: float = float("-inf")
    data: RunData | None = None
    dropped: bool = False
    """True once its file has disappeared; another thread may still hold this object."""

    def open(self) -> HistoryReader:
        """A reader of the current file; it may have been replaced. Call with `lock` held."""
        if self.dropped:
            raise InvalidInput(f"the run {self.key} is no longer on this server")
        self.stamp, inode = _stamp(self.path)
        if self.reader is None or inode != self.inode:
            self.close()
            self.reader, self.inode = _reader(self.path), inode
        return self.reader

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()
        self.reader, self.data = None, None


class RunFolders:
    """The runs below some folders. Finds new ones while the server is running."""

    def __init__(self, *roots: Path, example: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """example: a run that is listed last; clock: Unix time."""
        self._roots, self._example, self._clock = (*roots, example) if example else roots, example, clock
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._names: list[RunName] = []
        self._searched = self._named = float("-inf")

    def names(self) -> list[RunName]:
        """Running ones first, then the newest, then the example. A damaged history fails only when it is read."""
        if not self._names or time.monotonic() - self._named >= SEARCH_SECONDS:
            labels = sorted(self._label(run) for run in self._known())
            count = Counter(label for _, _, label in labels)
            self._names = [RunName(key, label if count[label] == 1 else f"{label}, {key}") for _, key, label in labels]
            self._named = time.monotonic()
        return self._names

    def read(self, key: str) -> RunData:
        """Raises InvalidInput, which names the known runs, or SwarmError, which says what is wrong with a history."""
        known = {run.key: run for run in self._known()}
        if not known:
            raise InvalidInput(NO_RUNS)
        if key not in known:
            shown = repr(key) if len(repr(key)) <= 60 else "of that name"
            raise InvalidInput(f"there is no run {shown}; this server has: {', '.join(known)}")
        return self._data(known[key])

    def close(self) -> None:
        for run in self._known():
            with run.lock:
                run.close()

    def _known(self) -> list[_Run]:
        dropped: list[_Run] = []
        with self._lock:
            if (now := time.monotonic()) - self._searched >= SEARCH_SECONDS or not self._runs:
                self._searched = now
                old, self._runs = self._runs, {}
                for key, path in _keys(_find(self._roots)).items():
                    self._runs[key] = old[key] if key in old and old[key].path == path else _Run(key, path)
                dropped = [run for key, run in old.items() if self._runs.get(key) is not run]
            runs = list(self._runs.values())
        for run in dropped:  # outside our lock: a reader may be at work for seconds
            with run.lock:
                run.dropped = True
                run.close()
        return runs

    def _label(self, run: _Run) -> tuple[tuple[int, float], str, str]:
        """(sort key, run's key, label)."""
        try:
            with run.lock:
                reader = run.open()
                title, progress = reader.about().title, summary.progress(reader, at=self._clock())
        except TTTError:
            return (2, 0.0), run.key, f"{run.key} (cannot be read)"
        label = title or run.key
        if run.path.parent == self._example:
            return (3, 0.0), run.key, label
        if progress is None or not progress.active:
            return (1, -progress.updated if progress else 0.0), run.key, label
        return (0, -progress.updated), run.key, f"{label} (running)"

    def _data(self, run: _Run) -> RunData:
        """Read again if the file has changed or its writer has fallen silent. Concurrent callers share one read."""
        with run.lock:
            now, at = time.monotonic(), self._clock()
            if run.data is not None and now - run.checked < CHECK_SECONDS:
                return run.data
            reader, run.checked = run.open(), now
            old = run.data
            if old is None or old.version.split(SILENT)[0] != run.stamp or (_active(old) and _silent(old, at)):
                run.data = old = read_run(run.key, reader, run.path.parent, run.stamp, at)
            return old


def read_run(key: str, reader: HistoryReader, folder: Path, stamp: str, at: float) -> RunData:
    """Everything the dashboard shows of a run, as of Unix time `at`."""
    progress = summary.progress(reader, at=at)
    status = summary.swarm_status(reader, at=at)
    return RunData(
        key=key,
        title=str(status.get("title") or ""),
        version=stamp if progress is None or progress.active else stamp + SILENT,
        progress=progress,
        curves={(series, over): summary.curve(reader, series, over=over) for series, over in CURVES},
        places=summary.leaderboard(reader, limit=MAX_PLACES, at=at),
        checkpoints=summary.checkpoints(reader),
        sample_images=summary.sample_images(reader),
        events=summary.events(reader),
        status=status,
        folder=folder,
    )


def _active(data: RunData) -> bool:
    return data.progress is not None and data.progress.active


def _silent(data: RunData, at: float) -> bool:
    return data.progress is not None and at - data.progress.updated >= summary.ACTIVE_SECONDS


def _reader(path: Path) -> HistoryReader:
    if path.name == HISTORY_FILE:
        return HistoryReader(path)
    from ttt.swarm.history.export import Example  # its file locks are not available on every system

    return Example(path)


def _find(roots: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(root, history) in the order of the roots; an export only if there is no history beside it."""
    histories: dict[Path, tuple[Path, Path]] = {}
    for root in roots:
        for folder in FOLDERS:
            for name in (HISTORY_FILE, EXPORT_FILE):
                for path in sorted(root.glob(f"{folder}{name}")):
                    histories.setdefault(path.parent, (root, path))
    return list(histories.values())[:MAX_RUNS]


def _keys(histories: Sequence[tuple[Path, Path]]) -> dict[str, Path]:
    """A short key for each: the name of its folder below the root, longer or numbered if two would be the same."""
    keys: dict[str, Path] = {}
    for root, path in histories:
        inside = path.parent.relative_to(root)
        short = inside.parts[0] if inside.parts else root.resolve().name
        candidates = (short, inside.as_posix(), *(f"{short}-{i}" for i in range(2, MAX_RUNS + 2)))
        keys[next(key for key in candidates if key not in keys)] = path
    return keys


def _stamp(path: Path) -> tuple[str, int]:
    """(text that changes whenever something is written, inode). SQLite writes to the log beside the file first."""
    parts, inode = [], 0
    for file in (path, path.with_name(f"{path.name}-wal")):
        try:
            about = file.stat()
        except OSError:
            continue
        inode = inode or about.st_ino
        if about.st_size:
            parts.append(f"{about.st_mtime_ns:x}.{about.st_size:x}")
    return "-".join(parts), inode
