"""Setting a run back to a checkpoint. Knows files alone; peers learn of it from the coordinator's announcement."""

from __future__ import annotations

import time
from pathlib import Path

from ttt.errors import SwarmError
from ttt.swarm.checkpoints import Checkpoint, CheckpointStore, damaged
from ttt.swarm.generation import Announcement, read_generation, write_generation
from ttt.swarm.processes import own_folder
from ttt.swarm.settings import RunSettings


def roll_back(folder: Path, settings: RunSettings, epoch: int) -> Checkpoint:
    """Drop every checkpoint after `epoch` and begin a new generation, whose peers never meet the old ones.

    CheckpointError where there is no such checkpoint or it is damaged; InvalidInput where the coordinator runs.
    """
    if not folder.is_dir():
        raise SwarmError(f"{folder} is not there; name the coordinator's folder with --folder")
    with own_folder(folder):
        store = CheckpointStore(folder, settings.run.name, settings.checkpoints)
        kept = store.at(epoch)
        if wrong := damaged(kept):
            raise SwarmError(f"{wrong} is not what was written; choose another step")
        old = read_generation(folder)
        write_generation(folder, Announcement(generation=old.generation + 1 if old else 1, founded=time.time()))
        store.drop_after(epoch)
        return kept
