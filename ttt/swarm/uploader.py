"""Checkpoints to the Hub in the background. Knows one folder at a time, and no swarm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from ttt.errors import InvalidInput
from ttt.swarm.checkpoints import BUNDLE, Checkpoint


class Uploader:
    """At most one upload at a time and one an interval; the newest checkpoint wins, and failing never stops a run."""

    def __init__(self, repo: str, every: float, told: Callable[[str, str], None]) -> None:
        """told: called with (checkpoint's name, address on the Hub), or ("", what went wrong)."""
        self.repo, self.every, self.told = repo, every, told
        self._began = float("-inf")
        self._thread: threading.Thread | None = None

    def offer(self, checkpoint: Checkpoint) -> bool:
        """Begin an upload unless one is under way or was just made; whether it began."""
        if not self.repo or self.busy or time.monotonic() - self._began < self.every:
            return False
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._upload, args=(checkpoint.path,), daemon=True, name="upload")
        self._thread.start()
        return True

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """For the upload that is under way."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _upload(self, folder: Path) -> None:
        try:
            self.told(folder.name, upload(folder, self.repo))
        except Exception as error:  # the network has many; training goes on without it
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            self.told("", f"the upload to {self.repo} failed and is tried again with the next checkpoint: {first[0]}")


def upload(folder: Path, repo: str) -> str:
    """The bundle to the repository's root, so that it is a model for `from_pretrained`; the rest beside it.

    Uses the token of HF_TOKEN or `hf auth login`. Returns the address of the commit.
    """
    from huggingface_hub import HfApi

    if "/" not in repo:
        raise InvalidInput(f"hub_repo must be owner/name, got {repo!r}")
    api = HfApi()
    api.create_repo(repo, repo_type="model", exist_ok=True)
    message = folder.name.replace("-", " ")
    api.upload_folder(
        repo_id=repo, folder_path=folder, path_in_repo="training", ignore_patterns=f"{BUNDLE}/*", commit_message=message
    )
    done = api.upload_folder(repo_id=repo, folder_path=folder / BUNDLE, path_in_repo=".", commit_message=message)
    return str(done.commit_url)
