"""Calls Gradio's endpoints as an attacker would: plain HTTP, by name, by number and through the raw queue."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2


@dataclass
class Raw:
    """A client of one app that sends the same headers and cookies with every request."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    _config: dict[str, Any] = field(default_factory=dict)

    def post(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        return httpx2.post(f"{self.url}gradio_api/{path}", json=body, headers=dict(self.headers), timeout=60)

    def call(self, name: str, *data: Any) -> str:
        """POST /call/NAME; returns the text of its events."""
        answer = self.post(f"call/{name}", {"data": list(data)})
        if answer.status_code != 200:
            return answer.text
        path = f"{self.url}gradio_api/call/{name}/{answer.json()['event_id']}"
        return httpx2.get(path, headers=dict(self.headers), timeout=60).text

    def call_v2(self, name: str, **data: Any) -> str:
        """POST /call/v2/NAME with named arguments; returns the text of its events."""
        answer = self.post(f"call/v2/{name}", data)
        if answer.status_code != 200:
            return answer.text
        path = f"{self.url}gradio_api/call/{name}/{answer.json()['event_id']}"
        return httpx2.get(path, headers=dict(self.headers), timeout=60).text

    def queue(self, fn_index: int, *data: Any, session: str = "") -> str:
        """POST /queue/join with the number of a function; returns the last message of the queue."""
        session = session or secrets.token_hex(8)
        answer = self.post("queue/join", {"data": list(data), "fn_index": fn_index, "session_hash": session})
        if answer.status_code != 200:
            return answer.text
        path = f"{self.url}gradio_api/queue/data?session_hash={session}"
        with httpx2.stream("GET", path, headers=dict(self.headers), timeout=60) as stream:
            for line in stream.iter_lines():
                if "process_completed" in line or "unexpected_error" in line:
                    return line
        return ""

    def config(self) -> dict[str, Any]:
        """The page's components and events; requested once, because the server rebuilds it for every request."""
        if not self._config:
            self._config = dict(httpx2.get(f"{self.url}config", headers=dict(self.headers), timeout=60).json())
        return self._config

    def events_on(self, elem_id: str) -> Iterator[tuple[int, int]]:
        """(number, count of inputs) of every event that a component triggers."""
        config = self.config()
        ids = {part["id"] for part in config["components"] if part["props"].get("elem_id") == elem_id}
        for event in config["dependencies"]:
            if any(target[0] in ids for target in event["targets"]):
                yield event["id"], len(event["inputs"])

    def events_that_read(self, elem_id: str) -> Iterator[tuple[int, int]]:
        """(number, count of inputs) of every event that receives the value of a component."""
        config = self.config()
        ids = {part["id"] for part in config["components"] if part["props"].get("elem_id") == elem_id}
        for event in config["dependencies"]:
            if ids & set(event["inputs"]):
                yield event["id"], len(event["inputs"])


def signed_in(user: Mapping[str, Any], secret: str, *, expires_at: float) -> dict[str, str]:
    """The session cookie that Gradio's server sets after a sign-in (`gradio.oauth`, Starlette's sessions)."""
    from base64 import b64encode
    from hashlib import sha256

    from itsdangerous import TimestampSigner

    info = {"access_token": "hf_" + "secretsecretsecret", "scope": "openid profile", "expires_at": expires_at}
    session = json.dumps({"oauth_info": {**info, "userinfo": dict(user)}}).encode()
    key = sha256(f"{secret}-v4".encode()).hexdigest()
    return {"cookie": f"session={TimestampSigner(key).sign(b64encode(session)).decode()}"}
