"""`python -m ttt encode`: names to parts, a bar while it runs, what it saved. Knows no pixels and no files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.bundle import find_bundle
from ttt.data.encode import EncodeSettings, encode
from ttt.data.image_table import find_images
from ttt.data.images import SKIP_REASONS
from ttt.data.manifest import DatasetManifest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images of a data set, and where in its rows."""

    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    caption_column: str | None = None


def run(
    images: str, out: Path, *, model: str, settings: EncodeSettings, options: ImageOptions, device: torch.device
) -> str:
    """Encode, with a bar on stderr; -> what was done and saved, for people."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bundle = find_bundle(model)
    source = find_images(images, **vars(options))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding", total=source.total)

        def report(counts: Counter[str], shards: int) -> None:
            skipped = counts["rows"] - counts["kept"]
            text = f"{counts['kept']:,} encoded, {skipped:,} skipped, {shards} shards; pairs read"
            bar.update(task, completed=counts["rows"], description=text)

        manifest = encode(source, out, bundle, settings, device=device, report=report)
    return summary(manifest, out)


def summary(manifest: DatasetManifest, out: Path) -> str:
    """Counts, bytes and how much less there is to download."""
    counts, side = manifest.counts, manifest.resolution
    lines = [
        f"{out}: {counts.get('kept', 0):,} pairs in {len(manifest.shards)} shards; each picture, {side} x {side} "
        f"pixels, is {manifest.image_seq_len} codes of {manifest.num_image_tokens} (VQGAN of {manifest.model})"
    ]
    skipped = [f"{words}: {counts[kind]:,}" for kind, words in SKIP_REASONS.items() if counts.get(kind)]
    if skipped:
        lines.append(f"skipped {counts['rows'] - counts['kept']:,} of {counts['rows']:,}: {'; '.join(skipped)}")
    ratio = manifest.image_bytes / max(manifest.shard_bytes, 1)
    lines.append(
        f"images as stored {manifest.image_bytes / 1e6:,.2f} MB, shards with their captions "
        f"{manifest.shard_bytes / 1e6:,.2f} MB: {ratio:.1f}x less to download"
    )
    return "\n".join(lines)
