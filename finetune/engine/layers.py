"""What training puts in the place of a model's layers: attention within samples, and LoRA as one node."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from bnbench.errors import TrainingError
from bnbench.models import kernels
from bnbench.models.loading import unpack

ATTENTION = "bnbench_packed"
"""The `attn_implementation` under which transformers finds `attend`; it has no mask function, so none is ever built."""
CUDNN_FROM, CUDNN_STEP = 1024, 512
"""Tokens of a sample from which cuDNN attends to it, and the multiples of which it sees."""
Drops = torch.Tensor | tuple[int, int] | None
"""What dropout left out: a mask of a byte an element, the seed of `kernels.drop`, or nothing."""
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
    capability = torch.cuda.get_device_capability(query.device) if query.is_cuda else (0, 0)
    shared = groups > 1 and capability >= (8, 0) and query.shape[-1] <= 256
    is_half = query.dtype != torch.float32
    suits_flash = capability >= (8, 0) and is_half and query.shape[-1] <= 256
    suits_cudnn = capability >= (9, 0) and is_half and query.shape[-1] <= 128
    if groups > 1 and not shared:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for sizes in _together(tuple(lengths) or (query.shape[2],), shares_flash=suits_flash and sliding_window is None):
        n = sum(sizes)
        (q, query), (k, key), (v, value) = ((x[:, :, :n], x[:, :, n:]) for x in (query, key, value))
        how: dict[str, Any] = {"is_causal": True, "dropout_p": dropout, "scale": scaling, "enable_gqa": shared}
        if len(sizes) > 1:
            # One call for all of the samples: it takes (tokens, heads, d), and where each sample begins.
            rows = (x[0].transpose(0, 1) for x in (q, k, v))
            one, *_ = torch.ops.aten._flash_attention_forward(
                *rows, *[_bounds(tuple(sizes), q.device)] * 2, *[max(sizes)] * 2, dropout, True, False, scale=scaling
            )
            outputs.append(one[None])
            continue
        if sliding_window is not None and n > sliding_window:  # else the window hides nothing
            position = torch.arange(n, device=q.device)
            distance = position[:, None] - position[None, :]
            how |= {"is_causal": False, "attn_mask": (distance >= 0) & (distance < sliding_window)}
            one = F.scaled_dot_product_attention(q, k, v, **how)
        elif suits_cudnn and n >= CUDNN_FROM:
            # cuDNN's kernel for Hopper takes half of flash's time, but makes a plan for every new length: so there are
            # few of them. What is padded comes after all queries, so none sees it.
            if n % CUDNN_STEP:
                q, k, v = (F.pad(x, (0, 0, 0, -n % CUDNN_STEP)) for x in (q, k, v))
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                one = F.scaled_dot_product_attention(q, k, v, **how)[:, :, :n]
        else:
            one = F.scaled_dot_product_attention(q, k, v, **how)
        outputs.append(one.transpose(1, 2))
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], None


def _together(lengths: tuple[int, ...], *, shares_flash: bool) -> list[list[int]]:
    """The samples of a row, those in one list at once: where flash can, short ones that follow one another."""
    found: list[list[int]] = []
    for n in lengths:
        if shares_flash and n < CUDNN_FROM and found and found[-1][0] < CUDNN_FROM:
            found[-1].append(n)
        else:
            found.append([n])
    return found


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where samples begin, and the last ends: the same for every layer of a pass."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


AttentionInterface.register(ATTENTION, attend)


class Packed:
    """A 4-bit weight, unpacked at each call: whole, it takes four times the memory. `held` is it whole, where set."""

    held: torch.Tensor | None = None

    def __init__(self, weight: Any) -> None:
        self.weight, state = weight, weight.quant_state
        self.size: int = state.shape.numel() * state.dtype.itemsize  # bytes of it whole

    def __call__(self) -> torch.Tensor:
        """The (out, in) matrix."""
        return unpack(self.weight) if self.held is None else self.held


class Operands(NamedTuple):
    """What a linear layer multiplies with: y = x Wᵀ + bias, and LoRA's part where it has one (A and B, else None).

    `a` and `b` are trained; `cast_a` and `cast_b` are they in the dtype of the arithmetic, as of the last `cast`.
    """

    weight: Weight
    bias: torch.Tensor | None
    a: Any = None
    b: Any = None
    cast_a: Any = None
    cast_b: Any = None
    scale: float = 0.0
    dropout: float = 0.0


def operands(module: Any) -> Operands | None:
    """Of a linear layer, or of PEFT's plain LoRA layer around one; None of any other."""
    from peft.tuners.lora import LoraLayer

    linear = module.get_base_layer() if isinstance(module, LoraLayer) else module
    if not isinstance(linear, torch.nn.Linear) or (linear is not module and module.lora_magnitude_vector):
        return None  # DoRA is PEFT's own
    weight = Packed(linear.weight) if hasattr(linear.weight, "quant_state") else linear.weight.detach
    if linear is module:
        return Operands(weight, linear.bias)
    name = module.active_adapters[0]
    rate = getattr(module.lora_dropout[name], "p", 0.0)  # PEFT's of rate 0 is an Identity
    lora = module.lora_A[name].weight, module.lora_B[name].weight
    dtype = linear.weight.quant_state.dtype if hasattr(linear.weight, "quant_state") else linear.weight.dtype
    a, b = (x if x.dtype == dtype else torch.empty_like(x, dtype=dtype, requires_grad=False) for x in lora)
    return Operands(weight, linear.bias, *lora, a, b, module.scaling[name], rate)


def make_lean(model: Any) -> dict[Any, Operands]:
    """Replaces the forward of every LoRA layer around a linear one, and of every other 4-bit layer, of a PEFT model.

    PEFT's modules go on holding the parameters and writing the files. A layer launches a third of the kernels, keeps
    the input once for all its adapters, and keeps no product. Gives the operands by module; `cast` goes before a pass.
    """
    from peft.tuners.lora import LoraLayer

    inside: set[Any] = set()
    known = {module: found for module in model.modules() if (found := operands(module))}
    for module, found in known.items():  # a LoRA layer comes before the one in it
        if isinstance(module, LoraLayer):
            inside.add(module.get_base_layer())
        if found.a is not None or (hasattr(module.weight, "quant_state") and module not in inside):
            module.forward = partial(_forward, module, found)
    return known


def cast(known: dict[Any, Operands]) -> None:
    """Brings `cast_a` and `cast_b` of all layers up to the trained matrices: once a pass, where a layer needs six."""
    pairs = [p for by in known.values() for p in ((by.cast_a, by.a), (by.cast_b, by.b)) if p[0] is not p[1]]
    if pairs:
        with torch.no_grad():
            torch._foreach_copy_([copy for copy, _ in pairs], [trained for _, trained in pairs])


def _forward(module: Any, by: Operands, x: torch.Tensor) -> torch.Tensor:
    return multiply(x, by, drops=module.training)


def multiply(x: torch.Tensor, by: Operands, *, drops: bool) -> torch.Tensor:
    """The layer's (…, out) products of (…, in) numbers; `drops` says whether dropout is on."""
    # Flat before and whole after it: torch forbids that a view of its making is added to in place, as Falcon does.
    y: torch.Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), by.a, by.b, by, by.dropout if drops else 0.0)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


class Low(NamedTuple):
    """What LoRA's gradients need of a forward pass beside the input: D(x) Aᵀ, (n, r), and what was dropped."""

    product: torch.Tensor | None = None
    drops: Drops = None


def multiply_flat(
    flat: torch.Tensor, by: Operands, rate: float, low: Low | None = None, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, Low]:  # fmt: skip
    """(n, out) products of (n, in) numbers, and what LoRA's gradients need; `low` and `weight` where they are there."""
    y = F.linear(flat, by.weight() if weight is None else weight, by.bias)
    if by.a is not None:
        low = low if low and low.product is not None else make_low(flat, by.cast_a, rate)
        y.addmm_(low.product, by.cast_b.t(), alpha=by.scale)  # type: ignore[arg-type]
    return y, low or Low()


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + bias + s D(x) Aᵀ Bᵀ for a frozen (out, in) W, with D the dropout; A and B are None without LoRA."""

    @staticmethod
    def forward(ctx: Any, flat: torch.Tensor, a: Any, b: Any, by: Operands, rate: float) -> torch.Tensor:
        y, (product, drops) = multiply_flat(flat, by, rate)
        # The frozen layer alone needs nothing of its input for the gradient of it.
        mask, ctx.seed = (None, drops) if isinstance(drops, tuple) else (drops, None)
        ctx.save_for_backward(flat if a is not None else None, mask, product)  # with r = 8 a 512th of the input
        ctx.by, ctx.rate = by, rate
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
        (flat, mask, product), by, g = ctx.saved_tensors, ctx.by, upstream[0]
        dx = g @ by.weight() if ctx.needs_input_grad[0] else None
        return (dx, *lora_gradients(g, flat, Low(product, ctx.seed or mask), by, ctx.rate, dx), None, None)


def make_low(flat: torch.Tensor, a: torch.Tensor, rate: float) -> Low:
    """By a newly drawn dropout of that rate."""
    drops: Drops = None
    if rate and kernels.usable(flat.device) and flat.numel() < kernels.LIMIT:
        drops = kernels.next_seed(flat.device)
        flat = kernels.drop(flat, rate, drops)
    elif rate:
        flat, drops = torch.native_dropout(flat, rate, True)
    return Low(flat @ a.t(), drops)


def _dropped(x: torch.Tensor, drops: Drops, rate: float) -> torch.Tensor:
    """D(x) with the same drops again."""
    if isinstance(drops, tuple):
        return kernels.drop(x, rate, drops)
    return x if drops is None else torch.ops.aten.native_dropout_backward(x, drops, 1 / (1 - rate))


def add_noise(model: Any, alpha: float) -> None:
    """NEFTune (Jain et al. 2023): in training, noise on the embeddings of a PEFT model that `prepare` has been given.

    Uniform within ± alpha / sqrt(L d): L is the length of the sample in a packed row, or of a padded row, d the width.
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


def lora_gradients(
    g: torch.Tensor, flat: Any, low: Low, by: Operands, rate: float, dx: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """∂L/∂A and ∂L/∂B (None without LoRA), with g = ∂L/∂y (n, out), and LoRA's part of ∂L/∂x added to `dx`:

    ∂L/∂A = (s g B)ᵀ D(x),  ∂L/∂B = s gᵀ (D(x) Aᵀ),  ∂L/∂x = g W + D(s g B A).
    """
    if by.a is None:
        return None, None
    gb = (g @ by.cast_b).mul_(by.scale)  # s g B, (n, r), for A's gradient and for x's
    # The dropped input is as wide as the input, and is gone before the input's gradient is made.
    da = (gb.t() @ _dropped(flat, low.drops, rate)).to(by.a.dtype)
    db = (g.t() @ low.product).to(by.b.dtype).mul_(by.scale)  # type: ignore[operator]
    if dx is not None and low.drops is None:
        dx.addmm_(gb, by.cast_a)
    elif dx is not None and isinstance(low.drops, tuple):
        kernels.add_low(dx, gb, by.cast_a, rate, low.drops)
    elif dx is not None:
        dx.add_(_dropped(gb @ by.cast_a, low.drops, rate))
    return da, db
