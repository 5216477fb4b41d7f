"""A simulated run, deterministic in its seed, to run the dashboard alone and to test it. Independent of Gradio.

Peers of different speeds join and leave in a daily rhythm; the loss falls as a power of the samples, with noise; one
peer claims ten times what it did; two have names that would break a page that does not escape them.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ttt.swarm.history.schema import HISTORY_FILE
from ttt.swarm.history.types import CheckpointEntry, Contributor, Event, Point, SampleImage, Snapshot
from ttt.ui.dashboard.plots import evenly
from ttt.ui.fake_images import draw_image

PROMPTS = ("a red circle above a blue square", "a small green star on a white background", "a big orange heart")
DEVICES = ("NVIDIA GeForce RTX 3060, 12 GB", "Tesla T4, 15 GB", "NVIDIA A100, 40 GB", "CPU, 8 cores")
NAMES = ("Ada", "Grace", "Linus", "Margaret", "Edsger", "Barbara", "Alan", "Katherine", "Donald", "Radia")
HOSTILE = ("<img src=x onerror=alert(1)>", "[free GPUs](https://example.org) **now** `x` |")
BOASTER = 2
"""Index of the peer that claims ten times what it did."""
DAY = 86_400.0


@dataclass
class _Worker:
    """One peer of the simulation."""

    speed: float
    """Samples per second."""
    home: float
    """When its night begins, as a share of the day."""
    joins: float
    """As a share of the run."""
    samples: float = 0.0
    seconds: float = 0.0
    here: bool = False


@dataclass
class Simulation:
    """A run of `steps` optimizer steps that ends at `end` (Unix time)."""

    end: float
    steps: int = 3000
    peers: int = 24
    seed: int = 0
    batch: int = 4096
    points: list[Point] = field(default_factory=list)
    members: list[Contributor] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        joins = sorted(rng.betavariate(1.0, 2.5) * 0.7 for _ in range(self.peers))
        workers = [
            _Worker(rng.choice((3.0, 9.0, 9.0, 30.0, 0.5)) * rng.uniform(0.7, 1.3), rng.random(), start)
            for start in (0.0, *joins[1:])
        ]
        clock, rows = 0.0, []
        for step in range(self.steps):
            speed = self._who_is_here(workers, step / self.steps, clock) * rng.uniform(0.92, 1.05)
            seconds = self.batch / speed
            here = [worker for worker in workers if worker.here]
            for worker in here:
                worker.samples += self.batch * worker.speed / sum(other.speed for other in here)
                worker.seconds += seconds * 0.9
            clock += seconds
            rows.append((clock, step + 1, len(here), speed))
        self.points = [self._point(self.end - clock, *row, rng) for row in rows]
        self.members = [self._member(i, worker, clock, rng) for i, worker in enumerate(workers)]

    def now(self) -> Snapshot:
        """Two thirds of the way to the next step."""
        last = self.points[-1]
        return Snapshot(
            time=self.end, step=last.step, samples_accumulated=self.batch * 2 // 3, target_batch_size=self.batch,
            peers=int(last.peers), auxiliary_peers=1, samples_per_second=last.samples_per_second, loss=last.loss,
            learning_rate=last.learning_rate,
        )  # fmt: skip

    def checkpoints(self) -> Iterator[CheckpointEntry]:
        """Twelve, some of them on the Hub."""
        for number, point in enumerate(evenly(self.points, 13)[1:]):
            checksum = hashlib.sha256(f"{point.step}".encode()).hexdigest()
            url = f"https://huggingface.co/example/run/tree/step-{point.step}" if number % 3 == 2 else ""
            path = f"checkpoints/step-{point.step:08d}"
            yield CheckpointEntry(point.time, point.step, point.samples, point.loss, path, checksum, url)

    def events(self) -> Iterator[Event]:
        for peer in sorted(self.members, key=lambda one: one.first_seen):
            yield Event(peer.first_seen, "joined", peer.peer_id)
        yield Event(self.end - 900, "problem", "", "no peer provided its state; the checkpoint waits until one does")
        yield Event(self.end - 300, "left", self.members[-1].peer_id)

    def sample_images(self, folder: Path) -> Iterator[SampleImage]:
        """Images that emerge from noise, checkpoint by checkpoint; files in folder/sample_images."""
        (folder / "sample_images").mkdir(parents=True, exist_ok=True)
        every = list(self.checkpoints())
        for step, checkpoint in enumerate(every):
            for number, prompt in enumerate(PROMPTS):
                path = f"sample_images/step-{checkpoint.step:08d}-{number}.png"
                noise = Image.effect_noise((128, 128), 90).convert("RGB")
                clear = ((step + 1) / len(every)) ** 0.7
                Image.blend(noise, draw_image(prompt, self.seed, 0), clear).save(folder / path)
                yield SampleImage(checkpoint.time, checkpoint.step, prompt, path)

    def write(
        self, folder: Path, run: str = "simulated", title: str = "A simulated run", *, images: bool = True
    ) -> Path:
        """Make the history as a coordinator would have left it, with sample images or without; returns its file."""
        from ttt.swarm.history.writer import HistoryWriter  # locks files, which Windows does otherwise

        with HistoryWriter(folder / HISTORY_FILE, run, title=title, target_batch_size=self.batch) as history:
            history.add_points(self.points)
            today = self.end - 3600
            history.credit([self._before(peer) for peer in self.members], time=self.points[0].time)
            history.credit(self.members, time=today)
            for event in self.events():
                history.add_event(event)
            for checkpoint in self.checkpoints():
                history.add_checkpoint(checkpoint)
            for one in self.sample_images(folder) if images else ():
                history.add_sample_image(one)
            history.set_snapshot(self.now())
        return folder / HISTORY_FILE

    def _who_is_here(self, workers: list[_Worker], part: float, clock: float) -> float:
        """Their speed together; the first ones never sleep."""
        for number, worker in enumerate(workers):
            awake = math.sin(2 * math.pi * (clock / DAY + worker.home)) > -0.55
            worker.here = worker.joins <= part and (number <= BOASTER or awake)
        return sum(worker.speed for worker in workers if worker.here)

    def _point(self, start: float, clock: float, step: int, peers: int, speed: float, rng: random.Random) -> Point:
        samples = step * self.batch
        loss = 2.1 + 5.2 * (1 + samples / (6 * self.batch)) ** -0.42 + rng.gauss(0, 0.03)
        spread = 0.12 + abs(rng.gauss(0, 0.04))
        rate = 2.5e-3 * min(step / (0.05 * self.steps), 1.0, max(0.02, 1.05 * (1 - step / self.steps)))
        return Point(start + clock, step, samples, loss, loss - spread, loss + spread, float(peers), speed, rate)

    def _member(self, number: int, worker: _Worker, seconds: float, rng: random.Random) -> Contributor:
        digest = hashlib.sha256(f"{self.seed}/{number}".encode()).hexdigest().replace("0", "z")
        names = (*NAMES[:3], *HOSTILE, "", *NAMES[3:])
        joined = self.end - seconds * (1 - worker.joins)
        boast = 10.0 if number == BOASTER else 1.0
        return Contributor(
            peer_id="12D3Koo" + digest[:45],
            name=names[number] if number < len(names) else f"{NAMES[number % len(NAMES)]} {number}",
            device=DEVICES[number % len(DEVICES)],
            first_seen=joined,
            last_seen=self.end if worker.here else max(joined, self.end - rng.uniform(600, 2 * DAY)),
            step=self.steps,
            samples=worker.samples,
            seconds=worker.seconds,
            claimed_samples=worker.samples * boast,
            claimed_seconds=worker.seconds * boast,
            samples_per_second=worker.speed,
            client_mode=number % 3 == 1,
            auxiliary=False,
        )

    def _before(self, peer: Contributor) -> Contributor:
        """The same a day earlier, roughly: what is missing is what was done today."""
        return replace(peer, samples=peer.samples * 0.93, seconds=peer.seconds * 0.93)
