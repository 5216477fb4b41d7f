"""What the demo's transformer paints for training captions, each picture called right or wrong. Knows no CLIP.

CLIP learns from these what it is for: to tell good candidates of one prompt from bad ones.
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

from ttt.data import shapes
from ttt.data.checker import judge
from ttt.pipeline import TextToImage
from ttt.sampling.params import SamplingParams

SEED, PROMPTS_A_FILE = 6_000_000, 50


class Unranked:
    """Stands where a CLIP will be: every picture is worth the same."""

    def scores(self, images: Tensor, prompt: str) -> Tensor:
        return torch.zeros(len(images))


@dataclass(frozen=True)
class Paintings:
    """Candidates for one scene's caption: uint8 [k, 3, h, w] each."""

    scene: shapes.Scene
    right: Tensor
    wrong: Tensor


def paintings(
    pipe: TextToImage,
    folder: Path,
    *,
    prompts: int,
    candidates: int = 32,
    right: int = 4,
    wrong: int = 12,
    held_out: bool = False,
) -> list[Paintings]:
    """Paint, or read what an earlier call painted into `folder`; scenes without a right or a wrong one are left out.

    right, wrong: at most as many are kept of a prompt; held_out: of scenes that training never shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[Paintings] = []
    for start in tqdm(range(0, prompts, PROMPTS_A_FILE), desc="paintings", mininterval=5.0):
        source = shapes.stream(SEED, held_out=held_out, start=start)
        scenes = list(islice(source, min(PROMPTS_A_FILE, prompts - start)))
        path = folder / f"{start:06d}.safetensors"
        if not path.exists():
            found: dict[str, Tensor] = {}
            for i, (scene, caption) in enumerate(scenes):
                good, bad = _judged(pipe, scene, caption, start + i, candidates)
                found |= {f"{i}.right": good[:right].contiguous(), f"{i}.wrong": bad[:wrong].contiguous()}
            save_file(found, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        stored = load_file(path)
        kept += [
            Paintings(scene, stored[f"{i}.right"], stored[f"{i}.wrong"])
            for i, (scene, _) in enumerate(scenes)
            if len(stored[f"{i}.right"]) and len(stored[f"{i}.wrong"])
        ]
    return kept


def _judged(pipe: TextToImage, scene: shapes.Scene, caption: str, seed: int, candidates: int) -> tuple[Tensor, Tensor]:
    """(right, wrong), each uint8 [k, 3, h, w], in the order they were painted."""
    *_, last = pipe.stream(caption, SamplingParams(candidates=candidates, keep=1, seed=seed))
    ranking = sorted(last.ranking, key=lambda ranked: ranked.candidate)
    images = torch.from_numpy(np.stack([np.asarray(r.image) for r in ranking])).permute(0, 3, 1, 2)
    right = torch.tensor([judge(r.image, scene).all for r in ranking])
    return images[right], images[~right]
