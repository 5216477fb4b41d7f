"""Clocks that tick only while their tab is the one shown: Gradio's own go on for ever once they have begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr


def tick_while_shown(clock: gr.Timer, refresh: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """Call `refresh` when the tab around the current components is opened, and at each tick while it is shown.

    Outside of tabs the clock always ticks.
    """
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented", "concurrency_limit": None}
    clock.tick(fn=refresh, inputs=inputs, outputs=outputs, trigger_mode="once", **quiet)
    tab = _around(gr.Tab)
    root = gr.context.Context.root_block
    assert root is not None
    if tab is None:
        root.load(fn=lambda: gr.Timer(active=True), outputs=[clock], **quiet)
        root.load(fn=refresh, inputs=inputs, outputs=outputs, **quiet)
        return
    bar = tab.parent

    def choose(event: gr.SelectData) -> gr.Timer:
        return gr.Timer(active=event.value == tab.label)

    def begin(request: gr.Request) -> gr.Timer:
        return gr.Timer(active=request.query_params.get("tab") == tab.id)

    bar.select(fn=choose, outputs=[clock], queue=False, **quiet)
    root.load(fn=begin, outputs=[clock], **quiet)
    tab.select(fn=refresh, inputs=inputs, outputs=outputs, **quiet)
    root.load(fn=refresh, inputs=inputs, outputs=outputs, **quiet)


def _around(kind: type) -> Any:
    """The nearest block of a kind around what is being built."""
    block: Any = gr.context.Context.block
    while block is not None and not isinstance(block, kind):
        block = block.parent
    return block
