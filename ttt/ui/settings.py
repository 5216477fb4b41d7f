"""What the person who starts the server decides: command line and environment. Knows no gradio and no model."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttt.config import DTYPE_NAMES
from ttt.errors import BundleError

DEFAULT_PORT = 7860
DTYPES = ("auto", *DTYPE_NAMES)
RUNS = Path("runs")
"""Where `python -m ttt coordinator` and `peer` keep theirs."""


@dataclass(frozen=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    model: str = ""
    """Chosen and loaded when the server starts; empty: the first bundle, else the demo."""
    bundles: tuple[str, ...] = ()
    """Bundle folders that visitors may choose."""
    dtype: str = "auto"
    """Precision of painting, as `TextToImage` takes it."""
    results: Path | None = None
    """Where finished results are kept; None: a folder that goes with the server."""
    runs: Path = RUNS
    """Folder with the runs of this machine, for the dashboard."""
    run: str = ""
    """Run file, or its URL, that volunteers join from this page."""
    initial_peers: tuple[str, ...] = ()
    """Its addresses."""
    peer_folder: Path | None = None
    """Of the peer that is started here; None: among the runs."""
    peer_ends_with: int = 0
    """Process with which that peer ends; 0: it outlives all."""

    def first_model(self, offered: Sequence[str]) -> str:
        """The key of the model to start with; BundleError when it is not among those offered."""
        if not self.model:
            return offered[len(offered) - len(self.bundles)] if self.bundles else "demo"
        if self.model not in offered:
            raise BundleError(f"there is no model {self.model!r}; this server has: {', '.join(offered)}")
        return self.model

    def volunteer_folder(self) -> Path:
        return self.peer_folder if self.peer_folder is not None else self.runs / "volunteer"

    def results_folder(self) -> Path:
        return self.results if self.results is not None else passing_folder("results")


def passing_folder(name: str) -> Path:
    """A folder that goes with the server."""
    folder = tempfile.mkdtemp(prefix=f"ttt-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def read_settings(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The command line wins over the environment; on a Space the server listens to all addresses."""
    env = os.environ if environment is None else environment
    on_space = bool(env.get("SPACE_ID"))
    parser = argparse.ArgumentParser(prog="app.py", description="Generate pictures from text, in a web page.")
    host = env.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_space else "127.0.0.1")
    parser.add_argument("--host", default=host, help="address to listen on (default: %(default)s)")
    port = env.get("GRADIO_SERVER_PORT", str(DEFAULT_PORT))
    parser.add_argument("--port", type=_port, default=port, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--model",
        default=env.get("TTT_MODEL"),
        help="model that is chosen at first: demo, published, or the name of a --bundle's folder "
        "(default: the first --bundle if there is one, else demo; or $TTT_MODEL)",
    )
    parser.add_argument(
        "--bundle",
        action="append",
        metavar="PATH",
        help=f"bundle folder that visitors may choose; repeatable (or $TTT_BUNDLE, separated by {os.pathsep!r})",
    )
    parser.add_argument(
        "--dtype",
        type=_dtype,
        default=env.get("TTT_DTYPE") or "auto",
        help=f"precision of painting: {', '.join(DTYPES)}; int8 paints large models fastest on CPUs, a little less "
        "exactly (default: %(default)s; or $TTT_DTYPE)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=env.get("TTT_RESULTS"),
        help="folder to keep finished results in (or $TTT_RESULTS)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=env.get("TTT_RUNS") or RUNS,
        help="folder with the runs that the dashboard shows (default: %(default)s; or $TTT_RUNS)",
    )
    parser.add_argument(
        "--run",
        default=env.get("TTT_RUN", ""),
        help="run file, or its URL, that one can contribute to from this page (or $TTT_RUN)",
    )
    parser.add_argument(
        "--initial-peer",
        action="append",
        metavar="ADDRESS",
        help="address of that run, as its coordinator prints it; repeatable (or $TTT_INITIAL_PEERS, with spaces)",
    )
    parser.add_argument(
        "--peer-folder",
        type=Path,
        default=env.get("TTT_PEER_FOLDER"),
        help="folder of the peer that is started here (default: volunteer among the runs; or $TTT_PEER_FOLDER)",
    )
    parser.add_argument(
        "--peer-ends-with",
        type=int,
        default=0,
        metavar="PID",
        help="that peer ends with this process (default: it goes on until Stop)",
    )
    given = parser.parse_args(arguments)
    bundles = given.bundle or [path for path in env.get("TTT_BUNDLE", "").split(os.pathsep) if path]
    return Settings(
        host=given.host,
        port=given.port,
        model=given.model or "",
        bundles=tuple(bundles),
        dtype=given.dtype,
        results=given.results,
        runs=given.runs,
        run=given.run,
        initial_peers=tuple(given.initial_peer or env.get("TTT_INITIAL_PEERS", "").split()),
        peer_folder=given.peer_folder,
        peer_ends_with=given.peer_ends_with,
    )


def _dtype(text: str) -> str:
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(DTYPES)}, got {text!r}")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)
