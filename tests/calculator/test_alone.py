"""The package is independent: of torch, of Gradio and of ttt."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "calculator"


def test_importing_it_needs_neither_torch_nor_gradio() -> None:
    code = "import sys, calculator, calculator.__main__, calculator.page; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    modules = set(done.stdout.split())
    assert "calculator.memory" in modules
    assert not modules & {"torch", "gradio", "transformers", "numpy", "ttt"}


def test_no_module_imports_ttt_and_only_the_tab_imports_gradio() -> None:
    offenders = []
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 30
    for path in paths:
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
        forbidden = {"ttt", "torch", "transformers", "numpy"} | ({"gradio"} if path.name != "tab.py" else set())
        offenders += [f"{path.relative_to(PACKAGE)} imports {name}" for name in sorted(imported & forbidden)]
    assert not offenders, "\n".join(offenders)
