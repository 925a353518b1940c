"""A Llama-like decoder layer in few calls, and recomputed as one node.

A fast card is done with a layer of short samples before Python has launched the next: of a step of 0.41 s it computed
for 0.13 s (H200, four samples of 660 tokens on average). So the modules of transformers, PEFT and torch's checkpointing
are left out here; they go on holding the parameters.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from bnbench.finetune.engine import processes
from bnbench.finetune.engine.layers import Low, Operands, Packed, attend, lora_gradients, make_low, multiply_flat
from bnbench.finetune.engine.offload import HostMemory, Offloaded
from bnbench.finetune.memory import ALLOCATOR
from bnbench.models import kernels

_log = logging.getLogger("bnbench.finetune")
OFFLOAD_FROM = 1024
"""Tokens of a pass from which launching the copies takes less time than they save."""
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
    """A decoder layer over (rows, T, width) hidden states; `gradient_checkpointing` says whether it is recomputed.

    With a `host` its attention is not: what that keeps waits there for the backward pass.
    """

    parts: Parts
    gradient_checkpointing = False
    host: HostMemory | None = None

    def forward(
        self, hidden: torch.Tensor, *, position_embeddings: tuple[torch.Tensor, torch.Tensor],
        lengths: tuple[int, ...] = (), **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        """As the layer of transformers; rows are `lengths`, one after another."""
        trained = [t for p in self.parts.projections for t in (p.a, p.b) if t is not None]
        keeps = torch.is_grad_enabled() and not (self.gradient_checkpointing and self.training)
        how = (self.parts, lengths, *position_embeddings, self.training)
        host = self.host if torch.is_grad_enabled() and not keeps else None
        return _Layer.apply(keeps, host, how, hidden, *trained)  # type: ignore[no-any-return, no-untyped-call]


class _Run:
    """A pass through a layer: what of its forward pass the backward pass needs, flat, (rows · T, …).

    Attention keeps a graph of its own where asked to, and all else is theirs that use it here.
    """

    gate: Any
    up: Any
    attended: Any

    def __init__(self, parts: Parts, lengths: Any, cos: torch.Tensor, sin: torch.Tensor, drops: bool) -> None:
        self.parts, self.lengths, self.angles, self.drops = parts, lengths, (cos, sin), drops
        self.lows = [Low()] * len(NAMES)
        self.found: list[tuple[Any, Any]] = [(None, None)] * len(NAMES)  # the gradients of A and B
        self.weights: list[Any] = [None, None]
        # Whether q, k, v, then o, then gate and up want their input back: an adapter's gradient alone asks for it.
        has = [by.a is not None for by in parts.projections]
        self.wants = any(has[:3]), has[3], any(has[4:6])

    def begin(self, hidden: torch.Tensor) -> torch.Tensor:
        """What (rows, T, width) are to the projections before attention."""
        self.hidden = hidden.reshape(-1, hidden.shape[-1])
        x = _norm(self.parts.first_norm, self.hidden)
        self.x = x if self.wants[0] else None
        return x

    def mix(self, hidden: torch.Tensor, x: torch.Tensor, *, keeps: bool, apart: Offloaded | None = None) -> None:
        """Attention, and what goes on beside it; what its graph keeps is put `apart`."""
        shape = *hidden.shape[:2], -1, self.parts.attention.head_dim
        q, k, v = (self.multiply(i, x).view(shape) for i in range(3))
        q, k = (turn(turned, *self.angles, sign=1) for turned in (q, k))
        mixed, self.attended = _node(self.attend, keeps, q, k, v, apart=apart)
        self.mixed = mixed if self.wants[1] else None
        self.residual = self.hidden + self.multiply(3, mixed)

    def open_gates(self, *, holds: bool = False) -> None:
        """The gates; `holds` says whether the weights of gate and up, once unpacked, stay there."""
        x = _norm(self.parts.second_norm, self.residual)
        if holds:
            self.weights = [by.weight() for by in self.parts.projections[4:6]]
        self.gate, self.up = (self.multiply(i, x, self.weights[i - 4]) for i in (4, 5))
        self.second_x = x if self.wants[2] else None

    def attend(self, *heads: torch.Tensor) -> torch.Tensor:
        """Of (rows, T, heads, d) queries, keys and values, (rows · T, heads · d)."""
        attention = self.parts.attention
        # A layer of Qwen has a window, or None, of its own; Mistral's are all as the configuration says.
        window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        q, k, v = (x.transpose(1, 2) for x in heads)
        settings = {"scaling": attention.scaling, "sliding_window": window, "lengths": self.lengths}
        return attend(attention, q, k, v, None, **settings)[0].flatten(0, 1).flatten(1)

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
        g = _norm_backward(self.parts.second_norm, self.residual, dx, g)
        heads = torch.autograd.grad(self.attended[0], self.attended[1:], self.back(3, g, self.mixed))
        turned = [turn(heads[0], *self.angles, sign=-1), turn(heads[1], *self.angles, sign=-1), heads[2]]
        dx = self.back(0, turned[0].reshape(len(g), -1), self.x)
        for i in (1, 2):
            dx = self.back(i, turned[i].reshape(len(g), -1), self.x, dx)
        return _norm_backward(self.parts.first_norm, self.hidden, dx, g) if needs_input else None


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    # Not by the module, which Liger may have put a slower way into.
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _norm_backward(norm: Any, x: torch.Tensor, g: torch.Tensor, plus: torch.Tensor) -> torch.Tensor:
    """Its gradient, from that of what it gave, and `plus`, what else comes to x."""
    if kernels.usable(x.device):
        return kernels.norm_backward(x, norm.weight, norm.variance_epsilon, g, plus)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = _norm(norm, x)
    return torch.autograd.grad(y, x, g)[0].add_(plus)


def _node(
    function: Callable[..., torch.Tensor], keeps: bool, *inputs: torch.Tensor, apart: Offloaded | None = None
) -> tuple[torch.Tensor, Any]:  # fmt: skip
    """What a function gives, and, with `keeps`, a graph of it alone, whose large tensors are put `apart`."""
    if not keeps:
        return function(*inputs), None
    with torch.enable_grad(), saved_tensors_hooks(apart.pack, apart.unpack) if apart else nullcontext():
        if apart:
            given = _Given.apply(torch.empty(0, requires_grad=True), *inputs)  # type: ignore[no-untyped-call]
        else:
            given = [x.detach().requires_grad_() for x in inputs]
        y = function(*given)
        edges = get_gradient_edge(y), *(map(get_gradient_edge, given) if apart else given)
    return y.detach(), edges


class _Given(torch.autograd.Function):
    """Makes inputs look computed, since a leaf of a graph keeps its numbers; here is their gradient asked for."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.view_as(x) for x in inputs)


class _Layer(torch.autograd.Function):
    """A layer as one node: autograd's own, one an operation, took the host longer than a fast card computes.

    Recomputed, it keeps its input alone, and runs again up to its last product before its gradients are taken; what is
    offloaded is not computed again.
    """

    @staticmethod
    def forward(ctx: Any, keeps: bool, host: Any, how: tuple[Any, ...], hidden: torch.Tensor, *_: Any) -> torch.Tensor:
        device, run, apart = hidden.device, _Run(*how), Offloaded(host) if host else None
        ctx.random, ctx.apart = random_state(device), None
        run.mix(hidden, run.begin(hidden), keeps=keeps or bool(host), apart=apart)
        if apart:
            run.lows[:4] = [Low(low.product, apart.pack(low.drops)) for low in run.lows[:4]]
            ctx.apart = apart, run.attended, apart.pack(run.residual), apart.pack(run.mixed)
            ctx.random = random_state(device)
            apart.send()
        run.open_gates()
        down = run.multiply(6, swiglu(run.gate, run.up))
        if keeps:
            ctx.run = run
            return (run.residual + down).view_as(hidden)
        ctx.save_for_backward(hidden)
        # A product of rank r and a seed are small enough to stay; masks are made again, and then all of them.
        again = any(isinstance(low.drops, torch.Tensor) for low in run.lows)
        ctx.lows = [*run.lows[: 4 if host else 0], *[Low()] * (3 if host else 7)] if again else run.lows
        ctx.run, ctx.how = None, how
        return (run.residual + down if apart else run.residual.add_(down)).view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
        g = upstream[0].reshape(-1, upstream[0].shape[-1])
        (run, ctx.run), (offloaded, ctx.apart) = (ctx.run, None), (ctx.apart, None)
        if offloaded:
            offloaded[0].fetch()
        # Needs nothing of what is computed again, and leaves an unpacked weight's room to it.
        down = (run or _Run(*ctx.how)).parts.projections[6]
        d_gated = g @ down.weight()
        if run is None:
            (hidden,), run, device = ctx.saved_tensors, _Run(*ctx.how), g.device
            run.lows, now = ctx.lows, random_state(device)
            random_state(device, ctx.random)  # it must drop the same
            x = run.begin(hidden)
            if offloaded:
                apart, run.attended, *others = offloaded
                run.residual, run.mixed = map(apart.unpack, others)
                run.lows[:4] = [Low(low.product, apart.unpack(low.drops)) for low in run.lows[:4]]
            else:
                run.mix(hidden, x, keeps=True)
            run.open_gates(holds=down.a is None)  # else gated's own gradients take the room
            if down.a is not None and run.lows[6].product is None:
                run.lows[6] = make_low(swiglu(run.gate, run.up), down.cast_a, run.rate(6))
            random_state(device, now)
        d_hidden = run.backward(g, d_gated, needs_input=ctx.needs_input_grad[3])
        d_hidden = None if d_hidden is None else d_hidden.view_as(upstream[0])
        return (None, None, None, d_hidden, *(d for pair in run.found for d in pair if d is not None))


def random_state(device: torch.device, state: Any = None) -> Any:
    """What a device's generator draws next, or, with a `state`, from there on."""
    if device.type == "cuda":  # its offset alone is a number, where the whole state would wait for the card
        generator = torch.cuda.default_generators[device.index]
        return generator.get_offset() if state is None else generator.set_offset(state)
    return torch.get_rng_state() if state is None else torch.set_rng_state(state)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, sign: int) -> torch.Tensor:
    """(rows, T, heads, d) queries or keys turned by their positions' angles, (rows, T, d), forth (1) or back (-1).

    For the halves x₁, x₂ of a head (x₁ cos − x₂ sin, x₂ cos + x₁ sin) (Su et al. 2021). Each is the other's gradient.
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
        self.model = model
        self.budget = budget
        self.kept = 0.0
        self.host: HostMemory | None = None

    def set_for(self, tokens: int) -> None:
        """For a pass of so many tokens, padding included."""
        self.keep(max(0, int(self.spare(tokens) / (self.kept * tokens))) if self.kept > 0 else 0)
        for layer in self.layers:
            layer.host = self.host if tokens >= OFFLOAD_FROM else None

    def spare(self, tokens: int) -> float:
        """Bytes of the budget that a pass leaves over when all of its layers recompute."""
        # The peak is in the backward pass, or before it, where all logits of a chunk lie on what the layers keep.
        return self.budget - self.fixed - max(self.per_token * tokens, self.forward * tokens + self.chunk)

    def keep(self, count: int) -> None:
        """Lets the last `count` layers keep their activations: the backward pass frees them first."""
        for i, layer in enumerate(self.layers):
            layer.gradient_checkpointing = i < len(self.layers) - count

    def measure(self, tokens: int, forward: Callable[[], Any], step: Callable[[], Any]) -> None:
        """Runs `forward` twice and `step` once on the largest pass. A budget of 0 is what that pass itself needs.

        `forward` gives a loss whose graph holds what is kept; `step` is a forward and backward pass. Where that pass
        does not fit without recomputing, attention is offloaded if `step` says that it pays; where it does, weights
        stay unpacked in what is left.
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
        if not all(isinstance(layer, LeanLayer) for layer in self.layers):
            return
        room = self.spare(tokens) - self.kept * tokens * len(self.layers)
        if processes.share_base():  # all go through the layers as often
            room = -processes.reduce(-room, "MAX")
        if room >= 0:
            self.hold_weights(room)
        elif tokens >= OFFLOAD_FROM:
            self.offload_if_faster(tokens, step)

    def hold_weights(self, room: float) -> None:
        """Keeps embeddings on the card and layers' weights unpacked, in at most so many bytes."""
        embedding, device = self.model.get_input_embeddings().weight, self.layers[0].parts.first_norm.weight.device
        if embedding.device != device and embedding.nbytes <= room:
            room, self.fixed = room - embedding.nbytes, self.fixed + embedding.nbytes
            embedding.data = embedding.to(device)
        for layer in self.layers:
            packed = [by.weight for by in layer.parts.projections if isinstance(by.weight, Packed)]
            size = sum(weight.size for weight in packed)
            if size > room or processes.share_base():  # of layers that come and go, no weight stays unpacked
                break
            room, self.fixed = room - size, self.fixed + size
            for weight in packed:
                weight.held = weight()

    def offload_if_faster(self, tokens: int, step: Callable[[], Any]) -> None:
        """Lets the host's memory have what attention keeps, if the bus is fast enough and there is room."""
        parts = self.layers[0].parts
        config, device = parts.attention.config, parts.first_norm.weight.device
        heads = config.num_attention_heads * parts.attention.head_dim
        # Queries, attention's output, keys and values, which may be repeated to as many, and the residual stream.
        size = tokens * (4 * heads + config.hidden_size) * parts.first_norm.weight.element_size() * len(self.layers)
        if processes.reduce(int(not HostMemory.has_room(size, processes.count())), "MAX"):
            _log.info("not offloaded: attention would take %.1f GiB, over half of the host's memory", size / 2**30)
            return
        seconds = []
        for host in (None, HostMemory(device)):
            self.host = host
            step()  # what it does once only: pinning memory takes seconds
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        if seconds[1] > seconds[0]:
            self.host = None
        told = "%s: the longest pass takes %.3f s with attention offloaded, %.3f s with it computed again"
        _log.info(told, "offloaded" if self.host else "not offloaded", *reversed(seconds))
