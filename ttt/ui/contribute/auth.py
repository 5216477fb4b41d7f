"""Who may start and stop the peer: only its owner, however the request arrives. Independent of Gradio and of peers.

In a Space, the owner is the signed-in user who owns it or created it, or an admin of the organisation that owns it. On
one's own machine, it is anyone on that machine (loopback); if a password is set, anyone who knows it, from anywhere.
Every handler calls `OwnerAuth.check`: hidden buttons are no protection.
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

from ttt.errors import InvalidInput

PASSWORD_VARIABLE = "TTT_OWNER_PASSWORD"
MIN_PASSWORD = 8
WRONG_PER_MINUTE, WRONG_PER_MINUTE_TOTAL = 10, 100
"""Different wrong passwords per minute, from one address and from all, before further ones are refused unread."""
PROXY_HEADERS = ("forwarded", "via", "true-client-ip", "cf-connecting-ip", "cf-ray", "ngrok-auth-user-email")
"""Headers by which proxies and tunnels are recognised, besides those that start with the prefixes below."""
PROXY_HEADER_PREFIXES = ("x-forwarded", "x-real-", "x-client-", "x-original-", "x-envoy-", "x-proxy-", "x-amzn-")


@dataclass(frozen=True)
class RequestContext:
    """The parts of a request that identify its sender."""

    address: str = ""
    """Of the other end of the connection."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name."""
    user: Mapping[str, Any] | None = None
    """OpenID claims of the signed-in user, from the session that the server has signed."""
    http: str = "1.1"
    """Version of the HTTP protocol."""


@dataclass(frozen=True)
class AuthDecision:
    allowed: bool
    reason: str
    """Shown to the sender: on what grounds they are allowed, or what they would need."""

    def __bool__(self) -> bool:
        return self.allowed


class OwnerAuth:
    """Decides whether a request comes from the owner."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Raises InvalidInput if the password is too short to protect anything."""
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
        """(time, address, digest) of recent wrong passwords."""
        self._lock = threading.Lock()

    @property
    def has_password(self) -> bool:
        return self._password is not None

    def check(self, request: RequestContext | None, password: str = "") -> AuthDecision:
        if request is None:
            return AuthDecision(False, "Could not identify the sender.")
        if not self._from_own_page(request):
            return AuthDecision(False, "This request was sent by another site's page.")
        if self.has_password and password:
            return self._check_password(password, request.address)
        if self.space:
            return self._check_user(request.user)
        if self.has_password:
            return AuthDecision(False, "Only the owner can start a peer here: enter the owner password.")
        if _is_local(request):
            return AuthDecision(True, "You are on this machine, so you can control its peer.")
        return AuthDecision(
            False,
            "Only the owner can start a peer here. If that is you, open the page on the machine itself "
            f"(http://127.0.0.1), or set the environment variable {PASSWORD_VARIABLE} and enter that password.",
        )

    def _check_password(self, password: str, address: str) -> AuthDecision:
        """The same wrong password counts once, because a page that refreshes every second repeats it."""
        now, given = time.monotonic(), sha256(str(password).encode()).digest()
        with self._lock:
            self._wrong = [attempt for attempt in self._wrong if now - attempt[0] < 60]
            if not any(given == wrong for _, _, wrong in self._wrong):
                from_here = sum(address == other for _, other, _ in self._wrong)
                if from_here >= WRONG_PER_MINUTE or len(self._wrong) >= WRONG_PER_MINUTE_TOTAL:
                    return AuthDecision(False, "Too many wrong passwords; wait a minute.")
                if hmac.compare_digest(given, self._password or b""):
                    return AuthDecision(True, "Signed in with the owner password.")
                self._wrong.append((now, address, given))
        return AuthDecision(False, "Wrong password.")

    def _check_user(self, user: Mapping[str, Any] | None) -> AuthDecision:
        if not self.sign_in:
            return AuthDecision(
                False,
                "Sign-in is off in this Space, so its owner cannot be recognised: set hf_oauth: true in its README, or "
                f"the secret {PASSWORD_VARIABLE}.",
            )
        if user is None:
            return AuthDecision(False, f"Only the owner of this Space ({self.author}) can start a peer: sign in first.")
        name, number = user.get("preferred_username"), user.get("sub")
        if (self.author and name == self.author) or (self.creator and number == self.creator):
            return AuthDecision(True, f"Signed in as {name}, the owner of this Space.")
        for org in user.get("orgs") or ():
            if org.get("preferred_username") == self.author and org.get("roleInOrg") == "admin":
                return AuthDecision(True, f"Signed in as {name}, an admin of {self.author}.")
        return AuthDecision(
            False,
            f"Signed in as {name}, but this Space belongs to {self.author}. Duplicate it: you own your copy.",
        )

    def _from_own_page(self, request: RequestContext) -> bool:
        """False if another site made the owner's browser send the request (CSRF). Scripts send neither header."""
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return False
        origin = request.headers.get("origin")
        if origin is None:
            return True
        host = urlsplit(origin).netloc.lower()
        return bool(host) and host in (request.headers.get("host", "").lower(), *self.hosts)


def request_context(request: Any) -> RequestContext | None:
    """From a gr.Request; with the signed-in user if Gradio's own session names one and has not expired."""
    if request is None:
        return None
    inner = getattr(request, "request", None) or request
    scope = getattr(inner, "scope", None)
    if not isinstance(scope, dict):
        return None
    headers: dict[str, str] = {}
    for raw, value in scope.get("headers", ()):
        headers[raw.decode("latin-1").lower()] = value.decode("latin-1")
    client = scope.get("client")
    return RequestContext(
        str(client[0]) if client else "", headers, _user_of(scope.get("session")), str(scope.get("http_version", ""))
    )


def _user_of(session: Any) -> Mapping[str, Any] | None:
    info = session.get("oauth_info") if isinstance(session, Mapping) else None
    if not isinstance(info, Mapping) or not isinstance(user := info.get("userinfo"), Mapping):
        return None
    expires = info.get("expires_at")
    return user if isinstance(expires, (int, float)) and expires > time.time() else None


def _is_local(request: RequestContext) -> bool:
    """True for a request from this machine, through no proxy, that names this machine in its Host header.

    A proxy on this machine connects from loopback too, on behalf of anyone. An attacker can make other host names
    resolve to this machine (DNS rebinding).
    """
    try:
        if not ipaddress.ip_address(request.address).is_loopback:
            return False
    except ValueError:
        return False
    if any(name in PROXY_HEADERS or name.startswith(PROXY_HEADER_PREFIXES) for name in request.headers):
        return False
    if request.http == "1.0":
        return False  # nginx by default, whose only trace this is; browsers use 1.1 or later
    if request.headers.get("x-gradio-user") == "mcp":
        return False  # Gradio itself calls on behalf of an MCP client, with headers of the client's choice
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
