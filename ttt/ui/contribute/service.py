"""Control of this machine's peer for the Contribute tab and its endpoints. Independent of Gradio and of the network."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from ttt.errors import TTTError
from ttt.swarm.process.launcher import Launcher, PeerView, tail
from ttt.swarm.process.status import STEPS_FILE, StepRecord
from ttt.swarm.training.requirements import ResourceEstimate, estimate_resources, measure_cpu_flops
from ttt.ui.contribute.form import PeerForm, desired_state_of, usable_memory
from ttt.ui.contribute.host import HostInfo, detect_host

VIEW_SECONDS, HOST_SECONDS, ESTIMATE_SECONDS, STEP_SECONDS = 0.5, 4.0, 30.0, 3.0
"""How long an answer is reused: many visitors may watch the page."""
MAX_CACHED = 50
T = TypeVar("T")


class PeerControl(Protocol):
    """What the tab needs: `PeerController`, or `ttt.ui.contribute.fake.FakePeerController`."""

    defaults: PeerForm

    def view(self) -> PeerView: ...
    def host(self) -> HostInfo: ...
    def estimate(self, form: PeerForm) -> ResourceEstimate | str: ...
    def expected_pace(self, estimate: ResourceEstimate) -> float: ...
    def share(self) -> float | None: ...
    def start(self, form: PeerForm) -> None: ...
    def pause(self, hours: float | None) -> None: ...
    def resume(self) -> None: ...
    def stop(self) -> None: ...


@dataclass
class _Cached:
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the value is computed: others that ask for it wait and share it."""
    value: Any = None
    expires: float = float("-inf")


class PeerController:
    """The peer of `folder`, on this machine."""

    def __init__(
        self,
        folder: Path,
        defaults: PeerForm | None = None,
        *,
        exit_with_pid: int = 0,
        detect: Callable[[], HostInfo] = detect_host,
    ) -> None:
        """exit_with_pid: the peer ends with the process of this id; 0: it outlives every process."""
        self.launcher, self.defaults = Launcher(folder), defaults or PeerForm()
        self._exit_with_pid, self._detect = exit_with_pid, detect
        self._cache: dict[object, _Cached] = {}
        self._cache_lock = threading.Lock()
        self._cpu_flops = 0.0

    def view(self) -> PeerView:
        return self._cached("view", VIEW_SECONDS, self.launcher.view)

    def host(self) -> HostInfo:
        return self._cached("host", HOST_SECONDS, self._detect)

    def estimate(self, form: PeerForm) -> ResourceEstimate | str:
        """The resources that the run needs here, or why they are unknown."""
        if not form.run:
            return ""
        host = self.host()

        def compute() -> ResourceEstimate | str:
            try:
                return estimate_resources(form.run, usable_memory(form, host), cuda=host.gpu is not None)
            except TTTError as error:
                return str(error)

        return self._cached((form.run, form.gpu_gib), ESTIMATE_SECONDS, compute)

    def expected_pace(self, estimate: ResourceEstimate) -> float:
        """Samples per second to expect of this machine's CPU."""
        if not self._cpu_flops:
            self._cpu_flops = measure_cpu_flops()
        return estimate.cpu_samples_per_second(self._cpu_flops)

    def share(self) -> float | None:
        """The fraction of the last step's samples that came from this peer."""
        status = self.view().status
        if status is None or not status.global_batch:
            return None
        last = self._cached("step", STEP_SECONDS, self._last_step)
        if last is None or last.time < status.started:
            return None
        return min(1.0, last.samples / status.global_batch)

    def start(self, form: PeerForm) -> None:
        """TTTError says what is missing or wrong."""
        host, estimate = self.host(), self.estimate(form)
        known = estimate if isinstance(estimate, ResourceEstimate) else ResourceEstimate("", "", 0)
        desired = desired_state_of(form, host, known, exit_with_pid=self._exit_with_pid)
        if isinstance(estimate, str):  # the run file cannot be used
            raise TTTError(estimate)
        self.launcher.start(desired)
        self._forget_view()

    def pause(self, hours: float | None) -> None:
        self.launcher.pause(hours or None)
        self._forget_view()

    def resume(self) -> None:
        self.launcher.resume()
        self._forget_view()

    def stop(self) -> None:
        self.launcher.stop()
        self._forget_view()

    def _last_step(self) -> StepRecord | None:
        for line in tail(self.launcher.folder / STEPS_FILE, 1):
            with contextlib.suppress(ValidationError):
                return StepRecord.model_validate_json(line)
        return None

    def _cached(self, key: object, seconds: float, compute: Callable[[], T]) -> T:
        """One lock per key: the view must not wait for a slow nvidia-smi or for the estimate of a large model."""
        with self._cache_lock:
            if key not in self._cache and len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            cached = self._cache.setdefault(key, _Cached())
        with cached.lock:
            if cached.expires < time.monotonic():
                cached.value = compute()
                cached.expires = time.monotonic() + seconds
            return cached.value

    def _forget_view(self) -> None:
        with self._cache_lock:
            self._cache.pop("view", None)


def with_defaults(form: PeerForm, defaults: PeerForm) -> PeerForm:
    """The form, with empty fields taken from the defaults."""
    update = {name: getattr(form, name) or getattr(defaults, name) for name in ("run", "initial_peers", "name")}
    return form.model_copy(update={**update, "reachable": form.reachable or defaults.reachable})
