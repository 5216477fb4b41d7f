"""Checks of the repository itself: front matter, pinned versions, language, and files that must not be in it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_BYTES = 15_000_000


def tracked_files() -> list[Path]:
    """Return the files that git tracks, or all files of the folder if it is not a git repository (a source archive)."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        files = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        files = [p for p in ROOT.rglob("*") if ".venv" not in p.parts and "__pycache__" not in p.parts]
    return [path for path in files if path.is_file()]


def front_matter() -> dict[str, object]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    content = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(content, dict)
    return content


def requirements(name: str) -> dict[str, str]:
    """Return package -> pinned version, without extras and markers."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].split(";")[0].strip()
        if line and not line.startswith("-"):
            package, _, version = line.partition("==")
            found[re.sub(r"\[.*\]", "", package).lower().replace("_", "-")] = version
    return found


def test_front_matter_of_the_space() -> None:
    space = front_matter()
    assert space["sdk"] == "gradio"
    assert space["sdk_version"] == requirements("requirements.txt")["gradio"]
    assert space["python_version"] == "3.11"
    assert (ROOT / str(space["app_file"])).is_file()
    assert space["license"] == "apache-2.0"
    assert space["hf_oauth"] is True
    assert re.fullmatch(r"\d+(h|m)", str(space["startup_duration_timeout"]))
    assert 0 < len(str(space["short_description"])) <= 60
    assert 0 < len(str(space["title"])) <= 60
    assert len(str(space["emoji"])) <= 2
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {space["colorFrom"], space["colorTo"]} <= colours
    assert "training-transformers-together/dalle-demo-v1" in space["models"]  # type: ignore[operator]
    assert "laion/laion_100m_vqgan_f8" in space["datasets"]  # type: ignore[operator]
    known = {
        "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "models",
        "datasets", "tags", "short_description", "license", "pinned", "hf_oauth", "hf_oauth_scopes",
        "startup_duration_timeout", "suggested_hardware",
    }  # fmt: skip
    assert set(space) <= known


def test_every_requirement_is_pinned_and_locked() -> None:
    constraints = requirements("constraints.txt")
    for name in ("requirements.txt", "requirements-dev.txt"):
        for package, version in requirements(name).items():
            assert version, f"{package} in {name} has no version"
            assert constraints.get(package) == version, f"{package}: {name} and constraints.txt differ"
    assert tuple(map(int, constraints["numpy"].split(".")[:2])) < (2, 4)
    linux_only = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "sys_platform" in line]
    assert {line.split("==")[0] for line in linux_only} == {"hivemind", "bitsandbytes"}


def test_installed_versions_are_the_pinned_ones() -> None:
    from importlib.metadata import version

    for package, pinned in requirements("requirements.txt").items():
        assert version(package) == pinned, package


def test_the_package_declares_what_it_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["project"]["license"] == "Apache-2.0"
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_no_large_file() -> None:
    for path in tracked_files():
        assert path.stat().st_size <= MAX_FILE_BYTES, path.relative_to(ROOT)


def test_no_path_of_a_developers_machine() -> None:
    """Absolute paths of homes and workspaces: they mean nothing to a reader, and tell more than they should."""
    pattern = re.compile(rb"(?<![\w.~-])/(?:work|home/\w+|Users/\w+|root/\w*|mnt/\w+)(?:/|\b)")
    allowed = {Path("tests/test_house.py")}
    for path in tracked_files():
        if path.relative_to(ROOT) in allowed or path.suffix in (".safetensors", ".png", ".jpg", ".webp", ".pt", ".npz"):
            continue
        found = pattern.search(path.read_bytes())
        assert not found, f"{path.relative_to(ROOT)}: {found[0]!r}"


def test_every_gate_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    makefile = (ROOT / "Makefile").read_text()
    for target in ("setup", "run", "test", "lint", "types", "check"):
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target
        if target in ("test", "lint", "types"):
            assert target in script.read_text()


def test_links_inside_the_repository_resolve() -> None:
    broken = []
    for page in [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
        (ROOT / "docs").glob("*.md")
    ):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|<img[^>]*src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            link = next(filter(None, target))
            if not link.startswith(("http://", "https://", "mailto:")) and not (page.parent / link).exists():
                broken.append(f"{page.name} links to {link}, which does not exist")
    assert not broken, "\n".join(broken)


def python_files() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py"]


def test_every_file_opens_with_what_it_owns() -> None:
    silent = []
    for path in python_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree) and path.parts[-2] != "tests":
            silent.append(str(path.relative_to(ROOT)))
    assert not silent, f"these files have no docstring that says what they own: {silent}"


def test_every_import_is_a_requirement() -> None:
    """A package that another one happens to bring today may be gone with its next release."""
    from importlib.metadata import packages_distributions

    distributions = packages_distributions()
    ours = {"app", "ttt", "calculator", "tests", "benchmarks", "examples"}
    unreachable = {"dalle_pytorch", "min_dalle", "reference_dalle"}  # references, in environments of their own
    runtime, development = requirements("requirements.txt"), requirements("requirements-dev.txt")
    missing = set()
    for path in python_files():
        inside = path.relative_to(ROOT).parts[0] in ("app.py", "ttt", "calculator")
        allowed = set(runtime) if inside else {*runtime, *development}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in {full.split(".")[0] for full in names} - ours - unreachable - set(sys.stdlib_module_names):
                packages = {one.lower().replace("_", "-") for one in distributions.get(name, [])}
                if not packages & allowed:
                    missing.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not missing, "\n".join(sorted(missing))


def test_the_project_is_installed_as_a_command() -> None:
    """Messages name `ttt convert` and its like."""
    from importlib.metadata import entry_points

    assert "ttt" in entry_points(group="console_scripts").names, "run `make setup`"


PHRASES = {
    # phrase -> what to write instead
    r"\b(is|are) told\b": "is reported, is shown",
    r"\btells\b": "shows, prints, reports",
    r"\bgoes on\b": "continues, resumes",
    r"\bwhoever\b": "a peer that, any user",
    r"\banew\b": "again, from scratch",
    r"\bthat (is|are) none\b": "invalid",
    r"\bKnows (no|neither|nothing)\b": "Independent of",
    r"\b[Nn]obody\b": "no peer, no user",
    r"\bpaint(s|er|ed|ing)\b": "generate, sample, draw",
    r"\bpictures?\b": "image",
}
"""Phrases that made readers stumble; the glossary of CONTRIBUTING.md has one word for one thing."""
QUOTED = {
    # files that quote such a word: captions that users write, and names of earlier versions that are still read
    "tests/test_house.py", "ttt/data/shapes.py", "ttt/data/world/captions.py", "ttt/swarm/config/run_config.py",
    "ttt/swarm/history/export.py", "ttt/swarm/history/schema.py", "tests/swarm/history/test_history.py",
    "tests/swarm/config/test_run_file.py", "tests/e2e/test_space.py", "tests/test_rerank.py",
    "tests/swarm/dht/test_validation.py",
}  # fmt: skip


def test_sentences_use_the_words_of_the_glossary() -> None:
    found = []
    for path in tracked_files():
        name = str(path.relative_to(ROOT))
        if path.suffix in (".py", ".md", ".css", ".js", ".ipynb") and name not in QUOTED:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for phrase, better in PHRASES.items():
                    if match := re.search(phrase, line):
                        found.append(f"{name}:{number}: {match[0]!r}; write: {better}")
    assert not found, "\n".join(found)


def test_the_docs_give_the_sizes_of_the_models() -> None:
    from ttt.config import DEMO, DEMO_VQGAN, PAPER, PAPER_VQGAN

    text = (ROOT / "docs" / "model.md").read_text()
    for dalle, vqgan in ((PAPER, PAPER_VQGAN), (DEMO, DEMO_VQGAN)):
        side = dalle.image_fmap_size
        assert f"{dalle.dim}, {dalle.depth}, {dalle.heads} of {dalle.dim_head}" in text
        assert f"{dalle.text_seq_len} of {dalle.num_text_tokens:,}" in text
        picture = f"{side} x {side} codes of {dalle.num_image_tokens}, {vqgan.resolution} x {vqgan.resolution} pixels"
        assert picture in text
