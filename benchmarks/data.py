"""Training data: bytes saved by codes, speed of encoding and of streaming: `python -m benchmarks.data`.

Prints a table and ends with one JSON line. The images are captioned scenes of 256 x 256 pixels, saved as PNG and as
JPEG. Their codes come from the shipped VQGAN, which encodes 64 x 64 pixels. For the paper's VQGAN, the time is measured
with random weights, and the bytes are those of random codes, which is the most that they can be. Streaming is compared
with pyarrow, which reads the same columns of the same shards, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ttt.bundle import DEMO_FOLDER, read_bundle
from ttt.config import PAPER_VQGAN
from ttt.data.encode import encode
from ttt.data.filters import Filters
from ttt.data.image_sources import find_images
from ttt.data.shapes import draw
from ttt.data.shapes import stream as scenes
from ttt.data.stream import CodeStream
from ttt.model.vqgan import Vqgan
from ttt.tokenizer import TextTokenizer

SIDE = 256
JPEG_QUALITY = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="scenes drawn and encoded with the shipped VQGAN")
    parser.add_argument("--paper-images", type=int, default=4, help="images encoded with a VQGAN of the paper's size")
    parser.add_argument("--rows", type=int, default=40_000, help="rows of 1,024 codes streamed")
    options = parser.parse_args()
    torch.manual_seed(0)
    report: dict[str, Any] = {"benchmark": "data", "threads": torch.get_num_threads(), "images": options.images}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        report |= bandwidth(root, options.images)
        report["paper_encode_s_per_image"] = paper_encode(options.paper_images)
        report |= streaming(root, options.rows)
        for kind in ("png", "jpg"):
            report[f"paper_{kind}_ratio"] = report[f"{kind}_bytes"] / options.images / report["paper_row_bytes"]
    print_table(report)
    print(json.dumps(report))


def bandwidth(root: Path, count: int) -> dict[str, Any]:
    """Bytes of the images and of their shards, and the speed of `ttt encode` on them."""
    for kind in ("png", "jpg"):
        (root / kind).mkdir()
    for i, (scene, caption) in enumerate(islice(scenes(0), count)):
        image = draw(scene, SIDE)
        image.save(root / "png" / f"{i:06d}.png", optimize=True)
        image.save(root / "jpg" / f"{i:06d}.jpg", quality=JPEG_QUALITY)
        for kind in ("png", "jpg"):
            (root / kind / f"{i:06d}.txt").write_text(caption)
    figures: dict[str, Any] = {}
    for kind in ("png", "jpg"):
        start = time.perf_counter()
        manifest = encode(find_images(str(root / kind)), root / f"codes-{kind}", read_bundle(DEMO_FOLDER))
        figures[f"{kind}_encode_images_s"] = count / (time.perf_counter() - start)
        figures[f"{kind}_bytes"], figures[f"{kind}_shard_bytes"] = manifest.image_bytes, manifest.shard_bytes
        figures[f"{kind}_ratio"] = manifest.image_bytes / manifest.shard_bytes
    # The same images at the resolution of the codes: shows what the codes save by themselves.
    small = sum(_reduced_bytes(path) for path in (root / "jpg").glob("*.jpg"))
    figures["reduced_jpg_bytes"], figures["reduced_jpg_ratio"] = small, small / figures["jpg_shard_bytes"]
    return figures


def _reduced_bytes(path: Path) -> int:
    import io

    from PIL import Image

    content = io.BytesIO()
    side = read_bundle(DEMO_FOLDER).vqgan.resolution
    Image.open(path).resize((side, side), Image.Resampling.LANCZOS).save(content, "JPEG", quality=JPEG_QUALITY)
    return len(content.getvalue())


@torch.inference_mode()
def paper_encode(count: int) -> float:
    """Seconds per image of 256 x 256 with a VQGAN of the paper's size, one at a time, on the CPU."""
    vqgan = Vqgan(PAPER_VQGAN).eval().to(memory_format=torch.channels_last)
    pixels = [np.asarray(draw(scene, SIDE)) for scene, _ in islice(scenes(0), count)]
    times = []
    for image in pixels:
        start = time.perf_counter()
        vqgan.encode(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def streaming(root: Path, rows: int) -> dict[str, Any]:
    """Rows per second: pyarrow alone, the stream without a tokenizer, and with the demo's tokenizer."""
    shards = root / "shards"
    shards.mkdir()
    captions = [caption for _, caption in islice(scenes(1), 1000)]
    chance = np.random.default_rng(0)
    for i in range(4):
        count = rows // 4
        codes = chance.integers(0, 8192, (count, 1024)).astype("<i2")
        table = {
            "caption": [captions[n % 1000] for n in range(count)], "NSFW": ["UNLIKELY"] * count,
            "original_width": [256] * count, "original_height": [256] * count, "code": [row.tobytes() for row in codes],
        }  # fmt: skip
        pq.write_table(pa.table(table), shards / f"{i}.parquet", compression="brotli", row_group_size=4096)
    size = sum(path.stat().st_size for path in shards.iterdir())
    demo = read_bundle(DEMO_FOLDER)
    words = TextTokenizer.from_file(demo.tokenizer_file, demo.dalle.text_seq_len, demo.pad_id)
    nothing = torch.zeros(64, 1, dtype=torch.long)
    speeds: dict[str, list[float]] = {"pyarrow": [], "stream": [], "stream_and_tokens": []}
    for _ in range(3):
        speeds["pyarrow"].append(rows / _seconds(lambda: _read_all(shards)))
        speeds["stream"].append(rows / _seconds(lambda: _stream_all(shards, rows, lambda captions: nothing)))
        speeds["stream_and_tokens"].append(rows / _seconds(lambda: _stream_all(shards, rows, words)))
    figures: dict[str, Any] = {f"{name}_rows_s": statistics.median(values) for name, values in speeds.items()}
    figures["paper_row_bytes"] = size / rows
    figures["stream_to_pyarrow"] = figures["stream_rows_s"] / figures["pyarrow_rows_s"]
    return figures


def _read_all(shards: Path) -> None:
    for path in sorted(shards.iterdir()):
        for batch in pq.ParquetFile(path).iter_batches(256, columns=list(Filters().columns), use_threads=False):
            assert batch.num_rows


def _stream_all(shards: Path, rows: int, tokenize: Any) -> None:
    stream = CodeStream(shards, tokenize=tokenize, batch_size=64, image_seq_len=1024, num_image_tokens=8192, seed=0)
    for _ in range(rows // 64):
        next(stream)
    stream.close()


def _seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['images']} scenes of {SIDE} x {SIDE}; codes of the shipped VQGAN (64 for 64 x 64) with captions")
    for kind, words in (("png", "PNG"), ("jpg", f"JPEG, quality {JPEG_QUALITY}")):
        print(
            f"  {words:<20} {report[f'{kind}_bytes'] / 1e6:8.2f} MB -> {report[f'{kind}_shard_bytes'] / 1e6:6.3f} MB: "
            f"{report[f'{kind}_ratio']:.1f}x less; encoded at {report[f'{kind}_encode_images_s']:.0f} images/s"
        )
    print(f"  the JPEGs at 64 x 64 would be {report['reduced_jpg_ratio']:.1f}x the shards")
    print(
        f"1,024 codes of 8,192, uniformly distributed, and a caption: {report['paper_row_bytes']:.0f} bytes per row; "
        f"{report['paper_png_ratio']:.1f}x less than these PNGs, {report['paper_jpg_ratio']:.1f}x less than these JPEGs"
    )
    print(f"a VQGAN of the paper's size: {report['paper_encode_s_per_image']:.2f} s per image on this CPU")
    print("rows of 1,024 codes per second, from shards on the disk")
    for name in ("pyarrow", "stream", "stream_and_tokens"):
        print(f"  {name.replace('_', ' '):<20} {report[f'{name}_rows_s']:10,.0f}")


if __name__ == "__main__":
    main()
