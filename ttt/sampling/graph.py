"""Steps recorded as a CUDA graph and replayed: no Python, and one launch, a code. Knows nothing of what a step does.

A recording is believed only after it has repeated what the step itself did; where recording, believing or replaying
fails, one warning says so and the step is called as any other function is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ttt.hardware import is_out_of_memory

log = logging.getLogger(__name__)

REHEARSALS = 2
"""Steps before a recording: libraries load kernels and choose among them at the first ones. And after it, to check."""
_ONE_AT_A_TIME = threading.Lock()
"""A process may record one graph at a time."""

Run = Callable[[], None]


class Step(Protocol):
    """What can be recorded: calls do the same operations on the same memory, and ask nothing of the host."""

    codes: Tensor
    """What calls leave behind, int64 [n, b]."""

    def restart(self) -> None:
        """Forget all calls."""

    def __call__(self) -> None: ...


def cuda_graph(step: Run, device: torch.device) -> Run:
    """Rehearse `step` on a stream of its own, then record it there, its temporary tensors in a memory pool of its own;
    -> the replay on the current stream, which keeps both alive. Raises what CUDA and its libraries raise.

    What other threads do on the device meanwhile neither ends the recording nor is forbidden ("thread_local").
    """
    with _ONE_AT_A_TIME, torch.cuda.device(device):
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # left whatever fails inside: the graph's own context may not leave it
            try:
                for _ in range(REHEARSALS):
                    step()
            finally:
                side.synchronize()  # or memory that a failure frees could be given away while still written to
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                step()
    return graph.replay


class Recorder:
    """Records the steps of one device, until that `failed`."""

    def __init__(self, device: torch.device, capture: Callable[[Run, torch.device], Run] = cuda_graph) -> None:
        self.device, self.capture, self.failed, self._told = device, capture, False, False

    def record(self, step: Step) -> Run | None:
        """-> what does a step, from where `step.restart()` puts it; None where it cannot be recorded.

        `step` can be called REHEARSALS times and more. Raises where memory runs out for these calls themselves.
        """
        if self.failed:
            return None
        rehearsed = False
        try:
            expected = _codes_after(step, step)
            rehearsed = True
            step.restart()
            replay = self.capture(step, self.device)
            if not torch.equal(_codes_after(step, replay), expected):
                raise RuntimeError("a replay painted other codes than the step that it was recorded from")
        except Exception as error:
            if ran_out(error) and not rehearsed:
                raise
            self.give_up(error)
            return None
        return _Recording(self, step, replay)

    def give_up(self, error: Exception) -> None:
        """Say why, once. Memory that ran out may be there next time; what else failed is not tried again."""
        if not self._told:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("painting on %s without CUDA graphs, which is slower: %s", self.device, reason)
        self._told = True
        self.failed = self.failed or not ran_out(error)


class _Recording:
    """Replays, until a replay fails: from then on the step itself, which finds all as the last replay left it."""

    def __init__(self, recorder: Recorder, step: Step, replay: Run) -> None:
        self.recorder, self.step, self.run = recorder, step, replay

    def __call__(self) -> None:
        try:
            self.run()
        except RuntimeError as error:
            if self.run is self.step:
                raise
            self.recorder.give_up(error)
            self.run = self.step
            self.step()


@lru_cache(maxsize=32)
def recorder_on(device: torch.device) -> Recorder:
    """The one of this process for `device`."""
    return Recorder(device)


def ran_out(error: BaseException | None) -> bool:
    """Whether memory ran out, be it that ending the recording failed for that reason, too."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _codes_after(step: Step, run: Run) -> Tensor:
    """What REHEARSALS runs leave."""
    step.restart()
    for _ in range(REHEARSALS):
        run()
    return step.codes.clone()
