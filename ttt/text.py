"""Human-readable text: byte counts, durations, plurals and the first line of an error. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable


def first_line(error: BaseException, limit: int = 200) -> str:
    """First line of an error's message that is not empty, at most `limit` characters; without one, the error's type."""
    # str() of a KeyError is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return shorten(line, limit) or type(error).__name__


def error_summary(error: BaseException, limit: int = 200) -> str:
    """`first_line` after the error's type, for errors of other libraries: "ConnectError: connection refused"."""
    line, name = first_line(error, limit), type(error).__name__
    return name if line == name else f"{name}: {line}"


def shorten(text: str, limit: int = 60) -> str:
    """The text, or its beginning and "..." where it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """ "1 image", "1,024 images"; `nouns` is for plurals that do not end in s."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def first_names(names: Iterable[str], most: int = 4) -> str:
    """Sorted names as text: "a, b, c", or with more of them "a, b, c, d and 7 more"."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def format_bytes(count: float) -> str:
    """Bytes in binary units: "512 B", "1.5 KiB", "20 MiB", "15.9 GiB"."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}" if unit != "B" and amount < 10 else f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def format_duration(seconds: float, *, units: int = 2) -> str:
    """A duration in its largest units: "45 s", "2 h 5 min", "3 d 1 h"; with `units=1` rounded to "2 h"."""
    whole = round(seconds)
    lengths = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    first = next((i for i, (length, _) in enumerate(lengths) if whole >= length), len(lengths) - 1)
    shown = lengths[first : first + units]
    smallest = shown[-1][0]
    whole = round(whole / smallest) * smallest
    parts = []
    for length, unit in shown:
        amount, whole = divmod(whole, length)
        if amount:
            parts.append(f"{amount} {unit}")
    return " ".join(parts) or "0 s"
