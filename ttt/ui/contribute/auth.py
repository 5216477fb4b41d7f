"""Who may start and stop the peer: its owner alone, whatever way the request came. Knows no gradio and no peers.

On a Space that is the signed-in user who owns it, who made it, or who is an admin of the organisation that owns it. On
one's own machine it is the machine itself (loopback), unless a password is set: then the password, from anywhere.
Every handler asks here; nothing rests on buttons being hidden.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

PASSWORD_VARIABLE = "TTT_OWNER_PASSWORD"
MIN_PASSWORD = 8
WRONG_A_MINUTE, WRONG_BY_ALL = 10, 100
"""Different wrong passwords within a minute, of one address and of all, before more are refused unread."""
FORWARDED = ("forwarded", "via", "true-client-ip", "cf-connecting-ip", "cf-ray", "ngrok-auth-user-email")
"""Headers by which proxies and tunnels give themselves away, beside all that begin with the prefixes below."""
FORWARDED_PREFIXES = ("x-forwarded", "x-real-", "x-client-", "x-original-", "x-envoy-", "x-proxy-", "x-amzn-")


@dataclass(frozen=True)
class Caller:
    """What a request tells of the one who sent it."""

    address: str = ""
    """Of the other end of the connection."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name."""
    user: Mapping[str, Any] | None = None
    """OpenID claims of the signed-in user, from the session that the server has signed."""
    http: str = "1.1"
    """Version of the protocol in which it was asked."""


@dataclass(frozen=True)
class Verdict:
    allowed: bool
    why: str
    """For the caller: as whom they may, or what they would need."""

    def __bool__(self) -> bool:
        return self.allowed


class Owner:
    """Asked before anything is started, paused or stopped."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """InvalidInput where the password is too short to protect anything."""
        from ttt.errors import InvalidInput

        env = os.environ if environment is None else environment
        self.space = env.get("SPACE_ID", "")
        self.author = env.get("SPACE_AUTHOR_NAME", "") or self.space.partition("/")[0]
        self.creator = env.get("SPACE_CREATOR_USER_ID", "")
        self.hosts = tuple(host.strip().lower() for host in env.get("SPACE_HOST", "").split(",") if host.strip())
        self.sign_in = bool(
            self.space
            and env.get("SYSTEM") == "spaces"
            and env.get("OAUTH_CLIENT_ID")
            and env.get("OAUTH_CLIENT_SECRET")
        )
        password = env.get(PASSWORD_VARIABLE, "")
        if password and len(password) < MIN_PASSWORD:
            raise InvalidInput(f"{PASSWORD_VARIABLE} must have at least {MIN_PASSWORD} characters")
        self._password = sha256(password.encode()).digest() if password else None
        self._wrong: list[tuple[float, str, bytes]] = []
        self._lock = threading.Lock()

    @property
    def has_password(self) -> bool:
        return self._password is not None

    def check(self, caller: Caller | None, password: str = "") -> Verdict:
        """Whether this caller may press the buttons."""
        if caller is None:
            return Verdict(False, "Nobody can be told from this request.")
        if not self._from_own_page(caller):
            return Verdict(False, "This request was sent by the page of another site.")
        if self.has_password and password:
            return self._check_password(password, caller.address)
        if self.space:
            return self._check_user(caller.user)
        if self.has_password:
            return Verdict(False, "Only the owner may do this: type the owner's password.")
        if _is_local(caller):
            return Verdict(True, "You are at the machine itself.")
        return Verdict(
            False,
            "Only the owner may do this: open the page on the machine itself (http://127.0.0.1), or start the app "
            f"with the environment variable {PASSWORD_VARIABLE} and type that password.",
        )

    def _check_password(self, password: str, address: str) -> Verdict:
        """The same wrong password counts once: a page that asks every second sends what is being typed."""
        now, given = time.monotonic(), sha256(str(password).encode()).digest()
        with self._lock:
            self._wrong = [one for one in self._wrong if now - one[0] < 60]
            if not any(given == wrong for _, _, wrong in self._wrong):
                own = sum(address == one for _, one, _ in self._wrong)
                if own >= WRONG_A_MINUTE or len(self._wrong) >= WRONG_BY_ALL:
                    return Verdict(False, "Too many wrong passwords; wait a minute.")
                if hmac.compare_digest(given, self._password or b""):
                    return Verdict(True, "You know the owner's password.")
                self._wrong.append((now, address, given))
        return Verdict(False, "That is not the owner's password.")

    def _check_user(self, user: Mapping[str, Any] | None) -> Verdict:
        if not self.sign_in:
            return Verdict(
                False,
                "This Space has no sign-in, so nobody can be known as its owner: set hf_oauth: true in its README, or "
                f"the secret {PASSWORD_VARIABLE}.",
            )
        if user is None:
            return Verdict(False, f"Only the owner of this Space ({self.author}) may do this: sign in first.")
        name, number = user.get("preferred_username"), user.get("sub")
        if (self.author and name == self.author) or (self.creator and number == self.creator):
            return Verdict(True, f"You are signed in as {name}, who owns this Space.")
        for one in user.get("orgs") or ():
            if one.get("preferred_username") == self.author and one.get("roleInOrg") == "admin":
                return Verdict(True, f"You are signed in as {name}, an admin of {self.author}.")
        return Verdict(
            False,
            f"You are signed in as {name}, and this Space belongs to {self.author}. Duplicate it: in your own copy "
            "you are the owner.",
        )

    def _from_own_page(self, caller: Caller) -> bool:
        """False where a page of another site made the owner's browser send this; scripts send neither header."""
        if caller.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return False
        origin = caller.headers.get("origin")
        if origin is None:
            return True
        host = urlsplit(origin).netloc.lower()
        return bool(host) and host in (caller.headers.get("host", "").lower(), *self.hosts)


def caller_of(request: Any) -> Caller | None:
    """From gr.Request; the signed-in user only where Gradio's own session says so and has not run out."""
    if request is None:
        return None
    under = getattr(request, "request", None) or request
    scope = getattr(under, "scope", None)
    if not isinstance(scope, dict):
        return None
    headers: dict[str, str] = {}
    for raw, value in scope.get("headers", ()):
        headers[raw.decode("latin-1").lower()] = value.decode("latin-1")
    client = scope.get("client")
    return Caller(
        str(client[0]) if client else "", headers, _user_of(scope.get("session")), str(scope.get("http_version", ""))
    )


def _user_of(session: Any) -> Mapping[str, Any] | None:
    info = session.get("oauth_info") if isinstance(session, Mapping) else None
    if not isinstance(info, Mapping) or not isinstance(user := info.get("userinfo"), Mapping):
        return None
    ends = info.get("expires_at")
    return user if isinstance(ends, (int, float)) and ends > time.time() else None


def _is_local(caller: Caller) -> bool:
    """From this machine by no proxy, and by a name of this machine: other names may be made to lead here (DNS
    rebinding), and a proxy that forwards the world's requests comes from loopback too."""
    try:
        if not ipaddress.ip_address(caller.address).is_loopback:
            return False
    except ValueError:
        return False
    if any(name in FORWARDED or name.startswith(FORWARDED_PREFIXES) for name in caller.headers):
        return False
    if caller.http == "1.0":
        return False  # nginx unless told otherwise: by this alone it gives itself away; browsers speak 1.1 or later
    if caller.headers.get("x-gradio-user") == "mcp":
        return False  # Gradio itself calls us in the name of whoever spoke MCP to it, with the headers they chose
    host = urlsplit(f"//{caller.headers.get('host', '')}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
