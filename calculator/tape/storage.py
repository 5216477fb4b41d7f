"""Live bytes and their peaks: every storage adds its size on creation and subtracts it on deletion."""

from __future__ import annotations


class Memory:
    """Live bytes, and their peaks since the last `restart`.

    `live` counts everything; `gradients` is the part that belongs to parameters, `activation_gradients` the part that
    belongs to activations. `peak` is the largest `live`, recorded together with the other two at that moment.
    `without_gradients` is the largest `live - gradients`; `accumulating` is the same quantity when every new parameter
    gradient is added to an existing one.
    """

    __slots__ = (
        "accumulating",
        "activation_gradients",
        "gradients",
        "live",
        "peak",
        "peak_activation_gradients",
        "peak_gradients",
        "without_gradients",
    )

    def __init__(self) -> None:
        self.live = self.gradients = self.activation_gradients = 0
        self.restart()

    def restart(self) -> None:
        """Reset the peaks to the current values."""
        self.peak, self.peak_gradients, self.peak_activation_gradients = (
            self.live,
            self.gradients,
            self.activation_gradients,
        )
        self.without_gradients = self.accumulating = self.live - self.gradients

    def peaks(self) -> Peaks:
        return (
            (self.peak, self.peak_gradients, self.peak_activation_gradients),
            self.without_gradients,
            self.accumulating,
        )

    def set_peaks(self, *candidates: Peaks) -> None:
        self.peak, self.peak_gradients, self.peak_activation_gradients = max(c[0] for c in candidates)
        self.without_gradients = max(c[1] for c in candidates)
        self.accumulating = max(c[2] for c in candidates)


Peaks = tuple[tuple[int, int, int], int, int]


class Storage:
    """`size` bytes of a memory, from creation until the last reference is dropped."""

    __slots__ = ("memory", "size")

    def __init__(self, memory: Memory, size: int) -> None:
        self.memory, self.size = memory, size
        live = memory.live = memory.live + size
        if live > memory.peak:
            memory.peak, memory.peak_gradients, memory.peak_activation_gradients = (
                live,
                memory.gradients,
                memory.activation_gradients,
            )
        live -= memory.gradients
        if live > memory.without_gradients:
            memory.without_gradients = live

    def __del__(self) -> None:
        self.memory.live -= self.size


class ActivationGradient(Storage):
    """The storage of an activation's gradient."""

    __slots__ = ()

    def __init__(self, memory: Memory, size: int) -> None:
        memory.activation_gradients += size
        super().__init__(memory, size)

    def __del__(self) -> None:
        self.memory.activation_gradients -= self.size
        self.memory.live -= self.size
