"""How a peer finds its run, a donor of the state, the way back after a cut; sees a roll-back. Knows no tensors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ttt.errors import Cancelled
from ttt.swarm.config.options import PeerOptions
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.dht.node import SwarmDHT, find_announcement, find_donors, reconnect
from ttt.swarm.process.reporter import Reporter

LOOK_AROUND_SECONDS = 10.0
HAND_OVER_SECONDS = 60.0
"""Without a sign of the coordinator, at the end of a run."""


class Lookout:
    """The eyes of one peer on its network."""

    def __init__(self, dht: SwarmDHT, options: PeerOptions, run: str, reporter: Reporter, stop: threading.Event):
        self.dht, self.options, self.run, self.reporter, self.stop = dht, options, run, reporter, stop

    def wait_for_run(self) -> Announcement:
        """The announcement of a coordinator that the peer was told; Cancelled when asked to stop meanwhile."""
        while (found := self._announced()) is None:
            self.reporter.set_state(
                "waiting for a donor",
                f"nobody has announced the run {self.run!r} yet; is its coordinator running?",
            )
            self._pause()
        return found

    def wait_for_donor(self, run_prefix: str, generation: int, rolled_back: Callable[[], None]) -> None:
        """Until somebody offers the state of this generation; Cancelled when asked to stop meanwhile.

        rolled_back: called where there is a newer one, whose state nobody offers here.
        """
        while not find_donors(self.dht, run_prefix):
            self.reporter.set_state(
                "waiting for a donor",
                "neither the coordinator nor any peer offers the state of the run; a peer never begins a run by itself",
            )
            self._look_for_newer(generation, rolled_back)
            self._pause()

    def hand_over(self, run_prefix: str, step: int, given: Callable[[], int]) -> None:
        """Stay until the coordinator has the state of the last step: until it offers it itself, or is away.

        given: bytes of the state that others took from us so far; while these grow, somebody is taking it.
        """
        last, deadline = given(), time.monotonic() + HAND_OVER_SECONDS
        while time.monotonic() < deadline and not self.stop.wait(1.0):
            offers = find_donors(self.dht, run_prefix)
            if any(offers.get(coordinator, -1) >= step for coordinator in self.options.coordinators):
                return
            if (now := given()) != last:
                last, deadline = now, time.monotonic() + HAND_OVER_SECONDS

    @contextmanager
    def watching(self, generation: int, rolled_back: Callable[[], None]) -> Iterator[None]:
        """A thread that finds the way back into a network that was cut, and tells of a roll-back."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done, generation, rolled_back), daemon=True, name="network")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=35)

    def _watch(self, done: threading.Event, generation: int, rolled_back: Callable[[], None]) -> None:
        while not done.wait(LOOK_AROUND_SECONDS):
            try:
                reconnect(self.dht, self.options.initial_peers)
                self._look_for_newer(generation, rolled_back)
            except Exception as error:  # without this thread the peer would never find back after a cut
                self.reporter.report_problem(f"looking around in the network failed: {error or type(error).__name__}")

    def _look_for_newer(self, generation: int, rolled_back: Callable[[], None]) -> None:
        found = self._announced()
        if found is not None and found.generation > generation:
            rolled_back()

    def _announced(self) -> Announcement | None:
        return find_announcement(self.dht, self.run, self.options.coordinators)

    def _pause(self) -> None:
        if self.stop.wait(1.0):
            raise Cancelled("asked to stop")
