"""Work on ranges of candidates: threads, pieces that fit the memory, stopping. Knows nothing of what the work is.

On a CPU each core takes candidates of its own: two threads with half of the candidates each never wait for
one another, where two threads inside every small operation wait thousands of times a second. A GPU gets one thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator

import torch

from ttt.errors import Cancelled, TTTError
from ttt.hardware import is_out_of_memory
from ttt.linear import MIN_ROWS

Work = Callable[[range, "Crew"], None]
_STARTING = threading.Lock()
"""Held while threads set their own number of cores, which until it is put back is also the default of new threads."""


class Crew:
    """One stage of one request: `work(range, crew)` for every piece of `range(count)`.

        crew = Crew(count, size, work, device, cancel)
        for _ in crew.run(): ...        # after each `crew.tick()` of the work, and at least twice a second

    An out-of-memory error halves the pieces and goes on. Setting `cancel` raises Cancelled at the next
    `crew.check()`; so does closing the iterator, in the threads.
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
        filled_up_to: int = 1,
    ) -> None:
        """size: candidates that all threads together may hold at once; min_piece: fewer don't get a thread of their
        own; cores: None for all of torch's; filled_up_to: the work fills smaller pieces up to this many.
        """
        self.work, self.device, self.cancel, self.filled_up_to = work, device, cancel, filled_up_to
        self.size = max(1, min(size, count))
        with _STARTING:  # a thread keeps the first answer it gets
            everyone = torch.get_num_threads()
        cores = cores or (everyone if device.type == "cpu" else 1)
        self.threads = max(1, min(cores, self.size // min_piece))
        self.inner_threads = max(1, cores // self.threads)
        rounds = -(-count // self.size)  # equal pieces: a small one at the end takes nearly as long as a large one
        self.limit = -(-count // (rounds * self.threads)) if count else 1
        self._todo = deque([range(count)])
        self._closed = False
        self._failure: BaseException | None = None
        self._ticked = threading.Event()
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise Cancelled if the work should stop."""
        if self._closed or self._failure is not None or (self.cancel is not None and self.cancel.is_set()):
            raise Cancelled("stopped on request")

    def tick(self) -> None:
        """Something can be shown."""
        self._ticked.set()

    def run(self) -> Generator[None]:
        threads = self._start()
        try:
            while any(thread.is_alive() for thread in threads):
                self._ticked.wait(0.5)
                self._ticked.clear()
                if self._failure is None:
                    yield
        finally:
            self._closed = True
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _start(self) -> list[threading.Thread]:
        """Threads at work, each with its cores; the default of threads to come is as before, and the caller's own."""
        ready, defaults = threading.Barrier(self.threads + 1), list[int]()
        threads = [
            threading.Thread(target=self._work_off, args=(ready, defaults), daemon=True) for _ in range(self.threads)
        ]
        with _STARTING:
            try:
                for thread in threads:
                    thread.start()
                ready.wait()  # all have looked
                ready.wait()  # all have set theirs
            finally:
                # Not what the caller's thread says: that may be what another crew's had set when it first asked.
                if defaults and {self.inner_threads, torch.get_num_threads()} != {defaults[0]}:
                    torch.set_num_threads(defaults[0])
        return threads

    def _work_off(self, ready: threading.Barrier, defaults: list[int]) -> None:
        defaults.append(torch.get_num_threads())
        ready.wait()
        if self.device.type == "cpu" and torch.get_num_threads() != self.inner_threads:
            torch.set_num_threads(self.inner_threads)
        ready.wait()
        try:
            with torch.inference_mode():
                while self._failure is None and (piece := self._next()) is not None:
                    self.check()
                    if self._ran_out(piece):
                        self._halve(piece)
        except BaseException as error:  # handed to the iterator's thread
            self._failure = self._failure or error
        finally:
            self.tick()

    def _ran_out(self, piece: range) -> bool:
        """Do a piece. The error's frames, which hold the piece's tensors, are gone when this returns."""
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
        if len(piece) <= self.filled_up_to:  # smaller ones would need as much
            raise TTTError(
                "there is not enough memory for even one candidate; close other programs, or choose a smaller model "
                "or another device"
            )
        with self._lock:
            self.limit = min(self.limit, max(self.filled_up_to, len(piece) // 2))
            self._todo.appendleft(piece)
