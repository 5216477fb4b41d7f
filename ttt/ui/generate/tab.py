"""The Generate tab: layout and events. `python -m ttt.ui.generate.tab` runs it alone, with a fake model."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from ttt.errors import TTTError
from ttt.fields import describe
from ttt.sampling.params import SamplingParams
from ttt.ui import html
from ttt.ui.app import Tab, run_standalone
from ttt.ui.generate import form as forms
from ttt.ui.generate import view
from ttt.ui.generate.form import FIELDS, RANDOM_SEEDS, Form
from ttt.ui.generate.queue import GRACE_SECONDS, Job
from ttt.ui.generate.service import GenerationService

EXAMPLES = {
    "demo": (
        "a red circle above a blue square",
        "a small green star on a white background",
        "a yellow triangle to the left of a purple circle",
        "a big orange heart",
    ),
    "published": (
        "aerial view of the beach during daytime",
        "a beautiful sunset at a beach with a shell on the shore",
        "flower dress, size M",
        "a photo of san francisco golden gate bridge",
    ),
}
FORM_KEY, WORK_KEY, STORAGE_SECRET = "ttt-form", "ttt-work", "ttt-page-memory"
"""Fixed, so that a page can read its memory after the server has restarted; it holds nothing secret."""
MAX_MEMORY = 200_000
SETTLED_SECONDS = 3.0
"""How long the model's state is still refreshed after it has changed."""

_KEEP = "(typed, ...values) => [window.ttt?.keepForm(typed, %s, values) ?? typed]"
Changes = dict[Any, Any]


class GenerateTab:
    """Components of the tab and what happens when they are used."""

    def __init__(self, page: gr.Blocks, service: GenerationService, default_model: str = "demo") -> None:
        self.service = service
        self.default = Form(model=default_model)
        self._lay_out()
        self._wire(page)

    def _lay_out(self) -> None:
        # The page's memory travels as text, because Gradio alters dicts that it streams.
        self.typed = gr.BrowserState(None, storage_key=FORM_KEY, secret=STORAGE_SECRET)
        self.work = gr.BrowserState(None, storage_key=WORK_KEY, secret=STORAGE_SECRET)
        self.running = gr.State("", time_to_live=3600)
        self.clock = gr.Timer(value=1.0, active=False)
        with gr.Row(elem_id="studio"):
            with gr.Column(elem_id="ask"):
                self._lay_out_prompt()
            with gr.Column(elem_id="stage"):
                self.status = gr.HTML(value="", elem_id="status", visible=False)
                self.hint = gr.HTML(value="", elem_id="hint", visible=False)
                self.announce = gr.HTML(value="", elem_id="announce", elem_classes="sr-only")
                self.preview = gr.HTML(value=view.placeholder(), elem_id="sheet")
                self.result = gr.HTML(value="", elem_id="result", visible=False)
            with gr.Column(elem_id="settings"):
                self._lay_out_settings()
        self.form = [getattr(self, name) for name in FIELDS]

    def _lay_out_prompt(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder="Try: a red circle above a blue square",
            lines=2,
            max_lines=6,
            elem_id="prompt",
            autofocus=True,
        )
        with gr.Row(elem_id="chips"):
            labels = EXAMPLES.get(self.default.model, EXAMPLES["demo"])
            self.chips = [gr.Button(value=text, size="sm", variant="secondary") for text in labels]
        with gr.Row(elem_id="go"):
            self.generate = gr.Button(value="Generate", variant="primary", size="lg", elem_id="generate")
            self.stop = gr.Button(value="Stop", variant="secondary", size="lg", elem_id="stop", interactive=False)

    def _lay_out_settings(self) -> None:
        offered = [(source.label, source.key) for source in self.service.models.sources]
        self.model = gr.Dropdown(choices=offered, value=self.default.model, label="Model", elem_id="model")
        self.model_line = gr.HTML(value="", elem_id="model-state")
        self.retry = gr.Button(value="Try again", size="sm", visible=False, elem_id="retry")
        with gr.Accordion(label="Settings", open=True, elem_id="more"):
            self.candidates = gr.Slider(
                minimum=forms.MIN_CANDIDATES,
                maximum=forms.MAX_CANDIDATES,
                step=4,
                value=self.default.candidates,
                label="Candidates",
                info="How many to generate. CLIP keeps the best.",
                elem_id="candidates",
            )
            with gr.Row():
                self.keep = _number("keep", self.default.keep, "Keep", "How many to show.")
                self.temperature = _number(
                    "temperature", self.default.temperature, "Temperature", "Lower: safer. Higher: more varied."
                )
            with gr.Row():
                self.top_k = _number(
                    "top_k", self.default.top_k, "Top-k", "Sample from the k most likely codes. 0: off."
                )
                self.top_p = _number("top_p", self.default.top_p, "Top-p", "Sample within this probability. 1: off.")
            with gr.Row():
                self.seed = gr.Textbox(
                    value=self.default.seed, label="Seed", info="Same seed, same images.", max_lines=1, min_width=120,
                    max_length=forms.MAX_SEED_TEXT, elem_id="seed",
                )  # fmt: skip
                self.lock = gr.Checkbox(
                    value=False, label="Keep this seed", info="Otherwise every request gets a new seed.", elem_id="lock"
                )
            self.restore = gr.UploadButton(
                label="Load settings from a saved PNG",
                file_types=[".png"],
                size="sm",
                variant="secondary",
                elem_id="restore",
            )

    def _wire(self, page: gr.Blocks) -> None:
        hidden: dict[str, Any] = {"api_visibility": "undocumented", "show_progress": "hidden"}
        many: dict[str, Any] = {**hidden, "concurrency_limit": None}
        shown = [
            self.status,
            self.hint,
            self.announce,
            self.preview,
            self.result,
            self.generate,
            self.stop,
            self.running,
        ]
        outputs = [*shown, self.typed, self.work, *self.form, self.clock, *self.chips, self.model_line, self.retry]
        # preprocess=False: our own messages, which state the range, reject bad values instead of Gradio's.
        gr.on(
            triggers=[self.generate.click, self.prompt.submit],
            fn=self.run,
            inputs=[self.work, *self.form],
            outputs=outputs,
            preprocess=False,
            trigger_mode="once",
            **many,
        )
        self.stop.click(fn=self.halt, inputs=[self.running], outputs=None, queue=False, **hidden)
        loaded = page.load(
            fn=self.restore_page, inputs=[self.typed, self.work], outputs=outputs, preprocess=False, **many
        )
        names = json.dumps(self.service.models.keys)
        loaded.then(fn=None, js=f"() => {{ window.ttt?.recalled({names}); }}", **hidden)
        loaded.then(fn=self.rejoin, inputs=[self.work], outputs=outputs, preprocess=False, **many)
        self.restore.upload(fn=self.load_settings, inputs=[self.restore], outputs=outputs, **many)
        keep = _KEEP % json.dumps(FIELDS)
        for edited in (self.prompt.change, *(component.input for component in self.form[1:])):
            edited(fn=None, inputs=[self.typed, *self.form], outputs=[self.typed], js=keep, **hidden)
        for chip in self.chips:
            chip.click(fn=None, inputs=[chip], outputs=[self.prompt], js="(text) => [text]", **hidden)
        about_model = [self.model_line, self.retry, self.clock]
        self.clock.tick(fn=self.refresh_model, inputs=[self.model], outputs=about_model, preprocess=False, **many)
        self.model.input(
            fn=self.choose_model, inputs=[self.model], outputs=[*about_model, *self.chips], preprocess=False, **many
        )
        self.retry.click(fn=self.choose_model, inputs=[self.model], outputs=[*about_model, *self.chips], **many)

    # Event handlers

    def run(self, request: gr.Request, work: Any, *values: Any) -> Iterator[Changes]:
        """Generate: submit the form, then show every update until the end."""
        form = Form(**dict(zip(FIELDS, values, strict=True)))
        try:
            if form.lock is not True:
                form = replace(form, seed=str(secrets.randbelow(RANDOM_SEEDS)))
            user = request.session_hash or "page"
            job = self.service.submit(user, form.prompt, form.params(), form.model, grace=GRACE_SECONDS)
        except TTTError as error:
            yield {self.status: gr.HTML(value=html.problem(str(error)), visible=True)}
            return
        unfinished = {"job": job.id, "result": _parse_memory(work).get("result")}
        memory = {self.typed: json.dumps(form.to_dict()), self.work: json.dumps(unfinished)}
        note = forms.language_note(form.prompt)
        hint = gr.HTML(value=html.note(note), visible=bool(note))
        yield {self.seed: form.seed, self.hint: hint, **memory, **self._busy(job)}
        yield from self._follow(job)

    def halt(self, job_id: str) -> None:
        """Stop this page's own request."""
        job = self.service.queue.find(job_id)
        if job is not None:
            job.stop()

    def restore_page(self, typed: Any, work: Any, request: gr.Request) -> Changes:
        """The page was opened: fill the form from the link, or else from the browser's memory; show the last result."""
        keys, remembered = self.service.models.keys, _parse_memory(work)
        linked, wrong = forms.from_query(dict(request.query_params), keys)
        form = linked or forms.from_saved(_parse_memory(typed), keys) or self.default
        job = self.service.queue.find(remembered.get("job"))
        last = (job.update.result if job is not None else None) or remembered.get("result")
        changes: Changes = {
            **self._fill(form),
            **self._show_model(form.model),
            self.typed: json.dumps(form.to_dict()),
        }
        stored = self.service.store.load(last)
        if stored is not None:
            changes |= {
                self.result: gr.HTML(value=view.result(stored), visible=True),
                self.preview: gr.HTML(visible=False),
            }
        if wrong:
            changes[self.status] = gr.HTML(value=html.problem(wrong), visible=True)
        return changes

    def rejoin(self, work: Any) -> Iterator[Changes]:
        """After a reload: follow the request that is still running."""
        job = self.service.queue.find(_parse_memory(work).get("job"))
        if job is None or job.update.ended:
            yield {self.announce: gr.skip()}
            return
        yield self._busy(job)
        yield from self._follow(job)

    def load_settings(self, path: str | None) -> Changes:
        """Fill the form with the settings in a PNG that was saved here."""
        try:
            form = forms.from_png(path, self.service.models.keys, self.default.model)
        except TTTError as error:
            return {self.status: gr.HTML(value=html.problem(str(error)), visible=True)}
        done = html.note("Settings loaded. Press Generate to make the same images again.")
        return {
            **self._fill(form),
            **self._show_model(form.model),
            self.typed: json.dumps(form.to_dict()),
            self.status: gr.HTML(value=done, visible=True),
        }

    def refresh_model(self, key: str) -> Changes:
        """The state of the chosen model, while it may change."""
        changes = self._show_model(key, load=False)
        return {part: changes[part] for part in (self.model_line, self.retry, self.clock) if part in changes}

    def choose_model(self, key: str) -> Changes:
        return self._show_model(key)

    # Changes to the page

    def _fill(self, form: Form) -> Changes:
        values = form.to_dict()
        return {component: values[name] for name, component in zip(FIELDS, self.form, strict=True)}

    def _show_model(self, key: str, *, load: bool = True) -> Changes:
        models = self.service.models
        if key not in models.keys:
            key = self.default.model
        if load:
            models.request(key)
        state, now = models.state(key), time.monotonic()
        labels = EXAMPLES.get(key, EXAMPLES["demo"])
        return {
            self.model_line: view.model_line(models.source(key), state, now),
            self.retry: gr.Button(visible=state.status == "failed"),
            # Keep the clock on for a moment: a late response about another model must not stop it for this one.
            self.clock: gr.Timer(active=state.status in ("idle", "loading") or now - state.since < SETTLED_SECONDS),
            **{chip: gr.Button(value=text) for chip, text in zip(self.chips, labels, strict=True)},
        }

    def _buttons(self, *, running: bool) -> Changes:
        return {self.generate: gr.Button(interactive=not running), self.stop: gr.Button(interactive=running)}

    def _busy(self, job: Job) -> Changes:
        return {
            self.running: job.id,
            **self._buttons(running=True),
            self.result: gr.HTML(visible=False),
            self.preview: gr.HTML(value=view.placeholder(), visible=True),
        }

    def _follow(self, job: Job) -> Iterator[Changes]:
        """Show updates as they come; a heartbeat without news changes nothing."""
        shown: dict[Any, str] = {}
        preview_shown: bytes | None = None
        for update in job.watch():
            now = time.monotonic()
            texts = {self.status: view.status(update, now), self.announce: view.announcement(update)}
            changes: Changes = {part: text for part, text in texts.items() if shown.get(part) != text}
            shown |= changes
            if self.status in changes:
                changes[self.status] = gr.HTML(value=texts[self.status], visible=True)
            if update.preview is not preview_shown:
                preview_shown = update.preview
                changes[self.preview] = view.preview(update)
            if update.ended:
                changes |= self._end(job)
            elif changes:
                # Repeated, since on a busy page the late response of another event can undo it.
                changes |= self._buttons(running=True)
            yield changes or {self.announce: gr.skip()}

    def _end(self, job: Job) -> Changes:
        changes: Changes = {
            self.running: "",
            **self._buttons(running=False),
        }
        stored = self.service.store.load(job.update.result)
        if stored is not None:
            changes |= {
                self.result: gr.HTML(value=view.result(stored), visible=True),
                self.preview: gr.HTML(value=view.placeholder(), visible=False),
                self.status: gr.HTML(visible=False),
                self.work: json.dumps({"job": "", "result": stored.id}),
            }
        return changes


def _parse_memory(memory: Any) -> dict[str, Any]:
    """The browser's memory; empty if it is not in the form that we write."""
    if not isinstance(memory, str) or len(memory) > MAX_MEMORY:
        return {}
    try:
        values = json.loads(memory)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _number(name: str, value: float, label: str, info: str) -> gr.Number:
    """A number field. It has no limits: our own messages state the range."""
    whole = describe(SamplingParams, name).kind is int
    return gr.Number(
        value=value,
        label=label,
        info=info,
        precision=0 if whole else None,
        step=1 if whole else 0.05,
        elem_id=name,
        min_width=120,
    )


def main() -> None:
    from ttt.ui.generate.fake import FakeGenerator
    from ttt.ui.generate.models import ModelRegistry, sources
    from ttt.ui.generate.results import ResultStore
    from ttt.ui.settings import temporary_folder

    models = ModelRegistry(sources(), lambda target: FakeGenerator(delay=0.2))
    service = GenerationService(models, ResultStore(temporary_folder("results")))

    def build(page: gr.Blocks) -> None:
        GenerateTab(page, service)

    run_standalone(Tab("Generate", build), service.store.root)


if __name__ == "__main__":
    main()
