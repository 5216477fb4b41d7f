"""The Contribute tab: layout and events. Every handler checks that the request is the owner's.

`python -m ttt.ui.contribute.tab` runs it alone, with a fake peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ttt.errors import TTTError
from ttt.fields import describe
from ttt.swarm.training.requirements import ResourceEstimate
from ttt.ui import html
from ttt.ui.app import Tab, TabRefresh, run_standalone
from ttt.ui.contribute import setup_view, status_view
from ttt.ui.contribute.auth import AuthDecision, OwnerAuth, request_context
from ttt.ui.contribute.form import FIELDS, PeerForm, connectivity_of, read
from ttt.ui.contribute.redact import redact
from ttt.ui.contribute.service import PeerControl, with_defaults

TICK_SECONDS = 1.0
Changes = dict[Any, Any]


class ContributeTab:
    """Components of the tab and what happens when they are used."""

    def __init__(self, page: gr.Blocks, peer: PeerControl, auth: OwnerAuth) -> None:
        self.peer, self.auth = peer, auth
        self._lay_out()
        self._wire(page)

    def _lay_out(self) -> None:
        space = self.auth.space
        self.clock = gr.Timer(value=TICK_SECONDS, active=False)
        with gr.Row(elem_id="contribute", elem_classes="ttt-two"):
            with gr.Column(elem_id="lend"):
                gr.HTML(value=setup_view.about(space))
                if space:
                    gr.HTML(value=setup_view.duplicate_html(space))
                    with gr.Accordion(label="Duplicate with a script", open=False):
                        gr.Code(value=setup_view.duplicate_script(space), language="python", interactive=False)
                self.login = gr.LoginButton(elem_id="sign-in") if self.auth.sign_in else None
                self.who = gr.HTML(value="", elem_id="owner")
                self.password = gr.Textbox(
                    label="Owner password", info="Press Enter to sign in. It is not stored.", type="password",
                    max_length=200, visible=self.auth.has_password, elem_id="owner-password",
                )  # fmt: skip
                self.entered = gr.State(
                    ""
                )  # the password once Enter is pressed: half of it, while it is typed, is not a wrong guess
                with gr.Column(visible=False, elem_id="peer-controls") as self.controls:
                    self._lay_out_controls()
            with gr.Column(elem_id="peer-stage"):
                self.status = gr.HTML(value='<p class="ttt-model">Checking this machine…</p>', elem_id="peer-status")
                self.limits = gr.HTML(value="", elem_id="peer-limits", visible=False)
                self.trouble = gr.HTML(value="", elem_id="peer-trouble", visible=False)
                with gr.Accordion(label="Log", open=False, visible=False, elem_id="peer-log") as self.log_box:
                    self.log = gr.Textbox(
                        value="", lines=8, max_lines=16, show_label=False, interactive=False, elem_id="peer-log-text",
                        label="Log",
                    )  # fmt: skip
                self.machine = gr.HTML(value="", elem_id="machine")

    def _lay_out_controls(self) -> None:
        self.run = gr.Textbox(
            label="Run",
            info="Run file or its URL, from your invitation.",
            max_length=1000,
            elem_id="run-file",
        )
        self.initial_peers = gr.Textbox(
            label="Address", info="Of the coordinator or another peer, from your invitation: /ip4/… or /dns4/…",
            lines=2, max_lines=4, max_length=5000, elem_id="run-address",
        )  # fmt: skip
        self.name = gr.Textbox(label="Your name on the leaderboard", max_length=100, elem_id="peer-name")
        with gr.Row(elem_id="peer-go"):
            self.start = gr.Button(value="Start", variant="primary", size="lg", elem_id="peer-start")
            self.pause = gr.Button(value="Pause", size="lg", interactive=False, elem_id="peer-pause")
            self.stop = gr.Button(value="Stop", size="lg", interactive=False, elem_id="peer-stop")
        self.error = gr.HTML(value="", elem_id="peer-error", visible=False)
        with gr.Accordion(label="Limits", open=False, elem_id="peer-more"):
            with gr.Row():
                self.hours = _number("hours", "Stop after (hours)", "0: never")
                self.stop_at = gr.Textbox(
                    label="Stop at (UTC)", info="Optional.", placeholder="2026-12-24 18:00", max_length=40,
                    min_width=120, elem_id="peer-stop-at",
                )  # fmt: skip
            with gr.Row():
                self.pause_hours = _number("pause-hours", "Pause for (hours)", "0: until you resume")
                self.gpu_gib = _number("gpu_gib", "GPU memory (GiB)", "0: all free memory")
            with gr.Row():
                self.micro_batch = _number("micro_batch", "Samples at once", "0: automatic")
                self.limit = _number("limit", "Speed limit (samples/s)", "0: none")
            with gr.Row():
                self.reachable = gr.Checkbox(
                    label="Reachable from the Internet", value=False, min_width=120, elem_id="peer-reachable",
                    info="Tick only if the port is open.",
                )  # fmt: skip
                self.port = _number("port", "Port", "0: any")
        self.form = [getattr(self, name) for name in FIELDS]

    def _wire(self, page: gr.Blocks) -> None:
        # preprocess=False: our own messages, which state the range, reject bad values instead of Gradio's.
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented", "preprocess": False}
        pressed = [self.error, *self._moving()]
        self.start.click(fn=self.press_start, inputs=[self.password, *self.form], outputs=pressed, **hidden)
        self.pause.click(fn=self.press_pause, inputs=[self.password, self.pause_hours], outputs=pressed, **hidden)
        self.stop.click(fn=self.press_stop, inputs=[self.password], outputs=pressed, **hidden)
        self.password.submit(fn=self.show, inputs=[self.password, *self.form], outputs=self._all(), **hidden)
        for edited in (self.run, self.initial_peers, self.gpu_gib, self.reachable):
            edited.change(fn=self.check_machine, inputs=[self.entered, *self.form], outputs=[self.machine], **hidden)
        page.load(fn=self.show, inputs=[self.entered, *self.form], outputs=self._all(), **hidden)
        self.clock.tick(fn=self.tick, inputs=[self.entered], outputs=self._moving(), **hidden)

    @property
    def refresh(self) -> TabRefresh:
        """Keeps the tab up to date while it is shown."""
        event = {
            "fn": self.tick, "inputs": [self.entered], "outputs": self._moving(), "show_progress": "hidden",
            "api_visibility": "undocumented", "preprocess": False,
        }  # fmt: skip
        return TabRefresh(self.clock, event)

    def _moving(self) -> list[Any]:
        return [self.status, self.limits, self.trouble, self.log_box, self.log, self.start, self.pause, self.stop]

    def _all(self) -> list[Any]:
        owners = [self.entered, self.machine, self.who, self.controls, self.run, self.initial_peers, self.name]
        return [*owners, *self._moving()]

    # Event handlers. Each one checks the sender: a request can press a button that is hidden.

    def press_start(self, request: gr.Request, password: str, *values: Any) -> Changes:
        return self._press(request, password, lambda: self.peer.start(read(values)))

    def press_pause(self, request: gr.Request, password: str, hours: Any) -> Changes:
        def act() -> None:
            if self.peer.view().phase == "paused":
                self.peer.resume()
            else:
                self.peer.pause(hours if isinstance(hours, (int, float)) else None)

        return self._press(request, password, act)

    def press_stop(self, request: gr.Request, password: str) -> Changes:
        return self._press(request, password, self.peer.stop)

    def _press(self, request: gr.Request, password: str, act: Callable[[], None]) -> Changes:
        decision = self._decision(request, password)
        error = "" if decision else decision.reason
        if decision:
            try:
                act()
            except TTTError as refusal:
                error = redact(str(refusal))
        message = gr.HTML(value=html.problem(error), visible=True) if error else gr.HTML(value="", visible=False)
        return {self.error: message, **self._now(decision)}

    def show(self, request: gr.Request, password: str, *values: Any) -> Changes:
        """Everything, when the page is opened or the password entered. Only the owner sees the run that is set up."""
        decision = self._decision(request, password)
        form = self._filled(values) if decision else PeerForm()
        return {
            self.entered: password if decision else "",
            self.machine: self._machine(decision, form),
            self.run: form.run,
            self.initial_peers: form.initial_peers,
            self.name: form.name,
            self.who: setup_view.owner_html(decision),
            self.controls: gr.Column(visible=decision.allowed),
            **self._now(decision),
        }

    def _filled(self, values: Sequence[Any]) -> PeerForm:
        """The form, completed with the run that was started last, or else with that of the settings."""
        last = self.peer.view().desired_state
        defaults = self.peer.defaults
        if last is not None:
            defaults = PeerForm(run=last.run, initial_peers="\n".join(last.initial_peers), name=last.name)
        try:
            return with_defaults(read(values), defaults)
        except TTTError:
            return defaults

    def check_machine(self, request: gr.Request, password: str, *values: Any) -> str:
        """What this machine can do, after the run or a limit was changed."""
        decision = self._decision(request, password)
        try:
            form = read(values)
        except TTTError as error:
            host = self.peer.host()
            return setup_view.host_html(setup_view.findings(host, str(error), None), owner=decision.allowed)
        return self._machine(decision, form)

    def tick(self, request: gr.Request, password: str) -> Changes:
        return self._now(self._decision(request, password))

    def _decision(self, request: gr.Request, password: Any) -> AuthDecision:
        return self.auth.check(request_context(request), password if isinstance(password, str) else "")

    # Changes to the page

    def _machine(self, decision: AuthDecision, form: PeerForm) -> str:
        """Visitors see the findings for the run that is set up here, not for one that they name: reading a run file
        takes work, and sends a request from this machine."""
        form = form if decision else self.peer.defaults
        host, estimate = self.peer.host(), self.peer.estimate(form)
        try:
            connectivity = connectivity_of(form, host) if form.initial_peers.strip() else None
        except TTTError as error:
            connectivity, estimate = None, str(error)
        slow = isinstance(estimate, ResourceEstimate) and estimate.known and host.gpu is None
        pace = self.peer.expected_pace(estimate) if slow and isinstance(estimate, ResourceEstimate) else 0.0
        if isinstance(estimate, str) and estimate and not decision:
            estimate = setup_view.REASON_FOR_OWNER
        findings = setup_view.findings(host, estimate, connectivity, pace)
        return setup_view.host_html(findings, owner=decision.allowed)

    def _now(self, decision: AuthDecision) -> Changes:
        view, host, owner = self.peer.view(), self.peer.host(), decision.allowed
        trouble = status_view.trouble_html(view) if owner else ""
        limits = status_view.limits_line(view) if owner else ""
        status = status_view.status_html(
            view, time.time(), gpu=status_view.gpu_line(host), share=self.peer.share(), owner=owner
        )  # fmt: skip
        moving = view.phase in ("starting", "running", "waiting", "paused")
        return {
            self.status: status,
            self.limits: gr.HTML(value=status_view.limits_html(limits), visible=bool(limits)),
            self.trouble: gr.HTML(value=trouble, visible=bool(trouble)),
            self.log_box: gr.Accordion(visible=owner),
            self.log: status_view.log_text(view) if owner else "",
            self.start: gr.Button(interactive=owner and not view.active and host.supports_peer),
            self.pause: gr.Button(value="Resume" if view.phase == "paused" else "Pause", interactive=owner and moving),
            self.stop: gr.Button(interactive=owner and moving),
        }


def _number(name: str, label: str, info: str) -> gr.Number:
    """A number field. It has no upper limit: our own messages state the range."""
    whole = name in FIELDS and describe(PeerForm, name).kind is int
    elem_id = f"peer-{name.replace('_', '-')}"
    return gr.Number(
        label=label, info=info, value=0, minimum=0, precision=0 if whole else None, min_width=120, elem_id=elem_id
    )


def main() -> None:
    from ttt.ui.contribute.fake import FakePeerController

    run_standalone(Tab("Contribute", lambda page: ContributeTab(page, FakePeerController(), OwnerAuth()).refresh))


if __name__ == "__main__":
    main()
