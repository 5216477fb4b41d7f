"""Setting a run back to a checkpoint. Knows files alone; peers learn of it from the coordinator's announcement."""

from __future__ import annotations

import time
from pathlib import Path

from ttt.errors import SwarmError
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.coordinator.checkpoints import FOLDER, Checkpoint, CheckpointStore, damaged
from ttt.swarm.coordinator.generations import newest_generation, write_generation
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.history.types import Event
from ttt.swarm.history.writer import HISTORY_FILE, HistoryWriter
from ttt.swarm.process.lifecycle import locked_folder


def roll_back(folder: Path, settings: RunSettings, step: int) -> Checkpoint:
    """Drop every checkpoint after `step` and begin a new generation, whose peers never meet the old ones.

    CheckpointError where there is no such checkpoint, SwarmError where it is damaged; InvalidInput where the
    coordinator runs.
    """
    if not folder.is_dir():
        raise SwarmError(f"{folder} is not there; name the coordinator's folder with --folder")
    with locked_folder(folder):
        store = CheckpointStore(folder, settings.run.name, settings.checkpoints)
        kept = store.at(step)
        if wrong := damaged(kept):
            raise SwarmError(f"{wrong} is not what was written; choose another step")
        old = newest_generation(folder, (one.manifest.generation for one in store.all()))
        new = Announcement(generation=old.generation + 1 if old else 1)
        with _history(folder, settings) as history:
            store.drop_after(step)  # first: where this is killed, nothing that was dropped can come back as newest
            write_generation(folder, new)
            kept = store.mark(kept, new.generation)
            history.remove_checkpoints(history.checkpoints() - {f"{FOLDER}/{one.path.name}" for one in store.all()})
            history.add_event(Event(time.time(), "rollback", "", f"to step {step}"))
        return kept


def _history(folder: Path, settings: RunSettings) -> HistoryWriter:
    run = settings.run
    return HistoryWriter(
        folder / HISTORY_FILE, run.name, title=run.title, target_batch_size=settings.batch.global_batch
    )
