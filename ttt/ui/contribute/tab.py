"""The Contribute tab: layout and wiring. It gets a desk, and asks the owner's rule at every press.

`python -m ttt.ui.contribute.tab` runs it alone, with a peer that is made up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from ttt.errors import TTTError
from ttt.swarm.training.requirements import ResourceEstimate
from ttt.ui import html
from ttt.ui.app import Tab, TabRefresh, run_standalone
from ttt.ui.contribute import setup_view as words
from ttt.ui.contribute import status_view as live
from ttt.ui.contribute.auth import Owner, Verdict, caller_of
from ttt.ui.contribute.form import FIELDS, Asked, reach_of, read
from ttt.ui.contribute.redact import redact
from ttt.ui.contribute.service import Desk, with_defaults

TICK_SECONDS = 1.0
Changes = dict[Any, Any]


class ContributeTab:
    """Components of the tab and what happens when they are used."""

    def __init__(self, page: gr.Blocks, desk: Desk, owner: Owner) -> None:
        self.desk, self.owner = desk, owner
        self._lay_out()
        self._wire(page)

    def _lay_out(self) -> None:
        space = self.owner.space
        self.clock = gr.Timer(value=TICK_SECONDS, active=False)
        with gr.Row(elem_id="contribute", elem_classes="ttt-two"):
            with gr.Column(elem_id="lend"):
                gr.HTML(value=words.about(space))
                if space:
                    gr.HTML(value=words.duplicate_html(space))
                    with gr.Accordion(label="Duplicate by a script", open=False):
                        gr.Code(value=words.duplicate_script(space), language="python", interactive=False)
                self.login = gr.LoginButton(elem_id="sign-in") if self.owner.sign_in else None
                self.who = gr.HTML(value="", elem_id="owner")
                self.password = gr.Textbox(
                    label="Owner's password", info="Press Enter. Only this page keeps it.", type="password",
                    max_length=200, visible=self.owner.has_password, elem_id="owner-password",
                )  # fmt: skip
                self.given = gr.State("")  # the password once Enter was pressed: what is being typed is no guess
                with gr.Column(visible=False, elem_id="peer-controls") as self.controls:
                    self._lay_out_controls()
            with gr.Column(elem_id="peer-stage"):
                self.status = gr.HTML(value="", elem_id="peer-status")
                self.limits = gr.HTML(value="", elem_id="peer-limits", visible=False)
                self.trouble = gr.HTML(value="", elem_id="peer-trouble", visible=False)
                with gr.Accordion(
                    label="Log of the peer", open=False, visible=False, elem_id="peer-log"
                ) as self.log_box:
                    self.log = gr.Textbox(
                        value="", lines=8, max_lines=16, show_label=False, interactive=False, elem_id="peer-log-text",
                        label="Log of the peer",
                    )  # fmt: skip
                self.place = gr.HTML(value="", elem_id="place")

    def _lay_out_controls(self) -> None:
        self.run = gr.Textbox(
            label="Run",
            info="Its file, or the URL of its file; its organiser gives you both this and the address.",
            max_length=1000,
            elem_id="run-file",
        )
        self.initial_peers = gr.Textbox(
            label="Address", info="The line that the coordinator prints: /ip4/… or /dns4/…",
            lines=2, max_lines=4, max_length=5000, elem_id="run-address",
        )  # fmt: skip
        self.name = gr.Textbox(label="Your name on the leaderboard", max_length=100, elem_id="peer-name")
        with gr.Row(elem_id="peer-go"):
            self.start = gr.Button(value="Start", variant="primary", size="lg", elem_id="peer-start")
            self.pause = gr.Button(value="Pause", size="lg", interactive=False, elem_id="peer-pause")
            self.stop = gr.Button(value="Stop", size="lg", interactive=False, elem_id="peer-stop")
        self.told = gr.HTML(value="", elem_id="peer-told", visible=False)
        with gr.Accordion(label="Limits", open=False, elem_id="peer-more"):
            with gr.Row():
                self.hours = _number("Stop after hours", "0: no end", "peer-hours")
                self.stop_at = gr.Textbox(
                    label="Stop at", info="UTC, or empty", placeholder="2026-12-24 18:00", max_length=40, min_width=120,
                    elem_id="peer-stop-at",
                )  # fmt: skip
            with gr.Row():
                self.pause_hours = _number("Pause for hours", "0: until Go on", "peer-pause-hours")
                self.gpu_gib = _number("GPU memory, GiB", "0: what is free", "peer-gpu-gib")
            with gr.Row():
                self.micro_batch = _number("Micro-batch", "0: what fits", "peer-micro-batch", whole=True)
                self.limit = _number("Samples a second", "0: all it can", "peer-limit")
            with gr.Row():
                self.reachable = gr.Checkbox(
                    label="Others can reach this machine", value=False, min_width=120, elem_id="peer-reachable",
                    info="Its port is open to the Internet.",
                )  # fmt: skip
                self.port = _number("Port", "0: any", "peer-port", whole=True)
        self.form = [getattr(self, name) for name in FIELDS]

    def _wire(self, page: gr.Blocks) -> None:
        # Values are checked by our own messages, so that Gradio hands them over as they come.
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented", "preprocess": False}
        pressed = [self.told, *self._moving()]
        self.start.click(fn=self.press_start, inputs=[self.password, *self.form], outputs=pressed, **hidden)
        self.pause.click(fn=self.press_pause, inputs=[self.password, self.pause_hours], outputs=pressed, **hidden)
        self.stop.click(fn=self.press_stop, inputs=[self.password], outputs=pressed, **hidden)
        self.password.submit(fn=self.show, inputs=[self.password, *self.form], outputs=self._all(), **hidden)
        for edited in (self.run, self.initial_peers, self.gpu_gib, self.reachable):
            edited.change(fn=self.judge, inputs=[self.given, *self.form], outputs=[self.place], **hidden)
        page.load(fn=self.show, inputs=[self.given, *self.form], outputs=self._all(), **hidden)
        self.clock.tick(fn=self.tick, inputs=[self.given], outputs=self._moving(), **hidden)

    @property
    def refresh(self) -> TabRefresh:
        """Keeps the tab up to date while it is shown."""
        event = {
            "fn": self.tick, "inputs": [self.given], "outputs": self._moving(), "show_progress": "hidden",
            "api_visibility": "undocumented", "preprocess": False,
        }  # fmt: skip
        return TabRefresh(self.clock, event)

    def _moving(self) -> list[Any]:
        return [self.status, self.limits, self.trouble, self.log_box, self.log, self.start, self.pause, self.stop]

    def _all(self) -> list[Any]:
        owners = [self.given, self.place, self.who, self.controls, self.run, self.initial_peers, self.name]
        return [*owners, *self._moving()]

    # What happens. Each handler asks who calls: a button that is hidden can be pressed by a request all the same.

    def press_start(self, request: gr.Request, password: str, *values: Any) -> Changes:
        asked = read(values)
        return self._press(request, password, lambda: self.desk.start(asked))

    def press_pause(self, request: gr.Request, password: str, hours: Any) -> Changes:
        def act() -> None:
            if self.desk.view().phase == "paused":
                self.desk.resume()
            else:
                self.desk.pause(hours if isinstance(hours, (int, float)) else None)

        return self._press(request, password, act)

    def press_stop(self, request: gr.Request, password: str) -> Changes:
        return self._press(request, password, self.desk.stop)

    def _press(self, request: gr.Request, password: str, act: Callable[[], None]) -> Changes:
        verdict = self._verdict(request, password)
        told = "" if verdict else verdict.why
        if verdict:
            try:
                act()
            except TTTError as error:
                told = redact(str(error))
        message = gr.HTML(value=html.problem(told), visible=True) if told else gr.HTML(value="", visible=False)
        return {self.told: message, **self._now(verdict)}

    def show(self, request: gr.Request, password: str, *values: Any) -> Changes:
        """Everything, when the page is opened or the password typed; what is set up here is for the owner's eyes."""
        verdict = self._verdict(request, password)
        asked = with_defaults(read(values), self._set_up()) if verdict else Asked()
        return {
            self.given: password if verdict else "",
            self.place: self._judged(verdict, asked),
            self.run: asked.run,
            self.initial_peers: asked.initial_peers,
            self.name: asked.name,
            self.who: words.owner_html(verdict),
            self.controls: gr.Column(visible=verdict.allowed),
            **self._now(verdict),
        }

    def _set_up(self) -> Asked:
        """The last order's run, else that of the settings."""
        order = self.desk.view().desired_state
        if order is None:
            return self.desk.defaults
        return Asked(run=order.run, initial_peers="\n".join(order.initial_peers), name=order.name)

    def judge(self, request: gr.Request, password: str, *values: Any) -> str:
        """The place again, for another run or another cap."""
        verdict = self._verdict(request, password)
        return self._judged(verdict, read(values))

    def tick(self, request: gr.Request, password: str) -> Changes:
        return self._now(self._verdict(request, password))

    def _verdict(self, request: gr.Request, password: Any) -> Verdict:
        return self.owner.check(caller_of(request), password if isinstance(password, str) else "")

    # What is shown

    def _judged(self, verdict: Verdict, asked: Asked) -> str:
        """Strangers see the verdict for the run that is set up here, not for one they name: reading it is work, and
        a request of this machine."""
        asked = asked if verdict else self.desk.defaults
        place, demand = self.desk.place(), self.desk.demand(asked)
        try:
            way = reach_of(asked, place) if asked.initial_peers.strip() else None
        except TTTError as error:
            way, demand = None, str(error)
        pace = (
            self.desk.pace(demand)
            if isinstance(demand, ResourceEstimate) and demand.known and place.gpu is None
            else 0.0
        )
        if isinstance(demand, str) and demand and not verdict:
            demand = "its owner sees why."
        return words.place_html(words.findings(place, demand, way, pace))

    def _now(self, verdict: Verdict) -> Changes:
        view, place, owner = self.desk.view(), self.desk.place(), verdict.allowed
        trouble = live.trouble_html(view) if owner else ""
        limits = live.limits_line(view) if owner else ""
        status = live.status_html(
            view, time.time(), gpu=live.gpu_line(place), share=self.desk.share(), owner=owner
        )  # fmt: skip
        moving = view.phase in ("starting", "running", "waiting", "paused")
        return {
            self.status: status,
            self.limits: gr.HTML(value=live.limits_html(limits), visible=bool(limits)),
            self.trouble: gr.HTML(value=trouble, visible=bool(trouble)),
            self.log_box: gr.Accordion(visible=owner),
            self.log: live.log_text(view) if owner else "",
            self.start: gr.Button(interactive=owner and not view.active and place.can_host),
            self.pause: gr.Button(value="Go on" if view.phase == "paused" else "Pause", interactive=owner and moving),
            self.stop: gr.Button(interactive=owner and moving),
        }


def _number(label: str, info: str, elem_id: str, *, whole: bool = False) -> gr.Number:
    return gr.Number(
        label=label, info=info, value=0, minimum=0, precision=0 if whole else None, min_width=120, elem_id=elem_id
    )


def main() -> None:
    from ttt.ui.contribute.fake import FakeDesk

    run_standalone(Tab("Contribute", lambda page: ContributeTab(page, FakeDesk(), Owner()).refresh))


if __name__ == "__main__":
    main()
