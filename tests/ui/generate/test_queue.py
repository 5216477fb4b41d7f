"""The job queue: turns, positions, stopping, and what happens when no client is watching."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from ttt.errors import Cancelled, InvalidInput
from ttt.ui.generate.queue import Job, JobFunction, JobQueue, QueueFull, Update


def until(true: Callable[[], object], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


class Bench:
    """Work that waits until `go` is set, and the order in which it was started."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.go = threading.Event()

    def work(self, name: str) -> JobFunction:
        def run(job: Job) -> None:
            self.order.append(name)
            while not self.go.wait(0.01):
                if job.cancel.is_set():
                    raise Cancelled("stopped")
            job.publish(Update("finished", result=name))

        return run


def test_users_take_turns_and_see_their_position() -> None:
    queue, bench = JobQueue(), Bench()
    jobs = {name: queue.create(name[0]) for name in ("a1", "a2", "a3", "b1", "c1", "b2")}
    for name, job in jobs.items():
        queue.enqueue(job, bench.work(name))
        until(lambda: bench.order == ["a1"])
    ahead = {name: job.update.ahead for name, job in jobs.items() if job.update.phase == "waiting"}
    assert ahead == {"a2": 1, "b1": 2, "c1": 3, "a3": 4, "b2": 5}
    bench.go.set()
    until(lambda: all(job.update.ended for job in jobs.values()))
    assert bench.order == ["a1", "a2", "b1", "c1", "a3", "b2"]


def test_a_user_with_one_job_is_served_before_the_rest_of_a_user_with_many() -> None:
    queue, bench = JobQueue(), Bench()
    mine = [queue.create("a") for _ in range(3)]
    for i, job in enumerate(mine):
        queue.enqueue(job, bench.work(f"a{i}"))
    until(lambda: bench.order == ["a0"])
    other = queue.create("b")
    queue.enqueue(other, bench.work("b"))
    bench.go.set()
    until(lambda: other.update.ended and all(job.update.ended for job in mine))
    assert bench.order.index("b") < bench.order.index("a2")


def test_stop_ends_one_job_alone_and_others_move_up() -> None:
    queue, bench = JobQueue(), Bench()
    running, waiting, last = (queue.create(user) for user in "abc")
    for name, job in (("running", running), ("waiting", waiting), ("last", last)):
        queue.enqueue(job, bench.work(name))
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
    job = JobQueue().create("a")
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
def test_a_failure_ends_its_job_and_the_queue_continues(raised: Exception | None, message: str) -> None:
    queue, bench = JobQueue(), Bench()

    def fail(job: Job) -> None:
        if raised:
            raise raised

    broken, fine = queue.create("a"), queue.create("a")
    bench.go.set()
    queue.enqueue(broken, fail)
    queue.enqueue(fine, bench.work("fine"))
    until(lambda: fine.update.ended)
    assert (broken.update.phase, broken.update.message) == ("failed", message)
    assert fine.update.result == "fine"


def test_a_watcher_sees_updates_and_a_heartbeat() -> None:
    job = JobQueue().create("a")
    watching = job.watch(heartbeat=0.01)
    first = next(watching)
    assert next(watching) is first  # a heartbeat
    job.publish(Update("working", fraction=0.2))
    assert next(watching).fraction == 0.2
    job.publish(Update("finished", result="x"))
    assert [update.result for update in watching] == ["x"]


def test_closing_the_last_watcher_stops_the_work_at_once_without_grace() -> None:
    job = JobQueue().create("a")
    one, two = job.watch(0.01), job.watch(0.01)
    next(one), next(two)
    one.close()
    assert not job.cancel.is_set()
    two.close()
    assert job.cancel.is_set()


def test_grace_lets_a_reloaded_page_come_back() -> None:
    queue = JobQueue()
    left, returned = queue.create("a", grace=0.2), queue.create("b", grace=0.2)
    for job in (left, returned):
        watcher = job.watch(0.01)
        next(watcher)
        watcher.close()
    found = queue.find(returned.id)
    assert found is returned
    watcher = found.watch(0.01)
    next(watcher)
    until(lambda: left.cancel.is_set())
    assert not returned.cancel.is_set()


def test_ids_cannot_be_guessed_and_other_values_find_nothing() -> None:
    queue = JobQueue()
    ids = {queue.create(str(i)).id for i in range(20)}
    assert len(ids) == 20
    assert min(map(len, ids)) >= 24
    for wrong in ("", "x", None, 3, {"a": 1}, ["b"]):
        assert queue.find(wrong) is None


def test_too_many_requests_are_refused_with_the_number_allowed() -> None:
    queue = JobQueue(max_pending=3, max_per_user=2)
    mine = [queue.create("a") for _ in range(2)]
    with pytest.raises(QueueFull, match="already have 2 requests"):
        queue.create("a")
    queue.create("b")
    with pytest.raises(QueueFull, match="3 requests"):
        queue.create("c")
    mine[0].stop()
    queue.create("a")
