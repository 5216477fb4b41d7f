"""Images to encode in every kind of source, and readers of the shards that are written for them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ttt.data.filters import EncodeSettings

SETTINGS = EncodeSettings(shard_size=10, batch_size=4)


def image_bytes(number: int, size: tuple[int, int] = (24, 20), kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, kind)
    return content.getvalue()


def write_folder(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(image_bytes(i))
        (folder / f"{i:03d}.txt").write_text(f"a red circle {i}\n")
    return folder


def write_archives(folder: Path) -> Path:
    """31 pairs in two archives."""
    folder.mkdir()
    for name, numbers in (("0.tar", range(17)), ("1.tar", range(17, 31))):
        with tarfile.open(folder / name, "w") as tar:
            for i in numbers:
                add_member(tar, f"{i:03d}.png", image_bytes(i))
                add_member(tar, f"{i:03d}.txt", f"a red circle {i}".encode())
    return folder


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_parquet(folder: Path) -> Path:
    """31 pairs in two files, as `datasets` stores images."""
    folder.mkdir()
    for name, numbers in (("0.parquet", range(17)), ("1.parquet", range(17, 31))):
        images = [{"bytes": image_bytes(i), "path": f"{i}.png"} for i in numbers]
        texts = [f"a red circle {i}" for i in numbers]
        pq.write_table(pa.table({"image": images, "text": texts}), folder / name, row_group_size=5)
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def captions(out: Path) -> list[str]:
    return [row["caption"] for row in rows_of(out)]


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}
