"""The run file: it is read as it was written, and mistakes are reported with line and field."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ttt.config import DEMO
from ttt.errors import InvalidInput
from ttt.swarm.config.run_config import RunSettings, dalle_config
from ttt.swarm.config.run_file import check_name, new_settings, read_run_file, render, write_run_file


def test_a_run_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    settings = RunSettings.model_validate(
        {
            "run": {"name": "cats", "title": 'Cats "and" dogs — ñ'},
            "model": {"dalle": {"dim": 256, "depth": 17}},
            "network": {"announce": ["/ip4/203.0.113.5/tcp/8080", "/dns4/example.org/tcp/8080"]},
            "averaging": {"delayed": True, "matchmaking_time": 2.5, "request_timeout": 1.0},
        }
    )
    path = tmp_path / "deep" / "run.toml"
    write_run_file(path, settings)
    assert read_run_file(path) == settings
    with pytest.raises(InvalidInput, match="exists"):
        write_run_file(path, settings)


def test_a_run_file_saved_on_windows_is_read(tmp_path: Path) -> None:
    """With a byte-order mark and the line ends of Windows."""
    (tmp_path / "run.toml").write_bytes(b'\xef\xbb\xbf[run]\r\nname = "cats"\r\n')
    assert read_run_file(tmp_path / "run.toml").run.name == "cats"


def test_sample_images_may_still_be_called_pictures(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[pictures]\nkeep = 7\n")
    assert read_run_file(tmp_path / "run.toml").sample_images.keep == 7
    (tmp_path / "run.toml").write_text("[pictures]\nkeep = 1\n")
    with pytest.raises(InvalidInput, match=r"line 2: \[pictures\] keep"):
        read_run_file(tmp_path / "run.toml")


def test_every_setting_has_its_default_and_description() -> None:
    text = render(RunSettings())
    values = tomllib.loads(text)
    defaults = RunSettings().model_dump()
    assert values == defaults
    for name in RunSettings.model_fields:
        for key, field in type(getattr(RunSettings(), name)).model_fields.items():
            assert field.description, f"[{name}] {key} has no description"
            assert f"# {field.description}\n{key} = " in text


@pytest.mark.parametrize(
    ("section", "line", "parts"),
    [
        ("network", 'port = "x"', ["line 3", "[network] port", "valid integer", "'x'"]),
        ("averaging", "state_evry = 5", ["line 3", "[averaging] state_evry", "unknown", "state_every"]),
        ("batch", "global_batch = 0", ["line 3", "[batch] global_batch", "greater than or equal to 1", "got 0"]),
        ("averaging", "request_timeout = 50.0", ["line 2", "[averaging]", "less than matchmaking_time"]),
        ("run", 'name = "No Spaces"', ["line 3", "[run] name", "No Spaces"]),
        ("model", "dalle = { dimm = 3 }", ["line 2", "[model]", "no field dimm", "image_fmap_size"]),
        ("optimizer", "learning_rate = nan", ["line 3", "learning_rate", "finite"]),
        ("optimizer", "total_steps = 10", ["line 2", "[optimizer]", "warmup_steps must be less than total_steps"]),
        ("join", 'mode = "invited"', ["line 3", "[join] mode", "'open'"]),
        ("averaging", "group_size = 1", ["line 3", "[averaging] group_size", "at least 2", "0 for all, got 1"]),
        ("network", 'host = "::"', ["line 3", "[network] host", "IPv4 address", "0.0.0.0", "got '::'"]),
        ("network", 'host = "example.org"', ["[network] host", "IPv4 address"]),
        ("checkpoints", 'hub_repo = "cats"', ["line 3", "[checkpoints] hub_repo", "owner/name", "got 'cats'"]),
        ("checkpoints", 'hub_repo = "a/b/c"', ["[checkpoints] hub_repo", "owner/name"]),
        ("checkpoints", 'hub_repo = "/cats"', ["[checkpoints] hub_repo", "owner/name"]),
        ("swarm", "x = 1", ["line 2", "swarm", "unknown", "averaging"]),
    ],
)
def test_mistakes_are_reported_with_line_and_field(tmp_path: Path, section: str, line: str, parts: list[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"# a run\n[{section}]\n{line}\n")
    with pytest.raises(InvalidInput) as error:
        read_run_file(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a = [", "not valid TOML"), ("a = " + "[" * 30_000, "not valid TOML"), ("x" * 70_000, "not a run file")],
)
def test_a_file_that_is_not_a_run_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=message):
        read_run_file(path)
    with pytest.raises(InvalidInput, match="run new"):
        read_run_file(tmp_path / "other.toml")


def test_a_run_file_may_be_a_url(tmp_path: Path) -> None:
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    write_run_file(tmp_path / "run.toml", new_settings("of-a-friend"))
    (tmp_path / "large").write_bytes(b"#" * 100_000)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert read_run_file(f"{url}/run.toml").run.name == "of-a-friend"
        with pytest.raises(InvalidInput, match="404"):
            read_run_file(f"{url}/missing.toml")
        with pytest.raises(InvalidInput, match="larger"):
            read_run_file(f"{url}/large")
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_run_file("http://a:b:c/run.toml")
        server.shutdown()


@pytest.mark.parametrize(("given", "name"), [("My Run!", "my-run"), ("run", "run"), ("***", "my-run")])
def test_an_invalid_name_becomes_a_valid_one(given: str, name: str) -> None:
    assert new_settings(given).run.name == name


def test_valid_group_sizes_hosts_and_repositories_are_accepted() -> None:
    for section, values in (
        ("averaging", {"group_size": 2}), ("network", {"host": "127.0.0.1"}), ("checkpoints", {"hub_repo": "anna/cats"})
    ):  # fmt: skip
        RunSettings.model_validate({section: values})


def test_an_invalid_name_is_refused_with_a_valid_proposal() -> None:
    for name in ("cats", "7-cats", "a" * 63):
        assert check_name(name) == name == new_settings(name).run.name
    for wrong, proposed in (
        ("Ünïcode Name!!", "unicode-name"),
        ("a" * 64, "a" * 63),
        ("日本", "my-run"),
        (" ", "my-run"),
    ):
        with pytest.raises(InvalidInput, match=f"--name .*lower-case letters.*--name {proposed}$"):
            check_name(wrong)


def test_a_run_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run.toml", tmp_path / "file" / "deep" / "run.toml"):
        with pytest.raises(InvalidInput, match=r"cannot be written: .*is a file, or inside one; choose a folder"):
            write_run_file(path)
    with pytest.raises(InvalidInput, match=r"is a folder; .*run\.toml"):
        write_run_file(tmp_path)
    with pytest.raises(InvalidInput, match=r"cannot be written \(.*\); choose"):
        write_run_file(tmp_path / ("x" * 300))


def test_a_run_changes_the_dimensions_that_its_bundle_leaves_free() -> None:
    bigger = RunSettings.model_validate({"model": {"dalle": {"dim": 256}}})
    assert dalle_config(bigger, DEMO).dim == 256
    assert dalle_config(bigger, DEMO).depth == DEMO.depth
    other_codes = RunSettings.model_validate({"model": {"dalle": {"image_fmap_size": 32}}})
    with pytest.raises(InvalidInput, match="image_fmap_size must be 8"):
        dalle_config(other_codes, DEMO)
    for values, message in (({"depth": 10**9}, "depth must be"), ({"attention_cycle": 5}, "attention_cycle must be")):
        hostile = RunSettings.model_validate({"model": {"dalle": values}})
        with pytest.raises(InvalidInput, match=rf"^\[model\] dalle: {message}"):
            dalle_config(hostile, DEMO)
    with pytest.raises(ValueError, match="from_bundle must be false"):
        RunSettings.model_validate({"model": {"dalle": {"dim": 256}, "from_bundle": True}})
