"""Cleans names and other text from strangers before it is stored or shown. Independent of pages and of the network."""

from __future__ import annotations

import unicodedata

MAX_NAME = 40
MAX_COMBINING_MARKS = 2
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction overrides, surrogates, line separators


def clean_text(text: object, limit: int) -> str:
    """Return one line of at most `limit` printable characters; "" for anything that is not text.

    The result is fit for storing. It may still contain `<` and `*`, so that a page has to escape it (`safe_name`).
    """
    if not isinstance(text, str):
        return ""
    text = unicodedata.normalize("NFC", text[: 8 * limit])
    spaced = "".join(" " if unicodedata.category(c) == "Zs" or c in "\t\r\n" else c for c in text)
    printable = "".join(c for c in spaced if unicodedata.category(c) not in _HIDDEN)
    characters, marks = [], 0
    for c in printable:  # dozens of combining marks on one letter would cover the lines above
        marks = marks + 1 if unicodedata.combining(c) else 0
        if marks <= MAX_COMBINING_MARKS:
            characters.append(c)
    return " ".join("".join(characters).split())[:limit].strip()


def safe_name(name: object, peer_id: str = "") -> str:
    """Return a display name for HTML and Markdown: every character that either could read as markup is an entity.

    A peer without a name is shown by the end of its id.
    """
    shown = clean_text(name, MAX_NAME) or (f"peer {clean_text(peer_id, 64)[-8:]}" if peer_id else "a peer")
    return "".join(c if c.isalnum() or c in " .," or ord(c) > 127 else f"&#{ord(c)};" for c in shown)
