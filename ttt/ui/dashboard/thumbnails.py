"""Copies of sample images that are safe to serve: checked, re-encoded, named by their content. Independent of Gradio.

A history may come from an untrusted source: its paths are followed only inside its own folder, and instead of a file,
the page serves what Pillow decoded from it.
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
    """JPEG copies in a folder of their own, which is the only one that the page may serve."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[tuple[str, int, int], str | None] = {}
        self._lock = threading.Lock()

    def of(self, folder: Path, path: str) -> Path | None:
        """The copy of folder/path, created if necessary; None if it is missing, outside the folder or not an image."""
        try:
            base, file = folder.resolve(), (folder / path).resolve()
            about = file.stat()
        except (OSError, ValueError):  # the path is untrusted text
            return None
        if not file.is_relative_to(base) or not file.is_file() or about.st_size > MAX_BYTES:
            return None
        key = (str(file), about.st_mtime_ns, about.st_size)
        with self._lock:
            if key not in self._names:
                self._names[key] = self._make(file)
            name = self._names[key]
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
