"""The desk: turns, places, stopping, and what happens when nobody watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from ttt.errors import Cancelled, InvalidInput
from ttt.ui.generate.queue import Busy, Desk, Job, Update, Work


def until(true: Callable[[], object], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


class Bench:
    """Work that waits to be let go, and the order in which it was begun."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.go = threading.Event()

    def work(self, name: str) -> Work:
        def run(job: Job) -> None:
            self.order.append(name)
            while not self.go.wait(0.01):
                if job.cancel.is_set():
                    raise Cancelled("stopped")
            job.publish(Update("finished", result=name))

        return run


def test_users_take_turns_and_are_told_their_place() -> None:
    desk, bench = Desk(), Bench()
    jobs = {name: desk.open(name[0]) for name in ("a1", "a2", "a3", "b1", "c1", "b2")}
    for name, job in jobs.items():
        desk.enqueue(job, bench.work(name))
        until(lambda: bench.order == ["a1"])
    ahead = {name: job.update.ahead for name, job in jobs.items() if job.update.phase == "waiting"}
    assert ahead == {"a2": 1, "b1": 2, "c1": 3, "a3": 4, "b2": 5}
    bench.go.set()
    until(lambda: all(job.update.ended for job in jobs.values()))
    assert bench.order == ["a1", "a2", "b1", "c1", "a3", "b2"]


def test_who_asks_later_but_less_is_served_before_the_rest_of_who_asks_most() -> None:
    desk, bench = Desk(), Bench()
    mine = [desk.open("a") for _ in range(3)]
    for i, job in enumerate(mine):
        desk.enqueue(job, bench.work(f"a{i}"))
    until(lambda: bench.order == ["a0"])
    other = desk.open("b")
    desk.enqueue(other, bench.work("b"))
    bench.go.set()
    until(lambda: other.update.ended and all(job.update.ended for job in mine))
    assert bench.order.index("b") < bench.order.index("a2")


def test_stop_ends_one_job_alone_and_others_move_up() -> None:
    desk, bench = Desk(), Bench()
    running, waiting, last = (desk.open(user) for user in "abc")
    for name, job in (("running", running), ("waiting", waiting), ("last", last)):
        desk.enqueue(job, bench.work(name))
    until(lambda: bench.order == ["running"])
    until(lambda: last.update.ahead == 2)
    waiting.stop()
    assert waiting.update.phase == "stopped"
    assert last.update.ahead == 1
    running.stop()
    assert running.cancel.is_set()
    assert not last.cancel.is_set()
    until(lambda: bench.order == ["running", "last"])
    bench.go.set()
    until(lambda: last.update.result == "last")
    assert "waiting" not in bench.order


def test_after_the_end_and_backwards_nothing_changes() -> None:
    job = Desk().open("a")
    job.publish(Update("working", fraction=0.5))
    began = job.update.since
    job.publish(Update("waiting", ahead=3))
    assert job.update.phase == "working"
    job.publish(Update("working", fraction=0.6))
    assert (job.update.fraction, job.update.since) == (0.6, began)
    job.stop()
    job.publish(Update("finished", result="late"))
    assert job.update.phase == "stopped"


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (InvalidInput("candidates must be fewer"), "candidates must be fewer"),
        (RuntimeError("secret path"), "Something went wrong inside the app (RuntimeError)."),
        (None, "The model stopped without a result."),
    ],
)
def test_a_failure_ends_its_job_and_the_desk_goes_on(raised: Exception | None, message: str) -> None:
    desk, bench = Desk(), Bench()

    def fail(job: Job) -> None:
        if raised:
            raise raised

    broken, fine = desk.open("a"), desk.open("a")
    bench.go.set()
    desk.enqueue(broken, fail)
    desk.enqueue(fine, bench.work("fine"))
    until(lambda: fine.update.ended)
    assert (broken.update.phase, broken.update.message) == ("failed", message)
    assert fine.update.result == "fine"


def test_a_watcher_sees_the_news_and_a_heartbeat() -> None:
    job = Desk().open("a")
    watching = job.watch(heartbeat=0.01)
    first = next(watching)
    assert next(watching) is first  # a heartbeat
    job.publish(Update("working", fraction=0.2))
    assert next(watching).fraction == 0.2
    job.publish(Update("finished", result="x"))
    assert [update.result for update in watching] == ["x"]


def test_closing_the_last_watcher_stops_the_work_at_once_without_grace() -> None:
    job = Desk().open("a")
    one, two = job.watch(0.01), job.watch(0.01)
    next(one), next(two)
    one.close()
    assert not job.cancel.is_set()
    two.close()
    assert job.cancel.is_set()


def test_grace_lets_a_reloaded_page_come_back() -> None:
    desk = Desk()
    left, returned = desk.open("a", grace=0.2), desk.open("b", grace=0.2)
    for job in (left, returned):
        watcher = job.watch(0.01)
        next(watcher)
        watcher.close()
    found = desk.find(returned.id)
    assert found is returned
    watcher = found.watch(0.01)
    next(watcher)
    until(lambda: left.cancel.is_set())
    assert not returned.cancel.is_set()


def test_ids_cannot_be_guessed_and_strangers_find_nothing() -> None:
    desk = Desk()
    ids = {desk.open(str(i)).id for i in range(20)}
    assert len(ids) == 20
    assert min(map(len, ids)) >= 24
    for wrong in ("", "x", None, 3, {"a": 1}, ["b"]):
        assert desk.find(wrong) is None


def test_too_many_requests_are_refused_with_the_number_allowed() -> None:
    desk = Desk(max_waiting=3, max_per_user=2)
    mine = [desk.open("a") for _ in range(2)]
    with pytest.raises(Busy, match="2 requests"):
        desk.open("a")
    desk.open("b")
    with pytest.raises(Busy, match="3 requests"):
        desk.open("c")
    mine[0].stop()
    desk.open("a")
