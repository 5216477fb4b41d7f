"""A model of a few kilobytes with every part of a bundle, made in a second. Its images are noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ttt.bundle import Bundle, ClipSpec
from ttt.bundle.weights import write_bundle
from ttt.config import DalleConfig, VqganConfig
from ttt.model.dalle import Dalle
from ttt.model.vqgan import Vqgan

WORDS = ("a", "red", "green", "blue", "circle", "square", "above", "below", "on", "white", "background", "star")

TINY_DALLE = DalleConfig(
    dim=16, depth=5, heads=2, dim_head=8, text_seq_len=6, image_fmap_size=4, num_text_tokens=24, num_image_tokens=20
)
TINY_VQGAN = VqganConfig(
    ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8, z_channels=32, embed_dim=32, n_embed=20
)
TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 64, "layers": 1, "head_width": 64},
    "text_cfg": {"context_length": 8, "vocab_size": 24, "width": 64, "heads": 1, "layers": 1},
}


def tiny_dalle(seed: int = 0, config: DalleConfig = TINY_DALLE) -> Dalle:
    return _random(Dalle(config), seed)


def tiny_vqgan(seed: int = 1, config: VqganConfig = TINY_VQGAN) -> Vqgan:
    return _random(Vqgan(config), seed)


def tiny_clip(seed: int = 2) -> nn.Module:
    from open_clip import CLIP

    return _random(CLIP(**TINY_CLIP), seed)


def write_tokenizer(path: Path) -> Path:
    """A word tokenizer in the `tokenizers` format, with "[EOS]" last."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(("[PAD]", "[UNK]", *WORDS, "[EOS]"))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def write_tiny_bundle(folder: Path, named_clip: bool = False) -> Bundle:
    """A complete bundle; `named_clip` refers to open_clip's ViT-B-32 instead of bringing a CLIP."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder.parent / "words.json")
    clip: dict[str, Any] = {"clip_model": tiny_clip(), "clip_config": TINY_CLIP}
    if named_clip:
        clip = {"clip": ClipSpec(model="ViT-B-32", pretrained="openai")}
    return write_bundle(
        folder, name="tiny", dalle=tiny_dalle(), vqgan=tiny_vqgan(), tokenizer_file=tokenizer, pad_id=0, **clip
    )


def write_published_files(folder: Path, dalle: Dalle, vqgan: Vqgan, extra: dict[str, Any] | None = None) -> Path:
    """`model_state.pt`, `last.ckpt`, `model.yaml` and `tokenizer.json`, in the formats of the published ones."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(published_state(dalle), folder / "model_state.pt")
    state = {**vqgan.state_dict(), "loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.ones(3)}
    lightning = {"epoch": 3, "global_step": 100, "pytorch-lightning_version": "1.0.8", "state_dict": state}
    torch.save(lightning | (extra or {}), folder / "last.ckpt")
    (folder / "model.yaml").write_text(vqgan_yaml(vqgan.config))
    write_tokenizer(folder / "tokenizer.json")
    return folder


def published_state(dalle: Dalle) -> dict[str, torch.Tensor]:
    """The training format's names, each with `model.` before it, shared tensors under one name per layer."""
    from ttt.checkpoint import published_names

    ours = dalle.state_dict()
    names = dict(published_names(dalle.config, 0))
    return {
        f"model.{name}": ours[own][None, None] if name.endswith(".scale") else ours[own] for name, own in names.items()
    }


def vqgan_yaml(config: VqganConfig) -> str:
    """taming's `model.yaml` of a GumbelVQ."""
    shape = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    params = {
        "kl_weight": 1e-8,
        "embed_dim": shape.pop("embed_dim"),
        "n_embed": shape.pop("n_embed"),
        "monitor": "val/rec_loss",
        "temperature_scheduler_config": {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler"},
        "ddconfig": {"double_z": False, **shape},
        "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
    }
    model = {"base_learning_rate": 4.5e-06, "target": "taming.models.vqgan.GumbelVQ", "params": params}
    return json.dumps({"model": model}, indent=1)  # JSON is YAML


def _random(module: Any, seed: int) -> Any:
    """Weights that no initialisation could have made by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()
