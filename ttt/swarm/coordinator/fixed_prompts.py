"""Paints the same few prompts from one bundle after another, as small pictures that compare. Knows no swarm.

`python -m ttt.swarm.coordinator.fixed_prompts BUNDLE OUT` reads {"prompts": [...], "candidates": 4} from stdin and
writes OUT/0.webp ...
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
"""Pixels of the longer side, at most."""
QUALITY = 90


def paint(pipe: TextToImage, prompts: Sequence[str], out: Path, candidates: int) -> list[Path]:
    """The best of `candidates` for each prompt as OUT/NUMBER.webp, in the order of the prompts.

    The seed never changes, so that two bundles' pictures differ by their weights alone.
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
    """On the CPU: a coordinator's GPU, where there is one, belongs to a peer."""
    wanted = json.load(sys.stdin)
    from ttt.pipeline import TextToImage

    paint(TextToImage.from_pretrained(bundle, device="cpu"), wanted["prompts"], Path(out), wanted["candidates"])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (TTTError, OSError) as error:
        sys.exit(f"Error: {error}")
