"""Downloads the config.json of a Hub model over HTTP. Independent of its content."""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from calculator.errors import CalculatorError

LARGEST_FILE = 1_000_000
"""Largest config.json in bytes; real ones have a few thousand."""
HUB = "https://huggingface.co"
CHUNK = 65_536


def fetch(repo_id: str, *, token: str | None = None, timeout: float = 10.0) -> str:
    """Return the config.json of a Hub model; `token` is for gated and private models. HF_ENDPOINT sets another Hub.

    timeout: seconds for the whole download, even from a server that sends single bytes. Raises CalculatorError.
    """
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", repo_id, re.ASCII) or ".." in repo_id:
        raise CalculatorError(f"{repo_id!r} is not a Hub model id; an example of one is 'openai-community/gpt2-large'")
    if token and not re.fullmatch(r"[!-~]{1,400}", token):
        raise CalculatorError(
            "a Hub token starts with hf_ and has only ASCII letters and digits; this one has other characters"
        )
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{repo_id}/resolve/main/config.json")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_KeepsToken()).open(request, timeout=timeout) as response:
            return _read(response, time.monotonic() + timeout).decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            raise CalculatorError(_refusal(repo_id, error, bool(token))) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, CalculatorError):
            raise
        reason = getattr(error, "reason", None) or error
        raise CalculatorError(f"cannot reach the Hub ({reason}); paste the config.json instead") from None


def _read(response: Any, end: float) -> bytes:
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > LARGEST_FILE:
        raise CalculatorError(f"a config.json has at most {LARGEST_FILE:,} bytes, this one has {int(length):,}")
    text = b""
    while chunk := response.read1(CHUNK):
        text += chunk
        if len(text) > LARGEST_FILE:
            raise CalculatorError(f"a config.json has at most {LARGEST_FILE:,} bytes, this one has more")
        if time.monotonic() > end:
            raise TimeoutError("the download takes too long")
    return text


def _refusal(repo_id: str, error: urllib.error.HTTPError, token: bool) -> str:
    gated = error.headers.get("X-Error-Code") == "GatedRepo"
    if error.code in (401, 403):
        if not token:
            kind = "is gated" if gated else "is gated, private or does not exist"
            return f"{repo_id} {kind}: enter a token with access to it"
        if gated:
            return f"{repo_id} is gated, and this token has no access: request it on the model's page"
        return f"{repo_id} does not exist, or this token has no access to it"
    if error.code == 404:
        missing = error.headers.get("X-Error-Code") == "EntryNotFound"
        return f"{repo_id} has no config.json" if missing else f"the Hub has no model {repo_id}: check the spelling"
    if error.code == 429:
        return "the Hub refuses more requests from this address for now: wait a minute, or paste the config.json"
    return f"the Hub answered {error.code} for {repo_id}: try again later, or paste the config.json"


class _KeepsToken(urllib.request.HTTPRedirectHandler):
    """Follows the redirect of a renamed model, and sends the token only to the same host."""

    def redirect_request(self, req: urllib.request.Request, *arguments: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *arguments)
        token = req.get_header("Authorization")
        if following and token and urlsplit(following.full_url)[:2] == urlsplit(req.full_url)[:2]:
            following.add_unredirected_header("Authorization", token)
        return following
