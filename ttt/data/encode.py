"""Captioned images -> codes -> Parquet shards in the published columns. Knows no command line and no network."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.data.image_folder import ImageSource
from ttt.data.images import PreparedImage, prepare_image
from ttt.data.manifest import DatasetManifest, codebook_of
from ttt.data.rows import MAX_CODEBOOK, Filters
from ttt.data.shard_folder import Done, ShardFolder
from ttt.errors import DataError, InvalidInput

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ttt.bundle import Bundle
    from ttt.model.vqgan import Vqgan

SHARD_SIZE = 10_000
BATCH_SIZE = 16
Report = Callable[[Counter[str], int], None]
"""Called with the counts so far and the number of shards written, after every batch."""


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """What the shards depend on, beside the images and the VQGAN."""

    filters: Filters = field(default_factory=Filters)
    unlabelled: str = "UNLIKELY"
    """NSFW label written for images that have none: whoever encodes them vouches for them."""
    shard_size: int = SHARD_SIZE
    """Rows a shard."""
    batch_size: int = BATCH_SIZE
    """Images that the VQGAN encodes at once."""

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be a whole number from 1, got {getattr(self, name)!r}")


def encode(
    images: ImageSource,
    out: str | os.PathLike[str],
    bundle: Bundle,
    settings: EncodeSettings | None = None,
    *,
    device: str | torch.device = "cpu",
    report: Report = lambda counts, shards: None,
) -> DatasetManifest:
    """Encode all images with the VQGAN of `bundle` into the folder `out`; where it holds a part of them, go on.

    However often it was killed before, the shards are the same bytes as of an undisturbed run on the same device.
    """
    settings = settings or EncodeSettings()
    folder = ShardFolder(Path(out), describe(images, bundle, settings))
    report(Counter(folder.done.counts), folder.done.shards)
    if folder.finished is not None:
        return folder.finished
    import torch

    from ttt.bundle.weights import load_vqgan_from

    vqgan = load_vqgan_from(bundle, device).to(memory_format=torch.channels_last)  # 1.4x faster on CPUs
    return _Run(images, folder, vqgan, settings, torch.device(device), report).to_the_end()


def describe(images: ImageSource, bundle: Bundle, settings: EncodeSettings) -> DatasetManifest:
    """What `dataset.json` will say, before anything is encoded."""
    if bundle.vqgan.n_embed > MAX_CODEBOOK:
        raise InvalidInput(f"{bundle.name} has {bundle.vqgan.n_embed} codes; at most {MAX_CODEBOOK} fit the columns")
    return DatasetManifest(
        model=bundle.name,
        codebook=codebook_of(bundle.vqgan_file),
        resolution=bundle.vqgan.resolution,
        image_seq_len=bundle.vqgan.fmap_size**2,
        num_image_tokens=bundle.vqgan.n_embed,
        settings={
            "images": images.fingerprint,
            "shard_size": settings.shard_size,
            "unlabelled": settings.unlabelled,
            **settings.filters.to_dict(),
        },
    )


@dataclass
class _Run:
    """Encoding from where the folder stands. A batch never reaches over the end of a shard, so that going on from a
    shard's end makes the same batches as coming from before it: the codes of an image may depend on its batch.
    """

    images: ImageSource
    folder: ShardFolder
    vqgan: Vqgan
    settings: EncodeSettings
    device: torch.device
    report: Report
    pending: list[PreparedImage] = field(default_factory=list)
    pictures: list[PreparedImage] = field(default_factory=list)
    codes: list[NDArray[np.int16]] = field(default_factory=list)

    def to_the_end(self) -> DatasetManifest:
        done = self.folder.done
        counts, image_bytes = Counter(done.counts), done.image_bytes
        position = done.position
        for prepared, position in self._prepared(done.position):
            counts["rows"] += 1
            if isinstance(prepared, str):
                counts[prepared] += 1
                continue
            counts["kept"] += 1
            image_bytes += prepared.stored_bytes
            self.pending.append(prepared)
            is_full = len(self.pictures) + len(self.pending) == self.settings.shard_size
            if is_full or len(self.pending) == self.settings.batch_size:
                self._encode_pending()
                self.report(counts, self.folder.done.shards)
            if is_full:
                self._write(position, counts, image_bytes)
        self._encode_pending()
        if self.pictures:
            self._write(position, counts, image_bytes)
        self.report(counts, self.folder.done.shards)
        if not counts["kept"]:
            told = ", ".join(f"{kind} {count:,}" for kind, count in counts.items()) or "there were none"
            raise DataError(f"none of the images could be used: {told}")
        return self.folder.finish(Done(self.folder.done.shards, position, dict(counts), image_bytes))

    def _prepared(self, position: Any) -> Iterator[tuple[PreparedImage | str, Any]]:
        """Pairs in their order, decoded by some threads a little ahead of the VQGAN."""
        threads = min(os.cpu_count() or 1, 8)
        ahead = self.settings.batch_size + 2 * threads
        waiting: deque[tuple[Future[PreparedImage | str], Any]] = deque()
        resolution, filters = self.vqgan.config.resolution, self.settings.filters
        with ThreadPoolExecutor(threads, thread_name_prefix="ttt-decode") as pool:
            for pair, after in self.images.pairs(position):
                waiting.append((pool.submit(prepare_image, pair, resolution, filters, self.settings.unlabelled), after))
                if len(waiting) > ahead:
                    future, after = waiting.popleft()
                    yield future.result(), after
            while waiting:
                future, after = waiting.popleft()
                yield future.result(), after

    def _encode_pending(self) -> None:
        if not self.pending:
            return
        import torch

        pixels = torch.from_numpy(np.stack([picture.pixels for picture in self.pending])).to(self.device)
        try:
            codes = self.vqgan.encode(pixels.permute(0, 3, 1, 2).float() / 255)
        except torch.OutOfMemoryError:
            raise InvalidInput(
                f"batches of {self.settings.batch_size} images don't fit the memory of {self.device}; run the same "
                "command with a smaller --batch-size: what is done is kept"
            ) from None
        self.codes.append(codes.cpu().numpy().astype(np.int16))
        self.pictures += self.pending
        self.pending = []

    def _write(self, position: Any, counts: Counter[str], image_bytes: int) -> None:
        done = Done(self.folder.done.shards + 1, position, dict(counts), image_bytes)
        self.folder.write(self.pictures, np.concatenate(self.codes), done)
        self.pictures, self.codes = [], []
