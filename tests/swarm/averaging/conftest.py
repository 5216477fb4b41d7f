"""Fixtures of all tests of averaging."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def _without_compiler() -> None:
    """As in a peer: torch's optimizers import its compiler otherwise, which takes 6 s of CPU."""
    if sys.platform == "linux":
        from ttt.swarm.process.lifecycle import skip_compiler_import

        skip_compiler_import()
