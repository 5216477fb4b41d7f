"""The stream of codes: every row once an epoch, in a seeded order that can be resumed anywhere."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.shards import CODEBOOK, open_stream, row, take, write_shard, write_shards
from ttt.data.filters import Filters
from ttt.data.rows import COUNT_LABELS
from ttt.data.stream import CodeStream
from ttt.errors import DataError, InvalidInput

SIZES = (130, 75, 200, 40, 155)
BATCHES = 180  # more than two epochs of 600 rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    assert write_shards(root, SIZES) == 600
    return root


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[list[int], list[dict[str, object]], list[Counter[str]]]:
    """Rows of `BATCHES` batches, the state before each, and the counts after each."""
    stream = open_stream(folder)
    rows, states, counts = [], [], []
    for _ in range(BATCHES):
        states.append(json.loads(json.dumps(stream.state_dict())))
        rows += take(stream, 1)
        counts.append(stream.counts)
    stream.close()
    return rows, states, counts


def test_every_row_comes_once_an_epoch_each_time_in_another_order(undisturbed: tuple[list[int], ...]) -> None:
    rows = undisturbed[0]
    epochs = [rows[:600], rows[600:1200]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(600))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1]


def test_neighbours_in_a_shard_are_separated(folder: Path) -> None:
    stream = open_stream(folder, shuffle_buffer=300)
    rows = take(stream, 75)
    stream.close()
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(rows))
    assert neighbours < 12  # about 2 of 599 by chance; unshuffled shards would give nearly all


@pytest.mark.parametrize("seed", [2, -1, 0, 2**80])
def test_another_seed_is_another_order_of_the_same_rows(
    folder: Path, undisturbed: tuple[list[int], ...], seed: int
) -> None:
    stream = open_stream(folder, seed=seed)
    rows = take(stream, 75)
    stream.close()
    assert sorted(rows) == list(range(600))
    assert rows != undisturbed[0][:600]


@pytest.mark.parametrize("at", [0, 1, 7, 8, 9, 40, 73, 74, 75, 76, 100, 149, 150, 151, 170])
def test_resuming_from_a_state_gives_the_same_rows_and_counts(
    folder: Path, undisturbed: tuple[list[int], list[dict[str, object]], list[Counter[str]]], at: int
) -> None:
    rows, states, counts = undisturbed
    stream = open_stream(folder)
    stream.load_state_dict(states[at])
    assert stream.state_dict() == states[at]
    assert take(stream, 10) == rows[8 * at : 8 * (at + 10)]
    assert stream.counts == counts[at + 9]
    assert stream.state_dict() == states[at + 10] if at + 10 < BATCHES else True
    stream.close()


def test_a_stream_goes_back_to_an_earlier_state(folder: Path, undisturbed: tuple[list[int], ...]) -> None:
    stream = open_stream(folder)
    take(stream, 30)
    stream.load_state_dict(undisturbed[1][5])  # type: ignore[arg-type]
    assert take(stream, 3) == undisturbed[0][40:64]
    stream.close()


def test_another_batch_size_resumes_with_the_same_rows(folder: Path, undisturbed: tuple[list[int], ...]) -> None:
    stream = open_stream(folder, batch_size=3)
    stream.load_state_dict(undisturbed[1][50])  # type: ignore[arg-type]
    assert take(stream, 40) == undisturbed[0][400:520]
    stream.close()


def read_until_killed(folder: Path, state: Path, seen: Path, batches: int) -> None:
    stream = open_stream(folder)
    if state.exists():
        stream.load_state_dict(json.loads(state.read_text()))
    for _ in range(batches):
        rows = take(stream, 1)
        with seen.open("a") as file:
            file.write("".join(f"{number}\n" for number in rows))
        state.write_text(json.dumps(stream.state_dict()))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_new_process_resumes_after_kill_9(folder: Path, tmp_path: Path, undisturbed: tuple[list[int], ...]) -> None:
    """A process writes its state after every batch and is killed; another one resumes from the state."""
    state, seen = tmp_path / "state.json", tmp_path / "seen.txt"
    for batches in (37, 60):
        process = warm.start(read_until_killed, folder, state, seen, batches)
        process.join()
        assert process.exitcode == -9
    assert [int(line) for line in seen.read_text().split()] == undisturbed[0][: 8 * 97]


def test_the_state_is_small_and_resuming_reads_one_window_only(tmp_path: Path) -> None:
    write_shards(tmp_path, [2000] * 3)
    stream = open_stream(tmp_path, batch_size=64, shuffle_buffer=500)
    take(stream, 80)
    state = stream.state_dict()
    assert len(json.dumps(state)) < 1500
    stream.close()
    again = open_stream(tmp_path, batch_size=64, shuffle_buffer=500)
    again.load_state_dict(state)
    take(again, 1)
    assert again.counts["rows"] - state["counts"]["rows"] <= 500 + 256
    again.close()


def test_a_set_smaller_than_a_batch_is_repeated(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    stream = open_stream(tmp_path)
    assert Counter(take(stream, 3)) == Counter({0: 8, 1: 8, 2: 8})
    assert stream.epoch == 7
    stream.close()


def test_resuming_works_in_the_middle_of_a_large_row_group(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [row(n) for n in range(3000)], group=3000)
    stream, rows, states = open_stream(tmp_path, batch_size=50), [], []
    for _ in range(60):
        states.append(stream.state_dict())
        rows += take(stream, 1)
    assert sorted(rows) == list(range(3000))
    again = open_stream(tmp_path, batch_size=50)
    again.load_state_dict(states[43])
    assert take(again, 17) == rows[43 * 50 :]
    stream.close()
    again.close()


@pytest.mark.parametrize(
    "source", ["folder", "glob", "list", "one file"],
)  # fmt: skip
def test_shards_on_disk_may_be_given_in_several_ways(folder: Path, source: str) -> None:
    name, count = {
        "folder": (str(folder), 600),
        "glob": (f"{folder}/0000[12].parquet", 275),
        "list": ([folder / "00003.parquet", folder / "00000.parquet"], 170),
        "one file": (folder / "00001.parquet", 75),
    }[source]
    stream = open_stream(name, batch_size=count)
    assert len(set(take(stream, 1))) == count
    stream.close()


def test_a_moved_data_set_is_the_same(folder: Path, tmp_path: Path, undisturbed: tuple[list[int], ...]) -> None:
    moved = tmp_path / "elsewhere"
    moved.symlink_to(folder)
    stream = open_stream(moved)
    stream.load_state_dict(undisturbed[1][20])  # type: ignore[arg-type]
    assert take(stream, 5) == undisturbed[0][160:200]
    stream.close()


def test_a_state_of_other_shards_is_refused(tmp_path: Path, undisturbed: tuple[list[int], ...]) -> None:
    write_shards(tmp_path, SIZES[:3])
    stream = open_stream(tmp_path)
    stream.load_state_dict(undisturbed[1][20])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="other shards"):
        next(stream)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, "seed 1 and this stream has 2"),
        ({"shuffle_buffer": 65}, "shuffle_buffer"),
        ({"filters": Filters(min_caption=4)}, "filters"),
    ],
)
def test_a_state_of_another_order_is_refused(
    folder: Path, undisturbed: tuple[list[int], ...], changed: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        open_stream(folder, **changed).load_state_dict(undisturbed[1][20])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2), ("cursor", {"lanes": []}), ("emitted", -1), ("counts", {"rows": "many"}), ("counts", {"x": 1}),
        ("given_up", [[1]]), ("settings", None), ("shards", 5),
        ("cursor", {"lanes": [[0, 0]], "epoch": 0, "window": 0, "turn": 0}),
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused(folder: Path, undisturbed: tuple[list[int], ...], key: str, value: object) -> None:
    with pytest.raises(InvalidInput, match="state"):
        open_stream(folder).load_state_dict({**undisturbed[1][20], key: value})  # type: ignore[dict-item]


def test_a_state_with_a_turn_out_of_range_is_refused(folder: Path, undisturbed: tuple[list[int], ...]) -> None:
    state = json.loads(json.dumps(undisturbed[1][20]))
    state["cursor"]["turn"] = 9
    stream = open_stream(folder)
    stream.load_state_dict(state)
    with pytest.raises(DataError, match="does not fit"):
        next(stream)


@pytest.mark.parametrize(
    "changed", [{"batch_size": 0}, {"shuffle_buffer": 1.5}, {"seed": "1"}, {"num_image_tokens": 1 << 16}]
)
def test_wrong_settings_are_refused_at_once(folder: Path, changed: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(changed))):
        open_stream(folder, **changed)


@pytest.mark.parametrize("source", ["nowhere", "no/where/at/all", "*.parquet", [], ["a.parquet", "http://x/y.parquet"]])
def test_a_source_that_does_not_exist_is_refused(
    tmp_path: Path, source: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InvalidInput, DataError), match=r"was not found|no file matches|empty|mixes"):
        next(open_stream(source))


def test_codes_of_another_model_are_an_error(folder: Path) -> None:
    """Without a `dataset.json`, every row of an epoch is rejected."""
    with pytest.raises(DataError, match="codes missing, of a wrong length or out of range: 600"):
        next(open_stream(folder, image_seq_len=16))
    with pytest.raises(DataError, match=r"no row of a whole epoch"):
        next(open_stream(folder, filters=Filters(nsfw="NSFW")))


def test_filters_are_those_of_the_run_and_can_be_set(tmp_path: Path) -> None:
    rows = [row(n) for n in range(100, 200)]
    rejected = {
        "short_caption": row(0, caption="0"), "nsfw": row(1, NSFW="UNSURE"),
        "extreme_aspect": row(2, original_width=41), "bad_size": row(3, original_height=0),
    }  # fmt: skip
    write_shard(tmp_path / "a.parquet", [*rejected.values(), row(4, NSFW=None), row(5, original_width=40), *rows])
    stream = open_stream(tmp_path, batch_size=101)
    assert sorted(take(stream, 1)) == [5, *range(100, 200)]
    assert stream.counts == Counter(
        {**dict.fromkeys(COUNT_LABELS, 0), "rows": 106, "kept": 101, "short_caption": 1, "nsfw": 2, "extreme_aspect": 1,
         "bad_size": 1}
    )  # fmt: skip
    stream.close()
    everything = open_stream(tmp_path, batch_size=106, filters=Filters(min_caption=0, nsfw=None, max_aspect=None))
    assert sorted(take(everything, 1)) == [0, 1, 2, 3, 4, 5, *range(100, 200)]
    everything.close()


def test_columns_that_no_filter_needs_may_be_missing(tmp_path: Path) -> None:
    rows = [{"caption": r["caption"], "code": r["code"]} for r in map(row, range(20))]
    write_shard(tmp_path / "a.parquet", rows)
    stream = open_stream(tmp_path, filters=Filters(nsfw=None, max_aspect=None))
    assert len(take(stream, 1)) == 8
    stream.close()
    with pytest.raises(DataError, match="no column NSFW, original_width, original_height"):
        next(open_stream(tmp_path))


def test_threads_end_with_the_stream(folder: Path) -> None:
    def readers() -> Iterator[threading.Thread]:
        return (t for t in threading.enumerate() if t.name == "ttt-data")

    before = len(list(readers()))
    stream: CodeStream | None = open_stream(folder)
    assert stream is not None
    take(stream, 2)
    assert len(list(readers())) == before + 1
    stream = None
    gc.collect()
    assert len(list(readers())) == before


def test_a_closed_stream_resumes_where_it_was(folder: Path, undisturbed: tuple[list[int], ...]) -> None:
    stream = open_stream(folder)
    rows = take(stream, 20)
    stream.close()
    rows += take(stream, 20)
    stream.close()
    assert rows == undisturbed[0][:320]


def test_codes_outside_the_codebook_of_the_model_are_rejected(tmp_path: Path) -> None:
    write_shards(tmp_path, [CODEBOOK])
    stream = open_stream(tmp_path, num_image_tokens=CODEBOOK // 2, batch_size=CODEBOOK // 2)
    assert sorted(take(stream, 1)) == list(range(CODEBOOK // 2))
    assert stream.counts["bad_codes"] == CODEBOOK // 2
    stream.close()
