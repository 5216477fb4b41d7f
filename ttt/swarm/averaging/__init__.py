"""Averaging with hivemind: the only package that subclasses or patches its averaging and optimizer classes.

This package overrides internals of hivemind that no version promises to keep, so it supports one version only.
docs/hivemind.md lists every override, the upstream fault behind it, and the test that shows that it is still needed.
Go through that table before you change the version.
"""

from __future__ import annotations

from ttt.errors import SwarmError

SUPPORTED_HIVEMIND = "1.1.12"


def check_hivemind() -> None:
    """Raise SwarmError unless the supported version of hivemind is installed. Does not import hivemind."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("hivemind")
    except PackageNotFoundError:
        raise SwarmError("hivemind is not installed; install it: pip install -r requirements.txt") from None
    if installed != SUPPORTED_HIVEMIND:
        raise SwarmError(
            f"hivemind {installed} is installed, but averaging overrides internals of {SUPPORTED_HIVEMIND} and works "
            f"with that version only; install it: pip install hivemind=={SUPPORTED_HIVEMIND}"
        )
