"""Maps the settings of a run to hivemind's: compression, and the options of both averagers. Independent of training."""

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

MIN_8_BIT_ELEMENTS = 2**16
"""Smaller tensors are sent in 16 bits (Borzunov et al. 2022, section 3.2)."""


def compression(name: Compression) -> CompressionBase:
    """Return the compression of a run's settings. Call it before the averagers are made, which fork this process."""
    if name == "none":
        return NoCompression()
    if name == "blockwise-8-bit":
        # hivemind imports it at the first use, in the averager's process, which takes longer than chunk_timeout.
        import bitsandbytes.functional  # noqa: F401
    large = {
        "8-bit": Uniform8BitQuantization(),
        "blockwise-8-bit": BlockwiseQuantization(),
        "16-bit": Float16Compression(),
    }[name]
    return SizeAdaptiveCompression(threshold=MIN_8_BIT_ELEMENTS, less=Float16Compression(), greater_equal=large)


def averager_options(
    settings: AveragingSection, access: AccessPolicy | None, max_weight: float = 1.0
) -> dict[str, Any]:
    """Return the options of an averager that hivemind's Optimizer does not pass on.

    max_weight: parameters have weight 1, gradients the number of their samples.
    """
    return {
        "max_weight": max_weight,
        "request_timeout": settings.request_timeout,
        "target_group_size": settings.group_size or None,  # None: all trainers that the DHT knows
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
    """Return the coordinator's averager, which holds and serves the state, and never trains or averages."""
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
