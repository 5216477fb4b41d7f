"""How a run's settings become hivemind's: compression, options of the averagers, the coordinator's keeper of the state.

Knows no training.
"""

from __future__ import annotations

from typing import Any

import hivemind
from hivemind.compression import (
    BlockwiseQuantization,
    CompressionBase,
    Float16Compression,
    NoCompression,
    SizeAdaptiveCompression,
    Uniform8BitQuantization,
)

from ttt.swarm.averaging.state_averager import SwarmStateAverager
from ttt.swarm.averaging.training_state import OptimizerSpec
from ttt.swarm.config.run_config import AveragingSection, Compression
from ttt.swarm.dht.access import AccessPolicy

RUN_THRESHOLD = 2**16
"""Elements from which a tensor is sent in 8 bits (Borzunov et al. 2022, section 3.2)."""


def compression(name: Compression) -> CompressionBase:
    """Of the run's settings; made before the averagers, which are forked from this process."""
    if name == "none":
        return NoCompression()
    if name == "blockwise-8-bit":  # its import takes longer than a round waits for a part
        import bitsandbytes.functional  # noqa: F401
    large = {
        "8-bit": Uniform8BitQuantization(),
        "blockwise-8-bit": BlockwiseQuantization(),
        "16-bit": Float16Compression(),
    }[name]
    return SizeAdaptiveCompression(threshold=RUN_THRESHOLD, less=Float16Compression(), greater_equal=large)


def averager_options(
    settings: AveragingSection, access: AccessPolicy | None, max_weight: float = 1.0
) -> dict[str, Any]:
    """Of both averagers, beyond what hivemind's Optimizer passes on. Parameters weigh 1 each, gradients by samples."""
    return {
        "max_weight": max_weight,
        "request_timeout": settings.request_timeout,
        "target_group_size": settings.group_size or None,
        "allow_state_sharing": False,  # until there is a state to share
        "access": access,
    }


def make_state_server(
    dht: hivemind.DHT,
    run_prefix: str,
    spec: OptimizerSpec,
    settings: AveragingSection,
    access: AccessPolicy | None,
) -> SwarmStateAverager:
    """Holds and offers the state without ever training or averaging: the coordinator's."""
    return SwarmStateAverager(
        dht=dht,
        optimizer=spec.build_optimizer,
        params=spec.groups,
        scheduler=spec.make_schedule,
        names=spec.names,
        prefix=f"{run_prefix}_state_averager",
        min_matchmaking_time=settings.matchmaking_time,
        next_chunk_timeout=settings.chunk_timeout,
        offload_optimizer=True,
        custom_gradients=True,
        start=True,
        **averager_options(settings, access),
    )
