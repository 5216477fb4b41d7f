"""Stores the checkpoints of a run: written atomically, verified, thinned by a policy. Independent of the network.

FOLDER/checkpoints/step-00001200/
    manifest.json            step, time, and the SHA-256 of every file; written last
    bundle/                  the model: TextToImage.from_pretrained(".../bundle") works while training continues
    optimizer.safetensors    the optimizer's state
    state.json               the step, and numbers of the optimizer
FOLDER/checkpoints/latest    name of the newest one
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttt.atomic import sync_file, sync_folder, write_atomically
from ttt.bundle import Bundle
from ttt.bundle.weights import write_bundle_like
from ttt.errors import BundleError, CheckpointError
from ttt.model.dalle import Dalle
from ttt.swarm.averaging.training_state import TrainingState
from ttt.swarm.config.run_config import CheckpointSection
from ttt.text import first_line

FOLDER, MANIFEST, LATEST, BUNDLE = "checkpoints", "manifest.json", "latest", "bundle"
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
_PARAMETERS = "parameters/"
MAX_JSON_BYTES = 64 << 20


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: int = Field(ge=1, le=1)
    run: str
    generation: int = Field(ge=0)
    step: int = Field(ge=0)
    time: float
    files: dict[str, str]
    """Path inside the folder -> SHA-256."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def bundle(self) -> Path:
        return self.path / BUNDLE


class CheckpointStore:
    """The checkpoints of one folder."""

    def __init__(self, folder: Path, run: str, policy: CheckpointSection) -> None:
        self.root, self.run, self.policy = folder / FOLDER, run, policy

    def save(self, state: TrainingState, dalle: Dalle, like: Bundle, generation: int) -> Checkpoint:
        """Write a checkpoint, then delete those that the policy does not keep. Raises CheckpointError if that fails.

        An undamaged checkpoint of the same step and generation is kept. dalle: receives a copy of the parameters, to be
        saved from it. like: the bundle that supplies the other parts.
        """
        from safetensors import SafetensorError

        target = self.root / f"step-{state.step:08d}"
        try:
            found = read_checkpoint(target)
            if found is None or found.manifest.generation != generation or damaged(found):
                self._write_whole(target, state, dalle, like, generation)
            write_atomically(self.root / LATEST, target.name.encode())
            self.prune(written=target)
            return Checkpoint(target, _manifest(target))
        except (OSError, BundleError, SafetensorError) as error:
            raise CheckpointError(f"{target} could not be written: {error}; free some space") from None

    def all(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first by generation and step. Files are verified on reading."""
        found = (read_checkpoint(path) for path in sorted(self.root.glob("step-*")))
        whole = (one for one in found if one is not None)
        return sorted(whole, key=lambda one: (one.manifest.generation, one.step))

    def newest(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint."""
        for checkpoint in reversed(self.all()):
            if not damaged(checkpoint):
                return checkpoint
        return None

    def at(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step. CheckpointError lists the steps that exist."""
        kept = {one.step: one for one in self.all()}
        if step not in kept:
            steps = ", ".join(map(str, sorted(kept))) or "none"
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.root}; there are: {steps}")
        return kept[step]

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints of later steps."""
        for checkpoint in self.all():
            if checkpoint.step > step:
                self._drop(checkpoint.path)

    def mark(self, checkpoint: Checkpoint, generation: int) -> Checkpoint:
        """Store the generation that starts with it, so that the checkpoints alone suffice to restore the generation."""
        manifest = checkpoint.manifest.model_copy(update={"generation": generation})
        write_atomically(checkpoint.path / MANIFEST, manifest.model_dump_json(indent=1).encode(), durable=True)
        return Checkpoint(checkpoint.path, manifest)

    def prune(self, written: Path | None = None) -> None:
        """Delete what the policy does not keep. written: just now; it is kept even if damaged later ones exist."""
        everything = self.all()
        # The maximum so far, as the clock may have been set back.
        times = accumulate((checkpoint.manifest.time for checkpoint in everything), max)
        keep = to_keep(list(times), self.policy)
        for index, checkpoint in enumerate(everything):
            if index not in keep and checkpoint.path != written:
                self._drop(checkpoint.path)

    def _drop(self, path: Path) -> None:
        """Rename, then delete: a folder that is half deleted must not look like a checkpoint."""
        gone = path.with_name(f".{path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _write_whole(self, target: Path, state: TrainingState, dalle: Dalle, like: Bundle, generation: int) -> None:
        """Write to a temporary folder, and rename it once every byte is on the disk."""
        self.root.mkdir(parents=True, exist_ok=True)
        for stale in self.root.glob(".step-*"):  # of a killed writer
            shutil.rmtree(stale, ignore_errors=True)
        stage = self.root / f".{target.name}.partial"
        try:
            stage.mkdir()
            self._write(stage, state, dalle, like, generation)
            _sync_all(stage)
            if target.exists():
                self._drop(target)
            stage.rename(target)
            sync_folder(self.root)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _write(self, stage: Path, state: TrainingState, dalle: Dalle, like: Bundle, generation: int) -> None:
        from safetensors.torch import save_file

        own = dict(dalle.named_parameters())
        for name, tensor in state.tensors.items():
            if name.startswith(_PARAMETERS):
                own[name.removeprefix(_PARAMETERS)].data.copy_(tensor)
        write_bundle_like(stage / BUNDLE, like, dalle, name=f"{self.run} step {state.step}")
        optimizer_state = {n: t.contiguous() for n, t in state.tensors.items() if not n.startswith(_PARAMETERS)}
        save_file(optimizer_state, stage / OPTIMIZER)
        (stage / STATE).write_text(json.dumps({"step": state.step, "scalars": state.scalars}))
        manifest = Manifest(
            format=1, run=self.run, generation=generation, step=state.step, time=time.time(), files=_digests(stage)
        )
        (stage / MANIFEST).write_text(manifest.model_dump_json(indent=1))


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint; None if the folder is not a complete one."""
    try:
        return Checkpoint(path, _manifest(path))
    except CheckpointError:
        return None


def load_state(checkpoint: Checkpoint) -> TrainingState:
    """Read parameters and optimizer state, verified against the manifest. CheckpointError names a damaged file."""
    from safetensors.torch import load_file

    if wrong := damaged(checkpoint):
        raise CheckpointError(f"{wrong} is damaged; choose an older checkpoint")
    parameters = load_file(checkpoint.bundle / "dalle.safetensors")
    tensors = {_PARAMETERS + name: tensor for name, tensor in parameters.items()}
    tensors |= load_file(checkpoint.path / OPTIMIZER)
    numbers = json.loads((checkpoint.path / STATE).read_text())
    return TrainingState(checkpoint.step, tensors, numbers["scalars"])


def only(state: TrainingState, names: Iterable[str]) -> TrainingState:
    """Keep only the parameters of these names: a bundle also holds buffers, which the optimizer does not have."""
    wanted = {_PARAMETERS + name for name in names}
    kept = {n: t for n, t in state.tensors.items() if not n.startswith(_PARAMETERS) or n in wanted}
    return TrainingState(state.step, kept, state.scalars)


def damaged(checkpoint: Checkpoint) -> Path | None:
    """Return the first missing or changed file; None if there is none."""
    for name, digest in checkpoint.manifest.files.items():
        path = checkpoint.path / name
        if not path.is_file() or path.is_symlink() or _digest(path) != digest:
            return path
    return None


def to_keep(times: list[float], policy: CheckpointSection) -> set[int]:
    """Return the indices of the times (ascending) to keep: the last n, and the last of each hour and day."""
    count = len(times)
    keep = set(range(max(0, count - policy.keep_last), count))
    for seconds, number in ((3600, policy.keep_hourly), (86_400, policy.keep_daily)):
        last_of = {int(moment // seconds): index for index, moment in enumerate(times)}
        keep |= {last_of[period] for period in sorted(last_of)[-number:]} if number else set()
    return keep


def _manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{file} is too large")
        return Manifest.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a run: {first_line(error)}") from None


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        (sync_folder if path.is_dir() else sync_file)(path)
    sync_folder(folder)


def _digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): _digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
