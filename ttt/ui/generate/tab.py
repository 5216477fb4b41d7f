"""The Generate tab: layout and wiring. Holds no model: it gets a Studio. `python -m ttt.ui.generate.tab`."""

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
from ttt.ui.generate import form as forms
from ttt.ui.generate import view
from ttt.ui.generate.form import FIELDS, RANDOM_SEEDS, Form
from ttt.ui.generate.queue import GRACE_SECONDS, Job
from ttt.ui.generate.restore import read_picture
from ttt.ui.generate.service import Studio

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
"""Fixed, so that a page finds its memory again after the server was restarted; it holds nothing secret."""
MAX_MEMORY = 200_000
SETTLED_SECONDS = 3.0

_KEEP = "(typed, ...values) => [window.ttt?.keepForm(typed, %s, values) ?? typed]"
Changes = dict[Any, Any]


class GenerateTab:
    """Components of the tab and what happens when they are used."""

    def __init__(self, studio: Studio, default_model: str = "demo") -> None:
        self.studio = studio
        self.default = Form(model=default_model)
        self._lay_out()
        self._wire()

    def _lay_out(self) -> None:
        # What the page remembers travels as text: Gradio alters dicts that it streams.
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
                self.sheet = gr.HTML(value=view.placeholder(), elem_id="sheet")
                self.result = gr.HTML(value="", elem_id="result", visible=False)
            with gr.Column(elem_id="settings"):
                self._lay_out_settings()
        by_name = vars(self)
        self.form = [by_name[name] for name in FIELDS]

    def _lay_out_prompt(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt", placeholder="Describe a picture", lines=2, max_lines=6, elem_id="prompt", autofocus=True
        )
        with gr.Row(elem_id="chips"):
            labels = EXAMPLES.get(self.default.model, EXAMPLES["demo"])
            self.chips = [gr.Button(value=text, size="sm", variant="secondary") for text in labels]
        with gr.Row(elem_id="go"):
            self.generate = gr.Button(value="Generate", variant="primary", size="lg", elem_id="generate")
            self.stop = gr.Button(value="Stop", variant="secondary", size="lg", elem_id="stop", interactive=False)

    def _lay_out_settings(self) -> None:
        offered = [(source.label, source.key) for source in self.studio.shelf.sources]
        self.model = gr.Dropdown(choices=offered, value=self.default.model, label="Model", elem_id="model")
        self.model_line = gr.HTML(value="", elem_id="model-state")
        self.retry = gr.Button(value="Try to load it again", size="sm", visible=False, elem_id="retry")
        with gr.Accordion(label="Settings", open=True, elem_id="more"):
            self.candidates = gr.Slider(
                minimum=forms.MIN_CANDIDATES,
                maximum=forms.MAX_CANDIDATES,
                step=4,
                value=self.default.candidates,
                label="Candidates",
                info="Pictures to paint; the best are kept.",
                elem_id="candidates",
            )
            with gr.Row():
                self.keep = _number("keep", self.default.keep, "Keep", "How many of the best.")
                self.temperature = _number("temperature", self.default.temperature, "Temperature", "1 is neutral.")
            with gr.Row():
                self.top_k = _number("top_k", self.default.top_k, "Top-k", "0 turns it off.")
                self.top_p = _number("top_p", self.default.top_p, "Top-p", "1 turns it off.")
            with gr.Row():
                self.seed = _number("seed", self.default.seed, "Seed", "Fixes the pictures.")
                self.lock = gr.Checkbox(
                    value=False, label="Lock the seed", info="Else every run draws one.", elem_id="lock"
                )
            self.restore = gr.UploadButton(
                label="Restore settings from a picture (PNG)",
                file_types=[".png"],
                size="sm",
                variant="secondary",
                elem_id="restore",
            )

    def _wire(self) -> None:
        hidden: dict[str, Any] = {"api_visibility": "undocumented", "show_progress": "hidden"}
        many: dict[str, Any] = {**hidden, "concurrency_limit": None}
        shown = [self.status, self.hint, self.announce, self.sheet, self.result, self.generate, self.stop, self.running]
        outputs = [*shown, self.typed, self.work, *self.form, self.clock, *self.chips, self.model_line, self.retry]
        # Raw values: what is out of range is told by our own messages, which state the range.
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
        root = gr.context.Context.root_block
        assert root is not None
        loaded = root.load(fn=self.recall, inputs=[self.typed, self.work], outputs=outputs, preprocess=False, **many)
        names = json.dumps(self.studio.shelf.keys)
        loaded.then(fn=None, js=f"() => {{ window.ttt?.recalled({names}); }}", **hidden)
        loaded.then(fn=self.rejoin, inputs=[self.work], outputs=outputs, preprocess=False, **many)
        self.restore.upload(fn=self.take_picture, inputs=[self.restore], outputs=outputs, **many)
        keep = _KEEP % json.dumps(FIELDS)
        for edited in (self.prompt.change, *(component.input for component in self.form[1:])):
            edited(fn=None, inputs=[self.typed, *self.form], outputs=[self.typed], js=keep, **hidden)
        for chip in self.chips:
            chip.click(fn=None, inputs=[chip], outputs=[self.prompt], js="(text) => [text]", **hidden)
        about_model = [self.model_line, self.retry, self.clock]
        self.clock.tick(fn=self.tell_model, inputs=[self.model], outputs=about_model, preprocess=False, **many)
        self.model.input(
            fn=self.choose_model, inputs=[self.model], outputs=[*about_model, *self.chips], preprocess=False, **many
        )
        self.retry.click(fn=self.choose_model, inputs=[self.model], outputs=[*about_model, *self.chips], **many)

    # What happens

    def run(self, request: gr.Request, work: Any, *values: Any) -> Iterator[Changes]:
        """Generate: submit the form, then show every update until the end."""
        form = Form(**dict(zip(FIELDS, values, strict=True)))
        try:
            if form.lock is not True:
                form = replace(form, seed=secrets.randbelow(RANDOM_SEEDS))
            user = request.session_hash or "page"
            job = self.studio.submit(user, form.prompt, form.params(), form.model, grace=GRACE_SECONDS)
        except TTTError as error:
            yield {self.status: gr.HTML(value=view.problem(str(error)), visible=True)}
            return
        kept = {"job": job.id, "result": _kept(work).get("result")}
        memory = {self.typed: json.dumps(form.to_dict()), self.work: json.dumps(kept)}
        note = forms.language_note(form.prompt)
        hint = gr.HTML(value=view.note(note), visible=bool(note))
        yield {self.seed: form.seed, self.hint: hint, **memory, **self._busy(job)}
        yield from self._follow(job)

    def halt(self, job_id: str) -> None:
        """Stop this page's own request."""
        job = self.studio.desk.find(job_id)
        if job is not None:
            job.stop()

    def recall(self, typed: Any, work: Any, request: gr.Request) -> Changes:
        """A page was opened: the address fills the form, else what the browser remembers; the last result returns."""
        keys, kept = self.studio.shelf.keys, _kept(work)
        asked, wrong = forms.from_query(dict(request.query_params), keys)
        form = asked or forms.from_saved(_kept(typed), keys) or self.default
        job = self.studio.desk.find(kept.get("job"))
        last = (job.update.result if job is not None else None) or kept.get("result")
        changes: Changes = {
            **self._fill(form),
            **self._show_model(form.model),
            self.typed: json.dumps(form.to_dict()),
        }
        stored = self.studio.store.load(last)
        if stored is not None:
            changes |= {
                self.result: gr.HTML(value=view.result(stored), visible=True),
                self.sheet: gr.HTML(visible=False),
            }
        if wrong:
            changes[self.status] = gr.HTML(value=view.problem(wrong), visible=True)
        return changes

    def rejoin(self, work: Any) -> Iterator[Changes]:
        """After a reload: watch the request that still runs."""
        job = self.studio.desk.find(_kept(work).get("job"))
        if job is None or job.update.ended:
            yield {self.announce: gr.skip()}
            return
        yield self._busy(job)
        yield from self._follow(job)

    def take_picture(self, path: str | None) -> Changes:
        """Restore the settings that a PNG of ours carries."""
        try:
            form = read_picture(path, self.studio.shelf.keys, self.default.model)
        except TTTError as error:
            return {self.status: gr.HTML(value=view.problem(str(error)), visible=True)}
        done = view.note("The settings of this picture are restored and its seed is locked.")
        return {
            **self._fill(form),
            **self._show_model(form.model),
            self.typed: json.dumps(form.to_dict()),
            self.status: gr.HTML(value=done, visible=True),
        }

    def tell_model(self, key: str) -> Changes:
        """The state of the chosen model, while it can change."""
        changes = self._show_model(key, load=False)
        return {part: changes[part] for part in (self.model_line, self.retry, self.clock) if part in changes}

    def choose_model(self, key: str) -> Changes:
        return self._show_model(key)

    # What is shown

    def _fill(self, form: Form) -> Changes:
        values = form.to_dict()
        return {component: values[name] for name, component in zip(FIELDS, self.form, strict=True)}

    def _show_model(self, key: str, *, load: bool = True) -> Changes:
        shelf = self.studio.shelf
        if key not in shelf.keys:
            key = self.default.model
        if load:
            shelf.request(key)
        state, now = shelf.state(key), time.monotonic()
        labels = EXAMPLES.get(key, EXAMPLES["demo"])
        return {
            self.model_line: view.model_line(shelf.source(key), state, now),
            self.retry: gr.Button(visible=state.status == "failed"),
            # Not off at once: an answer that was under way for another model must not stop this one's clock.
            self.clock: gr.Timer(active=state.status in ("idle", "loading") or now - state.since < SETTLED_SECONDS),
            **{chip: gr.Button(value=text) for chip, text in zip(self.chips, labels, strict=True)},
        }

    def _busy(self, job: Job) -> Changes:
        return {
            self.running: job.id,
            self.generate: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.result: gr.HTML(visible=False),
            self.sheet: gr.HTML(value=view.placeholder(), visible=True),
        }

    def _follow(self, job: Job) -> Iterator[Changes]:
        """Show updates as they come; a heartbeat without news changes nothing."""
        shown: dict[Any, str] = {}
        sheet_seen: bytes | None = None
        for update in job.watch():
            now = time.monotonic()
            texts = {self.status: view.status(update, now), self.announce: view.announcement(update)}
            changes: Changes = {part: text for part, text in texts.items() if shown.get(part) != text}
            shown |= changes
            if self.status in changes:
                changes[self.status] = gr.HTML(value=texts[self.status], visible=True)
            if update.sheet is not sheet_seen:
                sheet_seen = update.sheet
                changes[self.sheet] = view.sheet(update)
            if update.ended:
                changes |= self._end(job)
            yield changes or {self.announce: gr.skip()}

    def _end(self, job: Job) -> Changes:
        changes: Changes = {
            self.running: "",
            self.generate: gr.Button(interactive=True),
            self.stop: gr.Button(interactive=False),
        }
        stored = self.studio.store.load(job.update.result)
        if stored is not None:
            changes |= {
                self.result: gr.HTML(value=view.result(stored), visible=True),
                self.sheet: gr.HTML(value=view.placeholder(), visible=False),
                self.status: gr.HTML(visible=False),
                self.work: json.dumps({"job": "", "result": stored.id}),
            }
        return changes


def _kept(memory: Any) -> dict[str, Any]:
    """What the page remembers; nothing where it is not what we wrote."""
    if not isinstance(memory, str) or len(memory) > MAX_MEMORY:
        return {}
    try:
        kept = json.loads(memory)
    except (ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _number(name: str, value: float, label: str, info: str) -> gr.Number:
    """A number field; the ranges are checked by our own messages, the browser only gets hints."""
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
    """The tab alone, with a fake model."""
    import tempfile
    from pathlib import Path

    from ttt.ui import theme
    from ttt.ui.generate.fake import FakePainter
    from ttt.ui.generate.models import ModelShelf, sources
    from ttt.ui.generate.results import ResultStore

    store = ResultStore(Path(tempfile.mkdtemp(prefix="ttt-results-")))
    studio = Studio(ModelShelf(sources(), lambda target: FakePainter(delay=0.2)), store)
    with gr.Blocks(title="Generate", analytics_enabled=False) as page:
        GenerateTab(studio)
    page.launch(theme=theme.theme(), css=theme.css(), head=theme.head(), allowed_paths=[str(store.root)])


if __name__ == "__main__":
    main()
