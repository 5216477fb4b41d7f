"""The /generate endpoint as scripts use it: gradio_client and bare HTTP against the running app."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.e2e.conftest import Server, wait_until
from ttt.results import read_settings


@pytest.fixture(scope="module")
def client(slow_server: Server) -> Client:
    return Client(slow_server.url, verbose=False)


def test_a_script_gets_images_and_a_report(client: Client) -> None:
    images, report = client.predict(
        "a red circle", candidates=12, keep=3, top_k=None, seed=7, temperature=0.5, api_name="/generate"
    )
    assert [Path(p).suffix for p in images] == [".png"] * 3
    settings = [read_settings(p) for p in images]
    assert settings[0]["prompt"] == "a red circle"
    wanted = {"candidates": 12, "keep": 3, "top_k": None, "top_p": 0.75, "temperature": 0.5, "seed": 7}
    assert report["params"] == settings[2]["params"] == wanted
    assert [p["candidate"] for p in report["images"]] == [s["candidate"] for s in settings]
    scores = [entry["score"] for entry in report["ranking"]]
    assert len(scores) == 12
    assert scores == sorted(scores, reverse=True)
    assert report["model"] == "demo"


def test_the_same_seed_gives_the_same_images_and_none_chooses_one(client: Client) -> None:
    def run(seed: int | None) -> tuple[bytes, int]:
        images, report = client.predict("seeds", candidates=4, keep=1, seed=seed, api_name="/generate")
        return Path(images[0]).read_bytes(), report["params"]["seed"]

    assert run(5) == run(5)
    assert run(None)[1] != run(None)[1]


def test_the_endpoint_is_named_typed_and_documented(client: Client, slow_server: Server) -> None:
    about = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/generate"]
    types = {p["parameter_name"]: p["python_type"]["type"] for p in about["parameters"]}
    assert types == {
        "prompt": "str",
        "candidates": "int",
        "keep": "int",
        "top_k": "None | int",
        "top_p": "None | float",
        "temperature": "float",
        "seed": "None | int",
        "model": "str",
    }
    assert [r["label"] for r in about["returns"]] == ["images", "report"]
    assert [p["parameter_has_default"] for p in about["parameters"]] == [False] + [True] * 7
    text = json.dumps(httpx2.get(slow_server.url + "gradio_api/info").json()["named_endpoints"]["/generate"])
    assert "from 4 to 128" in text
    assert "half-downloaded" in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": ""}, "1 to 2,000 characters"),
        ({"prompt": "x" * 10_000}, "10,000 characters; at most 2,000"),
        ({"candidates": 0}, "candidates must be a whole number from 4 to 128; got 0"),
        ({"candidates": 10**6}, "candidates must be a whole number from 4 to 128; got 1000000"),
        ({"candidates": "many"}, "candidates must be a whole number from 4 to 128; got 'many'"),
        ({"candidates": 4, "keep": 5}, "from 1 to the number of candidates"),
        ({"top_k": -1}, "top_k must be a whole number from 1"),
        ({"top_p": 1.5}, "top_p must be a number above 0 and up to 1"),
        ({"temperature": 0}, "temperature must be a number above 0"),
        ({"seed": -3}, "seed must be a whole number from 0"),
        ({"model": "nope"}, "this server has: demo, published, half-downloaded"),
        ({"model": "half-downloaded"}, "dalle.safetensors has 10 bytes of 100; fetch it again"),
    ],
)
def test_bad_input_is_told_with_what_is_allowed(client: Client, wrong: dict, message: str) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(**{"prompt": "a fine prompt", **wrong}, api_name="/generate")
    assert message in str(refused.value)


def test_nan_from_bare_http_is_refused_and_the_app_goes_on(slow_server: Server, client: Client) -> None:
    body = '{"data": ["nan", 8, 2, 256, 0.75, NaN, 1, "demo"]}'
    call = slow_server.url + "gradio_api/call/generate"
    answer = httpx2.post(call, content=body, headers={"Content-Type": "application/json"})
    if answer.status_code == 200:
        stream = httpx2.get(f"{call}/{answer.json()['event_id']}", timeout=30).text
        assert "event: error" in stream
        assert "temperature must be a number above 0" in stream
    else:
        assert answer.status_code == 422
    assert client.predict("after nan", candidates=4, keep=1, api_name="/generate")[1]["status"] == "finished"


def test_progress_is_streamed(client: Client) -> None:
    job = client.submit("slow enough to watch", candidates=4, keep=1, api_name="/generate")
    wait_until(lambda: any(r["status"] == "working" for _, r in job.outputs()), 40, "working")
    wait_until(lambda: len({r["fraction"] for _, r in job.outputs()}) > 3, 40, "four different fractions")
    fractions = [r["fraction"] for _, r in job.outputs()]
    assert fractions == sorted(fractions)
    job.cancel()


def test_cancelling_stops_only_ones_own_work(slow_server: Server) -> None:
    one, other = Client(slow_server.url, verbose=False), Client(slow_server.url, verbose=False)
    first = one.submit("very slow and cancelled", candidates=4, keep=1, api_name="/generate")
    wait_until(lambda: slow_server.events("very slow and cancelled") == ["start"], 40)
    second = other.submit("of the other user", candidates=4, keep=1, api_name="/generate")
    wait_until(lambda: any(r.get("ahead") == 1 for _, r in second.outputs()), 40, "its position in the queue")
    first.cancel()
    assert second.result(timeout=60)[1]["status"] == "finished"
    assert slow_server.events("very slow and cancelled") == ["start", "cancelled"]
    assert slow_server.events("of the other user") == ["start", "end"]


def test_a_script_that_goes_away_stops_its_work(slow_server: Server) -> None:
    call = slow_server.url + "gradio_api/call/generate"
    event = httpx2.post(call, json={"data": ["very slow and gone", 4, 1, 256, 0.75, 1.0, 1, "demo"]}).json()["event_id"]
    with httpx2.stream("GET", f"{call}/{event}", timeout=30) as stream:
        lines = stream.iter_lines()
        while '"working"' not in next(lines):
            pass
    wait_until(lambda: slow_server.events("very slow and gone") == ["start", "cancelled"], 40, "the work stops")


def test_users_take_turns(slow_server: Server) -> None:
    holder, busy, other = (Client(slow_server.url, verbose=False) for _ in range(3))
    first = holder.submit("very slow turn 0", candidates=4, keep=1, api_name="/generate")
    wait_until(lambda: slow_server.events("very slow turn 0") == ["start"], 40)
    more = [busy.submit(f"turn {i}", candidates=4, keep=1, api_name="/generate") for i in (1, 2)]
    wait_until(lambda: all(job.outputs() for job in more), 40)
    late = other.submit("turn late", candidates=4, keep=1, api_name="/generate")
    wait_until(lambda: late.outputs(), 40)
    first.cancel()
    for job in (*more, late):
        job.result(timeout=90)
    order = [line for line in slow_server.diary.read_text().splitlines() if line.startswith("start turn")]
    assert order.index("start turn late") < 2, order  # before the second of the user who asked twice


def test_only_results_are_served_as_files(slow_server: Server) -> None:
    for path in ("app.py", "/etc/hostname", str(slow_server.log)):
        assert httpx2.get(slow_server.url + "gradio_api/file=" + path).status_code == 403


def test_monitoring_is_off(slow_server: Server) -> None:
    answer = httpx2.get(slow_server.url + "monitoring", follow_redirects=True)
    assert answer.status_code in (403, 404) or "not enabled" in answer.text.lower()
