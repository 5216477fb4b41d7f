"""The one error of this package: input that is refused, with what is allowed."""

from __future__ import annotations


class CalculatorError(ValueError):
    """What was wrong, what is allowed, and what to do; fit to be shown to a user as it is."""
