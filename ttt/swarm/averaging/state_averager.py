"""Holds parameters and optimizer: averages the parameters, offers the state, takes it from others. Knows no model.

A peer offers its state only once it has one, and names its tensors, so that nothing is matched by position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hivemind.compression import CompressionInfo
from hivemind.optim.state_averager import TrainingStateAverager
from hivemind.utils import get_logger
from torch import Tensor

from ttt.errors import CheckpointError
from ttt.swarm.averaging.averagers import Reporting, describe_state
from ttt.swarm.averaging.progress import newest_believable
from ttt.swarm.averaging.training_state import TrainingState, entries, restore, snapshot

logger = get_logger(__name__)


class SwarmStateAverager(Reporting, TrainingStateAverager):
    """One a process; `believed` tells how far the swarm can be, as a bound for what donors say."""

    kind = "state"

    def __init__(self, *args: Any, names: Sequence[str], on_step: Callable[[int], None] | None = None, **kwargs: Any):
        """names: of the parameters, in the optimizer's order; on_step: told the epoch after each optimizer step."""
        self.names, self._on_step = list(names), on_step
        super().__init__(*args, **kwargs)
        run = self.prefix.removesuffix("_state_averager")
        self.believed: Callable[[], int | None] = lambda: newest_believable(self.dht, run)

    def state(self, *, copy: bool = False) -> TrainingState:
        with torch.no_grad(), self.lock_averaged_tensors:
            return snapshot(self.optimizer, self.names, self.local_epoch, copy=copy)

    def load(self, state: TrainingState) -> None:
        """Take over a state; CheckpointError, and nothing changed, where it does not fit."""
        with self.lock_averaged_tensors:
            restore(self.optimizer, self.names, state)
        if self.offload_optimizer:
            self._apply_optimizer_parameters_()
        if not self.reuse_tensors:
            self._load_local_tensors_into_averager_()
        self.local_epoch = state.epoch
        self._set_learning_rate()

    def expected_state(self) -> dict[str, Any]:
        return dict(entries(self.optimizer, self.names))

    def get_current_state(self) -> tuple[dict[str, Any], list[Tensor], list[CompressionInfo]]:
        """What a newcomer gets, in this process."""
        state = self.state(copy=True)
        return describe_state(state.epoch, list(state.tensors), state.scalars, list(state.tensors.values()))

    def load_state_from_peers(
        self, wait: bool = True, timeout: float | None = None, *, lowest: int | None = None
    ) -> bool:
        """Whether a donor was found whose state fits, and is not older than ours, or than step `lowest`.

        timeout: seconds for one donor.
        """
        state = self.take_state(self.local_epoch if lowest is None else lowest, self.believed(), timeout)
        if state is None:
            return False
        try:
            self.load(state)
        except CheckpointError as error:
            logger.warning(f"A donor's state was refused: {error}")
            return False
        return True

    def _do(self, *args: Any, **kwargs: Any) -> None:
        epoch = self.local_epoch
        super()._do(*args, **kwargs)
        if self._on_step is not None:
            self._on_step(epoch)

    def _set_learning_rate(self) -> None:
        """The schedule's, for this epoch; the scheduler only knows how to step forward."""
        if self.scheduler is not None:
            if self.scheduler._step_count > self.local_epoch + 1:
                self.scheduler._step_count, self.scheduler.last_epoch = 1, 0
            self._update_scheduler()
