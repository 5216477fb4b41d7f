"""One peer: joins a run, trains at its own pace, averages with the others, and leaves in order. Knows no pages."""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

import torch

from ttt import __version__
from ttt.bundle import Bundle, find_bundle
from ttt.errors import Cancelled
from ttt.hardware import choose_device, choose_training_dtype
from ttt.swarm.averaging import check_hivemind
from ttt.swarm.averaging.optimizer import OptimizerEvents, SwarmOptimizer
from ttt.swarm.averaging.training_state import fingerprint
from ttt.swarm.config.options import PeerOptions
from ttt.swarm.config.run_config import RunSettings, dalle_config
from ttt.swarm.dht.access import AccessPolicy, AllowAll
from ttt.swarm.dht.identity import load_identity
from ttt.swarm.dht.node import SwarmDHT, add_record_rules, run_prefix, start_dht, visible_addresses
from ttt.swarm.dht.records import record_text
from ttt.swarm.peer.discovery import Lookout
from ttt.swarm.peer.metrics_publisher import Publisher
from ttt.swarm.peer.recovery import Recovery
from ttt.swarm.process.lifecycle import check_machine, check_shared_memory, shared_memory_needed
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.session import batches_until, signals, swarm_session
from ttt.swarm.process.status import StepRecord, append_record
from ttt.swarm.training.job import Task, load_task
from ttt.swarm.training.memory_plan import device_name, in_words, memory_in_use, plan
from ttt.train.micro_batch import MemoryPlan, probe
from ttt.train.step import TrainingStep

AUXILIARY_PAUSE = 0.2
SHUTDOWN_SECONDS = 90.0


def run_peer(options: PeerOptions, settings: RunSettings, access: AccessPolicy | None = None) -> None:
    """Take part until SIGTERM, the run's last step, or `until`. TTTError where that cannot begin.

    settings: of the run file that `options.run` names.
    """
    check_machine()
    check_hivemind()
    options.check()
    with swarm_session(
        options, settings, name=options.name, role="auxiliary" if options.auxiliary else "peer"
    ) as reporter:
        peer = Peer(options, settings, reporter, access or AllowAll())
        try:
            peer.run()
        except Cancelled:
            if not peer.begin_anew:
                raise
        reporter.close("starting" if peer.begin_anew else "stopped", peer.why_left)
    if peer.begin_anew:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@dataclass
class _Step:
    """What this peer did towards one step."""

    began: float = field(default_factory=time.time)
    samples: int = 0
    losses: float = 0.0

    @property
    def loss(self) -> float | None:
        return self.losses / self.samples if self.samples else None


class Peer(OptimizerEvents):
    """The parts of a running peer."""

    device: torch.device
    fitted: MemoryPlan
    optimizer: SwarmOptimizer
    lookout: Lookout
    recovery: Recovery

    def __init__(self, options: PeerOptions, settings: RunSettings, reporter: Reporter, access: AccessPolicy) -> None:
        self.options, self.settings, self.reporter, self.access = options, settings, reporter, access
        self.stop, self.begin_anew, self.why_left = threading.Event(), False, "asked to stop"
        self.generation = 0
        self.step, self._finished = _Step(), dict[int, _Step]()
        self._reports_lock = threading.Lock()

    @property
    def prefix(self) -> str:
        return run_prefix(self.settings.run.name, self.generation)

    def run(self) -> None:
        """From nothing to a clean end."""
        with ExitStack() as stack:
            stack.enter_context(signals(self.stop))
            self.device = choose_device(self.options.device)
            bundle = find_bundle(self.settings.model.bundle)
            self.reporter.set_state("connecting", "joining the network")
            self.dht = stack.enter_context(self._dht())
            self.lookout = Lookout(self.dht, self.options, self.settings.run.name, self.reporter, self.stop)
            self.generation = self.lookout.wait_for_run().generation
            add_record_rules(self.dht, self.prefix, self.access, self.settings.batch.global_batch)
            task = self._task(bundle)
            eight_bit = self.settings.optimizer.eight_bit
            check_shared_memory(shared_memory_needed(task.parameters, trains=True, eight_bit=eight_bit))
            self.lookout.wait_for_donor(self.prefix, self.generation, self._rolled_back)
            self.optimizer = stack.enter_context(self._swarm_optimizer(task))
            self.recovery = Recovery(
                self.optimizer, self.reporter, self.options.folder, generation=self.generation,
                every_seconds=self.options.backup_seconds, forget=self._begin_step,
            )  # fmt: skip
            stack.enter_context(signals(self.stop))  # hivemind has set its own
            stack.enter_context(self.lookout.watching(self.generation, self._rolled_back))
            if not self.options.auxiliary:
                self.optimizer.load_state_from_peers()
            self.publisher = stack.enter_context(closing(self._publisher()))
            self._begin_step()
            if self.options.auxiliary:
                self._help()
            else:
                self._train(task)
                self._hand_over()
            self.reporter.set_state("stopping", "leaving the swarm")

    def _task(self, bundle: Bundle) -> Task:
        """The model in memory, and how it is trained there; a helper trains nothing."""
        options, device = self.options, self.device
        if options.auxiliary:
            return load_task(self.settings, bundle, device)
        dtype = choose_training_dtype(options.precision, device)
        config = dalle_config(self.settings, bundle.dalle)
        fitted = plan(config, device, dtype, self.settings.batch.global_batch, asked=options.micro_batch)
        task = load_task(self.settings, bundle, device, remember=not fitted.reversible)
        self.fitted = probe(fitted, task.dalle, precision=options.precision)
        self.reporter.update(micro_batch=self.fitted.micro_batch)
        return task

    def _begin_step(self) -> None:
        self.step = _Step()

    def _train(self, task: Task) -> None:
        options, step = self.options, TrainingStep(task.dalle, precision=self.options.precision)
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**31)
        began, counted = time.monotonic(), 0
        self.reporter.set_state(
            "computing", f"{in_words(self.fitted, step.device)} since step {self.optimizer.local_epoch}"
        )
        for batch in batches_until(self.stop, task.batches(self.fitted.micro_batch, seed)):
            if self._should_leave():
                return
            started, overflows = time.monotonic(), step.overflows
            loss = step.backward(batch)
            if self.recovery.loss_is_good(loss) and step.overflows == overflows:  # else its gradients were left out
                size = len(batch.text)
                self.step.samples += size
                self.step.losses += loss * size
                counted += size
                self.publisher.computed(size, loss, time.monotonic() - started)
                self.reporter.update(
                    samples=self.reporter.status.samples + size,
                    samples_per_second=counted / (time.monotonic() - began),
                )
                self._step()
            if time.monotonic() - began > 30:
                began, counted = time.monotonic(), 0
            if options.limit and self._too_fast(began, counted):
                return
        self._should_leave()

    def _help(self) -> None:
        self.reporter.set_state("assisting", "averaging for others, without training")
        while not self._should_leave():
            self._step()
            self.stop.wait(AUXILIARY_PAUSE)

    def _step(self) -> None:
        """Tell hivemind of a micro-batch; where it ends a step, this returns when the step is done."""
        before = self.optimizer.local_epoch
        self.optimizer.step()
        self._take_reports()
        self._tell_progress()
        if self.optimizer.local_epoch == before:
            return
        if not self.options.auxiliary:
            self.recovery.check_parameters()
        self.reporter.set_state("assisting" if self.options.auxiliary else "computing")

    def _take_reports(self) -> None:
        with self._reports_lock:
            records = self.optimizer.take_reports()
            self.reporter.record_rounds(records)
            self.publisher.averaged(records)

    def _tell_progress(self) -> None:
        """Of this peer, and of the swarm as it was last heard of."""
        step, (sent, received) = self.optimizer.local_epoch, self.optimizer.traffic()
        swarm, (gpu_bytes, gpu_total) = self.optimizer.tracker.global_progress, memory_in_use(self.device)
        gathered = min(swarm.samples_accumulated, swarm.target_batch_size) if swarm.epoch == step else 0
        self.reporter.update(
            step=step, sent_bytes=sent, received_bytes=received, peers=swarm.num_peers, swarm_samples=gathered,
            learning_rate=self.optimizer.learning_rate(), gpu_bytes=gpu_bytes, gpu_total=gpu_total,
        )  # fmt: skip

    def averaging_started(self) -> None:
        """A step ends: what was computed belongs to the step that follows."""
        self._finished[self.optimizer.local_epoch + 1] = self.step
        self.step = _Step()
        self.reporter.set_state("averaging")

    def step_done(self, step: int) -> None:
        """After an optimizer step, in the thread that made it."""
        done = self._finished.pop(step, _Step())
        self._take_reports()
        if self.options.auxiliary:
            return
        sums, norm = fingerprint(self.optimizer.parameters())
        status = self.reporter.status
        if math.isfinite(norm):
            append_record(
                self.options.folder,
                StepRecord(
                    step=step, time=time.time(), seconds=time.time() - done.began, samples=done.samples,
                    loss=done.loss, group_size=status.group_size, results_received=status.results_received or 0.0,
                    learning_rate=self.optimizer.learning_rate(), norm=norm, fingerprint=sums,
                ),
            )  # fmt: skip
        self.reporter.update(loss=done.loss, steps_done=status.steps_done + 1)
        if math.isfinite(norm):
            self.recovery.back_up_in_time()

    def loading_state(self) -> None:
        self.reporter.set_state("downloading", "taking the state from another peer")

    def waiting_for_donor(self, reason: str) -> None:
        self.reporter.set_state("waiting for a donor", reason)

    def stop_requested(self) -> bool:
        return self.stop.is_set()

    def _should_leave(self) -> bool:
        step = self.optimizer.local_epoch
        if self.options.until and step >= self.options.until:
            self.why_left = f"step {step} is done, as asked for"
        elif step >= self.settings.optimizer.total_steps:
            self.why_left = f"the run is complete: {step} steps"
        elif not self.stop.is_set():
            return False
        if not self.options.auxiliary:
            self.optimizer.state_averager.step(wait_for_delayed_updates=True, apply_delayed_updates=True)
            self.recovery.back_up()
        return True

    def _hand_over(self) -> None:
        """The last state of a complete run would be lost if all left before the coordinator took it."""
        step = self.optimizer.local_epoch
        if step >= self.settings.optimizer.total_steps and not self.options.client and not self.stop.is_set():
            self.reporter.set_state("stopping", f"{self.why_left}; staying until the coordinator has them")
            self.lookout.hand_over(self.prefix, step, self.optimizer.state_bytes_sent)

    def _rolled_back(self) -> None:
        self.why_left, self.begin_anew = "the run was rolled back; joining it anew", True
        self.stop.set()

    def _too_fast(self, began: float, counted: int) -> bool:
        """Wait where the limit asks for it; True when asked to stop meanwhile."""
        ahead = counted / self.options.limit - (time.monotonic() - began)
        return ahead > 0 and self.stop.wait(ahead) and self._should_leave()

    @contextmanager
    def _dht(self) -> Iterator[SwarmDHT]:
        options = self.options
        path, self.key = load_identity(options.folder)
        dht = start_dht(
            options.initial_peers, identity=path, key=self.key,
            listen=[f"/ip4/{options.host}/tcp/{options.port}"], announce=options.announce,
            client_mode=options.client, use_relay=options.relay,
        )  # fmt: skip
        self.reporter.update(peer_id=str(dht.peer_id), addresses=[] if options.client else visible_addresses(dht))
        try:
            yield dht
        finally:
            dht.shutdown()

    @contextmanager
    def _swarm_optimizer(self, task: Task) -> Iterator[SwarmOptimizer]:
        self.reporter.set_state("connecting", "preparing to average with others")
        optimizer = SwarmOptimizer(
            dht=self.dht,
            run_prefix=self.prefix,
            spec=task.optimizer_spec(),
            settings=self.settings.averaging,
            global_batch=self.settings.batch.global_batch,
            key=self.key,
            events=self,
            micro_batch=None if self.options.auxiliary else self.fitted.micro_batch,
            client_mode=self.options.client,
            auxiliary=self.options.auxiliary,
            access=self.access,
        )
        watchdog = threading.Timer(SHUTDOWN_SECONDS, os._exit, args=(1,))
        watchdog.daemon = True
        try:
            yield optimizer
        finally:
            watchdog.start()  # a daemon that hangs must not keep us
            optimizer.shutdown()
            watchdog.cancel()

    def _publisher(self) -> Publisher:
        options = self.options
        return Publisher(
            self.reporter, self.dht, self.prefix, self.dht.signer, self.settings.metrics.every_seconds,
            micro_batch=0 if options.auxiliary else self.fitted.micro_batch, client_mode=options.client,
            auxiliary=options.auxiliary, device=record_text(device_name(self.device), 60),
            software=f"ttt {__version__}",
        )  # fmt: skip
