"""4-bit layers on the CPU against arithmetic written out here; bitsandbytes' own is wrong on some processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bnbench.models.backend import BackendOptions
from bnbench.models.candidates import parse_candidates
from bnbench.models.hf import TransformersBackend
from bnbench.models.loading import make_portable, unpack
from tests.conftest import pretend_avx512bf16

Layers = list[torch.Tensor]


def make_layer(
    out: int, columns: int, dtype: torch.dtype = torch.float32, *, bias: bool = False, nested: bool = True
) -> Any:
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(out + columns)
    layer = Linear4bit(columns, out, bias=bias, compute_dtype=dtype, quant_type="nf4", compress_statistics=nested)
    return layer.to(dtype).to("cpu")


def written_out(weight: Any) -> torch.Tensor:
    """Each value is its code's level times its block's scale; nested scales are 8-bit codes in blocks, plus a mean."""
    state = weight.quant_state
    scales = state.absmax
    if state.nested:
        blocks = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: len(scales)]
        scales = state.state2.code[scales.long()] * blocks + state.offset
    packed = weight.data.view(-1)
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1)[: state.shape.numel()]
    levels = state.code[codes.long()]
    return (levels * scales.repeat_interleave(state.blocksize)[: len(levels)]).view(state.shape).to(state.dtype)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("out", "columns"), [(64, 64), (32, 16), (16, 32), (7, 48), (33, 96), (9, 100), (5, 31), (1, 10), (300, 192)]
)
def test_unpacked_is_the_formula_bit_for_bit(out: int, columns: int, dtype: torch.dtype, nested: bool) -> None:
    weight = make_layer(out, columns, dtype, nested=nested).weight
    assert weight.quant_state.nested == nested and weight.quant_state.dtype == dtype
    assert torch.equal(unpack(weight), written_out(weight))
    assert weight.quant_state.shape == (out, columns)  # only a copy was changed
    assert unpack(weight, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("columns", [16, 32, 64, 96])
@pytest.mark.parametrize("training", [True, False])
def test_layer_on_either_processor(columns: int, training: bool, avx512bf16: bool) -> None:
    """Forward and gradient, with eval and train in turn; the packed bytes stay what they were."""
    layer = make_layer(24, columns, bias=True)
    assert layer.support_avx512bf16_for_cpu == avx512bf16  # or the pretence pretends nothing
    packed, state = layer.weight.data.clone(), layer.weight.quant_state
    dense = written_out(layer.weight)
    make_portable(torch.nn.Sequential(layer)).train(training)
    for _ in range(2):
        x = torch.randn(2, 5, columns, requires_grad=True)
        with torch.no_grad():
            assert torch.equal(layer(x), torch.nn.functional.linear(x, dense) + layer.bias)
        upstream = torch.randn(2, 5, 24)
        (gradient,) = torch.autograd.grad(layer(x), x, upstream)
        assert torch.equal(gradient, upstream @ dense)
        layer.train(not layer.training)
    assert torch.equal(layer.weight.data, packed) and layer.weight.quant_state is state and state.nested
    assert {k for k in layer.state_dict() if "absmax" in k} == {"weight.absmax", "weight.nested_absmax"}


def logits(base: Path, adapter: Path, answer: bool, monkeypatch: pytest.MonkeyPatch) -> Layers:
    """Of a backend's model: with its adapter, without, and with it again after a turn of training."""
    pretend_avx512bf16(monkeypatch, answer)
    candidates = parse_candidates(adapters=[str(adapter)], base=str(base))
    backend = TransformersBackend(candidates, BackendOptions(device="cpu", quantise=True))
    backend.load()
    model: Any = backend.model
    ids, found = torch.arange(4, 11)[None], []
    with torch.no_grad():
        found.append(model(input_ids=ids).logits)
        with model.disable_adapter():
            found.append(model(input_ids=ids).logits)
        model.train()(input_ids=ids)
        found.append(model.eval()(input_ids=ids).logits)
    return found


def test_logits_are_equal_on_either_processor(
    tiny_base: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, given = (logits(tiny_base, tiny_adapter, answer, monkeypatch) for answer in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(without, given, strict=True))
    assert torch.equal(given[0], given[2]) and not torch.equal(given[0], given[1])
