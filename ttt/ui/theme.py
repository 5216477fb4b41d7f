"""The look of the app: theme, style sheets and scripts. Nothing is loaded from other servers."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

SYSTEM_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO_FONT = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
HERE = Path(__file__).parent / "static"
STYLES = ("style.css", "dashboard.css", "contribute.css")
SCRIPTS = ("generate.js", "dashboard.js")


def theme() -> gr.themes.Base:
    """Gradio's Monochrome, whose contrast is sufficient in both modes, with fonts that every machine has."""
    return gr.themes.Monochrome(
        font=SYSTEM_FONT,
        font_mono=MONO_FONT,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        layout_gap="14px",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        block_label_text_weight="500",
        block_title_text_weight="500",
        button_large_text_weight="600",
    )


def css() -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in STYLES)


def head() -> str:
    """Scripts for what Gradio lacks: live regions, dropping a PNG anywhere, values under the pointer."""
    return "".join(f"<script>{(HERE / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)
