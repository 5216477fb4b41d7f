"""Converts the published files to a bundle. Runs no code from files unless `trust_pickle` is set; uses no network."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttt.bundle.files import json_object, read_json
from ttt.bundle.spec import CLIP_CONFIG, CLIP_TOKENIZER, CLIP_WEIGHTS, Bundle, ClipSpec, checked_config
from ttt.bundle.weights import load_strictly, write_bundle
from ttt.checkpoint import load_state, named_tensors, read_state
from ttt.config import PAPER, DalleConfig, VqganConfig
from ttt.errors import CheckpointError, InvalidInput, UnsafeCheckpoint
from ttt.model.dalle import Dalle
from ttt.model.vqgan import Vqgan

PUBLISHED_CLIP = ClipSpec(model="ViT-B-32", pretrained="openai")
PUBLISHED_PAD_ID = 1
"""The published model was trained on prompts padded with t5-small's EOS, not with 0."""

TRAINING_ONLY = ("loss.",)
"""Prefixes of training-only tensors in a VQGAN checkpoint: the discriminator and the perceptual loss."""

INERT = ("pytorch_lightning.callbacks.",)
"""Classes that old Lightning files refer to as labels of their callbacks' state. While tensors are read, a class that
does nothing replaces each of them, so none of their code is imported or run. Any other class makes a file unsafe."""

MAX_YAML_BYTES = 1 << 20


def convert(
    out: str | os.PathLike[str],
    *,
    dalle: str | os.PathLike[str],
    vqgan: str | os.PathLike[str],
    vqgan_config: str | os.PathLike[str] | VqganConfig,
    tokenizer: str | os.PathLike[str],
    name: str,
    dalle_config: DalleConfig = PAPER,
    clip: ClipSpec = PUBLISHED_CLIP,
    pad_id: int = PUBLISHED_PAD_ID,
    trust_pickle: bool = False,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Read every part strictly, then write `out`; see `write_bundle` for `dtype` and `overwrite`.

    `trust_pickle` unpickles files that cannot be read otherwise, which runs any code that their author put in.
    """
    codec_config = vqgan_config if isinstance(vqgan_config, VqganConfig) else read_vqgan_yaml(vqgan_config)
    transformer = load_state(Dalle(dalle_config), read_tensors(dalle, trust_pickle))
    return write_bundle(
        out,
        name=name,
        dalle=transformer,
        vqgan=read_vqgan(vqgan, codec_config, trust_pickle),
        tokenizer_file=tokenizer,
        pad_id=pad_id,
        clip=clip,
        dtype=dtype,
        overwrite=overwrite,
    )


def read_vqgan(path: str | os.PathLike[str], config: VqganConfig, trust_pickle: bool = False) -> Vqgan:
    """Read a VQGAN from a Lightning `last.ckpt` or a state dict; CheckpointError names the key that does not fit."""
    tensors = read_tensors(path, trust_pickle)
    vqgan = Vqgan(config)
    load_strictly(vqgan, {k: v for k, v in tensors.items() if not k.startswith(TRAINING_ONLY)}, Path(path))
    return vqgan.eval()


def read_vqgan_yaml(path: str | os.PathLike[str]) -> VqganConfig:
    """taming's `model.yaml` -> VqganConfig."""
    import yaml

    file = Path(path)
    try:
        if file.stat().st_size > MAX_YAML_BYTES:
            raise CheckpointError(f"{file} is too big for a model.yaml (at most {MAX_YAML_BYTES} bytes)")
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as taming's model.yaml: {error}") from None
    model = content.get("model", content) if isinstance(content, dict) else None
    params = model.get("params") if isinstance(model, dict) else None
    shape = params.get("ddconfig") if isinstance(params, dict) else None
    if not isinstance(model, dict) or not isinstance(params, dict) or not isinstance(shape, dict):
        raise CheckpointError(f"{file} has no model.params.ddconfig, as taming's model.yaml does")
    if not str(model.get("target", "GumbelVQ")).endswith("GumbelVQ"):
        raise CheckpointError(f"{file} describes {model['target']}; only taming's GumbelVQ can be loaded")
    values = {key: value for key, value in shape.items() if key != "double_z"}
    if shape.get("double_z"):
        raise CheckpointError(f"{file}: ddconfig.double_z must be false, as in taming's VQGANs")
    missing = [key for key in ("embed_dim", "n_embed") if key not in params]
    if missing:
        raise CheckpointError(f"{file} has no model.params.{missing[0]}")
    return checked_config(VqganConfig, values | {key: params[key] for key in ("embed_dim", "n_embed")}, file)


def read_dalle_config(path: str | os.PathLike[str]) -> DalleConfig:
    """Read a DalleConfig from a JSON file with its fields, or from the `config.json` of a bundle."""
    content = read_json(Path(path))
    return checked_config(DalleConfig, json_object(content.get("dalle", content), Path(path), "dalle"), Path(path))


def parse_clip(spec: str) -> ClipSpec:
    """`ViT-B-32:openai`, or a folder with `clip_config.json` and `clip.safetensors` (or open_clip's own names)."""
    folder = Path(spec)
    if folder.is_dir():
        return _local_clip(folder)
    model, _, pretrained = spec.partition(":")
    if not model or not pretrained:
        raise InvalidInput(f"CLIP must be MODEL:PRETRAINED, such as ViT-B-32:openai, or a folder; got {spec!r}")
    return ClipSpec(model=model, pretrained=pretrained)


def read_tensors(path: str | os.PathLike[str], trust_pickle: bool = False) -> dict[str, Tensor]:
    """`read_state`, with Lightning's callbacks as inert labels; other files are unpickled if `trust_pickle` is set."""
    try:
        return read_state(path)
    except UnsafeCheckpoint:
        loaded = _read_with_inert_labels(Path(path))
        if loaded is None and not trust_pickle:
            raise
        if loaded is None:
            loaded = _unpickle(Path(path))
    return named_tensors(loaded, path)


class _Inert:
    """Replaces a class while a file is read, and ignores its data."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _read_with_inert_labels(path: Path) -> Any | None:
    """Read with torch's restricted unpickler and `_Inert` in place of `INERT` classes; None if that fails."""
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not unsafe or not all(name.startswith(INERT) for name in unsafe):
            return None
        with torch.serialization.safe_globals([(_Inert, name) for name in unsafe]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return None


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the file's own code may raise anything
        raise CheckpointError(f"{path} cannot be unpickled: {type(error).__name__}: {error}") from error


def _local_clip(folder: Path) -> ClipSpec:
    weights = next((folder / n for n in (CLIP_WEIGHTS, "open_clip_model.safetensors") if (folder / n).is_file()), None)
    config = next((folder / n for n in (CLIP_CONFIG, "open_clip_config.json") if (folder / n).is_file()), None)
    if weights is None or config is None:
        raise InvalidInput(f"{folder} must hold {CLIP_CONFIG} and {CLIP_WEIGHTS}, or open_clip_config.json and "
                           "open_clip_model.safetensors")  # fmt: skip
    content = read_json(config)
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= content.get("model_cfg", content).keys():
        raise InvalidInput(f"{config} must give embed_dim, vision_cfg and text_cfg")
    tokenizer = folder / CLIP_TOKENIZER
    return ClipSpec(config=config, weights=weights, tokenizer=tokenizer if tokenizer.is_file() else None)
