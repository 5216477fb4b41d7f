"""Gradio drops positional arguments without a word: none of our calls has more than one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    p for p in (ROOT / "app.py", *(ROOT / "ttt" / "ui").glob("*.py"), ROOT / "calculator" / "tab.py") if p.exists()
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_gradio_gets_its_arguments_by_name(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("gr."):
            assert len(node.args) <= 1, f"{path.name}:{node.lineno}: {ast.unparse(node)[:80]}"


def test_the_scan_sees_calls() -> None:
    calls = sum(
        isinstance(node, ast.Call) and ast.unparse(node.func).startswith("gr.")
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    assert calls > 20
