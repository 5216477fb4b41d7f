"""Finds the shards of a data set that is named by a Hub id, a folder, a pattern or addresses; reads no shard.

For a Hub repository, `datasets` determines the files of the training split, pinned to a commit. Their bytes are then
read by ranges (`ttt.data.files`), as from every other source.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from ttt.bundle import HUB_ID
from ttt.data.files import GONE, FileMissing, FileUnreachable, HttpClient, is_url
from ttt.data.manifest import MANIFEST, MAX_MANIFEST_BYTES, DatasetManifest
from ttt.errors import DataError, InvalidInput
from ttt.text import first_line

ALLOWED = (
    "allowed: a Hub data set (owner/name), a folder or pattern of .parquet files, "
    f"addresses of .parquet files, or the address of a {MANIFEST} or of a .txt with one address per line"
)
ShardSource = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class ShardList:
    """The shards of a data set in a fixed order."""

    locations: tuple[str, ...]
    """Paths or addresses."""
    names: tuple[str, ...]
    """Names without folder, host and commit: a data set that has moved is still the same."""
    manifest: DatasetManifest | None = None
    revision: str | None = None
    """Commit of a Hub data set."""

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]


def find_shards(
    source: ShardSource, http: HttpClient, token: str | None = None, revision: str | None = None
) -> ShardList:
    """All shards of the training split. Raises InvalidInput or DataError.

    token: for the Hub; by default the one from `hf auth login` or HF_TOKEN. revision: of a Hub data set.
    """
    try:
        if not isinstance(source, (str, os.PathLike)):
            return _listed([str(item) for item in source])
        name = os.fspath(source)
        if is_url(name):
            return _at_address(name, http)
        path = Path(name).expanduser()
        if name and path.is_dir():
            return _in_folder(path)
        if glob.has_magic(name) or path.is_file():
            return _matching(str(path))
        if HUB_ID.fullmatch(name) and isinstance(source, str):
            return _on_hub(name, http, token, revision)
    except FileMissing as error:
        raise DataError(f"data set {source!s:.200}: {error}") from None
    except FileUnreachable as error:
        raise DataError(f"data set {source!s:.200}: {error}; check the connection and try again") from None
    raise InvalidInput(f"data set {name[:200]!r} was not found; {ALLOWED}")


def _listed(items: list[str]) -> ShardList:
    if not items:
        raise InvalidInput(f"the list of shards is empty; {ALLOWED}")
    if all(is_url(item) for item in items):
        return ShardList(tuple(items), tuple(urlsplit(item).path for item in items))
    if any(is_url(item) for item in items):
        raise InvalidInput("the list of shards mixes files and addresses; give only one kind")
    paths = [Path(item).expanduser() for item in items]
    return ShardList(tuple(map(str, paths)), tuple(_relative(paths)))


def _in_folder(folder: Path) -> ShardList:
    paths = sorted(
        p for p in folder.rglob("*.parquet") if not any(part[0] == "." for part in p.relative_to(folder).parts)
    )
    if not paths:
        raise DataError(f"{folder} has no .parquet files; create them with `ttt encode IMAGES {folder}`")
    names = [p.relative_to(folder).as_posix() for p in paths]
    path = folder / MANIFEST
    manifest = DatasetManifest.from_json(path.read_bytes(), str(path)) if path.is_file() else None
    return ShardList(tuple(map(str, paths)), tuple(names), manifest)


def _matching(pattern: str) -> ShardList:
    paths = [Path(p) for p in sorted(glob.glob(pattern, recursive=True)) if Path(p).is_file()]
    if not paths:
        raise DataError(f"no file matches {pattern}")
    return ShardList(tuple(map(str, paths)), tuple(_relative(paths)))


def _relative(paths: list[Path]) -> list[str]:
    base = Path(os.path.commonpath([p.resolve().parent for p in paths]))
    return [p.resolve().relative_to(base).as_posix() for p in paths]


def _at_address(url: str, http: HttpClient) -> ShardList:
    path = urlsplit(url).path
    if path.endswith(".parquet"):
        return _listed([url])
    if path.endswith("/"):
        url, path = urljoin(url, MANIFEST), path + MANIFEST
    try:
        content = http.fetch(url, MAX_MANIFEST_BYTES)
    except ValueError as error:
        raise DataError(str(error)) from None
    if path.endswith(".json"):
        manifest = DatasetManifest.from_json(content, url)
        if not manifest.shards:
            raise DataError(f"{url} lists no shards")
        return ShardList(tuple(urljoin(url, quote(name)) for name in manifest.shards), manifest.shards, manifest)
    lines = [line.strip() for line in content.decode("utf-8-sig", "replace").splitlines()]
    shards = [urljoin(url, line) for line in lines if line and not line.startswith("#")]
    foreign = [shard for shard in shards if not is_url(shard) or not urlsplit(shard).path.endswith(".parquet")]
    if foreign or not shards:
        problem = f"has the line {foreign[0][:100]!r}" if foreign else "is empty"
        raise DataError(f"{url} {problem}; it must list addresses of .parquet files, one per line")
    return _listed(shards)


def _on_hub(repo_id: str, http: HttpClient, token: str | None, revision: str | None) -> ShardList:
    import datasets
    from huggingface_hub import get_token, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if datasets.config.HF_HUB_OFFLINE:
        raise DataError(f"{repo_id} is on the Hub, and downloads are disabled (HF_HUB_OFFLINE)")
    token = token or get_token()
    files: list[str] = []
    advice = "it is not on the Hub, or is private: check the name, or set HF_TOKEN"

    def attempt() -> bool:
        try:
            splits = datasets.load_dataset_builder(repo_id, revision=revision, token=token).config.data_files or {}
        except datasets.exceptions.DatasetNotFoundError:
            raise FileMissing(advice) from None
        except datasets.exceptions.DataFilesNotFoundError as error:
            raise FileMissing(f"it has no data files ({first_line(error)})") from None
        except HfHubHTTPError as error:
            if error.response.status_code in GONE:
                raise FileMissing(advice) from None
            raise
        files[:] = splits.get("train") or next(iter(splits.values()), [])
        return True

    http.retrying(repo_id, attempt)
    prefix = f"hf://datasets/{repo_id}@"
    paths = [file.removeprefix(prefix).partition("/") for file in files if file.endswith(".parquet")]
    if not paths or any(file[: len(prefix)] != prefix for file in files):
        raise DataError(f"{repo_id} holds no Parquet shards; a Hub data set must consist of .parquet files")
    commit = paths[0][0]

    def address(path: str) -> str:
        endpoint = datasets.config.HF_ENDPOINT
        return hf_hub_url(repo_id, path, repo_type="dataset", revision=commit, endpoint=endpoint)

    if token:
        http.authorize(token)
    names = tuple(path for _, _, path in paths)
    return ShardList(tuple(map(address, names)), names, _hub_manifest(address(MANIFEST), http), commit)


def _hub_manifest(url: str, http: HttpClient) -> DatasetManifest | None:
    try:
        return DatasetManifest.from_json(http.fetch(url, MAX_MANIFEST_BYTES), url)
    except FileMissing:
        return None
    except ValueError as error:
        raise DataError(str(error)) from None
