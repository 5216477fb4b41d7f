"""Finds a bundle by its name: the demo, a folder, or a Hub repository that is downloaded (and converted) once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.bundle.files import read_json
from ttt.bundle.hub_files import HUB_ID, Hub, HubFileMissing
from ttt.bundle.published import PUBLISHED, commit_of, fetch_published_files
from ttt.bundle.spec import CONFIG, DEMO_FOLDER, Bundle, config_files, is_bundle_config, read_bundle
from ttt.errors import BundleError, InvalidInput

if TYPE_CHECKING:
    from ttt.config import DalleConfig


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
    if isinstance(name_or_path, str) and HUB_ID.fullmatch(name_or_path):
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
    """A Hub repository as a bundle in the local cache: the bundle that it holds, or the published model converted.

    `revision` is a branch, tag or commit. With `local_files_only` or `HF_HUB_OFFLINE=1` only the cache is used.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise InvalidInput(f"a Hub id looks like 'owner/name', got {repo_id!r}")
    hub = Hub(cache_dir=cache_dir, local_files_only=local_files_only, token=token)
    try:
        config = hub.file(repo_id, CONFIG, revision)
    except HubFileMissing as missing:
        try:
            return _fetch_published(hub.cached_only() if missing.unreachable else hub, repo_id, revision)
        except HubFileMissing as second:
            raise (missing if missing.unreachable else second) from None
    content = read_json(config)
    if not is_bundle_config(content):
        return _fetch_published(hub, repo_id, revision)
    return _fetch_files(hub, repo_id, config, config_files(content, config))


def _fetch_files(hub: Hub, repo_id: str, config: Path, names: list[str]) -> Bundle:
    commit = commit_of(config)
    for name in names:
        hub.file(repo_id, name, commit)
    try:
        return read_bundle(config.parent)
    except BundleError:
        if hub.is_offline:
            raise
    # A file in the cache is damaged (after a full disk or a power cut): download all of them once more.
    for name in (CONFIG, *names):
        hub.file(repo_id, name, commit, again=True)
    return read_bundle(config.parent)


def _fetch_published(hub: Hub, repo_id: str, revision: str | None, dalle_config: DalleConfig | None = None) -> Bundle:
    files = fetch_published_files(hub, repo_id, revision)
    target = hub.own_folder / f"{repo_id.replace('/', '--')}-{files.key}"
    if target.is_dir():
        return read_bundle(target)
    from ttt.bundle.convert import convert  # torch is needed only for a conversion
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
