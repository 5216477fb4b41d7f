"""Reads what a source says about an image besides its pixels: caption, NSFW label, original size. Unpickles nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttt.data.images import Caption, Pair

CAPTION_NAMES = ("caption", "text", "txt", "prompt", "TEXT", "captions", "texts")
"""Names under which data sets keep captions, the most common first."""
OTHER_NAMES = ("NSFW", "nsfw", "original_width", "original_height")
CAPTION_ENDINGS = (".txt", ".text", ".caption")
"""Files that hold nothing but a caption."""
MAX_TEXT_BYTES = 1 << 20


def make_pair(name: str, image: bytes | Path | None, caption: Caption, metadata: dict[str, Any]) -> Pair:
    """A pair with the NSFW label and the original size from `metadata`, under the names of the published data set."""
    nsfw = metadata.get("NSFW", metadata.get("nsfw"))
    width, height = (_whole_number(metadata.get(side)) for side in ("original_width", "original_height"))
    label = nsfw if isinstance(nsfw, str) and nsfw else None
    return Pair(name, image, caption, label, original_width=width, original_height=height)


def caption_of(metadata: dict[str, Any]) -> Caption:
    """The value of the first of `CAPTION_NAMES` that is text or a list."""
    return next((metadata[name] for name in CAPTION_NAMES if isinstance(metadata.get(name), (str, list))), None)


def json_object(content: bytes | str) -> dict[str, Any]:
    """The JSON object in a file that a stranger wrote; empty if it is anything else."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _whole_number(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**31:
        value = int(value)  # pandas turns a column of integers with gaps into floats
    return value if type(value) is int else None
