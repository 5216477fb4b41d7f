"""The command line: the same results as the Python API, errors of one line, and a quick start."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.support.tiny import TINY_DALLE, tiny_dalle, tiny_vqgan, write_published_files, write_tiny_bundle
from ttt import SamplingParams, TextToImage
from ttt.__main__ import app
from ttt.bundle import Bundle, read_bundle
from ttt.results import read_settings

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "gradio",
    "numpy",
    "PIL",
    "transformers",
    "open_clip",
    "huggingface_hub",
    "datasets",
    "hivemind",
    "rich",
)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=200)


def test_generate_saves_what_the_api_returns(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = run("generate", "a red circle", "--candidates", 6, "--keep", 2, "--seed", 3, "--top-k", "off",
                 "--model", bundle.root, "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    params = SamplingParams(candidates=6, keep=2, seed=3, top_k=None)
    best = TextToImage.from_pretrained(bundle.root)("a red circle", params)
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 2
    for line, ranked in zip(lines, best, strict=True):
        path = Path(line.split("  ")[0])
        assert path.parent == out
        assert f"CLIP score {ranked.score:.4f}  candidate {ranked.candidate}" in line
        assert Image.open(path).convert("RGB").tobytes() == ranked.image.convert("RGB").tobytes()
        settings = read_settings(path)
        assert settings["prompt"] == "a red circle"
        assert settings["params"] == params.to_dict()
    record = json.loads((out / "results.json").read_text())
    assert len(record["ranking"]) == 6


def test_few_candidates_need_no_keep(bundle: Bundle, tmp_path: Path) -> None:
    result = run("generate", "a star", "--candidates", 2, "--model", bundle.root, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a star", "--candidates", "0"], "candidates must be a whole number from 1 to 1024"),
        (["a star", "--candidates", "1000000"], "candidates must be a whole number from 1 to 1024"),
        (["a star", "--candidates", "2", "--keep", "3"], "keep must be from 1 to the number of candidates"),
        (["a star", "--top-p", "nan"], "top_p must be a number above 0 and up to 1"),
        (["a star", "--top-k", "many"], "'many' is neither a number nor 'off'"),
        (["a star", "--temperature", "0"], "temperature must be a number above 0"),
        (["a star", "--seed", "-1"], "seed must be a whole number from 0"),
        (["", "--seed", "1"], "the prompt is empty"),
        (["word " * 2000], "the prompt has 9,999 characters; at most"),
        (["a star", "--model", "nothing"], "neither 'demo', nor a folder that exists, nor a Hub id"),
        (["a star", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["a star", "--dtype", "float3"], "dtype 'float3' is unknown"),
        (["a star", "--colour", "red"], "No such option"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle: Bundle, tmp_path: Path, arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", str(bundle.root)]
    result = run("generate", *arguments, *model, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_broken_bundle(bundle: Bundle, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    os.truncate(tmp_path / "bundle" / "vqgan.safetensors", 100)
    result = run("generate", "a star", "--model", tmp_path / "bundle", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "vqgan.safetensors is broken or only partly downloaded" in result.stderr


def test_a_folder_that_cannot_be_written(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = run("generate", "a star", "--candidates", 1, "--model", bundle.root, "--out", tmp_path / "file")
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")


def test_interrupted(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(TextToImage, "stream", interrupt)
    result = run("generate", "a star", "--model", bundle.root)
    assert result.exit_code == 130
    assert "Stopped." in result.stderr


def test_convert(tmp_path: Path) -> None:
    files = write_published_files(tmp_path / "files", tiny_dalle(), tiny_vqgan())
    (files / "dalle.json").write_text(json.dumps(TINY_DALLE.to_dict()))
    arguments = ["convert", "--dalle", files / "model_state.pt", "--dalle-config", files / "dalle.json",
                 "--vqgan", files / "last.ckpt", "--vqgan-config", files / "model.yaml",
                 "--tokenizer", files / "tokenizer.json"]  # fmt: skip
    result = run(*arguments, "--out", tmp_path / "mine")
    assert result.exit_code == 0, result.stderr
    bundle = read_bundle(tmp_path / "mine")
    assert (bundle.name, bundle.pad_id, bundle.clip.model) == ("mine", 1, "ViT-B-32")

    again = run(*arguments, "--out", tmp_path / "mine")
    assert again.exit_code == 2
    assert "exists and is not empty" in again.stderr
    assert run(*arguments, "--out", tmp_path / "mine", "--overwrite", "--name", "new").exit_code == 0
    assert read_bundle(tmp_path / "mine").name == "new"
    for wrong in (["--clip", "ViT-B-32"], ["--dtype", "int8"], ["--dalle-config", files / "none.json"]):
        result = run(*arguments, *wrong, "--out", tmp_path / "other")
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")


def test_convert_needs_both_files_of_the_vqgan(tmp_path: Path) -> None:
    result = run("convert", "--vqgan", tmp_path / "last.ckpt", "--out", tmp_path / "mine")
    assert result.exit_code == 2
    assert "--vqgan and --vqgan-config belong together" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["convert", "--help"], ["--version"]])
def test_help_starts_at_once(arguments: list[str]) -> None:
    """Seconds of CPU, because other work on the machine must not fail the test; and nothing heavy is imported."""
    code = (
        "import sys, runpy; sys.argv = ['ttt', *sys.argv[1:]]\n"
        "try: runpy.run_module('ttt', run_name='__main__')\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.0


def test_help_lists_only_what_works() -> None:
    text = run("--help").stdout
    for command in ("generate", "convert", "encode", "train"):
        assert f"  {command} " in text
