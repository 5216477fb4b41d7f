"""The app as it is started by people, with real models: a tiny random bundle, a broken one, the demo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from tests.e2e.conftest import Server, serve
from tests.e2e.test_browser import ask, open_page, result_of
from tests.support.tiny import write_tiny_bundle
from ttt.results import read_settings


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("real")
    write_tiny_bundle(folder / "tiny")
    write_tiny_bundle(folder / "halved")
    weights = folder / "halved" / "vqgan.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    options = [word for name in ("tiny", "halved", "absent") for word in ("--bundle", str(folder / name))]
    with serve(folder, ["app.py"], *options) as server:
        yield server


@pytest.fixture(scope="module")
def client(real_server: Server) -> Client:
    return Client(real_server.url, verbose=False)


def test_a_script_gets_real_pictures(client: Client) -> None:
    def run() -> tuple[list[bytes], dict[str, Any]]:
        files, report = client.predict("a red circle", candidates=8, keep=2, seed=3, model="tiny", api_name="/generate")
        assert read_settings(files[0])["model"] == "tiny"
        with Image.open(files[0]) as image:
            assert image.size == (8, 8)
        return [Path(file).read_bytes() for file in files], report

    first, again = run(), run()
    assert first[0] == again[0]
    assert first[1]["ranking"] == again[1]["ranking"]
    assert first[1]["params"] == {
        "candidates": 8, "keep": 2, "top_k": 256, "top_p": 0.75, "temperature": 1.0, "seed": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("model", "reason"), [("halved", "vqgan.safetensors"), ("absent", "absent")])
def test_a_broken_bundle_is_told_and_others_work(client: Client, model: str, reason: str) -> None:
    with pytest.raises(AppError) as refused:
        client.predict("a red circle", candidates=4, keep=1, model=model, api_name="/generate")
    assert f"“{model}” could not be loaded" in str(refused.value)
    assert reason in str(refused.value)
    assert client.predict("a star", candidates=4, keep=1, model="tiny", api_name="/generate")[1]["status"] == "finished"


def test_the_published_model_without_a_network_is_reported(client: Client) -> None:
    with pytest.raises(AppError) as refused:
        client.predict("a red circle", candidates=4, keep=1, model="published", api_name="/generate")
    assert "“published” could not be loaded" in str(refused.value)
    assert "Something went wrong" not in str(refused.value)


def test_nothing_unexpected_was_logged(real_server: Server) -> None:
    assert "Traceback" not in real_server.log.read_text()


def test_the_mcp_server_offers_generate(real_server: Server) -> None:
    schema = httpx2.get(real_server.url + "gradio_api/mcp/schema").json()
    tool = next(tool for tool in schema if "generate" in tool["name"])
    properties = tool["inputSchema"]["properties"]
    assert "from 4 to 128" in properties["candidates"]["description"]
    assert tool["inputSchema"]["required"] == ["prompt"]
    ours = {"generate", "estimate_memory", "swarm_status", "leaderboard", "start_peer", "stop_peer"}
    assert {tool["name"] for tool in schema} <= ours


@pytest.mark.browser
def test_a_visitor_gets_real_pictures(context: Any, real_server: Server) -> None:
    page = open_page(context, real_server)
    assert page.locator("#model-state [data-state=failed]").count() == 0
    ask(page, "a blue square", 16)
    assert result_of(page, "a blue square").locator("figure").count() == 4


@pytest.mark.browser
def test_a_visitor_gets_pictures_of_the_demo(context: Any, real_server: Server) -> None:
    page = open_page(context, real_server, "?model=demo&prompt=a%20red%20circle%20above%20a%20blue%20square")
    page.locator("#model-state [data-state=ready]").wait_for(timeout=60_000)
    ask(page, "a red circle above a blue square", 8)
    result = page.locator(".ttt-result", has_text="a red circle above a blue square")
    result.wait_for(timeout=60_000)
    assert result.locator("figure").count() == 4
