"""Settings of every test: no telemetry, no downloads, and no more threads than a shared machine has to give."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Two workers share two cores, and threads inside operations as small as the tests' only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from ttt.bundle import Bundle

# No deadline for an example: it measures how busy the machine is. CI uses the same examples every time; elsewhere
# chance or `--hypothesis-seed` explores further.
settings.register_profile("local", deadline=None)
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("gate" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A complete bundle of a few kilobytes, for reading alone: many modules share it."""
    from tests.support.tiny import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
