"""The coordinator of a run: founds it, is the address at which peers join, writes checkpoints, records its history.

It neither trains nor averages, so that the run continues without it. It always offers a state to download: the initial
weights, or its newest checkpoint; newcomers ask peers with newer states first.

`open_coordinator` builds the parts: model, network, history, state server. `Coordinator.run` starts or resumes the run,
then repeats until SIGTERM: read the metrics of the peers, announce the run, reconnect lost peers, and when due download
the newest state from a peer and save it as a checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ttt.bundle import find_bundle
from ttt.data.files import HttpClient, RetryPolicy
from ttt.data.shard_list import find_shards
from ttt.data.stream import SCENES
from ttt.errors import InvalidInput, SwarmError, TTTError
from ttt.swarm.averaging import check_hivemind
from ttt.swarm.averaging.hivemind_options import make_state_server
from ttt.swarm.averaging.progress import read_progress
from ttt.swarm.averaging.state_averager import SwarmStateAverager
from ttt.swarm.config.options import CoordinatorOptions
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.coordinator.address_book import invitation, read_address_book, refresh_known_peers
from ttt.swarm.coordinator.checkpoints import BUNDLE, FOLDER, Checkpoint, CheckpointStore, load_state, only
from ttt.swarm.coordinator.generations import newest_generation, open_history, write_generation
from ttt.swarm.coordinator.hub_upload import Uploader
from ttt.swarm.coordinator.monitor import Monitor
from ttt.swarm.coordinator.sample_images import SampleImageRenderer
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
from ttt.swarm.history.writer import HistoryWriter
from ttt.swarm.process.lifecycle import check_machine, check_shared_memory, shared_memory_needed
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.session import signals, swarm_session
from ttt.swarm.training.run_model import RunModel, load_run_model
from ttt.text import first_line

POLL_SECONDS = 5.0
ANNOUNCE_SECONDS = 60.0
RECONNECT_SECONDS = 15.0
RETRY_SECONDS = 30.0
"""Time until a checkpoint that failed is tried again."""
UPLOAD_SECONDS = 120.0
"""How long the coordinator keeps uploading its last checkpoint when asked to stop."""


def run_coordinator(options: CoordinatorOptions, settings: RunSettings, access: AccessPolicy | None = None) -> None:
    """Coordinate a run until SIGTERM. Raises TTTError if it cannot be started or resumed.

    settings: those of the run file that `options.run` names.
    """
    check_machine()
    check_hivemind()
    stop = threading.Event()
    with swarm_session(options, settings, name="coordinator", role="coordinator") as reporter:
        with open_coordinator(options, settings, reporter, stop, access or AllowAll()) as coordinator:
            coordinator.run()
        reporter.close("stopped", "asked to stop; the swarm continues without its coordinator")


@contextmanager
def open_coordinator(
    options: CoordinatorOptions,
    settings: RunSettings,
    reporter: Reporter,
    stop: threading.Event,
    access: AccessPolicy,
) -> Iterator[Coordinator]:
    """Build a coordinator whose node is in the network; at the end of the block it leaves. Raises TTTError."""
    with ExitStack() as stack:
        stack.enter_context(signals(stop))
        if is_plain_name(settings.data.source):  # before anything is written
            check_source(settings.data.source)
        store = CheckpointStore(options.folder, settings.run.name, settings.checkpoints)
        generations = (checkpoint.manifest.generation for checkpoint in store.all())
        announcement = newest_generation(options.folder, generations, warn=reporter.report_problem)
        announcement = announcement or Announcement(generation=0)
        prefix = run_prefix(settings.run.name, announcement.generation)

        model = load_run_model(settings, find_bundle(settings.model.bundle))
        eight_bit = settings.optimizer.eight_bit
        check_shared_memory(shared_memory_needed(model.parameters, trains=False, eight_bit=eight_bit))

        reporter.set_state("connecting", "joining the network")
        dht = _start_dht(options, settings)
        stack.callback(dht.shutdown)
        add_record_rules(dht, prefix, access, settings.batch.global_batch)
        reconnect(dht, read_address_book(options.folder))  # peers may have continued the run meanwhile
        addresses = visible_addresses(dht)
        reporter.update(peer_id=str(dht.peer_id), addresses=addresses)
        print("\n".join(invitation(options.run, addresses)), flush=True)  # noqa: T201

        history = stack.enter_context(open_history(options.folder, settings))
        state_server = make_state_server(dht, prefix, model.optimizer_spec(), settings.averaging, access)
        stack.callback(state_server.shutdown)
        stack.enter_context(signals(stop))  # again: hivemind has set handlers of its own
        coordinator = Coordinator(
            options.folder, settings, reporter, stop, announcement, model, dht, history, store, state_server
        )
        stack.enter_context(closing(coordinator))
        yield coordinator


def _start_dht(options: CoordinatorOptions, settings: RunSettings) -> SwarmDHT:
    network = settings.network
    identity, key = load_identity(options.folder)
    host, port = options.host or network.host, options.port or network.port
    return start_dht(
        options.initial_peers, identity=identity, key=key, required=False,
        listen=[f"/ip4/{host}/tcp/{port}"], announce=options.announce or network.announce,
    )  # fmt: skip


class Coordinator:
    """A coordinator whose node has joined the network. `open_coordinator` builds it."""

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        reporter: Reporter,
        stop: threading.Event,
        announcement: Announcement,
        model: RunModel,
        dht: SwarmDHT,
        history: HistoryWriter,
        store: CheckpointStore,
        state_server: SwarmStateAverager,
    ) -> None:
        """model: holds the initial weights; its parameters are overwritten when a checkpoint is saved."""
        self.folder, self.settings, self.reporter, self.stop = folder, settings, reporter, stop
        self.announcement, self.model, self.dht, self.history = announcement, model, dht, history
        self.store, self.state_server = store, state_server
        self.monitor = Monitor(history, settings.batch.global_batch)
        self.uploader = Uploader(
            settings.checkpoints.hub_repo, settings.checkpoints.hub_every_seconds, self._record_upload
        )
        self.renderer = SampleImageRenderer(folder, settings.sample_images, history, self._report_problem)
        self._checkpoint_due = time.monotonic() + settings.checkpoints.every_seconds

    @property
    def prefix(self) -> str:
        """Of all DHT keys of this generation."""
        return run_prefix(self.settings.run.name, self.announcement.generation)

    def close(self) -> None:
        self.renderer.close()

    def run(self) -> None:
        """Start or resume the run, and coordinate it until asked to stop."""
        self._start_or_resume()
        if not is_plain_name(self.settings.data.source):
            threading.Thread(target=self._check_data, daemon=True, name="data").start()
        self._try(lambda: write_generation(self.folder, self.announcement))
        self._watch()
        self.reporter.set_state("stopping", "saving a last checkpoint")
        self._try(self._observe)  # the history and the checkpoint shall include what happened since the last poll
        self._try(self._update_and_save)
        self.uploader.finish(UPLOAD_SECONDS)

    def _start_or_resume(self) -> None:
        """Offer the newest of: the state that the swarm holds, the newest checkpoint, the initial weights."""
        newest = self._newest_checkpoint()
        if newest is not None:
            self.state_server.load(only(load_state(newest), self.state_server.names))
            self.reporter.update(checkpoint=str(newest.path))
        if self.state_server.load_state_from_peers(timeout=self.settings.averaging.averaging_timeout):
            message = f"downloaded step {self.state_server.local_epoch} from peers that continued the run"
        elif newest is not None:
            message = f"resuming from the checkpoint of step {newest.step}"
        else:
            message = "founded the run with its initial weights"
            self._save_and_schedule(self._save)
        self._sync_history_with_checkpoints()
        self.renderer.forget_after(self.state_server.local_epoch)
        if newest is not None:
            self.renderer.offer(newest)
        self._offer_state()
        announce_run(self.dht, self.settings.run.name, self.announcement)
        self.history.add_event(Event(time.time(), "started", "", message))
        self.reporter.set_state("watching", message)

    def _newest_checkpoint(self) -> Checkpoint | None:
        newest = self.store.newest()
        if newest is not None and newest.manifest.run != self.settings.run.name:
            raise SwarmError(
                f"{self.folder} belongs to the run {newest.manifest.run!r}, not to {self.settings.run.name!r}; "
                "choose another --folder"
            )
        return newest

    def _watch(self) -> None:
        """Poll until asked to stop."""
        announced = reconnected = time.monotonic()
        while not self.stop.wait(min(POLL_SECONDS, self.settings.metrics.every_seconds)):
            self._try(self._observe)
            now = time.monotonic()
            if now - announced >= ANNOUNCE_SECONDS:
                announced = now
                self._try(lambda: announce_run(self.dht, self.settings.run.name, self.announcement))
            if now - reconnected >= RECONNECT_SECONDS:
                reconnected = now
                self._try(lambda: refresh_known_peers(self.dht, self.folder))
            last_step = self.settings.optimizer.total_steps
            complete = self.reporter.status.step >= last_step > self.state_server.local_epoch
            if complete or now >= self._checkpoint_due:  # peers of a complete run wait until its last step is saved
                self._save_and_schedule(self._update_and_save)

    def _save_and_schedule(self, save: Callable[[], object]) -> None:
        """Save a checkpoint, and schedule the next one: soon if this one failed."""
        began, every = time.monotonic(), self.settings.checkpoints.every_seconds
        saved = self._try(save)
        self._checkpoint_due = began + every if saved else time.monotonic() + min(RETRY_SECONDS, every)

    def _try(self, act: Callable[[], object]) -> bool:
        """Run `act`; report an error and return False. A full disk or an unresponsive network must not stop the run:
        a later poll tries again."""
        try:
            act()
        except (TTTError, OSError) as error:
            self._report_problem(str(error))
            return False
        return True

    def _report_problem(self, text: str) -> None:
        if self.reporter.report_problem(text):
            with suppress(TTTError):  # the problem may be the history itself
                self.history.add_event(Event(time.time(), "problem", "", text))

    def _observe(self) -> None:
        """Read progress and metrics of the peers from the DHT, and record what is credible."""
        progress = read_progress(self.dht, self.prefix, self.settings.batch.global_batch)
        reading = read_all(self.dht, self.prefix)
        if not progress.answered or not reading.answered:
            self._report_problem("the network did not answer in time")
            return
        step = progress.step if progress.peers else self.state_server.local_epoch
        point = self.monitor.observe(reading, replace(progress, step=step), time.time())
        self.reporter.update(
            step=step,
            peers=progress.peers,
            swarm_samples=progress.samples_accumulated,
            samples_per_second=(point.samples_per_second if point else None) or 0.0,
            loss=point.loss if point else None,
            learning_rate=point.learning_rate if point else None,
        )

    def _update_and_save(self) -> None:
        """Download the newest state from a peer, and save it. Raises SwarmError if no peer provides it."""
        if self.reporter.status.step > self.state_server.local_epoch and not self.state_server.load_state_from_peers(
            timeout=self.settings.averaging.averaging_timeout
        ):
            raise SwarmError("no peer provided its state; the checkpoint waits until one does")
        self._offer_state()
        self._save()

    def _save(self) -> None:
        checkpoint = self.store.save(
            self.state_server.state(copy=True), self.model.dalle, self.model.bundle, self.announcement.generation
        )
        self.reporter.update(checkpoint=str(checkpoint.path))
        self.uploader.offer(checkpoint)
        self._sync_history_with_checkpoints()
        self.renderer.offer(checkpoint)

    def _offer_state(self) -> None:
        self.state_server.state_sharing_priority = self.state_server.local_epoch
        self.state_server.allow_state_sharing = True

    def _sync_history_with_checkpoints(self) -> None:
        """Make the history list exactly the checkpoints on the disk: the policy and users delete some."""
        on_disk = {self._relative(checkpoint.path): checkpoint for checkpoint in self.store.all()}
        listed = self.history.checkpoints()
        self.history.remove_checkpoints(listed - on_disk.keys())
        for name in sorted(on_disk.keys() - listed):
            self.history.add_checkpoint(self._entry(on_disk[name]))

    def _entry(self, checkpoint: Checkpoint) -> CheckpointEntry:
        samples = checkpoint.step * self.settings.batch.global_batch
        checksum = checkpoint.manifest.files.get(f"{BUNDLE}/dalle.safetensors", "")
        loss, path = self.reporter.status.loss, self._relative(checkpoint.path)
        return CheckpointEntry(checkpoint.manifest.time, checkpoint.step, samples, loss, path, checksum)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def _record_upload(self, name: str, text: str) -> None:
        """name: of the uploaded checkpoint, and `text` its URL; or empty, and `text` is what went wrong."""
        if name:
            self._try(lambda: self.history.set_checkpoint_url(f"{FOLDER}/{name}", text))
        else:
            self._report_problem(text)

    def _check_data(self) -> None:
        """Warn if peers will hardly find the data. Not an error: the folder may exist on their machines only."""
        try:
            check_source(self.settings.data.source)
        except (TTTError, OSError) as error:
            if not self.stop.is_set():
                self._report_problem(f"{error} (peers must find it; the coordinator need not)")


def is_plain_name(source: str) -> bool:
    """True if a data source is neither a URL, a Hub id nor a path: unless it is "scenes" it must be a typing error."""
    return not {"/", "*"} & set(source)


def check_source(source: str) -> None:
    """Raise InvalidInput if this machine cannot find the data. Reads no sample; tries a remote source three times."""
    if source == SCENES:
        return
    client = HttpClient(RetryPolicy(attempts=3, timeout=10.0))
    try:
        find_shards(source, client)
    except Exception as error:  # the Hub's libraries raise many types
        raise InvalidInput(
            f'[data] source of the run file is neither "{SCENES}" nor found from here: {first_line(error)}'
        ) from None
    finally:
        client.close()
