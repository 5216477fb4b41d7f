"""Images and captions as people really keep them: written by Excel, on Windows, by img2dataset, with 16 bits ..."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.images import SETTINGS, add_member, captions, content, image_bytes
from ttt.__main__ import app
from ttt.bundle import Bundle
from ttt.data.encode import encode
from ttt.data.filters import Filters
from ttt.data.image_sources import find_images
from ttt.data.images import Pair, prepare_image
from ttt.errors import DataError, InvalidInput

GRADIENT = np.linspace(0, 65535, 96 * 96).reshape(96, 96)
"""All levels of gray, from black to white."""


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gray(content: bytes) -> Any:
    """The pixels of the prepared image [8, 8, 3], or the reason for which it is skipped."""
    prepared = prepare_image(Pair("x", content, "a caption"), 8, Filters(), "UNLIKELY")
    return prepared if isinstance(prepared, str) else prepared.pixels


UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3
EIGHT_BITS = gray(saved(Image.fromarray((GRADIENT / 257).astype(np.uint8)), "PNG"))


def tiff(values: np.ndarray, bits: int, sample_format: int, *, photometric: int = 1) -> bytes:
    """A gray TIFF of any depth, which Pillow cannot write."""
    pixels = values.tobytes()
    height, width = values.shape
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1),
        (278, 4, height), (279, 4, len(pixels)), (339, 3, sample_format),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory + bytes(4)


@pytest.mark.parametrize(
    "content",
    {
        "16-bit PNG": saved(Image.fromarray(GRADIENT.astype(np.uint16)), "PNG"),
        "16-bit TIFF": saved(Image.fromarray(GRADIENT.astype(np.uint16)), "TIFF"),
        "big-endian TIFF": saved(Image.frombytes("I;16B", (96, 96), GRADIENT.astype(">u2").tobytes()), "TIFF"),
        "32-bit TIFF of 16 bits": tiff(GRADIENT.astype("<i4"), 32, 2),
        "32-bit TIFF of 8 bits": tiff((GRADIENT / 257).astype("<i4"), 32, 2),
        "signed 16-bit TIFF": tiff((GRADIENT / 2).astype("<i2"), 16, 2),
        "unsigned 32-bit TIFF": tiff(GRADIENT.astype("<u4"), 32, 1),
        "float TIFF from 0 to 1": saved(Image.fromarray((GRADIENT / 65535).astype(np.float32)), "TIFF"),
        "white is zero": tiff((65535 - GRADIENT).astype("<u2"), 16, 1, photometric=0),
        "upside down": saved(Image.fromarray(GRADIENT[::-1, ::-1].astype(np.uint16)), "PNG", exif=UPSIDE_DOWN),
    }.items(),
    ids=lambda case: case[0],
)  # fmt: skip
def test_images_of_more_than_8_bits_are_scaled_and_not_clipped(content: tuple[str, bytes]) -> None:
    pixels = gray(content[1])
    assert not isinstance(pixels, str), pixels
    assert np.abs(pixels.astype(int) - EIGHT_BITS.astype(int)).max() <= 1
    assert 126 <= pixels.mean() <= 129


def test_16_bits_in_three_channels_are_scaled_too() -> None:
    rgb = np.repeat(GRADIENT.astype(">u2")[..., None], 3, axis=2)
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 96, 96, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    assert np.abs(gray(png).astype(int) - EIGHT_BITS.astype(int)).max() <= 1


def test_12_bits_are_scaled_to_their_own_white() -> None:
    values = (GRADIENT / 16).astype(np.uint32).reshape(-1, 2)
    # Two samples of 12 bits in three bytes, the first one in the high bits.
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], 1)
    image = tiff(packed.astype(np.uint8).reshape(96, 144), 12, 1)
    image = image.replace(struct.pack("<HHII", 256, 4, 1, 144), struct.pack("<HHII", 256, 4, 1, 96))
    assert np.abs(gray(image).astype(int) - EIGHT_BITS.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "values",
    [GRADIENT * 2, GRADIENT - 9, GRADIENT / 65535 * 1.5, np.full((96, 96), np.nan), np.where(GRADIENT > 9, 1, np.inf)],
    ids=["17 bits", "below 0", "above 1", "NaN", "infinite"],
)
def test_images_without_a_known_white_are_skipped_and_counted(values: np.ndarray) -> None:
    is_integer = np.isfinite(values).all() and values.max() > 2
    image = tiff(values.astype("<i4"), 32, 2) if is_integer else tiff(values.astype("<f4"), 32, 3)
    assert gray(image) == "bad_image"


def test_the_transparent_value_of_a_16_bit_image_becomes_white() -> None:
    values = np.full((96, 96), 1000, np.uint16)
    values[:48] = 7
    pixels = gray(saved(Image.fromarray(values), "PNG", transparency=7))
    assert (pixels[:3] >= 254).all() and (pixels[6:] <= 5).all()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt"])
def test_a_png_with_much_text_is_used(kind: bytes) -> None:
    """Image generators store their workflow there. Pillow refuses to unpack more than 1 MB of it."""
    text = b"x" * (3 << 20)
    data = {b"zTXt": b"workflow\0\0" + zlib.compress(text), b"tEXt": b"workflow\0" + text,
            b"iTXt": b"workflow\0\1\0\0\0" + zlib.compress(text)}[kind]  # fmt: skip
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    plain = image_bytes(5)
    header = 8 + 25  # the signature and IHDR
    assert (gray(plain[:header] + chunk + plain[header:]) == gray(plain)).all()
    assert (gray(plain[:-12] + chunk + plain[-12:]) == gray(plain)).all(), "text after the pixels"
    assert gray(plain[:header] + chunk[:1000]) == "bad_image"


def used(source: Path | str, **options: Any) -> list[str]:
    """Captions of the pairs that would be encoded."""
    prepared = [
        prepare_image(pair, 8, Filters(), "UNLIKELY") for pair, _ in find_images(str(source), **options).pairs(None)
    ]
    return [item if isinstance(item, str) else item.caption for item in prepared]


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


JPEG = image_bytes(1, kind="JPEG")
CSV = "file_name,caption\n0.jpg,a red flag\n1.jpg,a blue flag\n"
LINES = '{"file_name": "0.jpg", "text": "a red flag"}\n{"file_name": "1.jpg", "text": "a blue flag"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "\ufeff" + CSV),
        ("metadata.csv", CSV.encode("utf-16")),
        ("metadata.csv", CSV.replace("\n", "\r\n") + "\r\n\r\n"),
        ("metadata.csv", CSV.replace(",", ";")),
        ("metadata.csv", CSV.replace(",", "\t")),
        ("metadata.csv", CSV.replace("0.jpg", '"0.jpg"').replace("1.jpg", "./1.jpg")),
        ("metadata.jsonl", "\ufeff" + LINES),
        ("metadata.jsonl", ("\ufeff" + LINES).encode("utf-16-le")),
        ("metadata.jsonl", LINES.replace("\n", "\r\n\r\n") + "  \n"),
    ],
)
def test_metadata_files_are_read_as_the_programs_of_windows_write_them(tmp_path: Path, name: str, content: Any) -> None:
    folder = write(tmp_path, {"0.jpg": JPEG, "1.jpg": JPEG, name: content})
    assert used(folder) == ["a red flag", "a blue flag"]


def test_paths_of_windows_in_metadata_are_understood(tmp_path: Path) -> None:
    files = {"images/0.jpg": JPEG, "images/1.jpg": JPEG}
    csv = CSV.replace("0.jpg", "images\\0.jpg").replace("1.jpg", "images\\1.jpg")
    lines = LINES.replace("0.jpg", r"images\\0.jpg").replace("1.jpg", r"images\\1.jpg")
    for name, text in (("metadata.csv", csv), ("metadata.jsonl", lines)):
        assert used(write(tmp_path / name, files | {name: text})) == ["a red flag", "a blue flag"]


def test_a_broken_line_of_metadata_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"0.jpg": JPEG, "metadata.jsonl": LINES + "\n{broken\n"})
    with pytest.raises(DataError, match=r"metadata\.jsonl cannot be read: line 4: "):
        find_images(str(folder))
    write(tmp_path, {"metadata.jsonl": LINES + '{"image": "2.jpg"}\n'})
    with pytest.raises(InvalidInput, match=r"metadata\.jsonl, line 3: there is no file_name.*found: image"):
        find_images(str(folder))
    write(tmp_path, {"metadata.jsonl": b"\xff\xf0\x00"})
    with pytest.raises(DataError, match="not UTF-8; save it as UTF-8"):
        find_images(str(folder))


@pytest.mark.parametrize("text", ["\ufeffa red flag", "a red flag\r\n", ("\ufeff" + "a red flag").encode("utf-16-le"),
                                  "\n\n  a red flag \na flag of two colours\n", "a red flag\rsecond"])  # fmt: skip
def test_a_caption_file_gives_one_clean_caption(tmp_path: Path, text: str | bytes) -> None:
    """Without byte-order mark, and of several lines (as DALLE-pytorch reads them) the first that is not empty."""
    assert used(write(tmp_path, {"cat.jpg": JPEG, "cat.txt": text})) == ["a red flag"]


@pytest.mark.parametrize(
    "files",
    [
        {"A.JPG": JPEG, "A.TXT": "a red flag"},
        {"A.JPG": JPEG, "A.Txt": "a red flag"},
        {"a.jpg": JPEG, "a.jpg.txt": "a red flag"},
        {"a.jfif": JPEG, "a.txt": "a red flag"},
        {"a.b.jpe": JPEG, "a.b.caption": "a red flag"},
        {"a.jpg": JPEG, "a.json": '{"caption": "a red flag"}'},
        {"a.jpg": JPEG, "a.json": '\ufeff{"captions": ["a red flag", "another"]}'},
        {"a.jpg": JPEG, "metadata.jsonl": '{"file_name": "a.jpg", "text": ["", "a red flag", "another"]}'},
        {"a.jpg": JPEG, "metadata.jsonl": '{"image_file_name": "a.jpg", "text": "a red flag"}'},
        {"a.jpg": JPEG, "a.txt": "a red flag", "metadata.csv": "file_name,NSFW\na.jpg,UNLIKELY\n"},
        {"cafe\u0301.jpg": JPEG, "metadata.csv": "file_name,text\ncaf\u00e9.jpg,a red flag\n"},
    ],
    ids=lambda files: " ".join(files),
)
def test_captions_are_found_wherever_people_put_them(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    assert used(write(tmp_path, files)) == ["a red flag"]


def test_files_that_are_not_read_are_reported(tmp_path: Path) -> None:
    folder = write(tmp_path, {"0.jpg": JPEG, "0.txt": "a red flag", "1.heic": b"x", "2.HEIC": b"x", "3.svg": b"<svg/>"})
    source = find_images(str(folder))
    assert source.warnings() == ["files left out: 2 .heic, 1 .svg"]
    for name in ("photo.jpg", "photos.zip"):
        write(tmp_path, {name: b"x"})
        with pytest.raises(InvalidInput, match=f"{name} is neither a .tar nor a .parquet file; allowed"):
            find_images(str(tmp_path / name))


def test_a_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path, {"a.tgz": b"x", "b.tgz": b"x", "notes.pdf": b"x"})
    with pytest.raises(
        InvalidInput, match=r"no images, archives or Parquet files \(files left out: 2 \.tgz, 1 \.pdf\)"
    ):
        find_images(str(tmp_path))


def img2dataset(folder: Path) -> Path:
    """What its output format `files` looks like: images, captions and metadata, and a table of all of them."""
    table = pa.table({"caption": ["a red flag", "a blue flag"], "url": ["http://x/0", "http://x/1"], "key": ["0", "1"]})
    pq.write_table(table, folder / "00000.parquet")
    files: dict[str, bytes | str] = {"00000_stats.json": '{"count": 3}'}
    for i, caption in enumerate(("a red flag", "a blue flag")):
        metadata = {"caption": caption, "original_width": 300 + i, "original_height": 200, "NSFW": "UNLIKELY"}
        files |= {f"00000/{i:09}.jpg": JPEG, f"00000/{i:09}.txt": caption, f"00000/{i:09}.json": json.dumps(metadata)}
    return write(folder, files | {"00000/000000002.json": '{"status": "failed"}'})


def test_the_folders_of_img2dataset_are_folders_of_images(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path)
    assert used(folder) == ["a red flag", "a blue flag"]
    pairs = [pair for pair, _ in find_images(str(folder)).pairs(None)]
    assert [(pair.original_width, pair.nsfw) for pair in pairs] == [(300, "UNLIKELY"), (301, "UNLIKELY")]


def test_metadata_may_be_a_parquet_file(tmp_path: Path) -> None:
    write(tmp_path, {"0.jpg": JPEG, "deep/1.jpg": JPEG})
    pq.write_table(pa.table({"file_name": ["0.jpg", "deep\\1.jpg"], "text": ["a red flag", "a blue flag"],
                             "score": [0.5, 1.0]}), tmp_path / "metadata.parquet")  # fmt: skip
    assert used(tmp_path) == ["a red flag", "a blue flag"]
    (tmp_path / "metadata.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"metadata\.parquet cannot be read"):
        find_images(str(tmp_path))


def table(folder: Path, name: str, **columns: Any) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": [{"bytes": JPEG, "path": None}] * 2} | columns), folder / name)


def test_a_broken_parquet_file_is_counted_and_named(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    table(folder, "a.parquet", text=["one", "two"])
    table(folder, "c.parquet", text=["five", "six"])
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes()[:300])
    table(folder, "d.parquet", words=["no", "caption"])
    manifest = encode(find_images(str(folder)), tmp_path / "out", bundle, SETTINGS)
    assert captions(tmp_path / "out") == ["one", "two", "five", "six"]
    assert manifest.counts == {"rows": 6, "kept": 4, "broken_table": 2}
    result = CliRunner().invoke(app, ["encode", str(folder), str(tmp_path / "cli"), "--model", str(bundle.root)])
    assert "Parquet files that are broken or lack the columns: 2" in result.stdout
    assert f"cannot be read: {folder / 'b.parquet'}" in result.stdout


def test_the_rows_before_the_break_of_a_parquet_file_are_kept(tmp_path: Path) -> None:
    images = [{"bytes": image_bytes(i), "path": None} for i in range(30)]
    pq.write_table(pa.table({"image": images, "text": [f"row {i}" for i in range(30)]}), tmp_path / "a.parquet",
                   row_group_size=10)  # fmt: skip
    table(tmp_path, "b.parquet", text=["five", "six"])
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(1)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    start, size = group.column(0).data_page_offset, group.column(0).total_compressed_size
    data[start : start + size] = bytes(size)
    (tmp_path / "a.parquet").write_bytes(data)
    assert used(tmp_path) == [*(f"row {i}" for i in range(10)), "broken_table", "five", "six"]


def test_broken_files_and_other_columns_do_not_end_a_hub_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    table(tmp_path, "a.parquet", text=["one", "two"], score=[1, 2])
    (tmp_path / "b.parquet").write_bytes(b"broken")
    table(tmp_path, "c.parquet", text=["five", "six"], score=[0.5, 1.5])
    builder, files = datasets.load_dataset_builder, [str(tmp_path / f"{name}.parquet") for name in "abc"]

    def local(name: str, revision: str | None, **options: Any) -> Any:
        return builder("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    assert used("owner/set") == ["one", "two", "five", "six"]
    source = find_images("owner/set")
    position = json.loads(json.dumps(list(source.pairs(None))[1][1]))
    assert [pair.caption for pair, _ in source.pairs(position)] == ["five", "six"]


def test_columns_that_are_not_needed_may_differ_between_files(tmp_path: Path) -> None:
    table(tmp_path, "a.parquet", text=["one", "two"], score=[1, 2])
    table(tmp_path, "b.parquet", text=["five", "six"], score=[0.5, 1.5])
    table(tmp_path, "c.parquet", text=pa.array(["seven", None]).dictionary_encode(), score=["x", "y"])
    assert used(tmp_path) == ["one", "two", "five", "six", "seven", "bad_caption"]


def test_invalid_text_in_a_table_costs_one_row(tmp_path: Path) -> None:
    text = pa.array([b"one", b"\xff\xf0"])
    table(tmp_path, "a.parquet", text=pa.StringArray.from_buffers(2, *text.buffers()[1:]))
    assert used(tmp_path) == ["one", "bad_caption"]


def test_a_list_of_captions_gives_one_of_them(tmp_path: Path) -> None:
    table(tmp_path / "p", "a.parquet", captions=[["", "a red flag", "x"], ["a blue flag"]])
    assert used(tmp_path / "p") == ["a red flag", "a blue flag"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_member(tar, "0.jpg", JPEG)
        add_member(tar, "0.json", b'{"captions": ["a red flag", "another"]}')
        add_member(tar, "1.jpg", JPEG)
        add_member(tar, "1.json", b'{"caption": []}')
    assert used(tmp_path / "a.tar") == ["a red flag", "bad_caption"]


def test_reading_a_table_resumes_at_any_row(tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": image_bytes(i), "path": None} for i in range(50)],
        "text": [f"row {i}" for i in range(50)],
    }
    for name, part in (("a", slice(0, 37)), ("b", slice(37, 50))):
        pq.write_table(pa.table({key: values[part] for key, values in rows.items()}), tmp_path / f"{name}.parquet",
                       row_group_size=20)  # fmt: skip
    source = find_images(str(tmp_path))
    read = list(source.pairs(None))
    assert [pair.caption for pair, _ in read] == rows["text"]
    for i in (0, 15, 19, 20, 36, 37, 49):
        position = json.loads(json.dumps(read[i][1]))
        assert [pair.caption for pair, _ in source.pairs(position)] == rows["text"][i + 1 :]


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            add_member(tar, name, data)
    return path


@pytest.mark.parametrize(
    ("members", "hint"),
    [
        ({**{f"{i}.jpg": JPEG for i in range(3)}, **{f"{i}.txt": b"a caption" for i in range(3)}},
         "an image without text: 3, text without an image: 3.*must follow each other.*tar --sort=name"),
        ({f"photo.v0.{i}.{ending}": data for i in range(3) for ending, data in (("jpg", JPEG), ("txt", b"a caption"))},
         r"'photo\.v0\.0\.jpg' is not read, nor are 5 others.*ends at the first dot.*\.jpeg.*\.txt"),
        ({"s0.input.jpg": JPEG, "s0.outputs.txt": b"a caption"}, r"'s0\.input\.jpg' is not read.*must be one of"),
    ],
    ids=["unsorted", "dots", "compound"],
)  # fmt: skip
def test_an_archive_that_is_arranged_wrongly_is_explained(
    bundle: Bundle, tmp_path: Path, members: dict[str, bytes], hint: str
) -> None:
    path = archive(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=f"(?s)none of the images could be used: .*{hint}"):
        encode(find_images(str(path)), tmp_path / "out", bundle, SETTINGS)


@pytest.mark.parametrize(("start", "kind"), [(b"\x1f\x8b\x08\0", "gzip"), (b"PK\x03\x04", "zip"), (b"<html>", "")])
def test_a_file_that_is_no_archive_is_named(bundle: Bundle, tmp_path: Path, start: bytes, kind: str) -> None:
    path = write(tmp_path, {"0.tar": start + bytes(600)}) / "0.tar"
    reason = f"compressed with {kind}" if kind else "0.tar"
    with pytest.raises(DataError, match=f"archives that are broken or incomplete: 1.*broken or incomplete: .*{reason}"):
        encode(find_images(str(path)), tmp_path / "out", bundle, SETTINGS)


def test_members_that_are_not_needed_are_ignored(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", {"0.jpg": JPEG, "0.npy": b"\x93NUMPY", "0.cls": b"3", "0.mask.png": b"x",
                                        "0.txt": b"\xef\xbb\xbfa red flag"})  # fmt: skip
    source = find_images(str(path))
    assert [pair.caption for pair, _ in source.pairs(None)] == [b"\xef\xbb\xbfa red flag"]
    assert used(path) == ["a red flag"]
    assert source.warnings() == []


def test_encoding_a_table_twice_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    table(folder, "a.parquet", text=["one", "two"])
    for out in ("first", "second"):
        encode(find_images(str(folder)), tmp_path / out, bundle, SETTINGS)
    assert content(tmp_path / "first") == content(tmp_path / "second")
