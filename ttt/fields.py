"""Settings declared once, as pydantic models whose fields define command-line options, forms and error messages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from ttt.errors import InvalidInput
from ttt.text import shorten

_OFF = object()
"""Parsed value of an option that was given as "off"; None means that the option was not given."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


class CheckedModel(BaseModel):
    """A frozen model; a value that is not allowed raises InvalidInput, which states what is.

    Whole numbers may come as 4.0 (web forms and JSON send that) and as numpy or torch scalars. Booleans and text are
    not numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise InvalidInput(_refusal(type(self), error)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:
        described = describe(cls, str(info.field_name))
        if described.kind is int:
            return None if value is None and described.optional else whole_number(value)
        if described.kind is float:
            return None if value is None and described.optional else _real_number(value)
        return value


@dataclass(frozen=True)
class Described:
    """Description and range of a field, for forms and messages."""

    help: str
    kind: type | None
    """int or float; None for other types."""
    minimum: Any
    maximum: Any
    above_minimum: bool
    """True if the minimum itself is not allowed."""
    optional: bool
    """True if None (off) is allowed."""
    default: Any

    @property
    def allowed(self) -> str:
        """Type and range as text, for example "a whole number from 1 to 1024"."""
        text = "a whole number" if self.kind is int else "a number"
        if self.minimum is not None and self.maximum is not None:
            low, high = f"{self.minimum:g}" if self.above_minimum else self.minimum, self.maximum
            text += f" above {low} and up to {high:g}" if self.above_minimum else f" from {low} to {high}"
        elif self.minimum is not None:
            text += f" above {self.minimum}" if self.above_minimum else f" of at least {self.minimum}"
        return text + (", or None for off" if self.optional else "")


def describe(model: type[BaseModel], name: str) -> Described:
    field = model.model_fields[name]
    options = get_args(field.annotation) or (field.annotation,)
    # pydantic turns ge=1 into metadata with an attribute `ge`.
    bounds = {
        name: getattr(bound, name) for bound in field.metadata for name in ("gt", "ge", "le") if hasattr(bound, name)
    }
    return Described(
        help=field.description or "",
        kind=int if int in options else float if float in options else None,
        minimum=bounds.get("gt", bounds.get("ge")),
        maximum=bounds.get("le"),
        above_minimum="gt" in bounds,
        optional=type(None) in options,
        default=None if field.is_required() or field.default_factory else field.default,
    )


def whole_number(value: Any) -> int:
    """An int from an int, a float such as 4.0, or a numpy or torch scalar; ValueError for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if _is_bool(value) or not hasattr(value, "__index__"):
        raise ValueError("not a whole number")
    try:
        return int(value.__index__())
    except (TypeError, OverflowError):  # arrays and tensors of several numbers, or of fractions
        raise ValueError("not a whole number") from None


def check_whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """The value as an int; InvalidInput states the range."""
    try:
        number = whole_number(value)
    except ValueError:
        number = low - 1
    if number < low or (high is not None and number > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidInput(f"{name} must be a whole number {span}; got {short_repr(value)}")
    return number


def short_repr(value: Any) -> str:
    """A repr of at most 60 characters, whatever the value is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"  # its digits could take minutes to print
    return shorten(repr(value))


def expand_options(command: _Command) -> _Command:
    """Turn each parameter of a typer command whose type is a CheckedModel into one option per field.

        @app.command()
        @expand_options
        def generate(prompt: str, params: SamplingParams) -> None: ...     # --candidates 8 --top-k off ...

    Help, default and range come from the fields. `Field(json_schema_extra={"option": "--initial-peer"})` names an
    option otherwise than its field, and {"option": None} makes none. The model refuses wrong values with InvalidInput
    before `command` is called.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    models: dict[str, type[CheckedModel]] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints.get(parameter.name, parameter.annotation)
        if isinstance(hint, type) and issubclass(hint, CheckedModel):
            models[parameter.name] = hint
            parameters += [_option(hint, name) for name in _options_of(hint)]
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def expanded(**values: Any) -> Any:
        for parameter, model in models.items():
            given = {name: values.pop(name) for name in _options_of(model)}
            given = {name: None if value is _OFF else value for name, value in given.items() if value is not None}
            values[parameter] = model(**given)
        return command(**values)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {}
    return expanded  # type: ignore[return-value]


def _options_of(model: type[CheckedModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if _extra(field).get("option", "") is not None]


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _option(model: type[CheckedModel], name: str) -> inspect.Parameter:
    """The parameter by which typer learns of an option; the value None means that the option is not given."""
    import typer

    field, described = model.model_fields[name], describe(model, name)
    flag = str(_extra(field).get("option", f"--{name.replace('_', '-')}"))
    annotation: Any = field.annotation
    more: dict[str, Any] = {}
    text = described.help
    if described.kind is not None:
        text += f" ({described.allowed})".replace("None for off", '"off"')
    if described.kind is not None and described.optional:
        annotation, more = Any, {"parser": _number_or_off(described.kind), "metavar": f"{name[-1].upper()}|off"}
    elif annotation is bool and field.default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    elif isinstance(field.default, tuple):
        element = get_args(annotation)[0]
        # typer knows plain types alone; the model checks what Annotated adds.
        annotation = list[get_args(element)[0] if get_origin(element) is Annotated else element]  # type: ignore[misc]
    if isinstance(field.default, tuple) or field.default_factory:
        annotation = annotation | None
    default = described.default if not isinstance(field.default, tuple) else None
    if field.is_required():
        default = inspect.Parameter.empty
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, typer.Option(flag, help=text, **more)],
    )


def _number_or_off(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        import typer

        if str(text).lower() in ("off", "none"):
            return _OFF
        try:
            return kind(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is neither a number nor 'off'") from None

    return parse


def _refusal(model: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong, and what is allowed instead."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # of several fields together: the model's own sentence
        return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f"there is no setting {shorten(name)!r}; known: {', '.join(model.model_fields)}"
    if first["type"] == "missing":
        return f"{name} is missing"
    described = describe(model, name)
    if described.kind is not None:
        return f"{name} must be {described.allowed}; got {short_repr(first['input'])}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{name}: {message}; got {short_repr(first['input'])}"


def _real_number(value: Any) -> float:
    if _is_bool(value) or isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise ValueError("not a number")
    try:
        number = float(value)
    except (TypeError, OverflowError):
        raise ValueError("not a number") from None
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _is_bool(value: Any) -> bool:
    """True for Python's, numpy's and torch's booleans, and for arrays and tensors of them."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"
