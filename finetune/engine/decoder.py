"""A Llama-like decoder layer in few calls, and recomputed as one node.

A fast card is done with a layer of short samples before Python has launched the next: of a step of 0.41 s it computed
for 0.13 s (H200, four samples of 660 tokens on average). So the modules of transformers, PEFT and torch's checkpointing
are left out here; they go on holding the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from bnbench.finetune.engine.layers import Operands, attend, multiply, multiply_backward
from bnbench.finetune.memory import ALLOCATOR
from bnbench.models import kernels

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
"""Classes of transformers whose layers are these: RMSNorm, rotary attention, RMSNorm, SwiGLU, without anything else."""
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Parts(NamedTuple):
    """What a layer computes with, looked up once."""

    first_norm: Any
    second_norm: Any
    attention: Any
    projections: tuple[Operands, ...]
    swiglu: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_lean_decoder(model: Any, device: str, known: dict[Any, Operands]) -> None:
    """Makes LeanLayers of a PEFT model's decoder layers, where all are of `LAYERS` and carry nothing but plain LoRA.

    `known` is what `make_lean` found.
    """
    swiglu: Any = _SwiGLU
    by_own = kernels.usable(next(model.parameters()).device)
    if device == "cuda" and not by_own and find_spec("liger_kernel"):  # its gradients need no memory of their own
        swiglu = import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction
    layers = [module for module in model.modules() if type(module).__name__ in LAYERS]
    for layer in layers:
        inside = [*(getattr(layer.self_attn, n) for n in NAMES[:4]), *(getattr(layer.mlp, n) for n in NAMES[4:])]
        projections = tuple(known[module] for module in inside if module in known)
        if len(projections) < len(NAMES):
            return
        norms = layer.input_layernorm, layer.post_attention_layernorm
        layer.parts = Parts(*norms, layer.self_attn, projections, swiglu.apply)
    for layer in layers:
        layer.__class__ = LeanLayer


class LeanLayer(torch.nn.Module):
    """A decoder layer over (rows, T, width) hidden states; `gradient_checkpointing` says whether it is recomputed."""

    parts: Parts
    gradient_checkpointing = False

    def forward(
        self, hidden: torch.Tensor, *, position_embeddings: tuple[torch.Tensor, torch.Tensor],
        lengths: tuple[int, ...] = (), **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        """As the layer of transformers; rows are `lengths`, one after another."""
        parts, down, drops = self.parts, self.parts.projections[-1], self.training
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            trained = [t for p in parts.projections for t in (p.a, p.b) if t is not None]
            whole: torch.Tensor = _Recomputed.apply(parts, lengths, *position_embeddings, hidden, *trained)  # type: ignore[no-untyped-call]
            return whole
        residual, gated = before_down(parts, hidden, *position_embeddings, lengths, drops=drops)
        return residual + multiply(gated, down, drops=drops)


def before_down(
    parts: Parts, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: tuple[int, ...], *, drops: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer up to its last product: what that is added to (rows, T, width), and what it takes (rows, T, inner)."""
    (rows, size), attention = hidden.shape[:2], parts.attention
    q, k, v, o, gate, up, _ = parts.projections
    x = F.rms_norm(hidden, hidden.shape[2:], parts.first_norm.weight, parts.first_norm.variance_epsilon)
    heads = [multiply(x, p, drops=drops).view(rows, size, -1, attention.head_dim) for p in (q, k, v)]
    heads[:2] = [_Rotation.apply(turned, cos, sin) for turned in heads[:2]]  # type: ignore[no-untyped-call]
    query, key, value = (head.transpose(1, 2) for head in heads)
    # A layer of Qwen has a window, or None, of its own; Mistral's are all as the configuration says.
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    settings = {"scaling": attention.scaling, "sliding_window": window}
    mixed, _ = attend(attention, query, key, value, None, lengths=lengths, **settings)
    residual = hidden + multiply(mixed.reshape(rows, size, -1), o, drops=drops)
    x = F.rms_norm(residual, residual.shape[2:], parts.second_norm.weight, parts.second_norm.variance_epsilon)
    return residual, parts.swiglu(multiply(x, gate, drops=drops), multiply(x, up, drops=drops))


class _Recomputed(torch.autograd.Function):
    """A layer that keeps its input alone, and runs again up to its last product before its gradients are taken."""

    @staticmethod
    def forward(
        ctx: Any, parts: Parts, lengths: Any, cos: torch.Tensor, sin: torch.Tensor, hidden: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden)
        ctx.how = parts, lengths, cos, sin
        ctx.random = random_state(hidden.device)
        residual, gated = before_down(parts, hidden, cos, sin, lengths, drops=True)
        return residual.add_(multiply(gated, parts.projections[-1], drops=True))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
        (parts, lengths, cos, sin), g = ctx.how, upstream[0]
        (hidden,), needs_hidden = ctx.saved_tensors, ctx.needs_input_grad[4]
        hidden, now = hidden.detach().requires_grad_(needs_hidden), random_state(hidden.device)
        random_state(hidden.device, ctx.random)  # it must drop the same
        with torch.enable_grad():
            residual, gated = before_down(parts, hidden, cos, sin, lengths, drops=True)
        # The last product itself is not needed again, which saves a quarter of the recomputation.
        d_gated, *of_down = multiply_backward(g, gated.detach(), parts.projections[-1], drops=True)
        random_state(hidden.device, now)
        trained = [t for p in parts.projections[:-1] for t in (p.a, p.b) if t is not None]
        inputs = [*([hidden] if needs_hidden else []), *trained]
        found = list(torch.autograd.grad((residual, gated), inputs, (g, d_gated))) if inputs else []
        d_hidden = found.pop(0) if needs_hidden else None
        return (None, None, None, None, d_hidden, *found, *of_down)


def random_state(device: torch.device, state: Any = None) -> Any:
    """What a device's generator draws next, or, with a `state`, from there on."""
    if device.type == "cuda":  # its offset alone is a number, where the whole state would wait for the card
        generator = torch.cuda.default_generators[device.index]
        return generator.get_offset() if state is None else generator.set_offset(state)
    return torch.get_rng_state() if state is None else torch.set_rng_state(state)


class _Rotation(torch.autograd.Function):
    """(rows, T, heads, d) queries or keys turned by the angles of their positions (Su et al. 2021): with x = (x₁, x₂)
    halves of a head (x₁ cos − x₂ sin, x₂ cos + x₁ sin). The gradient is the turn back.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.angles = cos, sin
        return turn(x, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return turn(upstream[0], *ctx.angles, sign=-1), None, None


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, sign: int) -> torch.Tensor:
    """(rows, T, heads, d) turned by (rows, T, d) angles, forth (1) or back (-1)."""
    if kernels.usable(x.device):
        return kernels.turn(x, cos, sin, sign=sign)
    half, sin = x.shape[-1] // 2, sin[:, :, None]
    y = x * cos[:, :, None]
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return y


class _SwiGLU(torch.autograd.Function):
    """silu(gate) ∘ up (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return kernels.swiglu(gate, up) if kernels.usable(gate.device) else F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (gate, up), g = ctx.saved_tensors, upstream[0]
        if kernels.usable(gate.device):
            return kernels.swiglu_backward(gate, up, g)
        d_up = F.silu(gate).mul_(g)
        return torch.ops.aten.silu_backward(g * up, gate), d_up


class Recomputation:
    """Switches checkpointing layer by layer: as few layers as the memory allows recompute, pass by pass.

    A checkpointed layer keeps its input alone, and runs forward once more in the backward pass: a third of the
    arithmetic, so that the longest row fits. Shorter ones leave room for what some layers keep, which `measure` finds
    out; until then all recompute. With 13 GiB instead of 6.5 a step took 0.99 s instead of 1.28 (one H100).
    """

    def __init__(self, model: Any, budget: float) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer | LeanLayer)]
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
            cuda.empty_cache()  # each pass of its own sort leaves other gaps
            cuda.reset_peak_memory_stats()
            loss = forward()  # noqa: F841 - its graph is what is measured
            return cuda.memory_allocated(), cuda.max_memory_allocated()

        one, _ = run(1)
        none, at_most = run(0)
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
        step()
        peak = cuda.max_memory_allocated()
        # Bytes that are there at any time, by token in the backward pass and at the forward pass's end, of a loss chunk
        # on top, and by token of one layer that is not recomputed, all being alike.
        self.fixed, self.per_token, self.forward = fixed, (peak - fixed) / tokens, (none - fixed) / tokens
        self.chunk, self.kept = at_most - none, (one - none) / tokens
        self.budget = self.budget / (1 + ALLOCATOR) or peak
