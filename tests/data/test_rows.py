"""Rows from strangers: valid ones are kept, all others are counted, and nothing breaks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.shards import CODEBOOK, CODES, numbers, open_stream, row, write_shard
from ttt.data.filters import COLUMNS, Filters
from ttt.data.rows import MAX_CAPTION_CHARACTERS, RowCheck
from ttt.errors import DataError, InvalidInput

CHECK = RowCheck(CODES, CODEBOOK, Filters())


def int16(codes: list[int]) -> bytes:
    return np.array(codes, "<i2").tobytes()


any_codes = st.one_of(
    st.none(),
    st.binary(max_size=3 * CODES),
    st.lists(st.integers(-(2**15), 2**15 - 1), min_size=CODES, max_size=CODES).map(int16),
    st.lists(st.integers(0, CODEBOOK - 1), min_size=CODES, max_size=CODES).map(int16),
)  # fmt: skip
any_row = st.fixed_dictionaries(
    {
        "caption": st.one_of(st.none(), st.binary(max_size=12), st.text(max_size=12).map(lambda t: t.encode())),
        "NSFW": st.one_of(st.none(), st.just(b"UNLIKELY"), st.sampled_from([b"NSFW", b"", b"\xff"])),
        "original_width": st.one_of(st.none(), st.integers(-(2**31), 2**31)),
        "original_height": st.one_of(st.none(), st.integers(1, 4000)),
        "code": any_codes,
    }
)


def batch_of(rows: list[dict[str, object]]) -> pa.RecordBatch:
    """With a text column that is not UTF-8 throughout, as careless writers produce it."""
    kinds = {"caption": pa.binary(), "NSFW": pa.binary(), "original_width": pa.int64(),
             "original_height": pa.int64(), "code": pa.binary()}  # fmt: skip
    arrays = {name: pa.array([r[name] for r in rows], kind) for name, kind in kinds.items()}
    for name in ("caption", "NSFW"):
        text = arrays[name]
        arrays[name] = pa.StringArray.from_buffers(len(text), *text.buffers()[1:], text.buffers()[0])
    return pa.RecordBatch.from_pydict(arrays)


def expected(values: dict[str, object]) -> str:
    """The kind of a row, computed the obvious way."""
    try:
        caption = bytes(values["caption"]).decode() if values["caption"] is not None else None  # type: ignore[call-overload]
    except UnicodeDecodeError:
        caption = None
    width, height, code = values["original_width"], values["original_height"], values["code"]
    if caption is None:
        return "bad_caption"
    if len(caption) < 3:
        return "short_caption"
    if values["NSFW"] != b"UNLIKELY":
        return "nsfw"
    if width is None or height is None or width <= 0:  # type: ignore[operator]
        return "bad_size"
    if width > 2 * height or height > 2 * width:  # type: ignore[operator]
        return "extreme_aspect"
    if code is None or len(code) != 2 * CODES:  # type: ignore[arg-type]
        return "bad_codes"
    codes = np.frombuffer(code, "<i2")  # type: ignore[call-overload]
    return "kept" if codes.min() >= 0 and codes.max() < CODEBOOK else "bad_codes"


@settings(max_examples=150)
@given(st.lists(any_row, max_size=12))
def test_any_rows_are_kept_or_counted(rows: list[dict[str, object]]) -> None:
    counts: Counter[str] = Counter()
    reported: list[str] = []
    check = RowCheck(CODES, CODEBOOK, Filters(), lambda kind, message: reported.append(kind))
    found = check(batch_of(rows), "here", counts)
    kinds = [expected(values) for values in rows]
    assert counts == Counter(kinds) + Counter({"rows": len(rows)})
    assert reported == [kind for kind in kinds if kind.startswith("bad")]
    good = [values for values, kind in zip(rows, kinds, strict=True) if kind == "kept"]
    assert found.captions == [bytes(values["caption"]).decode() for values in good]  # type: ignore[call-overload]
    assert found.codes.tobytes() == b"".join(values["code"] for values in good)  # type: ignore[misc]
    assert found.codes.shape == (len(good), CODES)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(any_row, min_size=1, max_size=20))
def test_a_stream_of_any_rows_gives_good_batches(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    good = [row(n, caption=f"row {n}".encode(), NSFW=b"UNLIKELY") for n in range(30)]
    write_shard(tmp_path / "a.parquet", [*good, *rows])
    stream = open_stream(tmp_path, tokenize=lambda captions: numbers([f"x {len(c)}" for c in captions]))
    for _ in range(12):
        batch = next(stream)
        assert batch.codes.min() >= 0
        assert batch.codes.max() < CODEBOOK
    assert (
        stream.counts["kept"]
        + sum(
            stream.counts[k]
            for k in ("short_caption", "nsfw", "extreme_aspect", "bad_caption", "bad_size", "bad_codes")
        )
        == stream.counts["rows"]
    )
    stream.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_shard_with_flipped_bytes_is_read_or_skipped(tmp_path: Path, data: st.DataObject) -> None:
    broken, whole = tmp_path / "set" / "a.parquet", tmp_path / "set" / "b.parquet"
    write_shard(broken, [row(n) for n in range(40)], group=10)
    write_shard(whole, [row(n) for n in range(40, 50)])
    content = bytearray(broken.read_bytes())
    # Only outside the footer, whose parsing is pyarrow's responsibility.
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, len(content) - footer - 1))] ^= data.draw(st.integers(1, 255))
    broken.write_bytes(content)
    stream = open_stream(tmp_path / "set", batch_size=5, tokenize=lambda captions: numbers(["x 1"] * len(captions)))
    for _ in range(6):
        assert next(stream).codes.shape == (5, CODES)
    stream.close()


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_another_type_is_a_broken_shard(tmp_path: Path, name: str) -> None:
    rows = [row(n) for n in range(10)]
    lists = pa.array([[1, 2]] * 10)
    table = pa.Table.from_pylist(rows)
    table = table.set_column(table.schema.get_field_index(name), name, lists)
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no row of a whole epoch"):
        next(open_stream(tmp_path))


def test_columns_that_pandas_made_categories_are_read(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([row(n) for n in range(10)])
    for name in ("caption", "NSFW"):
        table = table.set_column(table.schema.get_field_index(name), name, table.column(name).dictionary_encode())
    pq.write_table(table, tmp_path / "a.parquet")
    stream = open_stream(tmp_path, batch_size=10)
    assert sorted(next(stream).text[:, 0].tolist()) == list(range(10))
    stream.close()


def test_a_giant_caption_is_cut(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [row(0, caption="x" * (MAX_CAPTION_CHARACTERS + 5)), row(1)])
    lengths: set[int] = set()
    stream = open_stream(tmp_path, tokenize=lambda captions: lengths.update(map(len, captions)) or numbers(["x 1"]))
    next(stream)
    stream.close()
    assert lengths == {MAX_CAPTION_CHARACTERS, len("row 1")}


def test_a_bomb_of_a_row_group_is_refused(tmp_path: Path) -> None:
    """One row of 4 MB that is compressed to a few hundred bytes."""
    path = write_shard(tmp_path / "a.parquet", [row(0, caption="x" * (4 << 20))])
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match="would unpack to"):
        next(open_stream(tmp_path))


@pytest.mark.parametrize("wrong", [{"min_caption": -1}, {"min_caption": 1.5}, {"max_aspect": 0.5}])
def test_filters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        Filters(**wrong)  # type: ignore[arg-type]


def test_codes_are_little_endian_int16() -> None:
    codes = np.array([0, 1, 99, 50], "<i2")
    found = CHECK(
        batch_of([{**row(0), "caption": b"row", "NSFW": b"UNLIKELY", "code": codes.tobytes()}]), "", Counter()
    )
    assert found.codes.tolist() == [[0, 1, 99, 50]]
