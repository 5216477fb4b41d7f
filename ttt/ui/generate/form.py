"""The form's values and where they come from: address, browser, pictures. Knows no gradio and no model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from ttt.errors import InvalidInput
from ttt.sampling.params import SamplingParams

MIN_CANDIDATES, MAX_CANDIDATES = 4, 128
MAX_PAGE_SEED = 2**53 - 1
"""A browser's numbers are exact up to here; scripts may use larger seeds."""
MAX_KEPT_TEXT = 20_000
RANDOM_SEEDS = 10**6
"""A seed that is drawn is below this: short enough to read out and to type."""

_DEFAULTS = SamplingParams()


@dataclass(frozen=True)
class Form:
    """What stands in the form. Off is written as a number there: `top_k` 0, `top_p` 1."""

    prompt: str = ""
    candidates: Any = _DEFAULTS.candidates
    keep: Any = _DEFAULTS.keep
    top_k: Any = _DEFAULTS.top_k or 0
    top_p: Any = _DEFAULTS.top_p or 1.0
    temperature: Any = _DEFAULTS.temperature
    seed: Any = _DEFAULTS.seed
    lock: bool = False
    """Whether the seed stays for the next run."""
    model: str = "demo"

    def params(self) -> SamplingParams:
        """Checked; InvalidInput states the range of what is out of it."""
        return checked(self.candidates, self.keep, self.top_k, self.top_p, self.temperature, self.seed)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


FIELDS = tuple(f.name for f in fields(Form))
_NUMBERS = ("candidates", "keep", "top_k", "top_p", "temperature", "seed")


def checked(
    candidates: object, keep: object, top_k: object, top_p: object, temperature: object, seed: object
) -> SamplingParams:
    """SamplingParams within the limits of the app; `top_k` 0 and `top_p` 1 mean off."""
    if not _is_whole(candidates) or not MIN_CANDIDATES <= candidates <= MAX_CANDIDATES:  # type: ignore[operator]
        shown = repr(candidates)
        raise InvalidInput(
            f"candidates must be a whole number from {MIN_CANDIDATES} to {MAX_CANDIDATES}; "
            f"got {shown if len(shown) <= 60 else shown[:57] + '...'}"
        )
    top_k = None if _equals(top_k, 0) else top_k
    top_p = None if _equals(top_p, 1) else top_p
    values = {"candidates": candidates, "keep": keep, "top_k": top_k, "top_p": top_p}
    return SamplingParams.from_dict({**values, "temperature": temperature, "seed": seed})


def _is_whole(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or (math.isfinite(value) and value.is_integer())


def _equals(value: object, number: int) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == number


def language_note(prompt: str) -> str:
    """What to tell who writes in a script that the models never saw; empty for English."""
    letters = [letter for letter in prompt if letter.isalpha()]
    if sum(letter.isascii() for letter in letters) * 2 >= len(letters):
        return ""
    return (
        "The models were trained on English captions; words in another script are noise to them, and the pictures will "
        "not show what they say. Write the prompt in English, for example “a red circle above a blue square”."
    )


def from_query(query: Mapping[str, str], models: list[str]) -> tuple[Form | None, str]:
    """The form that an address asks for (None when it asks for nothing), and what was wrong with it."""
    given = {name: query[name] for name in FIELDS if name in query and name != "lock"}
    if not given or (given.keys() == {"model"} and given["model"] not in models):  # another tab's, perhaps
        return None, ""
    form = Form(prompt=given.get("prompt", "")[:MAX_KEPT_TEXT], lock="seed" in given)
    problems = []
    for name in _NUMBERS:
        if name not in given:
            continue
        try:
            changed = _with(form, name, _number(given[name], whole=name not in ("top_p", "temperature")))
            changed.params()
            form = changed
        except (InvalidInput, ValueError) as error:
            text = str(error) if isinstance(error, InvalidInput) else f"{name} must be a number"
            problems.append(text)
    if "model" in given:
        if given["model"] in models:
            form = replace(form, model=given["model"])
        else:
            problems.append(f"there is no model {given['model'][:60]!r}; this server has: {', '.join(models)}")
    note = f"The address asks for something that is not allowed: {'; '.join(problems)}." if problems else ""
    return form, note


def _with(form: Form, name: str, value: Any) -> Form:
    return replace(form, **{name: value})


def _number(text: str, *, whole: bool) -> int | float:
    if whole and len(text) <= 20:
        return int(text)
    return float(text[:40])


def from_saved(values: Mapping[str, Any], models: list[str]) -> Form | None:
    """The form as the browser kept it, whatever was done to it there; None when there is none."""
    if not values:
        return None
    form = Form(lock=values.get("lock") is True)
    if isinstance(values.get("prompt"), str):
        form = replace(form, prompt=values["prompt"][:MAX_KEPT_TEXT])
    for name in _NUMBERS:
        value = values.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            form = _with(form, name, value)
    return replace(form, model=values["model"]) if values.get("model") in models else form


def from_settings(prompt: str, params: Mapping[str, Any], model: str, models: list[str], default: str) -> Form:
    """The form that paints a stored picture again; its seed is locked."""
    sampling = SamplingParams.from_dict(dict(params))
    return Form(
        prompt=prompt[:MAX_KEPT_TEXT],
        candidates=sampling.candidates,
        keep=sampling.keep,
        top_k=sampling.top_k or 0,
        top_p=sampling.top_p or 1.0,
        temperature=sampling.temperature,
        seed=sampling.seed,
        lock=True,
        model=model if model in models else default,
    )


def to_query(prompt: str, params: Mapping[str, Any], model: str) -> str:
    """The address that fills the form with these settings."""
    values = {"prompt": prompt, **params, "model": model}
    values["top_k"] = values.get("top_k") or 0
    values["top_p"] = values.get("top_p") or 1
    return "?" + urlencode({key: value for key, value in values.items() if key in FIELDS})
