"""Saves images: PNGs with embedded settings, a JSON file of all scores, a ZIP. Independent of torch and of models.

0001_candidate042.png ...   the best images, best first; `read_settings` returns the settings stored in them
results.json                prompt, model, parameters, scores of all candidates
images.zip                  all of these files
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ttt.errors import InvalidInput
from ttt.fields import check_whole_number
from ttt.sampling.params import SamplingParams
from ttt.tokenizer import check_prompt
from ttt.types import RankedImage

KEY = "ttt"
"""PNG text chunk that holds the settings as JSON; the chunk "parameters" is human-readable."""
RECORD, ARCHIVE = "results.json", "images.zip"
VERSION = 1
MAX_SETTINGS_CHARACTERS = 100_000
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 8192 * 8192
MAX_MODEL_CHARACTERS = 300


def save(
    folder: str | os.PathLike[str],
    best: Sequence[RankedImage],
    ranking: Sequence[RankedImage],
    *,
    prompt: str,
    params: SamplingParams,
    model: str,
) -> list[Path]:
    """Write PNGs of the best, the record and the ZIP into `folder`, created if missing; return the PNGs, best first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pngs = []
    for rank, ranked in enumerate(best):
        path = folder / file_name(rank, ranked)
        path.write_bytes(png(ranked, prompt=prompt, params=params, model=model))
        pngs.append(path)
    text = json.dumps(record(best, ranking, prompt=prompt, params=params, model=model), indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
        for path in (*pngs, folder / RECORD):
            archive.write(path, path.name)
    return pngs


def file_name(rank: int, ranked: RankedImage) -> str:
    """Name of the PNG at a rank, from 0."""
    return f"{rank + 1:04d}_candidate{ranked.candidate:03d}.png"


def settings(ranked: RankedImage, *, prompt: str, params: SamplingParams, model: str) -> dict[str, Any]:
    """Everything needed to generate the image again, and its score."""
    return {
        "version": VERSION,
        "prompt": prompt,
        "params": {**params.to_dict(), "seed": ranked.seed},
        "model": model,
        "candidate": ranked.candidate,
        "score": round(ranked.score, 6) if math.isfinite(ranked.score) else None,
    }


def png(ranked: RankedImage, *, prompt: str, params: SamplingParams, model: str) -> bytes:
    """The image as a PNG with its settings in two text chunks."""
    values = settings(ranked, prompt=prompt, params=params, model=model)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(KEY, json.dumps(values, ensure_ascii=False, allow_nan=False))
    chunks.add_itxt("parameters", _human_readable(values))
    buffer = io.BytesIO()
    ranked.image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def record(
    best: Sequence[RankedImage], ranking: Sequence[RankedImage], *, prompt: str, params: SamplingParams, model: str
) -> dict[str, Any]:
    """The content of `results.json`."""
    return {
        "version": VERSION,
        "prompt": prompt,
        "model": model,
        "params": params.to_dict(),
        "best": [{"file": file_name(i, r), "candidate": r.candidate, "score": _score(r)} for i, r in enumerate(best)],
        "ranking": [{"candidate": r.candidate, "score": _score(r)} for r in ranking],
    }


def read_settings(png: str | os.PathLike[str] | bytes | IO[bytes]) -> dict[str, Any]:
    """Validated settings of one of our PNGs: prompt, params (as `SamplingParams.to_dict`), model, candidate, score.

    Any other file, including a malicious one, raises InvalidInput.
    """
    text = _settings_text(_bytes_of(png))
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidInput("the image's settings are not readable JSON") from None
    if not isinstance(values, dict) or not isinstance(values.get("params"), dict):
        raise InvalidInput("the image's settings are not in the form this program writes")
    model = values.get("model", "")
    if not isinstance(model, str) or len(model) > MAX_MODEL_CHARACTERS:
        raise InvalidInput(f"the image's model must be a name of at most {MAX_MODEL_CHARACTERS} characters")
    params = SamplingParams.from_dict(values["params"])
    score = values.get("score")
    candidate = check_whole_number("the image's candidate", values.get("candidate"), 0, params.candidates - 1)
    if score is not None and (type(score) not in (int, float) or not abs(score) < 1e9):
        raise InvalidInput("the image's score must be a number")
    return {
        "prompt": check_prompt(values.get("prompt", "")),
        "params": params.to_dict(),
        "model": model,
        "candidate": candidate,
        "score": score,
    }


def _settings_text(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InvalidInput(f"the image is too large: {image.width} x {image.height} pixels")
            text = image.info.get(KEY)  # our chunks come before the pixels, which are never decoded
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise InvalidInput("the file is not a PNG image") from None
    except (OSError, ValueError, SyntaxError, MemoryError, OverflowError, EOFError, TypeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput("the PNG file is broken, or its texts are too large") from None
    if not isinstance(text, str):
        raise InvalidInput("the image carries no settings; only unchanged PNG files written by this program do")
    if len(text) > MAX_SETTINGS_CHARACTERS:
        raise InvalidInput(f"the image's settings have {len(text):,} characters; at most {MAX_SETTINGS_CHARACTERS:,}")
    return str(text)


def _bytes_of(png: str | os.PathLike[str] | bytes | IO[bytes]) -> bytes:
    if isinstance(png, (bytes, bytearray)):
        content = bytes(png)
    elif isinstance(png, (str, os.PathLike)):
        try:
            with open(png, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError):
            raise InvalidInput("the image file cannot be read") from None
    else:
        content = png.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise InvalidInput(f"the file is too large; the limit is {MAX_FILE_BYTES >> 20} MB")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _score(ranked: RankedImage) -> float | None:
    return round(ranked.score, 6) if math.isfinite(ranked.score) else None


def _human_readable(values: dict[str, Any]) -> str:
    params = ", ".join(f"{name} {value}" for name, value in values["params"].items() if value is not None)
    made = f"Model: {values['model']}, candidate {values['candidate']}, CLIP score {values['score']}, {params}"
    return f"{values['prompt']}\n{made}"
