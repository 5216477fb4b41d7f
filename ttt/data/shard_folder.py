"""The folder that encoding writes: whole shards, and how far they got. Knows no images and no model.

A shard appears in one step (written aside, then renamed) and carries in its own metadata the place in the images after
its last pair, so that there is never a shard without its place or a place without its shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.data.images import PreparedImage
from ttt.data.manifest import MANIFEST, DatasetManifest
from ttt.data.rows import CAPTION, CODE, HEIGHT, NSFW, WIDTH
from ttt.errors import DataError, InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROW_GROUP = 4096
"""Rows of a row group: what a reader fetches before it can hand out the first, at most."""
METADATA = b"ttt"


@dataclass
class Done:
    """How far the images are encoded."""

    shards: int = 0
    position: Any = None
    """Of the image source, after the last pair of the last shard."""
    counts: dict[str, int] = field(default_factory=dict)
    image_bytes: int = 0


class ShardFolder:
    """`manifest` says what the shards are to hold; InvalidInput or DataError where the folder holds something else."""

    def __init__(self, root: Path, manifest: DatasetManifest) -> None:
        self.root, self.manifest = root, manifest
        try:
            root.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InvalidInput(f"{root} is a file; name a folder for the shards, it is made if missing") from None
        path = root / MANIFEST
        self.finished: DatasetManifest | None = None
        """What the folder says where it was finished before."""
        if path.is_file():
            there = DatasetManifest.from_json(path.read_bytes(), str(path))
            self._check_same(there)
            self.finished = there if there.complete else None
        elif any(not _is_left_over(one) for one in root.iterdir()):
            raise InvalidInput(f"{root} is not empty and was not made by `ttt encode`; name a new folder")
        for left in filter(_is_left_over, root.iterdir()):
            left.unlink(missing_ok=True)  # of a run that was killed
        self.done = self._read_done()
        if not path.is_file():
            self._describe(complete=False)

    def write(self, pictures: Sequence[PreparedImage], codes: NDArray[np.int16], done: Done) -> None:
        """One more shard, and the place after it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                CAPTION: pa.array([p.caption for p in pictures], pa.string()),
                NSFW: pa.array([p.nsfw for p in pictures], pa.string()),
                WIDTH: pa.array([p.width for p in pictures], pa.int64()),
                HEIGHT: pa.array([p.height for p in pictures], pa.int64()),
                CODE: pa.array([row.astype("<i2").tobytes() for row in codes], pa.binary()),
            }
        ).replace_schema_metadata({METADATA: json.dumps(vars(done), sort_keys=True)})
        with _atomically(self._path(done.shards - 1)) as partial:
            pq.write_table(
                table,
                partial,
                compression="brotli",
                row_group_size=ROW_GROUP,
                use_dictionary=[NSFW],
                write_statistics=False,
            )
        self.done = done
        self._describe(complete=False)

    def finish(self, done: Done) -> DatasetManifest:
        """Nothing more comes; the counts of what was skipped after the last shard go into the description."""
        self.done = done
        return self._describe(complete=True)

    def _path(self, number: int) -> Path:
        return self.root / f"{number:05d}.parquet"

    def _check_same(self, there: DatasetManifest) -> None:
        for name in ("model", "codebook", "resolution", "image_seq_len", "num_image_tokens"):
            self._check_equal(name, getattr(there, name), getattr(self.manifest, name))
        for name, ours in self.manifest.settings.items():
            self._check_equal(name, there.settings.get(name), ours)

    def _check_equal(self, name: str, theirs: Any, ours: Any) -> None:
        if theirs != ours:
            raise InvalidInput(
                f"{self.root} was begun with {name} {str(theirs)[:60]!r}, and this run has {str(ours)[:60]!r}: one "
                "data set has one model, one set of images and one set of settings; use the same, or name a new folder"
            )

    def _read_done(self) -> Done:
        import pyarrow as pa
        import pyarrow.parquet as pq

        shards = sorted(self.root.glob("*.parquet"))
        if [p.name for p in shards] != [self._path(i).name for i in range(len(shards))]:
            raise DataError(
                f"{self.root} does not hold shards 0 to {len(shards) - 1} without a gap; encode into a new one"
            )
        if not shards:
            return Done()
        try:
            values = json.loads((pq.read_schema(shards[-1]).metadata or {})[METADATA])
            done = Done(**values)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            raise DataError(f"{shards[-1]} is broken; delete it and run the same command again") from None
        if done.shards != len(shards):
            raise DataError(f"{shards[-1]} says that it is shard {done.shards - 1}; encode into a new folder")
        return done

    def _describe(self, complete: bool) -> DatasetManifest:
        names = [self._path(i).name for i in range(self.done.shards)]
        self.manifest = replace(
            self.manifest,
            shards=tuple(names),
            counts=dict(sorted(self.done.counts.items())),
            image_bytes=self.done.image_bytes,
            shard_bytes=sum((self.root / name).stat().st_size for name in names),
            complete=complete,
        )
        with _atomically(self.root / MANIFEST) as partial:
            partial.write_text(self.manifest.to_json(), encoding="utf-8")
        return self.manifest


def _is_left_over(path: Path) -> bool:
    """Whether `_atomically` was killed while it wrote this."""
    return path.name.startswith(".") and path.name.endswith(".partial")


@contextmanager
def _atomically(path: Path) -> Iterator[Path]:
    """A file that is there whole or not at all, a power cut included."""
    partial = path.with_name(f".{path.name}-{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
