"""Settings of the server: one declaration each, read from the command line and the environment. Independent of Gradio.

`python app.py --help` lists them. An empty environment variable (usual in compose files and Spaces) counts as unset.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from ttt.config import DTYPE_NAMES
from ttt.errors import BundleError

DTYPES = ("auto", *DTYPE_NAMES)
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
SPACE_HOST = "0.0.0.0"
"""Address to listen on in a Space, whose proxy is another machine."""


def _setting(
    default: Any,
    help: str,
    *,
    variable: str = "",
    option: str = "",
    separator: str = "",
    metavar: str = "",
    choices: Sequence[str] = (),
    **limits: Any,
) -> Any:
    """A field with its command line option (by default its name) and its environment variable.

    separator: between the values in the environment variable, for fields that hold several.
    """
    source: dict[str, Any] = {"variable": variable, "option": option, "separator": separator, "metavar": metavar}
    source |= {"enum": list(choices)} if choices else {}
    return Field(default=default, description=help, json_schema_extra=source, **limits)


class Settings(BaseModel):
    """What the person who starts the server chooses."""

    model_config = ConfigDict(frozen=True)

    host: str = _setting("127.0.0.1", f"address to listen on (in a Space: {SPACE_HOST})", variable="GRADIO_SERVER_NAME")
    port: int = _setting(7860, "port to listen on; 0: any free one", variable="GRADIO_SERVER_PORT", ge=0, le=65_535)
    model: str = _setting(
        "",
        "model chosen at first: demo, published or a bundle's folder name; default: the first bundle, else demo",
        variable="TTT_MODEL",
    )
    bundles: tuple[str, ...] = _setting(
        (), "bundle folder that visitors may choose; repeatable",
        variable="TTT_BUNDLE", option="bundle", separator=os.pathsep, metavar="PATH",
    )  # fmt: skip
    dtype: str = _setting(
        "auto", "precision of generating; int8 is fastest for large models on CPUs, and a little less exact",
        variable="TTT_DTYPE", choices=DTYPES,
    )  # fmt: skip
    results: Folder | None = _setting(
        None, "folder to keep finished results in; default: a folder that is deleted when the server ends",
        variable="TTT_RESULTS", metavar="FOLDER",
    )  # fmt: skip
    runs: Folder = _setting(
        Path("runs"), "folder with the runs that the dashboard shows", variable="TTT_RUNS", metavar="FOLDER"
    )
    run: str = _setting("", "run file, or its URL, that visitors can contribute to", variable="TTT_RUN")
    initial_peers: tuple[str, ...] = _setting(
        (), "address of that run, as its coordinator prints it; repeatable",
        variable="TTT_INITIAL_PEERS", option="initial-peer", separator=" ", metavar="ADDRESS",
    )  # fmt: skip
    peer_folder: Folder | None = _setting(
        None, "folder for the files of this machine's peer; default: volunteer in the folder of runs",
        variable="TTT_PEER_FOLDER", metavar="FOLDER",
    )  # fmt: skip
    peer_ends_with: int = _setting(
        0, "stop the peer when the process of this id ends; 0: keep it until Stop", metavar="PID", ge=0
    )

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError
        return dtype

    def first_model(self, offered: Sequence[str]) -> str:
        """The key of the model to start with; BundleError if it is not among those offered."""
        if not self.model:
            return offered[len(offered) - len(self.bundles)] if self.bundles else "demo"
        if self.model not in offered:
            raise BundleError(f"there is no model {self.model!r}; this server has: {', '.join(offered)}")
        return self.model

    def volunteer_folder(self) -> Path:
        return self.peer_folder if self.peer_folder is not None else self.runs / "volunteer"

    def results_folder(self) -> Path:
        return self.results if self.results is not None else temporary_folder("results")


def temporary_folder(name: str) -> Path:
    """A new folder that is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix=f"ttt-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def read_settings(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The command line wins over the environment. A wrong value prints its range and exits with code 2."""
    variables = os.environ if environment is None else environment
    env = {name: value.strip() for name, value in variables.items() if value.strip()}
    parser = argparse.ArgumentParser(prog="app.py", description="Training Transformers Together, as a web page.")
    given: dict[str, Any] = {"host": SPACE_HOST} if env.get("SPACE_ID") else {}
    origin: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        source = _source(name)
        several = bool(source["separator"])
        parser.add_argument(
            source["option"],
            dest=name,
            action="append" if several else "store",
            metavar=source["metavar"] or None,
            help=_help(name, field.description or ""),
        )
        if (text := env.get(source["variable"])) is not None:
            given[name] = [part for part in text.split(source["separator"]) if part] if several else text
            origin[name] = "$" + source["variable"]
    for name, value in vars(parser.parse_args(arguments)).items():
        if value:
            given[name] = value
            origin[name] = _source(name)["option"]
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        parser.error(f"{origin[name]} must be {_allowed(name)}, got {wrong['input']!r}")


def _source(name: str) -> dict[str, str]:
    extra = Settings.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    option = "--" + (str(extra["option"]) or name.replace("_", "-"))
    return {**{key: str(value) for key, value in extra.items()}, "option": option}


def _allowed(name: str) -> str:
    schema = Settings.model_json_schema()["properties"][name]
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    return f"a whole number from {low} to {high}" if high is not None else f"a whole number of at least {low}"


def _help(name: str, description: str) -> str:
    field, source = Settings.model_fields[name], _source(name)
    schema = Settings.model_json_schema()["properties"][name]
    parts = [
        *([f"one of {', '.join(schema['enum'])}"] if "enum" in schema else []),
        *([f"default: {field.default}"] if field.default not in (None, "", (), 0) else []),
        *([f"or ${source['variable']}" + _separated(source["separator"])] if source["variable"] else []),
    ]
    return (description + (f" ({'; '.join(parts)})" if parts else "")).replace("%", "%%")


def _separated(separator: str) -> str:
    return {"": "", " ": ", separated by spaces"}.get(separator, f", separated by {separator!r}")
