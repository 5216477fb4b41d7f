"""hivemind's Optimizer as this project runs it: it never starts a run, and survives failed and missed rounds.

An *epoch* is hivemind's word for one optimizer step of the whole swarm, made when the peers together have accumulated
the global batch. The training loop calls `step()` after each micro-batch. When the global batch is complete, that call
runs one step (`_update_global_epoch`):

    1. keep pace         wait until the others will believe our epoch             _keep_pace
    2. find a group      and average the gradients with it                        _begin_averaging_gradients,
                                                                                  _average_gradients_and_load_into_optimizer
    3. optimizer step    on the average, or on our own gradients                  SwarmStateAverager._do
    4. average states    every `state_every` steps                                hivemind

In delayed mode hivemind runs 2 to 4 in the background, while the next micro-batches are computed.

If step 2 fails, hivemind steps on this peer's own gradients. That is right if the group broke, and wrong if the others
averaged without us: this peer would have other parameters than the swarm. Then `MissedRound` ends the step, and the
state of the others is loaded instead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import hivemind
import torch
from hivemind.averaging.control import AveragingStage, StepControl
from hivemind.utils.crypto import RSAPrivateKey
from torch import Tensor

from ttt.errors import Cancelled
from ttt.swarm.averaging.averagers import SwarmGradientAverager, SwarmPowerSGDAverager
from ttt.swarm.averaging.hivemind_options import averager_options, compression
from ttt.swarm.averaging.progress import MIN_EPOCH_SECONDS, RobustProgressTracker, read_progress
from ttt.swarm.averaging.state_averager import SwarmStateAverager
from ttt.swarm.averaging.training_state import OptimizerSpec, is_finite, parameters_of
from ttt.swarm.config.run_config import MOST_BATCHES, AveragingSection
from ttt.swarm.dht.access import AccessPolicy
from ttt.swarm.process.status import RoundRecord

RETRY_SECONDS = 2.0
"""Between two searches for a donor."""
POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0
"""Between two looks at the progress of the others, while we wait for a group."""


class MissedRound(Exception):
    """The others finished the round without this peer."""


class OptimizerEvents:
    """Callbacks of `SwarmOptimizer`; a peer overrides those that it needs.

    All run on the training thread, except `step_done` in delayed mode, which runs on the thread that makes the step.
    """

    def averaging_started(self) -> None:
        """The global batch is complete: peers find each other and average their gradients."""

    def step_done(self, step: int) -> None:
        """An optimizer step was made. step: the number of steps done, this one included."""

    def loading_state(self) -> None:
        """The state is about to be downloaded from another peer."""

    def waiting_for_donor(self, reason: str) -> None:
        """No donor offered a state that fits; the optimizer keeps asking."""

    def stop_requested(self) -> bool:
        """Return True to end every wait of the optimizer; a wait for a donor then raises `Cancelled`."""
        return False


class SwarmOptimizer(hivemind.Optimizer):
    """Trains with others; call `step()` after each micro-batch."""

    scheduled_grads: StepControl | None
    scheduled_state: StepControl | None

    def __init__(
        self,
        *,
        dht: hivemind.DHT,
        run_prefix: str,
        spec: OptimizerSpec,
        settings: AveragingSection,
        global_batch: int,
        key: RSAPrivateKey,
        events: OptimizerEvents,
        micro_batch: int | None,
        client_mode: bool = False,
        auxiliary: bool = False,
        access: AccessPolicy | None = None,
    ) -> None:
        self.events, self.spec, self.settings = events, spec, settings
        self.failed_rounds: list[RoundRecord] = []
        self._missed_round = False
        """Set on the background thread in delayed mode, so that the next `step()` loads the state of the others."""
        self._round_epoch, self._in_round = 0, False
        self._last_step, self._last_look = 0.0, 0.0
        delayed = settings.delayed and not auxiliary  # an auxiliary peer makes no optimizer step that could be delayed
        gradient_averager: Any = SwarmGradientAverager
        if settings.power_sgd_rank:
            torch.manual_seed(0)  # all peers must start with the same random factors
            gradient_averager = partial(SwarmPowerSGDAverager, averager_rank=settings.power_sgd_rank)
        super().__init__(
            dht=dht,
            run_id=run_prefix,
            target_batch_size=global_batch,
            batch_size_per_step=micro_batch,
            params=spec.groups,
            optimizer=spec.build_optimizer,
            scheduler=spec.make_schedule,
            offload_optimizer=True,
            reuse_grad_buffers=not auxiliary,  # an auxiliary peer computes no gradients that could be reused
            delay_optimizer_step=delayed,
            delay_grad_averaging=delayed,
            delay_state_averaging=delayed,
            average_state_every=settings.state_every,
            matchmaking_time=settings.matchmaking_time,
            averaging_timeout=settings.averaging_timeout,
            next_chunk_timeout=settings.chunk_timeout,
            load_state_timeout=settings.averaging_timeout,
            grad_compression=compression(settings.gradients),
            state_averaging_compression=compression(settings.state),
            grad_averager_factory=partial(
                gradient_averager, **averager_options(settings, access, MOST_BATCHES * global_batch)
            ),
            averager_opts=averager_options(settings, access),
            # hivemind's own refresh periods, shortened for runs with a short matchmaking_time: their steps are short.
            tracker_opts={
                "private_key": key,
                "metadata_expiration": settings.progress_lifetime,
                "min_refresh_period": min(0.5, settings.matchmaking_time / 5),
                "default_refresh_period": min(3.0, settings.matchmaking_time / 3),
                "max_refresh_period": min(10.0, max(1.0, settings.matchmaking_time / 2)),
            },
            client_mode=client_mode,
            auxiliary=auxiliary,
        )
        self.grad_averager.current_epoch = lambda: self.local_epoch
        self.state_averager.credible_epoch = self.tracker.read_credible_epoch
        self.state_averager.stop_requested = self.grad_averager.stop_requested = events.stop_requested

    # hivemind's constructor calls these two

    def _make_state_averager(self, **kwargs: Any) -> SwarmStateAverager:
        return SwarmStateAverager(
            dht=self.dht,
            names=self.spec.names,
            on_step=self._on_step,
            prefix=f"{self.run_id}_state_averager",
            min_matchmaking_time=self.matchmaking_time,
            allreduce_timeout=self.allreduce_timeout,
            shutdown_timeout=self.shutdown_timeout,
            offload_optimizer=True,
            custom_gradients=True,
            status_loglevel=self.status_loglevel,
            next_chunk_timeout=self.next_chunk_timeout,
            client_mode=self.client_mode,
            auxiliary=self.auxiliary,
            start=True,
            **kwargs,
        )

    def _make_progress_tracker(self, target_batch_size: int, **kwargs: Any) -> RobustProgressTracker:
        return RobustProgressTracker(
            dht=self.dht, prefix=self.run_id, target_batch_size=target_batch_size, client_mode=self.client_mode,
            status_loglevel=self.status_loglevel, start=True, **kwargs,
        )  # fmt: skip

    # What a peer calls

    def step(self, *args: Any, **kwargs: Any) -> Any:
        if self.auxiliary and self.local_epoch < self.tracker.global_epoch - 1:
            self._jump_to(self.tracker.global_epoch)
        return super().step(*args, **kwargs)

    def load_state_from_peers(self, *, older: bool = False, **kwargs: Any) -> None:
        """Load the newest state of the swarm. Waits for a donor as long as necessary: hivemind resumes without one.

        older: accept a state from before our own step if no donor has a later one. Raises Cancelled when asked to stop
        meanwhile.
        """
        if self.scheduled_grads is not None and not self.scheduled_grads.done():
            # The group may have started. If we cancelled, all its members would have to search again.
            self._tag_along_with_zero_weight(self.scheduled_grads)
        self.scheduled_grads = None
        self.state_averager.step(wait_for_delayed_updates=True)
        self.events.loading_state()
        with self.tracker.pause_updates():
            while not self._download_state() and not (older and self._download_state(min_epoch=0)):
                self.events.waiting_for_donor("no peer offered a state that fits; asking again every few seconds")
                self._sleep(RETRY_SECONDS)
            if isinstance(self.grad_averager, SwarmPowerSGDAverager):
                self.grad_averager.load_state_from_peers(self.load_state_timeout, self.tracker.read_credible_epoch())
            if self.local_epoch == self.tracker.global_epoch - 1:
                # The donor served its state while it was making this step. hivemind's strict check once a step
                # (`_should_load_state_from_peers`) would make us download it again.
                self.state_averager.local_epoch = self.tracker.global_epoch
            self.state_loaded()

    def state_loaded(self) -> None:
        """Serve the state that we now hold, and count samples from zero."""
        self.discard_gradients()
        if not self.client_mode and not self.auxiliary:
            self.state_averager.state_sharing_priority = self.local_epoch
            self.state_averager.allow_state_sharing = True
            if isinstance(self.grad_averager, SwarmPowerSGDAverager):
                self.grad_averager.allow_state_sharing = True

    def discard_gradients(self) -> None:
        """Discard the gradients and samples that this peer has accumulated toward the next step."""
        self.grad_averager.reset_accumulated_grads_()
        self.tracker.report_local_progress(self.local_epoch, samples_accumulated=0)

    def take_reports(self) -> list[RoundRecord]:
        """Return the averaging rounds that ended since the last call."""
        failed, self.failed_rounds = self.failed_rounds, []
        return [*failed, *self.grad_averager.take_reports(), *self.state_averager.take_reports()]

    def state_bytes_sent(self) -> int:
        """Bytes of states that other peers downloaded from this one."""
        return int(self.state_averager.traffic.state_sent.value)

    def traffic(self) -> tuple[int, int]:
        """Bytes of tensors sent and received so far."""
        counters = self.grad_averager.traffic, self.state_averager.traffic
        return sum(traffic.total_sent for traffic in counters), sum(traffic.total_received for traffic in counters)

    def learning_rate(self) -> float:
        return float(self.opt.param_groups[0]["lr"])

    def parameters(self) -> list[Tensor]:
        """Return the parameters that are averaged: on the CPU, and in delayed mode ahead of the model's."""
        return parameters_of(self.opt)

    def shutdown(self) -> None:
        for averager in (self.state_averager, self.grad_averager):
            if not self.client_mode:
                averager.allow_state_sharing = False  # overwrites our record of a donor in the DHT
        super().shutdown()

    # One step

    def _update_global_epoch(self, grad_scaler: Any) -> None:
        if not self.auxiliary:
            self._keep_pace()
        self.events.averaging_started()
        try:
            super()._update_global_epoch(grad_scaler)
        except MissedRound:
            self._abandon_round()
            if self.auxiliary:
                self._jump_to(max(self.local_epoch + 1, self._read_epoch_of_others()))
            else:
                self.load_state_from_peers()

    def _keep_pace(self) -> None:
        """Rate-limit steps so that peers find our epoch credible; a lone leader waits for the others.

        It waits for up to one averaging timeout.
        """
        now = time.monotonic()
        earliest, latest = self._last_step + MIN_EPOCH_SECONDS, now + self.averaging_timeout
        while (now < earliest or self.tracker.is_ahead) and now < latest and not self.events.stop_requested():
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
        self._last_step = now

    def _begin_averaging_gradients(self, grad_scaler: Any) -> bool:
        """Discard our gradients if they are not finite: even without samples a peer receives the others' average."""
        self._round_epoch = self.local_epoch
        if not is_finite(list(self.grad_averager._grad_accumulators())):
            self.grad_averager.reset_accumulated_grads_()
            self._record_failure(
                self._round_epoch, time.time(), refused=["this peer: its own gradients hold NaN or infinity"]
            )
        return bool(super()._begin_averaging_gradients(grad_scaler))

    def _average_gradients_and_load_into_optimizer(self, control: StepControl | None) -> None:
        epoch, started = self._round_epoch, time.time()
        self._in_round = control is not None
        try:
            if control is None or self._await_round(control, epoch):
                super()._average_gradients_and_load_into_optimizer(control)
            else:
                # hivemind would wait for the control again, for another averaging timeout.
                self._load_local_gradients_into_optimizer()
        finally:
            self._in_round = False
        if control is not None and not _succeeded(control):
            self._record_failure(
                epoch, started, "no group was found, or it broke up; this peer's own gradients were used"
            )

    def _await_round(self, control: StepControl, epoch: int) -> bool:
        """Wait until the round is over. Returns False after averaging_timeout.

        Raises MissedRound if the others have moved on to a later step while we still look for a group.
        """
        started = time.time()
        while not control.done() and time.time() - started < self.averaging_timeout:
            time.sleep(POLL_SECONDS)
            late = time.time() - started > self.matchmaking_time
            if late and control.stage == AveragingStage.LOOKING_FOR_GROUP and self._others_are_past(epoch):
                control.cancel()
                self._record_failure(epoch, started, "the others had averaged already; this peer's gradients were lost")
                self._missed_round = True
                raise MissedRound
        if self.auxiliary and control.done() and not _succeeded(control):
            if not control.began_allreduce:  # otherwise the averager's process has reported the round
                self._record_failure(
                    epoch, started, "this auxiliary peer found no group; the others average without it"
                )
            raise MissedRound
        return bool(control.done())

    def _load_local_gradients_into_optimizer(self) -> None:
        """Use our own gradients for the step.

        hivemind's copies them from the accumulators. But once a round has begun, those are empty, or hold the gradients
        of the next step: ours lie where the average would, partly averaged if the round got that far.
        """
        if self._in_round:
            self._load_averaged_gradients_into_optimizer_()
        else:
            super()._load_local_gradients_into_optimizer()

    def _load_averaged_gradients_into_optimizer_(self) -> None:
        """Use the average for the step, or zero if it is not finite: the parts were finite, but sums may overflow."""
        super()._load_averaged_gradients_into_optimizer_()
        gradients = [p.grad for p in parameters_of(self.opt) if p.grad is not None]
        if not is_finite(gradients):
            with self.grad_averager.lock_averaged_tensors:
                for gradient in gradients:
                    gradient.zero_()

    def _on_step(self, epoch: int) -> None:
        if not self._missed_round:  # in delayed mode hivemind only logs MissedRound, and this is called without a step
            self.events.step_done(epoch)

    # Falling behind

    def _should_load_state_from_peers(self) -> bool:
        if self._missed_round:
            self._abandon_round()
            return True
        return super()._should_load_state_from_peers()

    def _abandon_round(self) -> None:
        self._missed_round = False
        if self.scheduled_state is not None and not self.scheduled_state.done():
            self.scheduled_state.cancel()
        self.scheduled_grads = self.scheduled_state = None

    def _others_are_past(self, epoch: int) -> bool:
        """True if the credible epoch of the swarm is later. Looks at most once in `LOOK_SECONDS`."""
        if time.time() - self._last_look < LOOK_SECONDS:
            return False
        self._last_look = time.time()
        return self._read_epoch_of_others() > epoch

    def _read_epoch_of_others(self) -> int:
        # The tracker does not help: its updates are paused during a step.
        return read_progress(self.dht, self.run_id, self.target_batch_size).step

    def _jump_to(self, epoch: int) -> None:
        """Skip the steps that an auxiliary peer missed: it holds no state that would have to pass through them."""
        with self.tracker.pause_updates():
            self.state_averager.local_epoch = epoch
            self.tracker.update_epoch(epoch)

    def _download_state(self, **limits: int) -> bool:
        return self.state_averager.load_state_from_peers(timeout=self.load_state_timeout, **limits)

    def _record_failure(self, epoch: int, started: float, failed: str = "", refused: Sequence[str] = ()) -> None:
        """Record a round that the averager's process is unaware of."""
        self.failed_rounds.append(
            RoundRecord(
                kind="gradients", step=epoch, time=time.time(), seconds=time.time() - started, group_size=1,
                results_received=0, inputs_received=0, sent_bytes=0, received_bytes=0, failed=failed,
                refused=list(refused),
            )
        )  # fmt: skip

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.events.stop_requested():
                raise Cancelled("stopped while waiting for a donor of the state")
            time.sleep(0.1)


def _succeeded(control: StepControl) -> bool:
    return bool(control.done() and not control.cancelled() and control.exception() is None)
