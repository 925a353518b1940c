"""The cache that is written in place, prompts read in passes, and heads that share keys: the same tokens as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bnbench.models import inference
from bnbench.models.decoding import Decoding

PROMPTS = [list(range(20, 20 + n)) for n in (31, 30, 17, 9, 5, 2)]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base).eval()


def drawn(model: Any, **settings: Any) -> list[tuple[int, ...]]:
    decoding = Decoding(max_new_tokens=24, **settings)
    items = [str(i) for i in range(len(PROMPTS))]
    return [d.ids for d in inference.generate(model, PROMPTS, items, decoding, stop=[3], pad=6)]


@pytest.mark.parametrize("settings", [{"greedy": True}, {"temperature": 1.0}])
def test_passes_and_a_growing_cache_change_no_token(
    model: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn(model, **settings)
    monkeypatch.setattr(inference, "PLACES", 3)
    monkeypatch.setattr(inference.passes, "__defaults__", (40,))
    assert len(list(inference.passes([len(p) for p in PROMPTS]))) > 3
    assert drawn(model, **settings) == whole


def test_greedy_tokens_are_those_of_transformers(model: Any) -> None:
    made = drawn(model, greedy=True, repetition_penalty=1.0)
    for prompt, ids in zip(PROMPTS, made, strict=True):
        given = torch.tensor([prompt])
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=24, do_sample=False)
        expected = out[0, len(prompt) :].tolist()
        assert list(ids) == expected[: len(ids)]


def test_grouped_heads_attend_as_copied_ones(model: Any) -> None:
    plain = drawn(model, greedy=True)
    before = model.config._attn_implementation
    model.set_attn_implementation(inference.ATTENTION)
    try:
        assert drawn(model, greedy=True) == plain
    finally:
        model.set_attn_implementation(before)
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 8) for heads, n in ((4, 1), (2, 11), (2, 11)))
    mask = torch.ones(3, 1, 1, 11, dtype=torch.bool)
    mask[1, ..., :5] = False
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    made, _ = inference.attend(module, query, key, value, mask, scaling=0.3)
    copied = [x.repeat_interleave(2, 1) for x in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *copied, attn_mask=mask, scale=0.3)
    assert torch.allclose(made, expected.transpose(1, 2), atol=1e-6)


def test_passes_hold_as_many_tokens_as_they_may() -> None:
    assert list(inference.passes([9, 5, 5, 2, 2, 2], 10)) == [slice(0, 1), slice(1, 3), slice(3, 6)]
    assert list(inference.passes([50], 10)) == [slice(0, 1)]
    assert list(inference.passes([2, 9], 10)) == [slice(0, 1), slice(1, 2)]
