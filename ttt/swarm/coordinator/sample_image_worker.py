"""Generates small images of the same few prompts from one bundle, as a program of its own. Independent of the swarm.

`python -m ttt.swarm.coordinator.sample_image_worker BUNDLE OUT` reads {"prompts": [...], "candidates": 4} from stdin
and writes OUT/0.webp and so on. Not part of `sample_images.py`, because that module imports the averaging package, and
with it hivemind, which this process does not need.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.errors import TTTError
from ttt.sampling.params import SamplingParams

if TYPE_CHECKING:
    from ttt.pipeline import TextToImage

SEED = 0
SIDE = 256
"""Maximum pixels of the longer side."""
QUALITY = 90


def render(pipe: TextToImage, prompts: Sequence[str], out: Path, candidates: int) -> list[Path]:
    """Write the best of `candidates` images of each prompt as OUT/NUMBER.webp; return the paths.

    The seed is constant, so that the images of two bundles differ by their weights alone.
    """
    params = SamplingParams(candidates=candidates, keep=1, seed=SEED)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, prompt in enumerate(prompts):
        image = pipe(prompt, params)[0].image
        image.thumbnail((SIDE, SIDE))
        paths.append(out / f"{number}.webp")
        image.save(paths[-1], quality=QUALITY)
    return paths


def main(bundle: str, out: str) -> None:
    """Generate on the CPU: if the machine has a GPU, a peer may be training on it."""
    request = json.load(sys.stdin)
    from ttt.pipeline import TextToImage

    render(TextToImage.from_pretrained(bundle, device="cpu"), request["prompts"], Path(out), request["candidates"])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (TTTError, OSError) as error:
        sys.exit(f"Error: {error}")
