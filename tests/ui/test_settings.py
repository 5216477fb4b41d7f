"""Command line and environment of the server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ttt.errors import BundleError, InvalidInput
from ttt.ui import settings
from ttt.ui.app import launch_options
from ttt.ui.generate.models import sources
from ttt.ui.settings import Settings, read_settings


def test_by_default_only_this_machine_reaches_the_app() -> None:
    assert read_settings([], {}) == Settings(host="127.0.0.1", port=7860)


def test_on_a_space_all_addresses() -> None:
    assert read_settings([], {"SPACE_ID": "me/space"}).host == "0.0.0.0"


def test_the_command_line_wins_over_the_environment() -> None:
    env = {"TTT_BUNDLE": "/a:/b", "GRADIO_SERVER_PORT": "1234", "TTT_MODEL": "b", "TTT_RESULTS": "/r"}
    seen = read_settings([], env)
    assert (seen.bundles, seen.port, seen.model, seen.results) == (("/a", "/b"), 1234, "b", Path("/r"))
    assert read_settings(["--bundle", "/c", "--port", "99", "--model", "demo"], env) == Settings(
        port=99, model="demo", bundles=("/c",), results=Path("/r")
    )


@pytest.mark.parametrize("wrong", ["x", "-1", "70000", "80.5"])
@pytest.mark.parametrize("given", ["option", "variable"])
def test_a_wrong_port_states_the_range(wrong: str, given: str, capsys: pytest.CaptureFixture) -> None:
    line, env = ([f"--port={wrong}"], {}) if given == "option" else ([], {"GRADIO_SERVER_PORT": wrong})
    with pytest.raises(SystemExit) as stopped:
        read_settings(line, env)
    assert stopped.value.code == 2
    source = "--port" if given == "option" else "$GRADIO_SERVER_PORT"
    assert f"{source} must be a whole number from 0 to 65535, got '{wrong}'" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "env"), [(["--dtype", "int4"], {}), ([], {"TTT_DTYPE": "int4"})])
def test_a_wrong_precision_lists_those_there_are(
    line: list[str], env: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        read_settings(line, env)
    assert "must be one of auto, float32, bfloat16, float16, int8" in capsys.readouterr().err


def test_the_precisions_are_those_of_generating() -> None:
    from ttt import hardware

    assert ("auto", *hardware.DTYPES) == settings.DTYPES
    assert read_settings(["--dtype", "float32"], {"TTT_DTYPE": "int8"}).dtype == "float32"
    assert read_settings([], {"TTT_DTYPE": "int8"}).dtype == "int8"


def test_an_empty_variable_counts_as_unset() -> None:
    """Of every setting: a variable of a compose file or a Space is often there without a value."""
    variables = [field.json_schema_extra["variable"] for field in Settings.model_fields.values()]  # type: ignore[index, call-overload]
    assert "TTT_RESULTS" in variables and "TTT_PEER_FOLDER" in variables
    for empty in ("", " "):
        assert read_settings([], {**dict.fromkeys(variables, empty), "SPACE_ID": empty}) == Settings()
    assert read_settings(["--results", "", "--peer-folder", ""], {}) == Settings()


def test_the_help_names_every_option_and_variable(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--help"], {})
    text = " ".join(capsys.readouterr().out.split())
    for name in ("--host", "--port", "--bundle", "--initial-peer", "--peer-ends-with", "$TTT_RESULTS", "default: 7860"):
        assert name in text
    assert "one of auto, float32, bfloat16, float16, int8" in text


def test_a_home_folder_is_found() -> None:
    assert read_settings(["--results", "~/images"], {}).results == Path.home() / "images"


def test_the_folders_of_keys_and_of_the_program_are_never_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio serves everything below an allowed path: peers' private keys would be public."""
    monkeypatch.chdir(tmp_path)
    run, results = tmp_path / "served" / "runs", tmp_path / "results"
    assert str(results) in launch_options(Settings(), results)["allowed_paths"]
    for chosen, served in (
        (Settings(), tmp_path),
        (Settings(), tmp_path.parent),
        (Settings(runs=run), run),
        (Settings(runs=run), run.parent),
        (Settings(peer_folder=tmp_path / "served" / "me"), tmp_path / "served"),
    ):
        with pytest.raises(InvalidInput, match="choose another folder"):
            launch_options(chosen, results, served)


def test_the_first_model() -> None:
    offered = [source.key for source in sources(["/x/mine"])]
    assert Settings().first_model(["demo", "published"]) == "demo"
    assert Settings(bundles=("/x/mine",)).first_model(offered) == "mine"
    assert Settings(bundles=("/x/mine",), model="demo").first_model(offered) == "demo"
    with pytest.raises(BundleError, match="demo, published, mine"):
        Settings(bundles=("/x/mine",), model="nope").first_model(offered)


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [(["--model", "nope"], {}, "no model 'nope'"), ([], {"TTT_OWNER_PASSWORD": "short"}, "at least 8 characters")],
)
def test_an_error_of_the_app_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], variables: dict[str, str], message: str,
) -> None:  # fmt: skip
    import app

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        app.main(["--runs", str(tmp_path), "--port", "0", *options])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_a_port_in_use_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import app

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SystemExit) as stopped:
            app.main(["--runs", str(tmp_path), "--port", str(other.getsockname()[1])])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Error: ") and "port" in printed and "Traceback" not in printed
