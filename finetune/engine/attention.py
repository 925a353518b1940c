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

    `lengths` cut T into samples. PyTorch chooses the kernel: flash from compute capability 8, memory-efficient below.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown or attention_mask is not None:
        raise TrainingError(f"this model's attention has {unknown or 'a mask'}, which packed training does not know")
    groups = query.shape[1] // key.shape[1]
    shared = groups > 1 and _groups_are_fast(query)
    if groups > 1 and not shared:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    sizes = list(lengths) or [query.shape[2]]
    outputs = [
        scaled_dot_product_attention(
            q, k, v, **_mask(q, sliding_window), dropout_p=dropout, scale=scaling, enable_gqa=shared
        )
        for q, k, v in zip(*(torch.split(x, sizes, 2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat([o.transpose(1, 2) for o in outputs], 1) if len(outputs) > 1 else outputs[0].transpose(1, 2), None


def _groups_are_fast(query: torch.Tensor) -> bool:
    """Of CUDA's kernels only flash shares key heads; below capability 8 `enable_gqa` would fall to the (T, T) one."""
    return query.is_cuda and torch.cuda.get_device_capability(query.device) >= (8, 0) and query.shape[-1] <= 256


def _mask(query: torch.Tensor, window: int | None) -> dict[str, Any]:
    length = query.shape[2]
    if window is None or length <= window:
        return {"is_causal": True}
    position = torch.arange(length, device=query.device)
    distance = position[:, None] - position[None, :]
    return {"attn_mask": (distance >= 0) & (distance < window)}


AttentionInterface.register(NAME, attend)
