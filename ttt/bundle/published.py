"""Names and addresses of the files published in 2021, and how to fetch them. Nothing is read or converted here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ttt.bundle.hub_files import Hub, HubFileMissing
from ttt.bundle.spec import VERSION

PUBLISHED = "training-transformers-together/dalle-demo-v1"
"""The model of the 2021 run. Its repository holds the transformer; the other parts are published elsewhere."""

DALLE_FILE = "model_state.pt"
TOKENIZER_REPO, TOKENIZER_FILE = "t5-small", "tokenizer.json"
VQGAN_FILES = ("last.ckpt", "model.yaml")
VQGAN_VARIABLE = "TTT_VQGAN"
"""Environment variable: a Hub repository or a folder with `VQGAN_FILES`, used instead of `VQGAN_URLS`."""
VQGAN_URLS = {
    "last.ckpt": "https://heibox.uni-heidelberg.de/f/34a747d5765840b5a99d/?dl=1",
    "model.yaml": "https://heibox.uni-heidelberg.de/f/b24d14998a8d4f19a34f/?dl=1",
}
"""Addresses at which the authors of taming-transformers publish their Gumbel f8-8192 model, which is not on the Hub."""


@dataclass(frozen=True)
class PublishedFiles:
    """The parts of the published model on this machine."""

    dalle: Path
    tokenizer: Path
    vqgan: Path
    vqgan_config: Path

    @property
    def key(self) -> str:
        """Hash that changes with every part: the paths in the Hub's cache contain the commits."""
        parts = [str(VERSION)]
        for path in (self.dalle, self.tokenizer, self.vqgan, self.vqgan_config):
            parts.append(f"{path.parent.name}/{path.name}/{path.stat().st_size}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def fetch_published_files(hub: Hub, repo_id: str = PUBLISHED, revision: str | None = None) -> PublishedFiles:
    """Download the parts of the published model, or find them in the cache."""
    dalle = hub.file(repo_id, DALLE_FILE, revision)
    tokenizer = hub.file(TOKENIZER_REPO, TOKENIZER_FILE)
    weights, config = _vqgan_files(hub, repo_id, commit_of(dalle))
    return PublishedFiles(dalle=dalle, tokenizer=tokenizer, vqgan=weights, vqgan_config=config)


def commit_of(path: Path) -> str:
    """The commit of a file in the Hub's cache: `.../snapshots/<commit>/<name>`."""
    return path.parent.name


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
    except HubFileMissing:
        return _download(hub, weights), _download(hub, config)


def _download(hub: Hub, name: str) -> Path:
    url = VQGAN_URLS[name]
    advice = f"Download {url} as {name}, and set {VQGAN_VARIABLE} to its folder (or to a Hub repository that has it)"
    return hub.download(url, hub.own_folder / "vqgan_gumbel_f8" / name, advice)
