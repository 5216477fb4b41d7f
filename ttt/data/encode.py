"""Encodes captioned images as VQGAN codes and writes Parquet shards in the published columns.

Independent of the command line and of the network.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.data.filters import EncodeSettings, Filters
from ttt.data.image_sources import ImageSource
from ttt.data.images import SKIP_REASONS, PreparedImage, prepare_image
from ttt.data.manifest import DatasetManifest, codebook_of
from ttt.data.rows import MAX_CODEBOOK
from ttt.data.shard_folder import EncodedSoFar, ShardFolder
from ttt.errors import DataError, InvalidInput
from ttt.hardware import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ttt.bundle import Bundle
    from ttt.model.vqgan import Vqgan

Report = Callable[[Counter[str], int], None]
"""Called after every batch with the counts so far and the number of shards written."""


def encode(
    images: ImageSource,
    out: str | os.PathLike[str],
    bundle: Bundle,
    settings: EncodeSettings | None = None,
    *,
    device: str | torch.device = "cpu",
    report: Report = lambda counts, shards: None,
) -> DatasetManifest:
    """Encode all images with the VQGAN of `bundle` into the folder `out`; resumes if it already holds some.

    However often encoding was killed, the shards have the same bytes as after an undisturbed run on the same device.
    Raises InvalidInput or DataError.
    """
    settings = settings or EncodeSettings()
    folder = ShardFolder(Path(out), describe(images, bundle, settings))
    report(Counter(folder.done.counts), folder.done.shards)
    if folder.finished is not None:
        return folder.finished
    import torch

    from ttt.bundle.weights import load_vqgan_from

    vqgan = load_vqgan_from(bundle, device).to(memory_format=torch.channels_last)  # 1.4x faster on CPUs
    return _Encoder(images, folder, vqgan, settings, torch.device(device), report).run()


def describe(images: ImageSource, bundle: Bundle, settings: EncodeSettings) -> DatasetManifest:
    """The content of `dataset.json` before anything is encoded."""
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
            **{name: getattr(settings, name) for name in Filters.model_fields},
        },
    )


@dataclass
class _Encoder:
    """Encodes from the position where the folder stands.

    A batch never extends over the end of a shard. Resuming at the end of a shard therefore makes the same batches as
    an undisturbed run, which matters because the codes of an image may depend on its batch.
    """

    images: ImageSource
    folder: ShardFolder
    vqgan: Vqgan
    settings: EncodeSettings
    device: torch.device
    report: Report
    pending: list[PreparedImage] = field(default_factory=list)
    encoded: list[PreparedImage] = field(default_factory=list)
    codes: list[NDArray[np.int16]] = field(default_factory=list)

    def run(self) -> DatasetManifest:
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
            is_full = len(self.encoded) + len(self.pending) == self.settings.shard_size
            if is_full or len(self.pending) == self.settings.batch_size:
                self._encode_pending()
                self.report(counts, self.folder.done.shards)
            if is_full:
                self._write(position, counts, image_bytes)
        self._encode_pending()
        if self.encoded:
            self._write(position, counts, image_bytes)
        self.report(counts, self.folder.done.shards)
        if not counts["kept"]:
            skipped = "; ".join([skip_summary(counts) or "there are none", *self.images.warnings()])
            raise DataError(f"none of the images could be used: {skipped}")
        return self.folder.finish(EncodedSoFar(self.folder.done.shards, position, dict(counts), image_bytes))

    def _prepared(self, position: Any) -> Iterator[tuple[PreparedImage | str, Any]]:
        """Pairs in their order, each with the position after it; decoded in threads a little ahead of the VQGAN."""
        threads = min(os.cpu_count() or 1, 8)
        ahead = self.settings.batch_size + 2 * threads
        waiting: deque[tuple[Future[PreparedImage | str], Any]] = deque()
        resolution, settings = self.vqgan.config.resolution, self.settings
        with ThreadPoolExecutor(threads, thread_name_prefix="ttt-decode") as pool:
            for pair, after in self.images.pairs(position):
                waiting.append((pool.submit(prepare_image, pair, resolution, settings, settings.unlabelled), after))
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

        pixels = torch.from_numpy(np.stack([image.pixels for image in self.pending])).to(self.device)
        try:
            # [b, h, w, 3] -> [b, 3, h, w] -> [b, n]
            codes = self.vqgan.encode(pixels.permute(0, 3, 1, 2).float() / 255)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InvalidInput(
                f"batches of {self.settings.batch_size} images do not fit in the memory of {self.device}; run the same "
                "command with a smaller --batch-size (the shards that are finished are kept)"
            ) from None
        self.codes.append(codes.cpu().numpy().astype(np.int16))
        self.encoded += self.pending
        self.pending = []

    def _write(self, position: Any, counts: Counter[str], image_bytes: int) -> None:
        done = EncodedSoFar(self.folder.done.shards + 1, position, dict(counts), image_bytes)
        self.folder.write(self.encoded, np.concatenate(self.codes), done)
        self.encoded, self.codes = [], []


def skip_summary(counts: Counter[str] | dict[str, int]) -> str:
    """The reasons for which pairs were skipped, with their numbers: "caption too short: 3"."""
    return "; ".join(f"{label}: {counts[kind]:,}" for kind, label in SKIP_REASONS.items() if counts.get(kind))
