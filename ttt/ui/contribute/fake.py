"""FakeDesk: a peer that trains nothing, for running the Contribute tab alone. Knows no processes and no gradio."""

from __future__ import annotations

import os
import time

from ttt.errors import InvalidInput
from ttt.swarm.process.control_files import Contribution, DesiredState, Phase
from ttt.swarm.process.launcher import PeerView
from ttt.swarm.process.status import PeerStatus, State
from ttt.swarm.training.requirements import ResourceEstimate
from ttt.ui.contribute.form import Asked, order_of
from ttt.ui.contribute.host import Gpu, Place

ADDRESS = "/ip4/203.0.113.5/tcp/8080/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
STORY: tuple[tuple[float, State], ...] = ((0, "starting"), (2, "connecting"), (4, "downloading"), (6, "computing"))
"""(seconds after Start, state)."""


class FakeDesk:
    """Goes through a peer's states by the clock."""

    def __init__(self, place: Place | None = None, pace: float = 12.0) -> None:
        self.defaults = Asked(run="made-up.toml", initial_peers=ADDRESS, name="me")
        self._place = place or Place(gpu=Gpu("Tesla T4", 15 << 30, 14 << 30), gpus=1, cores=8, ram=24 << 30)
        self._pace, self._began = pace, 0.0
        self._phase: Phase = "off"
        self._order: DesiredState | None = None
        self._before = Contribution()

    def view(self) -> PeerView:
        status = self._status() if self._phase == "running" else None
        work = self._before.plus(status) if status else self._before
        log = ("12:00:01  computing: training on cuda since step 12",) if status else ()
        return PeerView(
            phase=self._phase,
            status=status,
            desired_state=self._order,
            contribution=work,
            peer_pid=os.getpid() if status else 0,
            log=log,
        )

    def place(self) -> Place:
        return self._place

    def demand(self, asked: Asked) -> ResourceEstimate | str:
        return (
            ResourceEstimate("made-up", "a made-up run", 4096, 125_900_000, 16, 5 << 30, 1 << 30, 1e12)
            if asked.run
            else ""
        )

    def pace(self, demand: ResourceEstimate) -> float:
        return self._pace / 100

    def share(self) -> float | None:
        return 0.12 if self._phase == "running" else None

    def start(self, asked: Asked) -> None:
        demand = self.demand(asked)
        if self._phase != "off":
            raise InvalidInput("the peer runs already; stop it first to start it with other settings")
        self._order = order_of(
            asked, self._place, demand if isinstance(demand, ResourceEstimate) else ResourceEstimate("", "", 0)
        )
        self._phase, self._began = "running", time.time()

    def pause(self, hours: float | None) -> None:
        self._end("paused")

    def resume(self) -> None:
        self._phase, self._began = "running", time.time()

    def stop(self) -> None:
        self._end("off")

    def _end(self, phase: Phase) -> None:
        self._before, self._phase = self.view().contribution, phase

    def _status(self) -> PeerStatus:
        age = time.time() - self._began
        state = [state for after, state in STORY if age >= after][-1]
        samples = int(max(0.0, age - STORY[-1][0]) * self._pace)
        return PeerStatus(
            state=state, run="made-up", name="me", pid=os.getpid(), started=self._began, time=time.time(),
            step=12 + samples // 100, steps_done=samples // 100, samples=samples, samples_per_second=self._pace,
            swarm_samples=40 * samples % 4096, global_batch=4096, loss=6.1 - samples * 1e-4, peers=7, group_size=7,
            results_received=1.0, sent_bytes=samples << 18, received_bytes=samples << 18,
        )  # fmt: skip
