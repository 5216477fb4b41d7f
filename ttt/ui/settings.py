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

from ttt.errors import BundleError

DEFAULT_PORT = 7860


@dataclass(frozen=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    model: str = ""
    """Chosen and loaded when the server starts; empty: the first bundle, else the demo."""
    bundles: tuple[str, ...] = ()
    """Bundle folders that visitors may choose."""
    results: Path | None = None
    """Where finished results are kept; None: a folder that goes with the server."""

    def first_model(self, offered: Sequence[str]) -> str:
        """The key of the model to start with; BundleError when it is not among those offered."""
        if not self.model:
            return offered[len(offered) - len(self.bundles)] if self.bundles else "demo"
        if self.model not in offered:
            raise BundleError(f"there is no model {self.model!r}; this server has: {', '.join(offered)}")
        return self.model

    def results_folder(self) -> Path:
        if self.results is not None:
            return self.results
        folder = tempfile.mkdtemp(prefix="ttt-results-")
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
        "--results",
        type=Path,
        default=env.get("TTT_RESULTS"),
        help="folder to keep finished results in (or $TTT_RESULTS)",
    )
    given = parser.parse_args(arguments)
    bundles = given.bundle or [path for path in env.get("TTT_BUNDLE", "").split(os.pathsep) if path]
    return Settings(
        host=given.host,
        port=given.port,
        model=given.model or "",
        bundles=tuple(bundles),
        results=given.results,
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)
