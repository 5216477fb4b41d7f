"""The package stands alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "calculator"


def test_importing_it_needs_neither_torch_nor_gradio() -> None:
    code = "import sys, calculator, calculator.__main__, calculator.page; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    modules = set(done.stdout.split())
    assert "calculator.memory" in modules
    assert not modules & {"torch", "gradio", "transformers", "numpy", "ttt"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_it_never_imports_ttt_and_gradio_in_the_tab_alone(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    assert not imported & {"ttt", "torch", "transformers", "numpy"}
    assert "gradio" not in imported or path.name == "tab.py"
