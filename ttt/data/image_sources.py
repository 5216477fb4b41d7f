"""Captioned images from Parquet files or a Hub data set, streamed by `datasets`. Decodes nothing, unpickles nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.bundle import HUB_ID
from ttt.data.image_folder import CAPTION_NAMES, ImageArchives, ImageFolder, ImageSource, caption_of, digest, make_pair
from ttt.data.images import Pair
from ttt.errors import DataError, InvalidInput

if TYPE_CHECKING:
    from datasets import IterableDataset

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img")
ALLOWED = (
    "allowed: a folder of images, webdataset .tar files or Parquet files with an image column (each also as a folder "
    "or one file), or the id of a Hub data set"
)


@dataclass(frozen=True)
class ImageTable:
    """Rows of a data set with an image column (`datasets` streams them, undecoded) and a caption column."""

    rows: IterableDataset
    image_column: str
    caption_column: str | None
    fingerprint: str
    total: int | None = None

    def pairs(self, position: Any) -> Iterator[tuple[Pair, Any]]:
        import copy

        rows = copy.copy(self.rows)
        if position is not None:
            rows.load_state_dict(position)
        number = 0
        try:
            for row in rows:
                number += 1
                yield self._pair(row, number), rows.state_dict()
        except Exception as error:  # pyarrow's, fsspec's, aiohttp's, the Hub's; `datasets` has tried again before
            raise DataError(
                f"the images cannot be read any further ({type(error).__name__}: {str(error)[:200]}); what is done is "
                "kept: run the same command again to go on"
            ) from error

    def _pair(self, row: dict[str, Any], number: int) -> Pair:
        metadata = row["json"] if isinstance(row.get("json"), dict) else row
        caption = row.get(self.caption_column) if self.caption_column else caption_of(metadata)
        image = row.get(self.image_column)
        if isinstance(image, dict):
            image = image.get("bytes") or _pointed_to(image.get("path"))
        return make_pair(f"row {number}", image if isinstance(image, (bytes, Path)) else None, caption, metadata)


def _pointed_to(path: Any) -> bytes | None:
    """The bytes of an image that `datasets` only points to, in a Hub repository.

    Elsewhere, no: a stranger's table could name any file of this machine, or any address that it can reach.
    """
    from datasets.utils.file_utils import xopen

    from ttt.data.images import MAX_IMAGE_BYTES

    if not isinstance(path, str) or not path.rpartition("::")[2].startswith("hf://"):
        return None
    try:
        with xopen(path, "rb") as file:
            content: bytes = file.read(MAX_IMAGE_BYTES + 1)
            return content
    except (OSError, ValueError):
        return None


def find_images(
    source: str,
    *,
    split: str = "train",
    revision: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> ImageSource:
    """A folder, archives, Parquet files or a Hub data set (`split` and `revision` of it). InvalidInput, DataError."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        for ending, kind in ((".tar", ImageArchives), (".parquet", None)):
            files = tuple(sorted(p for p in path.rglob(f"*{ending}") if p.is_file() and not p.name.startswith(".")))
            if files:
                return kind(files) if kind else _parquet(files, image_column, caption_column)
        folder = ImageFolder.read(path)
        if not folder.names:
            raise InvalidInput(f"{path} has no images, archives or Parquet files; {ALLOWED}")
        return folder
    if path.is_file() and path.suffix == ".tar":
        return ImageArchives((path,))
    if path.is_file() and path.suffix == ".parquet":
        return _parquet((path,), image_column, caption_column)
    if HUB_ID.fullmatch(source):
        return _table(source, image_column, caption_column, split=split, revision=revision)
    raise InvalidInput(f"{source[:200]!r} is not there; {ALLOWED}")


def _parquet(files: Sequence[Path], image_column: str | None, caption_column: str | None) -> ImageTable:
    key = digest([f"{path.name}/{path.stat().st_size}" for path in files])
    return _table("parquet", image_column, caption_column, key, data_files=[str(f) for f in files], split="train")


def _table(name: str, image: str | None, caption: str | None, key: str | None = None, **options: Any) -> ImageTable:
    import datasets

    try:
        builder_options = {k: v for k, v in options.items() if k != "split"}
        builder = datasets.load_dataset_builder(name, **builder_options)
        rows = builder.as_streaming_dataset(split=options["split"])
        features = dict(rows.features or rows._resolve_features().features)
    except Exception as error:  # as many kinds as there are formats, and the Hub's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"the images of {name} cannot be read: {reason[0][:300]}") from None
    pictures = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    image = _column("image", image, features, [*pictures, *IMAGE_NAMES])
    if isinstance(features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    if caption is not None or "json" not in features:
        caption = _column("caption", caption, features, list(CAPTION_NAMES))
    files = [str(file) for split in (builder.config.data_files or {}).values() for file in split]
    return ImageTable(rows, image, caption, key or digest([name, options["split"], *files]))


def _column(what: str, asked: str | None, features: dict[str, Any], usual: list[str]) -> str:
    found = asked if asked is not None else next((name for name in usual if name in features), None)
    if found not in features:
        raise InvalidInput(
            f"there is no {what} column{f' {asked!r}' if asked else ''}; the columns are {', '.join(features)[:500]}: "
            f"name it with --{what}-column. (Addresses of images must be downloaded first, for example by img2dataset.)"
        )
    return str(found)
