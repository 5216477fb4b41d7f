"""Settings declared once: refusals with the allowed range, and command-line options from the fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from ttt.errors import InvalidInput
from ttt.fields import CheckedModel, check_whole_number, describe, expand_options


class Options(CheckedModel):
    folder: Path = Field(description="Where to write.")
    initial_peers: tuple[str, ...] = Field(
        default=(), description="Addresses to join at.", json_schema_extra={"option": "--initial-peer"}
    )
    mode: Literal["fast", "slow"] = Field(default="fast", description="Speed.")
    limit: float = Field(default=0.0, ge=0, description="Samples a second.")
    until: int | None = Field(default=None, ge=1, description="Last step.")
    relay: bool = Field(default=True, description="Use relays.")
    client: bool = Field(default=False, description="Do not listen.")


app = typer.Typer(rich_markup_mode=None)
received: list[tuple[str, Options]] = []


@app.command()
@expand_options
def command(name: Annotated[str, typer.Argument(help="A name.")], options: Options, loud: bool = False) -> None:
    """What it does."""
    received.append((name, options))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), terminal_width=200)
    if isinstance(result.exception, InvalidInput):
        raise result.exception
    return result.output


def test_options_become_a_model() -> None:
    run("anna", "--folder", "x", "--initial-peer", "a", "--initial-peer", "b", "--mode", "slow", "--limit", "2.5",
        "--until", "7", "--no-relay", "--client")  # fmt: skip
    run("ben", "--folder", "y", "--until", "off")
    assert received[-2:] == [
        ("anna", Options(folder=Path("x"), initial_peers=("a", "b"), mode="slow", limit=2.5, until=7, relay=False,
                         client=True)),
        ("ben", Options(folder=Path("y"))),
    ]  # fmt: skip


def test_help_comes_from_the_fields() -> None:
    text = " ".join(run("--help").split())
    for part in ("Samples a second. (a number of at least 0)", "--until L|off", 'at least 1, or "off"', "--relay",
                 "--no-relay", "--client", "--initial-peer", "A name.", "What it does."):  # fmt: skip
        assert part.replace("L|off", "") in text or part in text, part
    assert "Missing option '--folder'" in run("anna")


def test_the_model_refuses_wrong_values() -> None:
    with pytest.raises(InvalidInput, match=r"limit must be a number of at least 0; got -1\.0"):
        run("anna", "--folder", "x", "--limit", "-1")
    with pytest.raises(InvalidInput, match=r"until must be a whole number of at least 1, or None for off; got True"):
        Options(folder=Path("x"), until=True)
    with pytest.raises(InvalidInput, match="folder is missing"):
        Options()  # type: ignore[call-arg]
    with pytest.raises(InvalidInput, match=r"mode: Input should be 'fast' or 'slow'; got 'x+\.\.\."):
        Options(folder=Path("x"), mode="x" * 100)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="there is no setting 'fodler'; known: folder, initial_peers"):
        Options(folder=Path("x"), fodler=1)  # type: ignore[call-arg]
    assert describe(Options, "limit").help == "Samples a second."


@pytest.mark.parametrize("value", [True, 1.5, "3", None, 10**3000, -1, 8])
def test_whole_numbers_out_of_range_are_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"^x must be a whole number from 0 to 7; got .{1,60}$"):
        check_whole_number("x", value, 0, 7)
    assert check_whole_number("x", 3.0, 0) == 3
