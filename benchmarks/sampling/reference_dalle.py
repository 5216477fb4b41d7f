"""dalle-pytorch 1.6.6 as the published model uses it, at any sizes. Runs in that package's environment."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any


def published_dalle(sizes: dict[str, Any], **how: bool) -> Any:
    """A DALLE with random weights for the fields of a DalleConfig; `how`: reversible, optimize_for_inference."""
    from dalle_pytorch import DALLE, DiscreteVAE

    kinds = {"row": "axial_row", "column": "axial_col", "full": "full"}
    depth, fmap = sizes["depth"], sizes["image_fmap_size"]
    groups = [kinds[kind] for kind in sizes["attention_cycle"]]
    shared = [*islice(cycle(range(len(groups))), depth - 1), "w_conv"]
    return DALLE(
        dim=sizes["dim"], heads=sizes["heads"], dim_head=sizes["dim_head"], depth=depth,
        num_text_tokens=sizes["num_text_tokens"], text_seq_len=sizes["text_seq_len"],
        vae=DiscreteVAE(image_size=2 * fmap, num_layers=1, num_tokens=sizes["num_image_tokens"], hidden_dim=4),
        attn_types=[*islice(cycle(groups), depth - 1), "conv_like"], shared_attn_ids=shared, shared_ff_ids=shared,
        rotary_emb=True, shift_tokens=True, share_input_output_emb=True, **how,
    )  # fmt: skip
