"""Prepares `.venv`: `setup.py run` installs what the app needs, `setup.py dev` what the tests need too.

Uses the standard library alone. It installs with uv, which it puts into a folder inside `.venv`, or with pip if uv is
unavailable. The project itself is installed in editable mode, so that `ttt` is a command. If the requirement files have
not changed since the last time, it does nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
WINDOWS = os.name == "nt"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
UV_FOLDER = VENV / "uv"
REQUIREMENTS = {"run": "requirements.txt", "dev": "requirements-dev.txt"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OLDEST = (3, 11)


def main(purpose: str) -> None:
    if sys.version_info < OLDEST:
        found = sys.version.split()[0]
        leave(
            f"Python 3.11 or newer is needed, {sys.executable} is {found}. Choose: make PYTHON=/path/to/python3.11 ..."
        )
    if not is_stamped(purpose):
        start = time.monotonic()
        make_venv()
        install(REQUIREMENTS[purpose])
        stamp(purpose)
        say(f"Set-up finished in {time.monotonic() - start:.0f} s.")
    if purpose == "dev":
        provide_browser()


def make_venv() -> None:
    """Create `.venv` with a supported Python, unless there is a working one."""
    if works([str(PYTHON), "-c", f"import sys; sys.exit(sys.version_info < {OLDEST})"]):
        return
    say(f"Making {VENV.name} with {sys.executable} ...")
    if VENV.exists():
        shutil.rmtree(VENV)
    if works([sys.executable, "-m", "venv", str(VENV)]):
        return
    # Debian packages ensurepip separately; an empty environment is enough if uv or the system's pip can fill it.
    shutil.rmtree(VENV, ignore_errors=True)
    if not works([sys.executable, "-m", "venv", "--without-pip", str(VENV)]):
        leave(f"{sys.executable} has no venv module. On Debian or Ubuntu: apt-get install python3-venv")


def install(requirements: str) -> None:
    arguments = ["-r", str(ROOT / requirements), "-c", str(ROOT / "constraints.txt"), "-e", str(ROOT)]
    uv = find_uv()
    if uv:
        say(f"Installing {requirements} with uv ...")
        environment = {**os.environ, **pip_settings(), "UV_HTTP_TIMEOUT": os.environ.get("UV_HTTP_TIMEOUT", "180")}
        if works([uv, "pip", "install", "--python", str(PYTHON), *arguments], environment, quiet=False):
            return
        say("uv failed; trying pip.")
    pip = find_pip()
    if pip is None:
        leave("found neither uv nor pip for .venv. On Debian or Ubuntu: apt-get install python3-venv python3-pip")
    say(f"Installing {requirements} with pip (some minutes) ...")
    if not works([*pip, "install", "-q", *arguments], quiet=False):
        leave("the installation failed; the lines above say why. Run `make` again to continue.")


def find_uv() -> str | None:
    """Return the path of uv: this machine's, or one installed into `.venv`."""
    own = UV_FOLDER / "bin" / ("uv.exe" if WINDOWS else "uv")
    found = shutil.which("uv")
    for candidate in (found, str(own)):
        if candidate and works([candidate, "--version"]):
            return candidate
    pip = find_pip()
    if pip and works([*pip, "install", "-q", "--disable-pip-version-check", "--target", str(UV_FOLDER), "uv"]):
        return str(own) if own.exists() else None
    return None


def find_pip() -> list[str] | None:
    """Return the command of pip: that of `.venv`, or the system's, set to work on `.venv`."""
    for command in ([str(PYTHON), "-m", "pip"], [sys.executable, "-m", "pip", "--python", str(PYTHON)]):
        if works([*command, "--version"]):
            return command
    return None


def pip_settings() -> dict[str, str]:
    """Translate pip's settings for package sources (a mirror, for example) into uv's: uv does not read pip's."""
    pip = find_pip()
    if pip is None:
        return {}
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout
    values = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        values[key.rpartition(".")[2]] = value.strip().strip("'\"").replace("\\n", " ")
    found = {
        "UV_DEFAULT_INDEX": values.get("index-url"),
        "UV_INDEX": values.get("extra-index-url"),
        "UV_FIND_LINKS": ",".join(values.get("find-links", "").split()),
        "SSL_CERT_FILE": values.get("cert"),
    }
    settings = {name: value for name, value in found.items() if value and name not in os.environ}
    # pip takes the best version of all indexes; by default uv takes the first index that has the name.
    return settings | ({"UV_INDEX_STRATEGY": "unsafe-best-match"} if "UV_INDEX" in settings else {})


def provide_browser() -> None:
    """Install Chromium for the browser tests if it is missing and root can install it; otherwise print a warning."""
    if any(map(shutil.which, BROWSERS)):
        return
    apt = shutil.which("apt-get")
    if apt and hasattr(os, "geteuid") and os.geteuid() == 0:
        say("Installing Chromium for the browser tests ...")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        works([apt, "update", "-qq"], environment)
        works([apt, "install", "-y", "-qq", "--no-install-recommends", "chromium"], environment)
    if not any(map(shutil.which, BROWSERS)):
        say("=" * 78)
        say("NO BROWSER: the browser tests will be SKIPPED. Install Chromium to run them,")
        say("for example as root: apt-get install chromium")
        say("=" * 78)


def is_stamped(purpose: str) -> bool:
    """Return True if `.venv` was installed from the present files; the tests' requirements include the app's."""
    try:
        stamped = json.loads((VENV / "ttt-setup.json").read_text())
    except (OSError, ValueError):
        return False
    return PYTHON.exists() and any(stamped.get(p) == fingerprint(p) for p in {purpose, "dev"})


def stamp(purpose: str) -> None:
    (VENV / "ttt-setup.json").write_text(json.dumps({purpose: fingerprint(purpose)}))


def fingerprint(purpose: str) -> str:
    names = ["requirements.txt", "constraints.txt", REQUIREMENTS[purpose], "pyproject.toml"]
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def works(command: list[str], environment: dict[str, str] | None = None, quiet: bool = True) -> bool:
    sink = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.run(command, env=environment, stdout=sink, stderr=sink).returncode == 0
    except OSError:
        return False


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def leave(why: str) -> None:
    say(f"Set-up stopped: {why}")
    raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "run")
