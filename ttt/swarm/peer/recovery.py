"""What a peer does where its numbers are no longer numbers, and the backup it keeps for that. Knows no network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ttt.errors import CheckpointError
from ttt.swarm.averaging.optimizer import SwarmOptimizer
from ttt.swarm.averaging.training_state import is_finite
from ttt.swarm.peer.backup import load_backup, save_backup
from ttt.swarm.process.reporter import Reporter

BAD_LOSSES = 3
"""Micro-batches without a finite loss in a row, after which a peer distrusts its parameters."""


class Recovery:
    """Watches loss and parameters of one peer; `forget` is called where what was accumulated must not count."""

    def __init__(
        self,
        optimizer: SwarmOptimizer,
        reporter: Reporter,
        folder: Path,
        *,
        generation: int,
        every_seconds: float,
        forget: Callable[[], None],
    ) -> None:
        self.optimizer, self.reporter, self.folder = optimizer, reporter, folder
        self.generation, self.every_seconds, self.forget = generation, every_seconds, forget
        self._backed_up = time.monotonic()
        self._bad_losses = 0

    def back_up_in_time(self) -> None:
        """Where the last backup is old enough; the parameters must be sound."""
        if time.monotonic() - self._backed_up >= self.every_seconds:
            self.back_up()

    def back_up(self) -> None:
        """Write the state down, unless it holds numbers that are none."""
        self._backed_up = time.monotonic()
        state = self.optimizer.state_averager.state(copy=True)
        if not is_finite(list(state.tensors.values())):
            self.reporter.report_problem(
                f"step {state.epoch}: the state holds NaN or infinity; the last backup is kept"
            )
            return
        try:
            save_backup(self.folder, state, self.generation)
        except CheckpointError as error:
            self.reporter.report_problem(str(error))

    def loss_is_good(self, loss: float) -> bool:
        """Whether the micro-batch counts; after several that do not, the state is restored."""
        if math.isfinite(loss):
            self._bad_losses = 0
            return True
        self.optimizer.discard_gradients()
        self.forget()
        self._bad_losses += 1
        self.reporter.report_problem(
            f"step {self.optimizer.local_epoch}: the loss is {loss}; this peer's gradients dropped"
        )
        if self._bad_losses >= BAD_LOSSES:
            self._bad_losses = 0
            self.restore(f"{BAD_LOSSES} losses in a row were not finite")
        return False

    def check_parameters(self) -> None:
        """After a step: restore where it left numbers that are none."""
        if not is_finite(self.optimizer.parameters()):
            self.restore("parameters became NaN or infinite")

    def restore(self, why: str) -> None:
        """Take the state of the swarm, or our own backup where nobody has a sound one."""
        self.reporter.set_state("restoring", f"{why}; taking the state of the swarm")
        source, averager = "the swarm", self.optimizer.state_averager
        if not averager.load_state_from_peers(timeout=self.optimizer.averaging_timeout):
            step = self._load_backup()
            if step is None:
                self.reporter.report_problem(f"{why}, and neither a donor nor a backup is there; waiting for a donor")
                self.optimizer.load_state_from_peers(older=True)
            else:
                source = f"its own backup of step {step}"
        self.optimizer.state_loaded()
        self.forget()
        self.reporter.update(restored=self.reporter.status.restored + 1)
        self.reporter.report_problem(f"step {self.optimizer.local_epoch}: {why}; restored from {source}")

    def _load_backup(self) -> int | None:
        """The step of the backup that was taken over; None where there is none that fits."""
        averager, backup = self.optimizer.state_averager, load_backup(self.folder, self.generation)
        if backup is None:
            return None
        try:
            averager.load(replace(backup, epoch=averager.local_epoch))
        except CheckpointError as error:  # of another model, or with numbers that are none; nothing was changed
            self.reporter.report_problem(f"the backup of step {backup.epoch} cannot be used: {error}")
            return None
        return backup.epoch
