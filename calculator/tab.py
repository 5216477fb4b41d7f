"""The Memory tab, and `python -m calculator.tab` to run it alone. The only module here that imports Gradio."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from gradio.components.api_component import Api
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from calculator import advice, formulas, page, validation
from calculator.custom import SIZES, USED
from calculator.devices import DEVICES, GROUPS
from calculator.errors import CalculatorError
from calculator.form import (
    CHECKPOINTING,
    CONFIG,
    CUSTOM,
    DEFAULTS,
    EXAMPLES,
    LABELS,
    METHODS,
    MODEL_FIELDS,
    OWN,
    Form,
    answer,
    control_values,
    implied,
    read_model,
)
from calculator.hub import LARGEST_FILE, fetch
from calculator.memory import parameter_count
from calculator.presets import GROUPS as PRESET_GROUPS
from calculator.presets import PRESETS
from calculator.report import as_csv, as_dict
from calculator.setup import TrainingSetup, help_text

Component = gr.components.Component
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Options of every event: no overlay on the outputs (it would block clicks), and no entry in the API page."""
INPUTS = {
    "model": f"a preset or the text of a Hugging Face config.json; presets: {', '.join(PRESETS)}",
    "gpu": f'a GPU, or its memory, for example "24 GB"; known GPUs: {", ".join(DEVICES)}',
    "techniques": 'fields of TrainingSetup, for example {"optimizer": "adam8bit", "batch_size": 4}: '
    + "; ".join(f"{name}: {help_text(name)}" for name in TrainingSetup.__dataclass_fields__),
}
RETURNS = {
    "estimate": "every number of the estimate in bytes, the verdict, the largest sizes that fit, and advice",
}
SELECT_TEXT = "() => { setTimeout(() => document.activeElement?.select?.(), 60); }"
BUTTONS = 3
"""Buttons of the advice."""
COMPARED = 3


def build_tab() -> None:
    """Make the tab inside the current gr.Blocks, and its endpoint `/estimate_memory`."""
    controls: dict[str, Component] = {}
    with gr.Column(elem_id="tab-calculator"):
        with gr.Row(elem_id="calc-examples"):
            examples = {label: gr.Button(value=label, size="sm", min_width=140) for label in EXAMPLES}
        _choose(controls)
        own = _own_model(controls)
        outputs: dict[str, Component] = {"verdict": gr.HTML(elem_id="calc-verdict")}
        with gr.Row(elem_id="calculator"):
            with gr.Column(scale=4, min_width=300):
                dimensions = _controls(controls)
            with gr.Column(scale=7, min_width=300):
                buttons = _outputs(outputs)
                _comparison(controls)
    proposals: gr.State = gr.State(value=[], time_to_live=3600)
    answered = [*outputs.values(), *buttons, proposals]
    names, components = list(controls), list(controls.values())
    everything = [*components, dimensions, *answered]

    def fill(form: Form, request: gr.Request | None, note: str = "") -> list[Any]:
        """Values of all controls, and the answer."""
        shown = gr.update(visible=form["model"] == CUSTOM)
        return [*control_values(form, names), shown, *show(form, _address(request), note)]

    def changed(name: str) -> Callable[..., list[Any]]:
        def on_input(values: dict[Component, Any], request: gr.Request) -> list[Any]:
            form = _form(controls, values)
            changes, note = implied(form, name)
            form |= changes
            if name == "gpu" and form["gib"]:
                form, changes = {**form, "gib": 0}, {**changes, "gib": 0}
            updates = [form[n] if n in changes else gr.skip() for n in names]
            shown = gr.update(visible=form["model"] == CUSTOM)
            return [*updates, shown, *show(form, _address(request), note)]

        return on_input

    for name in ("model", "gpu"):
        # Typing searches the list only if it replaces the current text.
        controls[name].focus(fn=None, js=SELECT_TEXT, **HIDDEN)  # type: ignore[attr-defined]
    inputs = set(components)
    for name, component in controls.items():
        if name == "config":
            continue
        # `input` reports the user's changes only: values set by a link or an example come with their answer.
        component.input(  # type: ignore[attr-defined]
            fn=changed(name), inputs=inputs, outputs=everything, trigger_mode="always_last", **HIDDEN
        )
    controls["family"].change(  # type: ignore[attr-defined]
        fn=lambda family: [gr.update(visible=name in USED.get(family, ())) for name in SIZES],
        inputs=[controls["family"]], outputs=[controls[name] for name in SIZES], **HIDDEN,
    )  # fmt: skip
    _connect_own_model(own, controls, everything, fill)

    def apply(number: int) -> Callable[..., list[Any]]:
        def on_click(forms: list[Form], request: gr.Request) -> list[Any]:
            return fill(forms[number], request) if number < len(forms) else [gr.skip()] * len(everything)

        return on_click

    for number, button in enumerate(buttons):
        button.click(fn=apply(number), inputs=[proposals], outputs=everything, **HIDDEN)

    def example(label: str) -> Callable[[gr.Request], list[Any]]:
        def on_click(request: gr.Request) -> list[Any]:
            return fill({**DEFAULTS, **EXAMPLES[label]}, request)

        return on_click

    for label, button in examples.items():
        button.click(fn=example(label), outputs=everything, **HIDDEN)

    def load(request: gr.Request) -> list[Any]:
        query = urlencode(dict(request.query_params or {}))
        return fill(page.from_query(query) or dict(DEFAULTS), request)

    root = gr.context.Context.root_block
    assert root is not None
    root.load(fn=load, outputs=everything, **HIDDEN)
    _add_endpoint(root)


def _add_endpoint(root: gr.Blocks) -> None:
    """Add `/estimate_memory`, with a name and a description of every value for the API page."""
    event = gr.api(estimate_memory, api_name="estimate_memory")
    for ids, texts in ((event["inputs"], INPUTS), (event["outputs"], RETURNS)):
        for id, (name, text) in zip(ids, texts.items(), strict=True):
            part = root.blocks[id]
            assert isinstance(part, Api)
            part.label = name
            part._api_info = {**part._api_info, "description": text, "additional_description": text}


def _form(controls: dict[str, Component], values: dict[Component, Any]) -> Form:
    return {**DEFAULTS, **{name: values[component] for name, component in controls.items() if component in values}}


# -- controls ----------------------------------------------------------------------------------------------------------


def _model_choices() -> list[tuple[str, str]]:
    """Presets by kind, with their size: the list is searched by the text that is typed."""
    rows = [
        (f"{kind}: {name} ({_size(parameter_count(name))})", name)
        for kind, names in PRESET_GROUPS.items()
        for name in names
    ]
    return [*rows, ("Your own config.json or Hub id", CONFIG), ("Your own dimensions", CUSTOM)]


def _size(n: int) -> str:
    return f"{n / 1e9:.1f} B" if n >= 995e6 else f"{n / 1e6:.0f} M"


def _gpu_choices() -> list[tuple[str, str]]:
    """Any card of a size, then the cards of that size; Apple's machines come last."""
    rows: list[tuple[str, str]] = []
    for gb in sorted({d.gb for d in DEVICES.values() if not d.unified}):
        if gb in GROUPS:
            rows.append((f"{gb} GB: any card", f"{gb} GB"))
        rows += [(f"{gb} GB: {d.name}", d.name) for d in DEVICES.values() if d.gb == gb and not d.unified]
    return [*rows, *((d.name, d.name) for d in DEVICES.values() if d.unified)]


def _choose(c: dict[str, Component]) -> None:
    """The first row: model, method and GPU."""
    with gr.Row(elem_id="calc-choose"):
        c["model"] = gr.Dropdown(
            label=LABELS["model"], info="Type to search.", choices=_model_choices(), value=DEFAULTS["model"],
            elem_id="calc-model", scale=4, min_width=200,
        )  # fmt: skip
        c["adapter"] = gr.Radio(
            label=LABELS["adapter"], info="QLoRA: weights in 4 bits.",
            choices=list(METHODS), value="Full", elem_id="calc-method", scale=3, min_width=200,
        )  # fmt: skip
        c["gpu"] = gr.Dropdown(
            label=LABELS["gpu"], info="Type a name or a size.", choices=_gpu_choices(),
            value=DEFAULTS["gpu"], allow_custom_value=True, elem_id="calc-gpu", scale=3, min_width=200,
        )  # fmt: skip


def _own_model(c: dict[str, Component]) -> dict[str, Any]:
    """A config.json, pasted or dropped, or a Hub id."""
    with gr.Accordion(label="Your own model: paste or drop a config.json, or enter a Hub id", elem_id="calc-config"):
        with gr.Row(elem_classes="calc-own-row"):
            text = gr.Textbox(
                label=LABELS["config"], info="Paste a config.json, or type a Hub id and press Enter.", lines=1,
                max_lines=3, placeholder="{ ... } or openai-community/gpt2-large", elem_id="calc-own", scale=3,
            )  # fmt: skip
            upload = gr.File(
                label="Drop a config.json", file_types=[".json"], type="filepath", height=90, elem_id="calc-drop",
                scale=2,
            )  # fmt: skip
            token = gr.Textbox(
                label="Hub token", info="For gated models; not stored.", type="password", max_length=200, scale=2,
                visible=False,
            )  # fmt: skip
        message = gr.HTML(elem_id="calc-own-message")
    c["config"] = gr.State(value="", time_to_live=3600)
    return {"text": text, "upload": upload, "token": token, "message": message}


def _connect_own_model(
    own: dict[str, Any], controls: dict[str, Component], everything: list[Any], fill: Callable[..., list[Any]]
) -> None:
    inputs = {own["text"], own["token"], own["upload"], *controls.values()}
    outputs = [own["message"], own["token"], *everything]

    def use(form: Form, text: str, request: gr.Request) -> list[Any]:
        form = {**form, "model": CONFIG, "config": text}
        read_model(form)
        changes, note = implied(form, "config")
        return ["", gr.skip(), *fill({**form, **changes}, request, note)]

    def refuse(error: CalculatorError) -> list[Any]:
        message = str(error)[:1].upper() + str(error)[1:]
        text = f'<div class="calc"><p class="calc-verdict calc-not" role="alert">{escape(message)}</p></div>'
        token = gr.update(visible=True) if "token" in str(error) else gr.skip()
        return [text, token, *[gr.skip()] * len(everything)]

    def from_id(values: dict[Component, Any], request: gr.Request) -> list[Any]:
        text = _pasted(values)
        try:
            if not text.startswith("{"):
                text = fetch(text, token=(values[own["token"]] or "").strip() or None)
            return use(_form(controls, values), text, request)
        except CalculatorError as error:
            return refuse(error)

    def from_paste(values: dict[Component, Any], request: gr.Request) -> list[Any]:
        text = _pasted(values)
        if not text.endswith("}"):  # a Hub id is being typed
            return ["", *[gr.skip()] * (len(outputs) - 1)]
        return from_id(values, request)

    def _pasted(values: dict[Component, Any]) -> str:
        return str(values[own["text"]] or "").removeprefix("\ufeff").strip()

    def from_file(values: dict[Component, Any], request: gr.Request) -> list[Any]:
        path = Path(values[own["upload"]])
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise CalculatorError(f"a config.json has at most {LARGEST_FILE:,} bytes")
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            return use(_form(controls, values), text, request)
        except CalculatorError as error:
            return refuse(error)

    own["text"].submit(fn=from_id, inputs=inputs, outputs=outputs, **HIDDEN)
    own["text"].change(fn=from_paste, inputs=inputs, outputs=outputs, trigger_mode="always_last", **HIDDEN)
    own["upload"].upload(fn=from_file, inputs=inputs, outputs=outputs, **HIDDEN)


def _controls(c: dict[str, Component]) -> gr.Group:
    """The left column; returns the group of dimensions, which is visible for a custom model."""
    d = DEFAULTS
    with gr.Group(visible=False, elem_id="calc-dimensions") as dimensions:
        c["family"] = gr.Dropdown(label=LABELS["family"], choices=list(USED), value=d["family"], elem_id="calc-family")
        for name in SIZES:
            c[name] = gr.Number(label=LABELS[name], value=d[name], visible=name in USED[d["family"]])
    with gr.Group():
        c["batch_size"] = gr.Number(label=LABELS["batch_size"], value=1, elem_id="calc-batch")
        c["sequence_length"] = gr.Number(
            label=LABELS["sequence_length"], info="Tokens. 0: the model's maximum, at most 2048", value=0
        )
        c["accumulation_steps"] = gr.Number(label=LABELS["accumulation_steps"], value=1)
    _dropdown(c, "optimizer", elem_id="calc-optimizer")
    _dropdown(c, "precision", info="mixed: AMP autocast; pure: 16-bit weights")
    c["gradient_checkpointing"] = gr.Dropdown(
        label=LABELS["gradient_checkpointing"], info="Recomputes activations in the backward pass.",
        choices=list(CHECKPOINTING), value="off",
    )  # fmt: skip
    _dropdown(c, "offload_optimizer", value="none")
    with gr.Accordion(label="More techniques", open=False):
        _more(c)
    return dimensions


def _dropdown(c: dict[str, Component], name: str, **options: Any) -> None:
    choices = list(TrainingSetup.__dataclass_fields__[name].metadata["choices"])
    options = {"value": DEFAULTS[name], **options}
    c[name] = gr.Dropdown(label=LABELS[name], choices=choices, **options)


def _radio(c: dict[str, Component], name: str, choices: list[Any] | None = None, **options: Any) -> None:
    choices = choices or list(TrainingSetup.__dataclass_fields__[name].metadata["choices"])
    c[name] = gr.Radio(label=LABELS[name], choices=choices, **{"value": DEFAULTS[name], **options})


def _more(c: dict[str, Component]) -> None:
    three: list[Any] = list(OWN)

    def number(name: str, **options: Any) -> None:
        c[name] = gr.Number(label=LABELS[name], **{"value": DEFAULTS[name], **options})

    def checkbox(name: str) -> None:
        c[name] = gr.Checkbox(label=LABELS[name], info=_sentence(help_text(name)), value=DEFAULTS[name])

    number("gib", info="Memory of a GPU not in the list. 0: use the GPU above")
    number("lora_rank")
    _radio(c, "zero_stage", [0, 1, 2, 3], info="Splits optimizer state (1), gradients (2) and weights (3) over GPUs.")
    number("gpus")
    _radio(c, "attention", info="sdpa: flash or memory-efficient kernels")
    _radio(c, "optimizer_implementation")
    checkbox("paged_optimizer")
    checkbox("embeddings_32bit")
    checkbox("dropout")
    number("target_length", value=0, info="0: as long as the input")
    number("shared_groups", value=0, info="Sets of weights shared by the layers. 0: model default")
    _radio(c, "reversible", three, value=three[0])
    _radio(c, "tied_embeddings", three, value=three[0])
    checkbox("swarm")
    number("swarm_peers")
    checkbox("reuse_grad_buffers")
    checkbox("delayed_updates")
    _radio(c, "compression", info="run: as in 2021 (8-bit; small tensors 16-bit)")
    number("bandwidth_mbit")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


# -- answers -----------------------------------------------------------------------------------------------------------


def _outputs(o: dict[str, Component]) -> list[gr.Button]:
    """Where an answer is shown, in the order of `show`; returns the buttons of the advice."""
    o["advice"] = gr.HTML(elem_id="calc-advice")
    buttons = [gr.Button(value="", visible=False, elem_classes="calc-apply", size="sm") for _ in range(BUTTONS)]
    o["bars"] = gr.HTML(elem_id="calc-bars")
    o["curves"] = gr.HTML(elem_id="calc-curves")
    with gr.Accordion(label="The formula behind every number", open=False, elem_id="calc-formulas"):
        o["formulas"] = gr.HTML()
    with gr.Accordion(label="How accurate is this? Predicted and measured", open=False, elem_id="calc-validation"):
        gr.HTML(value=page.charts.STYLE + validation.as_html())
    o["link"] = gr.Textbox(
        label="Link to this setup", interactive=False, max_lines=2, buttons=["copy"], elem_id="calc-link"
    )
    with gr.Row():
        o["csv"] = gr.DownloadButton(label="CSV", size="sm")
        o["json"] = gr.DownloadButton(label="JSON", size="sm")
    return buttons


def show(form: Form, base: str, note: str = "") -> list[Any]:
    """Return all outputs. Bad input is reported in place of the verdict, and nothing stale stays below it."""
    try:
        a = answer(form)
        m = a.estimate
        proposed = advice.advise(m, a.device)[:BUTTONS]
        parts = [page.verdict_html(a, note), page.advice_html(a, proposed), page.bars_html(a), page.curves_html(a)]
        parts += [formulas.as_html(m), page.link(form, base)]
    except CalculatorError as error:
        none = [gr.update(visible=False)] * BUTTONS
        return [page.refused_html(str(error)), "", "", "", "", "", None, None, *none, []]
    files = [_download(as_csv([m]), "memory.csv"), _download(json.dumps(as_dict(m), indent=2), "memory.json")]
    buttons = [gr.update(value=page.advice_label(x), visible=True) for x in proposed]
    buttons += [gr.update(visible=False)] * (BUTTONS - len(proposed))
    forms = [{**form, **{f.name: getattr(x.setup, f.name) for f in fields(TrainingSetup)}} for x in proposed]
    return [*parts, *files, *buttons, forms]


def _download(text: str, name: str) -> str:
    """Write a file to Gradio's cache, which the app clears (`delete_cache`); equal files share a path."""
    return save_bytes_to_cache(text.encode(), name, get_upload_folder())


def _address(request: gr.Request | None) -> str:
    """The address of the page, without its query."""
    headers = getattr(request, "headers", None) or {}
    return str(headers.get("referer", "")).split("?")[0]


def _comparison(controls: dict[str, Component]) -> None:
    compared: gr.State = gr.State(value=[], time_to_live=3600)
    with gr.Row():
        add = gr.Button(value="Add to comparison", size="sm", elem_id="calc-keep")
        clear = gr.Button(value="Clear comparison", size="sm")
        download = gr.DownloadButton(label="CSV of the comparison", size="sm", visible=False)
    table = gr.HTML(value=page.compare_html([]), elem_id="calc-compare")

    def on_add(values: dict[Component, Any]) -> list[Any]:
        form = _form(controls, values)
        forms = values[compared] if form in values[compared] else [*values[compared], form][-COMPARED:]
        try:
            text = as_csv([answer(f).estimate for f in forms])
            file = gr.update(value=_download(text, "comparison.csv"), visible=True)
            return [forms, page.compare_html(forms), file]
        except CalculatorError as error:
            return [gr.skip(), page.refused_html(str(error)), gr.skip()]

    def on_clear() -> list[Any]:
        return [[], page.compare_html([]), gr.update(visible=False)]

    outputs = [compared, table, download]
    add.click(fn=on_add, inputs={compared, *controls.values()}, outputs=outputs, **HIDDEN)
    clear.click(fn=on_clear, outputs=outputs, **HIDDEN)


def estimate_memory(model: str = "gpt2-large", gpu: str = "RTX 3060", techniques: dict | None = None) -> dict:
    """Estimate the memory of training a model: bytes on the GPU and in RAM by phase, and whether they fit on a GPU.

    Args:
        model: name of a preset, or the text of a Hugging Face config.json
        gpu: name of a GPU, or its memory, for example "24 GB"
        techniques: fields of TrainingSetup, for example {"optimizer": "adam8bit", "batch_size": 4}
    Returns:
        estimate: every number of the estimate in bytes, the verdict, the largest sizes that fit, and advice
    """
    techniques = techniques or {}
    if not isinstance(techniques, dict):
        raise gr.Error(
            message='techniques must be an object, for example {"optimizer": "adam8bit"}', print_exception=False
        )
    unknown = sorted(set(techniques) - {f for f in DEFAULTS if f not in MODEL_FIELDS})
    try:
        if unknown:
            known = ", ".join(TrainingSetup.__dataclass_fields__)
            raise CalculatorError(f"unknown techniques {', '.join(unknown)}; known: {known}")
        source = {"model": CONFIG, "config": model} if model.lstrip().startswith("{") else {"model": model}
        a = answer({**source, "gpu": gpu, **techniques})
    except CalculatorError as error:
        raise gr.Error(message=str(error), print_exception=False) from None
    return {**as_dict(a.estimate), **advice.as_dict(a.estimate, a.device)}


def main() -> None:
    """Run the tab alone."""
    with gr.Blocks(title="Training memory calculator", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as app:
        gr.HTML(value="<h1>Training memory calculator</h1>")
        build_tab()
    theme = gr.themes.Monochrome(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    app.launch(theme=theme, footer_links=["api"], share=False, ssr_mode=False, max_file_size=LARGEST_FILE)


if __name__ == "__main__":
    main()
