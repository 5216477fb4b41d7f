"""The `/generate` endpoint: typed, documented, validated on the server. Independent of the page's layout."""

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
from ttt.ui.generate.form import MAX_CANDIDATES, MIN_CANDIDATES, RANDOM_SEEDS
from ttt.ui.generate.queue import Update
from ttt.ui.generate.results import Result
from ttt.ui.generate.service import GenerationService
from ttt.ui.html import file_url

_DEFAULTS = SamplingParams()
_ABOUT = """Generate images of a prompt and return the best, ranked by CLIP, with a report of scores and parameters.

Streams its progress; the last message holds the images, best first, as PNG files with their settings embedded. Values
out of range are refused with a message that states the range. Cancelling the job stops the work.
"""
_ALLOWED = {name: describe(SamplingParams, name).allowed for name in SamplingParams.model_fields}
_HELP = {
    "prompt": f"what the images show, in 1 to {MAX_PROMPT_CHARACTERS} characters",
    "candidates": f"images to generate: a whole number from {MIN_CANDIDATES} to {MAX_CANDIDATES}",
    "keep": "best images to return: a whole number from 1 to the number of candidates",
    "top_k": f"sample each code from the k most likely ones: {_ALLOWED['top_k']}; 0 is off too",
    "top_p": f"sample from the smallest set of codes with total probability p: {_ALLOWED['top_p']}; 1 is off too",
    "temperature": f"{_ALLOWED['temperature']}; below 1 sharpens the distribution, above 1 flattens it",
    "seed": f"the same seed gives the same images: {_ALLOWED['seed']}; None: the app chooses one and reports it",
    "model": "one of: {models}",
}
_RETURNS = {
    "images": "the best images as PNG files, best first; empty until the work is done",
    "report": "progress; at the end prompt, model, parameters and the scores of all candidates",
}


def add_endpoint(page: gr.Blocks, service: GenerationService, default_model: str = "demo") -> None:
    """Add `/generate` to the page, which is the current context."""
    event = gr.api(
        make_generate(service, default_model), api_name="generate", concurrency_limit=None, api_visibility="public"
    )
    # gr.api labels its values "1st", "2nd": give them the names and descriptions that the API page shows.
    for ids, help in ((event["inputs"], _help(service)), (event["outputs"], _RETURNS)):
        for id, (name, text) in zip(ids, help.items(), strict=True):
            part = page.blocks[id]
            assert isinstance(part, Api)
            part.label = name
            part._api_info = {**part._api_info, "additional_description": text, "description": text}


def _help(service: GenerationService) -> dict[str, str]:
    return {name: text.format(models=", ".join(service.models.keys)) for name, text in _HELP.items()}


def make_generate(
    service: GenerationService, default_model: str = "demo"
) -> Callable[..., Iterator[tuple[list[Any], dict]]]:
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
            seed = secrets.randbelow(RANDOM_SEEDS) if seed is None else seed
            params = forms.checked(candidates, keep, top_k, top_p, temperature, seed)
            user = (request.session_hash if request is not None else None) or "script"
            job = service.submit(user, prompt, params, model)
        except TTTError as error:
            raise gr.Error(str(error), print_exception=False) from None
        for update in job.watch():
            if update.phase in ("failed", "stopped"):
                raise gr.Error(update.message or "The request was stopped.", print_exception=False)
            result = service.store.load(update.result)
            yield ([], _progress(update)) if result is None else (_files(result), report(result))

    arguments = "\n".join(f"    {name}: {text}" for name, text in _help(service).items())
    returns = "\n".join(f"    {name}: {text}" for name, text in _RETURNS.items())
    generate.__doc__ = f"{_ABOUT}\nArgs:\n{arguments}\nReturns:\n{returns}\n"
    # gr.api documents the type of one message, not that of the generator.
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
        "images": [
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
        "preview": update.preview is not None,
    }


def _files(result: Result) -> list[dict[str, Any]]:
    return [
        {
            "path": str(result.path(best.file)),
            "url": "/" + file_url(result.path(best.file)),
            "orig_name": best.file,
            "mime_type": "image/png",
            "meta": {"_type": "gradio.FileData"},
        }
        for best in result.best
    ]
