"""One peer: joins a run, trains at its own pace, averages with the others, and leaves in order. Knows no pages."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ttt import __version__
from ttt.bundle import Bundle
from ttt.errors import Cancelled, InvalidInput, TTTError
from ttt.hub import find_bundle
from ttt.sampling.device import choose_device
from ttt.swarm.backup import load_backup, save_backup
from ttt.swarm.dht import (
    SwarmDHT,
    find_donors,
    find_run,
    guard,
    prefix,
    reconnect,
    start_dht,
    visible_addresses,
)
from ttt.swarm.fingerprint import fingerprint
from ttt.swarm.gate import Gate, OpenGate
from ttt.swarm.generation import Announcement
from ttt.swarm.identity import load_identity
from ttt.swarm.matchmaking import install
from ttt.swarm.optimizer import Hooks, SwarmOptimizer
from ttt.swarm.processes import (
    check_machine,
    check_shared_memory,
    leave_out_compiler,
    own_folder,
    sockets_in_own_folder,
)
from ttt.swarm.publisher import Publisher
from ttt.swarm.records import describe
from ttt.swarm.reporter import Reporter, quiet_hivemind
from ttt.swarm.run_file import read_run_file
from ttt.swarm.settings import RunSettings
from ttt.swarm.state import is_finite
from ttt.swarm.status import EpochRecord, append_record
from ttt.swarm.task import Task, load_task
from ttt.train.step import TrainingStep

BAD_LOSSES = 3
"""Micro-batches without a finite loss in a row, after which a peer distrusts its parameters."""
LOOK_AROUND_SECONDS = 10.0
AUXILIARY_PAUSE = 0.2
SHUTDOWN_SECONDS = 90.0


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """What a volunteer chooses; the command line reads the helps."""

    run: str
    """Run file, or its URL."""
    initial_peers: tuple[str, ...]
    """Addresses to join at, the coordinator's first."""
    folder: Path
    """For status, identity and backup."""
    name: str = ""
    device: str = "auto"
    precision: str = "auto"
    micro_batch: int = 8
    limit: float = 0.0
    """Samples per second not to exceed; 0: as fast as possible."""
    host: str = "0.0.0.0"
    port: int = 0
    announce: tuple[str, ...] = ()
    client: bool = False
    relay: bool = True
    auxiliary: bool = False
    until: int = 0
    """Leave after this step; 0: stay."""
    seed: int | None = None
    backup_seconds: float = 300.0


def run_peer(options: PeerOptions, gate: Gate | None = None) -> None:
    """Take part until SIGTERM, the run's last step, or `until`. TTTError where that cannot begin."""
    check_machine()
    settings = read_run_file(options.run)
    _check(options)
    quiet_hivemind()
    leave_out_compiler()
    with own_folder(options.folder), sockets_in_own_folder():
        reporter = Reporter(
            options.folder,
            run=settings.run.name,
            name=options.name,
            role="auxiliary" if options.auxiliary else "peer",
            global_batch=settings.batch.global_batch,
        )
        peer = Peer(options, settings, reporter, gate or OpenGate())
        try:
            peer.run()
            reporter.close("starting" if peer.begin_anew else "stopped", peer.why_left)
        except Cancelled:
            reporter.close("stopped", "asked to stop")
        except BaseException as error:
            reporter.close("failed", str(error) or type(error).__name__)
            raise
    if peer.begin_anew:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@dataclass
class _Epoch:
    """What this peer did towards one step."""

    began: float = field(default_factory=time.time)
    samples: int = 0
    losses: float = 0.0

    @property
    def loss(self) -> float | None:
        return self.losses / self.samples if self.samples else None


class Peer:
    """The parts of a running peer."""

    optimizer: SwarmOptimizer

    def __init__(self, options: PeerOptions, settings: RunSettings, reporter: Reporter, gate: Gate) -> None:
        self.options, self.settings, self.reporter, self.gate = options, settings, reporter, gate
        self.stop, self.begin_anew, self.why_left = threading.Event(), False, "asked to stop"
        self.generation = 0
        self.epoch, self._finished = _Epoch(), dict[int, _Epoch]()
        self._backed_up = time.monotonic()
        self._bad_losses = 0
        self._reports_lock = threading.Lock()

    @property
    def prefix(self) -> str:
        return prefix(self.settings.run.name, self.generation)

    def run(self) -> None:
        """From nothing to a clean end."""
        with ExitStack() as stack:
            stack.enter_context(_signals(self.stop))
            device = choose_device(self.options.device)
            bundle = find_bundle(self.settings.model.bundle)
            self.reporter.say("connecting", "joining the network")
            self.dht = stack.enter_context(self._dht())
            self.generation = self._wait_for_run().generation
            guard(self.dht, self.prefix, self.gate, self.settings.batch.global_batch)
            task = load_task(self.settings, bundle, device, remember=True)
            check_shared_memory(task.parameters)
            self._wait_for_donor()
            self.optimizer = stack.enter_context(self._swarm_optimizer(task))
            stack.enter_context(_signals(self.stop))  # hivemind has set its own
            if not self.options.auxiliary:
                self.optimizer.load_state_from_peers()
            stack.enter_context(self._looking_around())
            self.publisher = stack.enter_context(closing(self._publisher(device)))
            self.epoch = _Epoch()
            if self.options.auxiliary:
                self._help()
            else:
                self._train(task, bundle)
            self.reporter.say("stopping", "leaving the swarm")

    def _train(self, task: Task, bundle: Bundle) -> None:
        options, step = self.options, TrainingStep(task.dalle, precision=self.options.precision)
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**31)
        began, counted = time.monotonic(), 0
        self.reporter.say("computing", f"training on {step.device} since step {self.optimizer.local_epoch}")
        for batch in task.batches(options.micro_batch, seed):
            if self._should_leave():
                return
            started = time.monotonic()
            loss = step.backward(batch)
            if self._loss_is_good(loss):
                size = len(batch.text)
                self.epoch.samples += size
                self.epoch.losses += loss * size
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

    def _help(self) -> None:
        self.reporter.say("helping", "averaging for others, without training")
        while not self._should_leave():
            self._step()
            self.stop.wait(AUXILIARY_PAUSE)

    def _step(self) -> None:
        """Tell hivemind of a micro-batch; where it ends an epoch, this returns when the step is done."""
        before = self.optimizer.local_epoch
        self.optimizer.step()
        self._take_reports()
        if self.optimizer.local_epoch == before:
            return
        if not self.options.auxiliary and not is_finite(self.optimizer.parameters()):
            self._restore("parameters became NaN or infinite")
        self.reporter.say("helping" if self.options.auxiliary else "computing")
        self._tell_progress()

    def _take_reports(self) -> None:
        with self._reports_lock:
            records = self.optimizer.take_reports()
            self.reporter.rounds(records)
            self.publisher.averaged(records)

    def _tell_progress(self) -> None:
        sent, received = self.optimizer.traffic()
        progress = self.optimizer.tracker.global_progress
        self.reporter.update(
            epoch=self.optimizer.local_epoch, sent_bytes=sent, received_bytes=received,
            peers=progress.num_peers, learning_rate=self.optimizer.learning_rate(),
        )  # fmt: skip

    def _averaging(self) -> None:
        """An epoch ends: what was computed belongs to the step that follows."""
        self._finished[self.optimizer.local_epoch + 1] = self.epoch
        self.epoch = _Epoch()
        self.reporter.say("averaging")

    def _stepped(self, epoch: int) -> None:
        """After an optimizer step, in the thread that made it."""
        done = self._finished.pop(epoch, _Epoch())
        self._take_reports()
        if self.options.auxiliary:
            return
        sums, norm = fingerprint(self.optimizer.parameters())
        status = self.reporter.status
        if math.isfinite(norm):
            append_record(
                self.options.folder,
                EpochRecord(
                    epoch=epoch, time=time.time(), seconds=time.time() - done.began, samples=done.samples,
                    loss=done.loss, group_size=status.group_size, received=status.received or 0.0,
                    learning_rate=self.optimizer.learning_rate(), norm=norm, fingerprint=sums,
                ),
            )  # fmt: skip
        self.reporter.update(loss=done.loss, epochs_done=status.epochs_done + 1)
        if math.isfinite(norm) and time.monotonic() - self._backed_up >= self.options.backup_seconds:
            self._back_up()

    def _back_up(self) -> None:
        self._backed_up = time.monotonic()
        try:
            save_backup(self.options.folder, self.optimizer.state_averager.state(copy=True), self.generation)
        except OSError as error:
            self.reporter.problem(f"the backup could not be written: {error}")

    def _loss_is_good(self, loss: float) -> bool:
        if math.isfinite(loss):
            self._bad_losses = 0
            return True
        self.optimizer.forget_gradients()
        self.epoch = _Epoch()
        self._bad_losses += 1
        self.reporter.problem(f"step {self.optimizer.local_epoch}: the loss is {loss}; this peer's gradients dropped")
        if self._bad_losses >= BAD_LOSSES:
            self._bad_losses = 0
            self._restore(f"{BAD_LOSSES} losses in a row were not finite")
        return False

    def _restore(self, why: str) -> None:
        """Take the state of the swarm, or our own backup where nobody has a sound one."""
        self.reporter.say("restoring", f"{why}; taking the state of the swarm")
        source, averager = "the swarm", self.optimizer.state_averager
        if not averager.load_state_from_peers(timeout=self.settings.averaging.averaging_timeout):
            backup = load_backup(self.options.folder, self.generation)
            if backup is None:
                self.reporter.problem(f"{why}, and neither a donor nor a backup is there; waiting for a donor")
                self.optimizer.load_state_from_peers()
            else:
                source = f"its own backup of step {backup.epoch}"
                averager.load(replace(backup, epoch=averager.local_epoch))
        self.optimizer.begin_from_here()
        self.epoch = _Epoch()
        self.reporter.update(restored=self.reporter.status.restored + 1)
        self.reporter.problem(f"step {self.optimizer.local_epoch}: {why}; restored from {source}")

    def _should_leave(self) -> bool:
        epoch = self.optimizer.local_epoch
        if self.options.until and epoch >= self.options.until:
            self.why_left = f"step {epoch} is done, as asked for"
        elif epoch >= self.settings.optimizer.total_steps:
            self.why_left = f"the run is complete: {epoch} steps"
        elif not self.stop.is_set():
            return False
        if not self.options.auxiliary:
            self.optimizer.state_averager.step(wait_for_delayed_updates=True, apply_delayed_updates=True)
            self._back_up()
        return True

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
        install()
        self.reporter.say("connecting", "preparing to average with others")
        optimizer = SwarmOptimizer(
            dht=self.dht,
            run_prefix=self.prefix,
            trainee=task.trainee(),
            settings=self.settings.averaging,
            global_batch=self.settings.batch.global_batch,
            key=self.key,
            hooks=Hooks(
                stepped=self._stepped,
                averaging=self._averaging,
                stopped=self.stop.is_set,
                waiting=lambda why: self.reporter.say("waiting for a donor", why),
                downloading=lambda: self.reporter.say("downloading", "taking the state from another peer"),
            ),
            micro_batch=None if self.options.auxiliary else self.options.micro_batch,
            client_mode=self.options.client,
            auxiliary=self.options.auxiliary,
            gate=self.gate,
        )
        watchdog = threading.Timer(SHUTDOWN_SECONDS, os._exit, args=(1,))
        watchdog.daemon = True
        try:
            yield optimizer
        finally:
            watchdog.start()  # a daemon that hangs must not keep us
            optimizer.shutdown()
            watchdog.cancel()

    def _publisher(self, device: torch.device) -> Publisher:
        options = self.options
        return Publisher(
            self.reporter, self.dht, self.prefix, self.dht.signer, self.settings.metrics.every_seconds,
            micro_batch=0 if options.auxiliary else options.micro_batch, client_mode=options.client,
            auxiliary=options.auxiliary, device=describe(device_name(device), 60), software=f"ttt {__version__}",
        )  # fmt: skip

    def _wait_for_run(self) -> Announcement:
        coordinators = [address.rpartition("/p2p/")[2] for address in self.options.initial_peers]
        while (found := find_run(self.dht, self.settings.run.name, coordinators)) is None:
            self.reporter.say(
                "waiting for a donor",
                f"nobody has announced the run {self.settings.run.name!r} yet; is its coordinator running?",
            )
            self._pause()
        return found

    def _wait_for_donor(self) -> None:
        while not find_donors(self.dht, self.prefix):
            self.reporter.say(
                "waiting for a donor",
                "neither the coordinator nor any peer offers the state of the run; a peer never begins a run by itself",
            )
            self._pause()

    def _pause(self) -> None:
        if self.stop.wait(1.0):
            raise Cancelled("asked to stop")

    @contextmanager
    def _looking_around(self) -> Iterator[None]:
        """A thread that finds the way back into a network that was cut, and notices a roll-back."""
        done = threading.Event()
        thread = threading.Thread(target=self._look_around, args=(done,), daemon=True, name="network")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=35)

    def _look_around(self, done: threading.Event) -> None:
        coordinators = [address.rpartition("/p2p/")[2] for address in self.options.initial_peers]
        while not done.wait(LOOK_AROUND_SECONDS):
            reconnect(self.dht, self.options.initial_peers)
            found = find_run(self.dht, self.settings.run.name, coordinators)
            if found is not None and found.generation > self.generation:
                self.why_left, self.begin_anew = "the run was rolled back; joining it anew", True
                self.stop.set()


def device_name(device: torch.device) -> str:
    """In words, for the leaderboard."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type.upper()}, {os.cpu_count()} cores"


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask for a clean end; a second Ctrl-C does not wait for it."""

    def ask(number: int, _frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            os._exit(130)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check(options: PeerOptions) -> None:
    if not options.initial_peers:
        raise InvalidInput("--initial-peer is needed: the address that the coordinator prints")
    if options.micro_batch < 1:
        raise InvalidInput(f"--micro-batch must be at least 1, got {options.micro_batch}")
    if options.client and options.auxiliary:
        raise InvalidInput("--auxiliary needs to be reachable by others: leave --client out")


__all__ = ["PeerOptions", "TTTError", "run_peer"]
