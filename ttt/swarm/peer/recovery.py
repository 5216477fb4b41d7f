"""Restores a peer whose numbers became NaN or infinite: from the swarm, or from the peer's own backup of its state."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ttt.errors import CheckpointError
from ttt.swarm.averaging.optimizer import SwarmOptimizer
from ttt.swarm.averaging.training_state import TrainingState, is_finite
from ttt.swarm.process.reporter import Reporter

BACKUP_FILE = "backup.safetensors"
BAD_LOSSES = 3
"""Consecutive micro-batches without a finite loss after which the state is restored: one may be due to its data."""


class Recovery:
    """Watches the losses and parameters of one peer, and keeps a backup of its state."""

    def __init__(
        self,
        optimizer: SwarmOptimizer,
        reporter: Reporter,
        folder: Path,
        *,
        generation: int,
        every_seconds: float,
        drop_share: Callable[[], None],
    ) -> None:
        """every_seconds: time between backups. drop_share: called when the samples computed for the current step must
        not count, because their gradients were dropped."""
        self.optimizer, self.reporter, self.folder = optimizer, reporter, folder
        self.generation, self.every_seconds, self.drop_share = generation, every_seconds, drop_share
        self._backed_up = time.monotonic()
        self._bad_losses = 0

    def back_up_if_due(self) -> None:
        """Write a backup if the last one is old enough."""
        if time.monotonic() - self._backed_up >= self.every_seconds:
            self.back_up()

    def back_up(self) -> None:
        """Write a backup, unless the state contains NaN or infinity: then the last sound one is kept."""
        self._backed_up = time.monotonic()
        state = self.optimizer.state_averager.state(copy=True)
        if not is_finite(list(state.tensors.values())):
            self.reporter.report_problem(
                f"step {state.step}: the state contains NaN or infinity; the last backup is kept"
            )
            return
        try:
            save_backup(self.folder, state, self.generation)
        except CheckpointError as error:
            self.reporter.report_problem(str(error))

    def accept_loss(self, loss: float) -> bool:
        """Return True if the micro-batch counts. Otherwise drop all gradients of this step, and after `BAD_LOSSES` such
        micro-batches in a row restore the state."""
        if math.isfinite(loss):
            self._bad_losses = 0
            return True
        # The NaN is already in the accumulated gradients, so that earlier micro-batches are lost with it.
        self.optimizer.discard_gradients()
        self.drop_share()
        self._bad_losses += 1
        self.reporter.report_problem(
            f"step {self.optimizer.local_epoch}: the loss is {loss}; dropped this peer's gradients of the step"
        )
        if self._bad_losses >= BAD_LOSSES:
            self._bad_losses = 0
            self.restore(f"{BAD_LOSSES} losses in a row were not finite")
        return False

    def check_parameters(self) -> None:
        """Restore the state if a step left NaN or infinity in the parameters."""
        if not is_finite(self.optimizer.parameters()):
            self.restore("parameters became NaN or infinite")

    def restore(self, cause: str) -> None:
        """Download the state from the swarm; if no peer has a sound one, load the own backup."""
        self.reporter.set_state("restoring", f"{cause}; downloading the state from the swarm")
        source, averager = "the swarm", self.optimizer.state_averager
        if not averager.load_state_from_peers(timeout=self.optimizer.averaging_timeout):
            step = self._load_backup()
            if step is None:
                self.reporter.report_problem(f"{cause}, and there is neither a donor nor a backup; waiting for a donor")
                self.optimizer.load_state_from_peers(older=True)
            else:
                source = f"its own backup of step {step}"
        self.optimizer.state_loaded()
        self.drop_share()
        self.reporter.update(restored=self.reporter.status.restored + 1)
        self.reporter.report_problem(f"step {self.optimizer.local_epoch}: {cause}; restored from {source}")

    def _load_backup(self) -> int | None:
        """Load the backup and return its step; None if there is none that fits."""
        averager, backup = self.optimizer.state_averager, load_backup(self.folder, self.generation)
        if backup is None:
            return None
        try:
            # Keep the current step: with an older one this peer would be behind the swarm and have to download a state.
            averager.load(replace(backup, step=averager.local_epoch))
        except CheckpointError as error:  # of another model, or not finite; nothing was changed
            self.reporter.report_problem(f"the backup of step {backup.step} cannot be used: {error}")
            return None
        return backup.step


def save_backup(folder: Path, state: TrainingState, generation: int) -> None:
    """Replace the last backup atomically. Raises CheckpointError if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = folder / f".{BACKUP_FILE}.partial"
    metadata = {"step": str(state.step), "generation": str(generation), "scalars": json.dumps(state.scalars)}
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, temporary, metadata=metadata)
        temporary.replace(folder / BACKUP_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / BACKUP_FILE} could not be written: {error}; free some space") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_backup(folder: Path, generation: int | None = None) -> TrainingState | None:
    """Read the backup of this generation (None: of any). Returns None if there is none, or if it cannot be read."""
    from safetensors import safe_open

    with contextlib.suppress(Exception), safe_open(folder / BACKUP_FILE, framework="pt") as file:
        metadata = file.metadata()
        if generation is None or int(metadata["generation"]) == generation:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return TrainingState(int(metadata["step"]), tensors, json.loads(metadata["scalars"]))
    return None
