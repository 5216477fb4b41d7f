"""The config.json of a Hub model, over HTTP. Knows where it is and what may go wrong; not what stands in it."""

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
"""Bytes of a config.json; real ones have a few thousand."""
HUB = "https://huggingface.co"
CHUNK = 65_536


def fetch(repo_id: str, *, token: str | None = None, timeout: float = 10.0) -> str:
    """The config.json of a Hub model; `token` for gated and private ones. HF_ENDPOINT names another Hub.

    timeout: seconds for the whole answer, however slowly it drips.
    """
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", repo_id, re.ASCII) or ".." in repo_id:
        raise CalculatorError(f"{repo_id!r} is not the id of a Hub model; they look like 'openai-community/gpt2-large'")
    if token and not re.fullmatch(r"[!-~]{1,400}", token):
        raise CalculatorError("a Hub token has no spaces and no letters outside ASCII; they look like 'hf_...'")
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
        raise CalculatorError(f"the Hub cannot be reached ({reason}); paste the config.json instead") from None


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
            raise TimeoutError("its answer takes too long")
    return text


def _refusal(repo_id: str, error: urllib.error.HTTPError, token: bool) -> str:
    gated = error.headers.get("X-Error-Code") == "GatedRepo"
    if error.code in (401, 403):
        if not token:
            kind = "is gated" if gated else "is gated, private or does not exist"
            return f"{repo_id} {kind}: give a token that may read it"
        if gated:
            return f"{repo_id} is gated, and this token's owner has no access yet: ask for it on the model's page"
        return f"{repo_id} does not exist, or this token may not read it"
    if error.code == 404:
        missing = error.headers.get("X-Error-Code") == "EntryNotFound"
        return f"{repo_id} has no config.json" if missing else f"the Hub has no model {repo_id}"
    if error.code == 429:
        return "the Hub has had too many requests from here: wait a minute, or paste the config.json instead"
    return f"the Hub answered {error.code} for the config.json of {repo_id}: paste the config.json instead"


class _KeepsToken(urllib.request.HTTPRedirectHandler):
    """Renamed models are redirected: the token goes along to the same host, and to no other."""

    def redirect_request(self, req: urllib.request.Request, *arguments: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *arguments)
        token = req.get_header("Authorization")
        if following and token and urlsplit(following.full_url)[:2] == urlsplit(req.full_url)[:2]:
            following.add_unredirected_header("Authorization", token)
        return following
