"""Bundle folders: one model and everything it needs, described by `config.json`. Independent of torch and the network.

    config.json         format, version, name, the two model configurations, tokenizer, CLIP
    dalle.safetensors   the transformer; a tensor that layers share is stored once
    vqgan.safetensors   encoder, quantiser and decoder
    tokenizer.json      the `tokenizers` library's format
    clip_config.json, clip.safetensors    only if CLIP is not a model that open_clip knows by name

`read_bundle` checks everything that can be checked without torch, so a broken or partly downloaded folder is reported
at once, with the name of the file. `ttt.bundle.weights` reads and writes the weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ttt.bundle.files import (
    MAX_TOKENIZER_BYTES,
    broken,
    file_size,
    json_object,
    plain_name,
    read_json,
    safetensors_shapes,
    text_field,
)
from ttt.config import DalleConfig, VqganConfig
from ttt.errors import BundleError, InvalidInput

FORMAT, VERSION = "ttt-bundle", 1
CONFIG, DALLE, VQGAN, TOKENIZER = "config.json", "dalle.safetensors", "vqgan.safetensors", "tokenizer.json"
CLIP_CONFIG, CLIP_WEIGHTS, CLIP_TOKENIZER = "clip_config.json", "clip.safetensors", "clip_tokenizer.json"
DEMO_FOLDER = Path(__file__).parents[1] / "demo"
"""The bundle that ships with the package."""

LIMITS = {
    "dim": 16_384, "depth": 1024, "heads": 256, "dim_head": 1024, "text_seq_len": 4096, "image_fmap_size": 128,
    "num_text_tokens": 1 << 20, "num_image_tokens": 1 << 20, "ff_mult": 64, "conv_kernel": 127,
    "ch": 4096, "num_res_blocks": 64, "resolution": 2048, "in_channels": 3, "out_ch": 3, "z_channels": 16_384,
    "embed_dim": 16_384, "n_embed": 1 << 20, "norm_groups": 4096,
}  # fmt: skip
"""Largest value of each whole number in the two configurations: far above any published model, but low enough that a
malicious `config.json` cannot exhaust the memory."""
MAX_LIST = 64

_Config = TypeVar("_Config", DalleConfig, VqganConfig)


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Either a model that open_clip knows by name (`model` and `pretrained`), or files."""

    model: str | None = None
    pretrained: str | None = None
    config: Path | None = None
    """open_clip's model configuration (embed_dim, vision_cfg, text_cfg)."""
    weights: Path | None = None
    tokenizer: Path | None = None
    """File of the `tokenizers` library; None for open_clip's own tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A checked bundle folder."""

    root: Path
    name: str
    dalle: DalleConfig
    vqgan: VqganConfig
    dalle_file: Path
    vqgan_file: Path
    tokenizer_file: Path
    pad_id: int
    """Text is padded with this id: 1 for the published model, 0 for the demo."""
    clip: ClipSpec


def read_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Check `folder` and return its description; BundleError names the file and the remedy."""
    root = Path(folder)
    if not root.is_dir():
        raise BundleError(f"{root} is not a folder; a bundle is a folder with {CONFIG}, made by `ttt convert`")
    path = root / CONFIG
    config = read_json(path)
    _check_version(config, path)
    dalle = checked_config(DalleConfig, json_object(config.get("dalle"), path, "dalle"), path)
    vqgan = checked_config(VqganConfig, json_object(config.get("vqgan"), path, "vqgan"), path)
    _check_fit(dalle, vqgan, path)
    tokenizer = json_object(config.get("tokenizer"), path, "tokenizer")
    bundle = Bundle(
        root=root,
        name=text_field(config.get("name"), path, "name"),
        dalle=dalle,
        vqgan=vqgan,
        dalle_file=root / DALLE,
        vqgan_file=root / VQGAN,
        tokenizer_file=_inside(root, tokenizer.get("file"), "tokenizer.file"),
        pad_id=_pad_id(tokenizer.get("pad_id"), dalle, path),
        clip=_clip_spec(json_object(config.get("clip"), path, "clip"), root),
    )
    _check_dalle_file(bundle.dalle_file, dalle)
    safetensors_shapes(bundle.vqgan_file)
    _check_tokenizer(bundle.tokenizer_file, dalle)
    if bundle.clip.config is not None and bundle.clip.weights is not None:
        read_json(bundle.clip.config)
        safetensors_shapes(bundle.clip.weights)
    return bundle


def config_files(config: dict[str, Any], path: Path) -> list[str]:
    """Names of the other files that a bundle's `config.json` refers to."""
    tokenizer, clip = (json_object(config.get(key), path, key) for key in ("tokenizer", "clip"))
    named = [tokenizer.get("file"), *(clip[key] for key in ("config", "weights", "tokenizer") if key in clip)]
    return list(dict.fromkeys([DALLE, VQGAN, *(plain_name(name, path, "a file name") for name in named)]))


def is_bundle_config(config: dict[str, Any]) -> bool:
    return config.get("format") == FORMAT


def _check_version(config: dict[str, Any], path: Path) -> None:
    if not is_bundle_config(config):
        raise BundleError(f'{path} does not say "format": "{FORMAT}": not a bundle; `ttt convert` makes one')
    if config.get("version") != VERSION:
        raise BundleError(
            f"{path} has version {config.get('version')!r} and this program reads version {VERSION}; "
            "update the program, or convert the model again"
        )


def checked_config(cls: type[_Config], values: dict[str, Any], path: str | Path) -> _Config:
    """A configuration read from a file, with types and sizes checked."""
    defaults = {field.name: field.default for field in fields(cls)}
    for name, value in values.items():
        default, limit = defaults.get(name), LIMITS.get(name)
        if limit is not None and (type(value) is not int or not 1 <= value <= limit):
            raise BundleError(f"{path}: {name} must be a whole number from 1 to {limit}, got {value!r}")
        if isinstance(default, bool) and not isinstance(value, bool):
            raise BundleError(f"{path}: {name} must be true or false, got {value!r}")
        if isinstance(default, float) and not _is_number(value, 0, 1e6):
            raise BundleError(f"{path}: {name} must be a number from 0 to 1e6, got {value!r}")
        if isinstance(default, tuple):
            _check_list(value, type(default[0]), name, path)
    try:
        return cls.from_dict(values)
    except (InvalidInput, TypeError) as error:
        raise BundleError(f"{path}: {error}") from None


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _check_list(value: Any, kind: type, name: str, path: str | Path) -> None:
    if (
        not isinstance(value, (list, tuple))
        or len(value) > MAX_LIST
        or any(not isinstance(item, kind) or (isinstance(item, int) and not 1 <= item <= 4096) for item in value)
    ):
        allowed = "whole numbers from 1 to 4096" if kind is int else "names"
        raise BundleError(f"{path}: {name} must be a list of at most {MAX_LIST} {allowed}, got {value!r}")


def _check_fit(dalle: DalleConfig, vqgan: VqganConfig, path: Path) -> None:
    for what, of_dalle, of_vqgan in (
        ("dalle.num_image_tokens and vqgan.n_embed", dalle.num_image_tokens, vqgan.n_embed),
        ("dalle.image_fmap_size and the VQGAN's codes on a side", dalle.image_fmap_size, vqgan.fmap_size),
    ):
        if of_dalle != of_vqgan:
            raise BundleError(
                f"{path}: transformer and VQGAN do not match: {what} must be equal, got {of_dalle} and "
                f"{of_vqgan}; convert with the VQGAN that the transformer was trained on"
            )


def _check_dalle_file(path: Path, dalle: DalleConfig) -> None:
    """Check, before anything is allocated, that the file has tensors of the configured sizes."""
    shapes = safetensors_shapes(path)
    sizes = {size for shape in shapes.values() for size in shape}
    expected = {
        "dim": dalle.dim,
        "heads * dim_head": dalle.heads * dalle.dim_head,
        "dim * ff_mult": dalle.dim * dalle.ff_mult,
        "num_text_tokens + text_seq_len + num_image_tokens": dalle.total_tokens,
    }
    wrong = [f"{name} = {value}" for name, value in expected.items() if value not in sizes]
    if dalle.depth > len(shapes):
        wrong.append(f"depth = {dalle.depth}")
    if wrong:
        raise BundleError(f"{path}: no tensor in it has the size that {CONFIG} gives ({', '.join(wrong)})")


def _check_tokenizer(path: Path, dalle: DalleConfig) -> None:
    tokenizer = read_json(path, MAX_TOKENIZER_BYTES)
    vocab = json_object(tokenizer.get("model"), path, "model").get("vocab")
    if not isinstance(vocab, (dict, list)) or not vocab:
        raise broken(path, "it has no vocabulary")
    try:
        ids = [int(token["id"]) for token in tokenizer.get("added_tokens") or []]
        highest = max(max(vocab.values()) if isinstance(vocab, dict) else len(vocab) - 1, *ids, 0)
    except (TypeError, KeyError, ValueError):
        raise broken(path, "its vocabulary has entries without an id") from None
    if highest >= dalle.num_text_tokens:
        raise BundleError(f"{path}: id {highest} is beyond the {dalle.num_text_tokens} text tokens of the model")


def _clip_spec(clip: dict[str, Any], root: Path) -> ClipSpec:
    if "config" in clip or "weights" in clip:
        return ClipSpec(
            config=_inside(root, clip.get("config"), "clip.config"),
            weights=_inside(root, clip.get("weights"), "clip.weights"),
            tokenizer=_inside(root, clip["tokenizer"], "clip.tokenizer") if "tokenizer" in clip else None,
        )
    # Plain names only: open_clip would open paths, and download any repository named "hf-hub:...".
    model, pretrained = (plain_name(clip.get(key), root / CONFIG, f"clip.{key}") for key in ("model", "pretrained"))
    return ClipSpec(model=model, pretrained=pretrained)


def _pad_id(value: Any, dalle: DalleConfig, path: Path) -> int:
    if type(value) is not int or not 0 <= value < dalle.num_text_tokens:
        raise BundleError(f"{path}: tokenizer.pad_id must be from 0 to {dalle.num_text_tokens - 1}, got {value!r}")
    return value


def _inside(root: Path, value: Any, key: str) -> Path:
    """Path of a file directly in the folder; BundleError if it is missing."""
    path = root / plain_name(value, root / CONFIG, key)
    file_size(path)
    return path
