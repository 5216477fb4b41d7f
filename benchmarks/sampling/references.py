"""Other implementations, each in its own environment and process, which answers questions line by line.

Their packages want versions that ours cannot have. torch and the like come from our environment, so that both run on
the same libraries; what a reference pins comes before them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("reference_worker.py")
REQUESTS = ("requests", "urllib3", "charset-normalizer", "idna", "certifi")
PACKAGES = {
    "dalle-pytorch": (
        "dalle-pytorch==1.6.6", "rotary-embedding-torch==0.1.5", "axial_positional_embedding==0.2.1",
        "pytorch-lightning==1.9.5", "lightning-utilities", "torchmetrics", "taming-transformers-rom1504==0.0.6",
        "setuptools<81", "einops", "omegaconf", "antlr4-python3-runtime==4.9.3", "ftfy", "regex", *REQUESTS,
    ),
    "min-dalle": ("min-dalle==0.4.11", "emoji", *REQUESTS),
}  # fmt: skip
STAND_INS = {"dalle-pytorch": {"youtokentome.py": "class BPE: ...\n"}}
"""youtokentome no longer builds; dalle-pytorch imports it for a tokenizer that is not used here."""


class Reference:
    """A running process; `ask(do="step", batch=8)` returns its answer.

    `device` is None, and the process has ended, if its torch cannot use the requested device.
    """

    def __init__(self, name: str, sizes: dict[str, Any], threads: int, device: str = "cpu") -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [str(python_of(name)), "-W", "ignore", str(WORKER), name, json.dumps(sizes), str(threads), device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.device: str | None = self._answer()["device"]

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}; its own words stand above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def python_of(name: str) -> Path:
    """The interpreter of the reference's environment, made on first use."""
    parts = (*PACKAGES[name], sys.version, sysconfig.get_path("purelib"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "ttt-benchmarks" / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:10]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"making an environment for {name} in {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, symlinks=True)
        install = [*_install_into(python), "--no-deps", "--quiet", *PACKAGES[name]]
        if subprocess.run(install, stdout=sys.stderr).returncode:
            raise SystemExit(f"{name} could not be installed; its installer's words stand above")
        site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        for file, text in STAND_INS.get(name, {}).items():
            (site / file).write_text(text, encoding="utf-8")
        (site / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        ready.touch()
    return python


def _install_into(python: Path) -> list[str]:
    beside = Path(sys.prefix) / "uv" / "bin" / "uv"
    uv = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if uv:
        return [uv, "pip", "install", "--python", str(python)]
    return [sys.executable, "-m", "pip", "--python", str(python), "install"]
