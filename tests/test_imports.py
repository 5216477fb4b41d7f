"""Who may import whom, read from the sources; and what an import costs."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROOMS = {
    # module or package: its room; the longest name that fits counts
    "ttt": "ttt",
    "ttt.config": "base", "ttt.types": "base", "ttt.errors": "base",
    "ttt.model": "model",
    "ttt.checkpoint": "files", "ttt.bundle": "files", "ttt.bundle_files": "files", "ttt.bundle_io": "files",
    "ttt.convert": "files", "ttt.hub": "files", "ttt.hub_files": "files",
    "ttt.tokenizer": "text",
    "ttt.sampling": "sampling",
    "ttt.preview": "painting", "ttt.rerank": "painting", "ttt.request": "painting", "ttt.results": "painting",
    "ttt.pipeline": "pipeline", "ttt.fixed_prompts": "pipeline",
    "ttt.data": "data", "ttt.train": "train", "ttt.swarm": "swarm",
    "ttt.ui": "ui",
    "ttt.__main__": "command line",
    "calculator": "calculator",
    "app": "app",
}  # fmt: skip
MAY_IMPORT = {
    "ttt": {"base", "sampling", "pipeline"},
    "base": {"base"},
    "model": {"base", "model"},
    "text": {"base"},
    "files": {"base", "model", "files"},
    "sampling": {"base", "model", "sampling"},
    "painting": {"base", "model", "files", "text", "sampling", "painting"},
    "pipeline": {"base", "model", "files", "text", "sampling", "painting"},
    "data": {"base", "model", "files", "text", "data"},
    "train": {"base", "model", "files", "text", "sampling", "painting", "pipeline", "data", "train", "calculator"},
    "swarm": {"ttt", "base", "model", "files", "text", "sampling", "data", "train", "swarm", "calculator"},
    "ui": {"ttt", "base", "files", "text", "sampling", "painting", "pipeline", "swarm", "ui", "calculator"},
    "command line": {"ttt", "base", "files", "text", "sampling", "painting", "pipeline", "data", "train", "swarm"},
    "calculator": {"calculator"},
    "app": {"ttt", "base", "ui", "calculator"},
}
ONLY_IN = {"gradio": ("ttt.ui", "calculator.tab", "app"), "hivemind": ("ttt.swarm",)}


def modules() -> dict[str, Path]:
    paths = [*(ROOT / "ttt").rglob("*.py"), *(ROOT / "calculator").rglob("*.py"), ROOT / "app.py"]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in sorted(paths)}


MODULES = modules()


def imports(path: Path, module: str, at_import_only: bool = False) -> Iterator[str]:
    """Every module that a file imports, except for type checkers; `from ttt import x` is `ttt.x` where that is one."""
    nodes: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            nodes += node.orelse
            continue
        if at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the room"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        nodes += ast.iter_child_nodes(node)


def room(module: str) -> str:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in ROOMS and (length > 1 or len(parts) == 1 or name not in ("ttt",)):
            return ROOMS[name]
    raise AssertionError(f"{module} is in no room: add it to ROOMS, and say in CONTRIBUTING.md what it owns")


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_the_rooms_below(module: str) -> None:
    allowed = MAY_IMPORT[room(module)]
    for name in imports(MODULES[module], module):
        top = name.split(".")[0]
        if top in ("ttt", "calculator", "app"):
            assert room(name) in allowed or room(name) == room(module), f"{module} may not import {name}"
        if top in ONLY_IN:
            assert module.startswith(ONLY_IN[top]), f"{module} may not import {top}"
        assert not name.startswith("taming.models"), f"{module}: taming.models needs a Lightning that is gone"
        assert top not in ("tests", "benchmarks", "examples"), f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("calculator") and m != "calculator.tab"])
def test_the_calculator_needs_neither_torch_nor_gradio(module: str) -> None:
    heavy = {"torch", "gradio", "transformers", "numpy", "pandas"}
    assert not heavy & {name.split(".")[0] for name in imports(MODULES[module], module, at_import_only=True)}


def cpu_seconds_and_modules(code: str) -> tuple[float, set[str]]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys; print(*sys.modules)"], capture_output=True, text=True, cwd=ROOT
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return used, {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import ttt",
        "import ttt.config, ttt.errors, ttt.types, ttt.bundle, ttt.sampling.params",
        "import calculator; calculator.estimate(calculator.PRESETS['gpt2-large'], calculator.TrainingSetup())",
    ],
)
def test_importing_is_quick_and_light(code: str) -> None:
    seconds, loaded = cpu_seconds_and_modules(code)
    assert not loaded & {"torch", "gradio", "numpy", "transformers", "open_clip", "huggingface_hub", "hivemind"}
    assert seconds < 1.0  # of CPU, so that other work on the machine does not fail the test


def test_generate_and_the_calculator_need_no_linux_packages() -> None:
    """What requirements.txt installs on Linux alone is not imported by anything outside `ttt.swarm` and `ttt.train`."""
    names = [m for m in MODULES if room(m) not in ("swarm", "train") and not m.endswith("__main__") and m != "app"]
    names += ["ttt.train.optimizer"]  # with 32 bits it works anywhere
    code = (
        "import sys, importlib\n"
        "for name in ('hivemind', 'bitsandbytes', 'resource', 'fcntl'): sys.modules[name] = None\n"
        f"for name in {names}: importlib.import_module(name)"
    )
    _, loaded = cpu_seconds_and_modules(code)
    assert "ttt" in loaded
