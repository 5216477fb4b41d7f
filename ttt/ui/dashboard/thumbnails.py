"""Sample images of a history made fit to be served: checked, re-encoded, named by their content. Knows no gradio.

A history may come from a stranger: its paths are followed only inside its own folder, and a file is served only as
what Pillow read out of it.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from PIL import Image

MAX_BYTES = 8_000_000
MAX_PIXELS = 2048 * 2048
SIDE = 256
FORMATS = ("PNG", "JPEG", "WEBP")


class Thumbnails:
    """JPEG copies in a folder of their own, the only one that the page may serve."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[tuple[str, int, int], str | None] = {}
        self._lock = threading.Lock()

    def of(self, folder: Path, path: str) -> Path | None:
        """The copy of folder/path, made now if need be; None for what is missing, outside or not an image."""
        try:
            base, file = folder.resolve(), (folder / path).resolve()
            about = file.stat()
        except (OSError, ValueError):  # a path may hold anything
            return None
        if not file.is_relative_to(base) or not file.is_file() or about.st_size > MAX_BYTES:
            return None
        key = (str(file), about.st_mtime_ns, about.st_size)
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(file)
            name = self._made[key]
        return None if name is None else self.root / name

    def _make(self, file: Path) -> str | None:
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                small = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        small.thumbnail((SIDE, SIDE))
        name = f"{hashlib.sha256(file.read_bytes()).hexdigest()[:32]}.jpg"
        self.root.mkdir(parents=True, exist_ok=True)
        small.save(self.root / name, quality=88)
        return name
