"""The tab is built, and its endpoint answers and refuses."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio")

from calculator.form import DEFAULTS  # noqa: E402
from calculator.tab import build_tab, estimate_memory, show  # noqa: E402


def test_it_is_built_inside_another_page() -> None:
    with gr.Blocks(analytics_enabled=False) as app:
        build_tab()
    names = {fn.api_name for fn in app.fns.values() if fn.api_visibility == "public"}
    assert names == {"estimate_memory"}
    info = app.get_api_info()["named_endpoints"]["/estimate_memory"]
    assert [x["label"] for x in (*info["parameters"], *info["returns"])] == ["model", "gpu", "techniques", "estimate"]
    assert "llama-3.1-8b" in json.dumps(info)


def test_the_endpoint_answers_in_bytes() -> None:
    answer = estimate_memory("gpt2-large", "RTX 3060", {"optimizer": "adam8bit", "gradient_checkpointing": True})
    assert answer["parameter_count"] == 774_030_080
    assert answer["verdict"] == "fits"
    assert sum(answer["phases"][answer["peak_phase"]].values()) == answer["gpu_total"]


def test_downloads_are_written_to_gradios_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    first, again, other = (show({**DEFAULTS, "batch_size": b}, "")[6:8] for b in (1, 1, 2))
    assert [Path(path).name for path in first] == ["memory.csv", "memory.json"]
    assert all(Path(path).is_relative_to(tmp_path / "cache") for path in (*first, *other))
    assert first == again != other
    assert json.loads(Path(first[1]).read_text())["model"] in Path(first[0]).read_text()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt9",), "presets: bert-base"),
        (("gpt2", "toaster"), "unknown GPU"),
        (("gpt2", "T4", {"batch": 3}), "unknown techniques batch"),
        (("gpt2", "T4", {"batch_size": -3}), "from 1"),
        (("{broken",), "not the JSON"),
        (("gpt2", "T4", "adam"), "techniques must be an object"),
    ],
)
def test_the_endpoint_refuses_with_what_is_allowed(arguments: tuple, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(gr.Error, match=message):
        estimate_memory(*arguments)


def test_bad_input_leaves_nothing_stale() -> None:
    shown = show({**DEFAULTS, "batch_size": 0}, "")
    assert "This setup cannot be estimated" in shown[0]
    assert shown[1:8] == ["", "", "", "", "", None, None]
    assert shown[-1] == []


def test_advice_buttons_carry_forms_that_fit() -> None:
    *_, forms = show({**DEFAULTS, "model": "llama-3.1-8b", "gpu": "RTX 3090", "adapter": "LoRA"}, "")
    assert forms
    for form in forms:
        assert any(word in show(form, "")[0] for word in ("Fits: needs", "Tight fit"))
