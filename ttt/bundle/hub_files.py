"""Single files of the Hub, through its cache; every failure says what to do. Knows no bundles and no models."""

from __future__ import annotations

import errno
import os
import re
import shutil
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from ttt.errors import BundleError, InvalidInput

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class NotThere(BundleError):
    """A file that a repository lacks, or that the cache lacks while the Hub is out of reach."""

    def __init__(self, message: str, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


@dataclass(frozen=True)
class Hub:
    """Single files of the Hub, through its cache; every failure is a BundleError that says what to do."""

    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | None = None

    def file(self, repo_id: str, name: str, revision: str | None = None, again: bool = False) -> Path:
        """Path of the file in the cache; `again` downloads it even where the cache has it."""
        from huggingface_hub import hf_hub_download

        if not _REPO_ID.fullmatch(repo_id):
            raise InvalidInput(f"a Hub id looks like 'owner/name', got {repo_id!r}")
        try:
            path = hf_hub_download(
                repo_id,
                name,
                revision=revision,
                cache_dir=None if self.cache_dir is None else Path(self.cache_dir),
                local_files_only=self.local_files_only,
                token=self.token,
                force_download=again,
            )
        except (OSError, ValueError, RuntimeError, _network_error()) as error:
            raise _explained(error, repo_id, name, revision, self.is_offline) from error
        return Path(path)

    def download(self, url: str, path: Path, advice: str) -> Path:
        """A file that is not on the Hub, complete at `path` or not at all; `advice` ends every error."""
        if path.is_file():
            return path
        if self.is_offline:
            raise NotThere(f"{path} is not there, and downloads are switched off. {advice}", unreachable=True)
        partial = path.with_name(f".{path.name}-{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(url, timeout=30) as answer, partial.open("wb") as file:
                shutil.copyfileobj(answer, file)
                expected = answer.headers.get("Content-Length")
            if expected is not None and int(expected) != partial.stat().st_size:
                raise BundleError(f"the download of {url} was cut off; run the same command again. Or: {advice}")
            partial.replace(path)
        except (OSError, HTTPException) as error:
            raise BundleError(f"{url} could not be downloaded ({_cause(error)}). {advice}") from error
        finally:
            partial.unlink(missing_ok=True)
        return path

    def cached_only(self) -> Hub:
        return Hub(cache_dir=self.cache_dir, local_files_only=True, token=self.token)

    @property
    def is_offline(self) -> bool:
        from huggingface_hub import constants

        return self.local_files_only or constants.is_offline_mode()

    @property
    def own_folder(self) -> Path:
        """For what the Hub's own cache layout has no place for."""
        from huggingface_hub import constants

        return Path(self.cache_dir if self.cache_dir is not None else constants.HF_HOME) / "ttt"


def _network_error() -> type[Exception]:
    import httpx2

    return httpx2.HTTPError


def _explained(error: Exception, repo_id: str, name: str, revision: str | None, offline: bool) -> BundleError:
    """What went wrong and what to do, without the library's own prose."""
    from huggingface_hub import errors

    what = f"{repo_id}" + (f" at revision {revision}" if revision else "")
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return BundleError(f"{repo_id} is gated: accept its terms on its page of the Hub, then set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return BundleError(f"{repo_id} has no revision {revision!r}; use a branch, a tag or a commit of it")
    if isinstance(error, errors.RemoteEntryNotFoundError) or (status == 404 and not _is_no_repo(error)):
        return NotThere(f"{what} has no file {name}, so it is neither a bundle nor the published model")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return BundleError(f"{repo_id} is not on the Hub, or is private: check the name, or set HF_TOKEN")
    if isinstance(error, errors.LocalEntryNotFoundError) and offline:
        return NotThere(f"{name} of {what} is not in the cache, and downloads are switched off (HF_HUB_OFFLINE)", True)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return NotThere(f"the Hub cannot be reached for {name} of {what}: check the connection and try again", True)
    if getattr(error, "errno", None) == errno.ENOSPC:
        return BundleError(f"no space is left on the disk for {name} of {what}; free some, or set HF_HOME elsewhere")
    if isinstance(error, _network_error()) or "Consistency check failed" in str(error):
        return BundleError(
            f"the download of {name} of {what} was cut off; run the same command again ({_cause(error)})"
        )
    return BundleError(f"{name} of {what} could not be downloaded: {_cause(error)}")


def _is_no_repo(error: Exception) -> bool:
    from huggingface_hub import errors

    return isinstance(error, errors.RepositoryNotFoundError)


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
