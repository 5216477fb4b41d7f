"""The model families: the tensors of each, and its forward pass written in the operations of `calculator.tape`."""

from __future__ import annotations

from types import ModuleType

from calculator.families import bert, clip, dalle, falcon, gpt2, gpt_neox, gptj, llama, opt, t5, vit

FAMILIES: dict[str, ModuleType] = {
    "bert": bert, "t5": t5, "gpt2": gpt2, "gptj": gptj, "gpt_neox": gpt_neox,
    "falcon": falcon, "opt": opt, "llama": llama, "vit": vit, "clip": clip, "dalle": dalle,
}  # fmt: skip
"""Each module has `tensors(architecture)`, `inputs(architecture, b, s, t, width)`, `loss(context)` and, optionally,
`buffers(architecture, width)`."""
