"""Names and other words that strangers chose, made fit to be stored and shown. Knows neither pages nor the network."""

from __future__ import annotations

import unicodedata

MAX_NAME = 40
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction overrides, surrogates, line separators


def clean_text(text: object, limit: int) -> str:
    """One line of at most `limit` characters, without anything that does not print; "" for what is no text.

    This is for storing. It still may hold `<` and `*`: a page escapes it (`safe_name`), whatever came before.
    """
    if not isinstance(text, str):
        return ""
    text = unicodedata.normalize("NFC", text[: 8 * limit])
    shown = "".join(" " if unicodedata.category(c) == "Zs" or c in "\t\r\n" else c for c in text)
    shown = "".join(c for c in shown if unicodedata.category(c) not in _HIDDEN)
    kept, marks = [], 0
    for c in shown:  # a letter may carry two marks, not a tower of them
        marks = marks + 1 if unicodedata.combining(c) else 0
        if marks <= 2:
            kept.append(c)
    return " ".join("".join(kept).split())[:limit].strip()


def safe_name(name: object, peer_id: str = "") -> str:
    """A display name for HTML and Markdown alike: every character that either could read as markup is an entity.

    A nameless peer is called by the end of its id.
    """
    shown = clean_text(name, MAX_NAME) or (f"peer {clean_text(peer_id, 64)[-8:]}" if peer_id else "a peer")
    return "".join(c if c.isalnum() or c in " .," or ord(c) > 127 else f"&#{ord(c)};" for c in shown)
