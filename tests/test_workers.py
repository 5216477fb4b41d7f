"""The worker pool: threads, pieces, out-of-memory errors, and stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from tests.support.cores import cores
from ttt.errors import Cancelled, TTTError
from ttt.hardware import free_memory, is_out_of_memory, memory_budget
from ttt.workers import WorkerPool

CPU = torch.device("cpu")


def finish(pool: WorkerPool) -> int:
    return sum(1 for _ in pool.run())


@pytest.mark.parametrize(("count", "size"), [(1, 1), (7, 3), (128, 128), (10, 1), (33, 16)])
def test_every_candidate_is_done_once(count: int, size: int):
    done: list[int] = []
    pieces: list[int] = []

    def work(piece: range, pool: WorkerPool) -> None:
        done.extend(piece)
        pieces.append(len(piece))

    pool = WorkerPool(count, size, work, CPU)
    finish(pool)
    assert sorted(done) == list(range(count))
    assert max(pieces) * pool.threads <= size + pool.threads - 1


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
              RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")],
)  # fmt: skip
def test_after_an_out_of_memory_error_smaller_pieces_are_tried(error: Exception):
    tried: list[int] = []
    done: list[int] = []

    def work(piece: range, pool: WorkerPool) -> None:
        tried.append(len(piece))
        if len(piece) > 3:
            raise error
        done.extend(piece)

    finish(WorkerPool(36, 12, work, CPU, min_piece=100))
    assert sorted(done) == list(range(36))
    assert tried[:3] == [12, 6, 3]
    assert tried.count(12) == 1, "a size that failed is not tried again"


def test_one_candidate_too_many_is_an_error_that_says_so():
    def work(piece: range, pool: WorkerPool) -> None:
        raise MemoryError

    with pytest.raises(TTTError, match="not enough memory for even one candidate"):
        finish(WorkerPool(8, 8, work, CPU))


def test_pieces_are_not_halved_below_the_size_that_they_are_padded_to():
    tried: list[int] = []

    def work(piece: range, pool: WorkerPool) -> None:
        tried.append(len(piece))
        raise MemoryError

    with pytest.raises(TTTError, match="not enough memory for even one candidate"):
        finish(WorkerPool(14, 14, work, CPU, cores=1, padded_to=4))
    assert tried == [14, 7, 4]


def test_other_errors_reach_the_caller_unchanged():
    def work(piece: range, pool: WorkerPool) -> None:
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        finish(WorkerPool(8, 8, work, CPU))


def endless(piece: range, pool: WorkerPool) -> None:
    while True:
        pool.check()
        time.sleep(0.001)


def test_cancel_stops_all_threads():
    cancel = threading.Event()
    pool = WorkerPool(64, 64, endless, CPU, cancel, min_piece=1)
    threading.Timer(0.05, cancel.set).start()
    before = threading.active_count()
    with pytest.raises(Cancelled):
        finish(pool)
    assert threading.active_count() <= before


def test_closing_the_iterator_stops_all_threads():
    def work(piece: range, pool: WorkerPool) -> None:
        pool.notify()
        endless(piece, pool)

    before = threading.active_count()
    running = WorkerPool(64, 64, work, CPU, min_piece=1).run()
    next(running)
    assert threading.active_count() > before
    running.close()
    assert threading.active_count() == before


def test_where_the_second_thread_cannot_start_the_first_does_not_wait_for_it(monkeypatch):
    real, started = threading.Thread.start, list[threading.Thread]()

    def start(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    with cores(2):
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(TTTError, match=r"no thread could be started \(can't start new thread\); close other"):
            finish(WorkerPool(64, 64, lambda piece, pool: None, CPU))
        monkeypatch.undo()
        started[0].join(10)
        assert not started[0].is_alive()
        done: list[int] = []
        finish(WorkerPool(64, 64, lambda piece, pool: done.extend(piece), CPU))
        assert sorted(done) == list(range(64))
        assert torch.get_num_threads() == 2


def test_the_number_of_threads_of_the_process_is_left_as_it_was():
    with cores(2):
        inside: list[int] = []
        meanwhile: list[int] = []

        def work(piece: range, pool: WorkerPool) -> None:
            inside.append(torch.get_num_threads())
            other = threading.Thread(target=lambda: meanwhile.append(torch.get_num_threads()))
            other.start()
            other.join()
            inside.append(torch.get_num_threads())

        pool = WorkerPool(64, 64, work, CPU)
        finish(pool)
        assert pool.threads == 2
        assert inside == [1] * 4
        assert torch.get_num_threads() == 2
        assert set(meanwhile) <= {1, 2}
        finish(WorkerPool(64, 64, lambda piece, pool: time.sleep(0.01), CPU))
        assert in_new_thread(torch.get_num_threads) == 2


def in_new_thread(ask: Callable[[], object]) -> object:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.parametrize("asks", [None, torch.get_num_threads], ids=["first in the pool", "before"])
def test_crews_at_once_leave_later_threads_all_cores(asks: Callable[[], object] | None, monkeypatch):
    """A thread reads its number of cores for the first time just after the threads of another pool set theirs to 1."""
    real, set_to_1, first_done = torch.set_num_threads, threading.Event(), threading.Event()
    made: list[int] = []

    def slow(number: int) -> None:
        real(number)
        if number == 1:
            set_to_1.set()
            time.sleep(0.05)

    def late() -> None:
        set_to_1.wait(5)
        if asks is not None:
            asks()
        pool = WorkerPool(64, 64, lambda piece, pool: None, CPU)
        made.append(pool.threads)
        first_done.wait(5)
        finish(pool)

    with cores(2):
        monkeypatch.setattr(torch, "set_num_threads", slow)
        thread = threading.Thread(target=late)
        thread.start()
        finish(WorkerPool(64, 64, lambda piece, pool: None, CPU))
        first_done.set()
        thread.join()
        assert in_new_thread(torch.get_num_threads) == 2
        assert torch.get_num_threads() == 2
        assert asks is not None or made == [2]


@pytest.mark.parametrize(("size", "pieces"), [(128, [64, 64]), (110, [32] * 4), (50, [22] * 5 + [18])])
def test_if_memory_is_short_the_pieces_are_of_equal_size(size: int, pieces: list[int]):
    """Not 55, 55 and 18: the last would read all weights for a few candidates, with the other core idle."""
    done: list[int] = []
    finish(WorkerPool(128, size, lambda piece, pool: done.append(len(piece)), CPU, cores=2))
    assert sorted(done, reverse=True) == pieces


@pytest.mark.parametrize(("candidates", "threads"), [(1, 1), (7, 1), (8, 2), (15, 3), (16, 4), (128, 4)])
def test_a_core_of_its_own_for_every_four_candidates(candidates: int, threads: int):
    pool = WorkerPool(candidates, candidates, endless, CPU, cores=4)
    assert (pool.threads, pool.inner_threads) == (threads, 4 // threads)


def test_memory_is_measured():
    assert 10 << 20 < memory_budget(CPU) < free_memory(CPU) < 1 << 50


def test_only_memory_errors_count_as_such():
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes don't match"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
