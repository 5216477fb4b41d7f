"""Command line and environment of the server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ttt.errors import BundleError
from ttt.ui import settings
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
def test_a_wrong_port_is_told(wrong: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        read_settings([f"--port={wrong}"], {})
    assert "from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "env"), [(["--dtype", "int4"], {}), ([], {"TTT_DTYPE": "int4"})])
def test_a_wrong_precision_is_told(line: list[str], env: dict[str, str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        read_settings(line, env)
    assert "must be one of auto, float32, bfloat16, float16, int8" in capsys.readouterr().err


def test_the_precisions_are_those_of_painting() -> None:
    from ttt import hardware as device

    assert ("auto", *device.DTYPES) == settings.DTYPES
    assert read_settings(["--dtype", "float32"], {"TTT_DTYPE": "int8"}).dtype == "float32"
    assert read_settings([], {"TTT_DTYPE": "int8"}).dtype == "int8"


def test_the_first_model() -> None:
    offered = [source.key for source in sources(["/x/mine"])]
    assert Settings().first_model(["demo", "published"]) == "demo"
    assert Settings(bundles=("/x/mine",)).first_model(offered) == "mine"
    assert Settings(bundles=("/x/mine",), model="demo").first_model(offered) == "demo"
    with pytest.raises(BundleError, match="demo, published, mine"):
        Settings(bundles=("/x/mine",), model="nope").first_model(offered)


@pytest.mark.parametrize(
    ("options", "variables", "told"),
    [(["--model", "nope"], {}, "no model 'nope'"), ([], {"TTT_OWNER_PASSWORD": "short"}, "at least 8 characters")],
)
def test_the_app_tells_what_is_wrong_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], variables: dict[str, str], told: str,
) -> None:  # fmt: skip
    import app

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        app.main(["--runs", str(tmp_path), "--port", "0", *options])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said


def test_the_app_tells_that_its_port_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import app

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SystemExit) as stopped:
            app.main(["--runs", str(tmp_path), "--port", str(other.getsockname()[1])])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and "port" in said and "Traceback" not in said
