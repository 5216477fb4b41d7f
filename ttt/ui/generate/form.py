"""The form's values, and where they come from: a link, the browser's memory, a PNG. Independent of Gradio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import Field, TypeAdapter, ValidationError

from ttt import results
from ttt.errors import InvalidInput
from ttt.sampling.params import SamplingParams

MIN_CANDIDATES, MAX_CANDIDATES = 4, 128
MAX_PROMPT_TEXT = 20_000
MAX_SEED_TEXT = 40
RANDOM_SEEDS = 10**6
"""A random seed is below this: short enough to read out and to type."""

_DEFAULTS = SamplingParams()
_candidates: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=MIN_CANDIDATES, le=MAX_CANDIDATES)])


@dataclass(frozen=True)
class Form:
    """The values of the form's fields. There, off is a number: `top_k` 0, `top_p` 1."""

    prompt: str = ""
    candidates: Any = _DEFAULTS.candidates
    keep: Any = _DEFAULTS.keep
    top_k: Any = _DEFAULTS.top_k or 0
    top_p: Any = _DEFAULTS.top_p or 1.0
    temperature: Any = _DEFAULTS.temperature
    seed: Any = str(_DEFAULTS.seed)
    """Text: a browser rounds numbers above 2**53 - 1, and the images would be others than those of the seed shown."""
    lock: bool = False
    """True if the seed is kept for the next request."""
    model: str = "demo"

    def params(self) -> SamplingParams:
        """Validated; InvalidInput states the range of what is out of it."""
        seed = self.seed
        if isinstance(seed, str) and seed.strip().isdecimal() and len(seed) <= MAX_SEED_TEXT:
            seed = int(seed)
        return checked(self.candidates, self.keep, self.top_k, self.top_p, self.temperature, seed)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


FIELDS = tuple(f.name for f in fields(Form))
_WHOLE_NUMBERS = ("candidates", "keep", "top_k")
_NUMBERS = (*_WHOLE_NUMBERS, "top_p", "temperature")


def checked(
    candidates: object, keep: object, top_k: object, top_p: object, temperature: object, seed: object
) -> SamplingParams:
    """SamplingParams within the limits of the app; `top_k` 0 and `top_p` 1 mean off."""
    try:
        candidates = _candidates.validate_python(candidates)
    except ValidationError:
        shown = repr(candidates)
        raise InvalidInput(
            f"candidates must be a whole number from {MIN_CANDIDATES} to {MAX_CANDIDATES}; "
            f"got {shown if len(shown) <= 60 else shown[:57] + '...'}"
        ) from None
    top_k = None if _equals(top_k, 0) else top_k
    top_p = None if _equals(top_p, 1) else top_p
    values = {"candidates": candidates, "keep": keep, "top_k": top_k, "top_p": top_p}
    return SamplingParams.from_dict({**values, "temperature": temperature, "seed": seed})


def _equals(value: object, number: int) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == number


def language_note(prompt: str) -> str:
    """A warning for prompts in a script that the models were not trained on; empty for English."""
    letters = [letter for letter in prompt if letter.isalpha()]
    if sum(letter.isascii() for letter in letters) * 2 >= len(letters):
        return ""
    return (
        "The models understand English only, so these images will not match your words. Write the prompt in English, "
        "for example “a red circle above a blue square”."
    )


def from_query(query: Mapping[str, str], models: list[str]) -> tuple[Form | None, str]:
    """The form that a link describes (None if it describes none), and what is wrong with the link."""
    given = {name: query[name] for name in FIELDS if name in query and name != "lock"}
    if not given or (given.keys() == {"model"} and given["model"] not in models):  # perhaps another tab's model
        return None, ""
    form = Form(prompt=given.get("prompt", "")[:MAX_PROMPT_TEXT], lock="seed" in given)
    problems = []
    for name in (*_NUMBERS, "seed"):
        if name not in given:
            continue
        try:
            value: Any = given[name] if name == "seed" else _number(given[name], whole=name in _WHOLE_NUMBERS)
            changed = _with(form, name, value)
            changed.params()
            form = changed
        except (InvalidInput, ValueError) as error:
            problems.append(str(error) if isinstance(error, InvalidInput) else f"{name} must be a number")
    if "model" in given:
        if given["model"] in models:
            form = replace(form, model=given["model"])
        else:
            problems.append(f"there is no model {given['model'][:60]!r}; this server has: {', '.join(models)}")
    return form, f"Ignored in the link: {'; '.join(problems)}." if problems else ""


def _with(form: Form, name: str, value: Any) -> Form:
    return replace(form, **{name: value})


def _number(text: str, *, whole: bool) -> int | float:
    if whole and len(text) <= 20:
        return int(text)
    return float(text[:40])


def from_saved(values: Mapping[str, Any], models: list[str]) -> Form | None:
    """The form as the browser stored it, where a user may have changed it; None if there is none."""
    if not values:
        return None
    form = Form(lock=values.get("lock") is True)
    if isinstance(values.get("prompt"), str):
        form = replace(form, prompt=values["prompt"][:MAX_PROMPT_TEXT])
    for name in _NUMBERS:
        value = values.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            form = _with(form, name, value)
    if isinstance(seed := values.get("seed"), str):
        form = replace(form, seed=seed[:MAX_SEED_TEXT])
    return replace(form, model=values["model"]) if values.get("model") in models else form


def from_png(path: str | None, models: list[str], default: str) -> Form:
    """The form that generates the image of a saved PNG again. InvalidInput if the file is not one of ours."""
    if not path:
        raise InvalidInput("no file was received; choose one PNG that was saved from this app")
    stored = results.read_settings(path)
    return from_settings(stored["prompt"], stored["params"], stored["model"], models, default)


def from_settings(prompt: str, params: Mapping[str, Any], model: str, models: list[str], default: str) -> Form:
    """The form that generates a stored image again; its seed is locked."""
    sampling = SamplingParams.from_dict(dict(params))
    return Form(
        prompt=prompt[:MAX_PROMPT_TEXT],
        candidates=sampling.candidates,
        keep=sampling.keep,
        top_k=sampling.top_k or 0,
        top_p=sampling.top_p or 1.0,
        temperature=sampling.temperature,
        seed=str(sampling.seed),
        lock=True,
        model=model if model in models else default,
    )


def to_query(prompt: str, params: Mapping[str, Any], model: str) -> str:
    """The query of a link that fills the form with these settings."""
    values = {"prompt": prompt, **params, "model": model}
    values["top_k"] = values.get("top_k") or 0
    values["top_p"] = values.get("top_p") or 1
    return "?" + urlencode({key: value for key, value in values.items() if key in FIELDS})
