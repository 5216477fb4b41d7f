"""What the coordinator announces of its run, and remembers of it. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ttt.atomic import write_atomically
from ttt.errors import SwarmError
from ttt.swarm.dht.announcement import Announcement

FILE = "generation.json"


def read_generation(folder: Path) -> Announcement | None:
    """None where there is none yet; SwarmError where it cannot be read."""
    path = folder / FILE
    try:
        return Announcement.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise SwarmError(
            f"{path} cannot be read ({why}), which says how often the run was rolled back; delete it if it never "
            "was, or bring back a copy"
        ) from None


def newest_generation(
    folder: Path, kept: Iterable[int], warn: Callable[[str], object] = lambda why: None
) -> Announcement | None:
    """What the file says, or the checkpoints where they know of a later generation; None for a new run.

    kept: generations of the checkpoints. A file that cannot be read is told to `warn`; SwarmError where there are no
    checkpoints either.
    """
    newest = max(kept, default=None)
    try:
        found = read_generation(folder)
    except SwarmError as error:
        if newest is None:
            raise
        warn(f"{error}; its checkpoints say {newest}, which is taken for now")
        found = None
    if newest is None or (found is not None and found.generation >= newest):
        return found
    return Announcement(generation=newest)


def write_generation(folder: Path, announcement: Announcement) -> None:
    write_atomically(folder / FILE, announcement.model_dump_json().encode(), durable=True)
