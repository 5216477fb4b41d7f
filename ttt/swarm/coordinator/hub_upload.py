"""Checkpoints to the Hub in the background. Knows one folder at a time, and no swarm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from ttt.bundle import HUB_ID
from ttt.errors import InvalidInput
from ttt.swarm.coordinator.checkpoints import BUNDLE, Checkpoint


class Uploader:
    """At most one upload at a time and one an interval; the newest checkpoint wins, and failing never stops a run."""

    def __init__(self, repo: str, every: float, told: Callable[[str, str], None]) -> None:
        """InvalidInput where `repo` is no name of a repository; empty: nothing is uploaded.

        told: called with (checkpoint's name, address on the Hub), or ("", what went wrong).
        """
        if repo:
            check_repo(repo)
        self.repo, self.every, self.told = repo, every, told
        self._done_at, self._done = float("-inf"), ""
        """When the last upload that succeeded began, and its checkpoint's name."""
        self._newest: Checkpoint | None = None
        self._thread: threading.Thread | None = None

    def offer(self, checkpoint: Checkpoint) -> bool:
        """Begin an upload unless one is under way or was just made; whether it began."""
        self._newest = checkpoint
        if time.monotonic() - self._done_at < self.every:
            return False
        return self._begin()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """For the upload that is under way."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))

    def finish(self, seconds: float) -> None:
        """Upload the newest checkpoint whatever the interval, as far as that goes in so many seconds."""
        deadline = time.monotonic() + seconds
        self.wait(seconds)
        if self._begin():
            self.wait(deadline - time.monotonic())
        if self.busy:
            self.told("", f"the upload to {self.repo} took longer than {seconds:.0f} s and was given up")

    def _begin(self) -> bool:
        """Of the newest checkpoint, unless it is there already."""
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
        except Exception as error:  # the network has many; training goes on without it
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            self.told("", f"the upload to {self.repo} failed and is tried again with the next checkpoint: {first[0]}")
            return
        self._done_at, self._done = began, folder.name
        self.told(folder.name, address)


def check_repo(repo: str) -> None:
    if not HUB_ID.fullmatch(repo):
        raise InvalidInput(f"hub_repo must be owner/name, got {repo!r}")


def upload(folder: Path, repo: str) -> str:
    """The bundle to the repository's root, so that it is a model for `from_pretrained`; the rest beside it.

    Uses the token of HF_TOKEN or `hf auth login`. Returns the address of the commit, which is one.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repo(repo)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    api = HfApi()
    api.create_repo(repo, repo_type="model", exist_ok=True)
    done = api.create_commit(
        repo,
        [CommitOperationAdd(path_in_repo=_place(path, folder), path_or_fileobj=path) for path in files],
        commit_message=folder.name.replace("-", " "),
    )
    return str(done.commit_url)


def _place(path: Path, folder: Path) -> str:
    inside = path.relative_to(folder)
    return (inside.relative_to(BUNDLE) if inside.parts[0] == BUNDLE else Path("training") / inside).as_posix()
