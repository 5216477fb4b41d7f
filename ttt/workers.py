"""A pool of threads that works on ranges of candidates, in pieces that fit in memory, and can be stopped.

On a CPU each thread has a core and candidates of its own. Two threads that each work on half of the candidates never
wait for each other; two threads inside every small operation would wait thousands of times a second. A GPU gets one
thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator

import torch

from ttt.errors import Cancelled, TTTError
from ttt.hardware import is_out_of_memory
from ttt.linear import MIN_ROWS
from ttt.text import first_line

Work = Callable[[range, "WorkerPool"], None]
_STARTING = threading.Lock()
"""Guards torch.set_num_threads, which also changes the default for threads started meanwhile."""


class WorkerPool:
    """Calls `work(piece, pool)` for pieces of `range(count)`, in threads.

        pool = WorkerPool(count, size, work, device, cancel)
        for _ in pool.run(): ...        # after each `pool.notify()` of the work, and at least twice a second

    After an out-of-memory error the pieces are halved and the failed one is tried again. Setting `cancel`, or closing
    the iterator, makes the next `pool.check()` in every thread raise Cancelled.
    """

    def __init__(
        self,
        count: int,
        size: int,
        work: Work,
        device: torch.device,
        cancel: threading.Event | None = None,
        *,
        min_piece: int = MIN_ROWS,
        cores: int | None = None,
        padded_to: int = 1,
    ) -> None:
        """size: candidates that all threads together may hold in memory at a time.

        min_piece: smaller pieces are not given to a thread of their own. cores: to use in all, None for all of torch's.
        padded_to: the work pads smaller pieces to this size, so they would not save memory.
        """
        self.work, self.device, self.cancel, self.padded_to = work, device, cancel, padded_to
        self.size = max(1, min(size, count))
        with _STARTING:  # a thread keeps the first answer that it gets
            all_cores = torch.get_num_threads()
        cores = cores or (all_cores if device.type == "cpu" else 1)
        self.threads = max(1, min(cores, self.size // min_piece))
        self.inner_threads = max(1, cores // self.threads)
        rounds = -(-count // self.size)  # equal pieces: a small last one takes nearly as long as a large one
        self.limit = -(-count // (rounds * self.threads)) if count else 1
        self._todo = deque([range(count)])
        self._closed = False
        self._failure: BaseException | None = None
        self._notified = threading.Event()
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise Cancelled if the work should stop."""
        if self._closed or self._failure is not None or (self.cancel is not None and self.cancel.is_set()):
            raise Cancelled("stopped on request")

    def notify(self) -> None:
        """Make `run` yield: there is progress to show."""
        self._notified.set()

    def run(self) -> Generator[None]:
        threads = self._start()
        try:
            while any(thread.is_alive() for thread in threads):
                self._notified.wait(0.5)
                self._notified.clear()
                if self._failure is None:
                    yield
        finally:
            self._closed = True
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _start(self) -> list[threading.Thread]:
        """Start the threads, each with its share of the cores; afterwards torch's default is what it was before."""
        ready, defaults = threading.Barrier(self.threads + 1), list[int]()
        threads = [
            threading.Thread(target=self._worker, args=(ready, defaults), daemon=True) for _ in range(self.threads)
        ]
        with _STARTING:
            try:
                for thread in threads:
                    thread.start()
                ready.wait()  # all have read the default
                ready.wait()  # all have set their own number
            except BaseException as error:
                ready.abort()  # or the threads that did start would wait for the rest
                if not isinstance(error, RuntimeError):
                    raise
                raise TTTError(
                    f"no thread could be started ({first_line(error)}); close other programs, or raise the limit of "
                    "processes (ulimit -u)"
                ) from error
            finally:
                # Not the number that this thread reads: it may be one that another pool had set at the time.
                if defaults and {self.inner_threads, torch.get_num_threads()} != {defaults[0]}:
                    torch.set_num_threads(defaults[0])
        return threads

    def _worker(self, ready: threading.Barrier, defaults: list[int]) -> None:
        """Body of a thread. Barrier 1: no thread has changed the default yet. Barrier 2: all have set their number."""
        try:
            defaults.append(torch.get_num_threads())
            ready.wait()
            if self.device.type == "cpu" and torch.get_num_threads() != self.inner_threads:
                torch.set_num_threads(self.inner_threads)
            ready.wait()
        except threading.BrokenBarrierError:  # another thread could not be started; `_start` reports it
            return
        try:
            with torch.inference_mode():
                while self._failure is None and (piece := self._next()) is not None:
                    self.check()
                    if self._ran_out_of_memory(piece):
                        self._halve(piece)
        except BaseException as error:  # `run` raises it in the thread of the caller
            self._failure = self._failure or error
        finally:
            self.notify()

    def _ran_out_of_memory(self, piece: range) -> bool:
        """Work on a piece. A function of its own: the error's frames, which hold the piece's tensors, end with it."""
        try:
            self.work(piece, self)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return True
        return False

    def _next(self) -> range | None:
        with self._lock:
            if not self._todo:
                return None
            piece = self._todo.popleft()
            if len(piece) > self.limit:
                self._todo.appendleft(piece[self.limit :])
                piece = piece[: self.limit]
            return piece

    def _halve(self, piece: range) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(piece) <= self.padded_to:
            raise TTTError(
                "there is not enough memory for even one candidate; close other programs, or choose a smaller model "
                "or another device"
            )
        with self._lock:
            self.limit = min(self.limit, max(self.padded_to, len(piece) // 2))
            self._todo.appendleft(piece)
