"""Processes, shared memory, sockets and the folder of a peer, so that nothing is left behind when it is killed.

hivemind runs the DHT and each averager in processes of their own, and libp2p's daemon as a child of the DHT. `kill -9`
of the main process would leave all of them running; so each asks the kernel to be killed with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ttt.errors import InvalidInput, SwarmError

_PR_SET_PDEATHSIG = 1
SHARED_MEMORY = Path("/dev/shm")
_SPARE_SHARED_MEMORY = 32 << 20


def check_machine() -> None:
    """Raise SwarmError if this machine cannot join a run."""
    if sys.platform != "linux":
        raise SwarmError(
            "a peer or coordinator needs Linux, because hivemind does; on other systems use WSL 2, a "
            "container, or a Space"
        )
    try:
        from importlib.metadata import version

        version("hivemind")
    except Exception:
        raise SwarmError("hivemind is not installed; install it with: pip install -r requirements.txt") from None
    numpy = version("numpy")
    if tuple(int(part) for part in numpy.split(".")[:2]) >= (2, 4):
        raise SwarmError(
            f"numpy {numpy} is installed; from 2.4 on, hivemind's 8-bit compression fails silently and peers exchange "
            'nothing. Install an older version: pip install "numpy<2.4"'
        )


def shared_memory_needed(parameters: int, *, trains: bool, eight_bit: bool) -> int:
    """Return the bytes of /dev/shm that a peer (`trains`) or a coordinator needs.

    The averaged parameters, and for a peer the gradients, lie there in 4 bytes each. A state that is sent or downloaded
    passes through it from process to process: parameters and two optimizer states, of 1 byte (`eight_bit`) or 4
    bytes each. One such transfer is counted.
    """
    averaged, transfer = 8 if trains else 4, 6 if eight_bit else 12
    return (averaged + transfer) * parameters + _SPARE_SHARED_MEMORY


def shm_size_option(need: int) -> str:
    """Return the option of `docker run` that provides this much shared memory."""
    return f"--shm-size={(need >> 20) + 64}m"


def check_shared_memory(need: int) -> None:
    """Raise SwarmError if /dev/shm has fewer free bytes."""
    with contextlib.suppress(OSError):
        stat = os.statvfs(SHARED_MEMORY)
        free = stat.f_bavail * stat.f_frsize
        if free < need:
            raise SwarmError(
                f"{SHARED_MEMORY} has {free >> 20} MiB free, but this model needs {need >> 20} MiB there, which the "
                f"processes of a peer share; in Docker start the container with {shm_size_option(need)} or --ipc=host"
            )


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this signal to us when the thread that started this process ends (Linux only)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


def start_child(command: Sequence[str], *, niceness: int = 0, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own that is killed when the calling thread ends. options: of Popen."""
    parent = os.getpid()

    def prepare() -> None:
        os.nice(niceness)
        die_with_parent(parent)

    return subprocess.Popen(command, start_new_session=True, preexec_fn=prepare, **options)


def init_child_process(parent: int) -> None:
    """Prepare a process that hivemind forked: default signal handlers, and killed with its parent. Call it first."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops us in order
    die_with_parent(parent)


def kill_daemon_with_parent() -> None:
    """Call it in the DHT's process: libp2p's daemon is then killed with it, and does not receive Ctrl-C.

    hivemind starts the daemon deep inside `P2P.create` and offers no way to set up the child; so the function that it
    calls is replaced, for this process only, which starts nothing else.
    """
    from hivemind.p2p import p2p_daemon

    start = p2p_daemon.asyncio.subprocess.create_subprocess_exec
    parent = os.getpid()

    def prepare() -> None:
        os.setpgid(0, 0)
        die_with_parent(parent)

    async def start_prepared(*args: Any, **kwargs: Any) -> Any:
        return await start(*args, preexec_fn=prepare, **kwargs)

    p2p_daemon.asyncio.subprocess.create_subprocess_exec = start_prepared


def skip_compiler_import() -> None:
    """Keep torch's compiler out of this process: its import takes 6 s of CPU and much memory, and nothing here uses it.

    Four methods of torch.optim.Optimizer are wrapped in `torch._disable_dynamo`, which imports the compiler at the
    first call, only to exclude the method from compilation. The wrappers are replaced by the methods themselves.
    """
    from torch.optim import Optimizer

    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(Optimizer, name)
        setattr(Optimizer, name, getattr(method, "__wrapped__", method))


@contextlib.contextmanager
def private_socket_folder() -> Iterator[None]:
    """Put hivemind's sockets into a folder of their own and remove it: hivemind leaves them in /tmp.

    Their place is a class attribute of hivemind's P2P, which has no argument for it.
    """
    from hivemind.p2p import P2P

    folder = tempfile.mkdtemp(prefix="ttt-", dir="/tmp")  # a short path: sockets have at most 107 bytes
    before = P2P._UNIX_SOCKET_PREFIX
    P2P._UNIX_SOCKET_PREFIX = f"/unix{folder}/"
    try:
        yield
    finally:
        P2P._UNIX_SOCKET_PREFIX = before
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Create and lock the folder: two peers in it would have the same identity."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be used: {error}; choose another with --folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidInput(
                f"{folder} is in use by another peer or coordinator; stop that one, or choose another with --folder",
                hint="A peer that is leaving the swarm takes up to two minutes.",
            ) from None
        yield folder
