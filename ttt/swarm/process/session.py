"""The frame in which a peer or a coordinator runs: a locked folder, a status, signals and a clean shutdown."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ttt.errors import Cancelled, TTTError
from ttt.swarm.config.options import CoordinatorOptions, PeerOptions
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.process.lifecycle import locked_folder, private_socket_folder, skip_compiler_import
from ttt.swarm.process.reporter import Reporter, quiet_hivemind
from ttt.swarm.process.terminal import open_output
from ttt.types import Batch, BatchStream

STOP_POLL_SECONDS = 0.2


@contextmanager
def swarm_session(
    options: PeerOptions | CoordinatorOptions,
    settings: RunSettings,
    *,
    name: str,
    role: Literal["peer", "auxiliary", "coordinator"],
) -> Iterator[Reporter]:
    """Lock the folder and yield a reporter, which records how the block ended unless the block does that itself."""
    quiet_hivemind()
    skip_compiler_import()
    plain = not isinstance(options, PeerOptions) or options.plain
    with locked_folder(options.folder), private_socket_folder(), open_output(plain=plain) as output:
        reporter = Reporter(
            options.folder,
            output,
            run=settings.run.name,
            name=name,
            role=role,
            global_batch=settings.batch.global_batch,
        )
        try:
            yield reporter
        except Cancelled:
            reporter.close("stopped", "asked to stop")
        except BaseException as error:
            hint = error.hint if isinstance(error, TTTError) else ""
            reporter.close("failed", str(error) or type(error).__name__, hint)
            raise


def batches_until(stop: threading.Event, stream: BatchStream) -> Iterator[Batch]:
    """Yield the stream's batches until `stop` is set, which also interrupts a wait for data that does not arrive."""
    close, done = getattr(stream, "close", lambda: None), threading.Event()

    def watch() -> None:
        while not done.wait(STOP_POLL_SECONDS):
            if stop.is_set():
                close()  # repeatedly: a stream that is asked for the next batch opens itself again

    watcher = threading.Thread(target=watch, daemon=True, name="data")
    watcher.start()
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
        watcher.join()
        close()


@contextmanager
def signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `stop`; a second Ctrl-C exits at once."""

    def request_stop(number: int, _frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            os._exit(130)
        stop.set()

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
