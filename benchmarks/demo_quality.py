"""`python -m benchmarks.demo_quality`: how often is the top pick right for held-out prompts, and which stage fails?

Prompts are captions of scenes whose combination (thing and background, or thing, relation and thing) training never
shows. A checker that is independent of every model reads the pixels of:

    the drawing                 the checker's own limit
    its reconstruction          the VQGAN's limit
    all candidates              the transformer's limit: is any right? and is a random one right?
    the top pick                what a user sees, after CLIP's ranking

Every share has a 95 % confidence interval (Wilson). Prints tables and ends with one JSON line.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from PIL import Image

from ttt import SamplingParams, TextToImage
from ttt.data import checker, shapes
from ttt.data.world import checker as world_checker
from ttt.data.world import scenes as world
from ttt.data.world.captions import caption, names_background

SEED = 4_000_000
KINDS = ("one object", "two objects and a relation")
WorldName = Literal["auto", "shapes", "emoji"]

Check = Callable[[Image.Image, Any, str], dict[str, bool]]
"""(image, scene, caption) -> which attributes are right, "all" among them."""


@dataclass(frozen=True)
class World:
    """Held-out prompts of one world, and how its images are drawn and checked."""

    prompts: Callable[[int, bool], list[tuple[Any, str]]]
    """(count, whether of two things) -> scenes and their captions."""
    draw: Callable[[Any, int], Image.Image]
    check: Check
    attributes: tuple[str, ...]


def _shape_prompts(count: int, pair: bool) -> list[tuple[shapes.ShapeScene, str]]:
    stream = shapes.stream(SEED, held_out=True)
    return list(islice(((scene, text) for scene, text in stream if (scene.place != "alone") == pair), count))


def _check_shapes(image: Image.Image, scene: shapes.ShapeScene, text: str) -> dict[str, bool]:
    result = checker.check_shapes(image, scene)
    return {name: getattr(result, name) for name in ("all", "count", "color", "shape", "place")}


def _emoji_prompts(count: int, pair: bool) -> list[tuple[world.Scene, str]]:
    stream = world.stream(SEED, kind="pair" if pair else "alone", held_out=True)
    return [(scene, caption(scene, rng)) for scene, rng in islice(stream, count)]


def _check_emoji(image: Image.Image, scene: world.Scene, text: str) -> dict[str, bool]:
    """Everything that the caption says counts; `background` is True where it says nothing of it."""
    result = world_checker.check_scene(image, scene)
    named = names_background(text, scene)
    return {
        "all": result.fits(background=named), "count": result.count, "color": result.color,
        "thing": result.thing, "place": result.place, "background": result.background or not named,
    }  # fmt: skip


WORLDS = {
    "shapes": World(_shape_prompts, shapes.draw, _check_shapes, ("all", "count", "color", "shape", "place")),
    "emoji": World(
        _emoji_prompts, lambda scene, size: world.draw_image(scene), _check_emoji,
        ("all", "count", "color", "thing", "place", "background"),
    ),
}  # fmt: skip


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson interval of a share of `count` trials; wider than needed for a mean of shares."""
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@dataclass
class Tally:
    """Sums over the prompts of one kind."""

    prompts: int = 0
    drawn: float = 0.0
    reconstructed: float = 0.0
    some: float = 0.0
    random: dict[str, float] = field(default_factory=dict)
    top: dict[str, float] = field(default_factory=dict)

    def add(self, drawn: bool, reconstructed: bool, results: list[dict[str, bool]]) -> None:
        """results: of all candidates, the top pick first; empty where none were sampled."""
        self.prompts += 1
        self.drawn += drawn
        self.reconstructed += reconstructed
        if results:
            self.some += any(v["all"] for v in results)
            for name in results[0]:
                self.top[name] = self.top.get(name, 0.0) + results[0][name]
                self.random[name] = self.random.get(name, 0.0) + sum(v[name] for v in results) / len(results)

    def rows(self, candidates: int) -> dict[str, float]:
        """The five shares."""
        rows = {"the drawing": self.drawn, "its reconstruction": self.reconstructed}
        if candidates:
            rows |= {f"some of {candidates} candidates": self.some, "a random candidate": self.random["all"],
                     "the top pick": self.top["all"]}  # fmt: skip
        return {name: value / self.prompts for name, value in rows.items()}


@torch.inference_mode()
def reconstruct(pipe: TextToImage, image: Image.Image) -> Image.Image:
    """The image after the VQGAN has encoded and decoded it, in float32."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(255).to(pipe.device)
    pixels = pipe.vqgan.decode(pipe.vqgan.encode(x))[0].mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def measure(pipe: TextToImage, chosen: World, pair: bool, prompts: int, candidates: int, seed: int) -> Tally:
    """All figures of the prompts of one kind; without candidates only those of the checker and the VQGAN."""
    tally = Tally()
    for i, (scene, text) in enumerate(chosen.prompts(prompts, pair)):
        image = chosen.draw(scene, pipe.vqgan.config.resolution)
        results = []
        if candidates:
            *_, last = pipe.stream(text, SamplingParams(candidates=candidates, keep=1, seed=seed + i))
            results = [chosen.check(ranked.image, scene, text) for ranked in last.ranking]
        drawn = chosen.check(image, scene, text)["all"]
        tally.add(drawn, chosen.check(reconstruct(pipe, image), scene, text)["all"], results)
    return tally


def main(
    model: Annotated[str, typer.Option(help="demo, or a bundle folder.")] = "demo",
    prompts: Annotated[int, typer.Option(help="Prompts of each kind.", min=1)] = 200,
    candidates: Annotated[int, typer.Option(help="Of each prompt; 0 measures the VQGAN alone.", min=0)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    world_name: Annotated[
        WorldName, typer.Option("--world", help="What the model was trained on; auto: emoji from 128 pixels.")
    ] = "auto",
) -> None:
    """Shares of held-out prompts that each stage gets right."""
    pipe = TextToImage.from_pretrained(model)
    if world_name == "auto":
        world_name = "emoji" if pipe.vqgan.config.resolution >= 128 else "shapes"
    chosen = WORLDS[world_name]
    result: dict[str, Any] = {
        "model": pipe.name, "world": world_name, "prompts": prompts, "candidates": candidates, "seed": seed,
    }  # fmt: skip
    started = time.perf_counter()
    for kind, pair in zip(KINDS, (False, True), strict=True):
        tally = measure(pipe, chosen, pair, prompts, candidates, seed)
        print(f"\n{kind} ({prompts} held-out prompts){'right':>20} {'95 % interval':>18}")
        for name, share in (rows := tally.rows(candidates)).items():
            low, high = interval(share, prompts)
            print(f"  {name:40} {share:8.1%} {low:10.1%} - {high:.1%}", flush=True)
        result[kind] = {name: round(share, 4) for name, share in rows.items()}
        if candidates:
            print(f"  {'':40} " + " ".join(f"{name:>10}" for name in chosen.attributes))
            for pick, sums in (("the top pick", tally.top), ("a random candidate", tally.random)):
                print(f"  {pick:40} " + " ".join(f"{sums[name] / prompts:10.1%}" for name in chosen.attributes))
    result["seconds_a_prompt"] = round((time.perf_counter() - started) / prompts / 2, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
