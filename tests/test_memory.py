"""Free memory: what a container still allows, by its control group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ttt import memory as memory_module
from ttt.memory import available

CPU = torch.device("cpu")
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file")
V2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
STAT = "anon 3000\ninactive_file 7\n{name} 500\nactive_file 900\n"


def group(folder: Path, version: tuple[str, str, str, str], limit: str, used: int, stat: str | None) -> None:
    (folder / "memory").mkdir()
    limit_file, used_file, stat_file, _ = version
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    if stat is not None:
        (folder / stat_file).write_text(stat)


@pytest.fixture(autouse=True)
def only_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "CGROUP", tmp_path)
    monkeypatch.setattr(memory_module, "_system_available", lambda: 1 << 40)


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_cached_files_are_not_used_memory(tmp_path: Path, version: tuple[str, str, str, str]):
    stat = f"anon 3000\n{version[3]} 500\nactive_file 900\n"
    group(tmp_path, version, "10000", 4000, stat)
    assert available(CPU) == 10_000 - (4000 - 500)


@pytest.mark.parametrize("stat", [None, "", "\n", "inactive_file", "inactive_file many", "anon 5\n"])
def test_what_is_cached_may_not_be_told(tmp_path: Path, stat: str | None):
    group(tmp_path, V2, "10000", 4000, stat)
    assert available(CPU) == 6000


@pytest.mark.parametrize(("used", "cached", "left"), [(12_000, 500, 0), (12_000, 5000, 3000), (100, 500, 10_000)])
def test_what_is_left_is_from_nothing_to_the_limit(tmp_path: Path, used: int, cached: int, left: int):
    group(tmp_path, V2, "10000", used, f"inactive_file {cached}\n")
    assert available(CPU) == left


def test_no_limit_leaves_what_the_machine_has(tmp_path: Path):
    group(tmp_path, V2, "max", 4000, "inactive_file 500\n")
    assert available(CPU) == 1 << 40
