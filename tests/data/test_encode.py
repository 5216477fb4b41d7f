"""Encoding writes the codes of the VQGAN in the published columns, and they can be streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.support.images import (
    SETTINGS,
    rows_of,
    write_folder,
)
from ttt.__main__ import app
from ttt.bundle import DEMO_FOLDER, Bundle, read_bundle
from ttt.bundle.weights import load_vqgan_from
from ttt.data.encode import encode
from ttt.data.encode_command import summary
from ttt.data.filters import COLUMNS, EncodeSettings
from ttt.data.image_sources import find_images
from ttt.data.images import crop_square
from ttt.data.manifest import DatasetManifest, codebook_of
from ttt.data.shapes import draw
from ttt.data.shapes import stream as scenes
from ttt.data.stream import CodeStream
from ttt.errors import DataError, InvalidInput
from ttt.model.vqgan import Vqgan
from ttt.tokenizer import TextTokenizer


def test_shards_hold_the_codes_of_the_images_in_the_published_columns(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 23)
    manifest = encode(find_images(str(folder)), tmp_path / "out", bundle, SETTINGS)
    files = [tmp_path / "out" / name for name in manifest.shards]
    assert [pq.read_metadata(f).num_rows for f in files] == [10, 10, 3]
    schema = pq.read_schema(files[0])
    assert tuple(schema.names) == COLUMNS
    assert schema.field("code").type == pa.binary()
    assert pq.read_metadata(files[0]).row_group(0).column(4).compression == "BROTLI"
    vqgan = load_vqgan_from(bundle)
    for i, row in enumerate(rows_of(tmp_path / "out")):
        pixels = torch.from_numpy(crop_square(Image.open(folder / f"{i:03d}.png"), 8).copy())
        codes = vqgan.encode(pixels.permute(2, 0, 1)[None].float() / 255)[0]
        assert np.frombuffer(row["code"], "<i2").tolist() == codes.tolist()
        rest = {name: row[name] for name in COLUMNS[:-1]}
        assert rest == {"caption": f"a red circle {i}", "NSFW": "UNLIKELY", "original_width": 24, "original_height": 20}
    assert manifest == DatasetManifest.from_json((tmp_path / "out" / "dataset.json").read_text(), "dataset.json")
    assert manifest.counts == {"rows": 23, "kept": 23}
    assert manifest.codebook == codebook_of(bundle.vqgan_file)
    assert manifest.image_bytes == sum(p.stat().st_size for p in folder.glob("*.png"))
    assert manifest.shard_bytes == sum(f.stat().st_size for f in files)
    assert manifest.complete


def test_encoded_images_can_be_streamed(bundle: Bundle, tmp_path: Path) -> None:
    encode(find_images(str(write_folder(tmp_path / "images", 23))), tmp_path / "out", bundle, SETTINGS)
    tokenize = TextTokenizer.from_file(bundle.tokenizer_file, bundle.dalle.text_seq_len, bundle.pad_id)
    sizes = {"image_seq_len": bundle.dalle.image_seq_len, "num_image_tokens": bundle.dalle.num_image_tokens}
    stream = CodeStream(
        tmp_path / "out", tokenize=tokenize, batch_size=23, seed=0, codebook=codebook_of(bundle.vqgan_file), **sizes
    )
    batch = next(stream)
    stream.close()
    assert batch.text.shape == (23, bundle.dalle.text_seq_len)
    written = sorted(np.frombuffer(row["code"], "<i2").tolist() for row in rows_of(tmp_path / "out"))
    assert sorted(batch.codes.tolist()) == written
    other = CodeStream(tmp_path / "out", tokenize=tokenize, batch_size=1, seed=0, codebook="0" * 64, **sizes)
    with pytest.raises(DataError, match="another VQGAN"):
        next(other)


def test_scenes_encoded_by_the_demo_can_be_recognised_after_decoding(tmp_path: Path) -> None:
    """Encoded, streamed and decoded, each scene is closest to its original."""
    folder = tmp_path / "images"
    folder.mkdir()
    drawn = {}
    for i, (scene, _) in zip(range(6), scenes(5), strict=False):
        image = draw(scene, 128)
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"scene {i}")
        drawn[i] = torch.from_numpy(crop_square(image, 64).copy()).permute(2, 0, 1).float() / 255
    demo = read_bundle(DEMO_FOLDER)
    encode(find_images(str(folder)), tmp_path / "out", demo)
    stream = CodeStream(
        tmp_path / "out", tokenize=lambda captions: torch.tensor([[int(c.split()[1])] for c in captions]),
        batch_size=6, image_seq_len=64, num_image_tokens=1024, seed=3,
    )  # fmt: skip
    batch = next(stream)
    stream.close()
    with torch.inference_mode():
        decoded = load_vqgan_from(demo).decode(batch.codes)
    for number, image in zip(batch.text[:, 0].tolist(), decoded, strict=True):
        errors = {i: float((image - original).square().mean()) for i, original in drawn.items()}
        assert min(errors, key=errors.__getitem__) == number
        assert errors[number] < 0.02


def test_it_is_an_error_if_no_image_can_be_used(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 3)
    with pytest.raises(DataError, match=r"none of the images could be used: caption too short: 3"):
        encode(find_images(str(folder)), tmp_path / "out", bundle, EncodeSettings(min_caption=99))


@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory", None])
def test_running_out_of_memory_names_the_batch_size(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str | None
) -> None:
    def fail(self: Vqgan, images: torch.Tensor) -> torch.Tensor:
        raise MemoryError if message is None else RuntimeError(message)

    monkeypatch.setattr(Vqgan, "encode", fail)
    with pytest.raises(InvalidInput, match="batches of 4 images do not fit in the memory of cpu.*smaller --batch-size"):
        encode(find_images(str(write_folder(tmp_path / "images", 3))), tmp_path / "out", bundle, SETTINGS)


def test_the_command_prints_a_summary(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 12)
    (folder / "003.txt").write_text("?")
    arguments = ["encode", str(folder), str(tmp_path / "out"), "--model", str(bundle.root), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "11 pairs in 1 shards" in result.stdout
    assert "skipped 1 of 12: caption too short: 1" in result.stdout
    manifest = DatasetManifest.from_json((tmp_path / "out" / "dataset.json").read_text(), "")
    assert f"{manifest.image_bytes / manifest.shard_bytes:.1f}x less to download" in result.stdout
    assert summary(manifest, tmp_path / "out") + "\n" == result.stdout
    wrong = CliRunner().invoke(app, [*arguments, "--shard-size", "7"])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("Error: ")
    assert "choose a new folder" in wrong.stderr
