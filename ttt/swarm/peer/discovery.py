"""Follows a run in the DHT for one peer: its announcement, donors of its state, roll-backs, and outages of the network.

Independent of the model and of training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ttt.errors import Cancelled
from ttt.swarm.config.options import PeerOptions
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.dht.node import SwarmDHT, announce_run, find_announcement, find_donors, reconnect, run_prefix
from ttt.swarm.process.reporter import Reporter

WATCH_SECONDS = 10.0
ANNOUNCE_SECONDS = 60.0
CHECKPOINT_WAIT_SECONDS = 60.0
"""At the end of a run: time without progress after which the coordinator counts as absent."""


class LeaveRequest:
    """The request to leave the swarm, with its reason. Any thread may make it; the training thread acts on it."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.reason = "asked to stop"
        self.restart = False
        """Start this program again once the peer has left."""
        self.restart_options: list[str] = []
        """Options of the command line that replace those given before."""

    def leave_and_restart(self, reason: str, *options: str) -> None:
        self.reason, self.restart, self.restart_options = reason, True, list(options)
        self.event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep; return True at once when the request is made."""
        return self.event.wait(seconds)

    def raise_if_made(self) -> None:
        if self.event.is_set():
            raise Cancelled(self.reason)


def wait_for_run(
    dht: SwarmDHT, options: PeerOptions, run: str, reporter: Reporter, leave: LeaveRequest
) -> Announcement:
    """Wait until the run is announced by its coordinator, or by an initial peer that names the coordinator.

    Raises Cancelled if asked to leave meanwhile.
    """
    while (announcement := find_announcement(dht, run, options.coordinators)) is None:
        reporter.set_state(
            "waiting for a donor",
            f"neither the coordinator nor an initial peer has announced the run {run!r}; are they running?",
        )
        leave.wait(1.0)
        leave.raise_if_made()
    return announcement


class RunDiscovery:
    """Follows one generation of a run; asks the peer to leave and restart when the run was rolled back."""

    def __init__(
        self,
        dht: SwarmDHT,
        options: PeerOptions,
        run: str,
        announcement: Announcement,
        reporter: Reporter,
        leave: LeaveRequest,
    ) -> None:
        self.dht, self.options, self.run, self.reporter, self.leave = dht, options, run, reporter, leave
        self.generation, self.coordinator = announcement.generation, announcement.coordinator
        self.run_prefix = run_prefix(run, self.generation)

    def wait_for_donor(self) -> None:
        """Wait until a peer or the coordinator offers the state. Raises Cancelled if asked to leave meanwhile."""
        while not find_donors(self.dht, self.run_prefix):
            self.reporter.set_state(
                "waiting for a donor",
                "neither the coordinator nor a peer offers the state of the run; a peer never starts a run itself",
            )
            self._check_generation()
            self.leave.wait(1.0)
            self.leave.raise_if_made()

    def wait_for_final_checkpoint(self, step: int, state_bytes_sent: Callable[[], int]) -> None:
        """Stay until the coordinator offers the state of the last step itself, or appears to be absent.

        state_bytes_sent: bytes of the state that others have downloaded from this peer; while they grow, a download is
        in progress.
        """
        last, deadline = state_bytes_sent(), time.monotonic() + CHECKPOINT_WAIT_SECONDS
        while time.monotonic() < deadline and not self.leave.wait(1.0):
            donors = find_donors(self.dht, self.run_prefix)
            if donors.get(self.coordinator, -1) >= step:
                return
            if (sent := state_bytes_sent()) != last:
                last, deadline = sent, time.monotonic() + CHECKPOINT_WAIT_SECONDS

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Run a thread that reconnects after an outage, repeats the announcement of the run, and notices roll-backs."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), daemon=True, name="network")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=35)

    def _watch(self, done: threading.Event) -> None:
        announced = float("-inf")
        while not done.wait(WATCH_SECONDS):
            try:
                reconnect(self.dht, self.options.initial_peers)
                if not self.options.client and time.monotonic() - announced > ANNOUNCE_SECONDS:
                    # Newcomers who join at this peer's address learn from it which coordinator to trust.
                    announcement = Announcement(generation=self.generation, coordinator=self.coordinator)
                    if announce_run(self.dht, self.run, announcement):
                        announced = time.monotonic()
                self._check_generation()
            except Exception as error:  # if this thread ended, the peer would never reconnect after an outage
                self.reporter.report_problem(f"checking the network failed: {error or type(error).__name__}")

    def _check_generation(self) -> None:
        # Only the coordinator's word counts from now on: a peer must not be able to make others rejoin.
        announcement = find_announcement(self.dht, self.run, [self.coordinator])
        if announcement is not None and announcement.generation > self.generation:
            self.leave.leave_and_restart("the run was rolled back; rejoining it")
