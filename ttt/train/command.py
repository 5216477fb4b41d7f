"""`ttt train`: its options and its output. torch is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttt.fields import expand_options
from ttt.train.recipe import Recipe

if TYPE_CHECKING:
    from ttt.bundle import Bundle
    from ttt.config import DalleConfig


@expand_options
def train(
    data: Annotated[
        str, typer.Argument(help="'scenes', a folder or pattern of shards, a URL, or the Hub id of a data set.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the model. If it holds an unfinished run, training resumes.")],
    recipe: Recipe,
    parts: Annotated[
        str, typer.Option(help="Bundle with the VQGAN, tokenizer and CLIP to use: 'demo', a folder or a Hub id.")
    ] = "demo",
    model: Annotated[
        str, typer.Option(help="Size: 'same' as the parts, 'paper', or a JSON file with fields of DalleConfig.")
    ] = "same",
    weights: Annotated[
        str | None, typer.Option(help="Start from the weights of this model: 'demo', a bundle folder or a Hub id.")
    ] = None,
    micro_batch: Annotated[
        int, typer.Option(help="Samples computed at once; 0: the largest micro-batch that fits in memory.", min=0)
    ] = 0,
    held_out: Annotated[
        str | None, typer.Option(help="Shards to evaluate on; scenes have a held-out part of their own.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.", min=0.0)] = 60.0,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.", min=1)] = 500,
) -> None:
    """Train a model on this machine alone, without a swarm. OUT is a usable bundle from the start."""
    from ttt.bundle import find_bundle
    from ttt.train.single import Training
    from ttt.train.single import train as run

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
