"""Scenes drawn once into a file, then read through a memory map: training never waits for a drawing."""

from __future__ import annotations

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ttt.data.world import scenes as world
from ttt.data.world.backgrounds import SIDE
from ttt.data.world.captions import caption
from ttt.data.world.scenes import Kind, Scene

Pixels = NDArray[np.uint8]

_BLOCK = 500
"""Scenes drawn by a process at a time."""


class SceneCache:
    """`count` scenes of one seed. `images` is [count, SIDE, SIDE, 3] uint8; scenes and captions are computed anew.

    A cache that exists is read; one that was interrupted is drawn again.
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
        self.path = folder / f"scenes-{seed}-{count}{'-' + kind if kind else ''}{'-held-out' if held_out else ''}.npy"
        if not self.path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._draw(processes)
        self.images: Pixels = np.load(self.path, mmap_mode="r")

    def __len__(self) -> int:
        return self.count

    def scene(self, i: int) -> Scene:
        return next(world.stream(self.seed, kind=self.kind, held_out=self.held_out, start=i))[0]

    def caption(self, i: int, version: int = 0) -> str:
        """One of many captions of scene `i`: another for each `version`."""
        return caption(self.scene(i), random.Random(f"caption/{self.seed}/{i}/{version}"))

    def _draw(self, processes: int) -> None:
        part = self.path.with_suffix(".part")
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(self.count, SIDE, SIDE, 3))
        images.flush()
        blocks = [(part, self.seed, self.kind, self.held_out, start, min(start + _BLOCK, self.count))
                  for start in range(0, self.count, _BLOCK)]  # fmt: skip
        if processes == 1:
            for block in blocks:
                _draw_block(*block)
        else:
            # Fresh interpreters: a fork of a process that has used torch's threads may hang.
            with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
                list(pool.map(_draw_block, *zip(*blocks, strict=True)))
        part.replace(self.path)


def _draw_block(path: Path, seed: int, kind: Kind | None, held_out: bool, start: int, stop: int) -> None:
    images = np.lib.format.open_memmap(path, mode="r+")
    found = world.stream(seed, kind=kind, held_out=held_out, start=start)
    for i, (scene, _) in zip(range(start, stop), islice(found, stop - start), strict=True):
        images[i] = world.draw(scene)
    images.flush()
