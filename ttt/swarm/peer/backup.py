"""A peer's own copy of the state, for when the swarm has none to give. One safetensors file; knows no network."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ttt.errors import CheckpointError
from ttt.swarm.averaging.training_state import TrainingState

FILE = "backup.safetensors"


def save_backup(folder: Path, state: TrainingState, generation: int) -> None:
    """Replace the last one, whole or not at all; CheckpointError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = folder / f".{FILE}.partial"
    about = {"step": str(state.epoch), "generation": str(generation), "scalars": json.dumps(state.scalars)}
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, temporary, metadata=about)
        temporary.replace(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / FILE} could not be written: {error}; free some space") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_backup(folder: Path, generation: int | None = None) -> TrainingState | None:
    """None where there is none (of this generation), or it cannot be read."""
    from safetensors import safe_open

    with contextlib.suppress(Exception), safe_open(folder / FILE, framework="pt") as file:
        about = file.metadata()
        if generation is None or int(about["generation"]) == generation:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return TrainingState(int(about["step"]), tensors, json.loads(about["scalars"]))
    return None
