"""Notebooks, Dockerfile and the local swarm. Those that cannot run here are checked against formats and options."""

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
    command, options = words[0], {word for word in words[1:] if word.startswith("--")} - {"--help"}
    known = commands()
    assert command in known, f"python -m ttt has no {command!r}"
    assert options <= known[command], f"{command} has no {', '.join(options - known[command])}"


def code_of(path: Path) -> str:
    """The one cell that does it."""
    (code,) = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert code["outputs"] == [] and code["execution_count"] is None
    return "".join(code["source"])


def python_of(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith(("!", "%")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid(path: Path) -> None:
    import nbformat

    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert "hf_" not in code_of(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_commands_in_a_notebook_exist(path: Path) -> None:
    text = code_of(path)
    shell = [line[1:] for line in text.splitlines() if line.startswith("!")]
    (peer,) = [line for line in shell if line.startswith("python -m ttt ")]
    check_line(peer.removeprefix("python -m ttt "))
    given = dict(re.findall(r'^(\w+) = (?:"[^"]*"|\d+)  # @param {type:"(string|integer)"}$', text, re.MULTILINE))
    assert set(given) == {"RUN", "ADDRESS", "SOURCE", "NAME", "MICRO_BATCH"}
    assert set(re.findall(r"\$(\w+)", "\n".join(shell))) == set(given)
    assert all(f'"${name}"' in "\n".join(shell) for name, kind in given.items() if kind == "string")  # spaces and all
    explained = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
    assert all(f"`{name}`" in "".join(explained) for name in given)
    (filtered,) = [line for line in shell if line.startswith("grep ")]
    kept = subprocess.run(filtered.split(">")[0], shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    left_out = set((ROOT / "requirements.txt").read_text().splitlines()) - set(kept.splitlines())
    assert {line.split("==")[0] for line in left_out} == {"torch", "torchvision"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_with_placeholders_stops_before_it_does_anything(path: Path) -> None:
    text = code_of(path)
    assert text.index("raise SystemExit") < text.index("\n!")
    with pytest.raises(SystemExit, match=r"Replace 'https://example.org/run.toml' at the top"):
        exec(python_of(text), {})
    filled = text.replace("//example.org", "//a.example").replace("/dns4/example.org", "/dns4/a.example")
    filled = filled.replace("spaces/OWNER/SPACE", "spaces/anna/demo")
    exec(python_of(filled), {})


def test_the_notebooks_are_there() -> None:
    assert [path.name for path in NOTEBOOKS] == ["colab.ipynb", "kaggle.ipynb"]


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (EXAMPLES / "Dockerfile").read_text(encoding="utf-8"))
    return re.findall(r"^([A-Z]+) (.+)$", text, re.MULTILINE)


def test_the_dockerfile_installs_pinned_packages_and_runs_as_an_ordinary_user() -> None:
    found = instructions()
    kinds = [kind for kind, _ in found]
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert kinds[0] == "FROM" and set(kinds) == known
    (image,) = [rest for kind, rest in found if kind == "FROM"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f'python_version: "{image.removeprefix("python:").removesuffix("-slim")}"' in readme
    copied = [source for kind, rest in found if kind == "COPY" for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    (install,) = [rest for kind, rest in found if kind == "RUN" and "pip install" in rest]
    assert set(re.findall(r"-[rc] (\S+)", install)) == {"requirements.txt", "constraints.txt"} <= set(copied)
    assert kinds.index("USER") > kinds.index("RUN") and dict(found)["USER"] != "root"
    assert dict(found)["STOPSIGNAL"] == "SIGTERM"  # a peer leaves in order
    assert json.loads(dict(found)["ENTRYPOINT"]) == ["python", "-m", "ttt"]
    check_line(" ".join(json.loads(dict(found)["CMD"])))
    ignored = (EXAMPLES / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "runs"} <= set(ignored)
    assert not {"ttt", "calculator", "app.py", "README.md", *copied} & set(ignored)


def test_the_commands_in_the_dockerfile_exist() -> None:
    usage = re.sub(r"\\\n#\s*", "", (EXAMPLES / "Dockerfile").read_text(encoding="utf-8"))
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
    """`kill -9` while it starts: the coordinator that it started ends by itself."""
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
