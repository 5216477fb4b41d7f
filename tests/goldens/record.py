"""Records `reference.npz` from the reference implementation; run again only to add cases.

It needs an environment of its own, with Python 3.11:

    pip install numpy torch einops dalle-pytorch==1.6.6 rotary-embedding-torch==0.1.5
    python -m tests.goldens.record

dalle-pytorch imports taming-transformers, omegaconf and pkg_resources for image models that are not used here:
empty modules stand in for them.
"""

from __future__ import annotations

import sys
import types
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.goldens.weights import CASES, inputs, names, parts, state

REFERENCE = Path(__file__).with_name("reference.npz")


def stand_in(name: str, **attributes: Any) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)


def reference(case: dict[str, int]) -> Any:
    """The published model's architecture at the size of `case`, with its weights."""
    stand_in("omegaconf", OmegaConf=None)
    stand_in("taming")
    stand_in("taming.models")
    stand_in("taming.models.vqgan", VQModel=None, GumbelVQ=None)
    stand_in("pkg_resources", get_distribution=lambda _: types.SimpleNamespace(version="1.6.6"))
    from dalle_pytorch import DALLE, DiscreteVAE

    sizes = dict(case)
    fmap, depth, codes = (sizes.pop(name) for name in ("image_fmap_size", "depth", "num_image_tokens"))
    shared = [*islice(cycle(range(4)), depth - 1), "w_conv"]
    dalle = DALLE(
        **sizes,
        vae=DiscreteVAE(image_size=2 * fmap, num_layers=1, num_tokens=codes, hidden_dim=4),
        depth=depth,
        reversible=True,
        attn_types=[*islice(cycle(("axial_row", "axial_col", "axial_row", "axial_row")), depth - 1), "conv_like"],
        shared_attn_ids=shared,
        shared_ff_ids=shared,
        rotary_emb=True,
        shift_tokens=True,
        share_input_output_emb=True,
    )
    weights = {name: torch.from_numpy(value) for name, value in state(case, "inference").items()}
    kept = {name: value for name, value in dalle.state_dict().items() if name.startswith(("vae.", "transformer.pos_"))}
    dalle.load_state_dict(weights | kept)  # strict: the names are the reference's own
    return dalle


def record(case: dict[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    dalle = reference(case)
    text, codes = (torch.from_numpy(tokens) for tokens in inputs(case))
    with torch.no_grad():
        found = {f"logits.{m}": dalle(text, codes[:, :m]).numpy() for m in parts(case)}
    loss = dalle(text, codes, return_loss=True)
    loss.backward()
    found |= {"loss": loss.detach().numpy(), "pos_emb": dalle.transformer.pos_emb.numpy()}
    if case is CASES["small"]:
        gradients = {name: p.grad for name, p in dalle.named_parameters(remove_duplicate=False)}
        found |= {f"gradient.{shared}": gradients[name].numpy() for name, shared, _ in names(case, "inference")}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    everything = {f"{name}.{key}": array for name, case in CASES.items() for key, array in record(case).items()}
    np.savez_compressed(REFERENCE, **everything)  # type: ignore[arg-type]
    print(f"{REFERENCE}: {len(everything)} arrays, {REFERENCE.stat().st_size / 1e3:.0f} kB")
