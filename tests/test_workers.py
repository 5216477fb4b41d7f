"""Threads, pieces, memory that runs out, and stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from tests.support.cores import cores
from ttt.errors import Cancelled, TTTError
from ttt.hardware import free_memory, is_out_of_memory, memory_budget
from ttt.workers import Crew

CPU = torch.device("cpu")


def finish(crew: Crew) -> int:
    return sum(1 for _ in crew.run())


@pytest.mark.parametrize(("count", "size"), [(1, 1), (7, 3), (128, 128), (10, 1), (33, 16)])
def test_every_candidate_is_done_once(count: int, size: int):
    done: list[int] = []
    pieces: list[int] = []

    def work(piece: range, crew: Crew) -> None:
        done.extend(piece)
        pieces.append(len(piece))

    crew = Crew(count, size, work, CPU)
    finish(crew)
    assert sorted(done) == list(range(count))
    assert max(pieces) * crew.threads <= size + crew.threads - 1


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
              RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")],
)  # fmt: skip
def test_running_out_of_memory_halves_the_pieces_and_goes_on(error: Exception):
    tried: list[int] = []
    done: list[int] = []

    def work(piece: range, crew: Crew) -> None:
        tried.append(len(piece))
        if len(piece) > 3:
            raise error
        done.extend(piece)

    finish(Crew(36, 12, work, CPU, min_piece=100))
    assert sorted(done) == list(range(36))
    assert tried[:3] == [12, 6, 3]
    assert tried.count(12) == 1, "a size that failed is not tried again"


def test_one_candidate_too_many_is_an_error_that_says_so():
    def work(piece: range, crew: Crew) -> None:
        raise MemoryError

    with pytest.raises(TTTError, match="not enough memory for even one candidate"):
        finish(Crew(8, 8, work, CPU))


def test_pieces_that_the_work_fills_up_are_not_made_smaller_than_that():
    tried: list[int] = []

    def work(piece: range, crew: Crew) -> None:
        tried.append(len(piece))
        raise MemoryError

    with pytest.raises(TTTError, match="not enough memory for even one candidate"):
        finish(Crew(14, 14, work, CPU, cores=1, filled_up_to=4))
    assert tried == [14, 7, 4]


def test_other_errors_arrive_as_they_are():
    def work(piece: range, crew: Crew) -> None:
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        finish(Crew(8, 8, work, CPU))


def endless(piece: range, crew: Crew) -> None:
    while True:
        crew.check()
        time.sleep(0.001)


def test_cancel_stops_all_threads():
    cancel = threading.Event()
    crew = Crew(64, 64, endless, CPU, cancel, min_piece=1)
    threading.Timer(0.05, cancel.set).start()
    before = threading.active_count()
    with pytest.raises(Cancelled):
        finish(crew)
    assert threading.active_count() <= before


def test_closing_the_iterator_stops_all_threads():
    def work(piece: range, crew: Crew) -> None:
        crew.tick()
        endless(piece, crew)

    before = threading.active_count()
    running = Crew(64, 64, work, CPU, min_piece=1).run()
    next(running)
    assert threading.active_count() > before
    running.close()
    assert threading.active_count() == before


def test_the_number_of_threads_of_the_process_is_left_as_it_was():
    with cores(2):
        inside: list[int] = []
        meanwhile: list[int] = []

        def work(piece: range, crew: Crew) -> None:
            inside.append(torch.get_num_threads())
            other = threading.Thread(target=lambda: meanwhile.append(torch.get_num_threads()))
            other.start()
            other.join()
            inside.append(torch.get_num_threads())

        crew = Crew(64, 64, work, CPU)
        finish(crew)
        assert crew.threads == 2
        assert inside == [1] * 4
        assert torch.get_num_threads() == 2
        assert set(meanwhile) <= {1, 2}
        finish(Crew(64, 64, lambda piece, crew: time.sleep(0.01), CPU))
        assert in_new_thread(torch.get_num_threads) == 2


def in_new_thread(ask: Callable[[], object]) -> object:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.parametrize("asks", [None, torch.get_num_threads], ids=["the crew asks", "asked before"])
def test_crews_at_once_leave_later_threads_all_cores(asks: Callable[[], object] | None, monkeypatch):
    """A thread first asks for its number of cores while another crew's have just set theirs to 1."""
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
        crew = Crew(64, 64, lambda piece, crew: None, CPU)
        made.append(crew.threads)
        first_done.wait(5)
        finish(crew)

    with cores(2):
        monkeypatch.setattr(torch, "set_num_threads", slow)
        thread = threading.Thread(target=late)
        thread.start()
        finish(Crew(64, 64, lambda piece, crew: None, CPU))
        first_done.set()
        thread.join()
        assert in_new_thread(torch.get_num_threads) == 2
        assert torch.get_num_threads() == 2
        assert asks is not None or made == [2]


@pytest.mark.parametrize(("size", "pieces"), [(128, [64, 64]), (110, [32] * 4), (50, [22] * 5 + [18])])
def test_where_memory_is_short_the_pieces_are_of_a_size(size: int, pieces: list[int]):
    """Not 55, 55 and 18: the last would read all weights for a few candidates, with the other core idle."""
    done: list[int] = []
    finish(Crew(128, size, lambda piece, crew: done.append(len(piece)), CPU, cores=2))
    assert sorted(done, reverse=True) == pieces


@pytest.mark.parametrize(("candidates", "threads"), [(1, 1), (7, 1), (8, 2), (15, 3), (16, 4), (128, 4)])
def test_a_core_of_its_own_for_every_four_candidates(candidates: int, threads: int):
    crew = Crew(candidates, candidates, endless, CPU, cores=4)
    assert (crew.threads, crew.inner_threads) == (threads, 4 // threads)


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
