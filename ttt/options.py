"""Settings declared once: a dataclass field with its help and range gives validation, command-line option and docs.

@dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: int = setting(31_250, "Optimizer steps.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)

def train(steps: Annotated[int, option(Recipe, "steps")] = default(Recipe, "steps")) -> None: ...
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, field, fields
from typing import Any

from ttt.errors import InvalidInput
from ttt.text import shorten


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] = (),
) -> Any:
    """A dataclass field of type int, float, str or bool (or one of them or None) with its help and allowed values."""
    limits = {"minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata={"help": help, **limits})


def check_settings(settings: Any) -> None:
    """Raise InvalidInput for the first field declared by `setting` whose type or value is not allowed."""
    for declared in fields(settings):
        if "help" not in declared.metadata:
            continue
        value = getattr(settings, declared.name)
        if not _is_allowed(declared, value):
            raise InvalidInput(f"{declared.name} must be {_allowed(declared)}, got {shorten(repr(value))}")


def default(settings: type, name: str) -> Any:
    """Default of a field."""
    return _field(settings, name).default


def option(settings: type, name: str, *, note: str = "") -> Any:
    """The command-line option of a field: `--name-of-field` with its help (and `note`) and range."""
    import typer

    declared = _field(settings, name)
    help = f"{declared.metadata['help']} {note}".strip()
    return typer.Option(help=help, min=declared.metadata["minimum"], max=declared.metadata["maximum"])


def _field(settings: type, name: str) -> Field[Any]:
    declared = next(f for f in fields(settings) if f.name == name)
    assert declared.default is not MISSING and "help" in declared.metadata, f"{name} is not declared by setting()"
    return declared


def _is_allowed(declared: Field[Any], value: Any) -> bool:
    kinds, limits = str(declared.type).split(" | "), declared.metadata
    if value is None:
        return "None" in kinds
    if kinds[0] == "int":
        if type(value) is not int:  # a bool is not a number of steps
            return False
    elif kinds[0] == "float":
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
    elif type(value).__name__ != kinds[0]:
        return False
    low, high, choices = limits["minimum"], limits["maximum"], limits["choices"]
    return (low is None or value >= low) and (high is None or value <= high) and (not choices or value in choices)


def _allowed(declared: Field[Any]) -> str:
    """The allowed values as text: "a whole number from 1", "8 or 32"."""
    kinds, limits = str(declared.type).split(" | "), declared.metadata
    low, high, choices = limits["minimum"], limits["maximum"], limits["choices"]
    if choices:
        text = " or ".join(filter(None, (", ".join(map(str, choices[:-1])), str(choices[-1]))))
    else:
        text = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}[kinds[0]]
        text += (f" from {low:g}" if low is not None else "") + (f" to {high:g}" if high is not None else "")
        if low is None and high is not None:
            text = text.replace(" to ", " up to ")
    return text + (", or None for off" if "None" in kinds else "")
