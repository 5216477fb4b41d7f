"""Starts processes from a server that has already imported torch: a test then need not wait for an interpreter."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "ttt.__main__",
        "ttt.data.encode",
        "ttt.train.single",
        "tests.support.shards",
        "torch._dynamo",  # the first optimizer of a process imports it, which takes seconds
    ]
)


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Call a function of a module in a process of its own, which can be killed or sent signals."""
    process = _CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def run_ttt(arguments: list[str]) -> None:
    """The command `ttt` with these arguments, for `start`."""
    from ttt.__main__ import app

    app(arguments)
