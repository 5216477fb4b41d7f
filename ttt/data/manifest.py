"""`dataset.json` describes how a set of shards was made; a stream checks it before it reads a shard.

    {"format": "ttt-codes", "version": 1, "complete": true,
     "model": "demo", "codebook": "sha256 of vqgan.safetensors", "resolution": 64,
     "image_seq_len": 64, "num_image_tokens": 1024,
     "shards": ["00000.parquet", "00001.parquet"], "counts": {"kept": 1500, "short_caption": 7}}

The published data set has no such file; then every row is checked on its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ttt.data.rows import MAX_CODEBOOK
from ttt.errors import DataError

MANIFEST = "dataset.json"
FORMAT, VERSION = "ttt-codes", 1
MAX_MANIFEST_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """Describes the codes in the shards. `shards` are plain file names, in the order in which they were written."""

    model: str
    """Name of the bundle whose VQGAN produced the codes."""
    codebook: str
    """SHA-256 of the VQGAN's file of weights. A code means the same patch only for the same weights."""
    resolution: int
    """Width and height in pixels of the square images that were encoded."""
    image_seq_len: int
    num_image_tokens: int
    shards: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    image_bytes: int = 0
    """Bytes of the kept images as they were stored."""
    shard_bytes: int = 0
    complete: bool = False
    """False until all images are encoded."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the content depends on besides the VQGAN: the images, the filters, the rows per shard."""

    def check(self, where: str, image_seq_len: int, num_image_tokens: int, codebook: str | None = None) -> None:
        """Raises DataError if a model with these numbers cannot be trained on these codes."""
        for what, ours, theirs in (
            ("codes per image (image_seq_len)", image_seq_len, self.image_seq_len),
            ("codes in the codebook (num_image_tokens)", num_image_tokens, self.num_image_tokens),
        ):
            if ours != theirs:
                raise DataError(
                    f"{where} was encoded with {theirs} {what}, but the model needs {ours}; encode the images again "
                    f"with the VQGAN of the model (`ttt encode --model ...`; these codes are from {self.model!r})"
                )
        if codebook is not None and codebook != self.codebook:
            raise DataError(
                f"{where} was encoded with another VQGAN ({self.model!r}, {self.codebook[:12]}) than the model's "
                f"({codebook[:12]}), so its codes mean other patches; encode the images with the VQGAN of the model"
            )

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> DatasetManifest:
        """Raises DataError for anything that is not a valid description; it may come from a stranger."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise DataError(f"{where} is not valid JSON; download or encode the data set again") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise DataError(f'{where} does not say "format": "{FORMAT}", so it does not describe shards of codes')
        if values.get("version") != VERSION:
            raise DataError(
                f"{where} has version {values.get('version')!r}; this program reads version {VERSION}: update it"
            )
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        _check_values(known, where)
        return cls(**{**known, "shards": tuple(known.get("shards", ()))})


def _check_values(values: dict[str, Any], where: str) -> None:
    def wrong(name: str, allowed: str) -> DataError:
        return DataError(f"{where}: {name} must be {allowed}, got {str(values.get(name))[:60]!r}")

    for name in ("model", "codebook"):
        if not isinstance(values.get(name), str) or len(values[name]) > 300:
            raise wrong(name, "text of at most 300 characters")
    for name in ("image_bytes", "shard_bytes"):
        if type(values.get(name, 0)) is not int:
            raise wrong(name, "a whole number")
    if not isinstance(values.get("settings", {}), dict):
        raise wrong("settings", "a JSON object")
    limits = {"resolution": 1 << 14, "image_seq_len": 1 << 20, "num_image_tokens": MAX_CODEBOOK}
    for name, limit in limits.items():
        if type(values.get(name)) is not int or not 1 <= values[name] <= limit:
            raise wrong(name, f"a whole number from 1 to {limit}")
    shards, counts = values.get("shards", []), values.get("counts", {})
    if not isinstance(shards, list) or not all(is_plain_name(name) for name in shards):
        raise wrong("shards", "a list of plain file names")
    if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
        raise wrong("counts", "whole numbers by kind")
    if not isinstance(values.get("complete", False), bool):
        raise wrong("complete", "true or false")


def codebook_of(vqgan_file: Path) -> str:
    """SHA-256 of a bundle's `vqgan.safetensors`."""
    with vqgan_file.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_plain_name(name: object) -> bool:
    """True for the name of a visible Parquet file in the same folder; False for paths and addresses."""
    return (
        isinstance(name, str)
        and 8 < len(name) <= 200
        and name.endswith(".parquet")
        and not name.startswith(".")
        and not set(name) & set("/\\:?#%\0")
    )
