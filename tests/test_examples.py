"""What people copy: notebooks, Dockerfile, local swarm. What cannot run here is checked against formats and options."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


def commands() -> dict[str, set[str]]:
    """Options of every command of `python -m ttt`."""
    from ttt.__main__ import app

    group: Any = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }


def check_line(line: str) -> None:
    words = shlex.split(line)
    command, options = words[0], {word for word in words[1:] if word.startswith("--")}
    known = commands()
    assert command in known, f"python -m ttt has no {command!r}"
    assert options <= known[command], f"{command} has no {', '.join(options - known[command])}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_one_and_its_commands_exist(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert {"cells", "metadata", "nbformat", "nbformat_minor"} == set(notebook)
    for cell in notebook["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == wanted | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert all(isinstance(line, str) for line in cell["source"])
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    (code,) = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]  # one cell does it
    assert code["outputs"] == [] and code["execution_count"] is None
    text = "".join(code["source"])
    lines = re.findall(r"^!python -m ttt (.+)$", text, re.MULTILINE)
    assert len(lines) == 1
    check_line(lines[0])
    python = "\n".join(line for line in text.splitlines() if not line.startswith(("!", "%")))
    compile(python, path.name, "exec")
    assert "hf_" not in text.replace("hf_oauth", "")


def test_the_notebooks_are_there() -> None:
    assert [path.name for path in NOTEBOOKS] == ["colab.ipynb", "kaggle.ipynb"]


def test_the_dockerfile_copies_what_is_there_and_starts_a_command() -> None:
    text = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
    instructions = [line for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    kinds = [line.split()[0] for line in instructions]
    assert kinds[0] == "FROM" and {"ENTRYPOINT", "CMD", "USER", "VOLUME"} <= set(kinds)
    for line in instructions:
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), line
    assert json.loads(text.split("ENTRYPOINT ")[1].splitlines()[0]) == ["python", "-m", "ttt"]
    usage = re.sub(r"\\\n#\s*", "", text)
    line = re.search(r"ttt +(peer --run [^\n]+)", usage)
    assert line is not None
    check_line(line[1])
    app_line = re.search(r"app\.py ([^\n]+)", usage)
    assert app_line is not None
    done = subprocess.run([sys.executable, "app.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    for option in re.findall(r"--[\w-]+", app_line[1]):
        assert option in done.stdout


def processes_with(word: str) -> list[int]:
    """Living processes whose command line names it, this test's own left out."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in line.read_bytes().decode(errors="replace") and int(line.parent.name) != os.getpid():
                found.append(int(line.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux alone")
def test_a_killed_local_swarm_leaves_nothing_behind(tmp_path: Path) -> None:
    """`kill -9` while it starts: the coordinator that it began ends by itself."""
    script = subprocess.Popen(
        [sys.executable, "-m", "examples.swarm", "--port", "0", "--folder", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: (tmp_path / "demo-swarm" / "coordinator" / "status.json").exists(), "the coordinator")
    finally:
        script.kill()
        script.wait()
    wait_for(lambda: not processes_with(str(tmp_path)), "the end of all its processes")


def wait_for(true: Any, what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(0.2)
