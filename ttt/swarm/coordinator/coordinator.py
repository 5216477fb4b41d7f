"""The coordinator: founds the run, is the way into its network, watches it and keeps checkpoints. Knows no pages.

It neither trains nor averages, so that a run goes on without it. It always holds a state to give: the first weights,
or its newest checkpoint; peers with newer ones are asked first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ttt.bundle import Bundle, find_bundle
from ttt.errors import SwarmError, TTTError
from ttt.swarm.averaging import check_hivemind
from ttt.swarm.averaging.hivemind_options import make_state_server
from ttt.swarm.averaging.progress import read_progress
from ttt.swarm.averaging.state_averager import SwarmStateAverager
from ttt.swarm.config.options import CoordinatorOptions
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.coordinator.address_book import invitation, keep_company, known_peers
from ttt.swarm.coordinator.checkpoints import BUNDLE, FOLDER, Checkpoint, CheckpointStore, load_state, only
from ttt.swarm.coordinator.generations import newest_generation, write_generation
from ttt.swarm.coordinator.hub_upload import Uploader
from ttt.swarm.coordinator.monitor import Monitor
from ttt.swarm.coordinator.sample_images import Painter
from ttt.swarm.coordinator.training_data import check_source, is_a_name
from ttt.swarm.dht.access import AccessPolicy, AllowAll
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.dht.identity import load_identity
from ttt.swarm.dht.node import (
    SwarmDHT,
    add_record_rules,
    announce_run,
    reconnect,
    run_prefix,
    start_dht,
    visible_addresses,
)
from ttt.swarm.dht.records import read_all
from ttt.swarm.history.types import CheckpointEntry, Event
from ttt.swarm.history.writer import HISTORY_FILE, HistoryWriter
from ttt.swarm.process.lifecycle import check_machine, check_shared_memory, shared_memory_needed
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.session import signals, swarm_session
from ttt.swarm.training.run_model import RunModel, load_run_model

LOOK_SECONDS = 5.0
UPLOAD_SECONDS = 120.0
"""That uploading the last checkpoint may take once the coordinator is asked to stop."""
RETRY_SECONDS = 30.0
"""Until a checkpoint that failed is tried again."""
ANNOUNCE_SECONDS = 60.0
LOOK_AROUND_SECONDS = 15.0


def run_coordinator(options: CoordinatorOptions, settings: RunSettings, access: AccessPolicy | None = None) -> None:
    """Keep a run until SIGTERM. TTTError where that cannot begin.

    settings: of the run file that `options.run` names.
    """
    check_machine()
    check_hivemind()
    with swarm_session(options, settings, name="coordinator", role="coordinator") as reporter:
        Coordinator(options, settings, reporter, access or AllowAll()).run()
        reporter.close("stopped", "asked to stop; the swarm goes on without its coordinator")


class Coordinator:
    """The parts of a running coordinator."""

    keeper: SwarmStateAverager

    def __init__(
        self, options: CoordinatorOptions, settings: RunSettings, reporter: Reporter, access: AccessPolicy
    ) -> None:
        self.options, self.settings, self.reporter, self.access = options, settings, reporter, access
        self.stop = threading.Event()
        self.folder = options.folder
        self.store = CheckpointStore(self.folder, settings.run.name, settings.checkpoints)
        policy = settings.checkpoints
        self.uploader = Uploader(policy.hub_repo, policy.hub_every_seconds, self._uploaded)
        self.announcement = self._last_announcement() or Announcement(generation=0)
        self._due = time.monotonic() + policy.every_seconds
        """When the next checkpoint is."""

    @property
    def prefix(self) -> str:
        return run_prefix(self.settings.run.name, self.announcement.generation)

    def run(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(signals(self.stop))
            named = is_a_name(self.settings.data.source)
            if named:
                check_source(self.settings.data.source)
            bundle = find_bundle(self.settings.model.bundle)
            model = load_run_model(self.settings, bundle)
            eight_bit = self.settings.optimizer.eight_bit
            check_shared_memory(shared_memory_needed(model.parameters, trains=False, eight_bit=eight_bit))
            self.reporter.set_state("connecting", "opening the network")
            self.dht = stack.enter_context(self._dht())
            self.history = stack.enter_context(self._history())
            self.painter = stack.enter_context(closing(self._painter()))
            self.monitor = Monitor(self.history, self.settings.batch.global_batch)
            self.keeper = stack.enter_context(self._keeper(model))
            stack.enter_context(signals(self.stop))  # hivemind has set its own
            self._begin(bundle, model)
            if not named:
                threading.Thread(target=self._look_for_data, daemon=True, name="data").start()
            self._try(lambda: write_generation(self.folder, self.announcement))
            self._watch(bundle, model)
            self.reporter.set_state("stopping", "writing a last checkpoint")
            self._try(self._look)  # what happened since the last look belongs to the history and to that checkpoint
            self._try(lambda: self._checkpoint(bundle, model))
            self.uploader.finish(UPLOAD_SECONDS)

    def _begin(self, bundle: Bundle, model: RunModel) -> None:
        """Take the newest of: what the swarm holds, the newest checkpoint, the first weights."""
        newest = self._newest_checkpoint()
        if newest is not None:
            self.keeper.load(only(load_state(newest), self.keeper.names))
            self.reporter.update(checkpoint=str(newest.path))
        if self.keeper.load_state_from_peers(timeout=self.settings.averaging.averaging_timeout):
            how = f"took step {self.keeper.local_epoch} from peers that trained on meanwhile"
        elif newest is not None:
            how = f"going on from the checkpoint of step {newest.step}"
        else:
            how = "founded the run, from its first weights"
            self._try_to_keep(lambda: self._save(bundle, model))
        self._write_down_checkpoints()
        self.painter.forget_after(self.keeper.local_epoch)
        if newest is not None:
            self.painter.offer(newest)
        self._offer()
        announce_run(self.dht, self.settings.run.name, self.announcement)
        self.history.add_event(Event(time.time(), "started", "", how))
        self.reporter.set_state("watching", how)

    def _last_announcement(self) -> Announcement | None:
        kept = (one.manifest.generation for one in self.store.all())
        return newest_generation(self.folder, kept, warn=self.reporter.report_problem)

    def _look_for_data(self) -> None:
        """Say so where volunteers will hardly find the data; this machine alone may lack the folder, or the network."""
        try:
            check_source(self.settings.data.source)
        except (TTTError, OSError) as error:
            if not self.stop.is_set():
                self._problem(f"{error} (peers have to find it, the coordinator need not)")

    def _newest_checkpoint(self) -> Checkpoint | None:
        newest = self.store.newest()
        if newest is not None and newest.manifest.run != self.settings.run.name:
            raise SwarmError(
                f"{self.folder} keeps the run {newest.manifest.run!r}, not {self.settings.run.name!r}; "
                "choose another --folder"
            )
        return newest

    def _watch(self, bundle: Bundle, model: RunModel) -> None:
        announced = looked = time.monotonic()
        while not self.stop.wait(min(LOOK_SECONDS, self.settings.metrics.every_seconds)):
            self._try(self._look)
            now = time.monotonic()
            if now - announced >= ANNOUNCE_SECONDS:
                announced = now
                self._try(lambda: announce_run(self.dht, self.settings.run.name, self.announcement))
            if now - looked >= LOOK_AROUND_SECONDS:
                looked = now
                self._try(lambda: keep_company(self.dht, self.folder))
            done = self.reporter.status.step >= self.settings.optimizer.total_steps > self.keeper.local_epoch
            if done or now >= self._due:
                self._try_to_keep(lambda: self._checkpoint(bundle, model))

    def _try_to_keep(self, act: Callable[[], object]) -> None:
        """Write a checkpoint, and choose when the next one is: soon where this one failed."""
        began, every = time.monotonic(), self.settings.checkpoints.every_seconds
        done = self._try(act)
        self._due = began + every if done else time.monotonic() + min(RETRY_SECONDS, every)

    def _try(self, act: Callable[[], object]) -> bool:
        """A full disk, or a network that does not answer, ends no run: it is told, and a later turn tries again."""
        try:
            act()
        except (TTTError, OSError) as error:
            self._problem(str(error))
            return False
        return True

    def _problem(self, text: str) -> None:
        if self.reporter.report_problem(text):
            with suppress(TTTError):  # it may be the history that has the problem
                self.history.add_event(Event(time.time(), "problem", "", text))

    def _look(self) -> None:
        """Read what the peers report, believe what can be believed, and write it down."""
        progress = read_progress(self.dht, self.prefix, self.settings.batch.global_batch)
        reading = read_all(self.dht, self.prefix)
        if not progress.answered or not reading.answered:
            self._problem("the network did not answer in time")
            return
        step = progress.epoch if progress.peers else self.keeper.local_epoch
        point = self.monitor.observe(reading, replace(progress, epoch=step), time.time())
        self.reporter.update(
            step=step,
            peers=progress.peers,
            swarm_samples=progress.samples_accumulated,
            samples_per_second=(point.samples_per_second if point else None) or 0.0,
            loss=point.loss if point else None,
            learning_rate=point.learning_rate if point else None,
        )

    def _checkpoint(self, bundle: Bundle, model: RunModel) -> None:
        """Fetch the newest state from a peer and write it down."""
        if self.reporter.status.step > self.keeper.local_epoch and not self.keeper.load_state_from_peers(
            timeout=self.settings.averaging.averaging_timeout
        ):
            raise SwarmError("no peer gave its state; the checkpoint waits until one does")
        self._offer()
        self._save(bundle, model)

    def _save(self, bundle: Bundle, model: RunModel) -> None:
        saved = self.store.save(self.keeper.state(copy=True), model.dalle, bundle, self.announcement.generation)
        self.reporter.update(checkpoint=str(saved.path))
        self.uploader.offer(saved)
        self._write_down_checkpoints()
        self.painter.offer(saved)

    def _write_down_checkpoints(self) -> None:
        """Make the history name those that are on the disk, and no others."""
        kept = {self._name(one.path): one for one in self.store.all()}
        known = self.history.checkpoints()
        self.history.remove_checkpoints(known - kept.keys())
        for name in sorted(kept.keys() - known):
            self.history.add_checkpoint(self._described(kept[name]))

    def _described(self, saved: Checkpoint) -> CheckpointEntry:
        samples = saved.step * self.settings.batch.global_batch
        checksum = saved.manifest.files.get(f"{BUNDLE}/dalle.safetensors", "")
        loss = self.reporter.status.loss
        return CheckpointEntry(saved.manifest.time, saved.step, samples, loss, self._name(saved.path), checksum)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def _uploaded(self, name: str, text: str) -> None:
        if name:
            self._try(lambda: self.history.set_checkpoint_url(f"{FOLDER}/{name}", text))
        else:
            self._problem(text)

    def _offer(self) -> None:
        self.keeper.state_sharing_priority = self.keeper.local_epoch
        self.keeper.allow_state_sharing = True

    def _history(self) -> HistoryWriter:
        run = self.settings.run
        return HistoryWriter(
            self.folder / HISTORY_FILE, run.name, title=run.title, target_batch_size=self.settings.batch.global_batch
        )

    def _painter(self) -> Painter:
        return Painter(self.folder, self.settings.sample_images, self.history, self._problem)

    @contextmanager
    def _dht(self) -> Iterator[SwarmDHT]:
        network = self.settings.network
        path, self.key = load_identity(self.folder)
        host, port = self.options.host or network.host, self.options.port or network.port
        dht = start_dht(
            self.options.initial_peers,
            identity=path, key=self.key, required=False,
            listen=[f"/ip4/{host}/tcp/{port}"], announce=self.options.announce or network.announce,
        )  # fmt: skip
        try:
            add_record_rules(dht, self.prefix, self.access, self.settings.batch.global_batch)
            reconnect(dht, known_peers(self.folder))  # the run may go on where we left it
            addresses = visible_addresses(dht)
            self.reporter.update(peer_id=str(dht.peer_id), addresses=addresses)
            print("\n".join(invitation(self.options.run, addresses)), flush=True)  # noqa: T201
            yield dht
        finally:
            dht.shutdown()

    @contextmanager
    def _keeper(self, model: RunModel) -> Iterator[SwarmStateAverager]:
        keeper = make_state_server(self.dht, self.prefix, model.optimizer_spec(), self.settings.averaging, self.access)
        try:
            yield keeper
        finally:
            keeper.shutdown()
