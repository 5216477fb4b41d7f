"""What a run's model paints at each checkpoint, in the background, at a low priority. Knows no model.

FOLDER/sample_images/step-00001200-0.webp   the run's first prompt, painted from the checkpoint of that step

A process of its own (`ttt.swarm.coordinator.fixed_prompts`) generates them, so that neither its time nor its memory
is the coordinator's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from ttt.swarm.config.run_config import SampleImagesSection
from ttt.swarm.coordinator.checkpoints import Checkpoint
from ttt.swarm.history.types import SampleImage
from ttt.swarm.history.writer import HistoryWriter
from ttt.swarm.process.launcher import ROOT
from ttt.swarm.process.lifecycle import start_child

FOLDER = "sample_images"
NICENESS = 5
"""Of the painter: a third of a peer's claim on a processor that both want, so that it is late and not starved."""


class Painter:
    """One checkpoint at a time; those that come meanwhile are left out, but for the newest. Failing stops nothing."""

    def __init__(
        self, folder: Path, settings: SampleImagesSection, history: HistoryWriter, told: Callable[[str], None]
    ) -> None:
        """told: called with what went wrong, from another thread."""
        self.folder, self.settings, self.history, self.told = folder, settings, history, told
        self._lock = threading.Lock()
        self._next: Checkpoint | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def offer(self, checkpoint: Checkpoint) -> None:
        """Paint from this checkpoint, unless its step was painted already; returns at once."""
        if not self.settings.candidates or not self.settings.prompts:
            return
        if checkpoint.step in {image.step for image in self.history.sample_images()}:
            return
        with self._lock:
            self._next = checkpoint
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, daemon=True, name="sample images")
                self._thread.start()

    def forget_after(self, step: int) -> None:
        """The run goes on from there: what was painted later shows a model that is no more."""
        self._forget({image.step for image in self.history.sample_images() if image.step > step})

    def close(self) -> None:
        """Stop at once. Unfinished images are generated again when the run resumes."""
        with self._lock:
            self._closed, self._next, thread = True, None, self._thread
            if self._process is not None:
                self._process.kill()
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                checkpoint, self._next = self._next, None
                if checkpoint is None:
                    self._thread = None
                    return
            self._paint(checkpoint)

    def _paint(self, checkpoint: Checkpoint) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix=".painting-", dir=self.folder) as stage:
                problem = self._run(checkpoint.bundle, Path(stage))
                if not problem:
                    self._keep(checkpoint, Path(stage))
        except OSError as error:
            problem = str(error)
        if problem and not self._closed and checkpoint.path.exists():  # else it was thinned out meanwhile
            self.told(f"step {checkpoint.step}: no sample images were generated: {problem}")

    def _run(self, bundle: Path, out: Path) -> str:
        """What went wrong, or nothing."""
        with self._lock:
            if self._closed:
                return "asked to stop"
            self._process = process = start_child(
                [sys.executable, "-m", "ttt.swarm.coordinator.fixed_prompts", str(bundle), str(out)],
                niceness=NICENESS, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        wanted = {"prompts": self.settings.prompts, "candidates": self.settings.candidates}
        _, said = process.communicate(json.dumps(wanted).encode())
        with self._lock:
            self._process = None
        lines = said.decode(errors="replace").strip().splitlines()
        return "" if process.returncode == 0 else (lines or [f"the painter ended with code {process.returncode}"])[-1]

    def _keep(self, checkpoint: Checkpoint, stage: Path) -> None:
        (self.folder / FOLDER).mkdir(exist_ok=True)
        for number, prompt in enumerate(self.settings.prompts):
            path = f"{FOLDER}/step-{checkpoint.step:08d}-{number}.webp"
            shutil.move(stage / f"{number}.webp", self.folder / path)
            self.history.add_sample_image(SampleImage(checkpoint.manifest.time, checkpoint.step, prompt, path))
        self._forget(too_many({image.step for image in self.history.sample_images()}, self.settings.keep))

    def _forget(self, steps: Collection[int]) -> None:
        gone = [image.path for image in self.history.sample_images() if image.step in steps]
        self.history.forget_sample_images(gone)
        for path in gone:
            with contextlib.suppress(OSError):
                (self.folder / path).unlink()


def too_many(steps: Collection[int], most: int) -> set[int]:
    """Which steps to leave out so that at most `most` stay, spread evenly, the first and the newest among them."""
    kept = sorted(steps)
    while len(kept) > max(2, most):
        del kept[min(range(1, len(kept) - 1), key=lambda i: kept[i + 1] - kept[i - 1])]
    return set(steps) - set(kept)
