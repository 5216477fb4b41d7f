"""`python -m ttt.train.demo`: trains the bundle that ships, from nothing: VQGAN, tokenizer, CLIP, DALL-E.

Every stage resumes where it was killed; a finished stage is not run again. The bundle and its provenance are
written once all stages are done.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ttt.bundle import DEMO_FOLDER
from ttt.config import DEMO, DEMO_VQGAN
from ttt.rerank import END, text_ids
from ttt.tokenizer import TextTokenizer, read_tokenizer
from ttt.train.demo_clip import ClipTask, clip_config
from ttt.train.demo_dalle import DalleTask
from ttt.train.demo_text import train_tokenizer
from ttt.train.demo_vqgan import VqganTask
from ttt.train.loop import Recipe, run


@dataclass(frozen=True, kw_only=True)
class DemoRecipe:
    """All of the training; the defaults made the bundle that ships."""

    vqgan: Recipe = Recipe(steps=7200, batch_size=4, learning_rate=5e-4, betas=(0.9, 0.99))
    clip: Recipe = Recipe(steps=5000, batch_size=64, learning_rate=1e-3, weight_decay=0.05)
    clip_pool: int = 1000
    clip_context: int = 32
    dalle: Recipe = Recipe(
        steps=7300, batch_size=24, learning_rate=1.5e-3, warmup=150, weight_decay=0.03, betas=(0.9, 0.98)
    )


class DemoTraining:
    """The stages, in a folder of their own."""

    def __init__(self, folder: Path, recipe: DemoRecipe) -> None:
        self.folder, self.recipe = folder, recipe
        folder.mkdir(parents=True, exist_ok=True)

    def tokenizer_file(self) -> Path:
        path = self.folder / "tokenizer.json"
        if not path.exists():
            train_tokenizer(path, vocab_size=DEMO.num_text_tokens)
        return path

    def vqgan(self) -> Any:
        return run(VqganTask(DEMO_VQGAN, self.recipe.vqgan), self.recipe.vqgan, self.folder)

    def clip_config(self) -> dict[str, Any]:
        return clip_config(
            vocab_size=DEMO.num_text_tokens, image_size=DEMO_VQGAN.resolution, context_length=self.recipe.clip_context
        )

    def clip(self) -> Any:
        tokenizer = read_tokenizer(self.tokenizer_file())
        end = int(tokenizer.token_to_id(END) or 0)

        def tokenize(captions: list[str]) -> Tensor:
            encoded = tokenizer.encode_batch(captions, add_special_tokens=False)
            return torch.stack([text_ids(e.ids, end, self.recipe.clip_context, DEMO.num_text_tokens) for e in encoded])

        done = (self.folder / "clip.done").exists()
        pool = 0 if done else self.recipe.clip_pool
        task = ClipTask(self.clip_config(), self.recipe.clip, vqgan=self.vqgan(), tokenize=tokenize, pool=pool)
        model = run(task, self.recipe.clip, self.folder)
        (self.folder / "clip.done").touch()
        return model

    def dalle(self) -> Any:
        tokenize = TextTokenizer.from_file(self.tokenizer_file(), DEMO.text_seq_len, pad_id=0)
        task = DalleTask(DEMO, self.recipe.dalle, vqgan=self.vqgan(), tokenize=tokenize)
        return run(task, self.recipe.dalle, self.folder)

    def bundle(self, out: Path) -> None:
        """Write the bundle (16-bit weights) and `PROVENANCE.md` into `out`."""
        from ttt.bundle_io import write_bundle
        from ttt.model.dalle import Dalle

        dalle = Dalle(DEMO)
        dalle.load_state_dict(self.dalle().state_dict())
        write_bundle(
            out,
            name="demo",
            dalle=dalle,
            vqgan=self.vqgan(),
            tokenizer_file=self.tokenizer_file(),
            pad_id=0,
            clip_model=self.clip(),
            clip_config=self.clip_config(),
            dtype=torch.float16,
            overwrite=True,
        )
        (out / "PROVENANCE.md").write_text(self.provenance())

    def provenance(self) -> str:
        parts = [_HEADER.format(torch=torch.__version__, device=_device())]
        notes = self.folder / "notes.md"  # what a person has to add, such as a recipe changed half-way
        if notes.exists():
            parts.append(notes.read_text())
        for name in ("vqgan", "clip", "dalle"):
            recipe = asdict(getattr(self.recipe, name))
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

Trained from nothing by `python -m ttt.train.demo` on captioned scenes that `ttt/data/shapes.py` draws; no other data
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
    stage: Annotated[str, typer.Option(help="vqgan, clip, dalle, or all (then the bundle).")] = "all",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.", min=0)] = 0,
    scale: Annotated[float, typer.Option(help="Share of the steps: 0.01 tries the whole chain out.", min=0.0)] = 1.0,
) -> None:
    """Train the demo bundle; run it again to go on after an interruption."""
    if threads:
        torch.set_num_threads(threads)
    recipe = DemoRecipe()
    if scale != 1.0:
        shorter = {
            name: replace(r, steps=max(4, int(r.steps * scale)))
            for name in ("vqgan", "clip", "dalle")
            if (r := getattr(recipe, name))
        }
        recipe = replace(recipe, clip_pool=max(4, int(recipe.clip_pool * scale)), **shorter)
    training = DemoTraining(folder, recipe)
    stages = {"vqgan": training.vqgan, "clip": training.clip, "dalle": training.dalle}
    if stage == "all":
        training.bundle(out)
    elif stage in stages:
        stages[stage]()
    else:
        raise typer.BadParameter(f"stage must be one of {', '.join(stages)}, all; got {stage!r}")


if __name__ == "__main__":
    typer.run(main)
