"""Authorisation: every way in which a stranger could pass for the owner is refused."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import httpx2
import pytest

from tests.support.waiting import run_async
from ttt.errors import InvalidInput
from ttt.ui.contribute.auth import (
    PROXY_HEADERS,
    WRONG_PER_MINUTE,
    WRONG_PER_MINUTE_TOTAL,
    OwnerAuth,
    RequestContext,
    request_context,
)

HERE = {"host": "127.0.0.1:7860"}
SPACE = {
    "SYSTEM": "spaces", "SPACE_ID": "anna/demo", "SPACE_AUTHOR_NAME": "anna", "SPACE_CREATOR_USER_ID": "id-of-anna",
    "SPACE_HOST": "anna-demo.hf.space", "OAUTH_CLIENT_ID": "client", "OAUTH_CLIENT_SECRET": "secret",
}  # fmt: skip
ANNA = {"preferred_username": "anna", "sub": "id-of-anna", "orgs": []}
BERT = {"preferred_username": "bert", "sub": "id-of-bert", "orgs": []}


def at_home(address: str = "127.0.0.1", **headers: str) -> RequestContext:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestContext(address, {**HERE, **named})


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860"])
def test_the_machine_itself_is_allowed(address: str, host: str) -> None:
    assert OwnerAuth({}).check(at_home(address, host=host))


@pytest.mark.parametrize("address", ["192.168.1.7", "10.0.0.1", "172.17.0.1", "203.0.113.5", "", "localhost", "::2"])
def test_another_machine_is_refused(address: str) -> None:
    decision = OwnerAuth({}).check(at_home(address))
    assert not decision
    assert "TTT_OWNER_PASSWORD" in decision.reason


@pytest.mark.parametrize(
    "header", [*PROXY_HEADERS, "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "x-client-ip"]
)
def test_a_forwarded_request_is_not_local(header: str) -> None:
    assert not OwnerAuth({}).check(RequestContext("127.0.0.1", {**HERE, header: "127.0.0.1"}))


def test_an_mcp_client_is_not_local() -> None:
    decision = OwnerAuth({}).check(RequestContext("127.0.0.1", {**HERE, "x-gradio-user": "mcp"}))
    assert not decision and "Only the owner" in decision.reason
    assert OwnerAuth({}).check(RequestContext("127.0.0.1", {**HERE, "x-gradio-user": "api"}))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "192.168.1.7:7860", "127.0.0.1.evil.example", ""]
)
def test_another_host_name_that_resolves_here_is_not_local(host: str) -> None:
    assert not OwnerAuth({}).check(at_home(host=host))


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "cross-site"},
    ],
)
def test_another_sites_page_is_refused(headers: dict[str, str]) -> None:
    assert not OwnerAuth({}).check(RequestContext("127.0.0.1", {**HERE, **headers}))
    assert not OwnerAuth(SPACE).check(RequestContext("10.1.2.3", {"host": "anna-demo.hf.space", **headers}, ANNA))


def test_our_own_page_is_allowed() -> None:
    fine = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    assert OwnerAuth({}).check(RequestContext("127.0.0.1", {**HERE, **fine}))


def test_an_unknown_sender_is_refused() -> None:
    assert not OwnerAuth({}).check(None)
    assert not OwnerAuth({}).check(RequestContext())
    assert not OwnerAuth(SPACE).check(None)


# -- a Space ----------------------------------------------------------------------------------------------------------


def in_space(user: dict[str, Any] | None) -> RequestContext:
    return RequestContext("10.1.2.3", {"host": "anna-demo.hf.space", "x-forwarded-for": "198.51.100.7"}, user)


def test_the_owner_of_the_space_is_allowed() -> None:
    decision = OwnerAuth(SPACE).check(in_space(ANNA))
    assert decision
    assert "anna" in decision.reason


def test_the_creator_is_allowed_under_another_name() -> None:
    assert OwnerAuth(SPACE).check(in_space({**ANNA, "preferred_username": "anna-renamed"}))


@pytest.mark.parametrize(
    "user",
    [
        None,
        {},
        BERT,
        {"preferred_username": "Anna "},
        {"preferred_username": "", "sub": ""},
        {**BERT, "orgs": [{"preferred_username": "others", "roleInOrg": "admin"}]},
        {**BERT, "orgs": [{"preferred_username": "anna", "roleInOrg": "write"}]},
        {**BERT, "orgs": [{"preferred_username": "anna"}]},
        {**BERT, "orgs": None},
    ],
)
def test_another_user_is_refused(user: dict[str, Any] | None) -> None:
    assert not OwnerAuth(SPACE).check(in_space(user))


def test_an_admin_of_the_owning_organisation_is_allowed() -> None:
    club = {**SPACE, "SPACE_ID": "club/demo", "SPACE_AUTHOR_NAME": "club"}
    admin = {**BERT, "orgs": [{"preferred_username": "club", "roleInOrg": "admin", "sub": "id-of-club"}]}
    assert OwnerAuth(club).check(in_space(admin))
    assert not OwnerAuth(club).check(in_space({**admin, "orgs": [{**admin["orgs"][0], "roleInOrg": "contributor"}]}))


def test_loopback_counts_for_nothing_in_a_space() -> None:
    """Requests from there were forwarded, regardless of the sender."""
    assert not OwnerAuth(SPACE).check(RequestContext("127.0.0.1", {"host": "127.0.0.1:7860"}))


def test_without_sign_in_a_space_has_no_known_owner() -> None:
    bare = {name: value for name, value in SPACE.items() if not name.startswith("OAUTH")}
    decision = OwnerAuth(bare).check(in_space(ANNA))
    assert not decision
    assert "hf_oauth" in decision.reason


@pytest.mark.parametrize("missing", ["SPACE_AUTHOR_NAME", "SPACE_CREATOR_USER_ID"])
def test_an_absent_variable_opens_nothing(missing: str) -> None:
    environment = {name: value for name, value in SPACE.items() if name != missing}
    assert not OwnerAuth(environment).check(in_space({"preferred_username": "", "sub": ""}))
    assert not OwnerAuth(environment).check(in_space(BERT))
    assert OwnerAuth(environment).check(in_space(ANNA))


# -- a password -------------------------------------------------------------------------------------------------------

WORD = "correct horse battery"


def test_the_password_is_enough_from_anywhere() -> None:
    for environment in ({}, SPACE):
        owner = OwnerAuth({**environment, "TTT_OWNER_PASSWORD": WORD})
        assert owner.check(RequestContext("203.0.113.5", {"host": "any.example"}), WORD)
        assert not owner.check(RequestContext("203.0.113.5", {"host": "any.example"}), WORD + "x")
        assert not owner.check(RequestContext("203.0.113.5", {"host": "any.example"}))


def test_where_a_password_is_set_loopback_is_not_enough() -> None:
    """A proxy that adds no header would look like the machine itself."""
    owner = OwnerAuth({"TTT_OWNER_PASSWORD": WORD})
    assert not owner.check(at_home())
    assert owner.check(at_home(), WORD)


def test_without_an_owner_password_no_password_is_enough() -> None:
    assert not OwnerAuth({}).check(at_home("203.0.113.5"), "")
    assert not OwnerAuth({}).check(at_home("203.0.113.5"), "anything")


def test_guessing_is_stopped_and_repetition_is_not() -> None:
    owner = OwnerAuth({"TTT_OWNER_PASSWORD": WORD})
    stranger, other = at_home("203.0.113.5"), at_home("203.0.113.6")
    for _ in range(50):
        assert "Wrong password" in owner.check(stranger, "the same wrong one").reason
    for number in range(WRONG_PER_MINUTE - 1):
        assert "Wrong password" in owner.check(stranger, f"guess {number}").reason
    assert "Too many" in owner.check(stranger, "one more").reason
    assert "Too many" in owner.check(stranger, WORD).reason
    assert owner.check(other, WORD)
    for number in range(WRONG_PER_MINUTE_TOTAL):
        owner.check(at_home(f"198.51.100.{number}"), f"from many places {number}")
    assert "Too many" in owner.check(other, WORD).reason


def test_a_short_password_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 8"):
        OwnerAuth({"TTT_OWNER_PASSWORD": "short"})


# -- what a request reveals -------------------------------------------------------------------------------------------


@contextmanager
def app_that_tells_callers() -> Iterator[str]:
    """A real gradio app whose one endpoint says what `caller_of` saw."""

    def who(request: gr.Request) -> dict[str, Any]:
        caller = request_context(request)
        assert caller is not None
        decision = OwnerAuth({}).check(caller)
        return {"address": caller.address, "host": caller.headers.get("host"), "allowed": decision.allowed}

    with gr.Blocks(analytics_enabled=False) as page:
        gr.api(who, api_name="who")
    _, url, _ = page.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True, mcp_server=True)
    try:
        yield url
    finally:
        page.close()


def test_gradio_calls_on_behalf_of_an_mcp_client_and_is_refused() -> None:
    """The tool is called from loopback, regardless of the caller and the host it named."""
    with app_that_tells_callers() as url:
        assert '"allowed": true' in call(url)
        answer = run_async(call_tool(f"{url}gradio_api/mcp/", "who"))
        assert "'address': '127.0.0.1'" in answer and "'allowed': False" in answer


async def call_tool(url: str, name: str) -> str:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client
    from mcp.types import TextContent

    async with streamable_http_client(url) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        answer = await session.call_tool(next(tool for tool in tools if tool.endswith(name)), {})
        return "".join(part.text for part in answer.content if isinstance(part, TextContent))


def call(url: str, **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    event = httpx2.post(f"{url}gradio_api/call/who", json={"data": []}, headers=named).json()["event_id"]
    return httpx2.get(f"{url}gradio_api/call/who/{event}", timeout=30).text


def test_the_server_does_not_believe_a_forwarding_header() -> None:
    """uvicorn takes the client's address from X-Forwarded-For where the connection is from loopback."""
    with app_that_tells_callers() as url:
        assert '"allowed": true' in call(url)
        spoofed = call(url, x_forwarded_for="127.0.0.1")
        assert '"allowed": false' in spoofed
        assert '"address": "203.0.113.9"' in call(url, x_forwarded_for="203.0.113.9")
        assert '"allowed": false' in call(url, x_forwarded_for="203.0.113.9")
        assert '"allowed": false' in call(url, host="evil.example")
        assert '"allowed": false' in call(url, origin="https://evil.example")


def test_a_proxy_of_the_old_kind_is_seen() -> None:
    """nginx by default: HTTP/1.0, our own address as Host, and no word of whom it asks for."""
    with app_that_tells_callers() as url:
        connection = http.client.HTTPConnection(httpx2.URL(url).host, httpx2.URL(url).port, timeout=30)
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
        connection.request("POST", "/gradio_api/call/who", '{"data": []}', {"content-type": "application/json"})
        event = json.load(connection.getresponse())["event_id"]
        answer = httpx2.get(f"{url}gradio_api/call/who/{event}", timeout=30).text
    assert '"address": "127.0.0.1"' in answer and '"allowed": false' in answer


class Request:
    """As Gradio hands it over."""

    def __init__(self, session: Any) -> None:
        self.scope = {"client": ("10.0.0.1", 1), "headers": [(b"Host", b"x")], "session": session}


@pytest.mark.parametrize(
    "info",
    [
        None,
        "text",
        {"userinfo": ANNA},
        {"userinfo": ANNA, "expires_at": None},
        {"userinfo": ANNA, "expires_at": time.time() - 1},
        {"userinfo": "anna", "expires_at": time.time() + 60},
    ],
)
def test_an_expired_or_odd_session_has_no_user(info: Any) -> None:
    caller = request_context(Request({"oauth_info": info}))
    assert caller is not None and caller.user is None


def test_a_session_names_the_user() -> None:
    caller = request_context(Request({"oauth_info": {"userinfo": ANNA, "expires_at": time.time() + 60}}))
    assert caller is not None and caller.user == ANNA
    assert caller.headers == {"host": "x"}


@pytest.mark.parametrize("odd", [None, object(), {"client": "127.0.0.1"}])
def test_an_object_that_is_not_a_request_has_no_context(odd: Any) -> None:
    assert request_context(odd) is None
