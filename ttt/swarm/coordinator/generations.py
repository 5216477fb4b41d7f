"""Stores the generation of a run, and rolls a run back to a checkpoint. Works on files; independent of the network.

A roll-back starts a new generation. Its number is part of the prefix of all DHT keys, so that peers of different
generations never meet; peers learn of it from the coordinator's announcement, and rejoin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ttt.atomic import write_atomically
from ttt.errors import SwarmError
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.coordinator.checkpoints import FOLDER, Checkpoint, CheckpointStore, damaged
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.history.schema import HISTORY_FILE
from ttt.swarm.history.types import Event
from ttt.swarm.history.writer import HistoryWriter
from ttt.swarm.process.lifecycle import locked_folder

FILE = "generation.json"


def read_generation(folder: Path) -> Announcement | None:
    """Read the generation file; None if there is none yet. Raises SwarmError if it cannot be read."""
    path = folder / FILE
    try:
        return Announcement.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise SwarmError(
            f"{path}, which counts the roll-backs of the run, cannot be read ({cause}); delete it if the run was never "
            "rolled back, or restore a copy"
        ) from None


def newest_generation(
    folder: Path, of_checkpoints: Iterable[int], warn: Callable[[str], object] = lambda problem: None
) -> Announcement | None:
    """Return the generation of the file, or that of the checkpoints if it is later; None for a new run.

    of_checkpoints: the generations of the checkpoints. If the file cannot be read, `warn` is called with the problem
    and the checkpoints decide; without checkpoints SwarmError is raised.
    """
    newest = max(of_checkpoints, default=None)
    try:
        announcement = read_generation(folder)
    except SwarmError as error:
        if newest is None:
            raise
        warn(f"{error}; for now generation {newest} is used, as in the checkpoints")
        announcement = None
    if newest is None or (announcement is not None and announcement.generation >= newest):
        return announcement
    return Announcement(generation=newest)


def write_generation(folder: Path, announcement: Announcement) -> None:
    write_atomically(folder / FILE, announcement.model_dump_json().encode(), durable=True)


def roll_back(folder: Path, settings: RunSettings, step: int) -> Checkpoint:
    """Delete all checkpoints after `step`, and start a new generation from the checkpoint of `step`.

    Raises CheckpointError if there is no such checkpoint, SwarmError if it is damaged, InvalidInput if the coordinator
    is running.
    """
    if not folder.is_dir():
        raise SwarmError(f"{folder} does not exist; give the coordinator's folder with --folder")
    with locked_folder(folder):
        store = CheckpointStore(folder, settings.run.name, settings.checkpoints)
        checkpoint = store.at(step)
        if path := damaged(checkpoint):
            raise SwarmError(f"{path} is damaged; choose another step")
        old = newest_generation(folder, (saved.manifest.generation for saved in store.all()))
        new = Announcement(generation=old.generation + 1 if old else 1)
        with open_history(folder, settings) as history:
            # Delete first: if the process is killed here, no deleted checkpoint can come back as the newest one.
            store.drop_after(step)
            write_generation(folder, new)
            checkpoint = store.mark(checkpoint, new.generation)
            remaining = {f"{FOLDER}/{saved.path.name}" for saved in store.all()}
            history.remove_checkpoints(history.checkpoints() - remaining)
            history.add_event(Event(time.time(), "rollback", "", f"to step {step}"))
        return checkpoint


def open_history(folder: Path, settings: RunSettings) -> HistoryWriter:
    """Open the history of a run for writing."""
    run = settings.run
    return HistoryWriter(
        folder / HISTORY_FILE, run.name, title=run.title, target_batch_size=settings.batch.global_batch
    )
