"""CalculatorError, the only error that this package raises for bad input."""

from __future__ import annotations


class CalculatorError(ValueError):
    """Refused input. The message says what was wrong, what is allowed and what to do; it can be shown to a user."""
