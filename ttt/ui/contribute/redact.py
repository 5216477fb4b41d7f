"""Removes what a page must not show: tokens and passwords, and for visitors the addresses of peers. Pure functions."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY", re.IGNORECASE)
_TOKENS = re.compile(r"\b(?:hf|api|sk|ghp|gho|github_pat)_[A-Za-z0-9_]{10,}|(?<=[Bb]earer )\S+")
_IN_URL = re.compile(r"(://)[^/\s:@]+:[^/\s@]+@|([?&](?:token|key|auth)=)[^&\s]+", re.IGNORECASE)
_WHERE = re.compile(
    r"(?P<link>\bhttps?://\S+)"
    r"|(?P<address>/(?:ip4|ip6|dns[46]?)/\S+|\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?|\[?(?:[0-9a-f]{1,4}:){3,7}[0-9a-f:]*\]?)"
    r"|(?P<path>(?<![\w.<])~?/[\w.+@-]+(?:/[\w.+@-]*)+|\b[A-Za-z]:\\\S+)",
    re.IGNORECASE,
)
MIN_SECRET = 6
"""Shorter values of secret variables are not replaced: they would blank ordinary words."""


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without tokens, passwords in addresses, and values of this process's secret variables."""
    env = os.environ if environment is None else environment
    for name, value in env.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET:
            text = text.replace(value, "[secret]")
    text = _TOKENS.sub("[secret]", text)
    return _IN_URL.sub(lambda match: f"{match[1]}[secret]@" if match[1] else f"{match[2]}[secret]", text)


def mask(text: str) -> str:
    """The text without addresses, links and paths of peers and of this machine, which are private."""
    return _WHERE.sub(lambda match: f"[{match.lastgroup}]", text)
