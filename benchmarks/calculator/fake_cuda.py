"""Makes fake CPU tensors allocate what CUDA's kernels would. Independent of models and of the calculator.

PyTorch cannot run a backward pass over fake `cuda` tensors without a driver, so the benchmark runs over fake `cpu`
tensors, and `cuda_like` replaces the calls whose memory differs between the two devices:

- dropout: CPU keeps a full-width mask, CUDA's fused kernel a bool one (`aten::native_dropout`);
- attention: CUDA's flash (16-bit, no mask) or memory-efficient kernel (the rest), chosen as CUDA does;
- autocast: CUDA's list of functions that run in float32 (softmax, layer_norm, pow, ...), which the CPU's list lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

FLOAT32_UNDER_AUTOCAST = (
    (torch, ("softmax", "log_softmax", "pow", "rsqrt", "exp", "norm", "sum")),
    (Tensor, ("softmax", "log_softmax", "pow", "__pow__", "rsqrt", "exp", "norm", "sum")),
    (F, ("softmax", "log_softmax", "layer_norm", "cross_entropy", "nll_loss")),
)
"""Functions that CUDA's autocast runs in float32 and that transformers calls."""


@contextmanager
def cuda_like() -> Iterator[None]:
    """In this context and under `FakeTensorMode`, a training step on CPU tensors allocates as on a GPU.

    Functions are patched in their modules, because a `TorchFunctionMode` is inactive while checkpoints recompute.
    """
    with ExitStack() as stack:
        for owner, names in FLOAT32_UNDER_AUTOCAST:
            for name in names:
                stack.enter_context(patch.object(owner, name, _in_float32(getattr(owner, name))))
        stack.enter_context(patch.object(F, "dropout", _dropout))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attention))
        yield


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _to_float32, (args, kwargs))
        return function(*args, **kwargs)

    return wrapped


def _to_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        attn_mask = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(dtype)
    if attn_mask is None and query.dtype != torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[
            0
        ]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )[0]
