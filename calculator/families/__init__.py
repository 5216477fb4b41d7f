"""The model families: the tensors of each, and its forward pass written in the operations of `calculator.tape`."""

from __future__ import annotations

from types import ModuleType

from calculator.families import bert, clip, dalle, gpt2, gptj, llama, t5, vit

FAMILIES: dict[str, ModuleType] = {
    "bert": bert, "t5": t5, "gpt2": gpt2, "gptj": gptj, "llama": llama, "vit": vit, "clip": clip, "dalle": dalle,
}  # fmt: skip
"""Each module has `tensors(architecture)`, `inputs(architecture, b, s, t, width)`, `loss(context)` and, optionally,
`buffers(architecture, width)`."""
