"""PNGs with their settings embedded, and files that only pretend to."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ttt import results
from ttt.errors import InvalidInput
from ttt.sampling.params import SamplingParams
from ttt.types import RankedImage

PARAMS = SamplingParams(candidates=8, keep=2, top_k=None, top_p=0.5, temperature=1.5, seed=2**63 - 1)
PROMPT = "ein rötlicher Kreis über 一个正方形\nsecond line"


def ranked(candidate: int = 5, score: float = 27.25) -> RankedImage:
    return RankedImage(Image.new("RGB", (16, 16), (candidate, 0, 0)), score, candidate, PARAMS.seed)


def png_with(settings_text: str) -> bytes:
    """A PNG with any settings."""
    import io

    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(results.KEY, settings_text)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def valid() -> dict[str, Any]:
    return results.settings(ranked(), prompt=PROMPT, params=PARAMS, model="demo")


def test_a_saved_image_restores_its_settings(tmp_path: Path):
    best = [ranked(5), ranked(2, 20.0)]
    paths = results.save(
        tmp_path / "new" / "out", best, [*best, ranked(0, -3.0)], prompt=PROMPT, params=PARAMS, model="demo"
    )
    assert [path.name for path in paths] == ["0001_candidate005.png", "0002_candidate002.png"]
    found = results.read_settings(paths[0])
    assert found == {"prompt": PROMPT, "params": PARAMS.to_dict(), "model": "demo", "candidate": 5, "score": 27.25}
    assert SamplingParams.from_dict(found["params"]) == PARAMS
    with Image.open(paths[1]) as image:
        assert image.getpixel((0, 0)) == (2, 0, 0)
        assert PROMPT in image.info["parameters"]
        assert "seed 9223372036854775807" in image.info["parameters"]


def test_record_and_archive(tmp_path: Path):
    best, ranking = [ranked(5)], [ranked(5), ranked(1, float("nan"))]
    results.save(tmp_path, best, ranking, prompt=PROMPT, params=PARAMS, model="demo")
    record = json.loads((tmp_path / results.RECORD).read_text(encoding="utf-8"))
    assert record["prompt"] == PROMPT
    assert record["params"]["seed"] == PARAMS.seed
    assert record["best"] == [{"file": "0001_candidate005.png", "candidate": 5, "score": 27.25}]
    assert record["ranking"] == [{"candidate": 5, "score": 27.25}, {"candidate": 1, "score": None}]
    with zipfile.ZipFile(tmp_path / results.ARCHIVE) as archive:
        assert archive.namelist() == ["0001_candidate005.png", "results.json"]
        assert archive.testzip() is None
        assert results.read_settings(archive.read("0001_candidate005.png"))["candidate"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "x" * 5000}, "at most 2,000"),
        ({"prompt": 7}, "must be a text"),
        ({"params": None}, "form"),
        ({"params": {"candidates": 10**9}}, "from 1 to 1024"),
        ({"params": {"temperature": "hot"}}, "temperature"),
        ({"params": {"sudo": 1}}, "no setting .sudo."),
        ({"model": ["demo"]}, "model"),
        ({"model": "m" * 1000}, "model"),
        ({"candidate": 8}, "from 0 to 7"),
        ({"candidate": True}, "candidate"),
        ({"score": "high"}, "score"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=message):
        results.read_settings(png_with(json.dumps({**valid(), **change})))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '"x"', "[" * 50_000, '{"params": {"temperature": NaN}}', "x" * 200_000, "1" * 9000]
)
def test_text_that_is_not_ours_is_refused(text: str):
    with pytest.raises(InvalidInput):
        results.read_settings(png_with(text))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_compressed_bomb_in_the_text_is_refused():
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    bomb = chunk(b"iTXt", results.KEY.encode() + b"\0\1\0\0\0" + zlib.compress(b"[" * (30 << 20), 9))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 52)) + chunk(b"IEND", b"")
    with pytest.raises(InvalidInput):
        results.read_settings(head + bomb + pixels)
    huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)) + pixels
    with pytest.raises(InvalidInput):
        results.read_settings(huge)


def test_images_without_settings_and_other_files_are_refused(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match="no settings"):
        results.read_settings(tmp_path / "plain.png")
    for name in ("photo.jpg", "empty.png", "missing.png", "nul\0.png"):
        with pytest.raises(InvalidInput):
            results.read_settings(tmp_path / name)


@settings(max_examples=150)
@given(st.data())
def test_no_damaged_file_gets_through_as_anything_but_invalid_or_intact(data: st.DataObject):
    good = results.png(ranked(), prompt=PROMPT, params=PARAMS, model="demo")
    position = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:position] + data.draw(st.binary(max_size=4)) + good[position + data.draw(st.integers(0, 3)) :]
    try:
        found = results.read_settings(damaged)
    except InvalidInput:
        return
    assert SamplingParams.from_dict(found["params"])
