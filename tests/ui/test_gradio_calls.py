"""Gradio drops positional arguments without a warning, so none of our calls may have more than one."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "app.py", *(ROOT / "ttt" / "ui").rglob("*.py"), ROOT / "calculator" / "tab.py"]


def test_gradio_gets_its_arguments_by_name() -> None:
    calls = [
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("gr.")
    ]
    assert len(calls) > 100  # the scan sees the tabs
    offenders = [f"{path.name}:{node.lineno}: {ast.unparse(node)[:80]}" for path, node in calls if len(node.args) > 1]
    assert not offenders, "\n".join(offenders)
