"""The kernels in Triton's interpreter, where Triton is installed; on a card `benchmarks/gradients.py` tries them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from bnbench.models import kernels

SCRIPT = """
import bitsandbytes, torch
from bnbench.finetune.engine.decoder import swiglu, swiglu_backward, turn
from bnbench.models import kernels

torch.manual_seed(0)
for nested in (True, False):
    for shape in ((96, 130), (64, 3)):
        packed, state = bitsandbytes.functional.quantize_4bit(
            torch.randn(shape), compress_statistics=nested, quant_type="nf4"
        )
        whole = bitsandbytes.functional.dequantize_4bit(packed, state)
        assert torch.equal(kernels.unpack_nf4(packed, state, torch.float32), whole)
x = torch.randn(300, 257)
for rate in (0.05, 0.5):
    y = kernels.drop(x, rate, (12345, 7))
    kept = y != 0
    assert abs(kept.float().mean() - 1 + rate) < 0.005
    assert torch.equal(y[kept], (x * (1 / (1 - rate)))[kept])
    assert torch.equal(kernels.drop(torch.ones_like(x), rate, (12345, 7)) != 0, kept)
    other = kernels.drop(x, rate, (12345, 8)) != 0
    assert abs((other == kept).float().mean() - rate**2 - (1 - rate) ** 2) < 0.01
for n, width, rank in ((70, 257, 8), (64, 128, 16), (3, 40, 24)):
    y, g, a = torch.randn(n, width), torch.randn(n, rank), torch.randn(rank, width)
    wanted = y + kernels.drop(g @ a, 0.3, (5, 6))
    torch.testing.assert_close(kernels.add_low(y, g, a, 0.3, (5, 6)), wanted)
for n, width in ((5, 96), (2, 130)):
    leaf, weight, g, plus = torch.randn(n, width, requires_grad=True), torch.randn(width), *torch.randn(2, n, width)
    torch.nn.functional.rms_norm(leaf, (width,), weight, 1e-5).backward(g)
    found = kernels.norm_backward(leaf.detach(), weight, 1e-5, g, plus)
    torch.testing.assert_close(found, leaf.grad + plus)
for width, heads in ((128, 4), (96, 3)):
    x, cos, sin = torch.randn(2, 5, heads, width), torch.randn(2, 5, width), torch.randn(2, 5, width)
    for sign in (1, -1):
        torch.testing.assert_close(kernels.turn(x, cos, sin, sign=sign), turn(x, cos, sin, sign=sign))
gate, up, g = (torch.randn(3, 1500) for _ in range(3))
torch.testing.assert_close(kernels.swiglu(gate, up), swiglu(gate, up))
found = kernels.swiglu_backward(gate.clone(), up.clone(), g)
torch.testing.assert_close(found, swiglu_backward(gate, up, g.clone()))
logits, target = torch.randn(5, 9001) * 9, torch.tensor([0, 9000, 17, 4096, 4095])
leaf = logits.clone().requires_grad_()
nats = torch.nn.functional.cross_entropy(leaf, target, reduction="none")
nats.sum().backward()
torch.testing.assert_close(kernels.surprise(logits, target), nats.detach())
torch.testing.assert_close(logits, leaf.grad)
across = x.transpose(1, 2)
assert torch.equal(kernels.drop(across, 0.5, (3, 4)), kernels.drop(across.contiguous(), 0.5, (3, 4)))
"""


def test_kernels_give_what_torch_gives() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True)


def test_the_processor_goes_torchs_way() -> None:
    assert not kernels.usable(torch.device("cpu"))
