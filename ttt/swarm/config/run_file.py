"""Reads and writes the run file: the settings of a run as TOML with comments. Its URL is fetched with one GET."""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ttt.errors import InvalidInput
from ttt.swarm.config.run_config import NAME, RunSettings

MAX_BYTES = 1 << 16
_HEADER = """\
# The run {name}: what is trained, and how its peers work together. All peers need this file unchanged.
#
#   ttt coordinator --run FILE                    on one machine that all peers can reach; it prints its address
#   ttt peer --run FILE --initial-peer ADDRESS    on every machine that trains
#
# Change what you like. Omitted settings keep their defaults.
"""


def new_settings(name: str) -> RunSettings:
    """Return the default settings, under a valid name that is close to this one."""
    return RunSettings.model_validate({"run": {"name": _similar_name(name)}})


def check_name(name: str) -> str:
    """Return the name if it is valid for a run, else raise InvalidInput with a similar one that is."""
    if not re.fullmatch(NAME, name):
        raise InvalidInput(
            f"--name {name!r} cannot be used: the name of a run has at most 63 lower-case letters a-z, digits and "
            f"hyphens, and does not start with a hyphen; for example --name {_similar_name(name)}"
        )
    return name


def _similar_name(name: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9-]+", "-", plain.lower()).strip("-")[:63] or "my-run"


def write_run_file(path: Path, settings: RunSettings | None = None, *, overwrite: bool = False) -> None:
    """Write every setting with its description. Raises InvalidInput if the file exists or cannot be written."""
    try:
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder; name a file in it, such as {path / 'run.toml'}")
        if path.exists() and not overwrite:
            raise InvalidInput(f"{path} exists; choose another name, or delete it first")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(settings or RunSettings()), encoding="utf-8")
    except (FileExistsError, NotADirectoryError):
        raise InvalidInput(
            f"{path} cannot be written: {path.parent} is a file, or inside one; choose a folder"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror}); choose a folder you can write to") from None


def render(settings: RunSettings) -> str:
    """Return the text of a run file with these settings."""
    lines = [_HEADER.format(name=settings.run.name)]
    for name in type(settings).model_fields:
        section: BaseModel = getattr(settings, name)
        lines += [f"[{name}]  # {(type(section).__doc__ or '').strip()}"]
        for key, field in type(section).model_fields.items():
            lines += [f"# {field.description}", f"{key} = {_toml(getattr(section, key))}"]
        lines += [""]
    return "\n".join(lines)


def read_run_file(source: str | Path) -> RunSettings:
    """Read settings from a file or an http(s) URL. Raises InvalidInput with file, line and field of each mistake."""
    text, name = _text(source), str(source)
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"{name} is not valid TOML: {error}") from None
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        raise InvalidInput("\n".join(_describe(name, text, mistake) for mistake in error.errors()[:5])) from None


def _text(source: str | Path) -> str:
    if re.match(r"https?://", str(source)):
        return _fetch(str(source))
    path = Path(source).expanduser()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(f"{path} is larger than {MAX_BYTES} bytes: not a run file")
        return path.read_text(encoding="utf-8-sig")  # Notepad writes a byte-order mark
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist; `ttt run new {path}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None


def _fetch(url: str) -> str:
    import httpx2

    try:
        with httpx2.stream("GET", url, follow_redirects=True, timeout=30) as answer:
            answer.raise_for_status()
            data = b""
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise InvalidInput(f"{url} is larger than {MAX_BYTES} bytes: not a run file")
        return data.decode()
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeDecodeError) as error:
        raise InvalidInput(f"{url} cannot be read: {error}") from None


def _describe(name: str, text: str, error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        section = RunSettings.model_fields.get(where[0])
        known = RunSettings if len(where) == 1 or section is None else section.annotation
        message = f"unknown setting; valid here: {', '.join(getattr(known, 'model_fields', {}))}"
    elif not isinstance(error["input"], dict):
        message += f", got {error['input']!r}"
    line = _line(text, where)
    field = f"[{where[0]}] {'.'.join(where[1:])}".strip() if where else ""
    return f"{name}{f', line {line}' if line else ''}: {field}: {message}"


def _line(text: str, where: list[str]) -> int | None:
    """Return the line of a key, or of its section's heading."""
    section, heading = "", None
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r"\s*\[([^\]]+)\]", line):
            section = match[1].strip()
            if where and section == where[0]:
                heading = number
        elif len(where) > 1 and section == where[0] and re.match(rf"\s*\"?{re.escape(where[1])}\"?\s*=", line):
            return number
    return heading


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # every JSON string is a basic string of TOML
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    return repr(value)
