"""Checks of single files: names, JSON, safetensors headers. Independent of torch and of models."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

from ttt.errors import BundleError

MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 64 << 20
_MAX_HEADER_BYTES = 100 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def broken(path: Path, why: str) -> BundleError:
    return BundleError(f"{path} is broken or only partly downloaded: {why}. Delete it and copy or download it again")


def file_size(path: Path) -> int:
    """Size of a file; BundleError if it is missing."""
    try:
        size = path.stat().st_size
    except OSError:
        raise BundleError(f"{path} is missing; copy or download the bundle again") from None
    if not path.is_file():
        raise BundleError(f"{path} is not a file; copy or download the bundle again")
    return size


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in `path`, which may have at most `limit` bytes."""
    size = file_size(path)
    if size > limit:
        raise BundleError(f"{path} has {size} bytes; at most {limit} are allowed for this file")
    return json_object(_parse(path.read_bytes(), path), path)


def json_object(value: Any, path: Path, key: str = "its content") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BundleError(f"{path}: {key} must be a JSON object, got {type(value).__name__}; convert the model again")
    return value


def plain_name(value: Any, path: Path, key: str) -> str:
    """Check that a name cannot lead out of the folder or to the network."""
    if not isinstance(value, str) or not _PLAIN_NAME.fullmatch(value):
        raise BundleError(f"{path}: {key} must be a plain name (letters, digits, '.', '_', '-'), got {value!r}")
    return value


def text_field(value: Any, path: Path, key: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise BundleError(f"{path}: {key} must be text of 1 to 200 characters")
    return value


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor; BundleError if the file is missing, truncated or not a safetensors file."""
    size = file_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise broken(path, f"its header is incomplete, {size} bytes are there")
        header = json_object(_parse(file.read(length), path), path)
    header.pop("__metadata__", None)
    try:
        shapes = {name: tuple(int(d) for d in value["shape"]) for name, value in header.items()}
        spans = [(int(start), int(end)) for start, end in (value["data_offsets"] for value in header.values())]
    except (KeyError, TypeError, ValueError):
        raise broken(path, "its header is not that of a safetensors file") from None
    if not shapes:
        raise broken(path, "it holds no tensors")
    written = 8 + length + max(end for _, end in spans)
    if written != size:
        raise broken(path, f"{size} bytes are there, {written} were written")
    for (name, shape), (start, end) in zip(shapes.items(), spans, strict=True):
        if prod(shape) > end - start >= 0:  # an element takes at least one byte
            raise broken(path, f"tensor {name} claims more numbers than the file holds")
    return shapes


def _parse(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise broken(path, "it is not valid JSON") from None
