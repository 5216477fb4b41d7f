"""What a peer does where a round of gradients went wrong, or went on without it. Knows neither data nor donors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import hivemind
from hivemind.averaging.control import AveragingStage, StepControl

from ttt.swarm.averaging.progress import read_progress
from ttt.swarm.averaging.training_state import is_finite, parameters_of
from ttt.swarm.process.status import RoundRecord


class LeftBehind(Exception):
    """The others finished the round without us."""


class CarefulOptimizer(hivemind.Optimizer):
    """hivemind's, but a peer whose group left without it does not step alone; it is told by `LeftBehind`."""

    scheduled_grads: StepControl | None
    scheduled_state: StepControl | None

    def __init__(self, **options: Any) -> None:
        self.failed_rounds: list[RoundRecord] = []
        self._behind, self._asked, self._round_epoch, self._in_round = False, 0.0, 0, False
        super().__init__(**options)

    def _begin_averaging_gradients(self, grad_scaler: Any) -> bool:
        """Gradients of our own that are not finite are dropped: a peer without samples gets the others' average too."""
        self._round_epoch = self.local_epoch
        if not is_finite(list(self.grad_averager._grad_accumulators())):
            self.grad_averager.reset_accumulated_grads_()
            self._note(self._round_epoch, time.time(), refused=["this peer: its own gradients hold NaN or infinity"])
        return bool(super()._begin_averaging_gradients(grad_scaler))

    def _average_gradients_and_load_into_optimizer(self, control: StepControl | None) -> None:
        epoch, began = self._round_epoch, time.time()
        self._in_round = control is not None
        try:
            if control is None or self._await_round(control, epoch):
                super()._average_gradients_and_load_into_optimizer(control)
            else:
                self._load_local_gradients_into_optimizer()
        finally:
            self._in_round = False
        if control is not None and not _succeeded(control):
            self._note(epoch, began, "no group was found, or it broke up; this peer's own gradients were used")

    def _load_local_gradients_into_optimizer(self) -> None:
        """hivemind's loads the accumulators, but a round that was begun has emptied them, or they hold the next step's:
        this peer's gradients lie where the average would, some of them averaged if the round got that far.
        """
        if self._in_round:
            self._load_averaged_gradients_into_optimizer_()
        else:
            super()._load_local_gradients_into_optimizer()

    def _await_round(self, control: StepControl, epoch: int) -> bool:
        """Until the round is over, or the others are seen to have finished it without us. False: it takes too long."""
        began = time.time()
        while not control.done() and time.time() - began < self.averaging_timeout:
            time.sleep(0.05)
            late = time.time() - began > self.matchmaking_time
            if late and control.stage == AveragingStage.LOOKING_FOR_GROUP and self._others_finished(epoch):
                control.cancel()
                self._note(epoch, began, "the others had averaged already; this peer's gradients were lost")
                self._behind = True
                raise LeftBehind
        if self.auxiliary and control.done() and not _succeeded(control):
            if not control.began_allreduce:  # else the round itself has told why
                self._note(epoch, began, "this helper was in no group; the others average without it too")
            raise LeftBehind
        return bool(control.done())

    def _others_finished(self, epoch: int) -> bool:
        """Whether a peer that others can reach reports a later epoch (asked at most once a second)."""
        if time.time() - self._asked < 1.0:
            return False
        self._asked = time.time()
        return self._epoch_of_others() > epoch

    def _epoch_of_others(self) -> int:
        return read_progress(self.dht, self.run_id, self.target_batch_size).epoch

    def _give_up_round(self) -> None:
        self._behind = False
        if self.scheduled_state is not None and not self.scheduled_state.done():
            self.scheduled_state.cancel()
        self.scheduled_grads = self.scheduled_state = None

    def _note(self, epoch: int, began: float, failed: str = "", refused: Sequence[str] = ()) -> None:
        self.failed_rounds.append(
            RoundRecord(
                kind="gradients", step=epoch, time=time.time(), seconds=time.time() - began, group_size=1,
                received=0, gathered=0, sent_bytes=0, received_bytes=0, failed=failed, refused=list(refused),
            )
        )  # fmt: skip

    def _load_averaged_gradients_into_optimizer_(self) -> None:
        """An average that is not finite becomes zero: parts that are none were left out, but sums may overflow."""
        super()._load_averaged_gradients_into_optimizer_()
        gradients = [p.grad for p in parameters_of(self.opt) if p.grad is not None]
        if not is_finite(gradients):
            with self.grad_averager.lock_averaged_tensors:
                for gradient in gradients:
                    gradient.zero_()


def _succeeded(control: StepControl) -> bool:
    return bool(control.done() and not control.cancelled() and control.exception() is None)
