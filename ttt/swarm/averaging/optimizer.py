"""hivemind's Optimizer as this project runs it: it never founds a run, and says what really happened. Knows no data.

One epoch is one optimizer step of the whole swarm, after the global batch (hivemind's word, kept here).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import hivemind
import torch
from hivemind.utils.crypto import RSAPrivateKey
from torch import Tensor

from ttt.errors import Cancelled
from ttt.swarm.averaging.averagers import SwarmGradientAverager, SwarmPowerSGDAverager
from ttt.swarm.averaging.failed_rounds import CarefulOptimizer, LeftBehind
from ttt.swarm.averaging.hivemind_options import averager_options, compression
from ttt.swarm.averaging.progress import MIN_EPOCH_SECONDS, CautiousTracker
from ttt.swarm.averaging.state_averager import SwarmStateAverager
from ttt.swarm.averaging.traffic import STATE_SENT
from ttt.swarm.averaging.training_state import OptimizerSpec, parameters_of
from ttt.swarm.config.run_config import MOST_BATCHES, AveragingSection
from ttt.swarm.dht.access import AccessPolicy
from ttt.swarm.process.status import RoundRecord

RETRY_SECONDS = 2.0


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


class SwarmOptimizer(CarefulOptimizer):
    """Trains with others; `step()` after each micro-batch."""

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
        self.events, self.spec, self._access, self.settings = events, spec, access, settings
        self._paced = 0.0
        delayed = settings.delayed and not auxiliary  # a helper has no steps that could wait
        gradients: Any = SwarmGradientAverager
        if settings.power_sgd_rank:
            torch.manual_seed(0)  # the factors must begin alike on all peers
            gradients = partial(SwarmPowerSGDAverager, averager_rank=settings.power_sgd_rank)
        super().__init__(
            dht=dht,
            run_id=run_prefix,
            target_batch_size=global_batch,
            batch_size_per_step=micro_batch,
            params=spec.groups,
            optimizer=spec.build_optimizer,
            scheduler=spec.make_schedule,
            offload_optimizer=True,
            reuse_grad_buffers=not auxiliary,
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
            grad_averager_factory=partial(gradients, **averager_options(settings, access, MOST_BATCHES * global_batch)),
            averager_opts=averager_options(settings, access),
            tracker_opts={
                "private_key": key,
                "metadata_expiration": settings.progress_lifetime,
                "min_refresh_period": min(0.5, settings.matchmaking_time / 5),
                "default_refresh_period": min(3.0, settings.matchmaking_time / 3),
                "max_refresh_period": min(10.0, max(1.0, settings.matchmaking_time / 2)),
            },
            client_mode=client_mode or None,
            auxiliary=auxiliary,
        )
        self.client_mode = client_mode
        self.grad_averager.current_epoch = lambda: self.local_epoch
        self.state_averager.believed = self.tracker.newest_believable
        self.state_averager.stopped = self.grad_averager.stopped = events.stop_requested

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

    def _make_progress_tracker(self, target_batch_size: int, **kwargs: Any) -> CautiousTracker:
        return CautiousTracker(
            dht=self.dht, prefix=self.run_id, target_batch_size=target_batch_size, client_mode=self.client_mode,
            status_loglevel=self.status_loglevel, start=True, **kwargs,
        )  # fmt: skip

    def _on_step(self, epoch: int) -> None:
        if not self._behind:
            self.events.step_done(epoch)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        if self.auxiliary and self.local_epoch < self.tracker.global_epoch - 1:
            self._jump_to(self.tracker.global_epoch)
        return super().step(*args, **kwargs)

    def load_state_from_peers(self, *, older: bool = False, **kwargs: Any) -> None:
        """Take over the newest state of the swarm; waits for a donor as long as it takes, and never goes on without.

        older: also one from before our own step, where nobody holds a later one. Raises Cancelled when asked to stop
        meanwhile.
        """
        if self.scheduled_grads is not None and not self.scheduled_grads.done():
            self._tag_along_with_zero_weight(self.scheduled_grads)
        self.scheduled_grads = None
        self.state_averager.step(wait_for_delayed_updates=True)
        self.events.loading_state()
        with self.tracker.pause_updates():
            while not self._take_state() and not (older and self._take_state(lowest=0)):
                self.events.waiting_for_donor("no peer offered a state that fits; asking again every few seconds")
                self._sleep(RETRY_SECONDS)
            if isinstance(self.grad_averager, SwarmPowerSGDAverager):
                self.grad_averager.load_state_from_peers(self.load_state_timeout, self.tracker.newest_believable())
            if self.local_epoch == self.tracker.global_epoch - 1:
                self.state_averager.local_epoch = self.tracker.global_epoch  # its donor is just taking that step
            self.begin_from_here()

    def _take_state(self, **limits: int) -> bool:
        return self.state_averager.load_state_from_peers(timeout=self.load_state_timeout, **limits)

    def begin_from_here(self) -> None:
        """Offer the state that we now hold, and count samples anew."""
        self.grad_averager.reset_accumulated_grads_()
        self.tracker.report_local_progress(self.local_epoch, samples_accumulated=0)
        if not self.client_mode and not self.auxiliary:
            self.state_averager.state_sharing_priority = self.local_epoch
            self.state_averager.allow_state_sharing = True
            if isinstance(self.grad_averager, SwarmPowerSGDAverager):
                self.grad_averager.allow_state_sharing = True

    def forget_gradients(self) -> None:
        """Drop what this peer has accumulated in this epoch."""
        self.grad_averager.reset_accumulated_grads_()
        self.tracker.report_local_progress(self.local_epoch, samples_accumulated=0)

    def take_reports(self) -> list[RoundRecord]:
        """Rounds of averaging that ended since the last call."""
        failed, self.failed_rounds = self.failed_rounds, []
        return [*failed, *self.grad_averager.take_reports(), *self.state_averager.take_reports()]

    def state_bytes_sent(self) -> int:
        """Bytes of states that other peers downloaded from this one."""
        return int(self.state_averager.traffic[STATE_SENT])

    def traffic(self) -> tuple[int, int]:
        """Bytes of tensors sent and received so far."""
        pairs = [list(self.grad_averager.traffic), list(self.state_averager.traffic)]
        return sum(pair[0] + pair[2] for pair in pairs), sum(pair[1] + pair[3] for pair in pairs)

    def learning_rate(self) -> float:
        return float(self.opt.param_groups[0]["lr"])

    def parameters(self) -> list[Tensor]:
        """Those that are averaged, on the CPU; in delayed mode ahead of the model's."""
        return parameters_of(self.opt)

    def shutdown(self) -> None:
        for averager in (self.state_averager, self.grad_averager):
            if not self.client_mode:
                averager.allow_state_sharing = False
        super().shutdown()

    def _update_global_epoch(self, grad_scaler: Any) -> None:
        if not self.auxiliary:
            self._keep_pace()
        self.events.averaging_started()
        try:
            super()._update_global_epoch(grad_scaler)
        except LeftBehind:
            self._give_up_round()
            if self.auxiliary:
                self._jump_to(max(self.local_epoch + 1, self._epoch_of_others()))
            else:
                self.load_state_from_peers()

    def _keep_pace(self) -> None:
        """Not faster than the others believe; and who is ahead alone waits for them, as long as for a round."""
        now = time.monotonic()
        earliest, latest = self._paced + MIN_EPOCH_SECONDS, now + self.averaging_timeout
        while (now < earliest or self.tracker.runs_ahead) and now < latest and not self.events.stop_requested():
            time.sleep(0.05)
            now = time.monotonic()
        self._paced = now

    def _should_load_state_from_peers(self) -> bool:
        if self._behind:  # noticed in the background, in delayed mode
            self._give_up_round()
            return True
        return super()._should_load_state_from_peers()

    def _jump_to(self, epoch: int) -> None:
        """An auxiliary peer holds no state, so that it need not pass through the epochs it missed."""
        with self.tracker.pause_updates():
            self.state_averager.local_epoch = epoch
            self.tracker.update_epoch(epoch)

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.events.stop_requested():
                raise Cancelled("stopped while waiting for a donor of the state")
            time.sleep(0.1)
