"""Finds the runs on this machine and reads their histories, once for all visitors. Knows no gradio and no SQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ttt.errors import InvalidInput, TTTError
from ttt.swarm.history import summary
from ttt.swarm.history.reader import HistoryReader
from ttt.ui.dashboard.run_types import NOWHERE, RunData, RunName

HISTORY_FILE, EXPORT_FILE = "history.sqlite", "history.json"
FOLDERS = ("", "*/", "*/*/")
"""A folder of a run, of runs, or of runs with a coordinator's folder each (what `ttt coordinator` makes)."""
MAX_RUNS = 100
LOOK_SECONDS = 10.0
"""Between two searches for new runs, as long as there is one."""
CHECK_SECONDS = 1.0
"""Between two looks at whether a history changed, whoever asks."""
MAX_PLACES = 1000
SILENT = "/silent"
CURVES: tuple[tuple[summary.Series, summary.Axis], ...] = (
    ("loss", "samples"), ("loss", "time"), ("peers", "time"), ("samples_per_second", "time"), ("step", "time"),
    ("learning_rate", "samples"),
)  # fmt: skip


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

    def open(self) -> HistoryReader:
        """The reader of the file that is there now."""
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
    """The runs below some folders; new ones are found while the server runs."""

    def __init__(self, *roots: Path, example: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """example: a run to show where there is no other; it comes last. clock: Unix time."""
        self._roots, self._example, self._clock = (*roots, example) if example else roots, example, clock
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._names: list[RunName] = []
        self._looked = self._named = float("-inf")

    def names(self) -> list[RunName]:
        """Those that go on now first, then the newest; a history that cannot be read says so when it is chosen.

        The example is last."""
        if not self._names or time.monotonic() - self._named >= LOOK_SECONDS:
            found = sorted(self._label(run) for run in self._known())
            self._names, self._named = [RunName(key, label) for _, key, label in found], time.monotonic()
        return self._names

    def read(self, key: str) -> RunData:
        """InvalidInput names the runs there are; SwarmError says what is wrong with a history."""
        known = {run.key: run for run in self._known()}
        if not known:
            raise InvalidInput(NOWHERE)
        if key not in known:
            shown = repr(key) if len(repr(key)) <= 60 else "that"
            raise InvalidInput(f"there is no run {shown}; this server has: {', '.join(known)}")
        return self._data(known[key])

    def close(self) -> None:
        for run in self._known():
            with run.lock:
                run.close()

    def _known(self) -> list[_Run]:
        with self._lock:
            if (now := time.monotonic()) - self._looked >= LOOK_SECONDS or not self._runs:
                self._looked = now
                paths = _find(self._roots)
                old, self._runs = self._runs, {}
                for key, path in _keys(paths).items():
                    self._runs[key] = old[key] if key in old and old[key].path == path else _Run(key, path)
            return list(self._runs.values())

    def _label(self, run: _Run) -> tuple[tuple[int, float], str, str]:
        """(place in the list, key, words)."""
        try:
            with run.lock:
                reader = run.open()
                title, progress = reader.about().title, summary.progress(reader, at=self._clock())
        except TTTError:
            return (2, 0.0), run.key, f"{run.key} (cannot be read)"
        words = run.key if not title else f"{run.key}: {title}"
        if run.path.parent == self._example:
            return (3, 0.0), run.key, words
        if progress is None or not progress.active:
            return (1, -progress.updated if progress else 0.0), run.key, words
        return (0, -progress.updated), run.key, f"{words}, running"

    def _data(self, run: _Run) -> RunData:
        """Read anew where the file or the silence of its writer says so; everybody else waits for that and shares."""
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
    """Everything that is shown of a run, as it is at Unix time `at`."""
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
    from ttt.swarm.history.export import Example  # locks files, which not every system can

    return Example(path)


def _find(roots: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(root, history) in the order of the roots; an export counts where the history itself is not."""
    found: dict[Path, tuple[Path, Path]] = {}
    for root in roots:
        for folder in FOLDERS:
            for name in (HISTORY_FILE, EXPORT_FILE):
                for path in sorted(root.glob(f"{folder}{name}")):
                    found.setdefault(path.parent, (root, path))
    return list(found.values())[:MAX_RUNS]


def _keys(found: Sequence[tuple[Path, Path]]) -> dict[str, Path]:
    """A short name for each: that of the folder below the root; longer or numbered where two would be the same."""
    keys: dict[str, Path] = {}
    for root, path in found:
        inside = path.parent.relative_to(root)
        short = inside.parts[0] if inside.parts else root.resolve().name
        wanted = (short, inside.as_posix(), *(f"{short}-{i}" for i in range(2, MAX_RUNS + 2)))
        keys[next(key for key in wanted if key not in keys)] = path
    return keys


def _stamp(path: Path) -> tuple[str, int]:
    """(what changes whenever something is written, the file's inode): SQLite writes to the log beside it first."""
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
