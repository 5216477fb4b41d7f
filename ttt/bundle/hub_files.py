"""Downloads single files from the Hub and from other addresses, through a cache. Independent of bundles and models."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ttt.atomic import atomic_file
from ttt.errors import BundleError
from ttt.text import error_summary

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""`owner/name` of a model or data set on the Hub."""


class HubFileMissing(BundleError):
    """A repository lacks the file, or the cache lacks it while the Hub is out of reach (`unreachable`)."""

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
        """Path of the file in the cache; `again` downloads it even if the cache has it."""
        import httpx2
        from huggingface_hub import hf_hub_download

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
        except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
            raise _explained(error, repo_id, name, revision, self.is_offline) from error
        return Path(path)

    def download(self, url: str, path: Path, advice: str) -> Path:
        """Download a file that is not on the Hub to `path`, completely or not at all; `advice` ends every error."""
        import httpx2

        if path.is_file():
            return path
        if self.is_offline:
            raise HubFileMissing(f"{path} is not there, and downloads are switched off. {advice}", unreachable=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # "identity": the length that the server announces must be that of the file.
            request = httpx2.stream(
                "GET", url, timeout=30, follow_redirects=True, headers={"Accept-Encoding": "identity"}
            )
            with atomic_file(path) as partial, request as answer, partial.open("wb") as file:
                answer.raise_for_status()
                for chunk in answer.iter_bytes():
                    file.write(chunk)
        except httpx2.RemoteProtocolError as error:
            raise BundleError(f"the download of {url} was cut off; run the same command again. Or: {advice}") from error
        except (OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise BundleError(f"{url} could not be downloaded ({error_summary(error)}). {advice}") from error
        return path

    def cached_only(self) -> Hub:
        return Hub(cache_dir=self.cache_dir, local_files_only=True, token=self.token)

    @property
    def is_offline(self) -> bool:
        from huggingface_hub import constants

        return self.local_files_only or constants.is_offline_mode()

    @property
    def own_folder(self) -> Path:
        """Folder for files that do not fit the layout of the Hub's cache."""
        from huggingface_hub import constants

        return Path(self.cache_dir if self.cache_dir is not None else constants.HF_HOME) / "ttt"


def _explained(error: Exception, repo_id: str, name: str, revision: str | None, offline: bool) -> BundleError:
    """An error that says what failed and what to do, instead of the library's own text."""
    import httpx2
    from huggingface_hub import errors

    what = f"{repo_id}" + (f" at revision {revision}" if revision else "")
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    missing_repo = isinstance(error, errors.RepositoryNotFoundError)
    if isinstance(error, errors.HFValidationError):
        return BundleError(f"a Hub id looks like 'owner/name', got {repo_id!r}")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return BundleError(f"{repo_id} is gated: accept its terms on its page of the Hub, then set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return BundleError(f"{repo_id} has no revision {revision!r}; use a branch, a tag or a commit of it")
    if isinstance(error, errors.RemoteEntryNotFoundError) or (status == 404 and not missing_repo):
        return HubFileMissing(f"{what} has no file {name}, so it is neither a bundle nor the published model")
    if missing_repo or status == 401:
        return BundleError(f"{repo_id} is not on the Hub, or is private: check the name, or set HF_TOKEN")
    if isinstance(error, errors.LocalEntryNotFoundError) and offline:
        return HubFileMissing(
            f"{name} of {what} is not in the cache, and downloads are switched off (HF_HUB_OFFLINE)", True
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return HubFileMissing(
            f"the Hub cannot be reached for {name} of {what}: check the connection and try again", True
        )
    if getattr(error, "errno", None) == errno.ENOSPC:
        return BundleError(f"no space is left on the disk for {name} of {what}; free some, or set HF_HOME elsewhere")
    if isinstance(error, httpx2.HTTPError) or "Consistency check failed" in str(error):
        return BundleError(
            f"the download of {name} of {what} was cut off; run the same command again ({error_summary(error)})"
        )
    return BundleError(f"{name} of {what} could not be downloaded: {error_summary(error)}")
