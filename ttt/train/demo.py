"""`python -m ttt.train.demo`: trains the bundle that ships, from nothing: VQGAN, tokenizer, DALL-E, CLIP.

Every stage resumes where it was killed; a finished stage is not run again. The bundle and its provenance are
written once all stages are done.
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ttt.bundle import DEMO_FOLDER, Bundle, read_bundle
from ttt.bundle.weights import load_dalle_from, load_strictly, load_vqgan_from, read_safetensors, write_bundle
from ttt.config import DEMO, DEMO_VQGAN
from ttt.data.scenes import SceneStream
from ttt.model.dalle import Dalle
from ttt.pipeline import TextToImage
from ttt.rerank import END, text_ids
from ttt.tokenizer import TextTokenizer, read_tokenizer
from ttt.train.demo_clip import ClipTask, clip_config
from ttt.train.demo_paintings import Paintings, Unranked, paintings
from ttt.train.demo_text import train_tokenizer
from ttt.train.demo_vqgan import VqganTask
from ttt.train.loop import run
from ttt.train.recipe import Recipe
from ttt.train.step import DalleTask


@dataclass(frozen=True, kw_only=True)
class DemoRecipe:
    """All of the training."""

    vqgan: Recipe = Recipe(steps=7200, batch_size=4, learning_rate=5e-4, betas=(0.9, 0.99), weight_decay=0.0)
    dalle: Recipe = Recipe(steps=7300, batch_size=24, learning_rate=1e-2)
    paintings: int = 1500
    """Captions for which the transformer paints what CLIP learns from."""
    held_out_paintings: int = 100
    clip: Recipe = Recipe(steps=5000, batch_size=64)
    clip_pool: int = 1000
    clip_context: int = 32
    held_out_scenes: int = 96
    """Drawn ones, on which DALL-E and CLIP are evaluated."""

    def scaled(self, share: float) -> DemoRecipe:
        """A share of the steps, pictures and paintings: to try the whole chain out."""

        def fewer(count: int) -> int:
            return max(4, int(count * share))

        return DemoRecipe(
            vqgan=self.vqgan.model_copy(update={"steps": fewer(self.vqgan.steps)}),
            dalle=self.dalle.model_copy(update={"steps": fewer(self.dalle.steps)}),
            clip=self.clip.model_copy(update={"steps": fewer(self.clip.steps)}),
            paintings=fewer(self.paintings),
            held_out_paintings=fewer(self.held_out_paintings),
            clip_pool=fewer(self.clip_pool),
            clip_context=self.clip_context,
            held_out_scenes=fewer(self.held_out_scenes),
        )


STAGES = ("vqgan", "dalle", "clip", "all")


class DemoTraining:
    """The stages, in a folder of their own; each is run, or read from there, once it is asked for."""

    def __init__(
        self, folder: Path, recipe: DemoRecipe, base: Bundle | None = None, *, keep_dalle: bool = False
    ) -> None:
        """base: a bundle whose VQGAN and tokenizer are kept, and whose DALL-E and CLIP go on learning.

        keep_dalle: of the base, such as one that a swarm trained: only its CLIP goes on learning.
        """
        self.folder, self.recipe, self.base = folder, recipe, base
        self.keep_dalle = keep_dalle and base is not None
        folder.mkdir(parents=True, exist_ok=True)

    def tokenizer_file(self) -> Path:
        path = self.folder / "tokenizer.json"
        if not path.exists() and self.base is not None:
            shutil.copyfile(self.base.tokenizer_file, path)
        if not path.exists():
            train_tokenizer(path, vocab_size=DEMO.num_text_tokens)
        return path

    def tokenize(self) -> TextTokenizer:
        return TextTokenizer.from_file(self.tokenizer_file(), DEMO.text_seq_len, pad_id=0)

    @cached_property
    def vqgan(self) -> Any:
        if self.base is not None:
            return load_vqgan_from(self.base)
        return run(VqganTask(DEMO_VQGAN, self.recipe.vqgan), self.recipe.vqgan, self.folder)

    @cached_property
    def dalle(self) -> Any:
        """Activations are remembered, not computed again: a model this small has memory to spare."""
        if self.base is not None and self.keep_dalle:
            return load_dalle_from(self.base)
        recipe, vqgan, tokenize = self.recipe.dalle, self.vqgan, self.tokenize()
        torch.manual_seed(recipe.seed)
        dalle = Dalle(replace(DEMO, reversible=False))
        if self.base is not None:
            dalle.load_state_dict(load_dalle_from(self.base).state_dict())
        held_out = SceneStream(vqgan, tokenize, self.recipe.held_out_scenes, seed=3_000_000, held_out=True)
        stream = SceneStream(vqgan, tokenize, recipe.batch_size, seed=recipe.seed + (1 if self.base is None else 11))
        task = DalleTask(dalle, stream, micro_batch=recipe.batch_size, held_out=[next(iter(held_out))])
        return run(task, recipe, self.folder)

    def clip_config(self) -> dict[str, Any]:
        return clip_config(
            vocab_size=DEMO.num_text_tokens, image_size=DEMO_VQGAN.resolution, context_length=self.recipe.clip_context
        )

    @cached_property
    def clip(self) -> Any:
        recipe, tokenizer = self.recipe, read_tokenizer(self.tokenizer_file())
        end = int(tokenizer.token_to_id(END) or 0)

        def tokenize(captions: list[str]) -> Tensor:
            encoded = tokenizer.encode_batch(captions, add_special_tokens=False)
            return torch.stack([text_ids(e.ids, end, recipe.clip_context, DEMO.num_text_tokens) for e in encoded])

        done = (self.folder / "clip.done").exists()  # then the weights are all that is wanted
        task = ClipTask(
            self.clip_config(), recipe.clip, vqgan=self.vqgan, tokenize=tokenize,
            pool=0 if done else recipe.clip_pool,
            paintings=[] if done else self.paintings("paintings", recipe.paintings),
            held_out=[] if done else self.paintings("held_out_paintings", recipe.held_out_paintings, held_out=True),
            held_out_groups=recipe.held_out_scenes,
        )  # fmt: skip
        if self.base is not None and self.base.clip.weights is not None:
            load_strictly(task.module, read_safetensors(self.base.clip.weights), self.base.clip.weights)
        model = run(task, recipe.clip, self.folder)
        (self.folder / "clip.done").touch()
        return model

    def paintings(self, name: str, prompts: int, *, held_out: bool = False) -> list[Paintings]:
        dalle = Dalle(DEMO)
        dalle.load_state_dict(self.dalle.state_dict())
        pipe = TextToImage(dalle=dalle, vqgan=self.vqgan, tokenizer=self.tokenize(), scorer=Unranked(), device="cpu")
        return paintings(pipe, self.folder / name, prompts=prompts, held_out=held_out)

    def bundle(self, out: Path) -> None:
        """Write the bundle (16-bit weights) and `PROVENANCE.md` into `out`."""
        dalle = Dalle(DEMO)
        dalle.load_state_dict(self.dalle.state_dict())
        write_bundle(
            out,
            name="demo",
            dalle=dalle,
            vqgan=self.vqgan,
            tokenizer_file=self.tokenizer_file(),
            pad_id=0,
            clip_model=self.clip,
            clip_config=self.clip_config(),
            dtype=torch.float16,
            overwrite=True,
        )
        (out / "PROVENANCE.md").write_text(self.provenance())

    def provenance(self) -> str:
        start = "from nothing" if self.base is None else f"on from the bundle {self.base.name!r}"
        parts = [_HEADER.format(start=start, torch=torch.__version__, device=_device())]
        notes = self.folder / "notes.md"  # what a person has to add, such as a recipe changed half-way
        if notes.exists():
            parts.append(notes.read_text())
        for name in ("vqgan", "dalle", "clip"):
            if not (self.folder / f"{name}.jsonl").exists():  # the base's
                continue
            recipe = getattr(self.recipe, name).model_dump()
            lines = [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]
            lines = [line for i, line in enumerate(lines) if i == len(lines) - 1 or not i % max(1, len(lines) // 12)]
            keys = list(dict.fromkeys(key for line in lines for key in line))
            rows = ["| " + " | ".join(_figure(line.get(key)) for key in keys) + " |" for line in lines]
            parts.append(
                f"## {name}\n\n" + ", ".join(f"{key} {value}" for key, value in recipe.items()) + "\n\n"
                + "| " + " | ".join(keys) + " |\n|" + "---|" * len(keys) + "\n" + "\n".join(rows) + "\n"
            )  # fmt: skip
        return "\n".join(parts)


_HEADER = """# Where this bundle comes from

Trained {start} by `python -m ttt.train.demo` on captioned scenes that `ttt/data/shapes.py` draws; no other data
and no other weights. Seeds are fixed; a run depends on them, on the recipe below, and on the rounding of the machine
(torch {torch}, {device}). Seconds are wall-clock, on cores shared with other work. `held_out` figures are on
combinations of shape, colour and place that training never shows. The losses are running means over about 50 steps.
"""


def _device() -> str:
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(
    folder: Annotated[Path, typer.Option(help="Where checkpoints and records are kept.")] = Path("runs/demo"),
    out: Annotated[Path, typer.Option(help="Where the bundle is written.")] = DEMO_FOLDER,
    stage: Annotated[str, typer.Option(help="vqgan, dalle, clip, or all (then the bundle).")] = "all",
    base: Annotated[
        Path | None, typer.Option(help="A bundle whose VQGAN is kept, and whose DALL-E and CLIP go on learning.")
    ] = None,
    keep_dalle: Annotated[bool, typer.Option("--keep-dalle", help="Train only the base's CLIP.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.", min=0)] = 0,
    scale: Annotated[float, typer.Option(help="Share of the steps: 0.01 tries the whole chain out.", min=0.0)] = 1.0,
) -> None:
    """Train the demo bundle; run it again to go on after an interruption."""
    if threads:
        torch.set_num_threads(threads)
    recipe = DemoRecipe()
    if scale != 1.0:
        recipe = recipe.scaled(scale)
    if keep_dalle and base is None:
        raise typer.BadParameter("--keep-dalle keeps the transformer of --base, which is missing")
    training = DemoTraining(folder, recipe, None if base is None else read_bundle(base), keep_dalle=keep_dalle)
    if stage not in STAGES:
        raise typer.BadParameter(f"stage must be one of {', '.join(STAGES)}; got {stage!r}")
    if stage == "all":
        training.bundle(out)
    else:
        getattr(training, stage)


if __name__ == "__main__":
    typer.run(main)
