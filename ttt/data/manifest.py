"""`dataset.json`: what made a set of shards, written beside them and checked before any of them is read. No network.

    {"format": "ttt-codes", "version": 1, "complete": true,
     "model": "demo", "codebook": "sha256 of vqgan.safetensors", "resolution": 64,
     "image_seq_len": 64, "num_image_tokens": 1024,
     "shards": ["00000.parquet", "00001.parquet"], "counts": {"kept": 1500, "short_caption": 7}}

The published data set has no such file; then the rows alone say whether they fit.
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
    """Which codes the shards hold. `shards` are plain names, in the order in which they were made."""

    model: str
    """Name of the bundle whose VQGAN made the codes."""
    codebook: str
    """SHA-256 of that VQGAN's file of weights: the same code means the same patch only where this is the same."""
    resolution: int
    """Pixels on the side of the square images that were encoded."""
    image_seq_len: int
    num_image_tokens: int
    shards: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    image_bytes: int = 0
    """Of the images as they were stored, those that were kept."""
    shard_bytes: int = 0
    complete: bool = False
    """False while encoding goes on, or was stopped."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the content depends on beside the VQGAN: the images, the filters, the rows a shard."""

    def check(self, where: str, image_seq_len: int, num_image_tokens: int, codebook: str | None = None) -> None:
        """DataError where a model that needs these numbers cannot learn from these codes."""
        for what, ours, theirs in (
            ("codes a picture (image_seq_len)", image_seq_len, self.image_seq_len),
            ("codes in the codebook (num_image_tokens)", num_image_tokens, self.num_image_tokens),
        ):
            if ours != theirs:
                raise DataError(
                    f"{where} was encoded with {theirs} {what}, and the model needs {ours}; encode the images again "
                    f"with the model's own VQGAN (`ttt encode --model ...`; this one was made with {self.model!r})"
                )
        if codebook is not None and codebook != self.codebook:
            raise DataError(
                f"{where} was encoded with another VQGAN ({self.model!r}, {self.codebook[:12]}) than the model's "
                f"({codebook[:12]}): its codes mean other patches; encode the images again with the model's own"
            )

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> DatasetManifest:
        """DataError for anything that is not such a file; it may come from a stranger."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise DataError(f"{where} is not readable JSON; fetch or encode the data set again") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise DataError(f'{where} does not say "format": "{FORMAT}": it does not describe shards of codes')
        if values.get("version") != VERSION:
            raise DataError(f"{where} has version {values.get('version')!r}; this program reads {VERSION}: update it")
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        _check_values(known, where)
        return cls(**{**known, "shards": tuple(known.get("shards", ()))})


def _check_values(values: dict[str, Any], where: str) -> None:
    def wrong(name: str, allowed: str) -> DataError:
        return DataError(f"{where}: {name} must be {allowed}, got {str(values.get(name))[:60]!r}")

    for name in ("model", "codebook"):
        if not isinstance(values.get(name), str) or len(values[name]) > 300:
            raise wrong(name, "a text of at most 300 characters")
    for name in ("image_bytes", "shard_bytes"):
        if type(values.get(name, 0)) is not int:
            raise wrong(name, "a whole number")
    if not isinstance(values.get("settings", {}), dict):
        raise wrong("settings", "an object")
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
    """A visible Parquet file in the same folder: no way out of it, and no address."""
    return (
        isinstance(name, str)
        and 8 < len(name) <= 200
        and name.endswith(".parquet")
        and not name.startswith(".")
        and not set(name) & set("/\\:?#%\0")
    )
