"""A request to stop interrupts the wait for data."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("a peer needs Linux", allow_module_level=True)

from tests.support.range_server import serve_ranges
from tests.support.shards import open_stream, write_shards
from ttt.errors import Cancelled, DataError
from ttt.swarm.process.session import batches_until


def test_stop_interrupts_the_wait_for_data_that_does_not_arrive(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", (90, 60, 150))
    stop, batches = threading.Event(), 0
    with serve_ranges(tmp_path / "shards") as server:
        addresses = [f"{server.url}/{number:05d}.parquet" for number in range(3)]
        for _ in batches_until(stop, open_stream(addresses)):
            batches += 1
            if batches == 1:
                server.delay = 30.0
                threading.Timer(0.5, stop.set).start()
        requests = server.requests.total()
    assert batches >= 1 and requests > 1 and stop.is_set()


def test_an_error_in_the_data_is_raised(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", (90,))
    with pytest.raises(DataError), serve_ranges(tmp_path / "elsewhere") as server:
        list(batches_until(threading.Event(), open_stream([f"{server.url}/00000.parquet"])))


def test_closing_a_stream_cancels_the_thread_that_waits_for_it(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", (90, 60, 150))
    with serve_ranges(tmp_path / "shards") as server:
        stream = open_stream([f"{server.url}/{number:05d}.parquet" for number in range(3)])
        next(iter(stream))
        prefetcher = stream._prefetcher
        assert prefetcher is not None
        server.delay = 30.0
        threading.Timer(0.5, prefetcher.close).start()
        with pytest.raises(Cancelled):
            all(prefetcher.next_window() for _ in range(10_000))
