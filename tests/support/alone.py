"""A real optimizer of a swarm without other peers, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ttt.swarm.averaging.optimizer import OptimizerEvents, SwarmOptimizer
from ttt.swarm.averaging.training_state import OptimizerSpec, parameter_names
from ttt.swarm.config.run_config import AveragingSection
from ttt.swarm.dht.identity import load_identity
from ttt.swarm.dht.node import start_dht
from ttt.train.optimizer import Lamb, linear_schedule

TIMES: dict[str, Any] = {"matchmaking_time": 2, "request_timeout": 1, "chunk_timeout": 1, "averaging_timeout": 4}


def optimizer_spec() -> OptimizerSpec:
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 6)
    groups = [{"params": list(model.parameters())}]
    return OptimizerSpec(
        groups, parameter_names(groups, model), lambda params: Lamb(params, lr=0.1),
        lambda made: linear_schedule(made, total_steps=100, warmup_steps=1),
    )  # fmt: skip


class Stopping(OptimizerEvents):
    """A peer that is stopping, so that nothing waits."""

    def stop_requested(self) -> bool:
        return True


@contextmanager
def alone(folder: Path, *, auxiliary: bool = False, **settings: Any) -> Iterator[SwarmOptimizer]:
    """settings: values for the run's [averaging] section."""
    path, key = load_identity(folder)
    dht = start_dht([], identity=path, key=key, listen=["/ip4/127.0.0.1/tcp/0"], required=False)
    made = SwarmOptimizer(
        dht=dht, run_prefix="alone-g0", spec=optimizer_spec(), settings=AveragingSection(**TIMES, **settings),
        global_batch=64, key=key, events=Stopping(), micro_batch=None if auxiliary else 1,
        auxiliary=auxiliary,
    )  # fmt: skip
    yield made
    made.shutdown()
    dht.shutdown()
