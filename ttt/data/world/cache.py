"""Scenes drawn once into files, then read through a memory map: training never waits for a drawing."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ttt.atomic import atomic_folder
from ttt.data.world import scenes as world
from ttt.data.world.backgrounds import SIDE
from ttt.data.world.captions import caption
from ttt.data.world.scenes import Kind, Scene

CAPTIONS = 4
"""Captions of every scene."""
_LONGEST = 200
"""Characters of a caption."""
_BLOCK = 500
"""Scenes drawn by a process at a time."""


class SceneCache:
    """`count` scenes of one seed, in a folder of their own.

    `images` is [count, SIDE, SIDE, 3] uint8 and `captions` [count, CAPTIONS] bytes, both memory-mapped; the scenes
    themselves are computed when they are asked for. A cache that was interrupted is drawn again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        count: int,
        kind: Kind | None = None,
        held_out: bool = False,
        processes: int = 1,
    ) -> None:
        """processes: that draw at the same time; `kind` and `held_out` as in `random_scene`."""
        self.seed, self.count, self.kind, self.held_out = seed, count, kind, held_out
        name = f"scenes-{seed}-{count}{'-' + kind if kind else ''}{'-held-out' if held_out else ''}"
        self.folder = folder / name
        if not self.folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_folder(self.folder) as partial:
                self._draw(partial, processes)
        # Copy on write, as torch warns of arrays that it may not write to.
        self.images: NDArray[np.uint8] = np.load(self.folder / "images.npy", mmap_mode="c")
        self.captions: NDArray[np.bytes_] = np.load(self.folder / "captions.npy", mmap_mode="c")

    def __len__(self) -> int:
        return self.count

    def scene(self, i: int) -> Scene:
        return next(world.stream(self.seed, kind=self.kind, held_out=self.held_out, start=i))[0]

    def texts(self, start: int, stop: int) -> list[str]:
        """All captions of the scenes from `start` to `stop`, scene by scene."""
        return [text.decode() for text in self.captions[start:stop].ravel()]

    def _draw(self, folder: Path, processes: int) -> None:
        create = np.lib.format.open_memmap
        create(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(self.count, SIDE, SIDE, 3)).flush()
        create(folder / "captions.npy", mode="w+", dtype=f"S{_LONGEST}", shape=(self.count, CAPTIONS)).flush()
        blocks = [(folder, self.seed, self.kind, self.held_out, start, min(start + _BLOCK, self.count))
                  for start in range(0, self.count, _BLOCK)]  # fmt: skip
        if processes == 1:
            for block in blocks:
                _draw_block(*block)
        else:
            # Fresh interpreters: a fork of a process that has used torch's threads may hang.
            with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
                list(pool.map(_draw_block, *zip(*blocks, strict=True)))


def _draw_block(folder: Path, seed: int, kind: Kind | None, held_out: bool, start: int, stop: int) -> None:
    images = np.lib.format.open_memmap(folder / "images.npy", mode="r+")
    captions = np.lib.format.open_memmap(folder / "captions.npy", mode="r+")
    found = world.stream(seed, kind=kind, held_out=held_out, start=start)
    for i, (scene, rng) in zip(range(start, stop), islice(found, stop - start), strict=True):
        images[i] = world.draw(scene)
        captions[i] = [caption(scene, rng).encode() for _ in range(CAPTIONS)]
    images.flush()
    captions.flush()
