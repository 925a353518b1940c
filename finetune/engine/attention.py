"""Causal attention within each sample of a packed row: one scaled-dot-product call a sample, never a (T, T) mask."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from bnbench.errors import TrainingError

NAME = "bnbench_packed"
"""The `attn_implementation` under which transformers finds it. It has no mask function, so no mask is ever built."""


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    lengths: tuple[int, ...] = (),
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of (rows, heads, T, d) queries over (rows, key heads, T, d) keys, as (rows, T, heads, d).

    softmax(scaling · q kᵀ) v over the keys at and before each query, of the last `sliding_window` where a model has
    one, and of the same sample: `lengths` cut T into samples, none is one. PyTorch chooses the kernel: flash from
    compute capability 8, memory-efficient below. Raises TrainingError for attention of another kind.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown or attention_mask is not None:
        raise TrainingError(f"this model's attention has {unknown or 'a mask'}, which packed training does not know")
    groups = query.shape[1] // key.shape[1]
    # Of CUDA's kernels only flash lets several query heads share a key head. Below capability 8 (or with wide heads)
    # `enable_gqa` would fall to the kernel that makes the (T, T) matrix, so there the keys are repeated instead.
    shared = groups > 1 and query.is_cuda and query.shape[-1] <= 256
    shared = shared and torch.cuda.get_device_capability(query.device) >= (8, 0)
    if groups > 1 and not shared:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    sizes = list(lengths) or [query.shape[2]]
    for q, k, v in zip(*(torch.split(x, sizes, 2) for x in (query, key, value)), strict=True):
        mask: dict[str, Any] = {"is_causal": True}
        if sliding_window is not None and q.shape[2] > sliding_window:  # else the window hides nothing
            position = torch.arange(q.shape[2], device=q.device)
            distance = position[:, None] - position[None, :]
            mask = {"attn_mask": (distance >= 0) & (distance < sliding_window)}
        one = scaled_dot_product_attention(q, k, v, **mask, dropout_p=dropout, scale=scaling, enable_gqa=shared)
        outputs.append(one.transpose(1, 2))
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], None


AttentionInterface.register(NAME, attend)
