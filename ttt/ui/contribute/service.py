"""What the Contribute tab and its endpoints do with the one peer of this place. Knows no gradio and no network."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from ttt.errors import TTTError
from ttt.swarm.process.launcher import Launcher, PeerView, tail
from ttt.swarm.process.status import STEPS_FILE, StepRecord
from ttt.swarm.training.requirements import ResourceEstimate, estimate_resources, measure_cpu_flops
from ttt.ui.contribute.form import Asked, memory_of, order_of
from ttt.ui.contribute.host import Place, look

VIEW_SECONDS, PLACE_SECONDS, DEMAND_SECONDS = 0.5, 4.0, 30.0
"""How old an answer may be: many visitors may watch the page."""
MAX_KEPT = 50
T = TypeVar("T")


class Desk(Protocol):
    """What the tab needs; `contribute_fake.FakeDesk` is another one."""

    defaults: Asked

    def view(self) -> PeerView: ...
    def place(self) -> Place: ...
    def demand(self, asked: Asked) -> ResourceEstimate | str: ...
    def pace(self, demand: ResourceEstimate) -> float: ...
    def share(self) -> float | None: ...
    def start(self, asked: Asked) -> None: ...
    def pause(self, hours: float | None) -> None: ...
    def resume(self) -> None: ...
    def stop(self) -> None: ...


@dataclass
class _Kept:
    value: object
    until: float


class PeerDesk:
    """The peer of `folder`, on this machine."""

    def __init__(
        self,
        folder: Path,
        defaults: Asked | None = None,
        *,
        exit_with_pid: int = 0,
        look_around: Callable[[], Place] = look,
    ) -> None:
        """exit_with_pid: the peer ends with the process of this id; 0: it outlives all."""
        self.launcher, self.defaults = Launcher(folder), defaults or Asked()
        self._bound_to, self._look = exit_with_pid, look_around
        self._kept: dict[object, _Kept] = {}
        self._locks: dict[object, threading.Lock] = defaultdict(threading.Lock)
        self._speed = 0.0

    def view(self) -> PeerView:
        return self._recent("view", VIEW_SECONDS, self.launcher.view)

    def place(self) -> Place:
        return self._recent("place", PLACE_SECONDS, self._look)

    def demand(self, asked: Asked) -> ResourceEstimate | str:
        """The run's verdict on this place, or why there is none."""
        if not asked.run.strip():
            return ""
        place = self.place()

        def judge() -> ResourceEstimate | str:
            try:
                return estimate_resources(asked.run.strip(), memory_of(asked, place), cuda=place.gpu is not None)
            except TTTError as error:
                return str(error)

        return self._recent((asked.run, asked.gpu_gib), DEMAND_SECONDS, judge)

    def pace(self, demand: ResourceEstimate) -> float:
        """Samples per second to expect of this place's processor."""
        if not self._speed:
            self._speed = measure_cpu_flops()
        return demand.cpu_samples_per_second(self._speed)

    def share(self) -> float | None:
        """Of the last step's samples, the part that came from here."""
        status = self.view().status
        if status is None or not status.global_batch:
            return None
        last = self._recent("step", 3.0, self._last_step)
        if last is None or last.time < status.started:
            return None
        return min(1.0, last.samples / status.global_batch)

    def start(self, asked: Asked) -> None:
        """TTTError says what is missing or wrong."""
        place, demand = self.place(), self.demand(asked)
        # A run file that cannot be read is an error of its own; an empty one is told by the order.
        known = demand if isinstance(demand, ResourceEstimate) else ResourceEstimate("", "", 0)
        order = order_of(asked, place, known, exit_with_pid=self._bound_to)
        if isinstance(demand, str):
            raise TTTError(demand)
        self.launcher.start(order)
        self._forget()

    def pause(self, hours: float | None) -> None:
        self.launcher.pause(hours or None)
        self._forget()

    def resume(self) -> None:
        self.launcher.resume()
        self._forget()

    def stop(self) -> None:
        self.launcher.stop()
        self._forget()

    def _last_step(self) -> StepRecord | None:
        for line in tail(self.launcher.folder / STEPS_FILE, 1):
            with contextlib.suppress(ValidationError):
                return StepRecord.model_validate_json(line)
        return None

    def _recent(self, key: object, seconds: float, make: Callable[[], T]) -> T:
        with self._locks[type(key)]:  # who asks for the view does not wait for a verdict on the model
            kept = self._kept.get(key)
            if kept is None or kept.until < time.monotonic():
                if len(self._kept) > MAX_KEPT:
                    self._kept.clear()
                kept = self._kept[key] = _Kept(make(), time.monotonic() + seconds)
            return kept.value  # type: ignore[return-value]

    def _forget(self) -> None:
        self._kept.pop("view", None)


def with_defaults(asked: Asked, defaults: Asked) -> Asked:
    """Empty fields of a script's call are those of the page."""
    return replace(
        asked,
        run=asked.run.strip() or defaults.run,
        initial_peers=asked.initial_peers.strip() or defaults.initial_peers,
        name=asked.name.strip() or defaults.name,
        reachable=asked.reachable or defaults.reachable,
    )
