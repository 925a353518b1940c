"""4-bit layers on the CPU, whose results are the same and right on every processor.

bitsandbytes (0.50) takes other paths where the processor has AVX-512. Its unpacking of rows that are no multiple of
the block (64) then mixes up the blocks' scales; with BF16 instructions its forward in eval mode also repacks the
weights for good, rounds to bfloat16, and fails on such rows. So a weight is unpacked by blocks here, each as one row,
and multiplied by torch.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F


def unpack(weight: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The (out, in) matrix of a layer's 4-bit `weight`, in the dtype that was quantised or in `dtype`."""
    from bitsandbytes.functional import dequantize_4bit

    state = copy(weight.quant_state)
    state.dtype = dtype or state.dtype
    if weight.device.type != "cpu":
        return dequantize_4bit(weight.data, state)  # type: ignore[no-any-return]
    shape, size = state.shape, state.shape.numel()
    blocks = -(-size // state.blocksize)
    state.shape = torch.Size((blocks, state.blocksize))
    packed = weight.data.reshape(-1).view(torch.uint8)
    whole = F.pad(packed, (0, blocks * state.blocksize // 2 - packed.numel()))
    return dequantize_4bit(whole[:, None], state).view(-1)[:size].view(shape)  # type: ignore[no-any-return]


def make_portable(model: Any) -> Any:
    """Replaces the forward of every 4-bit layer that is on the CPU; gives the model back."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers:
        if hasattr(layer.weight, "quant_state") and layer.weight.device.type == "cpu":
            layer.forward = partial(_forward, layer)
    return model


def _forward(linear: Any, x: torch.Tensor) -> torch.Tensor:
    y: Any = _Frozen.apply(x.to(linear.compute_dtype or x.dtype), linear.weight)  # type: ignore[no-untyped-call]
    y = y if linear.bias is None else y + linear.bias.to(y.dtype)
    return y.to(x.dtype)  # type: ignore[no-any-return]


class _Frozen(torch.autograd.Function):
    """x Wᵀ; for the gradient of x the weight is unpacked again, never kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any) -> torch.Tensor:
        ctx.weight = weight
        return F.linear(x, unpack(weight, x.dtype))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        return upstream[0] @ unpack(ctx.weight, upstream[0].dtype), None
