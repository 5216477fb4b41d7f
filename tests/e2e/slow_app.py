"""The real app with a drawn model of known slowness that keeps a diary; run by the end-to-end tests.

A prompt with "slow" in it takes about half a minute, one with "very slow" minutes, any other under a second. The
diary (first argument) gets one line for each event: `start`, `end` or `cancelled`, and the prompt.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import app
import ttt.ui.generate.tab
from ttt.errors import BundleError, Cancelled
from ttt.sampling.params import SamplingParams
from ttt.types import Progress
from ttt.ui.generate.fake import FakeGenerator


class DiaryGenerator(FakeGenerator):
    def __init__(self, diary: Path) -> None:
        super().__init__()
        self._diary = diary

    def _note(self, event: str, prompt: str) -> None:
        with self._diary.open("a") as file:
            file.write(f"{event} {prompt}\n")

    def stream(self, prompt: str, params: SamplingParams, cancel: threading.Event | None = None) -> Iterator[Progress]:
        self._note("start", prompt)
        try:
            yield from FakeGenerator(delay=10.0 if "very slow" in prompt else 1.5 if "slow" in prompt else 0.02).stream(
                prompt, params, cancel
            )
            self._note("end", prompt)
        except (Cancelled, GeneratorExit):
            self._note("cancelled", prompt)
            raise


def main() -> None:
    diary = Path(sys.argv[1])
    ttt.ui.generate.tab.GRACE_SECONDS = 10.0  # a machine that runs tests may take long to reload a page

    def load(target: str) -> DiaryGenerator:
        time.sleep(1.0)
        if target != "demo":
            raise BundleError(f"{target} is half-downloaded: dalle.safetensors has 10 bytes of 100; fetch it again")
        return DiaryGenerator(diary)

    app.main(sys.argv[2:], load)


if __name__ == "__main__":
    main()
