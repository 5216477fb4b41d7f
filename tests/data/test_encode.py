"""Encoding: images of every kind of source become the codes that the VQGAN gives, once each, however often killed."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.support.tiny import write_tiny_bundle
from ttt.__main__ import app
from ttt.bundle import DEMO_FOLDER, Bundle, load_vqgan_from, read_bundle
from ttt.data.encode import EncodeSettings, encode
from ttt.data.encode_command import summary
from ttt.data.image_folder import Archives
from ttt.data.image_table import find_images
from ttt.data.manifest import Manifest, codebook_of
from ttt.data.pictures import MAX_PIXELS, Pair, prepare, square
from ttt.data.rows import COLUMNS, Filters
from ttt.data.shapes import draw
from ttt.data.shapes import stream as scenes
from ttt.data.stream import CodeStream
from ttt.errors import DataError, InvalidInput
from ttt.tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = EncodeSettings(shard_size=10, batch_size=4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def picture(number: int, size: tuple[int, int] = (24, 20), kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, kind)
    return content.getvalue()


def write_folder(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(picture(i))
        (folder / f"{i:03d}.txt").write_text(f"a red circle {i}\n")
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def captions(out: Path) -> list[str]:
    return [row["caption"] for row in rows_of(out)]


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


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
        pixels = torch.from_numpy(square(Image.open(folder / f"{i:03d}.png"), 8).copy())
        codes = vqgan.encode(pixels.permute(2, 0, 1)[None].float() / 255)[0]
        assert np.frombuffer(row["code"], "<i2").tolist() == codes.tolist()
        rest = {name: row[name] for name in COLUMNS[:-1]}
        assert rest == {"caption": f"a red circle {i}", "NSFW": "UNLIKELY", "original_width": 24, "original_height": 20}
    assert manifest == Manifest.from_json((tmp_path / "out" / "dataset.json").read_text(), "dataset.json")
    assert manifest.counts == {"rows": 23, "kept": 23}
    assert manifest.codebook == codebook_of(bundle.vqgan_file)
    assert manifest.image_bytes == sum(p.stat().st_size for p in folder.glob("*.png"))
    assert manifest.shard_bytes == sum(f.stat().st_size for f in files)
    assert manifest.complete


def test_a_table_cannot_point_to_files_of_this_machine(bundle: Bundle, tmp_path: Path) -> None:
    private = tmp_path / "private.png"
    private.write_bytes(picture(7))
    (tmp_path / "images").mkdir()
    images = [{"bytes": picture(1), "path": None}, {"bytes": None, "path": str(private)}]
    table = pa.table({"image": images, "caption": ["good one", "stolen"]})
    pq.write_table(table, tmp_path / "images" / "a.parquet")
    manifest = encode(find_images(str(tmp_path / "images")), tmp_path / "out", bundle)
    assert captions(tmp_path / "out") == ["good one"]
    assert manifest.counts == {"rows": 2, "kept": 1, "bad_image": 1}


def test_what_was_encoded_can_be_streamed(bundle: Bundle, tmp_path: Path) -> None:
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


def test_scenes_go_through_the_demo_and_come_back(tmp_path: Path) -> None:
    """Encoded, streamed and decoded again, they look as they did."""
    folder = tmp_path / "images"
    folder.mkdir()
    drawn = {}
    for i, (scene, _) in zip(range(6), scenes(5), strict=False):
        image = draw(scene, 128)
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"scene {i}")
        drawn[i] = torch.from_numpy(square(image, 64).copy()).permute(2, 0, 1).float() / 255
    demo = read_bundle(DEMO_FOLDER)
    encode(find_images(str(folder)), tmp_path / "out", demo)
    stream = CodeStream(
        tmp_path / "out", tokenize=lambda captions: torch.tensor([[int(c.split()[1])] for c in captions]),
        batch_size=6, image_seq_len=64, num_image_tokens=1024, seed=3,
    )  # fmt: skip
    batch = next(stream)
    stream.close()
    with torch.inference_mode():
        painted = load_vqgan_from(demo).decode(batch.codes)
    for number, image in zip(batch.text[:, 0].tolist(), painted, strict=True):
        errors = {i: float((image - original).square().mean()) for i, original in drawn.items()}
        assert min(errors, key=errors.__getitem__) == number
        assert errors[number] < 0.02


def kill_at_some_shard(command: list[str], out: Path, shards: int) -> None:
    """Start it, and kill it without warning as soon as so many shards are there."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.parquet"))) < shards and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_and_run_again_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 300)
    (folder / "150.txt").write_text("x")
    (folder / "299.png").write_bytes(b"broken")
    settings = EncodeSettings(shard_size=12, batch_size=5)
    encode(find_images(str(folder)), tmp_path / "undisturbed", bundle, settings)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ttt", "encode", str(folder), str(out), "--model", str(bundle.root),
               "--shard-size", "12", "--batch-size", "5", "--device", "cpu"]  # fmt: skip
    kill_at_some_shard(command, out, 2)
    there = len(list(out.glob("*.parquet")))
    assert 2 <= there < 25
    assert not json.loads((out / "dataset.json").read_text())["complete"]
    (out / ".00007.parquet-1.partial").write_bytes(b"left by a run that was killed")
    encode(find_images(str(folder)), out, bundle, settings)
    assert content(out) == content(tmp_path / "undisturbed")
    assert json.loads((out / "dataset.json").read_text())["counts"] == {
        "rows": 300, "kept": 298, "short_caption": 1, "bad_image": 1
    }  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "archives", "parquet"])
def test_stopped_anywhere_and_run_again_gives_the_same_bytes(bundle: Bundle, tmp_path: Path, source: str) -> None:
    images = {"folder": lambda p: write_folder(p, 31), "archives": write_archives, "parquet": write_parquet}[source](
        tmp_path / "images"
    )
    encode(find_images(str(images)), tmp_path / "undisturbed", bundle, SETTINGS)
    for stop in (1, 3, 5, 8):
        out = tmp_path / f"out{stop}"
        calls = iter(range(stop))

        def report(counts: object, shards: int, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            encode(find_images(str(images)), out, bundle, SETTINGS, report=report)
        encode(find_images(str(images)), out, bundle, SETTINGS)
        assert rows_of(out) == rows_of(tmp_path / "undisturbed")
        if source != "parquet":  # the place that `datasets` writes down has several spellings
            assert content(out) == content(tmp_path / "undisturbed")
        counts = [json.loads((o / "dataset.json").read_text())["counts"] for o in (out, tmp_path / "undisturbed")]
        assert counts[0] == counts[1]
    assert len(captions(tmp_path / "undisturbed")) == 31


def write_archives(folder: Path) -> Path:
    """31 pairs in two archives."""
    folder.mkdir()
    for name, numbers in (("0.tar", range(17)), ("1.tar", range(17, 31))):
        with tarfile.open(folder / name, "w") as tar:
            for i in numbers:
                add(tar, f"{i:03d}.png", picture(i))
                add(tar, f"{i:03d}.txt", f"a red circle {i}".encode())
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_parquet(folder: Path) -> Path:
    """31 pairs in two files, as `datasets` stores images."""
    folder.mkdir()
    for name, numbers in (("0.parquet", range(17)), ("1.parquet", range(17, 31))):
        images = [{"bytes": picture(i), "path": f"{i}.png"} for i in numbers]
        texts = [f"a red circle {i}" for i in numbers]
        pq.write_table(pa.table({"image": images, "text": texts}), folder / name, row_group_size=5)
    return folder


def test_every_kind_of_source_gives_the_same_codes(bundle: Bundle, tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / "f", 31), write_archives(tmp_path / "a"), write_parquet(tmp_path / "p")]
    for i, source in enumerate(sources):
        encode(find_images(str(source)), tmp_path / f"out{i}", bundle, SETTINGS)
    first, *others = (rows_of(tmp_path / f"out{i}") for i in range(3))
    assert len(first) == 31
    for other in others:
        assert other == first


def test_captions_of_a_folder_may_stand_in_metadata(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/c.jpg"):
        (folder / name).write_bytes(picture(1, kind="JPEG" if name.endswith("jpg") else "PNG"))
    (folder / "metadata.csv").write_text('file_name,caption,NSFW\na.png,"one, two",UNLIKELY\nb.png,three,NSFW\n')
    lines = [{"file_name": "c.jpg", "text": "four", "original_width": 500, "original_height": 400},
             {"file_name": "../../../etc/passwd", "text": "five"}]  # fmt: skip
    (folder / "deep" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = encode(find_images(str(folder)), tmp_path / "out", bundle)
    assert [(r["caption"], r["original_width"]) for r in rows_of(tmp_path / "out")] == [("one, two", 24), ("four", 500)]
    assert manifest.counts == {"rows": 4, "kept": 2, "nsfw": 1, "bad_image": 1}
    (folder / "metadata.csv").write_text("caption\nno name\n")
    with pytest.raises(InvalidInput, match="no file_name"):
        find_images(str(folder))


def test_an_archive_never_runs_code_and_bad_members_are_counted(bundle: Bundle, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for ending in ("pkl", "pyd", "pth"):
            add(tar, f"bomb-{ending}.png", picture(1))
            add(tar, f"bomb-{ending}.txt", b"a caption")
            add(tar, f"bomb-{ending}.{ending}", pickle.dumps(Bomb()))
        add(tar, "good.json", json.dumps({"caption": "from json", "NSFW": "UNLIKELY", "original_width": 90}).encode())
        add(tar, "good.jpg", picture(2, kind="JPEG"))
        add(tar, "unsafe.json", json.dumps({"caption": "from json", "NSFW": "UNSURE"}).encode())
        add(tar, "unsafe.jpg", picture(2, kind="JPEG"))
        add(tar, "no-image.txt", b"a caption alone")
        add(tar, "no-caption.png", picture(3))
        add(tar, "bad-json.json", b"[" * 100_000)
        add(tar, "bad-json.png", picture(3))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    manifest = encode(find_images(str(tmp_path / "a.tar")), tmp_path / "out", bundle)
    assert not (tmp_path / "ran").exists()
    assert captions(tmp_path / "out") == ["from json"]
    assert manifest.counts == {
        "rows": 8, "kept": 1, "pickle": 3, "nsfw": 1, "bad_image": 1, "bad_caption": 2
    }  # fmt: skip


def test_a_broken_archive_gives_what_came_before_the_break(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_archives(tmp_path / "a")
    whole = (folder / "0.tar").read_bytes()
    (folder / "0.tar").write_bytes(whole[: len(whole) // 2])
    (folder / "2.tar").write_bytes(b"no archive")
    manifest = encode(find_images(str(folder)), tmp_path / "out", bundle, SETTINGS)
    found = captions(tmp_path / "out")
    assert "a red circle 0" in found
    assert "a red circle 16" not in found
    assert found[-14:] == [f"a red circle {i}" for i in range(17, 31)]
    assert manifest.counts["broken_archive"] == 2


def bad_pictures() -> dict[str, bytes]:
    whole = picture(0, (64, 64))
    header = b"\x89PNG\r\n\x1a\n" + whole[8:16] + (60_000).to_bytes(4, "big") * 2
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    return {"empty": b"", "text": b"no picture", "truncated": whole[: len(whole) // 2], "bomb": header + whole[24:],
            "eps": eps, "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}  # fmt: skip


@pytest.mark.parametrize("name", bad_pictures())
def test_images_that_cannot_be_read_are_one_kind(name: str) -> None:
    assert prepare(Pair("x", bad_pictures()[name], "a caption"), 8, Filters(), "UNLIKELY") == "bad_image"


def test_a_decompression_bomb_is_never_unpacked() -> None:
    side = int(MAX_PIXELS**0.5) + 100
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    assert len(content.getvalue()) < 100_000
    with pytest.warns(Image.DecompressionBombWarning):
        assert prepare(Pair("x", content.getvalue(), "a caption"), 8, Filters(), "UNLIKELY") == "bad_image"


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        (Pair("x", picture(0), "ab"), "short_caption"),
        (Pair("x", picture(0), "   ab  "), "short_caption"),
        (Pair("x", picture(0), None), "bad_caption"),
        (Pair("x", picture(0), b"\xff\xfe\xfd"), "bad_caption"),
        (Pair("x", picture(0), "\ud800 half"), "bad_caption"),
        (Pair("x", picture(0), "a caption", nsfw="NSFW"), "nsfw"),
        (Pair("x", picture(0, (41, 20)), "a caption"), "extreme_aspect"),
        (Pair("x", picture(0, (20, 41)), "a caption"), "extreme_aspect"),
        (Pair("x", picture(0), "a caption", original_width=100, original_height=20), "extreme_aspect"),
        (Pair("x", None, "a caption"), "bad_image"),
    ],
)
def test_what_the_run_skipped_is_skipped(pair: Pair, kind: str) -> None:
    assert prepare(pair, 8, Filters(), "UNLIKELY") == kind


def test_any_bytes_are_a_picture_or_a_kind() -> None:
    chance = random.Random(0)
    whole = {kind: picture(0, (32, 32), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")}
    for content in whole.values():
        for _ in range(40):
            broken = bytearray(content)
            for _ in range(chance.randint(1, 8)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            found = prepare(Pair("x", bytes(broken), "a caption"), 8, Filters(), "UNLIKELY")
            assert found in ("bad_image", "extreme_aspect") or found.pixels.shape == (8, 8, 3)  # type: ignore[union-attr]


def test_the_middle_square_is_taken_upright_and_on_white() -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (10, 0, 30, 20))
    assert (square(image, 8) == (0, 0, 255)).all()
    tall = Image.new("RGB", (10, 20), "red")
    tall.paste("blue", (0, 5, 10, 15))
    assert (square(tall, 4) == (0, 0, 255)).all()
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (square(clear, 8) == 255).all()
    turned = Image.new("RGB", (20, 20), "red")
    turned.paste("blue", (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    content = io.BytesIO()
    turned.save(content, "PNG", exif=exif)
    found = square(Image.open(io.BytesIO(content.getvalue())), 4)
    assert (found[0] == (255, 0, 0)).all()
    assert (found[3] == (0, 0, 255)).all()


def test_a_folder_of_another_run_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "images", 12), tmp_path / "out"
    encode(find_images(str(folder)), out, bundle, SETTINGS)
    before = content(out)
    with pytest.raises(InvalidInput, match="shard_size '10', and this run has '11'"):
        encode(find_images(str(folder)), out, bundle, EncodeSettings(shard_size=11))
    with pytest.raises(InvalidInput, match="min_caption"):
        encode(find_images(str(folder)), out, bundle, EncodeSettings(shard_size=10, filters=Filters(min_caption=5)))
    with pytest.raises(InvalidInput, match="begun with model 'tiny'"):
        encode(find_images(str(folder)), out, read_bundle(DEMO_FOLDER), SETTINGS)
    (folder / "new.png").write_bytes(picture(99))
    with pytest.raises(InvalidInput, match="begun with images"):
        encode(find_images(str(folder)), out, bundle, SETTINGS)
    with pytest.raises(InvalidInput, match="not made by `ttt encode`"):
        encode(find_images(str(folder)), folder, bundle, SETTINGS)
    with pytest.raises(InvalidInput, match="is a file"):
        encode(find_images(str(folder)), out / "00000.parquet", bundle, SETTINGS)
    assert content(out) == before


def test_a_finished_folder_is_left_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "images", 12), tmp_path / "out"
    manifest = encode(find_images(str(folder)), out, bundle, SETTINGS)
    times = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert encode(find_images(str(folder)), out, bundle, SETTINGS) == manifest
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == times


def test_a_damaged_folder_is_told(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "images", 25), tmp_path / "out"
    encode(find_images(str(folder)), out, bundle, SETTINGS)
    unfinished = json.loads((out / "dataset.json").read_text()) | {"complete": False}
    (out / "dataset.json").write_text(json.dumps(unfinished))
    last = out / "00002.parquet"
    whole = last.read_bytes()
    last.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"00002\.parquet is broken; delete it"):
        encode(find_images(str(folder)), out, bundle, SETTINGS)
    last.unlink()
    encode(find_images(str(folder)), out, bundle, SETTINGS)
    assert last.read_bytes() == whole
    (out / "00001.parquet").unlink()
    with pytest.raises(DataError, match="without a gap"):
        encode(find_images(str(folder)), out, bundle, SETTINGS)


def test_images_that_are_all_unfit_are_an_error(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 3)
    with pytest.raises(DataError, match=r"none of the images could be used: rows 3, short_caption 3"):
        encode(find_images(str(folder)), tmp_path / "out", bundle, EncodeSettings(filters=Filters(min_caption=99)))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: p.mkdir(), "no images, archives or Parquet"),
        (lambda p: None, "not there"),
        (lambda p: (p.mkdir(), (p / "a.parquet").write_bytes(b"no")), "cannot be read"),
        (lambda p: (p.mkdir(), pq.write_table(pa.table({"URL": ["http://x/y.jpg"], "TEXT": ["t"]}), p / "a.parquet")),
         "no image column; the columns are URL, TEXT"),
        (lambda p: (p.mkdir(), pq.write_table(pa.table({"image": [b"x"], "words": ["t"]}), p / "a.parquet")),
         "no caption column"),
    ],
)  # fmt: skip
def test_images_that_are_not_there_are_told(tmp_path: Path, make: Any, told: str) -> None:
    make(tmp_path / "images")
    with pytest.raises((InvalidInput, DataError), match=told):
        find_images(str(tmp_path / "images"))


def test_archives_stay_small_in_memory(tmp_path: Path) -> None:
    """The list of members that tarfile keeps is dropped: a set has millions."""
    source = Archives((write_archives(tmp_path / "a") / "0.tar",))
    assert [pair.name for pair, _ in source.pairs(None)] == [f"{i:03d}" for i in range(17)]
    assert [pair.name for pair, _ in source.pairs((0, 15))] == ["015", "016"]


def test_the_command_says_what_it_did(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 12)
    (folder / "003.txt").write_text("?")
    arguments = ["encode", str(folder), str(tmp_path / "out"), "--model", str(bundle.root), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "11 pairs in 1 shards" in result.stdout
    assert "skipped 1 of 12: caption too short: 1" in result.stdout
    manifest = Manifest.from_json((tmp_path / "out" / "dataset.json").read_text(), "")
    assert f"{manifest.image_bytes / manifest.shard_bytes:.1f}x less to download" in result.stdout
    assert summary(manifest, tmp_path / "out") + "\n" == result.stdout
    wrong = CliRunner().invoke(app, [*arguments, "--shard-size", "7"])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("Error: ")
    assert "name a new folder" in wrong.stderr
