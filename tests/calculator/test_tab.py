"""The tab is built, and its endpoint answers and refuses."""

from __future__ import annotations

import pytest

gr = pytest.importorskip("gradio")

from calculator.tab import build_tab, estimate_memory  # noqa: E402


def test_it_is_built_inside_another_page() -> None:
    with gr.Blocks(analytics_enabled=False) as app:
        build_tab()
    names = {fn.api_name for fn in app.fns.values() if fn.api_visibility == "public"}
    assert names == {"estimate_memory"}


def test_the_endpoint_answers_in_bytes() -> None:
    answer = estimate_memory("gpt2-large", "RTX 3060", {"optimizer": "adam8bit", "gradient_checkpointing": True})
    assert answer["parameter_count"] == 774_030_080
    assert answer["verdict"] == "fits"
    assert sum(answer["phases"][answer["peak_phase"]].values()) == answer["gpu_total"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt9",), "known: bert-base"),
        (("gpt2", "toaster"), "unknown GPU"),
        (("gpt2", "T4", {"batch": 3}), "unknown techniques batch"),
        (("gpt2", "T4", {"batch_size": -3}), "from 1"),
        (("{broken",), "not the JSON"),
    ],
)
def test_the_endpoint_refuses_with_what_is_allowed(arguments: tuple, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(gr.Error, match=message):
        estimate_memory(*arguments)
