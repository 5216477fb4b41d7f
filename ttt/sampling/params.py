"""SamplingParams: what a user may choose about painting, with its ranges and help. Knows no model and no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ttt.errors import InvalidInput

MAX_SEED = 2**63 - 1
KEEP = 4
"""Pictures to return unless told otherwise, or all where there are fewer candidates."""


@dataclass(frozen=True)
class SamplingParams:
    """Validated; an instance is always usable. Each field's metadata holds help, minimum, maximum and `optional`.

    The command line, the UI and the docs read ranges and help from `describe`; defaults stand here alone.
    """

    candidates: int = field(
        default=128,
        metadata={"help": "Pictures to paint; the best of them are kept.", "minimum": 1, "maximum": 1024},
    )
    keep: int = field(
        default=None,  # type: ignore[assignment]  # replaced at once, see KEEP
        metadata={"help": "Best pictures to return, at most the number of candidates.", "minimum": 1, "maximum": 1024},
    )
    top_k: int | None = field(
        default=256,
        metadata={
            "help": "Choose each code among the k most likely ones; off: among all.",
            "minimum": 1,
            "maximum": 1 << 20,
            "optional": True,
        },
    )
    top_p: float | None = field(
        default=0.75,
        metadata={
            "help": "Then among the fewest of these whose probability reaches p; off: no such cut.",
            "minimum": 0.0,
            "maximum": 1.0,
            "above_minimum": True,
            "optional": True,
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Below 1 the likely codes become likelier, above 1 all become more alike.",
            "minimum": 0.0,
            "maximum": 100.0,
            "above_minimum": True,
        },
    )
    seed: int = field(
        default=0,
        metadata={
            "help": "The same seed and settings give the same pictures on the same device.",
            "minimum": 0,
            "maximum": MAX_SEED,
        },
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", _whole("candidates", self.candidates))
        if vars(self)["keep"] is None:
            object.__setattr__(self, "keep", min(KEEP, self.candidates))
        for name in ("keep", "top_k", "seed"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("top_p", "temperature"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        if self.keep > self.candidates:
            raise InvalidInput(
                f"keep must be from 1 to the number of candidates ({self.candidates}), got {_short(self.keep)}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplingParams:
        """Unknown names are errors; missing ones take their defaults."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(str(name) for name in values if name not in known)
        if unknown:
            raise InvalidInput(
                f"there is no sampling parameter {', '.join(map(_short, unknown[:5]))}; known: {', '.join(known)}"
            )
        return cls(**values)


def describe(name: str) -> dict[str, Any]:
    """help, minimum, maximum, optional, above_minimum and default of a field."""
    found = {f.name: f for f in fields(SamplingParams)}[name]
    default = KEEP if name == "keep" else found.default
    return {"optional": False, "above_minimum": False, **found.metadata, "default": default}


def allowed(name: str) -> str:
    """The range of a field in words, as error messages and forms show it."""
    about = describe(name)
    low, high = about["minimum"], about["maximum"]
    kind = "a whole number" if isinstance(low, int) else "a number"
    span = f"above {low:g} and up to {high:g}" if about["above_minimum"] else f"from {low} to {high}"
    return f"{kind} {span}" + (", or None for off" if about["optional"] else "")


def _whole(name: str, value: Any) -> int | None:
    about = describe(name)
    if value is None and about["optional"]:
        return None
    # Web forms and JSON send whole numbers as 4.0; anything else that is not an int is refused.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if _is_bool(value) or not hasattr(value, "__index__"):
        raise _refused(name, value)
    try:
        value = value.__index__()
    except (TypeError, ValueError, OverflowError):  # arrays and tensors of more than one number, or of fractions
        raise _refused(name, value) from None
    if not about["minimum"] <= value <= about["maximum"]:
        raise _refused(name, value)
    return int(value)


def _real(name: str, value: Any) -> float | None:
    about = describe(name)
    if value is None and about["optional"]:
        return None
    if _is_bool(value) or isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise _refused(name, value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _refused(name, value) from None
    above = number > about["minimum"] if about["above_minimum"] else number >= about["minimum"]
    if not (math.isfinite(number) and above and number <= about["maximum"]):
        raise _refused(name, value)
    return number


def _is_bool(value: Any) -> bool:
    """Python's, numpy's or torch's; arrays and tensors tell what they hold."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"


def _refused(name: str, value: Any) -> InvalidInput:
    return InvalidInput(f"{name} must be {allowed(name)}; got {_short(value)}")


def _short(value: Any) -> str:
    """A repr that a hostile value cannot make long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
