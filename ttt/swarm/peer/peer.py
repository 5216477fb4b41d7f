"""A training peer: joins a run, trains at its own pace, averages with the others, and leaves in order.

`Peer._train` repeats these steps for every micro-batch:

    compute   `TrainingStep.backward` adds to the gradients of this peer
    report    samples, loss and speed go to the user (`Reporter`) and to the swarm (`MetricsPublisher`)
    average   `SwarmOptimizer.step` counts the samples and returns at once, unless all peers together have computed the
              global batch: then it finds a group and averages the gradients with it (-> `averaging_started`)
    step      and the optimizer updates the parameters (-> `step_done`; in delayed mode on another thread, while the
              next micro-batches are computed)

`open_peer` builds the parts in the order in which they need each other: network, model, optimizer, state, metrics.
"""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from ttt import __version__
from ttt.bundle import Bundle, find_bundle
from ttt.errors import Cancelled
from ttt.hardware import choose_device, choose_training_dtype, is_out_of_memory
from ttt.swarm.averaging import check_hivemind
from ttt.swarm.averaging.optimizer import OptimizerEvents, SwarmOptimizer
from ttt.swarm.averaging.training_state import fingerprint
from ttt.swarm.config.options import PeerOptions
from ttt.swarm.config.run_config import RunSettings, dalle_config
from ttt.swarm.dht.access import AccessPolicy, AllowAll
from ttt.swarm.dht.identity import load_identity
from ttt.swarm.dht.node import add_record_rules, start_dht, visible_addresses
from ttt.swarm.dht.records import record_text
from ttt.swarm.peer.discovery import LeaveRequest, RunDiscovery, wait_for_run
from ttt.swarm.peer.metrics_publisher import MetricsPublisher
from ttt.swarm.peer.recovery import Recovery
from ttt.swarm.process.lifecycle import check_machine, check_shared_memory, shared_memory_needed
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.session import batches_until, signals, swarm_session
from ttt.swarm.process.status import StepRecord, append_record
from ttt.swarm.training.memory_plan import describe_plan, device_name, memory_in_use, plan_micro_batch
from ttt.swarm.training.run_model import RunModel, load_run_model
from ttt.train.micro_batch import MemoryPlan, probe
from ttt.train.step import TrainingStep
from ttt.types import Batch

AUXILIARY_POLL_SECONDS = 0.2
SPEED_WINDOW_SECONDS = 30.0
SHUTDOWN_SECONDS = 90.0
"""After which a peer whose hivemind processes hang ends anyway."""


def run_peer(options: PeerOptions, settings: RunSettings, access: AccessPolicy | None = None) -> None:
    """Train in a run until SIGTERM, its last step, or the step `options.until`.

    settings: those of the run file that `options.run` names. Raises TTTError if the peer cannot join.
    """
    check_machine()
    check_hivemind()
    leave = LeaveRequest()
    with swarm_session(
        options, settings, name=options.name, role="auxiliary" if options.auxiliary else "peer"
    ) as reporter:
        try:
            with open_peer(options, settings, reporter, leave, access or AllowAll()) as peer:
                peer.run()
        except Cancelled:
            if not leave.restart:
                raise
        reporter.close("starting" if leave.restart else "stopped", leave.reason)
    if leave.restart:  # as a new process, because hivemind leaves threads, signal handlers and shared memory behind
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *leave.restart_options])


@contextmanager
def open_peer(
    options: PeerOptions, settings: RunSettings, reporter: Reporter, leave: LeaveRequest, access: AccessPolicy
) -> Iterator[Peer]:
    """Join the run: yields a peer that holds its current state. At the end of the block the peer leaves the swarm.

    Raises Cancelled if `leave` is requested meanwhile, TTTError if the peer cannot join.
    """
    with ExitStack() as stack:
        stack.enter_context(signals(leave.event))
        device = choose_device(options.device)
        bundle = find_bundle(settings.model.bundle)
        reporter.set_state("connecting", "joining the network")
        identity, key = load_identity(options.folder)
        dht = start_dht(
            options.initial_peers, identity=identity, key=key,
            listen=[f"/ip4/{options.host}/tcp/{options.port}"], announce=options.announce,
            client_mode=options.client, use_relay=options.relay,
        )  # fmt: skip
        stack.callback(dht.shutdown)
        reporter.update(peer_id=str(dht.peer_id), addresses=[] if options.client else visible_addresses(dht))

        announcement = wait_for_run(dht, options, settings.run.name, reporter, leave)
        discovery = RunDiscovery(dht, options, settings.run.name, announcement, reporter, leave)
        add_record_rules(dht, discovery.run_prefix, access, settings.batch.global_batch)

        model, plan = _load_model(options, settings, bundle, device, reporter)
        eight_bit = settings.optimizer.eight_bit
        check_shared_memory(shared_memory_needed(model.parameters, trains=True, eight_bit=eight_bit))
        discovery.wait_for_donor()

        reporter.set_state("connecting", "preparing to average with other peers")
        make_optimizer = partial(
            SwarmOptimizer,
            dht=dht,
            run_prefix=discovery.run_prefix,
            spec=model.optimizer_spec(),
            settings=settings.averaging,
            global_batch=settings.batch.global_batch,
            key=key,
            micro_batch=plan.micro_batch if plan else None,
            client_mode=options.client,
            auxiliary=options.auxiliary,
            access=access,
        )
        peer = Peer(options, settings, reporter, leave, discovery, model, plan, make_optimizer)
        stack.enter_context(closing(peer))
        stack.enter_context(signals(leave.event))  # again: hivemind's optimizer has set handlers of its own
        stack.enter_context(discovery.watching())
        if not options.auxiliary:
            peer.optimizer.load_state_from_peers()
        stack.enter_context(peer.publisher.publishing())
        yield peer
        reporter.set_state("stopping", "leaving the swarm")


def _load_model(
    options: PeerOptions, settings: RunSettings, bundle: Bundle, device: torch.device, reporter: Reporter
) -> tuple[RunModel, MemoryPlan | None]:
    """The model on its device, and how to train it there; an auxiliary peer does not train and needs no plan."""
    if options.auxiliary:
        return load_run_model(settings, bundle, device), None
    dtype = choose_training_dtype(options.precision, device)
    config = dalle_config(settings, bundle.dalle)
    plan = plan_micro_batch(config, device, dtype, settings.batch.global_batch, limit=options.micro_batch)
    model = load_run_model(settings, bundle, device, keep_activations=not plan.reversible)
    plan = probe(plan, model.dalle, precision=options.precision)
    if options.micro_batch > plan.micro_batch:
        reporter.report_problem(
            f"a micro-batch of {options.micro_batch} does not fit in the free memory; using {plan.micro_batch}"
        )
    return model, plan


@dataclass
class StepShare:
    """What this peer has computed for one optimizer step."""

    started: float = field(default_factory=time.time)
    samples: int = 0
    loss_sum: float = 0.0

    def add(self, samples: int, loss: float) -> None:
        self.samples += samples
        self.loss_sum += samples * loss

    @property
    def loss(self) -> float | None:
        return self.loss_sum / self.samples if self.samples else None


class SpeedWindow:
    """Samples per second over the last seconds, and how long to wait so as not to exceed a limit."""

    def __init__(self, limit: float) -> None:
        """limit: samples per second; 0: none."""
        self.limit = limit
        self._started, self._samples = time.monotonic(), 0

    def add(self, samples: int) -> float:
        """Count samples; return the speed."""
        self._samples += samples
        return self._samples / max(1e-9, time.monotonic() - self._started)

    def seconds_to_wait(self) -> float:
        now = time.monotonic()
        if now - self._started > SPEED_WINDOW_SECONDS:  # or a pause long ago would allow a burst now
            self._started, self._samples = now, 0
        return max(0.0, self._samples / self.limit - (now - self._started)) if self.limit else 0.0


class Peer(OptimizerEvents):
    """One peer of a run: trains it, or averages for it without training. `open_peer` builds it."""

    def __init__(
        self,
        options: PeerOptions,
        settings: RunSettings,
        reporter: Reporter,
        leave: LeaveRequest,
        discovery: RunDiscovery,
        model: RunModel,
        plan: MemoryPlan | None,
        make_optimizer: Callable[..., SwarmOptimizer],
    ) -> None:
        """plan: None for an auxiliary peer. make_optimizer: called with `events`."""
        self.options, self.settings, self.reporter, self.leave = options, settings, reporter, leave
        self.discovery, self.model, self.plan = discovery, model, plan
        self.micro_batch = plan.micro_batch if plan else 0
        self.share = StepShare()
        """Of the step that is being computed."""
        self._averaged_shares: dict[int, StepShare] = {}
        """Step -> share, until the optimizer has made the step: in delayed mode two steps are under way."""
        self._reports_lock = threading.Lock()
        self.optimizer = make_optimizer(events=self)
        self.recovery = Recovery(
            self.optimizer, reporter, options.folder, generation=discovery.generation,
            every_seconds=options.backup_seconds, drop_share=self._start_share,
        )  # fmt: skip
        self.publisher = MetricsPublisher(
            reporter, discovery.dht, discovery.run_prefix, discovery.dht.signer, settings.metrics.every_seconds,
            micro_batch=self.micro_batch, client_mode=options.client, auxiliary=options.auxiliary,
            device=record_text(device_name(model.device), 60), software=f"ttt {__version__}",
        )  # fmt: skip
        reporter.update(micro_batch=self.micro_batch)

    def run(self) -> None:
        """Take part until asked to leave, or until the last step."""
        if self.plan is None:
            self._assist()
        else:
            self._train(self.plan)

    def close(self) -> None:
        """Shut the optimizer down; end the process if that hangs."""
        watchdog = threading.Timer(SHUTDOWN_SECONDS, os._exit, args=(1,))
        watchdog.daemon = True
        watchdog.start()
        self.optimizer.shutdown()
        watchdog.cancel()

    def _train(self, plan: MemoryPlan) -> None:
        """Train; see the docstring of this module."""
        training = TrainingStep(self.model.dalle, precision=self.options.precision)
        seed = self.options.seed if self.options.seed is not None else random.SystemRandom().randrange(2**31)
        speed = SpeedWindow(self.options.limit)
        self._start_share()
        step = self.optimizer.local_epoch
        self.reporter.set_state("computing", f"{describe_plan(plan, self.model.device)}, starting at step {step}")
        for batch in batches_until(self.leave.event, self.model.batches(plan.micro_batch, seed)):
            if self._last_step_reached():
                break
            started = time.monotonic()
            loss = self._compute(training, batch)
            if loss is not None:
                samples = len(batch.text)
                self._report_micro_batch(samples, loss, time.monotonic() - started, speed.add(samples))
                self._average_and_step()
            self.leave.wait(speed.seconds_to_wait())
        self.optimizer.state_averager.step(wait_for_delayed_updates=True, apply_delayed_updates=True)
        self.recovery.back_up()
        self._wait_for_final_checkpoint()

    def _compute(self, training: TrainingStep, batch: Batch) -> float | None:
        """Add to the gradients; return the loss, or None if the micro-batch does not count."""
        overflows = training.overflows
        try:
            loss = training.backward(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.micro_batch == 1:
                raise
            smaller = self.micro_batch // 2
            reason = f"out of memory with a micro-batch of {self.micro_batch}; restarting with {smaller}"
            self.leave.leave_and_restart(reason, "--micro-batch", str(smaller))
            return None
        if not self.recovery.accept_loss(loss) or training.overflows > overflows:
            return None  # on an overflow of float16, TrainingStep has dropped the gradients of this micro-batch
        return loss

    def _report_micro_batch(self, samples: int, loss: float, seconds: float, samples_per_second: float) -> None:
        self.share.add(samples, loss)
        self.publisher.add_micro_batch(samples, loss, seconds)
        self.reporter.update(samples=self.reporter.status.samples + samples, samples_per_second=samples_per_second)

    def _average_and_step(self) -> None:
        """Tell the swarm of a micro-batch. If that completes the global batch, return when the step is done."""
        before = self.optimizer.local_epoch
        self.optimizer.step()
        self._report_rounds()
        self._report_progress()
        if self.optimizer.local_epoch == before:
            return
        if not self.options.auxiliary:
            self.recovery.check_parameters()
        self.reporter.set_state("assisting" if self.options.auxiliary else "computing")

    def _assist(self) -> None:
        """Take part in averaging without training."""
        self.reporter.set_state("assisting", "averaging for others, without training")
        while not self.leave.event.is_set() and not self._last_step_reached():
            self._average_and_step()
            self.leave.wait(AUXILIARY_POLL_SECONDS)

    def _report_rounds(self) -> None:
        with self._reports_lock:  # in delayed mode `step_done` calls this from another thread
            records = self.optimizer.take_reports()
            self.reporter.record_rounds(records)
            self.publisher.add_rounds(records)

    def _report_progress(self) -> None:
        """Report the progress of this peer, and of the swarm as this peer last read it from the DHT."""
        step, (sent, received) = self.optimizer.local_epoch, self.optimizer.traffic()
        swarm, (gpu_bytes, gpu_total) = self.optimizer.tracker.global_progress, memory_in_use(self.model.device)
        accumulated = min(swarm.samples_accumulated, swarm.target_batch_size) if swarm.epoch == step else 0
        self.reporter.update(
            step=step, sent_bytes=sent, received_bytes=received, peers=swarm.num_peers, swarm_samples=accumulated,
            learning_rate=self.optimizer.learning_rate(), gpu_bytes=gpu_bytes, gpu_total=gpu_total,
        )  # fmt: skip

    def averaging_started(self) -> None:
        """Close this peer's share of the step: samples from now on count for the next one."""
        self._averaged_shares[self.optimizer.local_epoch + 1] = self.share
        self._start_share()
        self.reporter.set_state("averaging")

    def step_done(self, step: int) -> None:
        """Record the step, with a fingerprint of the parameters that shows whether peers agree."""
        share = self._averaged_shares.pop(step, StepShare())
        self._report_rounds()
        if self.options.auxiliary:
            return
        sums, norm = fingerprint(self.optimizer.parameters())
        status = self.reporter.status
        if math.isfinite(norm):
            append_record(
                self.options.folder,
                StepRecord(
                    step=step, time=time.time(), seconds=time.time() - share.started, samples=share.samples,
                    loss=share.loss, group_size=status.group_size, results_received=status.results_received or 0.0,
                    learning_rate=self.optimizer.learning_rate(), norm=norm, fingerprint=sums,
                ),
            )  # fmt: skip
        self.reporter.update(loss=share.loss, steps_done=status.steps_done + 1)
        if math.isfinite(norm):
            self.recovery.back_up_if_due()

    def loading_state(self) -> None:
        self.reporter.set_state("downloading", "downloading the state from another peer")

    def waiting_for_donor(self, reason: str) -> None:
        self.reporter.set_state("waiting for a donor", reason)

    def stop_requested(self) -> bool:
        return self.leave.event.is_set()

    def _start_share(self) -> None:
        self.share = StepShare()

    def _last_step_reached(self) -> bool:
        step = self.optimizer.local_epoch
        if self.options.until and step >= self.options.until:
            self.leave.reason = f"step {step} is done, as requested"
        elif step >= self.settings.optimizer.total_steps:
            self.leave.reason = f"the run is complete: {step} steps"
        else:
            return False
        return True

    def _wait_for_final_checkpoint(self) -> None:
        """Wait until the coordinator has the state of a complete run: if all peers left before, it would be lost."""
        step = self.optimizer.local_epoch
        complete = step >= self.settings.optimizer.total_steps
        if complete and not self.options.client and not self.leave.event.is_set():
            self.reporter.set_state("stopping", f"{self.leave.reason}; staying until the coordinator has them")
            self.discovery.wait_for_final_checkpoint(step, self.optimizer.state_bytes_sent)
