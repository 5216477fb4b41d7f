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

BASE = {
    "ttt.atomic",
    "ttt.config",
    "ttt.errors",
    "ttt.fields",
    "ttt.hardware",
    "ttt.linear",
    "ttt.text",
    "ttt.types",
    "ttt.workers",
}
FILES = {"ttt.checkpoint", "ttt.bundle"}
GENERATION = {
    "ttt",
    "ttt.tokenizer",
    "ttt.sampling",
    "ttt.preview",
    "ttt.rerank",
    "ttt.request",
    "ttt.results",
    "ttt.pipeline",
}
SWARM = ["config", "process", "dht", "averaging", "training", "history", "peer", "coordinator", "cli"]
"""The packages of `ttt.swarm`, each of which imports only those before it (`peer` and `coordinator` not each other)."""
UI_BASE = ["settings", "theme", "frame_policy", "html", "fake_images"]
TABS = ["generate", "contribute", "dashboard"]
"""Tabs do not import each other."""

MAY_IMPORT: dict[str, set[str]] = {
    # package or module: what it may import of this repository, itself aside; the longest name that fits counts
    "ttt": set(),
    **dict.fromkeys(BASE, BASE),
    "ttt.model": BASE,
    **dict.fromkeys(FILES, BASE | FILES | {"ttt.model"}),
    "ttt.tokenizer": BASE,
    "ttt.sampling": BASE | {"ttt.model"},
    **dict.fromkeys(
        ("ttt.preview", "ttt.rerank", "ttt.request", "ttt.results", "ttt.pipeline"),
        BASE | FILES | GENERATION - {"ttt", "ttt.pipeline"} | {"ttt.model"},
    ),
    "ttt.data": BASE | FILES | {"ttt.model", "ttt.tokenizer"},
    "ttt.train": BASE | FILES | GENERATION | {"ttt.model", "ttt.data", "calculator"},
    **{
        f"ttt.swarm.{name}": BASE | FILES | GENERATION | {"ttt.model", "ttt.data", "ttt.train", "calculator"}
        | {f"ttt.swarm.{earlier}" for earlier in SWARM[:i] if (name, earlier) != ("coordinator", "peer")}
        for i, name in enumerate(SWARM)
    },
    "ttt.swarm": set(),
    "ttt.ui": set(),
    **dict.fromkeys((f"ttt.ui.{name}" for name in UI_BASE), BASE),
    "ttt.ui.app": BASE | {f"ttt.ui.{name}" for name in UI_BASE},
    **{
        f"ttt.ui.{tab}": BASE | FILES | GENERATION | {"ttt.swarm", "calculator"}
        | {f"ttt.ui.{shared}" for shared in ("app", "settings", "html", "fake_images")}
        for tab in TABS
    },
    "ttt.__main__": BASE | FILES | GENERATION | {"ttt.data", "ttt.train", "ttt.swarm"},
    "calculator": set(),
    "app": BASE | {"ttt", "ttt.ui", "calculator"},
}  # fmt: skip
ONLY_IN = {"gradio": ("ttt.ui", "calculator.tab", "app"), "hivemind": ("ttt.swarm",)}
MAY_OVERRIDE = {
    # module of hivemind: the packages that may subclass its classes or assign to its attributes
    "hivemind.dht": ("ttt.swarm.dht",),
    "hivemind.p2p": ("ttt.swarm.process",),
    "hivemind": ("ttt.swarm.averaging",),
    "torch.optim": ("ttt.swarm.process", "ttt.swarm.training", "ttt.train"),
}
STARTS_PROCESSES = {"os.fork", "os.posix_spawn", "subprocess.Popen", "subprocess.run", "multiprocessing.Process"}


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


def package(module: str) -> str:
    """The entry of MAY_IMPORT that a module belongs to."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in MAY_IMPORT and (name != "ttt" or module == "ttt"):
            return name
    raise AssertionError(f"{module} has no entry in MAY_IMPORT: add it, and say in CONTRIBUTING.md what it owns")


def test_a_package_imports_only_the_packages_below() -> None:
    wrong = []
    for module, path in MODULES.items():
        own = package(module)
        for name in imports(path, module):
            top = name.split(".")[0]
            if top in ("ttt", "calculator", "app"):
                other = package(name)
                allowed = other == own or any(
                    f"{other}.".startswith(f"{one}.") for one in MAY_IMPORT[own] if one != "ttt"
                )
                if not allowed and not (other == "ttt" and "ttt" in MAY_IMPORT[own]):
                    wrong.append(f"{module} may not import {name}")
            if top in ONLY_IN and not module.startswith(ONLY_IN[top]):
                wrong.append(f"{module} may not import {top}")
            if name.startswith("taming.models"):
                wrong.append(f"{module}: taming.models needs a version of Lightning that no longer exists")
            if top in ("tests", "benchmarks", "examples"):
                wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_packages_import_each_other_in_one_direction() -> None:
    arrows = {
        (package(m), package(n))
        for m, p in MODULES.items()
        for n in imports(p, m)
        if n.split(".")[0] in ("ttt", "calculator")
    }
    circles = []
    for start in {one for one, _ in arrows}:
        seen, queue = set[str](), [start]
        while queue:
            here = queue.pop()
            below = {other for one, other in arrows if one == here and other != here}
            queue += below - seen
            seen |= below
        if start in seen and start != "ttt":
            circles.append(start)
    assert not circles, f"these packages import each other in a circle: {sorted(circles)}"


def full_names(tree: ast.AST) -> dict[str, str]:
    """Name in a file -> what it was imported as: {"mp": "multiprocessing", "DHTNode": "hivemind.dht.node.DHTNode"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: full or name for name, full in names.items()}


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """The dotted name of `a.b.c` with `a` replaced by what it was imported as; "" for other expressions."""
    first, _, rest = ast.unparse(node).partition(".")
    return f"{names[first]}.{rest}".rstrip(".") if first in names else ""


def overrides(path: Path) -> Iterator[str]:
    """Classes of other packages that a file subclasses, and attributes of other packages that it assigns to."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from filter(None, (full_name(base, names) for base in node.bases))
        elif isinstance(node, ast.Assign):
            targets = (target for target in node.targets if isinstance(target, ast.Attribute))
            yield from filter(None, (full_name(target, names) for target in targets))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            yield from filter(None, (full_name(node.args[0], names),))


def test_only_the_packages_that_own_it_override_hivemind() -> None:
    wrong, seen = [], set()
    for module, path in MODULES.items():
        for name in overrides(path):
            name = "hivemind.dht.DHT" if name == "hivemind.DHT" else name  # imported by its short name
            owner = next((prefix for prefix in MAY_OVERRIDE if f"{name}.".startswith(f"{prefix}.")), None)
            seen.add(owner)
            if owner and not module.startswith(MAY_OVERRIDE[owner]):
                wrong.append(f"{module} may not subclass or patch {name}")
    assert not wrong, "\n".join(wrong)
    assert seen >= set(MAY_OVERRIDE), "the scan no longer finds what it should"


def test_only_the_process_package_starts_processes_of_a_swarm() -> None:
    wrong, seen = [], 0
    for module, path in MODULES.items():
        if not module.startswith("ttt.swarm"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = full_names(tree)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = full_name(call.func, names)
            if name in STARTS_PROCESSES or any(keyword.arg == "preexec_fn" for keyword in call.keywords):
                seen += 1
                if not module.startswith("ttt.swarm.process"):
                    wrong.append(f"{module}:{call.lineno} starts a process: use ttt.swarm.process.lifecycle")
    assert not wrong, "\n".join(wrong)
    assert seen, "the scan no longer finds what it should"


def test_the_calculator_needs_neither_torch_nor_gradio() -> None:
    heavy = {"torch", "gradio", "transformers", "numpy", "pandas"}
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if module.startswith("calculator") and module != "calculator.tab"
        for name in imports(MODULES[module], module, at_import_only=True)
        if name.split(".")[0] in heavy
    ]
    assert not wrong, "\n".join(wrong)


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
        "import ttt.config, ttt.errors, ttt.types, ttt.bundle.spec, ttt.sampling.params",
        "import calculator; calculator.estimate(calculator.PRESETS['gpt2-large'], calculator.TrainingSetup())",
    ],
)
def test_importing_is_quick_and_light(code: str) -> None:
    seconds, loaded = cpu_seconds_and_modules(code)
    assert not loaded & {"torch", "gradio", "numpy", "transformers", "open_clip", "huggingface_hub", "hivemind"}
    assert seconds < 1.0  # of CPU, so that other work on the machine does not fail the test


def test_generate_and_the_calculator_need_no_linux_packages() -> None:
    """What requirements.txt installs on Linux alone is not imported by anything outside `ttt.swarm` and `ttt.train`."""
    names = [
        m for m in MODULES if not m.startswith(("ttt.swarm", "ttt.train")) and not m.endswith("__main__") and m != "app"
    ]
    names += ["ttt.train.optimizer"]  # with 32 bits it works anywhere
    code = (
        "import sys, importlib\n"
        "for name in ('hivemind', 'bitsandbytes', 'resource', 'fcntl'): sys.modules[name] = None\n"
        f"for name in {names}: importlib.import_module(name)"
    )
    _, loaded = cpu_seconds_and_modules(code)
    assert "ttt" in loaded
