"""The stream over HTTP: connections that drop, servers that refuse, shards that are gone or broken."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.range_server import RangeServer, serve_ranges
from tests.support.shards import CODEBOOK, CODES, QUICK, open_stream, row, take, write_shard, write_shards
from ttt.data.files import FileUnreachable, HttpClient, HttpFile, RetryPolicy, requested_wait
from ttt.data.manifest import DatasetManifest
from ttt.errors import DataError

SIZES = (90, 60, 150)
ROWS = sum(SIZES)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    write_shards(tmp_path / "shards", SIZES)
    with serve_ranges(tmp_path / "shards") as running:
        yield running


def addresses(server: RangeServer) -> list[str]:
    return [f"{server.url}/{i:05d}.parquet" for i in range(len(SIZES))]


def rows_on_disk(server: RangeServer, batches: int = 80) -> list[int]:
    stream = open_stream(server.folder)
    rows = take(stream, batches)
    stream.close()
    return rows


def manifest(**changed: object) -> DatasetManifest:
    values = {"model": "tiny", "codebook": "c" * 64, "resolution": 8, "image_seq_len": CODES,
              "num_image_tokens": CODEBOOK, "shards": tuple(f"{i:05d}.parquet" for i in range(len(SIZES)))}  # fmt: skip
    return DatasetManifest(**(values | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("cut_after", [1, 100, 300])
def test_dropped_connections_change_nothing(server: RangeServer, cut_after: int) -> None:
    server.cut_after, server.cuts = cut_after, 50
    stream = open_stream(addresses(server))
    assert take(stream, 80) == rows_on_disk(server)
    assert server.cuts == 0
    assert stream.counts["retries"] == 50
    assert stream.counts["kept"] == stream.counts["rows"]
    stream.close()


def test_a_stream_whose_every_response_is_cut_short_still_finishes(server: RangeServer) -> None:
    server.cut_after, server.cuts = 700, 10**6
    stream = open_stream(addresses(server))
    assert take(stream, 40) == rows_on_disk(server, 40)
    stream.close()


def test_a_busy_server_is_asked_again(server: RangeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.refuse = 3
    stream = open_stream(addresses(server))
    assert take(stream, 10) == rows_on_disk(server, 10)
    stream.close()
    assert sum("status 503" in record.message for record in caplog.records) == 1  # logged once


def test_waits_double_up_to_a_limit() -> None:
    waits = [RetryPolicy(first_wait=1.0).wait(failures) for failures in range(1, 9)]
    for failures, seconds in enumerate(waits, 1):
        middle = min(2.0 ** (failures - 1), 30.0)
        assert 0.7 * middle <= seconds <= 1.3 * middle


def test_a_server_without_ranges_is_read_through_a_temporary_file(server: RangeServer) -> None:
    server.ranges = False
    server.cut_after, server.cuts = 500, 2
    stream = open_stream(addresses(server))
    assert take(stream, 10) == rows_on_disk(server, 10)
    stream.close()


def test_a_server_without_ranges_cannot_fill_the_disk(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ranges = False
    monkeypatch.setattr(HttpFile, "max_spooled", 100)
    stream = open_stream(addresses(server))
    with pytest.raises(DataError, match="no row of a whole epoch.*is larger than 100 B"):
        take(stream, 1)
    stream.close()


@pytest.mark.parametrize("total", ["*", "x", "-1", "\u00b2"])
def test_the_size_of_a_file_need_not_come_with_its_ranges(server: RangeServer, total: str) -> None:
    server.total = total
    stream = open_stream(addresses(server))
    assert take(stream, 10) == rows_on_disk(server, 10)
    stream.close()


def test_only_what_is_needed_is_fetched(tmp_path: Path) -> None:
    """Resuming in the middle of a shard fetches its footer, that window and the two that are prefetched."""
    generator = random.Random(0)
    rows = [row(n, caption=f"{generator.randbytes(200).hex()} {n}") for n in range(8000)]
    path = write_shard(tmp_path / "a.parquet", rows, group=500)
    with serve_ranges(tmp_path) as server:
        stream = open_stream(f"{server.url}/a.parquet", batch_size=100, shuffle_buffer=500)
        take(stream, 40)
        state = stream.state_dict()
        stream.close()
        server.sent = 0
        again = open_stream(f"{server.url}/a.parquet", batch_size=100, shuffle_buffer=500)
        again.load_state_dict(state)
        take(again, 3)
        again.close()
    assert server.sent < path.stat().st_size / 2


def test_missing_and_broken_shards_are_skipped_and_counted(server: RangeServer, tmp_path: Path) -> None:
    broken = server.folder / "00001.parquet"
    content = bytearray(broken.read_bytes())
    content[200:400] = bytes(200)  # inside the pages; the footer stays
    broken.write_bytes(content)
    (server.folder / "zero.parquet").write_bytes(b"")
    (server.folder / "text.parquet").write_bytes(b"no Parquet at all, but long enough to be read")
    extra = [f"{server.url}/{name}.parquet" for name in ("zero", "text", "nowhere")]
    stream = open_stream([*addresses(server), *extra])
    rows = take(stream, 30)
    assert set(rows) == set(range(90)) | set(range(150, 300))
    counts = stream.counts
    assert counts["missing_shards"] == 1
    assert counts["corrupt_shards"] == 3
    assert counts["unreachable_shards"] == counts["retries"] == 0
    stream.close()


def test_a_shard_that_breaks_off_gives_its_first_rows(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", [row(n) for n in range(400)], group=100)
    import pyarrow.parquet as pq

    chunk = pq.read_metadata(path).row_group(2).column(4)
    content = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    stream = open_stream(tmp_path, batch_size=50)
    assert sorted(take(stream, 4)) == list(range(200))
    take(stream, 4)
    assert stream.epoch == 1
    stream.close()


def test_resuming_skips_again_what_was_unreachable(server: RangeServer) -> None:
    """A shard that was given up in a window stays given up when that window is read again."""
    gone = "00001.parquet"
    server.gone.add(gone)
    stream = open_stream(addresses(server), shuffle_buffer=400)
    first = take(stream, 10)
    state = json.loads(json.dumps(stream.state_dict()))
    second = take(stream, 10)
    stream.close()
    server.gone.clear()
    again = open_stream(addresses(server), shuffle_buffer=400)
    again.load_state_dict(state)
    assert take(again, 10) == second
    assert set(first + second) <= set(range(90)) | set(range(150, 300))
    assert again.counts["missing_shards"] == 1
    assert set(range(90, 150)) <= set(take(again, 60))  # the next epoch has it
    again.close()


def test_a_server_that_is_down_is_an_error_and_the_next_batch_resumes(server: RangeServer) -> None:
    stream = open_stream(addresses(server), shuffle_buffer=16)
    rows = take(stream, 2)
    stream.close()
    server.refuse = 10**6
    with pytest.raises(DataError, match=r"cannot be used: 3 shards in a row could not be read.*status 503"):
        take(stream, 40)
    server.refuse = 0
    rows += take(stream, 78)
    stream.close()
    reference = open_stream(server.folder, shuffle_buffer=16)
    assert rows == take(reference, 80)
    reference.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.parquet", "http://127.0.0.1:9/dataset.json"])
def test_a_server_that_does_not_exist_is_reported(url: str) -> None:
    with pytest.raises(DataError, match=r"could not be read in 4 attempts \(ConnectError"):
        next(open_stream(url))


def test_a_stalled_server_counts_as_dropped(server: RangeServer) -> None:
    server.delay = 0.5
    http = HttpClient(RetryPolicy(attempts=2, first_wait=0.01, timeout=0.1))
    with pytest.raises(FileUnreachable, match="ReadTimeout"):
        HttpFile(addresses(server)[0], http)
    http.close()


def test_a_file_that_changes_while_it_is_read_is_broken(server: RangeServer) -> None:
    http = HttpClient(QUICK)
    file = HttpFile(addresses(server)[0], http)
    (server.folder / "00000.parquet").write_bytes(bytes(5000))
    with pytest.raises(ValueError, match="has changed"):
        file.read(100)
    http.close()


@pytest.mark.parametrize("index", ["dataset.json", "", "shards.txt"])
def test_an_index_lists_the_shards(server: RangeServer, index: str) -> None:
    (server.folder / "dataset.json").write_text(manifest().to_json())
    (server.folder / "shards.txt").write_text("# ours\n" + "\n".join(addresses(server)[:2]) + "\n\n00002.parquet\n")
    server.refuse = 1
    stream = open_stream(f"{server.url}/{index}", batch_size=ROWS)
    assert sorted(take(stream, 1)) == list(range(ROWS))
    stream.close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", "{", "not valid JSON"),
        ("dataset.json", "[]", "does not say"),
        ("dataset.json", manifest(shards=("../secret.parquet",)).to_json(), "plain file names"),
        ("dataset.json", manifest(shards=()).to_json(), "lists no shards"),
        ("dataset.json", manifest(image_seq_len=64).to_json(), "64 codes per image"),
        ("dataset.json", manifest(num_image_tokens=8192).to_json(), "8192 codes in the codebook"),
        ("dataset.json", manifest(codebook="d" * 64).to_json(), "another VQGAN"),
        ("dataset.json", manifest().to_json().replace('"version": 1', '"version": 7'), "version 7"),
        ("dataset.json", manifest().to_json().replace('"image_seq_len": 4', '"image_seq_len": -1'), "image_seq_len"),
        ("shards.txt", "", "is empty"),
        ("shards.txt", "file:///etc/hosts.parquet", "has the line"),
        ("shards.txt", "/etc/passwd", "has the line"),
        ("nowhere.txt", None, "status 404"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_refused(
    server: RangeServer, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (server.folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        next(open_stream(f"{server.url}/{name}", codebook="c" * 64))


def test_a_description_beside_shards_on_disk_is_checked_too(server: RangeServer) -> None:
    (server.folder / "dataset.json").write_text(manifest(num_image_tokens=50).to_json())
    with pytest.raises(DataError, match="50 codes in the codebook"):
        next(open_stream(server.folder))


def test_a_hub_data_set_is_streamed_at_its_commit(tmp_path: Path) -> None:
    """Runs in a process of its own, because the Hub's library reads the Hub's address when it is imported."""
    write_shards(tmp_path / "set", SIZES)
    (tmp_path / "set" / "dataset.json").write_text(manifest().to_json())
    program = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from tests.support.dataset_hub import serve_dataset
from tests.support.shards import open_stream, take
from ttt.errors import DataError
with serve_dataset(Path(sys.argv[1]), "owner/set", token="hf_secret") as hub:
    stream = open_stream("owner/set")
    rows = take(stream, 40)
    state = stream.state_dict()
    stream.close()
    assert hub.cuts == 0 and stream.counts["retries"] >= 10
    old, hub.commit = hub.commit, "b" * 40  # an upload; resuming stays at the commit of the state
    stream = open_stream("owner/set")
    stream.load_state_dict(state)
    rows += take(stream, 40)
    stream.close()
    assert state["revision"] == old, state
    messages = []
    for name in ("owner/none", "owner/private"):
        try: next(open_stream(name))
        except DataError as error: messages.append(str(error))
    try: next(open_stream("owner/set", image_seq_len=9))
    except DataError as error: messages.append(str(error))
    leaked = hub.leaked
print(json.dumps({"rows": rows, "messages": messages, "leaked": leaked}))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret", "PYTHONPATH": "."}
    root = Path(__file__).parents[2]
    code = f"import os, tests.support.dataset_hub as h; os.environ['HF_ENDPOINT'] = h.reserve()\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout.splitlines()[-1])
    stream = open_stream(tmp_path / "set")
    assert output["rows"] == take(stream, 80)
    stream.close()
    assert len(output["messages"]) == 3
    assert all("is not on the Hub, or is private" in text for text in output["messages"][:2])
    assert "codes per image" in output["messages"][2]
    assert output["leaked"] == []


class VirtualTime(threading.Event):
    """A `stop` event whose waits pass at once; `seconds` adds them up."""

    def __init__(self, server: RangeServer, window: float) -> None:
        super().__init__()
        self.server, self.window, self.seconds = server, window, 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds += timeout or 0.0
        if self.seconds >= self.window:
            self.server.refuse = 0
        return self.is_set()


@pytest.mark.parametrize(
    ("headers", "most"),
    [
        ({"RateLimit": '"resolvers";r=0;t=300'}, 330.0),
        ({"RateLimit": '"api";r=12;t=300, "resolvers";r=0;t=299'}, 330.0),
        ({"Retry_After": "300"}, 330.0),
        ({}, 400.0),
    ],
)
def test_a_rate_limit_is_waited_out(server: RangeServer, headers: dict[str, str], most: float) -> None:
    """The Hub answers 429 until a window of 5 minutes is over; no shard is given up meanwhile."""
    server.status, server.refuse, server.headers = 429, 10**9, headers
    http = HttpClient(RetryPolicy())
    http.stop = clock = VirtualTime(server, window=300)
    file = HttpFile(addresses(server)[0], http)
    assert file.read() == (server.folder / "00000.parquet").read_bytes()
    assert 300 <= clock.seconds <= most
    http.close()


def test_the_rate_limit_of_the_hubs_own_library_is_waited_out(server: RangeServer) -> None:
    """Its errors are those of another HTTP library, and carry the response."""

    class HubError(OSError):
        response = SimpleNamespace(status_code=429, headers={"RateLimit": '"api";r=0;t=250'})

    http = HttpClient(RetryPolicy())
    http.stop = clock = VirtualTime(server, window=0)
    results: Iterator[object] = iter([HubError(), HubError(), True])

    def attempt() -> bool:
        result = next(results)
        if isinstance(result, HubError):
            raise result
        return True

    http.retrying("owner/set", attempt)
    assert 2 * 251 <= clock.seconds < 600


def test_a_rate_limit_that_never_ends_is_given_up(server: RangeServer) -> None:
    server.status, server.refuse, server.headers = 429, 10**9, {"Retry_After": "999999999"}
    http = HttpClient(RetryPolicy())
    http.stop = clock = VirtualTime(server, window=10**12)
    with pytest.raises(FileUnreachable, match="status 429"):
        HttpFile(addresses(server)[0], http)
    assert clock.seconds <= 8 * 900
    http.close()


def test_the_pause_that_a_server_asks_for_is_read_from_its_headers() -> None:
    assert requested_wait({}) == 0
    assert requested_wait({"Retry-After": "158"}) == 158
    assert requested_wait({"Retry-After": "10000000"}) == 900
    assert requested_wait({"Retry-After": "soon"}) == 0
    assert requested_wait({"Retry-After": formatdate(time.time() - 60, usegmt=True)}) == 0
    assert 50 < requested_wait({"Retry-After": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert requested_wait({"RateLimit": '"resolvers";r=0;t=158'}) == 159
    assert requested_wait({"RateLimit": '"resolvers"; t=158; r=0'}) == 159
    assert requested_wait({"RateLimit": '"resolvers";r=4999;t=158'}) == 0  # requests are left
    assert requested_wait({"RateLimit": "limit=5000"}) == 0


def test_a_range_that_is_answered_with_the_whole_file_is_cut_out_of_it(server: RangeServer) -> None:
    content = (server.folder / "00002.parquet").read_bytes()
    http = HttpClient(QUICK)
    file = HttpFile(addresses(server)[2], http)
    server.whole = 2
    file.seek(700)
    assert file.read(900) == content[700:1600]
    server.whole, server.surplus = 0, 5
    file.seek(20)
    assert file.read(30) == content[20:50]
    server.whole, server.cut_after, server.cuts = 10**6, 800, 1
    file.seek(700)
    assert file.read(900) == content[700:1600], "resumed after a dropped connection"
    http.close()


@pytest.mark.parametrize("mischief", [{"whole": 3}, {"surplus": 7}, {"total": "*"}])
def test_servers_that_answer_ranges_loosely_change_nothing(server: RangeServer, mischief: dict[str, object]) -> None:
    server.surplus = int(str(mischief.get("surplus", 0)))
    server.total = str(mischief.get("total", ""))
    stream = open_stream(addresses(server), shuffle_buffer=16)
    rows = take(stream, 2)
    server.whole = int(str(mischief.get("whole", 0)))
    rows += take(stream, 78)
    assert stream.counts["missing_shards"] == stream.counts["corrupt_shards"] == 0
    stream.close()
    reference = open_stream(server.folder, shuffle_buffer=16)
    assert rows == take(reference, 80)
    reference.close()


def test_status_416_for_the_first_byte_is_not_taken_for_an_empty_file(server: RangeServer) -> None:
    size = (server.folder / "00000.parquet").stat().st_size
    server.status, server.refuse, server.headers = 416, 1, {"Content_Range": f"bytes */{size}"}
    http = HttpClient(QUICK)
    file = HttpFile(addresses(server)[0], http)
    server.status, server.refuse, server.headers = 416, 1, {}
    assert file.read() == (server.folder / "00000.parquet").read_bytes()
    http.close()
