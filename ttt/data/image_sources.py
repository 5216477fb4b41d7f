"""Finds captioned images by the name of a folder, a file or a Hub data set, and chooses how they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ttt.bundle import HUB_ID
from ttt.data.image_archives import ImageArchives
from ttt.data.image_folder import METADATA_FILES, ImageFolder, left_out_warning, visible_files
from ttt.data.image_tables import Columns, ParquetImages, has_images, hub_images
from ttt.data.images import EXTENSIONS, Pair
from ttt.errors import InvalidInput

ALLOWED = (
    "allowed: a folder of images, webdataset .tar files or Parquet files with an image column (each also as a folder "
    "or one file), or the id of a Hub data set"
)


class ImageSource(Protocol):
    """Captioned images in a fixed order that can be read from any position."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a position would mean another pair."""

    @property
    def total(self) -> int | None:
        """Number of pairs, if it is known beforehand."""

    def pairs(self, position: Any) -> Iterator[tuple[Pair, Any]]:
        """Pairs from `position` (None: the first) on, each with the position after it, in JSON types."""

    def warnings(self) -> list[str]:
        """Sentences for the user about files that were left out, or that seem to be arranged wrongly."""


def find_images(
    source: str,
    *,
    split: str = "train",
    revision: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> ImageSource:
    """A folder, archives, Parquet files or a Hub data set (of which `split` and `revision` are read).

    Raises InvalidInput or DataError.
    """
    path = Path(source).expanduser()
    columns = Columns(image=image_column, caption=caption_column)
    if source and path.is_dir():
        return _in_folder(path, columns)
    if path.is_file():
        ending = path.suffix.lower()
        if ending == ".tar":
            return ImageArchives((path,))
        if ending == ".parquet":
            return _parquet([path], columns, Counter())
        raise InvalidInput(f"{path} is neither a .tar nor a .parquet file; {ALLOWED}")
    if HUB_ID.fullmatch(source):
        return hub_images(source, columns, split, revision)
    raise InvalidInput(f"{source[:200]!r} was not found; {ALLOWED}")


def _in_folder(folder: Path, columns: Columns) -> ImageSource:
    """Archives if there are any, else Parquet files that hold images, else images.

    img2dataset writes a Parquet file and a JSON file beside every archive, and beside every folder of images.
    """
    files = visible_files(folder)
    archives = [path for path in files if path.suffix.lower() == ".tar"]
    tables = [path for path in files if path.suffix.lower() == ".parquet" and path.name not in METADATA_FILES]
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if archives:
        return ImageArchives(tuple(archives), _endings(set(files) - {*archives, *tables}))
    if tables and (not images or columns.image is not None or any(map(has_images, tables))):
        return _parquet(tables, columns, _endings(set(files) - {*tables}))
    if not images:
        found = "".join(f" ({warning})" for warning in left_out_warning(_endings(set(files))))
        raise InvalidInput(f"{folder} has no images, archives or Parquet files{found}; {ALLOWED}")
    return ImageFolder.read(folder)


def _parquet(paths: Sequence[Path], columns: Columns, left_out: Counter[str]) -> ParquetImages:
    images = ParquetImages(tuple(paths), columns, left_out)
    images.check()
    return images


def _endings(paths: set[Path]) -> Counter[str]:
    return Counter(path.suffix.lower() or path.name for path in paths if path.suffix.lower() != ".json")
