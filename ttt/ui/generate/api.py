"""The `/generate` endpoint: typed, documented, its values checked on the server. Knows no page."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import gradio as gr
from gradio import FileData
from gradio.components.api_component import Api

from ttt.errors import TTTError
from ttt.fields import describe
from ttt.sampling.params import SamplingParams
from ttt.tokenizer import MAX_PROMPT_CHARACTERS
from ttt.ui.generate import form as forms
from ttt.ui.generate import view
from ttt.ui.generate.form import MAX_CANDIDATES, MIN_CANDIDATES, RANDOM_SEEDS
from ttt.ui.generate.queue import Update
from ttt.ui.generate.results import Result
from ttt.ui.generate.service import Studio

_DEFAULTS = forms.Form()
_ABOUT = """Paint pictures of a prompt and return the best ones, ranked by CLIP, with a report of scores and parameters.

Streams its progress; the last message holds the pictures, as PNG files that carry their settings, best first. Values
out of range are refused with a message that states the range. Cancelling the job stops the work.
"""
_ALLOWED = {name: describe(SamplingParams, name).allowed for name in SamplingParams.model_fields}
_HELP = {
    "prompt": f"what the pictures are to show, in 1 to {MAX_PROMPT_CHARACTERS} characters",
    "candidates": f"pictures to paint: a whole number from {MIN_CANDIDATES} to {MAX_CANDIDATES}",
    "keep": "best pictures to return: a whole number from 1 to the number of candidates",
    "top_k": f"choose each code among the k most likely: {_ALLOWED['top_k']}; 0 is off too",
    "top_p": f"then among the fewest whose probability reaches p: {_ALLOWED['top_p']}; 1 is off too",
    "temperature": f"{_ALLOWED['temperature']}; 1 is neutral",
    "seed": f"the same seed paints the same pictures: {_ALLOWED['seed']}; None draws one, which the report tells",
    "model": "one of: {models}",
}
_RETURNS = {
    "pictures": "the best pictures as PNG files, best first; empty while the work goes on",
    "report": "progress, or at the end prompt, model, parameters and the scores of pictures and candidates",
}


def add_endpoint(studio: Studio, default_model: str = "demo") -> None:
    """Add `/generate` to the current gr.Blocks."""
    gr.api(make_generate(studio, default_model), api_name="generate", concurrency_limit=None, api_visibility="public")
    root = gr.context.Context.root_block
    assert root is not None
    event = next(reversed(root.fns.values()))
    # gr.api calls its values "1st", "2nd": name and explain them, as the API page shows it.
    for parts, words in ((event.inputs, _help(studio)), (event.outputs, _RETURNS)):
        for part, (name, text) in zip(parts, words.items(), strict=True):
            assert isinstance(part, Api)
            part.label = name
            part._api_info = {**part._api_info, "additional_description": text, "description": text}


def _help(studio: Studio) -> dict[str, str]:
    return {name: text.format(models=", ".join(studio.shelf.keys)) for name, text in _HELP.items()}


def make_generate(studio: Studio, default_model: str = "demo") -> Callable[..., Iterator[tuple[list[Any], dict]]]:
    """The function behind the endpoint."""

    def generate(
        prompt: str,
        candidates: int = _DEFAULTS.candidates,
        keep: int = _DEFAULTS.keep,
        top_k: int | None = _DEFAULTS.top_k,
        top_p: float | None = _DEFAULTS.top_p,
        temperature: float = _DEFAULTS.temperature,
        seed: int | None = None,
        model: str = default_model,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[tuple[list[Any], dict]]:
        try:
            drawn = secrets.randbelow(RANDOM_SEEDS) if seed is None else seed
            params = forms.checked(candidates, keep, top_k, top_p, temperature, drawn)
            user = (request.session_hash if request is not None else None) or "script"
            job = studio.submit(user, prompt, params, model)
        except TTTError as error:
            raise gr.Error(str(error), print_exception=False) from None
        for update in job.watch():
            if update.phase in ("failed", "stopped"):
                raise gr.Error(update.message or "The work was stopped.", print_exception=False)
            result = studio.store.load(update.result)
            yield ([], _progress(update)) if result is None else (_files(result), report(result))

    arguments = "\n".join(f"    {name}: {text}" for name, text in _help(studio).items())
    returns = "\n".join(f"    {name}: {text}" for name, text in _RETURNS.items())
    generate.__doc__ = f"{_ABOUT}\nArgs:\n{arguments}\nReturns:\n{returns}\n"
    # gr.api reads the types of one answer; a generator's own annotation would hide them.
    generate.__annotations__ = {**get_type_hints(generate), "return": tuple[list[FileData], dict]}
    return generate


def report(result: Result) -> dict[str, Any]:
    """Scores and parameters, as JSON."""
    return {
        "status": "finished",
        "prompt": result.prompt,
        "note": forms.language_note(result.prompt),
        "model": result.model,
        "params": result.params,
        "seconds": round(result.seconds, 3),
        "pictures": [
            {"file": best.file, "score": best.score, "candidate": best.candidate, "seed": result.params["seed"]}
            for best in result.best
        ],
        "ranking": [{"candidate": candidate, "score": score} for candidate, score in result.ranking],
    }


def _progress(update: Update) -> dict[str, Any]:
    return {
        "status": update.phase,
        "stage": update.stage,
        "fraction": round(update.fraction, 4),
        "ahead": update.ahead,
        "preview": update.sheet is not None,
    }


def _files(result: Result) -> list[dict[str, Any]]:
    return [
        {
            "path": str(result.path(best.file)),
            "url": "/" + view.file_url(result.path(best.file)),
            "orig_name": best.file,
            "mime_type": "image/png",
            "meta": {"_type": "gradio.FileData"},
        }
        for best in result.best
    ]
