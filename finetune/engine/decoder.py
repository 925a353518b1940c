"""A Llama-like decoder layer in few calls, and recomputed as one node.

A fast card is done with a layer of short samples before Python has launched the next: of a step of 0.41 s it computed
for 0.13 s (H200, four samples of 660 tokens on average). So the modules of transformers, PEFT and torch's checkpointing
are left out here; they go on holding the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from bnbench.finetune.engine.layers import Low, Operands, attend, lora_gradients, make_low, multiply_flat
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


def make_lean_decoder(model: Any, known: dict[Any, Operands]) -> None:
    """Makes LeanLayers of a PEFT model's decoder layers, where all are of `LAYERS` and carry nothing but plain LoRA.

    `known` is what `make_lean` found.
    """
    layers = [module for module in model.modules() if type(module).__name__ in LAYERS]
    for layer in layers:
        inside = [*(getattr(layer.self_attn, n) for n in NAMES[:4]), *(getattr(layer.mlp, n) for n in NAMES[4:])]
        projections = tuple(known[module] for module in inside if module in known)
        if len(projections) < len(NAMES):
            return
        layer.parts = Parts(layer.input_layernorm, layer.post_attention_layernorm, layer.self_attn, projections)
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
        trained = [t for p in self.parts.projections for t in (p.a, p.b) if t is not None]
        keeps = torch.is_grad_enabled() and not (self.gradient_checkpointing and self.training)
        how = (self.parts, lengths, *position_embeddings, self.training)
        return _Layer.apply(keeps, how, hidden, *trained)  # type: ignore[no-any-return, no-untyped-call]


class _Run:
    """A pass through a layer: what of its forward pass the backward pass needs, flat, (rows · T, …).

    With `keeps` norms and attention keep graphs of their own, and all else is theirs that use it here. `holds` says
    whether the weights of gate and up, once unpacked, stay there.
    """

    gate: Any
    up: Any

    def __init__(self, parts: Parts, lengths: Any, cos: torch.Tensor, sin: torch.Tensor, drops: bool) -> None:
        self.parts, self.lengths, self.angles, self.drops = parts, lengths, (cos, sin), drops
        self.norms = [partial(_norm, norm) for norm in (parts.first_norm, parts.second_norm)]
        self.lows = [Low()] * len(NAMES)
        self.found: list[tuple[Any, Any]] = [(None, None)] * len(NAMES)  # the gradients of A and B
        self.weights: list[Any] = [None, None]

    def before_down(self, hidden: torch.Tensor, *, keeps: bool, holds: bool = False) -> None:
        """The layer over (rows, T, width) up to its gates."""
        (rows, size, width), attention = hidden.shape, self.parts.attention
        self.x, self.first = _node(self.norms[0], keeps, hidden.reshape(-1, width))
        q, k, v = (self.multiply(i, self.x).view(rows, size, -1, attention.head_dim) for i in range(3))
        q, k = (turn(turned, *self.angles, sign=1) for turned in (q, k))
        mixed, self.attended = _node(self.attend, keeps, q, k, v)
        self.mixed = mixed.reshape(rows * size, -1)
        self.residual = hidden.reshape(-1, width) + self.multiply(3, self.mixed)
        self.second_x, self.second = _node(self.norms[1], keeps, self.residual)
        if holds:
            self.weights = [by.weight() for by in self.parts.projections[4:6]]
        self.gate, self.up = (self.multiply(i, self.second_x, self.weights[i - 4]) for i in (4, 5))

    def attend(self, *heads: torch.Tensor) -> torch.Tensor:
        """Of (rows, T, heads, d) queries, keys and values."""
        attention = self.parts.attention
        # A layer of Qwen has a window, or None, of its own; Mistral's are all as the configuration says.
        window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        q, k, v = (x.transpose(1, 2) for x in heads)
        settings = {"scaling": attention.scaling, "sliding_window": window, "lengths": self.lengths}
        return attend(attention, q, k, v, None, **settings)[0]

    def rate(self, i: int) -> float:
        """Of the dropout before a projection's LoRA."""
        return self.parts.projections[i].dropout if self.drops else 0.0

    def multiply(self, i: int, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """By the projection of that number."""
        y, self.lows[i] = multiply_flat(x, self.parts.projections[i], self.rate(i), self.lows[i], weight)
        return y

    def back(self, i: int, g: torch.Tensor, x: Any, dx: Any = None, weight: Any = None) -> torch.Tensor:
        """Through that projection: ∂L/∂x, added to `dx` where it is given; finds the gradients of A and B."""
        by = self.parts.projections[i]
        weight = by.weight() if weight is None else weight
        dx = g @ weight if dx is None else dx.addmm_(g, weight)
        self.found[i] = lora_gradients(g, x, self.lows[i], by, self.rate(i), dx)
        return dx  # type: ignore[no-any-return]

    def backward(self, g: torch.Tensor, d_gated: torch.Tensor, *, needs_input: bool) -> torch.Tensor | None:
        """∂L/∂hidden from ∂L/∂y and the part of ∂L/∂gated that comes through the frozen weight, (n, …) each."""
        down, rate = self.parts.projections[6], self.rate(6)
        gated = swiglu(self.gate, self.up) if down.a is not None else None
        self.found[6] = lora_gradients(g, gated, self.lows[6], down, rate, d_gated)
        d_gate, d_up = swiglu_backward(self.gate, self.up, d_gated)
        dx = self.back(4, d_gate, self.second_x, weight=self.weights[0])
        dx = self.back(5, d_up, self.second_x, dx, self.weights[1])
        del d_gated, d_gate, d_up, gated
        self.gate = self.up = None
        self.weights = [None, None]
        g = _through(self.second, dx)[0].add_(g)
        heads = _through(self.attended, self.back(3, g, self.mixed))
        turned = [turn(heads[0], *self.angles, sign=-1), turn(heads[1], *self.angles, sign=-1), heads[2]]
        dx = self.back(0, turned[0].reshape(len(g), -1), self.x)
        for i in (1, 2):
            dx = self.back(i, turned[i].reshape(len(g), -1), self.x, dx)
        return _through(self.first, dx)[0].add_(g) if needs_input else None


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    # Not by the module, which Liger may have put a slower way into.
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _node(function: Callable[..., torch.Tensor], keeps: bool, *inputs: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """What a function gives, and, with `keeps`, a graph of it alone."""
    if not keeps:
        return function(*inputs), None
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        y = function(*leaves)
    return y.detach(), (y, leaves)


def _through(node: Any, g: Any) -> tuple[torch.Tensor, ...]:
    """The gradients of a node's inputs, from that of what it gave."""
    y, leaves = node
    found: tuple[torch.Tensor, ...] = torch.autograd.grad(y, leaves, g.view_as(y))
    return found


class _Layer(torch.autograd.Function):
    """A layer as one node: autograd's own, one an operation, took the host longer than a fast card computes.

    Recomputed, it keeps its input alone, and runs again up to its last product before its gradients are taken.
    """

    @staticmethod
    def forward(ctx: Any, keeps: bool, how: tuple[Any, ...], hidden: torch.Tensor, *_: Any) -> torch.Tensor:
        ctx.random, run = random_state(hidden.device), _Run(*how)
        run.before_down(hidden, keeps=keeps)
        down = run.multiply(6, swiglu(run.gate, run.up))
        if keeps:
            ctx.run = run
            return (run.residual + down).view_as(hidden)
        ctx.save_for_backward(hidden)
        # A product of rank r and a seed are small enough to stay; masks are made again, and then all of them.
        ctx.run, ctx.how = None, how
        ctx.lows = run.lows if not any(isinstance(low.drops, torch.Tensor) for low in run.lows) else None
        return run.residual.add_(down).view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
        g = upstream[0].reshape(-1, upstream[0].shape[-1])
        (run, ctx.run), needs_hidden = (ctx.run, None), ctx.needs_input_grad[2]
        # Needs nothing of what is computed again, and leaves an unpacked weight's room to it.
        down = (run or _Run(*ctx.how)).parts.projections[6]
        d_gated = g @ down.weight()
        if run is None:
            (hidden,), run, device = ctx.saved_tensors, _Run(*ctx.how), g.device
            run.lows, now = ctx.lows or run.lows, random_state(device)
            random_state(device, ctx.random)  # it must drop the same
            run.before_down(hidden, keeps=True, holds=down.a is None)  # else gated's own gradients take the room
            if down.a is not None and run.lows[6].product is None:
                run.lows[6] = make_low(swiglu(run.gate, run.up), down.cast_a, run.rate(6))
            random_state(device, now)
        d_hidden = run.backward(g, d_gated, needs_input=needs_hidden)
        d_hidden = d_hidden.view_as(upstream[0]) if needs_hidden else None
        return (None, None, d_hidden, *(d for pair in run.found for d in pair if d is not None))


def random_state(device: torch.device, state: Any = None) -> Any:
    """What a device's generator draws next, or, with a `state`, from there on."""
    if device.type == "cuda":  # its offset alone is a number, where the whole state would wait for the card
        generator = torch.cuda.default_generators[device.index]
        return generator.get_offset() if state is None else generator.set_offset(state)
    return torch.get_rng_state() if state is None else torch.set_rng_state(state)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, sign: int) -> torch.Tensor:
    """(rows, T, heads, d) queries or keys turned by their positions' angles, (rows, T, d), forth (1) or back (-1).

    With x = (x₁, x₂) the halves of a head, (x₁ cos − x₂ sin, x₂ cos + x₁ sin) (Su et al. 2021). The gradient of the one
    is the other.
    """
    if kernels.usable(x.device):
        return kernels.turn(x, cos, sin, sign=sign)
    half, sin = x.shape[-1] // 2, sin[:, :, None]
    y = x * cos[:, :, None]
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return y


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) ∘ up (Shazeer 2020)."""
    return kernels.swiglu(gate, up) if kernels.usable(gate.device) else F.silu(gate).mul_(up)


def swiglu_backward(gate: torch.Tensor, up: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Its gradients, from ∂L/∂y; what is given is overwritten."""
    if kernels.usable(gate.device):
        return kernels.swiglu_backward(gate, up, g)
    d_up = F.silu(gate).mul_(g)
    return torch.ops.aten.silu_backward.grad_input(g.mul_(up), gate, grad_input=g), d_up


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
