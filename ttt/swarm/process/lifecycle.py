"""Processes, shared memory and folders of a peer: that nothing is left behind, whatever happens. Knows no models.

hivemind runs the DHT and each averager in processes of their own, and libp2p's daemon under the first. `kill -9` of
the main process would leave them all; so each asks the kernel to be killed with its parent.
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
    """SwarmError where this machine cannot take part, with what to do."""
    if sys.platform != "linux":
        raise SwarmError(
            "training together needs Linux (hivemind); on other systems use WSL 2, a container, or a Space"
        )
    try:
        from importlib.metadata import version

        version("hivemind")
    except Exception:
        raise SwarmError("hivemind is not installed; install it: pip install -r requirements.txt") from None
    numpy = version("numpy")
    if tuple(int(part) for part in numpy.split(".")[:2]) >= (2, 4):
        raise SwarmError(
            f"numpy {numpy} is installed, and from 2.4 on hivemind's 8-bit compression exchanges nothing without a "
            'word; install an older one: pip install "numpy<2.4"'
        )


def shared_memory_needed(parameters: int, *, trains: bool, eight_bit: bool) -> int:
    """Bytes of /dev/shm that one peer, or a coordinator, fills.

    Averaged parameters, and those of a peer's gradients, lie there in 4 bytes each. A state that is given or taken
    passes through it from process to process: parameters with two statistics of 1 (`eight_bit`) or 4 bytes. One such
    transfer is counted.
    """
    averaged, transfer = 8 if trains else 4, 6 if eight_bit else 12
    return (averaged + transfer) * parameters + _SPARE_SHARED_MEMORY


def shm_size_option(need: int) -> str:
    """The option that gives a container so much shared memory."""
    return f"--shm-size={(need >> 20) + 64}m"


def check_shared_memory(need: int) -> None:
    """SwarmError where so many bytes do not fit into /dev/shm."""
    with contextlib.suppress(OSError):
        stat = os.statvfs(SHARED_MEMORY)
        free = stat.f_bavail * stat.f_frsize
        if free < need:
            raise SwarmError(
                f"{SHARED_MEMORY} has {free >> 20} MiB free, and this model needs {need >> 20} MiB of it (shared by "
                f"the processes of a peer); in Docker: {shm_size_option(need)}, or --ipc=host"
            )


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel for this signal when the thread that started this process dies (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def start_child(command: Sequence[str], *, niceness: int = 0, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own that is killed when the calling thread ends. options: of Popen."""
    parent = os.getpid()

    def prepare() -> None:
        os.nice(niceness)
        die_with_parent(parent)

    return subprocess.Popen(command, start_new_session=True, preexec_fn=prepare, **options)


def init_child_process(parent: int) -> None:
    """First thing in a forked process of a peer: no handlers of the parent's, and no life without it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops us in order
    die_with_parent(parent)


def kill_daemon_with_parent() -> None:
    """In the DHT's process: libp2p's daemon, which it starts, dies with it too, and does not see Ctrl-C."""
    from hivemind.p2p import p2p_daemon

    start = p2p_daemon.asyncio.subprocess.create_subprocess_exec
    owner = os.getpid()

    def prepare() -> None:
        os.setpgid(0, 0)
        die_with_parent(owner)

    async def tied(*args: Any, **kwargs: Any) -> Any:
        return await start(*args, preexec_fn=prepare, **kwargs)

    p2p_daemon.asyncio.subprocess.create_subprocess_exec = tied


def skip_compiler_import() -> None:
    """Keep torch's compiler, which nothing here uses, out of the process: 6 s of CPU and much memory at the start.

    torch.optim's methods import it only to tell it to leave them alone.
    """
    from torch.optim import Optimizer

    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(Optimizer, name)
        setattr(Optimizer, name, getattr(method, "__wrapped__", method))


@contextlib.contextmanager
def private_socket_folder() -> Iterator[None]:
    """hivemind leaves its sockets in /tmp; here they get a folder that is removed."""
    from hivemind.p2p import P2P

    folder = tempfile.mkdtemp(prefix="ttt-", dir="/tmp")  # short: a socket's path has at most 107 bytes
    before = P2P._UNIX_SOCKET_PREFIX
    P2P._UNIX_SOCKET_PREFIX = f"/unix{folder}/"
    try:
        yield
    finally:
        P2P._UNIX_SOCKET_PREFIX = before
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Make the folder and lock it: two processes in it would share an identity."""
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
                f"{folder} is in use by another peer or coordinator; stop that one, or give this one --folder"
            ) from None
        yield folder
