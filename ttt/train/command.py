"""`ttt train`: its options and its output. torch is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttt.options import default, option
from ttt.train.recipe import Recipe

if TYPE_CHECKING:
    from ttt.bundle import Bundle
    from ttt.config import DalleConfig

BATCH_SIZE = 64
"""The recipe's 4,096 samples are the global batch of a swarm; one machine starts with fewer."""


def train(
    data: Annotated[
        str, typer.Argument(help="'scenes', a folder or pattern of shards, a URL, or the Hub id of a data set.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the model. If it holds an unfinished training, it resumes.")],
    parts: Annotated[
        str, typer.Option(help="Bundle with the VQGAN, tokenizer and CLIP to use: 'demo', a folder or a Hub id.")
    ] = "demo",
    model: Annotated[
        str, typer.Option(help="Size: 'same' as the parts, 'paper', or a JSON file with fields of DalleConfig.")
    ] = "same",
    weights: Annotated[
        str | None, typer.Option(help="Start from the weights of this model: 'demo', a bundle folder or a Hub id.")
    ] = None,
    steps: Annotated[int, option(Recipe, "steps")] = default(Recipe, "steps"),
    batch_size: Annotated[int, option(Recipe, "batch_size")] = BATCH_SIZE,
    micro_batch: Annotated[
        int, typer.Option(help="Samples computed at once; 0: the largest micro-batch that fits in memory.", min=0)
    ] = 0,
    learning_rate: Annotated[float, option(Recipe, "learning_rate")] = default(Recipe, "learning_rate"),
    warmup: Annotated[float, option(Recipe, "warmup")] = default(Recipe, "warmup"),
    weight_decay: Annotated[float, option(Recipe, "weight_decay")] = default(Recipe, "weight_decay"),
    clip: Annotated[float, option(Recipe, "clip")] = default(Recipe, "clip"),
    state_bits: Annotated[int, option(Recipe, "state_bits")] = default(Recipe, "state_bits"),
    seed: Annotated[int, option(Recipe, "seed")] = default(Recipe, "seed"),
    held_out: Annotated[
        str | None, typer.Option(help="Shards to evaluate on; scenes have a held-out part of their own.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.", min=0.0)] = 60.0,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.", min=1)] = 500,
) -> None:
<<<<<<< HEAD
    """Train a model on this machine alone, without a swarm. OUT is a bundle from the first minute on."""
    from ttt.bundle import find_bundle
=======
    """Train a model on this machine alone, without a swarm. OUT is a usable bundle from the first minute."""
    from ttt.bundle.hub import find_bundle
>>>>>>> eebe418 (data: wait out rate limits, accept loose answers to range requests)
    from ttt.train.single import Training
    from ttt.train.single import train as run

    recipe = Recipe(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay,
        clip=clip, state_bits=state_bits, seed=seed,
    )  # fmt: skip
    parts_bundle = find_bundle(parts)
    training = Training(
        data=data,
        parts=parts_bundle,
        config=_config(model, parts_bundle),
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
