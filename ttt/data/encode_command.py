"""`ttt encode`: its options, its progress bar and its summary. Slow imports happen when the command runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttt.data.filters import EncodeSettings
from ttt.fields import expand_options
from ttt.text import format_bytes

if TYPE_CHECKING:
    from ttt.data.manifest import DatasetManifest


@expand_options
def encode_command(
    images: Annotated[
        str, typer.Argument(help="A folder of images with captions, webdataset .tar files, Parquet, or a Hub data set.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the shards. If it already holds some, encoding resumes.")],
    settings: EncodeSettings,
    model: Annotated[str, typer.Option(help="Bundle with the VQGAN to use: 'demo', a folder or a Hub id.")] = "demo",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub data set.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Image column of a table. Default: found by its name or type.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Caption column of a table. Default: found by its name.")
    ] = None,
) -> None:
    """Encode captioned images as shards of codes, to train on and to publish."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ttt.bundle import find_bundle
    from ttt.data.encode import encode
    from ttt.data.image_sources import find_images
    from ttt.hardware import choose_device

    chosen_device = choose_device(device)
    bundle = find_bundle(model)
    source = find_images(
        images, split=split, revision=revision, image_column=image_column, caption_column=caption_column
    )
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding", total=source.total)

        def report(counts: Counter[str], shards: int) -> None:
            skipped = counts["rows"] - counts["kept"]
            text = f"{counts['kept']:,} encoded, {skipped:,} skipped, {shards:,} shards; pairs read"
            bar.update(task, completed=counts["rows"], description=text)

        manifest = encode(source, out, bundle, settings, device=chosen_device, report=report)
    typer.echo("\n".join([summary(manifest, out), *source.warnings()]))


def summary(manifest: DatasetManifest, out: Path) -> str:
    """Numbers of pairs encoded and skipped, and how much smaller the shards are than the images."""
    from ttt.data.encode import skip_summary

    counts, side = manifest.counts, manifest.resolution
    lines = [
        f"{out}: {counts.get('kept', 0):,} pairs in {len(manifest.shards)} shards; each image, {side} x {side} "
        f"pixels, is {manifest.image_seq_len} codes of {manifest.num_image_tokens} (VQGAN of {manifest.model})"
    ]
    skipped = skip_summary(counts)
    if skipped:
        lines.append(f"skipped {counts['rows'] - counts['kept']:,} of {counts['rows']:,}: {skipped}")
    ratio = manifest.image_bytes / max(manifest.shard_bytes, 1)
    lines.append(
        f"images as stored {format_bytes(manifest.image_bytes)}, shards with their captions "
        f"{format_bytes(manifest.shard_bytes)}: {ratio:.1f}x less to download"
    )
    return "\n".join(lines)
