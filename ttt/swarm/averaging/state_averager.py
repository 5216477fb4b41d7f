"""The averager of the training state: averages parameters, serves the state to others, and loads theirs.

It holds the optimizer and the (offloaded) parameters. hivemind's averager serves a state as soon as it starts, and
matches tensors by position; this one serves none until the peer has loaded one, and names every tensor.
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
from ttt.swarm.averaging.averagers import GuardedAverager, describe_state
from ttt.swarm.averaging.progress import read_credible_epoch
from ttt.swarm.averaging.training_state import TrainingState, entries, restore, snapshot

logger = get_logger(__name__)


class SwarmStateAverager(GuardedAverager, TrainingStateAverager):
    """The one state averager of a peer or coordinator."""

    kind = "state"

    def __init__(self, *args: Any, names: Sequence[str], on_step: Callable[[int], None] | None = None, **kwargs: Any):
        """names: of the parameters, in the optimizer's order; on_step: called with the epoch after each optimizer
        step, on the thread that makes it."""
        self.names, self._on_step = list(names), on_step
        super().__init__(*args, **kwargs)
        run = self.prefix.removesuffix("_state_averager")
        self.credible_epoch: Callable[[], int | None] = lambda: read_credible_epoch(self.dht, run)
        """Returns the credible step of the swarm, an upper bound for the claims of donors."""

    def state(self, *, copy: bool = False) -> TrainingState:
        with torch.no_grad(), self.lock_averaged_tensors:
            return snapshot(self.optimizer, self.names, self.local_epoch, copy=copy)

    def load(self, state: TrainingState) -> None:
        """Load a state. Raises CheckpointError and changes nothing if it does not fit."""
        with self.lock_averaged_tensors:
            restore(self.optimizer, self.names, state)
        # The state is now in the optimizer's copy of the parameters; hivemind keeps two more in sync with it.
        if self.offload_optimizer:
            self._apply_optimizer_parameters_()
        if not self.reuse_tensors:
            self._load_local_tensors_into_averager_()
        self.local_epoch = state.step
        self._set_learning_rate()

    def expected_state(self) -> dict[str, Any]:
        return dict(entries(self.optimizer, self.names))

    def get_current_state(self) -> tuple[dict[str, Any], list[Tensor], list[CompressionInfo]]:
        """Return what a client downloads; called in the training process."""
        state = self.state(copy=True)
        return describe_state(state.step, list(state.tensors), state.scalars, list(state.tensors.values()))

    def load_state_from_peers(
        self, wait: bool = True, timeout: float | None = None, *, min_epoch: int | None = None
    ) -> bool:
        """Load the state of another peer; return False if no donor has one that fits.

        min_epoch: the oldest step to accept, by default that of our own state. timeout: seconds for one donor.
        """
        lowest = self.local_epoch if min_epoch is None else min_epoch
        state = self.download_state(lowest, self.credible_epoch(), timeout)
        if state is None:
            return False
        try:
            self.load(state)
        except CheckpointError as error:
            logger.warning(f"A donor's state was refused: {error}")
            return False
        return True

    def _do(self, *args: Any, **kwargs: Any) -> None:
        """Make a step, and report it: hivemind has no callback that is called after a delayed step, too."""
        epoch = self.local_epoch
        super()._do(*args, **kwargs)
        if self._on_step is not None:
            self._on_step(epoch)

    def _set_learning_rate(self) -> None:
        """Set the schedule's learning rate for this epoch."""
        if self.scheduler is not None:
            if self.scheduler._step_count > self.local_epoch + 1:  # schedulers only step forward: restart it
                self.scheduler._step_count, self.scheduler.last_epoch = 1, 0
            self._update_scheduler()
