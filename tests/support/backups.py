"""The distance of the models in two backups."""

from __future__ import annotations

from ttt.swarm.averaging.training_state import TrainingState


def distance_of(a: TrainingState, b: TrainingState) -> float:
    """Return |a - b| / |a| over all parameters of two states of one model."""
    names = {n for n in a.tensors if n.startswith("parameters/")}
    assert names == {n for n in b.tensors if n.startswith("parameters/")}
    square = sum(float((a.tensors[n] - b.tensors[n]).double().square().sum()) for n in names)
    norm = sum(float(a.tensors[n].double().square().sum()) for n in names)
    return float((square / norm) ** 0.5)
