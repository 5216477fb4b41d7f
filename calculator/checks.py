"""Checks of single values. Each raises a CalculatorError that names the value, what is allowed and what was given."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from calculator.errors import CalculatorError


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """Return `value` if it is an int in this range; a bool or a float is not an int here."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise CalculatorError(f"{name} must be a whole number from {least} to {most:,}, got {value!r}")
    return value


def number_above_zero(name: str, value: Any, most: float = math.inf) -> float:
    """Return `value` as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise CalculatorError(f"{name} must be a number above 0, got {value!r}")
    if value > most:
        raise CalculatorError(f"{name} must be at most {most:,g}, got {value!r}")
    return float(value)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise unless `value` is one of `allowed`."""
    names = tuple(allowed)
    if value not in names:
        raise CalculatorError(f"{name} must be one of {', '.join(names)}; got {value!r}")


def boolean(name: str, value: Any) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise CalculatorError(f"{name} must be True or False, got {value!r}")
