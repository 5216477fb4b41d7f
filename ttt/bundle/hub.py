"""Names of models -> bundles: the demo, a folder, a Hub repository. Knows the cache and the network, no tensors."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.bundle.files import read_json
from ttt.bundle.hub_files import Hub, NotThere
from ttt.bundle.spec import CONFIG, DEMO_FOLDER, VERSION, Bundle, config_files, is_bundle_config, read_bundle
from ttt.errors import BundleError

if TYPE_CHECKING:
    from ttt.config import DalleConfig

PUBLISHED = "training-transformers-together/dalle-demo-v1"
"""The model of the 2021 run. Its repository holds the transformer; the other parts are published elsewhere."""

DALLE_FILE = "model_state.pt"
TOKENIZER_REPO, TOKENIZER_FILE = "t5-small", "tokenizer.json"
VQGAN_FILES = ("last.ckpt", "model.yaml")
VQGAN_VARIABLE = "TTT_VQGAN"
"""Environment variable: a Hub repository or a folder with `VQGAN_FILES`, to be used instead of `VQGAN_URLS`."""
VQGAN_URLS = {
    "last.ckpt": "https://heibox.uni-heidelberg.de/f/34a747d5765840b5a99d/?dl=1",
    "model.yaml": "https://heibox.uni-heidelberg.de/f/b24d14998a8d4f19a34f/?dl=1",
}
"""Where taming-transformers' authors publish their Gumbel f8-8192 model, which is on no repository of theirs."""


def find_bundle(
    name_or_path: str | os.PathLike[str],
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> Bundle:
    """`"demo"`, a bundle folder, or a Hub id such as `owner/name`."""
    if str(name_or_path) == "demo":
        return read_bundle(DEMO_FOLDER)
    path = Path(name_or_path).expanduser()
    if str(name_or_path) and path.is_dir():
        return read_bundle(path)
    if isinstance(name_or_path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path) and name_or_path[0] != ".":
        return fetch_bundle(name_or_path, revision, cache_dir, local_files_only, token)
    raise BundleError(
        f"model {str(name_or_path)!r} is neither 'demo', nor a folder that exists, nor a Hub id such as '{PUBLISHED}'"
    )


def fetch_bundle(
    repo_id: str,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> Bundle:
    """A Hub repository as a bundle in the local cache: either one that holds a bundle, or the published model.

    `revision` is a branch, tag or commit. The cache alone is used with `local_files_only` or `HF_HUB_OFFLINE=1`.
    """
    hub = Hub(cache_dir=cache_dir, local_files_only=local_files_only, token=token)
    try:
        config = hub.file(repo_id, CONFIG, revision)
    except NotThere as missing:
        try:
            return _fetch_published(hub.cached_only() if missing.unreachable else hub, repo_id, revision)
        except NotThere as second:
            raise (missing if missing.unreachable else second) from None
    content = read_json(config)
    if not is_bundle_config(content):
        return _fetch_published(hub, repo_id, revision)
    return _fetch_files(hub, repo_id, config, config_files(content, config))


@dataclass(frozen=True)
class PublishedFiles:
    """The parts of the published model on this machine."""

    dalle: Path
    tokenizer: Path
    vqgan: Path
    vqgan_config: Path

    @property
    def key(self) -> str:
        """Changes with every part: the paths in the cache contain the commits (or the content's place)."""
        parts = [str(VERSION)]
        for path in (self.dalle, self.tokenizer, self.vqgan, self.vqgan_config):
            parts.append(f"{path.parent.name}/{path.name}/{path.stat().st_size}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def fetch_published_files(hub: Hub, repo_id: str = PUBLISHED, revision: str | None = None) -> PublishedFiles:
    """Download (or find in the cache) the parts of the published model."""
    dalle = hub.file(repo_id, DALLE_FILE, revision)
    tokenizer = hub.file(TOKENIZER_REPO, TOKENIZER_FILE)
    weights, config = _vqgan_files(hub, repo_id, _commit(dalle))
    return PublishedFiles(dalle=dalle, tokenizer=tokenizer, vqgan=weights, vqgan_config=config)


def _fetch_files(hub: Hub, repo_id: str, config: Path, names: list[str]) -> Bundle:
    commit = _commit(config)
    for name in names:
        hub.file(repo_id, name, commit)
    try:
        return read_bundle(config.parent)
    except BundleError:
        if hub.is_offline:
            raise
    # A file in the cache is damaged (a full disk, a machine that went down): once more, all of it.
    for name in (CONFIG, *names):
        hub.file(repo_id, name, commit, again=True)
    return read_bundle(config.parent)


def _fetch_published(hub: Hub, repo_id: str, revision: str | None, dalle_config: DalleConfig | None = None) -> Bundle:
    files = fetch_published_files(hub, repo_id, revision)
    target = hub.own_folder / f"{repo_id.replace('/', '--')}-{files.key}"
    if target.is_dir():
        return read_bundle(target)
    from ttt.bundle.convert import convert
    from ttt.config import PAPER

    return convert(
        target,
        name=repo_id,
        dalle=files.dalle,
        dalle_config=dalle_config or PAPER,
        tokenizer=files.tokenizer,
        vqgan=files.vqgan,
        vqgan_config=files.vqgan_config,
    )


def _vqgan_files(hub: Hub, repo_id: str, commit: str) -> tuple[Path, Path]:
    """Weights and configuration: from `TTT_VQGAN`, else beside the transformer, else from taming's authors."""
    chosen = os.environ.get(VQGAN_VARIABLE)
    weights, config = VQGAN_FILES
    if chosen and Path(chosen).is_dir():
        return Path(chosen) / weights, Path(chosen) / config
    if chosen:
        return hub.file(chosen, weights), hub.file(chosen, config)
    try:
        return hub.file(repo_id, weights, commit), hub.file(repo_id, config, commit)
    except NotThere:
        return _download(hub, weights), _download(hub, config)


def _download(hub: Hub, name: str) -> Path:
    url = VQGAN_URLS[name]
    advice = f"Download {url} as {name}, and set {VQGAN_VARIABLE} to its folder (or to a Hub repository that has it)"
    return hub.download(url, hub.own_folder / "vqgan_gumbel_f8" / name, advice)


def _commit(path: Path) -> str:
    """The commit of a file in the Hub's cache: `.../snapshots/<commit>/<name>`."""
    return path.parent.name
