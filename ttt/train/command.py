"""`python -m ttt train`: its options, and what it says. Knows no torch until it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttt.errors import InvalidInput
from ttt.train.recipe import Recipe

if TYPE_CHECKING:
    from ttt.bundle import Bundle
    from ttt.config import DalleConfig

DEFAULTS = Recipe()


def train(
    data: Annotated[str, typer.Argument(help="scenes, a folder or glob of shards, a URL, or a Hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder of the model; goes on where it stopped if there is one.")],
    parts: Annotated[
        str, typer.Option(help="Whose VQGAN, tokenizer and CLIP to use: demo, a bundle folder or a Hub id.")
    ] = "demo",
    model: Annotated[
        str, typer.Option(help="Size: that of the parts ('same'), 'paper', or a JSON file of DalleConfig's fields.")
    ] = "same",
    weights: Annotated[str | None, typer.Option(help="Start from a model: demo, a bundle folder or a Hub id.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = DEFAULTS.steps,
    batch_size: Annotated[int, typer.Option(help="Samples of a step.", min=1)] = 64,
    micro_batch: Annotated[int, typer.Option(help="Samples at once; 0: as many as fit.", min=0)] = 0,
    learning_rate: Annotated[float, typer.Option(help="At its peak.", min=0.0)] = DEFAULTS.learning_rate,
    warmup: Annotated[float, typer.Option(help="Share of the steps.", min=0.0, max=1.0)] = DEFAULTS.warmup,
    weight_decay: Annotated[float, typer.Option(min=0.0)] = DEFAULTS.weight_decay,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.", min=0.0)] = DEFAULTS.clip,
    state_bits: Annotated[int, typer.Option(help="Of the optimizer's state: 8 or 32.")] = DEFAULTS.state_bits,
    seed: Annotated[int, typer.Option(min=0)] = DEFAULTS.seed,
    held_out: Annotated[str | None, typer.Option(help="More shards, to evaluate on. Scenes have their own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.", min=0.0)] = 60.0,
    evaluate_every: Annotated[int, typer.Option(help="Steps between records.", min=1)] = 500,
) -> None:
    """Train a model on this machine alone, without a swarm. OUT is a bundle from the first minute on."""
    from ttt.bundle import find_bundle
    from ttt.train.single import Training
    from ttt.train.single import train as run

    if state_bits not in (8, 32):
        raise InvalidInput(f"--state-bits must be 8 or 32, got {state_bits}")
    found = find_bundle(parts)
    recipe = replace(
        DEFAULTS, steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup,
        weight_decay=weight_decay, clip=clip, state_bits=state_bits, seed=seed,
    )  # fmt: skip
    training = Training(
        data=data,
        parts=found,
        config=_config(model, found),
        recipe=recipe,
        weights=None if weights is None else find_bundle(weights),
        held_out=held_out,
        device=device,
        precision=precision,
        micro_batch=micro_batch or None,
    )
    bundle = run(training, out, save_every=save_every, evaluate_every=evaluate_every)
    typer.echo(f"{bundle.root}  {recipe.steps} steps of {recipe.batch_size} samples")


def _config(model: str, parts: Bundle) -> DalleConfig:
    if model == "same":
        return parts.dalle
    from ttt.bundle.convert import read_dalle_config
    from ttt.config import PAPER

    return PAPER if model == "paper" else read_dalle_config(model)
