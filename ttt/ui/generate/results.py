"""Finished results on disk, each under an unguessable id and within a quota. Knows no gradio and no model."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ttt import results
from ttt.sampling.params import SamplingParams
from ttt.types import RankedImage

log = logging.getLogger(__name__)

QUOTA_BYTES = 1 << 30
_ID = re.compile(r"[A-Za-z0-9_-]{20,40}")
_TILE = 128
RANKED_COLUMNS = 16


@dataclass(frozen=True)
class Picture:
    """One of the best: a PNG that carries its settings."""

    file: str
    score: float
    candidate: int


@dataclass(frozen=True)
class Result:
    """What is kept of a finished request."""

    id: str
    folder: str
    prompt: str
    params: dict[str, Any]
    model: str
    seconds: float
    best: tuple[Picture, ...]
    ranking: tuple[tuple[int, float], ...]
    """(candidate, score) of all candidates, best first."""

    def path(self, name: str) -> Path:
        return Path(self.folder) / name

    @property
    def archive(self) -> Path:
        return self.path("pictures.zip")

    @property
    def ranked_sheet(self) -> Path:
        """All candidates, best first, `RANKED_COLUMNS` in a row, as one JPEG."""
        return self.path("ranking.jpg")


class ResultStore:
    """A folder of results; the oldest go when they fill the quota."""

    def __init__(self, root: Path, *, quota_bytes: int = QUOTA_BYTES) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._quota = quota_bytes
        self._lock = threading.Lock()

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
        folder = self.root / f".{key}"  # unseen until it is whole
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
                    Picture(results.file_name(i, image), image.score, image.candidate) for i, image in enumerate(images)
                ),
                ranking=tuple((image.candidate, image.score) for image in ranking),
            )
            (folder / "page.json").write_text(json.dumps(asdict(result)), encoding="utf-8")
            os.replace(folder, self.root / key)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._make_room(keep=key)
        return result

    def load(self, key: object) -> Result | None:
        """The result of this id; None when there is none (any more)."""
        if not isinstance(key, str) or not _ID.fullmatch(key):
            return None
        try:
            values = json.loads((self.root / key / "page.json").read_text(encoding="utf-8"))
            best = tuple(Picture(**picture) for picture in values.pop("best"))
            ranking = tuple((int(candidate), float(score)) for candidate, score in values.pop("ranking"))
            folder = str(self.root / key)
            return Result(**{**values, "folder": folder}, best=best, ranking=ranking)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _make_room(self, *, keep: str) -> None:
        with self._lock:
            folders = sorted((p for p in self.root.iterdir() if _ID.fullmatch(p.name)), key=lambda p: p.stat().st_mtime)
            sizes = {p: sum(f.stat().st_size for f in p.iterdir()) for p in folders}
            total = sum(sizes.values())
            for folder in folders:
                if total <= self._quota:
                    return
                if folder.name != keep:
                    shutil.rmtree(folder, ignore_errors=True)
                    total -= sizes[folder]


def ranked_sheet(ranking: Sequence[RankedImage]) -> Image.Image:
    """All pictures best first, as tiles of one picture (one file instead of 128)."""
    columns = min(RANKED_COLUMNS, max(1, len(ranking)))
    rows = -(-len(ranking) // columns)
    sheet = Image.new("RGB", (columns * _TILE, max(1, rows) * _TILE), "white")
    for i, ranked in enumerate(ranking):
        tile = ranked.image.convert("RGB")
        if tile.size != (_TILE, _TILE):
            tile = tile.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * _TILE, i // columns * _TILE))
    return sheet
