"""Bytes alive and their peaks: storages that count themselves in and out. Knows no tensors and no operations."""

from __future__ import annotations


class Memory:
    """Bytes alive now, and the most there were.

    live: all; gradients: of parameters, thereof; flow: of activations, thereof. `peak` is the largest `live`, with
    the other two as they were then; `without_gradients` the largest of what is left without those of parameters;
    `accumulating` the same where each new gradient of a parameter is added to an older one.
    """

    __slots__ = (
        "accumulating",
        "flow",
        "gradients",
        "live",
        "peak",
        "peak_flow",
        "peak_gradients",
        "without_gradients",
    )

    def __init__(self) -> None:
        self.live = self.gradients = self.flow = 0
        self.restart()

    def restart(self) -> None:
        """Forget the peaks so far."""
        self.peak, self.peak_gradients, self.peak_flow = self.live, self.gradients, self.flow
        self.without_gradients = self.accumulating = self.live - self.gradients

    def peaks(self) -> Peaks:
        return (self.peak, self.peak_gradients, self.peak_flow), self.without_gradients, self.accumulating

    def set_peaks(self, *candidates: Peaks) -> None:
        self.peak, self.peak_gradients, self.peak_flow = max(c[0] for c in candidates)
        self.without_gradients = max(c[1] for c in candidates)
        self.accumulating = max(c[2] for c in candidates)


Peaks = tuple[tuple[int, int, int], int, int]


class Storage:
    """`size` bytes of a memory, from now until the last reference is gone."""

    __slots__ = ("memory", "size")

    def __init__(self, memory: Memory, size: int) -> None:
        self.memory, self.size = memory, size
        live = memory.live = memory.live + size
        if live > memory.peak:
            memory.peak, memory.peak_gradients, memory.peak_flow = live, memory.gradients, memory.flow
        live -= memory.gradients
        if live > memory.without_gradients:
            memory.without_gradients = live

    def __del__(self) -> None:
        self.memory.live -= self.size


class Flow(Storage):
    """The gradient of an activation."""

    __slots__ = ()

    def __init__(self, memory: Memory, size: int) -> None:
        memory.flow += size
        super().__init__(memory, size)

    def __del__(self) -> None:
        self.memory.flow -= self.size
        self.memory.live -= self.size
