"""Captures a step as a CUDA graph and replays it: one launch per code, without Python.

A capture is used only after its replays gave the same codes as the step itself. If capturing, validating or replaying
fails, one warning is logged and the step is called as an ordinary function.
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
from ttt.text import first_line

log = logging.getLogger(__name__)

WARMUP_STEPS = 2
"""Steps before a capture, in which libraries load kernels and choose among them; and replays that validate it."""
_CAPTURING = threading.Lock()
"""A process can capture one graph at a time."""

Run = Callable[[], None]


class CapturableStep(Protocol):
    """A function that can be captured: every call does the same operations on the same memory, without the host."""

    codes: Tensor
    """The results of the calls, int64 [n, b]."""

    def restart(self) -> None:
        """Undo all calls."""

    def __call__(self) -> None: ...


def cuda_graph(step: Run, device: torch.device) -> Run:
    """Warm up `step` on a new stream and capture it there, with its temporary tensors in a memory pool of its own.

    Returns the replay on the current stream, which keeps graph and pool alive. Errors of CUDA and its libraries are
    raised. Other threads may use the device meanwhile ("thread_local").
    """
    with _CAPTURING, torch.cuda.device(device):
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # restored even where the graph's own context does not
            try:
                for _ in range(WARMUP_STEPS):
                    step()
            finally:
                side.synchronize()  # memory freed by a failure must not be reused while the device still writes to it
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                step()
    return graph.replay


class GraphCapturer:
    """Captures the steps of one device, until that `failed`."""

    def __init__(self, device: torch.device, capture_step: Callable[[Run, torch.device], Run] = cuda_graph) -> None:
        self.device, self.capture_step, self.failed, self._warned = device, capture_step, False, False

    def capture(self, step: CapturableStep) -> Run | None:
        """Return a function that does a step, starting where `step.restart()` leads; None if that is impossible.

        `step` must allow at least WARMUP_STEPS calls. An out-of-memory error of the step itself is raised.
        """
        if self.failed:
            return None
        step_works = False
        try:
            expected = _codes_after(step, step)
            step_works = True
            step.restart()
            replay = self.capture_step(step, self.device)
            if not torch.equal(_codes_after(step, replay), expected):
                raise RuntimeError("a replay sampled other codes than the step from which it was captured")
        except Exception as error:
            if ran_out_of_memory(error) and not step_works:
                raise
            self.give_up(error)
            return None
        return _CapturedStep(self, step, replay)

    def give_up(self, error: Exception) -> None:
        """Log the reason once. After an out-of-memory error capturing is tried again later; after others it is not."""
        if not self._warned:
            log.warning("sampling on %s without CUDA graphs, which is slower: %s", self.device, first_line(error))
        self._warned = True
        self.failed = self.failed or not ran_out_of_memory(error)


class _CapturedStep:
    """Replays until one fails; then calls the step itself, which continues from the memory of the last replay."""

    def __init__(self, capturer: GraphCapturer, step: CapturableStep, replay: Run) -> None:
        self.capturer, self.step, self.run = capturer, step, replay

    def __call__(self) -> None:
        try:
            self.run()
        except RuntimeError as error:
            if self.run is self.step:
                raise
            self.capturer.give_up(error)
            self.run = self.step
            self.step()


@lru_cache(maxsize=32)
def capturer_for(device: torch.device) -> GraphCapturer:
    """The only capturer of this process for `device`."""
    return GraphCapturer(device)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """True for out-of-memory errors, also if they only caused `error` (as when ending a capture fails after one)."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _codes_after(step: CapturableStep, run: Run) -> Tensor:
    """The codes after WARMUP_STEPS runs from the start."""
    step.restart()
    for _ in range(WARMUP_STEPS):
        run()
    return step.codes.clone()
