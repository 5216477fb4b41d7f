"""Captioned images in webdataset archives (.tar), in a fixed order. Decodes no image and unpickles nothing."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttt.data.image_folder import digest, left_out_warning
from ttt.data.image_metadata import CAPTION_ENDINGS, MAX_TEXT_BYTES, caption_of, json_object, make_pair
from ttt.data.images import EXTENSIONS, MAX_IMAGE_BYTES, Caption, Pair

READ_ENDINGS = (*EXTENSIONS, *CAPTION_ENDINGS, ".json")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
"""First bytes of files that people rename to .tar."""


@dataclass(frozen=True)
class ImageArchives:
    """Members whose names agree up to the first dot are one sample; .txt or .json holds the caption.

    Members with other endings (.cls, .npy, .pkl ...) are ignored, whatever they contain.
    """

    paths: tuple[Path, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    """Endings of other files in the same folder."""
    _seen: Counter[str] = field(default_factory=Counter, compare=False)
    """Signs of archives that are arranged differently, counted while they are read."""
    _examples: dict[str, str] = field(default_factory=dict, compare=False)

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
            path = self.paths[number]
            try:
                with tarfile.open(path, "r:") as tar:
                    for done, members in enumerate(_samples(tar), 1):
                        if number > first or done > skip:
                            yield self._pair(tar, members), (number, done)
                    _check_end(tar)
            except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError):
                # The samples before the break are kept; resuming from here starts with the next archive.
                self._note("broken", f"{path}{_compression(path)}")
                yield Pair(path.name, None, None, problem="broken_archive"), (number + 1, 0)

    def warnings(self) -> list[str]:
        seen, found = self._seen, left_out_warning(self.left_out)
        if seen["broken"]:
            found.append(f"broken or incomplete: {self._examples['broken']}")
        lonely = min(seen["no text"], seen["no image"])
        if lonely and 10 * lonely >= seen["samples"]:
            found.append(
                f"an image without text: {seen['no text']:,}, text without an image: {seen['no image']:,}. The members "
                "of a sample must follow each other in the archive (`tar --sort=name -cf sorted.tar FOLDER`)"
            )
        if seen["ending"]:
            found.append(
                f"{self._examples['ending']!r} is not read, nor are {seen['ending'] - 1:,} others like it: the name of "
                f"a sample ends at the first dot, and what follows must be one of {', '.join(READ_ENDINGS)}"
            )
        return found

    def _pair(self, tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Pair:
        image: bytes | None = None
        texts: dict[str, bytes] = {}
        unread: list[str] = []
        for member in members:
            ending = _ending(member.name)
            if ending in EXTENSIONS:
                image = _read(tar, member, MAX_IMAGE_BYTES) if image is None else image
            elif ending in READ_ENDINGS:
                texts[ending] = _read(tar, member, MAX_TEXT_BYTES) or b""
            elif ending.endswith(READ_ENDINGS):  # "0.jpg" in "photo.v1.0.jpg", "input.jpg" in "s1.input.jpg"
                unread.append(member.name)
        self._note("samples", "")
        if image is None or not texts:
            for name in unread:
                self._note("ending", name)
        if (image is None) != (not texts):
            self._note("no image" if image is None else "no text", members[0].name)
        metadata = json_object(texts.pop(".json", b"{}"))
        caption: Caption = next(iter(texts.values()), None)
        caption = caption_of(metadata) if caption is None else caption
        return make_pair(_key(members[0].name), image, caption, metadata)

    def _note(self, sign: str, example: str) -> None:
        self._seen[sign] += 1
        self._examples.setdefault(sign, example)


def _samples(tar: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    members: list[tarfile.TarInfo] = []
    for member in tar:
        if not member.isreg() or member.name.rpartition("/")[2].startswith("."):
            continue
        if members and _key(member.name) != _key(members[0].name):
            yield members
            members = []
        members.append(member)
        tar.members = []  # type: ignore[attr-defined] # otherwise the list of all headers grows with the archive
    if members:
        yield members


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError for an archive that breaks off between two members, which `tarfile` takes for its end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("the archive has no end")


def _key(name: str) -> str:
    """Name of the sample that a member belongs to."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _ending(name: str) -> str:
    return "." + name.rpartition("/")[2].partition(".")[2].lower()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes | None:
    file = tar.extractfile(member) if member.size <= limit else None
    return None if file is None else file.read()


def _compression(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        return f" ({error.strerror})"
    kind = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
    return f" (it is compressed with {kind}; decompress it first)" if kind else ""
