"""Kernels of our own in Triton: what torch does in several passes over a card's memory, in one.

Where they are not `usable` their callers go torch's way; `benchmarks/gradients.py` compares both on the card at hand.
In a kernel every name in capitals is a number that Triton compiles it for.
"""

# ruff: noqa: N803
from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

triton: Any = None  # torch for the CPU comes without it
tl: Any = None
if find_spec("triton"):
    triton, tl = import_module("triton"), import_module("triton.language")

_log = logging.getLogger("bnbench")
LIMIT = 2**31 - 2**20  # elements of a tensor, which are counted in 32 bits
SIZE = 1024
"""Elements a program: at four times as many a thread has no registers left, and few threads run at once (ptxas -v)."""


def usable(device: torch.device) -> bool:
    """Whether they run on a device: a card of compute capability 8 or above, with Triton and a compiler for it. Triton
    launches on torch's current card, so that another one (of a base over several) goes torch's way.
    """
    return bool(triton) and device.type == "cuda" and device.index == torch.cuda.current_device() and _works(device)


@lru_cache(maxsize=8)
def _works(device: torch.device) -> bool:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        compiled, ready = (drop(torch.ones(64, device=device), 0.5, (0, 0)) for _ in range(2))
        if not torch.equal(compiled, ready):
            raise RuntimeError("a compiled kernel does something else when it is launched again")
    except Exception as error:  # of a compiler, which may be anything
        _log.warning("Triton does not work here, torch's own kernels are slower: %s: %s", type(error).__name__, error)
        return False
    return True


def next_seed(device: torch.device) -> tuple[int, int]:
    """For `drop`, from the device's generator: it moves on, so whoever sets it back has the same drops again."""
    generator = torch.cuda.default_generators[device.index]
    place = generator.get_offset()
    generator.set_offset(place + 4)
    return generator.initial_seed() % 2**31, place // 4 % 2**31


def _compiled(function: Any) -> Any:
    # Triton would compile anew for seeds that 16 divides.
    return triton.jit(function, do_not_specialize=["first", "second", "below"]) if triton else function


_ready: dict[tuple[Any, ...], Any] = {}


def _launch(
    function: Any, programs: int, tensors: tuple[Any, ...], numbers: tuple[float, ...], *constants: int, **options: Any
) -> None:  # fmt: skip
    """`function[(programs,)](*tensors, *numbers, *constants)`, but what was compiled for such arguments is found again.

    Triton itself asks each time what they are, and where each tensor lies: longer than the card takes (0.1 ms, H200).
    It compiles for addresses that 16 divides, as torch's nearly always are, and for a first number of 1 or of such.
    """
    places = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    kinds: list[Any] = [None if tensor is None else tensor.dtype for tensor in tensors]
    kinds += [(number == 1, number % 16 == 0) for number in numbers[:1]]
    key = id(function), tensors[0].device, *constants, *kinds
    aligned = not any(place % 16 for place in places if place)
    if aligned and key in _ready:
        _ready[key][programs, 1, 1](*places, *numbers, *constants)
        return
    compiled = function[programs,](*tensors, *numbers, *constants, **options)
    if aligned and compiled is not None:  # Triton's interpreter gives none
        _ready[key] = compiled


@_compiled
def _unpack(  # type: ignore[no-untyped-def]
    packed, absmax, code, inner, codes, offset, whole, blocks,
    NESTED: tl.constexpr, INNER: tl.constexpr, HALF: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip # pragma: no cover
    block = tl.program_id(0) * MANY + tl.arange(0, MANY)
    here = block < blocks
    scale = tl.load(absmax + block, mask=here)
    if NESTED:
        scale = tl.load(codes + scale.to(tl.int32), mask=here) * tl.load(inner + block // INNER, mask=here)
        scale += tl.load(offset)
    byte = tl.load(packed + block[:, None] * HALF + tl.arange(0, HALF)[None, :], mask=here[:, None])
    high = tl.load(code + (byte >> 4).to(tl.int32)) * scale[:, None]
    low = tl.load(code + (byte & 15).to(tl.int32)) * scale[:, None]
    place = block[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    tl.store(whole + place, tl.interleave(high, low), mask=here[:, None])


def unpack_nf4(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """The matrix of bitsandbytes' NF4 numbers, two a byte, and their `QuantState`: to the bit what it makes of them."""
    whole, blocks = torch.empty(state.shape, dtype=dtype, device=packed.device), state.absmax.numel()
    inner, codes, size = None, None, 1
    if state.nested:
        inner, codes, size = state.state2.absmax, state.state2.code, state.state2.blocksize
    tensors = packed, state.absmax, state.code, inner, codes, state.offset, whole
    sizes = size, state.blocksize // 2, 32
    _launch(_unpack, triton.cdiv(blocks, 32), tensors, (blocks,), state.nested, *sizes, enable_fp_fusion=False)
    return whole


@_compiled
def _kept(x, at, first, second, below, scale):  # type: ignore[no-untyped-def] # pragma: no cover
    # MurmurHash3's finaliser (Appleby 2011), twice, of the place and the two halves of the seed.
    chance = at.to(tl.uint32) ^ first.to(tl.uint32)
    for turn in tl.static_range(2):
        chance ^= chance >> 16
        chance *= 0x85EBCA6B
        chance ^= chance >> 13
        chance *= 0xC2B2AE35
        chance ^= chance >> 16
        if turn == 0:
            chance ^= second.to(tl.uint32)
    return tl.where((chance >> 1).to(tl.int32) >= below, x * scale, 0.0)


@_compiled
def _drop(x, y, n, first, second, below, scale, SIZE: tl.constexpr):  # type: ignore[no-untyped-def] # pragma: no cover
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    here = at < n
    tl.store(y + at, _kept(tl.load(x + at, mask=here).to(tl.float32), at, first, second, below, scale), mask=here)


def drop(x: torch.Tensor, rate: float, seed: tuple[int, int]) -> torch.Tensor:
    """Dropout of x; one seed drops the same of any x."""
    x = x.contiguous()
    y, n = torch.empty_like(x), x.numel()
    _launch(_drop, triton.cdiv(n, SIZE), (x, y), (n, *seed, round(rate * 2**31), 1 / (1 - rate)), SIZE)
    return y


@_compiled
def _add_low(  # type: ignore[no-untyped-def]
    g, a, y, n, first, second, below, scale,
    WIDTH: tl.constexpr, RANK: tl.constexpr, INNER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip # pragma: no cover
    across = (WIDTH + COLUMNS - 1) // COLUMNS
    row = (tl.program_id(0) // across * ROWS + tl.arange(0, ROWS))[:, None]
    column, rank = (tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS))[None, :], tl.arange(0, INNER)
    left = tl.load(g + row * RANK + rank[None, :], mask=(row < n) & (rank < RANK)[None, :], other=0.0)
    right = tl.load(a + rank[:, None] * WIDTH + column, mask=(rank < RANK)[:, None] & (column < WIDTH), other=0.0)
    at, here = row * WIDTH + column, (row < n) & (column < WIDTH)
    kept = _kept(tl.dot(left, right, input_precision="ieee"), at, first, second, below, scale)
    tl.store(y + at, tl.load(y + at, mask=here).to(tl.float32) + kept, mask=here)


def add_low(y: torch.Tensor, g: torch.Tensor, a: torch.Tensor, rate: float, seed: tuple[int, int]) -> torch.Tensor:
    """Adds dropout of g a, of (n, r) by (r, width), to (n, width) y in place: `drop` of that seed, in one go."""
    (n, width), rank = y.shape, g.shape[1]
    numbers = n, *seed, round(rate * 2**31), 1 / (1 - rate)
    programs = triton.cdiv(n, 32) * triton.cdiv(width, 64)
    _launch(_add_low, programs, (g, a, y), numbers, width, rank, max(16, triton.next_power_of_2(rank)), 32, 64)
    return y


@_compiled
def _norm_back(x, weight, g, plus, y, eps, WIDTH: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def] # pragma: no cover
    row, at = tl.program_id(0).to(tl.int64) * WIDTH, tl.arange(0, SIZE)
    here = at < WIDTH
    a = tl.load(x + row + at, mask=here, other=0.0).to(tl.float32)
    b = tl.load(g + row + at, mask=here, other=0.0).to(tl.float32)
    b *= tl.load(weight + at, mask=here, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(a * a, 0) / WIDTH + eps)
    b = scale * (b - a * (scale * scale * tl.sum(a * b, 0) / WIDTH))
    tl.store(y + row + at, b + tl.load(plus + row + at, mask=here, other=0.0).to(tl.float32), mask=here)


def norm_backward(
    x: torch.Tensor, weight: torch.Tensor, eps: float, g: torch.Tensor, plus: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """∂L/∂x of RMSNorm (Zhang and Sennrich 2019), from g = ∂L/∂y, added to what else comes to x; (n, width) each. With
    s = 1 / sqrt(mean x² + eps), y = s w x: ∂L/∂x = s (w g − x s² mean(x w g)).
    """
    x, g, plus, (n, width) = x.contiguous(), g.contiguous(), plus.contiguous(), x.shape
    y = torch.empty_like(x)
    _launch(_norm_back, n, (x, weight, g, plus, y), (eps,), width, triton.next_power_of_2(width), num_warps=8)
    return y


@_compiled
def _turn(  # type: ignore[no-untyped-def]
    x, cos, sin, y, SIGN: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):  # pragma: no cover
    token, head, place = tl.program_id(0).to(tl.int64), tl.arange(0, ROWS)[:, None], tl.arange(0, WIDE)[None, :]
    inside = place < HALF
    here, angle = (head < HEADS) & inside, token * 2 * HALF + place
    first = (token * HEADS + head) * 2 * HALF + place
    a, b = tl.load(x + first, mask=here).to(tl.float32), tl.load(x + first + HALF, mask=here).to(tl.float32)
    cos_a, cos_b = tl.load(cos + angle, mask=inside), tl.load(cos + angle + HALF, mask=inside)
    sin_a, sin_b = tl.load(sin + angle, mask=inside), tl.load(sin + angle + HALF, mask=inside)
    tl.store(y + first, a * cos_a - b * sin_a * SIGN, mask=here)
    tl.store(y + first + HALF, b * cos_b + a * sin_b * SIGN, mask=here)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, sign: int) -> torch.Tensor:
    """(rows, T, heads, d) turned by (rows, T, d) angles, forth (1) or back (-1), as rotary embeddings are."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    y, (rows, size, heads, width) = torch.empty_like(x), x.shape
    half, power = width // 2, triton.next_power_of_2
    _launch(_turn, rows * size, (x, cos, sin, y), (), sign, heads, half, power(heads), power(half))
    return y


@_compiled
def _gate(gate, up, g, y, n, BACK: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def] # pragma: no cover
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    a, b = tl.load(gate + at, mask=at < n).to(tl.float32), tl.load(up + at, mask=at < n).to(tl.float32)
    share = tl.sigmoid(a)
    if BACK:
        upstream = tl.load(g + at, mask=at < n).to(tl.float32)
        tl.store(gate + at, upstream * b * share * (1 + a * (1 - share)), mask=at < n)
        tl.store(up + at, upstream * a * share, mask=at < n)
    else:
        tl.store(y + at, a * share * b, mask=at < n)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) ∘ up (Shazeer 2020), of contiguous tensors."""
    y, n = torch.empty_like(gate), gate.numel()
    _launch(_gate, triton.cdiv(n, SIZE), (gate, up, None, y), (n,), False, SIZE)
    return y


def swiglu_backward(gate: torch.Tensor, up: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Its gradients, put into `gate` and `up` themselves, which saves as much memory again."""
    g, n = g.contiguous(), gate.numel()
    _launch(_gate, triton.cdiv(n, SIZE), (gate, up, g, None), (n,), True, SIZE)
    return gate, up


@_compiled
def _surprise(z, target, nats, WIDTH: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def] # pragma: no cover
    row = tl.program_id(0).to(tl.int64)
    z += row * WIDTH
    wanted, at = tl.load(target + row), tl.arange(0, SIZE)
    chosen = tl.load(z + wanted).to(tl.float32)  # the reductions below make every thread wait for it
    most, total = tl.full((SIZE,), -3e38, tl.float32), tl.zeros((SIZE,), tl.float32)
    for start in range(0, WIDTH, SIZE):  # Milakov and Gimelshein (2018): the largest, and the sum beside it
        x = tl.load(z + start + at, mask=start + at < WIDTH, other=-float("inf")).to(tl.float32)
        now = tl.maximum(most, x)
        total = total * tl.exp(most - now) + tl.exp(x - now)
        most = now
    peak = tl.max(most, 0)
    whole = tl.sum(total * tl.exp(most - peak), 0)
    tl.store(nats + row, tl.log(whole) + peak - chosen)
    for start in range(0, WIDTH, SIZE):
        x = tl.load(z + start + at, mask=start + at < WIDTH, other=0.0).to(tl.float32)
        share = tl.exp(x - peak) / whole - tl.where(start + at == wanted, 1.0, 0.0)
        tl.store(z + start + at, share, mask=start + at < WIDTH)


def surprise(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log Σ_v exp z_v − z_target in nats, (n,), of (n, vocabulary) logits, which become softmax(z) − onehot(target)."""
    n, width = logits.shape
    nats = torch.empty(n, dtype=torch.float32, device=logits.device)
    _launch(_surprise, n, (logits, target, nats), (), width, 4096)
    return nats
