"""Uploads checkpoints to the Hub in the background. Independent of the network of the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from ttt.bundle import HUB_ID
from ttt.errors import InvalidInput
from ttt.swarm.coordinator.checkpoints import BUNDLE, Checkpoint
from ttt.text import first_line


class Uploader:
    """Uploads the newest checkpoint, one at a time and one an interval. Failed uploads are reported and retried."""

    def __init__(self, repo: str, every: float, on_result: Callable[[str, str], None]) -> None:
        """repo: owner/name, or empty to upload nothing; every: seconds between uploads.

        on_result: called from another thread with (name of the checkpoint, URL of the commit), or ("", the problem).
        Raises InvalidInput if `repo` is not a Hub id.
        """
        if repo:
            check_repo(repo)
        self.repo, self.every, self.on_result = repo, every, on_result
        self._done_at, self._done = float("-inf"), ""
        """Start of the last successful upload, and the name of its checkpoint."""
        self._newest: Checkpoint | None = None
        self._thread: threading.Thread | None = None

    def offer(self, checkpoint: Checkpoint) -> bool:
        """Start an upload unless one is in progress or was made recently; return True if it was started."""
        self._newest = checkpoint
        if time.monotonic() - self._done_at < self.every:
            return False
        return self._begin()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait for the upload in progress."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))

    def finish(self, seconds: float) -> None:
        """Upload the newest checkpoint regardless of the interval; wait at most so many seconds."""
        deadline = time.monotonic() + seconds
        self.wait(seconds)
        if self._begin():
            self.wait(deadline - time.monotonic())
        if self.busy:
            self.on_result("", f"the upload to {self.repo} took longer than {seconds:.0f} s and was abandoned")

    def _begin(self) -> bool:
        """Upload the newest checkpoint, unless it has been uploaded."""
        newest = self._newest
        if not self.repo or newest is None or self.busy or newest.path.name == self._done:
            return False
        self._thread = threading.Thread(target=self._upload, args=(newest.path,), daemon=True, name="upload")
        self._thread.start()
        return True

    def _upload(self, folder: Path) -> None:
        began = time.monotonic()
        try:
            address = upload(folder, self.repo)
        except Exception as error:  # network errors have many types, and none may stop the run
            problem = f"the upload to {self.repo} failed and will be retried with the next checkpoint"
            self.on_result("", f"{problem}: {first_line(error)}")
            return
        self._done_at, self._done = began, folder.name
        self.on_result(folder.name, address)


def check_repo(repo: str) -> None:
    if not HUB_ID.fullmatch(repo):
        raise InvalidInput(f"hub_repo must be owner/name, got {repo!r}")


def upload(folder: Path, repo: str) -> str:
    """Upload a checkpoint in one commit, and return the URL of the commit.

    The bundle goes to the root of the repository, so that the repository is a model for `from_pretrained`; the rest
    goes to `training/`. Uses the token of HF_TOKEN or of `hf auth login`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repo(repo)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    api = HfApi()
    api.create_repo(repo, repo_type="model", exist_ok=True)
    done = api.create_commit(
        repo,
        [CommitOperationAdd(path_in_repo=_path_in_repo(path, folder), path_or_fileobj=path) for path in files],
        commit_message=folder.name.replace("-", " "),
    )
    return str(done.commit_url)


def _path_in_repo(path: Path, folder: Path) -> str:
    inside = path.relative_to(folder)
    return (inside.relative_to(BUNDLE) if inside.parts[0] == BUNDLE else Path("training") / inside).as_posix()
