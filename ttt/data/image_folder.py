"""Captioned images in a folder or in webdataset archives, in a fixed order. Decodes nothing, unpickles nothing."""

from __future__ import annotations

import csv
import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ttt.data.images import EXTENSIONS, MAX_IMAGE_BYTES, Pair
from ttt.errors import DataError, InvalidInput

CAPTION_NAMES = ("caption", "text", "txt", "prompt", "TEXT")
"""Names under which people keep captions, the likeliest first."""
PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".npy", ".npz")
"""Members of an archive that webdataset's decoders would unpickle, or may."""
MAX_TEXT_BYTES = 1 << 20


class ImageSource(Protocol):
    """Captioned images in a fixed order, from any place on."""

    @property
    def fingerprint(self) -> str:
        """Changes where a position would mean another pair."""

    @property
    def total(self) -> int | None:
        """Pairs, where that is known beforehand."""

    def pairs(self, position: Any) -> Iterator[tuple[Pair, Any]]:
        """Pairs from `position` (None: the first) on, each with the position after it, in JSON's types."""


def digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class ImageFolder:
    """Images by path; the caption stands in `metadata.csv` or `metadata.jsonl` (as in `imagefolder`), or in a .txt
    of the image's name.
    """

    root: Path
    names: tuple[str, ...]
    missing: tuple[str, ...]
    """Images that the metadata know and the folder lacks; never opened, wherever their names may point to."""
    captions: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, root: Path) -> ImageFolder:
        paths = sorted(p.relative_to(root) for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        names = tuple(p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))
        captions = dict(_captions(root))
        return cls(root, names, tuple(sorted(captions.keys() - set(names))), captions)

    @property
    def fingerprint(self) -> str:
        return digest([*self.names, "", *self.missing])

    @property
    def total(self) -> int:
        return len(self.names) + len(self.missing)

    def pairs(self, position: Any) -> Iterator[tuple[Pair, Any]]:
        for i in range(position or 0, len(self.names)):
            name = self.names[i]
            path = self.root / name
            metadata = self.captions.get(name)
            yield (
                make_pair(
                    name, path, _caption_file(path) if metadata is None else caption_of(metadata), metadata or {}
                ),
                i + 1,
            )
        for i in range(max((position or 0) - len(self.names), 0), len(self.missing)):
            yield Pair(self.missing[i], None, None, problem="bad_image"), len(self.names) + i + 1


@dataclass(frozen=True)
class ImageArchives:
    """webdataset: members of one name, up to the first dot, are one pair; .txt or .json holds the caption."""

    paths: tuple[Path, ...]

    @property
    def fingerprint(self) -> str:
        return digest([f"{path.name}/{path.stat().st_size}" for path in self.paths])

    @property
    def total(self) -> None:
        return None

    def pairs(self, position: Any) -> Iterator[tuple[Pair, Any]]:
        first, skip = position or (0, 0)
        for number in range(first, len(self.paths)):
            done = skip if number == first else 0
            try:
                with tarfile.open(self.paths[number], "r:") as tar:
                    for done, members in enumerate(_samples(tar), 1):
                        if number > first or done > skip:
                            yield _sample_pair(tar, members), (number, done)
                    _check_end(tar)
            except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError):
                # What came before the break is kept; going on from here begins with the next archive.
                yield Pair(self.paths[number].name, None, None, problem="broken_archive"), (number + 1, 0)


def _samples(tar: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    members: list[tarfile.TarInfo] = []
    for member in tar:
        if not member.isreg() or member.name.rpartition("/")[2].startswith("."):
            continue
        if members and _key(member.name) != _key(members[0].name):
            yield members
            members = []
        members.append(member)
        tar.members = []  # type: ignore[attr-defined] # else the list of all headers grows without end
    if members:
        yield members


def _check_end(tar: tarfile.TarFile) -> None:
    """tarfile takes an archive that breaks off between two members, or goes on with noise, for one that ends there."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end of the archive")


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _sample_pair(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Pair:
    image: bytes | None = None
    texts: dict[str, bytes] = {}
    key = _key(members[0].name)
    for member in members:
        ending = "." + member.name.rpartition("/")[2].partition(".")[2].lower()
        if ending.endswith(PICKLES):
            return Pair(key, None, None, problem="pickle")
        if ending in EXTENSIONS and image is None:
            image = _member(tar, member, MAX_IMAGE_BYTES)
        elif ending in (".txt", ".caption", ".json"):
            texts[ending] = _member(tar, member, MAX_TEXT_BYTES) or b""
    metadata = _json_object(texts.pop(".json", b"{}"))
    caption: bytes | str | None = next(iter(texts.values()), None)
    return make_pair(key, image, caption_of(metadata) if caption is None else caption, metadata)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes | None:
    file = tar.extractfile(member) if member.size <= limit else None
    return None if file is None else file.read()


def make_pair(name: str, image: bytes | Path | None, caption: bytes | str | None, metadata: dict[str, Any]) -> Pair:
    """A pair with what its metadata say beside the caption, under the names of the published data set."""
    nsfw = metadata.get("NSFW", metadata.get("nsfw"))
    pair = Pair(name, image, caption, nsfw if isinstance(nsfw, str) and nsfw else None)
    width, height = (_whole(metadata.get(side)) for side in ("original_width", "original_height"))
    return replace(pair, original_width=width, original_height=height)


def caption_of(metadata: dict[str, Any]) -> str | None:
    return next((metadata[name] for name in CAPTION_NAMES if isinstance(metadata.get(name), str)), None)


def _caption_file(image: Path) -> bytes | None:
    path = image.with_suffix(".txt")
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_BYTES)
    except OSError:
        return None


def _captions(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """File name (relative to `root`) -> its line, of every metadata file in the folder and below."""
    for path in sorted([*root.rglob("metadata.csv"), *root.rglob("metadata.jsonl")]):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows: Iterator[Any] = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
                for row in rows:
                    name = row.get("file_name") if isinstance(row, dict) else None
                    if not isinstance(name, str):
                        raise InvalidInput(f"{path}: a line has no file_name; `imagefolder` needs one in each")
                    yield (path.parent.relative_to(root) / name).as_posix(), row
        except (csv.Error, ValueError, OSError, RecursionError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise DataError(f"{path} cannot be read ({error})") from None


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    return value if type(value) is int else None
