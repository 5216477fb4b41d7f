"""FakePeerController: a peer that only pretends to train, to run the tab alone. Independent of processes and Gradio."""

from __future__ import annotations

import os
import time

from ttt.errors import InvalidInput
from ttt.swarm.process.control_files import Contribution, DesiredState, Phase
from ttt.swarm.process.launcher import PeerView
from ttt.swarm.process.status import PeerStatus, State
from ttt.swarm.training.requirements import ResourceEstimate
from ttt.ui.contribute.form import PeerForm, desired_state_of
from ttt.ui.contribute.host import Gpu, HostInfo

ADDRESS = "/ip4/203.0.113.5/tcp/8080/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
TIMELINE: tuple[tuple[float, State], ...] = ((0, "starting"), (2, "connecting"), (4, "downloading"), (6, "computing"))
"""(seconds after Start, state)."""


class FakePeerController:
    """Goes through a peer's states as time passes."""

    def __init__(self, host: HostInfo | None = None, pace: float = 12.0) -> None:
        self.defaults = PeerForm(run="made-up.toml", initial_peers=ADDRESS, name="me")
        self._host = host or HostInfo(gpu=Gpu("Tesla T4", 15 << 30, 14 << 30), gpus=1, cores=8, ram=24 << 30)
        self._pace, self._started = pace, 0.0
        self._phase: Phase = "off"
        self._desired: DesiredState | None = None
        self._before = Contribution()

    def view(self) -> PeerView:
        status = self._status() if self._phase == "running" else None
        return PeerView(
            phase=self._phase,
            status=status,
            desired_state=self._desired,
            contribution=self._before.plus(status) if status else self._before,
            peer_pid=os.getpid() if status else 0,
            log=("12:00:01  computing: training on cuda since step 12",) if status else (),
        )

    def host(self) -> HostInfo:
        return self._host

    def estimate(self, form: PeerForm) -> ResourceEstimate | str:
        return (
            ResourceEstimate("made-up", "a made-up run", 4096, 125_900_000, 16, 5 << 30, 1 << 30, 1e12)
            if form.run
            else ""
        )

    def expected_pace(self, estimate: ResourceEstimate) -> float:
        return self._pace / 100

    def share(self) -> float | None:
        return 0.12 if self._phase == "running" else None

    def start(self, form: PeerForm) -> None:
        estimate = self.estimate(form)
        if self._phase != "off":
            raise InvalidInput("the peer is already running; stop it first to start it with other settings")
        known = estimate if isinstance(estimate, ResourceEstimate) else ResourceEstimate("", "", 0)
        self._desired = desired_state_of(form, self._host, known)
        self._phase, self._started = "running", time.time()

    def pause(self, hours: float | None) -> None:
        self._end("paused")

    def resume(self) -> None:
        self._phase, self._started = "running", time.time()

    def stop(self) -> None:
        self._end("off")

    def _end(self, phase: Phase) -> None:
        self._before, self._phase = self.view().contribution, phase

    def _status(self) -> PeerStatus:
        age = time.time() - self._started
        state = [state for after, state in TIMELINE if age >= after][-1]
        samples = int(max(0.0, age - TIMELINE[-1][0]) * self._pace)
        return PeerStatus(
            state=state, run="made-up", name="me", pid=os.getpid(), started=self._started, time=time.time(),
            step=12 + samples // 100, steps_done=samples // 100, samples=samples, samples_per_second=self._pace,
            swarm_samples=40 * samples % 4096, global_batch=4096, loss=6.1 - samples * 1e-4, peers=7, group_size=7,
            results_received=1.0, sent_bytes=samples << 18, received_bytes=samples << 18,
        )  # fmt: skip
