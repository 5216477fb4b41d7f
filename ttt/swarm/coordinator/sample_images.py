"""Generates images of the run's fixed prompts at each checkpoint, in the background, at a low priority.

FOLDER/sample_images/step-00001200-0.webp   for the first prompt, generated from the checkpoint of that step

A process of its own (`ttt.swarm.coordinator.sample_image_worker`) generates them: its time and memory do not burden the
coordinator, and a crash cannot stop it.
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
"""Gives the process a third of a peer's share of a busy processor: images may be late, but are not starved."""


class SampleImageRenderer:
    """Handles one checkpoint at a time; of those offered meanwhile only the newest is rendered. Errors are reported."""

    def __init__(
        self, folder: Path, settings: SampleImagesSection, history: HistoryWriter, report_problem: Callable[[str], None]
    ) -> None:
        """report_problem: called from another thread."""
        self.folder, self.settings, self.history, self.report_problem = folder, settings, history, report_problem
        self._lock = threading.Lock()
        self._next: Checkpoint | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def offer(self, checkpoint: Checkpoint) -> None:
        """Render this checkpoint, unless its step has been rendered; returns at once."""
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
        """Delete the images of later steps, which a roll-back to `step` has discarded."""
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
            self._render(checkpoint)

    def _render(self, checkpoint: Checkpoint) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix=".rendering-", dir=self.folder) as stage:
                problem = self._run(checkpoint.bundle, Path(stage))
                if not problem:
                    self._keep(checkpoint, Path(stage))
        except OSError as error:
            problem = str(error)
        if problem and not self._closed and checkpoint.path.exists():  # else the checkpoint was deleted meanwhile
            self.report_problem(f"step {checkpoint.step}: no sample images were generated: {problem}")

    def _run(self, bundle: Path, out: Path) -> str:
        """Generate the images in `out`; return the problem, or an empty string."""
        with self._lock:
            if self._closed:
                return "asked to stop"
            self._process = process = start_child(
                [sys.executable, "-m", "ttt.swarm.coordinator.sample_image_worker", str(bundle), str(out)],
                niceness=NICENESS, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        request = {"prompts": self.settings.prompts, "candidates": self.settings.candidates}
        _, stderr = process.communicate(json.dumps(request).encode())
        with self._lock:
            self._process = None
        lines = stderr.decode(errors="replace").strip().splitlines()
        return "" if process.returncode == 0 else (lines or [f"the process exited with code {process.returncode}"])[-1]

    def _keep(self, checkpoint: Checkpoint, stage: Path) -> None:
        (self.folder / FOLDER).mkdir(exist_ok=True)
        for number, prompt in enumerate(self.settings.prompts):
            path = f"{FOLDER}/step-{checkpoint.step:08d}-{number}.webp"
            shutil.move(stage / f"{number}.webp", self.folder / path)
            self.history.add_sample_image(SampleImage(checkpoint.manifest.time, checkpoint.step, prompt, path))
        self._forget(steps_to_drop({image.step for image in self.history.sample_images()}, self.settings.keep))

    def _forget(self, steps: Collection[int]) -> None:
        gone = [image.path for image in self.history.sample_images() if image.step in steps]
        self.history.forget_sample_images(gone)
        for path in gone:
            with contextlib.suppress(OSError):
                (self.folder / path).unlink()


def steps_to_drop(steps: Collection[int], most: int) -> set[int]:
    """Return the steps to drop so that at most `most` stay, spread evenly, with the first and the newest."""
    kept = sorted(steps)
    while len(kept) > max(2, most):
        del kept[min(range(1, len(kept) - 1), key=lambda i: kept[i + 1] - kept[i - 1])]
    return set(steps) - set(kept)
