"""The folder of shards that encoding writes, and the position from which it resumes.

A shard appears atomically and carries in its own metadata the position in the images after its last pair, so that there
is never a shard without its position or a position without its shard. Independent of images and models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.atomic import atomic_file, is_partial, remove_partial
from ttt.data.filters import CAPTION, CODE, HEIGHT, NSFW, WIDTH
from ttt.data.images import PreparedImage
from ttt.data.manifest import MANIFEST, DatasetManifest
from ttt.errors import DataError, InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROW_GROUP = 4096
"""Rows per row group: a reader fetches at most so many before it can hand out the first one."""
METADATA = b"ttt"
"""Key of the position in the metadata of a shard."""


@dataclass
class EncodedSoFar:
    """How far the images have been encoded."""

    shards: int = 0
    position: Any = None
    """Position in the image source after the last pair of the last shard."""
    counts: dict[str, int] = field(default_factory=dict)
    image_bytes: int = 0


class ShardFolder:
    """A folder for the shards that `manifest` describes. Raises InvalidInput or DataError if it holds anything else."""

    def __init__(self, root: Path, manifest: DatasetManifest) -> None:
        self.root, self.manifest = root, manifest
        try:
            root.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InvalidInput(f"{root} is a file; give a folder, which is created if it does not exist") from None
        path = root / MANIFEST
        self.finished: DatasetManifest | None = None
        """The description of a folder that was finished before."""
        if path.is_file():
            found = DatasetManifest.from_json(path.read_bytes(), str(path))
            self._check_same(found)
            self.finished = found if found.complete else None
        elif not all(map(is_partial, root.iterdir())):
            raise InvalidInput(f"{root} is not empty and was not created by `ttt encode`; choose a new folder")
        remove_partial(root)  # left by a run that was killed
        self.done = self._read_done()
        if not path.is_file():
            self._describe(complete=False)

    def write(self, images: Sequence[PreparedImage], codes: NDArray[np.int16], done: EncodedSoFar) -> None:
        """Write the next shard, with the position after it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                CAPTION: pa.array([image.caption for image in images], pa.string()),
                NSFW: pa.array([image.nsfw for image in images], pa.string()),
                WIDTH: pa.array([image.width for image in images], pa.int64()),
                HEIGHT: pa.array([image.height for image in images], pa.int64()),
                CODE: pa.array([row.astype("<i2").tobytes() for row in codes], pa.binary()),
            }
        ).replace_schema_metadata({METADATA: json.dumps(vars(done), sort_keys=True)})
        with atomic_file(self._path(done.shards - 1), durable=True) as partial:
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

    def finish(self, done: EncodedSoFar) -> DatasetManifest:
        """Mark the folder as complete; `done` also counts what was skipped after the last shard."""
        self.done = done
        return self._describe(complete=True)

    def _path(self, number: int) -> Path:
        return self.root / f"{number:05d}.parquet"

    def _check_same(self, found: DatasetManifest) -> None:
        for name in ("model", "codebook", "resolution", "image_seq_len", "num_image_tokens"):
            self._check_equal(name, getattr(found, name), getattr(self.manifest, name))
        for name, ours in self.manifest.settings.items():
            self._check_equal(name, found.settings.get(name), ours)

    def _check_equal(self, name: str, theirs: Any, ours: Any) -> None:
        if theirs != ours:
            raise InvalidInput(
                f"{self.root} was started with {name} {str(theirs)[:60]!r}, and this run has {str(ours)[:60]!r}; a "
                "data set has one model, one set of images and one of settings: use the same, or choose a new folder"
            )

    def _read_done(self) -> EncodedSoFar:
        import pyarrow as pa
        import pyarrow.parquet as pq

        shards = sorted(self.root.glob("*.parquet"))
        if [p.name for p in shards] != [self._path(i).name for i in range(len(shards))]:
            raise DataError(f"{self.root} lacks one of the shards 0 to {len(shards) - 1}; encode into a new folder")
        if not shards:
            return EncodedSoFar()
        try:
            values = json.loads((pq.read_schema(shards[-1]).metadata or {})[METADATA])
            done = EncodedSoFar(**values)
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
        with atomic_file(self.root / MANIFEST, durable=True) as partial:
            partial.write_text(self.manifest.to_json(), encoding="utf-8")
        return self.manifest
