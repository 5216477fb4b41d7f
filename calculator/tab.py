"""The Memory tab, and `python -m calculator.tab` to see it alone. The only gradio file here; computes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from calculator import advice, formulas, page, validation
from calculator.custom import SIZES, USED
from calculator.devices import DEVICES
from calculator.errors import CalculatorError
from calculator.form import CHECKPOINTING, CONFIG, CUSTOM, DEFAULTS, EXAMPLES, MODEL_FIELDS, Form, answer, values
from calculator.hub import LARGEST_FILE
from calculator.hub import fetch as fetch_config
from calculator.presets import PRESETS
from calculator.report import as_csv, as_dict
from calculator.setup import OPTIMIZERS, TrainingSetup

Component = gr.components.Component


def build_tab() -> None:
    """Make the tab inside the current gr.Blocks, and its endpoint `/estimate_memory`."""
    with gr.Row(elem_id="calc-examples"):
        examples = {label: gr.Button(value=label, size="sm", min_width=140) for label in EXAMPLES}
    said = gr.HTML(elem_id="calc-verdict")
    with gr.Row(elem_id="calculator"):
        with gr.Column(scale=4, min_width=300):
            controls = _controls()
            filled = _model_sources(controls)
        with gr.Column(scale=7, min_width=300):
            outputs = [said, *_outputs().values()]
            _comparison(controls)
    inputs, names = set(controls.values()), list(controls)

    def show_form(values: dict[Component, Any], request: gr.Request) -> list[Any]:
        return show(_form(controls, values), _address(request))

    answer: dict[str, Any] = {
        "fn": show_form, "inputs": inputs, "outputs": outputs, "show_progress": "hidden", "api_visibility": "private",
        "trigger_mode": "always_last",
    }  # fmt: skip
    for component in controls.values():
        # `input` is the user alone: values set by a link or an example come with their answer.
        component.input(**answer)  # type: ignore[attr-defined]
    controls["family"].change(  # type: ignore[attr-defined]
        fn=lambda family: [gr.update(visible=name in USED.get(family, ())) for name in SIZES],
        inputs=[controls["family"]], outputs=[controls[name] for name in SIZES], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
    for event in filled:
        event.then(**{k: v for k, v in answer.items() if k != "trigger_mode"})

    def fill(form: Form, request: gr.Request) -> list[Any]:
        return [*values(form, names), *show(form, _address(request))]

    def example(label: str) -> Callable[[gr.Request], list[Any]]:
        def show_example(request: gr.Request) -> list[Any]:
            return fill({**DEFAULTS, **EXAMPLES[label]}, request)

        return show_example

    def load(request: gr.Request) -> list[Any]:
        query = urlencode(dict(request.query_params or {}))
        return fill(page.from_query(query) or dict(DEFAULTS), request)

    everything = [*controls.values(), *outputs]
    for label, button in examples.items():
        button.click(fn=example(label), outputs=everything, show_progress="hidden", api_visibility="private")
    root = gr.context.Context.root_block
    assert root is not None
    root.load(fn=load, outputs=everything, show_progress="hidden", api_visibility="private")
    gr.api(estimate_memory, api_name="estimate_memory")


def _form(controls: dict[str, Component], values: dict[Component, Any]) -> Form:
    return {name: values[component] for name, component in controls.items() if component in values}


def _controls() -> dict[str, Component]:
    """Every control by the name of what it sets, in the order in which they stand."""
    d = DEFAULTS
    c: dict[str, Component] = {}
    c["model"] = gr.Dropdown(label="Model", choices=[*PRESETS, CUSTOM, CONFIG], value=d["model"], elem_id="calc-model")
    c["gpu"] = gr.Dropdown(
        label="GPU", choices=list(DEVICES), value=d["gpu"], allow_custom_value=True, elem_id="calc-gpu"
    )
    c["gib"] = gr.Number(label="GiB of a GPU of your own", info="0: the GPU above", value=0, minimum=0)
    with gr.Accordion(label="Dimensions of your own", open=False, elem_id="calc-dimensions"):
        gr.Markdown(value=f"For the model *{CUSTOM}*; all else as transformers' default configuration of the family.")
        c["family"] = gr.Dropdown(label="Family", choices=list(USED), value=d["family"], elem_id="calc-family")
        for name in SIZES:
            c[name] = gr.Number(
                label=name.replace("_", " ").capitalize(), value=d[name], precision=0,
                visible=name in USED[d["family"]],
            )  # fmt: skip
    with gr.Accordion(label="A config.json", open=False, elem_id="calc-config"):
        c["config"] = gr.Textbox(label="config.json", info="paste it here, then choose the model config.json", lines=4)
    with gr.Group():
        c["batch_size"] = gr.Number(label="Micro-batch", value=1, precision=0, elem_id="calc-batch")
        c["sequence_length"] = gr.Number(
            label="Sequence length", info="0: the model's own, at most 2048", value=0, precision=0
        )
        c["accumulation_steps"] = gr.Number(label="Micro-batches a step", value=1, precision=0)
    c["optimizer"] = gr.Dropdown(
        label="Optimizer", choices=list(OPTIMIZERS), value=d["optimizer"], elem_id="calc-optimizer"
    )
    precisions = ["float32", "mixed-fp16", "mixed-bf16", "pure-fp16", "pure-bf16"]
    c["precision"] = gr.Dropdown(label="Precision", info="mixed: autocast", choices=precisions, value=d["precision"])
    c["gradient_checkpointing"] = gr.Dropdown(label="Gradient checkpointing", choices=list(CHECKPOINTING), value="off")
    offloads = ["none", "hivemind", "zero-offload"]
    c["offload_optimizer"] = gr.Dropdown(label="Optimizer in RAM", choices=offloads, value="none")
    c["attention"] = gr.Radio(label="Attention", choices=["auto", "eager", "sdpa"], value="auto")
    with gr.Accordion(label="More techniques", open=False):
        _more(c)
    return c


def _more(c: dict[str, Component]) -> None:
    d, three = DEFAULTS, ["model's own", "yes", "no"]
    c["shared_groups"] = gr.Number(
        label="Sets of weights among the layers", info="0: the model's own", value=0, precision=0
    )
    c["reversible"] = gr.Radio(label="Reversible layers", choices=three, value=three[0])
    c["tied_embeddings"] = gr.Radio(label="Tied embeddings", choices=three, value=three[0])
    c["dropout"] = gr.Checkbox(label="Dropout of the model", value=True)
    c["target_length"] = gr.Number(
        label="Length of the decoder's sequence (T5)", info="0: the same", value=0, precision=0
    )
    ways = ["foreach", "for-loop", "fused"]
    c["optimizer_implementation"] = gr.Radio(label="Optimizer step", choices=ways, value="foreach")
    c["paged_optimizer"] = gr.Checkbox(label="Paged state (bitsandbytes)", value=False)
    c["embeddings_32bit"] = gr.Checkbox(label="32-bit state for embeddings", value=False)
    c["adapter"] = gr.Radio(label="Adapters", choices=["none", "lora", "qlora"], value="none")
    c["lora_rank"] = gr.Number(label="Rank of adapters", value=d["lora_rank"], precision=0)
    c["zero_stage"] = gr.Radio(label="ZeRO stage", choices=[0, 1, 2, 3], value=0)
    c["gpus"] = gr.Number(label="GPUs", value=1, precision=0)
    c["swarm"] = gr.Checkbox(label="Swarm (hivemind)", value=False)
    c["swarm_peers"] = gr.Number(label="Peers", value=d["swarm_peers"], precision=0)
    c["reuse_grad_buffers"] = gr.Checkbox(label="Accumulate in the model's gradients", value=False)
    c["delayed_updates"] = gr.Checkbox(label="Delayed updates", value=d["delayed_updates"])
    c["compression"] = gr.Radio(label="Compression", choices=["none", "16-bit", "8-bit", "run"], value=d["compression"])
    c["bandwidth_mbit"] = gr.Number(label="Bandwidth, Mbit/s", value=d["bandwidth_mbit"])


def _outputs() -> dict[str, Component]:
    """What an answer is shown in, the verdict apart; the order is that of `show`."""
    o: dict[str, Component] = {}
    o["bars"] = gr.HTML(elem_id="calc-bars")
    o["advice"] = gr.HTML(elem_id="calc-advice")
    o["curves"] = gr.HTML(elem_id="calc-curves")
    with gr.Accordion(label="Phases of a step", open=False):
        o["phases"] = gr.HTML()
    with gr.Accordion(label="The formula behind every number", open=False, elem_id="calc-formulas"):
        o["formulas"] = gr.HTML()
    with gr.Accordion(label="Predicted against measured, case by case", open=False, elem_id="calc-validation"):
        gr.HTML(value=page.charts.STYLE + validation.as_html())
    o["link"] = gr.Textbox(label="Link to this setup", interactive=False, buttons=["copy"], elem_id="calc-link")
    with gr.Row():
        o["csv"] = gr.DownloadButton(label="CSV", size="sm")
        o["json"] = gr.DownloadButton(label="JSON", size="sm")
    return o


def show(form: Form, base: str) -> list[Any]:
    """All outputs; refused input is said where the verdict stands, and the rest stays as it was."""
    try:
        a = answer(form)
        m = a.estimate
        parts = [page.verdict_html(a), page.bars_html(a), page.advice_html(a), page.curves_html(a), page.phases_html(a)]
    except CalculatorError as error:
        return [page.refused_html(str(error)), *[gr.skip()] * 8]
    files = [_download(as_csv([m]), "memory.csv"), _download(json.dumps(as_dict(m), indent=2), "memory.json")]
    return [*parts, formulas.as_html(m), page.link(form, base), *files]


def _download(text: str, name: str) -> str:
    """Path of the file in Gradio's cache, which the app clears (`delete_cache`); one for all who ask the same."""
    return save_bytes_to_cache(text.encode(), name, get_upload_folder())


def _address(request: gr.Request | None) -> str:
    """Of the page, without a query."""
    headers = getattr(request, "headers", None) or {}
    return str(headers.get("referer", "")).split("?")[0]


def _model_sources(controls: dict[str, Component]) -> list[Any]:
    """A Hub id or an uploaded file fills the config.json, and the model is set to it; returns these events."""
    with gr.Accordion(label="Fetch or upload a config.json", open=False):
        hub = gr.Textbox(label="Hub id", placeholder="openai-community/gpt2-large", max_length=200)
        token = gr.Textbox(label="Token, for gated models; it is not kept", type="password", max_length=200)
        fetch = gr.Button(value="Fetch", size="sm")
        upload = gr.File(label="Upload a config.json", file_types=[".json"], type="filepath")

    def from_id(repo: str, secret: str) -> list[Any]:
        try:
            return [CONFIG, fetch_config((repo or "").strip(), token=(secret or "").strip() or None)]
        except CalculatorError as error:
            raise gr.Error(message=str(error), print_exception=False) from None

    def from_file(path: str) -> list[Any]:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise gr.Error(message=f"a config.json has at most {LARGEST_FILE:,} bytes", print_exception=False)
        return [CONFIG, Path(path).read_text(encoding="utf-8", errors="replace")]

    filled = [controls["model"], controls["config"]]
    return [
        fetch.click(fn=from_id, inputs=[hub, token], outputs=filled, api_visibility="private"),
        upload.upload(fn=from_file, inputs=[upload], outputs=filled, api_visibility="private"),
    ]


def _comparison(controls: dict[str, Component]) -> None:
    kept: gr.State = gr.State(value=[], time_to_live=3600)
    with gr.Row():
        keep = gr.Button(value="Keep this setup to compare", size="sm", elem_id="calc-keep")
        clear = gr.Button(value="Forget them", size="sm")
    table = gr.HTML(value=page.compare_html([]), elem_id="calc-compare")

    def add(values: dict[Component, Any]) -> list[Any]:
        forms = [*values[kept], _form(controls, values)][-3:]
        try:
            return [forms, page.compare_html(forms)]
        except CalculatorError as error:
            raise gr.Error(message=str(error), print_exception=False) from None

    keep.click(fn=add, inputs={kept, *controls.values()}, outputs=[kept, table], api_visibility="private")
    clear.click(fn=lambda: ([], page.compare_html([])), outputs=[kept, table], api_visibility="private")


def estimate_memory(model: str = "gpt2-large", gpu: str = "RTX 3060", techniques: dict | None = None) -> dict:
    """Memory of training a model: bytes on the GPU and in RAM, phase by phase, and whether a GPU has them.

    Args:
        model: name of a preset, or the text of a Hugging Face config.json
        gpu: name of a GPU, or a number of GiB
        techniques: fields of TrainingSetup, e.g. {"optimizer": "adam8bit", "batch_size": 4}
    Returns:
        estimate: every number of the estimate in bytes, the verdict, the largest sizes that fit, and advice
    """
    techniques = techniques or {}
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
    with gr.Blocks(title="Memory of training", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as app:
        gr.HTML(value="<h1>Memory of training</h1>")
        build_tab()
    theme = gr.themes.Monochrome(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    app.launch(theme=theme, footer_links=["api"], share=False, ssr_mode=False, max_file_size=LARGEST_FILE)


if __name__ == "__main__":
    main()
