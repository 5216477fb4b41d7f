"""The package stands alone, and answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calculator import PRESETS, TrainingSetup, estimate

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


def test_an_estimate_takes_less_than_a_millisecond_of_cpu() -> None:
    setups = [TrainingSetup(optimizer="adam8bit", precision="mixed-fp16", batch_size=b) for b in range(1, 11)]
    for name in ("gpt2-large", "t5-11b", "ttt-dalle"):
        best = min(_cpu_seconds(name, setups) for _ in range(5))
        assert best / len(setups) < 1e-3, name


def _cpu_seconds(name: str, setups: list[TrainingSetup]) -> float:
    started = time.process_time()
    for setup in setups:
        estimate(PRESETS[name], setup)
    return time.process_time() - started
