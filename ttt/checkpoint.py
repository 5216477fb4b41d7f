"""Reads files of weights safely and maps published tensor names to ours. Independent of bundles and the Hub.

Nothing is unpickled: a file that would run code raises `UnsafeCheckpoint`.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ttt.config import DalleConfig
from ttt.errors import CheckpointError, UnsafeCheckpoint
from ttt.model.dalle import Dalle
from ttt.text import first_names

IGNORED = ("vae.",)
"""The reference stores the image model in the same file; ours is a separate file."""

WRAPPERS = ("state_dict", "weights", "module", "model_state_dict", "model")
"""Keys under which trainers save the weights beside other things: Lightning, dalle-pytorch, DeepSpeed and others."""
MAX_WRAPPERS = 3
PARALLEL = "module."
"""Prefix that DataParallel puts before every name."""

BODIES = {
    # our module and tensor      block, how deep its wrappers nest in the (training, inference) format, its tensor
    "attentions.{}.to_qkv.weight": ("f", (3, 5), "to_qkv.weight"),
    "attentions.{}.to_out.weight": ("f", (3, 5), "to_out.0.weight"),
    "attentions.{}.to_out.bias": ("f", (3, 5), "to_out.0.bias"),
    "feed_forwards.{}.up.weight": ("g", (3, 4), "net.0.weight"),
    "feed_forwards.{}.up.bias": ("g", (3, 4), "net.0.bias"),
    "feed_forwards.{}.down.weight": ("g", (3, 4), "net.3.weight"),
    "feed_forwards.{}.down.bias": ("g", (3, 4), "net.3.bias"),
}
PER_LAYER = {
    "attention_scale": "f.net.scale",
    "attention_norm.weight": "f.net.fn.norm.weight",
    "attention_norm.bias": "f.net.fn.norm.bias",
    "feed_forward_scale": "g.net.scale",
    "feed_forward_norm.weight": "g.net.fn.norm.weight",
    "feed_forward_norm.bias": "g.net.fn.norm.bias",
}
TOP = {
    "transformer.pos_emb": "transformer.pos_emb",
    "to_logits.0.weight": "norm.weight",
    "to_logits.0.bias": "norm.bias",
    "to_logits.1.weight": "to_logits.weight",
    "to_logits.1.bias": "to_logits.bias",
    "text_emb.linear.weight": "to_logits.weight",
    "text_emb.linear.bias": "to_logits.bias",
    "image_emb.linear.weight": "to_logits.weight",
    "image_emb.linear.bias": "to_logits.bias",
}


def load_dalle(path: str | PathLike[str], config: DalleConfig) -> Dalle:
    """Load a published or converted file, in float32 on the CPU; `CheckpointError` names the key that does not fit."""
    with torch.device("meta"):
        dalle = Dalle(config)
    dalle._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))  # `to_empty` would import sympy, which takes a second
    tensors = read_state(path)
    try:
        return load_state(dalle, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_state(dalle: Dalle, tensors: Mapping[str, Tensor]) -> Dalle:
    """Copy tensors with our names or any published ones into `dalle`.

    All of them must be present and have the right shape, or none is copied and CheckpointError is raised.
    """
    tensors = {name: t for name, t in tensors.items() if not name.removeprefix("model.").startswith(IGNORED)}
    # The layout that shares the most names with the file; the differences are then reported.
    names = max(_layouts(dalle.config), key=lambda layout: len(layout.keys() & tensors.keys()))
    _refuse("unknown", "the model has no such tensor", tensors.keys() - names.keys())
    _refuse("missing", "the model needs it", names.keys() - tensors.keys())
    ours = dalle.state_dict()
    chosen: dict[str, str] = {}
    for name, ours_name in names.items():
        _check(name, tensors[name], ours[ours_name].shape)
        # The published files store a shared tensor under the name of every layer that uses it.
        first = chosen.setdefault(ours_name, name)
        if not _same(tensors[name], tensors[first]):
            raise CheckpointError(f"key {name} differs from {first}; the model has one tensor for both")
    with torch.no_grad():
        for ours_name, name in chosen.items():
            ours[ours_name].copy_(tensors[name].view(ours[ours_name].shape))
    return dalle


def read_state(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Named tensors of a `.safetensors` file, of a saved state dict, or of a checkpoint with one under `WRAPPERS`."""
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file} is not a file")
    safetensors = file.suffix == ".safetensors" or _head(file)[8:] == b"{"
    loaded = _read_safetensors(file) if safetensors else _read_torch(file)
    return named_tensors(loaded, file)


def named_tensors(loaded: object, file: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors in the content of a checkpoint. Raises CheckpointError if it holds anything else."""
    for _ in range(MAX_WRAPPERS):
        found = loaded if isinstance(loaded, Mapping) else {}
        loaded = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, expected named tensors")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file}: key {name} holds a {type(value).__name__}, expected a tensor (or all tensors under one of "
                f"the keys {', '.join(WRAPPERS)})"
            )
    if loaded and all(name.startswith(PARALLEL) for name in loaded):
        return {name.removeprefix(PARALLEL): value for name, value in loaded.items()}
    return dict(loaded)


def _read_safetensors(file: Path) -> object:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            _not_a_checkpoint(file) or f"{file} is damaged, incomplete or not a safetensors file ({error})"
        ) from error


def _read_torch(file: Path) -> object:
    if reason := _not_a_checkpoint(file):
        raise CheckpointError(reason)
    whole_archive = zipfile.is_zipfile(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=whole_archive)
    except Exception as error:  # torch raises errors of many types for broken files
        if isinstance(error, pickle.UnpicklingError):
            needed = re.search(r"GLOBAL (\S+)|but got (.+)", str(error))
            head = _head(file)
            foreign_pickle = head[:1] == b"\x80" and head[1:2] != b"\x02"  # torch writes protocol 2
            if whole_archive or foreign_pickle or (head[:1] == b"\x80" and needed):
                what = f" ({needed[1] or needed[2]})" if needed else ""
                raise UnsafeCheckpoint(
                    f"{file} cannot be read without running code{what}. If you trust its author, "
                    "convert it once with `ttt convert --trust-pickle`"
                ) from error
        # The words of torch are left out: they advise to read the file with `weights_only=False`, which runs its code.
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise CheckpointError(
            f"{file} is damaged, incomplete or not a checkpoint{reason}; download or copy it again"
        ) from error


def _not_a_checkpoint(file: Path) -> str:
    """What a file is that was downloaded in place of a checkpoint; empty if it may be one."""
    with file.open("rb") as opened:
        head = opened.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if file.stat().st_size == 0:
        return f"{file} is empty; download or copy it again"
    if head.startswith(b"version https://git-lfs"):
        return f"{file} is a pointer of Git LFS, not the checkpoint itself; get it with `git lfs pull`"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return (
            f"{file} is a web page, not a checkpoint: the download link asks for a login or a confirmation. Open it in "
            "a browser, or use a direct link"
        )
    return ""


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(9)


def _layouts(config: DalleConfig) -> Iterator[dict[str, str]]:
    """Name in the file -> our name: ours, then the published variants."""
    published = [dict(published_names(config, nesting)) for nesting in (0, 1)]
    own = {name: name for name in published[0].values()}
    yield own
    for names in published:
        yield names
        yield {f"model.{name}": own for name, own in names.items()}


def published_names(config: DalleConfig, nesting: int) -> Iterator[tuple[str, str]]:
    """(published name, our name); `nesting` 0 is the training format, 1 the inference format."""
    yield from TOP.items()
    for layer, weights in enumerate(config.weight_ids):
        block = f"transformer.layers.blocks.{layer}"
        for own, name in PER_LAYER.items():
            yield f"{block}.{name}", f"transformer.layers.{layer}.{own}"
        for own, (half, depths, name) in BODIES.items():
            wrappers = ".fn" * depths[nesting]
            yield f"{block}.{half}.net{wrappers}.{name}", "transformer." + own.format(weights)


def _refuse(what: str, why: str, names: set[str]) -> None:
    if names:
        raise CheckpointError(f"{what} key {first_names(names)}: {why}")


def _check(name: str, tensor: Tensor, shape: torch.Size) -> None:
    expected = [1, 1, *shape] if name.endswith(".scale") else list(shape)
    if list(tensor.shape) != expected:
        raise CheckpointError(f"key {name} has shape {list(tensor.shape)}, expected {expected}")
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        raise CheckpointError(f"key {name} holds {tensor.dtype}, {tensor.layout}; expected dense floating point")


def _same(a: Tensor, b: Tensor) -> bool:
    """True for equal tensors; fast for two names of the same memory (`torch.save` preserves sharing)."""
    one_memory = a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    return (one_memory and a.dtype == b.dtype) or torch.equal(a, b)
