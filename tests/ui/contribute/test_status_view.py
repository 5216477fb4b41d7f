"""The state of the peer as HTML: numbers, states, known issues, no secrets, no markup from outside."""

from __future__ import annotations

import re
import time
from html import escape
from typing import Any

import pytest

from ttt.swarm.process.control_files import Contribution, DesiredState
from ttt.swarm.process.launcher import PeerView
from ttt.swarm.process.log_hints import KNOWN_ISSUES, find_issue, recent_issues
from ttt.swarm.process.status import PeerStatus
from ttt.ui.contribute import status_view
from ttt.ui.contribute.fake import ADDRESS
from ttt.ui.contribute.redact import mask, redact


def running(**fields: Any) -> PeerView:
    status = PeerStatus(state="computing", pid=5, time=time.time(), global_batch=100, **fields)
    return PeerView(
        phase="running", status=status, peer_pid=5, contribution=Contribution(samples=12_345, steps=6, seconds=7500)
    )


def test_figures_of_a_running_peer() -> None:
    view = running(
        samples_per_second=3.2, loss=6.5432, step=40, peers=7, group_size=7, results_received=0.5, swarm_samples=40
    )
    html = status_view.status_html(view, time.time(), gpu="5.0 GiB of 15.0 GiB", share=0.25)
    rows = dict(re.findall(r'data-field="(\w+)">([^<]*)<', html))
    assert rows == {
        "samples": "12,345", "steps": "6", "time": "2 h 5 min", "pace": "3.20", "loss": "6.543", "share": "25%",
        "step": "40", "peers": "7", "averaged": "7 peers, 50%", "sent": "0 B", "received": "0 B",
        "gpu": "5.0 GiB of 15.0 GiB",
    }  # fmt: skip
    assert 'aria-valuenow="40"' in html and 'data-state="ready"' in html
    assert ">40 of 100 samples towards step 41<" in html
    assert "at its own pace" in html and "Nothing new" in status_view.status_html(running(message="Nothing new"), 0.0)


@pytest.mark.parametrize(
    ("view", "words", "light"),
    [
        (PeerView(), "Off", "off"),
        (PeerView(phase="starting"), "Starting", "loading"),
        (
            PeerView(phase="paused", desired_state=DesiredState(run="r", initial_peers=["a"], pause_until=0.0)),
            "Paused",
            "loading",
        ),
        (PeerView(phase="waiting", next_attempt=9e9, reason="it broke"), "Trying again in", "failed"),
        (PeerView(phase="finished", reason="the run is complete"), "Finished", "off"),
        (PeerView(phase="stopping", peer_pid=5), "Stopping", "loading"),
        (running(), "Computing gradients", "ready"),
    ],
)
def test_states_in_words(view: PeerView, words: str, light: str) -> None:
    now = view.status.time if view.status else time.time()
    html = status_view.status_html(view, now)
    assert f"<strong>{words}" in html and f'data-state="{light}"' in html


def test_the_peer_reports_its_own_share_of_the_gpu() -> None:
    html = status_view.status_html(
        running(gpu_bytes=3 << 30, gpu_total=15 << 30), time.time(), gpu="9.0 GiB of 15.0 GiB"
    )
    assert 'data-field="gpu">3.0 GiB of 15.0 GiB<' in html


def test_the_limits_in_one_line() -> None:
    order = DesiredState(run="r", initial_peers=["a"], limit=2.5, client=True)
    view = running(micro_batch=4)
    assert status_view.limits_line(view) == ""
    line = status_view.limits_line(PeerView(phase="running", status=view.status, desired_state=order, peer_pid=5))
    assert line == "4 samples at once · at most 2.5 samples/s · no time limit · makes outgoing connections only"
    assert ">4 samples at once · at most 2.5 samples/s" in status_view.limits_html(line)
    assert status_view.limits_html("") == ""
    assert status_view.limits_line(PeerView(phase="starting", desired_state=order)).startswith(
        "as many samples at once as fit in memory"
    )


def test_a_peer_that_hangs_is_seen() -> None:
    html = status_view.status_html(running(), time.time() + 100)
    assert status_view.UNRESPONSIVE in html and 'data-state="failed"' in html


def test_what_comes_from_outside_is_escaped_and_addresses_are_for_the_owner() -> None:
    view = running(message=f"<script>alert(1)</script> {ADDRESS} 10.0.0.1:80")
    public, own = status_view.status_html(view, time.time()), status_view.status_html(view, time.time(), owner=True)
    assert "<script" not in public and "<script" not in own
    assert "203.0.113.5" not in public and "10.0.0.1" not in public
    assert "203.0.113.5" in own


def test_the_log_is_explained_to_the_owner() -> None:
    log = ("12:00  connecting: joining", "Error: failed to connect to bootstrap peers (/ip4/1.2.3.4/tcp/1)")
    html = status_view.trouble_html(PeerView(phase="waiting", reason="it ended", log=log))
    assert "could not reach any initial peer" in html and "ports 80, 443 and 8080" in html
    assert status_view.trouble_html(PeerView(log=("12:00  computing: training on cpu",))) == ""


def test_our_own_problems_are_shown_with_their_hints() -> None:
    problem = "step 9, averaging state: only 50% of the data arrived from a group of 3. If it is frequent, lower <it>"
    html = status_view.trouble_html(running(problems=["an old one", problem, problem]))
    assert html.count(escape(problem)) == 1 and "an old one" in html
    waiting = PeerView(phase="waiting", reason="the peer was killed by the system (SIGKILL)", hint="Free some memory.")
    assert "(SIGKILL) Free some memory." in status_view.trouble_html(waiting)
    assert status_view.trouble_html(PeerView(phase="off", reason="stopped by the owner")) == ""


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("P2PDaemonError: Daemon failed: failed to connect to bootstrap peers", "could not reach any initial peer"),
        ("hivemind.p2p.P2PDaemonError: Daemon failed to start in 15.0 seconds", "did not start in time"),
        ("hivemind.averaging.matchmaking.MatchmakingException: no group", "no other peers to average with"),
        ("WARN averaging.partition: received 50.0% of the parts", "left in the middle"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out of memory"),
        ("RuntimeError: unable to write to file </torch_123>: No space left on device", "too little shared memory"),
        ("OSError: [Errno 24] Too many open files", "not allowed to open enough files"),
        ("ValueError: local time must be within 3 seconds of others", "clock"),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error. gated repo", "refused a file"),
        ("RuntimeError: cannot schedule new futures after shutdown", "follows from an earlier error"),
    ],
)  # fmt: skip
def test_known_issues_are_explained(line: str, cause: str) -> None:
    (issue,) = recent_issues([line])
    assert cause in issue[1].cause
    assert issue[1].remedy.endswith(".")


def test_progress_is_not_an_issue() -> None:
    for line in ("12:00:01  computing: training on cuda since step 12", "relay found", "step 40 done"):
        assert recent_issues([line]) == []


def test_every_issue_has_a_remedy() -> None:
    for one in KNOWN_ISSUES:
        re.compile(one.pattern)
        assert one.cause and one.remedy
    assert find_issue("nothing of note") is None


def test_secrets_are_left_out() -> None:
    environment = {"HF_TOKEN": "hf_longsecrettoken", "PATH": "/usr/bin", "MY_PASSWORD": "swordfish", "X_TOKEN": "abc"}
    text = redact(
        "hf_longsecrettoken swordfish /usr/bin abc https://me:pw123@host/x https://h/x?token=zzz&y=1 Bearer q.w.e "
        "hf_AnotherTokenNotOurs",
        environment,
    )
    assert text == (
        "[secret] [secret] /usr/bin abc https://[secret]@host/x https://h/x?token=[secret]&y=1 Bearer [secret] [secret]"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to /dns4/a.example/tcp/1/p2p/Qm and 10.1.2.3:80!", "to [address] and [address]!"),
        ("bad [fe80:0:0:1::2] at 12:30:45", "bad [address] at 12:30:45"),
        ("/srv/me/run.toml is not there, nor ~/runs/a", "[path] is not there, nor [path]"),
        ("https://host.example/run.toml?x cannot be read", "[link] cannot be read"),
        (r"C:\Users\me\run.toml: step 3, 4 of 5, and/or", r"[path] step 3, 4 of 5, and/or"),
        ("training on cuda:0 in micro-batches of 8", "training on cuda:0 in micro-batches of 8"),
    ],
)
def test_visitors_do_not_see_addresses_and_paths(text: str, shown: str) -> None:
    assert mask(text) == shown
    failed = PeerView(phase="waiting", next_attempt=9e9, reason=text)
    assert escape(shown[1:]) in status_view.status_html(failed, time.time())
    assert escape(text[1:]) in status_view.status_html(failed, time.time(), owner=True)
