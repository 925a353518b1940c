"""What training puts in the place of a model's layers: attention within samples, LoRA as one node, recomputation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from bnbench.errors import TrainingError
from bnbench.finetune.memory import ALLOCATOR
from bnbench.models.precision import unpack

ATTENTION = "bnbench_packed"
"""The `attn_implementation` under which transformers finds `attend`; it has no mask function, so none is ever built."""
Weight = Callable[[], torch.Tensor]
"""Gives a frozen layer's (out, in) weight in the dtype of the arithmetic, for as long as the caller holds it."""


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, *,
    scaling: float | None = None, dropout: float = 0.0, lengths: tuple[int, ...] = (),
    sliding_window: int | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention of (rows, heads, T, d) queries over (rows, key heads, T, d) keys, as (rows, T, heads, d).

    softmax(scaling · q kᵀ) v over the keys at and before each query, of the last `sliding_window` where a model has
    one, and of the same sample: `lengths` cut T into samples, none is one. Raises TrainingError for other attention.
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
        one = F.scaled_dot_product_attention(q, k, v, **mask, dropout_p=dropout, scale=scaling, enable_gqa=shared)
        outputs.append(one.transpose(1, 2))
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], None


AttentionInterface.register(ATTENTION, attend)


def make_lean(model: Any) -> None:
    """Replaces the forward of every LoRA layer around a linear one, and of every other 4-bit layer, of a PEFT model.

    PEFT's modules go on holding the parameters and writing the files. A layer launches a third of the kernels, keeps
    the input once for all its adapters, and keeps no product.
    """
    from peft.tuners.lora import LoraLayer

    def weight_of(linear: Any) -> Weight:
        # A 4-bit weight is unpacked afresh at each call, in the forward pass and again in the backward: whole, it
        # would take four times the memory. Other weights are simply there.
        return lambda: unpack(linear.weight) if hasattr(linear.weight, "quant_state") else linear.weight.detach()

    inside: set[Any] = set()
    for module in model.modules():  # a LoRA layer comes before the one in it
        linear = module.get_base_layer() if isinstance(module, LoraLayer) else None
        if isinstance(linear, torch.nn.Linear) and not module.lora_magnitude_vector:  # DoRA is PEFT's own
            inside.add(linear)
            module.forward = partial(_adapted, module, weight_of(linear))
        elif hasattr(getattr(module, "weight", None), "quant_state") and module not in inside:
            module.forward = partial(_frozen, module, weight_of(module))


def _frozen(linear: Any, weight: Weight, x: torch.Tensor) -> torch.Tensor:
    return _linear(x, None, None, weight, linear.bias, 0.0, 0.0)


def _adapted(layer: Any, weight: Weight, x: torch.Tensor) -> torch.Tensor:
    name = layer.active_adapters[0]
    dropout = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0  # PEFT's of rate 0 is an Identity
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    bias = layer.get_base_layer().bias
    return _linear(x, a, b, weight, bias, layer.scaling[name], dropout)


def _linear(x: torch.Tensor, *others: Any) -> torch.Tensor:
    # Flat before and whole after it: torch forbids that a view of its making is added to in place, as Falcon does.
    y: torch.Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), *others)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + bias + s · D(x) Aᵀ Bᵀ with s = alpha / r and D dropout (Hu et al. 2021, section 4.1).

    x is (n, in), y (n, out). W (out, in) is frozen, in 4 bits where the base is quantised (QLoRA, Dettmers et al.
    2023); A (r, in) and B (out, r) are float32, multiplied in x's dtype; None of both is the frozen layer alone.
    """

    @staticmethod
    def forward(
        ctx: Any, flat: torch.Tensor, a: Any, b: Any, weight: Weight, bias: Any, scale: float, dropout: float
    ) -> torch.Tensor:
        y = F.linear(flat, weight(), bias)
        mask = low = None
        if a is not None:
            # The mask is kept (a byte an element), the dropped input is not: it is flat * mask / (1 - dropout) again.
            dropped, mask = torch.native_dropout(flat, dropout, True) if dropout else (flat, None)
            low = dropped @ a.to(flat.dtype).t()  # (n, r): with r = 8 a 512th of the input, so it is kept
            y.addmm_(low, b.to(flat.dtype).t(), alpha=scale)
        # The frozen layer alone needs nothing of its input for the gradient of it.
        ctx.save_for_backward(flat if a is not None else None, mask, low, a, b)
        ctx.weight, ctx.scale, ctx.kept = weight, scale, 1 - dropout
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
        """With g = ∂L/∂y (n, out), kept = 1 − dropout and D(x) = x ∘ mask / kept:

        ∂L/∂A = (s g B)ᵀ D(x),  ∂L/∂B = s gᵀ (D(x) Aᵀ),  ∂L/∂x = g W + (s g B A) ∘ mask / kept.
        """
        flat, mask, low, a, b = ctx.saved_tensors
        g = upstream[0]
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
        return dx, da, db, None, None, None, None


def add_noise(model: Any, alpha: float) -> None:
    """NEFTune (Jain et al. 2023): in training, noise on the embeddings of a PEFT model that `prepare` has been given.

    Uniform within ± alpha / sqrt(L d), where L is the length of the sample in a packed row, and of a padded row, d the
    width.
    """
    base = model.get_base_model()
    embedding, lengths = base.get_input_embeddings(), list[int]()

    def note(_: Any, given: Any, named: Any) -> None:
        lengths[:] = named["one_pass"].lengths or [named["one_pass"].ids.shape[1]]

    def noise(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        counts = torch.tensor(lengths, device=output.device)
        reach = alpha / (counts.repeat_interleave(counts) * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * reach[:, None].to(output.dtype)

    base.register_forward_pre_hook(note, with_kwargs=True)
    embedding.register_forward_hook(noise)


class Recomputation:
    """Switches checkpointing layer by layer: as few layers as the memory allows recompute, pass by pass.

    A checkpointed layer keeps its input alone, and runs forward once more in the backward pass: a third of the
    arithmetic, so that the longest row fits. Shorter ones leave room for what some layers keep, which `measure` finds
    out; until then all recompute. With 13 GiB instead of 6.5 a step took 0.99 s instead of 1.28 (one H100).
    """

    def __init__(self, model: Any, budget: float) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self.budget = budget
        self.kept = 0.0

    def set_for(self, tokens: int) -> None:
        """For a pass of so many tokens, padding included."""
        count = 0
        if self.kept > 0:
            # The peak is in the backward pass, or before it, where all logits of a chunk lie on what the layers keep.
            spare = self.budget - self.fixed - max(self.per_token * tokens, self.forward * tokens + self.chunk)
            count = max(0, int(spare / (self.kept * tokens)))
        self.keep(count)

    def keep(self, count: int) -> None:
        """Lets the last `count` layers keep their activations: the backward pass frees them first."""
        for i, layer in enumerate(self.layers):
            layer.gradient_checkpointing = i < len(self.layers) - count

    def measure(self, tokens: int, forward: Callable[[], Any], step: Callable[[], Any]) -> None:
        """Runs `forward` twice and `step` once on the largest pass. A budget of 0 is what that pass itself needs.

        `forward` gives a loss whose graph holds what is kept; `step` is a forward and backward pass.
        """
        cuda = torch.cuda
        cuda.empty_cache()  # what loading left behind
        fixed = cuda.memory_allocated()

        def run(kept: int) -> tuple[int, int]:
            # Bytes alive after a forward pass with so many layers kept, and at most while it ran.
            self.keep(kept)
            cuda.reset_peak_memory_stats()
            loss = forward()  # noqa: F841 - its graph is what is measured
            return cuda.memory_allocated(), cuda.max_memory_allocated()

        one, _ = run(1)
        none, at_most = run(0)
        cuda.reset_peak_memory_stats()
        step()
        peak = cuda.max_memory_allocated()
        # Bytes that are there at any time, by token in the backward pass and at the forward pass's end, of a loss chunk
        # on top, and by token of one layer that is not recomputed, all being alike.
        self.fixed, self.per_token, self.forward = fixed, (peak - fixed) / tokens, (none - fixed) / tokens
        self.chunk, self.kept = at_most - none, (one - none) / tokens
        self.budget = self.budget / (1 + ALLOCATOR) or peak
