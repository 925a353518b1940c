"""A linear layer and its LoRA as one autograd node, with the frozen weight unpacked from 4 bits only while it is used.

    y = x Wᵀ + bias + s · D(x) Aᵀ Bᵀ        s = alpha / r, D dropout (Hu et al. 2021, section 4.1)

W (out, in) is frozen, and in 4 bits where the base is quantised (QLoRA, Dettmers et al. 2023); A (r, in) and B (out, r)
are trained in float32, and multiplied in x's dtype. PEFT's modules hold the parameters and write the files; only their
`forward` is replaced. Per layer that launches about a third of the kernels, keeps the input once for all adapters of
it, and keeps no product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from bnbench.models.four_bits import unpack

Weight = Callable[[], torch.Tensor]
"""Gives a frozen layer's (out, in) weight in the dtype of the arithmetic, for as long as the caller holds it."""


def make_lean(model: Any) -> None:
    """Replaces the forward of every LoRA layer around a linear one, and of every other 4-bit layer, of a PEFT model."""
    from peft.tuners.lora import LoraLayer

    def weight_of(linear: Any) -> Weight:
        # A 4-bit weight is unpacked afresh at each call, in the forward pass and again in the backward: whole, it
        # would take four times the memory. Other weights are simply there.
        if hasattr(linear.weight, "quant_state"):
            return lambda: unpack(linear.weight)
        return lambda: linear.weight.detach()

    inside: set[Any] = set()
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), torch.nn.Linear):
            inside |= {module, module.get_base_layer()}
            module.forward = partial(_adapted, module, weight_of(module.get_base_layer()))
    for module in model.modules():
        if hasattr(getattr(module, "weight", None), "quant_state") and module not in inside:
            module.forward = partial(_frozen, module, weight_of(module))


def _frozen(linear: Any, weight: Weight, x: torch.Tensor) -> torch.Tensor:
    return _Linear.apply(x, None, None, weight, linear.bias, 0.0, 0.0)  # type: ignore[no-untyped-call,no-any-return]


def _adapted(layer: Any, weight: Weight, x: torch.Tensor) -> torch.Tensor:
    name = layer.active_adapters[0]
    dropout = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0  # PEFT's of rate 0 is an Identity
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    bias = layer.get_base_layer().bias
    return _Linear.apply(x, a, b, weight, bias, layer.scaling[name], dropout)  # type: ignore[no-untyped-call,no-any-return]


class _Linear(torch.autograd.Function):
    """The formula above on (..., in) inputs, giving (..., out); without A and B the frozen layer alone."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: Any, b: Any, weight: Weight, bias: Any, scale: float, dropout: float
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = F.linear(flat, weight(), bias)
        mask = low = None
        if a is not None:
            # The mask is kept (a byte an element), the dropped input is not: it is flat * mask / (1 - dropout) again.
            dropped, mask = torch.native_dropout(flat, dropout, True) if dropout else (flat, None)
            low = dropped @ a.to(x.dtype).t()  # (n, r): with r = 8 a 512th of the input, so it is kept
            y.addmm_(low, b.to(x.dtype).t(), alpha=scale)
        # The frozen layer alone needs nothing of its input for the gradient of it.
        ctx.save_for_backward(flat if a is not None else None, mask, low, a, b)
        ctx.weight, ctx.scale, ctx.kept, ctx.shape = weight, scale, 1 - dropout, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
        """With g = ∂L/∂y (n, out), kept = 1 − dropout and D(x) = x ∘ mask / kept:

        ∂L/∂A = (s g B)ᵀ D(x),  ∂L/∂B = s gᵀ (D(x) Aᵀ),  ∂L/∂x = g W + (s g B A) ∘ mask / kept.
        """
        flat, mask, low, a, b = ctx.saved_tensors
        g = upstream[0].reshape(-1, upstream[0].shape[-1])
        da = db = dx = gb = None
        if a is not None:
            gb = (g @ b.to(g.dtype)).mul_(ctx.scale)  # s g B, (n, r), for A's gradient and for x's
            dropped = flat if mask is None else flat * mask
            # The division by kept is left to the small product.
            da, db = (gb.t() @ dropped).to(a.dtype).div_(ctx.kept), (g.t() @ low).to(b.dtype).mul_(ctx.scale)
            del dropped  # as wide as the input, and the input's gradient is the next to come
        if ctx.needs_input_grad[0]:
            dx = g @ ctx.weight()
            if gb is not None and mask is None:
                dx.addmm_(gb, a.to(dx.dtype))
            elif gb is not None:
                dx.add_((gb @ a.to(dx.dtype)).mul_(mask), alpha=1 / ctx.kept)
            dx = dx.view(ctx.shape)
        return dx, da, db, None, None, None, None
