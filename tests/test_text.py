"""Byte counts, durations, plurals and the first line of an error."""

from __future__ import annotations

import pytest

from ttt.text import error_summary, first_line, first_names, format_bytes, format_duration, plural, shorten


@pytest.mark.parametrize(
    ("error", "line", "summary"),
    [
        (ValueError("one\ntwo"), "one", "ValueError: one"),
        (ValueError("\n  one \ntwo"), "one", "ValueError: one"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
        (KeyError("no column 'x'"), "no column 'x'", "KeyError: no column 'x'"),
        (KeyError(), "KeyError", "KeyError"),
        (FileNotFoundError(2, "No such file", "x"), "[Errno 2] No such file: 'x'", None),
        (ValueError("x" * 300), "x" * 197 + "...", None),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str, summary: str | None) -> None:
    assert first_line(error) == line
    assert error_summary(error) == (summary or f"{type(error).__name__}: {line}")


def test_long_text_is_shortened_to_the_limit() -> None:
    assert shorten("x" * 60) == "x" * 60
    assert shorten("x" * 61) == "x" * 57 + "..."
    assert shorten("abcdef", 4) == "a..."


def test_many_names_are_counted() -> None:
    assert first_names({"b", "a"}) == "a, b"
    assert first_names("gfedcba") == "a, b, c, d and 3 more"
    assert first_names("gfedcba", 6) == "a, b, c, d, e, f and 1 more"


def test_plurals() -> None:
    assert plural(1, "image") == "1 image"
    assert plural(0, "image") == "0 images"
    assert plural(1024, "image") == "1,024 images"
    assert plural(2, "batch", "batches") == "2 batches"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 * 2**20, "20 MiB"), (1.5 * 2**30, "1.5 GiB"),
        (2048 * 2**30, "2048.0 GiB"),
    ],
)  # fmt: skip
def test_byte_counts(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "two", "one"),
    [
        (0, "0 s", "0 s"), (0.4, "0 s", "0 s"), (45, "45 s", "45 s"), (59.6, "1 min", "1 min"),
        (125, "2 min 5 s", "2 min"), (3600, "1 h", "1 h"), (7500, "2 h 5 min", "2 h"), (7199.9, "2 h", "2 h"),
        (86_400 * 3 + 3700, "3 d 1 h", "3 d"), (86_400 + 60, "1 d", "1 d"),
    ],
)  # fmt: skip
def test_durations(seconds: float, two: str, one: str) -> None:
    assert format_duration(seconds) == two
    assert format_duration(seconds, units=1) == one
