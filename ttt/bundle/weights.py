"""Writes weights into bundle folders and loads them, as safetensors. Independent of the network."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttt.atomic import atomic_file, partial_folder
from ttt.bundle import spec as layout
from ttt.bundle.files import read_json, safetensors_shapes
from ttt.errors import BundleError, CheckpointError
from ttt.text import first_names

if TYPE_CHECKING:
    from ttt.config import DalleConfig, VqganConfig
    from ttt.model.dalle import Dalle
    from ttt.model.vqgan import Vqgan

_Module = TypeVar("_Module", bound=nn.Module)


def write_bundle(
    folder: str | os.PathLike[str],
    *,
    name: str,
    dalle: Dalle,
    vqgan: Vqgan,
    tokenizer_file: str | os.PathLike[str],
    pad_id: int,
    clip: layout.ClipSpec | None = None,
    clip_model: nn.Module | None = None,
    clip_config: Mapping[str, Any] | None = None,
    clip_uses_tokenizer: bool = True,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> layout.Bundle:
    """Write a bundle so that a reader sees all of it or none, then read it back.

    CLIP is either `clip` (a name that open_clip knows, or files to copy) or `clip_model` with its open_clip
    `clip_config`, which uses the bundle's own tokenizer unless `clip_uses_tokenizer` is False. Parameters are stored as
    `dtype` (None: unchanged); buffers, such as the rotary angles, are always stored unchanged. With `overwrite`, other
    files in `folder` are kept.
    """
    if (clip is None) == (clip_model is None or clip_config is None):
        raise BundleError("a bundle needs one CLIP: either `clip`, or `clip_model` with `clip_config`")
    target = Path(folder)
    with _staging(target, overwrite) as stage:
        _save(dalle, stage / layout.DALLE, dtype)
        _save(vqgan, stage / layout.VQGAN, dtype)
        shutil.copyfile(tokenizer_file, stage / layout.TOKENIZER)
        if clip is None and clip_model is not None:
            _save(clip_model, stage / layout.CLIP_WEIGHTS, dtype)
            (stage / layout.CLIP_CONFIG).write_text(json.dumps(clip_config, indent=2) + "\n")
            named = {"config": layout.CLIP_CONFIG, "weights": layout.CLIP_WEIGHTS}
            named |= {"tokenizer": layout.TOKENIZER} if clip_uses_tokenizer else {}
        else:
            named = _copy_clip(clip or layout.ClipSpec(), stage)
        _describe(stage, name, dalle.config, vqgan.config, pad_id, named)
    return layout.read_bundle(target)


def write_bundle_like(
    folder: str | os.PathLike[str],
    parts: layout.Bundle,
    dalle: Dalle,
    *,
    name: str,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> layout.Bundle:
    """Write a bundle of `dalle` with the VQGAN, tokenizer and CLIP of another one, as `write_bundle` does."""
    target = Path(folder)
    with _staging(target, overwrite) as stage:
        _save(dalle, stage / layout.DALLE, dtype)
        shutil.copyfile(parts.vqgan_file, stage / layout.VQGAN)
        shutil.copyfile(parts.tokenizer_file, stage / layout.TOKENIZER)
        clip = parts.clip
        own = clip.tokenizer == parts.tokenizer_file
        named = _copy_clip(replace(clip, tokenizer=None) if own else clip, stage)
        named |= {"tokenizer": layout.TOKENIZER} if own else {}
        _describe(stage, name, dalle.config, parts.vqgan, parts.pad_id, named)
    return layout.read_bundle(target)


def replace_dalle(bundle: layout.Bundle, dalle: Dalle, dtype: torch.dtype | None = None) -> None:
    """Put new weights of the same model into a bundle; a concurrent reader sees either the old or the new ones."""
    with atomic_file(bundle.dalle_file) as partial:
        _save(dalle, partial, dtype)
        partial.chmod((bundle.root / layout.CONFIG).stat().st_mode & 0o777)


def load_dalle_from(
    bundle: layout.Bundle, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Dalle:
    """The transformer, in evaluation mode; parameters as `dtype`, angle tables always in float32."""
    from ttt.model.dalle import Dalle

    return _load(lambda: Dalle(bundle.dalle), bundle.dalle_file, device, dtype)


def load_vqgan_from(
    bundle: layout.Bundle, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Vqgan:
    """The image codec, in evaluation mode."""
    from ttt.model.vqgan import Vqgan

    return _load(lambda: Vqgan(bundle.vqgan), bundle.vqgan_file, device, dtype)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, checked again because it may have changed since `read_bundle`."""
    safetensors_shapes(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Copy or download it again") from None


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Copy `state` into all parameters and buffers of `module`; CheckpointError names a key that does not fit."""
    own = unique_state(module)
    for what, keys in (("lacks", own.keys() - state.keys()), ("has unknown", state.keys() - own.keys())):
        if keys:
            raise CheckpointError(f"{source} {what} {first_names(keys)}; it does not fit the model in {layout.CONFIG}")
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise CheckpointError(f"{source}: {key} is {list(state[key].shape)}, the model needs {list(tensor.shape)}")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """`state_dict` with each shared tensor only under its first name."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}  # neither repeats shared tensors
    return {key: named[key] for key in module.state_dict() if key in named}


def _save(module: nn.Module, path: Path, dtype: torch.dtype | None) -> None:
    parameters = dict(module.named_parameters())
    state = {}
    for key, tensor in unique_state(module).items():
        stored = dtype if dtype is not None and key in parameters else tensor.dtype
        state[key] = tensor.detach().to("cpu", stored).contiguous()
    save_file(state, path, metadata={"format": "pt"})


def _describe(
    stage: Path, name: str, dalle: DalleConfig, vqgan: VqganConfig, pad_id: int, clip: Mapping[str, str]
) -> None:
    """Write `config.json` beside the other files and read the bundle back, before it gets its final name."""
    config = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "name": name,
        "dalle": dalle.to_dict(),
        "vqgan": vqgan.to_dict(),
        "tokenizer": {"file": layout.TOKENIZER, "pad_id": pad_id},
        "clip": clip,
    }
    (stage / layout.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    layout.read_bundle(stage)


def _load(build: Callable[[], _Module], path: Path, device: str | torch.device, dtype: torch.dtype) -> _Module:
    state = read_safetensors(path)
    module = build()
    load_strictly(module, state, path)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(device, dtype)
    return module.to(device).eval()


def _copy_clip(clip: layout.ClipSpec, stage: Path) -> dict[str, str]:
    if clip.config is None or clip.weights is None:
        return {"model": clip.model or "", "pretrained": clip.pretrained or ""}
    config = read_json(clip.config)
    (stage / layout.CLIP_CONFIG).write_text(json.dumps(config.get("model_cfg", config), indent=2) + "\n")
    shutil.copyfile(clip.weights, stage / layout.CLIP_WEIGHTS)
    named = {"config": layout.CLIP_CONFIG, "weights": layout.CLIP_WEIGHTS}
    if clip.tokenizer is not None:
        shutil.copyfile(clip.tokenizer, stage / layout.CLIP_TOKENIZER)
        named["tokenizer"] = layout.CLIP_TOKENIZER
    return named


@contextmanager
def _staging(target: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside `target` that takes its place at the end; after an error it is deleted."""
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(f"{target} exists and is not empty; choose another folder, or overwrite it (--overwrite)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target) as stage:
            yield stage
            _publish(stage, target)
    except (OSError, SafetensorError) as error:  # SafetensorError has no errno, only text
        if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
            raise BundleError(f"no space is left on the disk of {target}; nothing was written") from error
        raise BundleError(f"{target} could not be written: {error}") from error


def _publish(stage: Path, target: Path) -> None:
    """Move the files of a complete bundle to `target`, which does not exist, is empty, or holds an old bundle."""
    mode = (stage / layout.CONFIG).stat().st_mode & 0o777
    for path in stage.iterdir():
        path.chmod(mode)  # safetensors writes files that only their owner can read
    if not target.exists() or not any(target.iterdir()):
        if target.exists():
            target.rmdir()  # Windows cannot rename a folder over an empty one
        stage.rename(target)
        return
    # The old config.json goes first and the new one comes last: in between, the folder is visibly not a bundle.
    (target / layout.CONFIG).unlink(missing_ok=True)
    for path in sorted(stage.iterdir(), key=lambda path: path.name == layout.CONFIG):
        path.replace(target / path.name)
