"""`python -m benchmarks.demo_quality`: does the top pick show what a held-out prompt asks for?

Prompts are captions of scenes whose combination of shape, colour and place training never shows. A checker that
knows no model (`ttt.data.checker`) reads colour, shape and place from the pixels, of the top pick and of all
candidates: the second figure is what picking at random would give. Prints a table and ends with one JSON line.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated

import typer

from ttt import SamplingParams, TextToImage
from ttt.data import shapes
from ttt.data.checker import Verdict, judge
from ttt.types import RankedImage

SEED = 4_000_000


@dataclass
class Tally:
    """Sums over prompts."""

    prompts: int = 0
    top: dict[str, float] = field(default_factory=dict)
    random: dict[str, float] = field(default_factory=dict)

    def add(self, verdicts: list[Verdict]) -> None:
        """Verdicts of all candidates, the top pick first."""
        self.prompts += 1
        for name in ("all", "count", "color", "shape", "place"):
            values = [float(getattr(v, name)) for v in verdicts]
            self.top[name] = self.top.get(name, 0.0) + values[0]
            self.random[name] = self.random.get(name, 0.0) + sum(values) / len(values)

    def shares(self) -> dict[str, dict[str, float]]:
        return {
            who: {name: round(value / self.prompts, 4) for name, value in sums.items()}
            for who, sums in (("top", self.top), ("random", self.random))
        }


def held_out_prompts(count: int, *, pair: bool) -> list[tuple[shapes.Scene, str]]:
    """Scenes with one thing, or with two and a relation, and a natural caption of each."""
    found = ((scene, text) for scene, text in shapes.stream(SEED, held_out=True) if (scene.place != "alone") == pair)
    return list(islice(found, count))


def main(
    model: Annotated[str, typer.Option(help="demo, or a bundle folder.")] = "demo",
    prompts: Annotated[int, typer.Option(help="Prompts of each kind.", min=1)] = 40,
    candidates: Annotated[int, typer.Option(min=1)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    verbose: Annotated[bool, typer.Option(help="One line a prompt.")] = False,
) -> None:
    """Attribute accuracy of the best of many on held-out prompts."""
    pipe = TextToImage.from_pretrained(model)
    tallies = {"one object": Tally(), "two objects and a relation": Tally()}
    started = time.perf_counter()
    for (kind, tally), pair in zip(tallies.items(), (False, True), strict=True):
        for i, (scene, text) in enumerate(held_out_prompts(prompts, pair=pair)):
            ranking = _ranking(pipe, text, SamplingParams(candidates=candidates, keep=1, seed=seed + i))
            verdicts = [judge(image.image, scene) for image in ranking]
            tally.add(verdicts)
            if verbose:
                right = sum(v.all for v in verdicts)
                print(f"{kind}: {text!r}: top {'right' if verdicts[0].all else 'wrong'}, {right}/{candidates} right")
    seconds = time.perf_counter() - started
    print(f"{'held-out prompts':28} {'pick':8} {'all':>7} {'count':>7} {'color':>7} {'shape':>7} {'place':>7}")
    for kind, tally in tallies.items():
        for who, shares in tally.shares().items():
            print(f"{kind:28} {who:8} " + " ".join(f"{value:7.1%}" for value in shares.values()))
    result = {kind: tally.shares() for kind, tally in tallies.items()}
    print(json.dumps({"model": pipe.name, "prompts": prompts, "candidates": candidates,
                      "seconds_a_prompt": round(seconds / prompts / 2, 2), **result}))  # fmt: skip


def _ranking(pipe: TextToImage, text: str, params: SamplingParams) -> list[RankedImage]:
    *_, last = pipe.stream(text, params)
    return list(last.ranking)


if __name__ == "__main__":
    typer.run(main)
