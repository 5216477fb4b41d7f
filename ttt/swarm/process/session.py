"""What peer and coordinator have in common: a folder of their own, a status, signals, a clean end. Knows no work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ttt.errors import Cancelled
from ttt.swarm.config.options import CoordinatorOptions, PeerOptions
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.process.lifecycle import locked_folder, private_socket_folder, skip_compiler_import
from ttt.swarm.process.reporter import Reporter, quiet_hivemind
from ttt.swarm.process.terminal import outlet
from ttt.types import Batch, BatchStream


@contextmanager
def swarm_session(
    options: PeerOptions | CoordinatorOptions,
    settings: RunSettings,
    *,
    name: str,
    role: Literal["peer", "auxiliary", "coordinator"],
) -> Iterator[Reporter]:
    """A folder locked for this process and a reporter in it, which tells how the block ended if it did not itself."""
    quiet_hivemind()
    skip_compiler_import()
    plain = not isinstance(options, PeerOptions) or options.plain
    with locked_folder(options.folder), private_socket_folder(), outlet(plain=plain) as out:
        reporter = Reporter(
            options.folder, out, run=settings.run.name, name=name, role=role, global_batch=settings.batch.global_batch
        )
        try:
            yield reporter
        except Cancelled:
            reporter.close("stopped", "asked to stop")
        except BaseException as error:
            reporter.close("failed", str(error) or type(error).__name__)
            raise


def batches_until(stop: threading.Event, stream: BatchStream) -> Iterator[Batch]:
    """The stream's batches until asked to stop, which also ends the wait for data that does not come."""
    close, done = getattr(stream, "close", lambda: None), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            if stop.is_set():
                close()  # again and again: a stream that is asked for more opens itself

    watching = threading.Thread(target=watch, daemon=True, name="data")
    watching.start()
    try:
        for batch in stream:
            yield batch
            if stop.is_set():
                return
    except Cancelled:
        if not stop.is_set():
            raise
    finally:
        done.set()
        watching.join()
        close()


@contextmanager
def signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask for a clean end; a second Ctrl-C does not wait for it."""

    def ask(number: int, _frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            os._exit(130)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
