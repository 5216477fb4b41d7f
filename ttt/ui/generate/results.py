"""Finished results on disk, each under an unguessable id and within a quota. Independent of Gradio and of the model."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ttt import results
from ttt.errors import InvalidInput
from ttt.sampling.params import SamplingParams
from ttt.types import RankedImage

QUOTA_BYTES = 1 << 30
FOLDER, MARKER = "ttt-results", ".ttt-results"
"""Subfolder that the store owns, and the file by which it recognises the folder as its own."""
RECORD = "page.json"
UNFINISHED = "unfinished-"
"""Prefix of a result's folder until it is complete."""
UNFINISHED_SECONDS = 3600.0
"""An unfinished save that is older was killed: saving takes seconds."""
RANKED_COLUMNS = 16
_ID = re.compile(r"[A-Za-z0-9_-]{32}")
_TILE = 128


@dataclass(frozen=True)
class SavedImage:
    """One of the best images: a PNG that carries its settings."""

    file: str
    score: float
    candidate: int


@dataclass(frozen=True)
class Result:
    """What is stored of a finished request."""

    id: str
    folder: str
    prompt: str
    params: dict[str, Any]
    model: str
    seconds: float
    best: tuple[SavedImage, ...]
    ranking: tuple[tuple[int, float], ...]
    """(candidate, score) of all candidates, best first."""

    def path(self, name: str) -> Path:
        return Path(self.folder) / name

    @property
    def archive(self) -> Path:
        return self.path(results.ARCHIVE)

    @property
    def ranked_sheet(self) -> Path:
        """All candidates, best first, `RANKED_COLUMNS` in a row, as one JPEG."""
        return self.path("ranking.jpg")


class ResultStore:
    """Saves results in `parent/ttt-results` and deletes the oldest once they exceed the quota.

    `parent` may be any folder of the user's. The store writes, deletes and lets the app serve nothing outside its
    subfolder, and inside it deletes only folders that it wrote: those with a record, and unfinished saves.
    """

    def __init__(self, parent: Path, *, quota_bytes: int = QUOTA_BYTES) -> None:
        """Raises InvalidInput if the subfolder exists and is not a store's."""
        self.root = parent.expanduser().resolve() / FOLDER
        self._quota = quota_bytes
        self._lock = threading.Lock()
        self._open()
        self._delete_unfinished()

    def _open(self) -> None:
        marker = self.root / MARKER
        if self.root.is_symlink():  # it may lead to a folder whose files must not be served
            raise InvalidInput(f"{self.root} is a link; choose another folder for the results")
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not marker.is_file():
            if any(self.root.iterdir()):
                raise InvalidInput(
                    f"{self.root} holds files that this app did not write; choose another folder for the results"
                )
            marker.write_text(
                "Results of the app. It deletes the oldest when they exceed its quota.\n", encoding="utf-8"
            )

    def save(
        self,
        *,
        prompt: str,
        params: SamplingParams,
        model: str,
        images: Sequence[RankedImage],
        ranking: Sequence[RankedImage],
        seconds: float,
    ) -> Result:
        """Write the best as PNG, all of them as one ranked sheet, the ZIP and the record."""
        key = secrets.token_urlsafe(24)
        folder = self.root / f"{UNFINISHED}{key}"
        folder.mkdir(mode=0o700)
        try:
            results.save(folder, images, ranking, prompt=prompt, params=params, model=model)
            ranked_sheet(ranking).save(folder / "ranking.jpg", quality=88)
            result = Result(
                id=key,
                folder=str(self.root / key),
                prompt=prompt,
                params=params.to_dict(),
                model=model,
                seconds=seconds,
                best=tuple(
                    SavedImage(results.file_name(i, image), image.score, image.candidate)
                    for i, image in enumerate(images)
                ),
                ranking=tuple((image.candidate, image.score) for image in ranking),
            )
            (folder / RECORD).write_text(json.dumps(asdict(result)), encoding="utf-8")
            os.replace(folder, self.root / key)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._delete_unfinished()
            self._enforce_quota(newest=key)
        return result

    def load(self, key: object) -> Result | None:
        """The result of this id; None if there is none, or no longer."""
        if not isinstance(key, str) or not _ID.fullmatch(key):
            return None
        try:
            values = json.loads((self.root / key / RECORD).read_text(encoding="utf-8"))
            best = tuple(SavedImage(**image) for image in values.pop("best"))
            ranking = tuple((int(candidate), float(score)) for candidate, score in values.pop("ranking"))
            folder = str(self.root / key)
            return Result(**{**values, "folder": folder}, best=best, ranking=ranking)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _delete_unfinished(self) -> None:
        """Delete what killed saves left; another app may be saving into the same folder just now."""
        for folder in self._folders(UNFINISHED):
            try:
                age = time.time() - folder.stat().st_mtime
            except OSError:
                continue  # complete, and renamed, in the meantime
            if age > UNFINISHED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    def _enforce_quota(self, newest: str) -> None:
        sizes: dict[Path, tuple[float, int]] = {}
        for folder in self._folders():
            try:
                sizes[folder] = folder.stat().st_mtime, sum(file.stat().st_size for file in folder.iterdir())
            except OSError:
                continue  # another app that uses this folder deleted it
        total = sum(size for _, size in sizes.values())
        for folder, (_, size) in sorted(sizes.items(), key=lambda item: item[1][0]):
            if total <= self._quota:
                return
            if folder.name != newest:
                shutil.rmtree(folder, ignore_errors=True)
                total -= size

    def _folders(self, prefix: str = "") -> list[Path]:
        """Folders that a store wrote: complete ones, or with `UNFINISHED` as prefix the others."""
        return [
            path
            for path in self.root.iterdir()
            if path.name.startswith(prefix)
            and _ID.fullmatch(path.name.removeprefix(prefix))
            and path.is_dir()
            and not path.is_symlink()
            and (prefix or (path / RECORD).is_file())
        ]


def ranked_sheet(ranking: Sequence[RankedImage]) -> Image.Image:
    """All images, best first, as tiles of one image: one file instead of 128."""
    columns = min(RANKED_COLUMNS, max(1, len(ranking)))
    rows = -(-len(ranking) // columns)
    sheet = Image.new("RGB", (columns * _TILE, max(1, rows) * _TILE), "white")
    for i, ranked in enumerate(ranking):
        tile = ranked.image.convert("RGB")
        if tile.size != (_TILE, _TILE):
            tile = tile.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * _TILE, i // columns * _TILE))
    return sheet
