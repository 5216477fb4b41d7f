"""`python -m ttt.train.demo`: trains the bundle that ships, from nothing: VQGAN, tokenizer, transformer, CLIP.

    vqgan -> codes of the scenes -> dalle -> candidates -> clip -> bundle

Each stage gets a share of `--hours`. Run the command again to resume after an interruption, or with more hours. A
stage whose budget is spent is written to FOLDER as `<stage>.safetensors`; later runs read it and do not train it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttt.atomic import atomic_file
from ttt.bundle import Bundle, read_bundle
from ttt.bundle.weights import load_dalle_from, load_vqgan_from, write_bundle
from ttt.config import DalleConfig, VqganConfig
from ttt.data.world.cache import SceneCache
from ttt.data.world.captions import plain_caption
from ttt.model.dalle import Dalle
from ttt.model.vqgan import Vqgan
from ttt.rerank import END, text_ids
from ttt.tokenizer import TextTokenizer, read_tokenizer
from ttt.train.demo_candidates import Candidates, sample_candidates
from ttt.train.demo_clip import ClipTask, clip_config
from ttt.train.demo_dalle import CodeCache, Optimizer, SceneTask, sampler
from ttt.train.demo_loop import BudgetLoop, Task
from ttt.train.demo_sheet import write_sheet
from ttt.train.demo_text import train_tokenizer
from ttt.train.demo_vqgan import VqganTask

VQGAN = VqganConfig(
    ch=32,
    ch_mult=(1, 1, 2, 4),
    num_res_blocks=1,
    attn_resolutions=(),
    resolution=128,
    z_channels=32,
    embed_dim=32,
    n_embed=4096,
    norm_groups=8,
)
DALLE = DalleConfig(
    dim=192,
    depth=9,
    heads=6,
    dim_head=32,
    text_seq_len=32,
    image_fmap_size=16,
    num_text_tokens=1056,
    num_image_tokens=4096,
)
STAGES = ("vqgan", "dalle", "clip", "all")
SHARES = {"vqgan": 0.35, "dalle": 0.5, "clip": 0.15}
"""Of the hours."""


@dataclass(frozen=True, kw_only=True)
class DemoRecipe:
    """Sizes and rates of all stages."""

    vqgan: VqganConfig = VQGAN
    dalle: DalleConfig = DALLE
    scenes: int = 100_000
    """Drawn for the VQGAN, and encoded for the transformer."""
    held_out_scenes: int = 120
    vqgan_batch: int = 8
    vqgan_rate: float = 8e-4
    codes_from: int = 600
    dalle_batch: int = 24
    dalle_rate: float = 1e-3
    optimizer: Optimizer = "adamw"
    prompts: int = 12
    """Sampled at every evaluation of the transformer, of each kind."""
    candidates: int = 1500
    """Captions whose candidates CLIP learns from."""
    held_out_candidates: int = 100
    candidates_each: int = 32
    clip_pool: int = 1000
    clip_batch: int = 64
    clip_rate: float = 1e-3
    clip_context: int = 32
    evaluate_every: float = 600.0
    """Seconds."""


CUDA = DemoRecipe(
    vqgan_batch=256,
    vqgan_rate=1.5e-3,
    dalle_batch=256,
    dalle_rate=2e-3,
    candidates=4000,
    clip_batch=256,
    evaluate_every=60.0,
)
"""The same for some minutes on a large GPU."""


@dataclass
class DemoTraining:
    """The stages, in a folder of their own; each is run, or read from there, when it is asked for."""

    folder: Path
    recipe: DemoRecipe
    hours: float
    device: str = "cpu"
    processes: int = 1
    base: Bundle | None = None
    """A bundle whose VQGAN, tokenizer and transformer are kept: only CLIP is trained."""

    @cached_property
    def scenes(self) -> tuple[SceneCache, SceneCache]:
        """Scenes to learn from, and scenes with a combination that is held out."""
        folder, recipe = self.folder / "cache", self.recipe
        return (
            SceneCache(folder, seed=1, count=recipe.scenes, processes=self.processes),
            SceneCache(folder, seed=900, count=recipe.held_out_scenes, held_out=True),
        )

    # --- stages -------------------------------------------------------------------------------------------------

    @cached_property
    def vqgan(self) -> Vqgan:
        if self.base is not None:
            return load_vqgan_from(self.base).to(self.device)
        recipe = self.recipe
        if (weights := self._finished("vqgan")) is not None:
            return _with_weights(Vqgan(recipe.vqgan), weights).to(self.device).eval()
        scenes, held_out = self.scenes
        task = VqganTask(
            recipe.vqgan, scenes, held_out, batch_size=recipe.vqgan_batch, learning_rate=recipe.vqgan_rate,
            codes_from=recipe.codes_from, device=self.device,
        )  # fmt: skip

        def show() -> None:
            images = np.asarray(held_out.images[:24])
            seen, _ = task.reconstruct(images)
            rows = [(plain_caption(held_out.scene(i)), [images[i], seen[i]]) for i in range(len(images))]
            self._sheet(task.name, rows)

        module = self._train(task, show)
        task.sync_projection()
        self._finish("vqgan", module)
        return module  # type: ignore[return-value]

    def tokenizer_file(self) -> Path:
        if self.base is not None:
            return self.base.tokenizer_file
        path = self.folder / "tokenizer.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            train_tokenizer(path, vocab_size=self.recipe.dalle.num_text_tokens)
        return path

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return TextTokenizer.from_file(self.tokenizer_file(), self.recipe.dalle.text_seq_len, pad_id=0)

    @cached_property
    def dalle(self) -> Dalle:
        if self.base is not None:
            return load_dalle_from(self.base).to(self.device)
        recipe = self.recipe
        if (weights := self._finished("dalle")) is not None:
            return _with_weights(Dalle(recipe.dalle), weights).to(self.device).eval()
        vqgan = self.vqgan
        cache, held_out = (CodeCache(scenes, vqgan, self.tokenizer) for scenes in self.scenes)
        task = SceneTask(
            replace(recipe.dalle, reversible=False), cache, held_out, vqgan, self.tokenizer,
            batch_size=recipe.dalle_batch, learning_rate=recipe.dalle_rate, optimizer=recipe.optimizer,
            device=self.device, prompts=recipe.prompts,
        )  # fmt: skip
        module = self._train(task, lambda: self._sheet(task.name, task.samples))
        self._finish("dalle", module)
        return _with_weights(Dalle(recipe.dalle), module.state_dict()).to(self.device).eval()

    @cached_property
    def clip(self) -> nn.Module:
        from open_clip import CLIP

        recipe = self.recipe
        if (weights := self._finished("clip")) is not None:
            return _with_weights(CLIP(**self.clip_config()), weights)
        task = ClipTask(
            self.clip_config(), vqgan=self.vqgan, tokenize=self._clip_tokens, pool=recipe.clip_pool,
            candidates=self.candidates("candidates", recipe.candidates),
            held_out=self.candidates("held_out_candidates", recipe.held_out_candidates, held_out=True),
            held_out_groups=recipe.held_out_scenes, batch_size=recipe.clip_batch, learning_rate=recipe.clip_rate,
            device=self.device,
        )  # fmt: skip
        module = self._train(task)
        self._finish("clip", module)
        return module.cpu()

    def candidates(self, name: str, prompts: int, *, held_out: bool = False) -> list[Candidates]:
        """What the transformer samples for training or held-out captions, judged."""
        pipe = sampler(self.dalle, self.vqgan, self.tokenizer, self.dalle.config)
        each = self.recipe.candidates_each
        return sample_candidates(pipe, self.folder / name, prompts=prompts, candidates=each, held_out=held_out)

    def clip_config(self) -> dict[str, Any]:
        return clip_config(
            vocab_size=self.dalle.config.num_text_tokens, image_size=self.vqgan.config.resolution,
            context_length=self.recipe.clip_context,
        )  # fmt: skip

    def _clip_tokens(self, captions: Sequence[str]) -> Tensor:
        tokenizer = read_tokenizer(self.tokenizer_file())
        end = int(tokenizer.token_to_id(END) or 0)
        encoded = tokenizer.encode_batch(list(captions), add_special_tokens=False)
        vocabulary = self.dalle.config.num_text_tokens
        return torch.stack([text_ids(e.ids, end, self.recipe.clip_context, vocabulary) for e in encoded])

    # --- the folder ---------------------------------------------------------------------------------------------

    def _train(self, task: Task, after_evaluation: Any = None) -> nn.Module:
        loop = BudgetLoop(task, self.folder, self.hours * SHARES[task.name])
        return loop.run(evaluate_every=self.recipe.evaluate_every, after_evaluation=after_evaluation)

    def _finished(self, name: str) -> dict[str, Tensor] | None:
        path = self.folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else None

    def _finish(self, name: str, module: nn.Module) -> None:
        # Shared layers are the same tensors under several names, which the format does not store.
        tensors = {key: value.detach().cpu().clone().contiguous() for key, value in module.state_dict().items()}
        with atomic_file(self.folder / f"{name}.safetensors", durable=True) as partial:
            save_file(tensors, partial)

    def _sheet(self, name: str, rows: Sequence[tuple[str, Any]]) -> None:
        write_sheet(self.folder / "sheets" / f"{name}.png", rows)

    # --- the bundle ---------------------------------------------------------------------------------------------

    def bundle(self, out: Path) -> None:
        """Write the bundle (16-bit weights) and `PROVENANCE.md` into `out`."""
        write_bundle(
            out,
            name="demo",
            dalle=self.dalle.cpu(),
            vqgan=self.vqgan.cpu(),
            tokenizer_file=self.tokenizer_file(),
            pad_id=0,
            clip_model=self.clip,
            clip_config=self.clip_config(),
            dtype=torch.float16,
            overwrite=True,
        )
        (out / "PROVENANCE.md").write_text(self.provenance())

    def provenance(self) -> str:
        """Recipe and records of every stage, as Markdown."""
        start = "from nothing" if self.base is None else f"on top of the bundle {self.base.name!r}"
        parts = [_HEADER.format(start=start, torch=torch.__version__, machine=platform.machine(), device=self.device)]
        notes = self.folder / "notes.md"  # what a person adds, such as a recipe changed half-way
        if notes.exists():
            parts.append(notes.read_text())
        for name in SHARES:
            records = self.folder / f"{name}.jsonl"
            if not records.exists():
                continue
            lines = [json.loads(line) for line in records.read_text().splitlines()]
            every = max(1, len(lines) // 12)
            lines = [line for i, line in enumerate(lines) if i == len(lines) - 1 or i % every == 0]
            keys = list(dict.fromkeys(key for line in lines for key in line))
            rows = ["| " + " | ".join(str(line.get(key, "")) for key in keys) + " |" for line in lines]
            parts.append(
                f"## {name}\n\n| " + " | ".join(keys) + " |\n|" + "---|" * len(keys) + "\n" + "\n".join(rows) + "\n"
            )
        return "\n".join(parts)


_HEADER = """# Where this bundle comes from

Trained {start} by `python -m ttt.train.demo` on captioned scenes that `ttt/data/world` draws; no other data and no
other weights (torch {torch}, {machine}, device {device}). The scenes show icons of Fluent Emoji Flat (MIT) and of Noto
Emoji (Apache-2.0), see `NOTICE`, and coloured shapes. Seconds are wall-clock, on cores shared with other work.
`held_out` and `right` figures are on combinations that training never shows; losses are running means.
"""


def _with_weights(module: Any, weights: dict[str, Tensor]) -> Any:
    module.load_state_dict(weights)
    return module


def main(
    hours: Annotated[float, typer.Option(help="Budget of all stages together.", min=0.0)] = 8.0,
    device: Annotated[str, typer.Option(help="cpu or cuda; cuda takes larger batches.")] = "cpu",
    folder: Annotated[Path, typer.Option(help="Where checkpoints, caches, records and sheets are kept.")] = Path(
        "runs/demo"
    ),
    out: Annotated[Path, typer.Option(help="Where the bundle is written.")] = Path("runs/demo/bundle"),
    stage: Annotated[str, typer.Option(help="vqgan, dalle, clip, or all (then the bundle).")] = "all",
    base: Annotated[
        Path | None, typer.Option(help="A bundle whose VQGAN, tokenizer and transformer are kept: trains CLIP alone.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads, and drawing processes; 0: torch's choice.", min=0)] = 0,
) -> None:
    """Train the demo bundle; run it again to resume after an interruption."""
    if stage not in STAGES:
        raise typer.BadParameter(f"stage must be one of {', '.join(STAGES)}; got {stage!r}")
    if threads:
        torch.set_num_threads(threads)
    recipe = CUDA if device.startswith("cuda") else DemoRecipe()
    training = DemoTraining(
        folder, recipe, hours, device, torch.get_num_threads(), None if base is None else read_bundle(base)
    )
    if stage == "all":
        training.bundle(out)
    else:
        getattr(training, stage)


if __name__ == "__main__":
    typer.run(main)
