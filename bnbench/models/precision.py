"""The arithmetic of a run, chosen once, with its reason for the run's record; and that of 4-bit weights."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from bnbench.errors import UsageError, require

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "float16", "bfloat16"]
Quantisation = Literal["none", "nf4"]

BFLOAT16_SINCE = (8, 0)  # compute capability; older cards only emulate it, at the rate of float32
ROOM = 0.25  # share of the card kept for keys, values, logits and fragments


@dataclass(frozen=True)
class Device:
    """What decides about precision: `type` cuda, cpu or another; compute capability and memory in bytes of a card."""

    type: str
    name: str = ""
    capability: tuple[int, int] | None = None
    memory: int | None = None

    @classmethod
    def of(cls, name: str) -> Device:
        """Asks torch about `cuda`, `cuda:1`, `mps` or `cpu`; `auto` is the first card there is, else the CPU.

        Raises UsageError where torch sees no such device.
        """
        torch: Any = require("torch", extra="models")
        cuda = torch.cuda
        name = ("cuda" if cuda.is_available() else "cpu") if name == "auto" else name
        try:
            chosen = torch.device(name)
        except RuntimeError:
            raise UsageError(f"--device {name}: there is no such device; use cpu, cuda, cuda:1 … or mps") from None
        if chosen.type == "cuda":
            if (chosen.index or 0) >= (seen := cuda.device_count()):
                raise UsageError(f"--device {name}: torch {torch.__version__} sees {seen} CUDA cards; use cpu")
            card = cuda.get_device_properties(chosen)
            return cls("cuda", card.name, (card.major, card.minor), card.total_memory)
        if chosen.type == "mps" and not torch.backends.mps.is_available():
            raise UsageError(f"--device {name}: torch {torch.__version__} sees no Apple GPU; use cpu")
        return cls(chosen.type)


@dataclass(frozen=True)
class Precision:
    """The dtype of weights and arithmetic, how the weights are stored (`nf4`: 4 bits), and why."""

    dtype_name: DType
    quantisation: Quantisation
    reason: str


def choose_precision(card: Device, n_parameters: int, quantise: bool | None = None) -> Precision:
    """The dtype that the device computes fast in, and whether weights are stored in 4 bits (NF4).

    `quantise` True or False decides about NF4; None takes it only where 16-bit weights do not fit on the card.
    """
    dtype: DType = "float16"
    if card.type == "cpu":
        dtype, why = "float32", "float32, because the CPU computes 16-bit numbers no faster"
    elif card.type != "cuda" or card.capability is None:
        why = f"float16, the fast 16-bit arithmetic of {card.type}"
    else:
        why = f"{card.name or 'the card'} has compute capability {card.capability[0]}.{card.capability[1]}"
        # Not torch.cuda.is_bf16_supported(): it is True where bfloat16 is only emulated.
        if card.capability >= BFLOAT16_SINCE:
            dtype, why = "bfloat16", f"bfloat16, because {why} (8.0 and above compute in it)"
        else:
            why = f"float16, because {why} and bfloat16 is emulated below 8.0"
    if quantise is not None:
        asked = "; NF4 weights were asked for" if quantise else ""
        return Precision(dtype, "nf4" if quantise else "none", why + asked)
    needs = n_parameters * (4 if dtype == "float32" else 2)
    if card.type == "cuda" and card.memory is not None and needs > card.memory * (1 - ROOM):
        sizes = f"{needs / 2**30:.1f} GiB of {dtype} weights leave too little of the card's {card.memory / 2**30:.1f}"
        return Precision(dtype, "nf4", f"{why}; NF4 weights, because {sizes} GiB")
    return Precision(dtype, "none", why)


def unpack(weight: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The (out, in) matrix of a layer's 4-bit `weight`, in the dtype that was quantised or in `dtype`."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    if weight.device.type == "cuda":
        # `dequantize_4bit` itself goes twice through torch's dispatcher of Python operators, for each weight of each
        # layer: a fifth of the time of a short training step (H200).
        from bitsandbytes.backends.cuda.ops import _dequantize_4bit_impl, _dequantize_blockwise_impl

        state, absmax, number = weight.quant_state, weight.quant_state.absmax, dtype or weight.quant_state.dtype
        if state.nested:
            inner, absmax = state.state2, torch.empty_like(absmax, dtype=torch.float32)
            _dequantize_blockwise_impl(state.absmax, inner.absmax, inner.code, inner.blocksize, torch.float32, absmax)
            absmax += state.offset
        whole = torch.empty(state.shape, dtype=number, device=weight.device)
        _dequantize_4bit_impl(weight.data, absmax, state.blocksize, state.quant_type, number, whole)
        return whole
    state = copy(weight.quant_state)
    state.dtype = dtype or state.dtype
    if weight.device.type != "cpu":
        return dequantize_4bit(weight.data, state)  # type: ignore[no-any-return]
    shape, size = state.shape, state.shape.numel()
    blocks = -(-size // state.blocksize)
    state.shape = torch.Size((blocks, state.blocksize))
    packed = weight.data.reshape(-1).view(torch.uint8)
    whole = torch.nn.functional.pad(packed, (0, blocks * state.blocksize // 2 - packed.numel()))
    return dequantize_4bit(whole[:, None], state).view(-1)[:size].view(shape)  # type: ignore[no-any-return]


def make_portable(model: Any) -> Any:
    """Makes 4-bit layers on the CPU give the same, right results on every processor; gives the model back.

    bitsandbytes (0.50) takes other paths where the processor has AVX-512. Its unpacking of rows that are no multiple
    of the block (64) then mixes up the blocks' scales; with BF16 instructions its forward in eval mode also repacks
    the weights for good, rounds to bfloat16, and fails on such rows. So a weight is unpacked by blocks here, each as
    one row, and multiplied by torch.
    """
    import torch

    class Frozen(torch.autograd.Function):
        """x Wᵀ; for the gradient of x the weight is unpacked again, never kept."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: Any) -> torch.Tensor:
            ctx.weight = weight
            return torch.nn.functional.linear(x, unpack(weight, x.dtype))

        @staticmethod
        def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
            return upstream[0] @ unpack(ctx.weight, upstream[0].dtype), None

    def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
        y: Any = Frozen.apply(x.to(layer.compute_dtype or x.dtype), layer.weight)  # type: ignore[no-untyped-call]
        y = y if layer.bias is None else y + layer.bias.to(y.dtype)
        return y.to(x.dtype)  # type: ignore[no-any-return]

    layers: list[Any] = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers:
        if hasattr(layer.weight, "quant_state") and layer.weight.device.type == "cpu":
            layer.forward = partial(forward, layer)
    return model
