"""Candidates of the demo's transformer for training captions, each judged right or wrong by the checker.

CLIP learns from them what it is for: to rank the candidates of one prompt. Independent of CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ttt.atomic import atomic_file
from ttt.data.world import scenes as world
from ttt.data.world.captions import caption, names_background
from ttt.data.world.checker import check_scene
from ttt.data.world.scenes import Scene
from ttt.pipeline import TextToImage
from ttt.train.demo_dalle import sample

SEED, PROMPTS_IN_FILE = 6_000_000, 50


@dataclass(frozen=True)
class Candidates:
    """Candidates for one scene's caption: uint8 [k, 3, h, w] each."""

    scene: Scene
    right: Tensor
    wrong: Tensor


def sample_candidates(
    pipe: TextToImage,
    folder: Path,
    *,
    prompts: int,
    candidates: int = 32,
    right: int = 4,
    wrong: int = 12,
    held_out: bool = False,
) -> list[Candidates]:
    """Sample, or read what an earlier call left in `folder`; scenes without a right or a wrong one are left out.

    right, wrong: at most so many are kept of a prompt; held_out: of scenes that training never shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result: list[Candidates] = []
    for start in tqdm(range(0, prompts, PROMPTS_IN_FILE), desc="candidates", mininterval=5.0):
        source = world.stream(SEED, held_out=held_out, start=start)
        scenes = [(scene, caption(scene, rng)) for scene, rng in islice(source, min(PROMPTS_IN_FILE, prompts - start))]
        path = folder / f"{start:06d}.safetensors"
        if not path.exists():
            tensors: dict[str, Tensor] = {}
            for i, (scene, text) in enumerate(scenes):
                good, bad = _judged(pipe, scene, text, start + i, candidates)
                tensors |= {f"{i}.right": good[:right].contiguous(), f"{i}.wrong": bad[:wrong].contiguous()}
            with atomic_file(path) as partial:
                save_file(tensors, partial)
        stored = load_file(path)
        result += [
            Candidates(scene, stored[f"{i}.right"], stored[f"{i}.wrong"])
            for i, (scene, _) in enumerate(scenes)
            if len(stored[f"{i}.right"]) and len(stored[f"{i}.wrong"])
        ]
    return result


def _judged(pipe: TextToImage, scene: Scene, text: str, seed: int, candidates: int) -> tuple[Tensor, Tensor]:
    """(right, wrong), each uint8 [k, 3, h, w], in the order of the candidates' numbers."""
    images = sample(pipe, text, candidates, seed)
    said = names_background(text, scene)
    right = torch.tensor([check_scene(image, scene).fits(background=said) for image in images])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels[right], pixels[~right]
