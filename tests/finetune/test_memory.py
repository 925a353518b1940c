from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_layers import GradientCheckpointingLayer

from bnbench.errors import RecipeError
from bnbench.finetune import FinetuneRequest, load_recipe, plan
from bnbench.finetune.engine.collate import Collate, Row
from bnbench.finetune.engine.decoder import Recomputation
from bnbench.finetune.memory import CARDS, LLAMA_8B, Estimate, Shape, estimate, lora_parameters
from bnbench.finetune.recipes import Recipe

ROWS = [Row(str(i), (7,) * n, (7,) * n) for i, n in enumerate((4096, 600, 300, 900, 48))]
LLAMA_70B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip
TRAINABLE = {"t4": 3_407_872, "t4-r16-all-linear": 41_943_040, "lora-16bit": 41_943_040}


def peak(recipe: Recipe, **changes: Any) -> Estimate:
    return estimate(LLAMA_8B, replace(recipe, **changes), ROWS, TRAINABLE[recipe.name], 10, fused=True)


def test_shape_of_a_configuration() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    assert Shape.of(config, 8_030_261_248) == LLAMA_8B


@pytest.mark.parametrize("name", TRAINABLE)
def test_parameters_from_shapes_alone(name: str) -> None:
    assert lora_parameters(LLAMA_8B, load_recipe(name)) == TRAINABLE[name]


def test_listing_the_recipes_loads_no_torch() -> None:
    code = "import sys; from bnbench.finetune import recipe_list; recipe_list(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_more_of_anything_needs_more() -> None:
    recipe = load_recipe("t4")
    base = peak(recipe).peak
    dearer: list[dict[str, Any]] = [
        {"tokens_per_row": 8192, "batch_size": 8},
        {"checkpointing": "none"},
        {"optimizer": "adamw_torch"},
        {"double_quantisation": False},
        {"targets": ("all-linear",)},
        {"packing": False},
        {"precision": "float32"},
        {"memory_gib": 13.0},
    ]
    for changes in dearer:
        assert peak(recipe, **changes).peak > base, changes
    assert peak(recipe, max_tokens=8192).peak == base  # what the rows are counts, not what they may be
    assert peak(recipe, memory_gib=1.0).peak == base  # a budget makes no room
    assert peak(recipe, memory_gib=13.0).peak == pytest.approx(13 * 2**30)
    assert estimate(LLAMA_8B, recipe, ROWS, TRAINABLE["t4"], 10, fused=False).peak > base
    assert peak(load_recipe("lora-16bit")).terms["weights"] > 3 * peak(recipe).terms["weights"]


def test_terms_add_up_and_steps_cost_time() -> None:
    one = peak(load_recipe("t4"))
    assert one.peak + one.terms["CUDA context"] == pytest.approx(sum(one.terms.values()))
    assert one.summary()["peak_gib"] == pytest.approx(sum(one.summary()["terms_gib"].values()) - 0.6, abs=0.05)
    assert one.terms["weights"] == pytest.approx(4.65e9, rel=0.01)
    long, unknown = (estimate(LLAMA_8B, load_recipe("t4"), ROWS, 1, n, gpu=c) for n, c in ((20, "T4"), (10, "Radeon")))
    assert one.seconds is not None and long.seconds == pytest.approx(2 * one.seconds) and unknown.seconds is None


def test_largest_pass_is_the_collator_s() -> None:
    for overrides in ({}, {"tokens_per_row": "512"}, {"tokens_per_row": "9000"}, {"packing": "false"}):
        recipe = load_recipe("t4", overrides)
        collator = Collate(recipe.tokens_per_row if recipe.packing else None)
        tried = collator.largest(ROWS, recipe.batch_size).ids.numel()
        assert tried == estimate(LLAMA_8B, recipe, ROWS, 1, 10).largest_pass
        assert tried >= max(p.ids.numel() for p in collator(ROWS[:4]))


def test_too_small_a_gpu_is_refused_by_the_largest_term() -> None:
    lora = peak(load_recipe("lora-16bit"))
    lora.check_fits(24 * 2**30, "an L4")
    with pytest.raises(RecipeError, match=r"needs about 1\d\.\d GiB and a T4 has 14\.6; the largest part: weights, 14"):
        lora.check_fits(int(14.6 * 2**30), "a T4")
    peak(load_recipe("t4")).check_fits(8 * 2**30, "a laptop's GPU")
    with pytest.raises(RecipeError, match=r"the largest part: activations kept.*non-reentrant"):
        peak(load_recipe("t4"), checkpointing="none").check_fits(8 * 2**30, "a laptop's GPU")


def test_the_dry_run_tells(request_for: Callable[..., FinetuneRequest]) -> None:
    planned = plan(request_for())
    told = planned.summary()["estimate"]
    assert told["largest_pass_tokens"] == 2 * planned.longest and told["peak_gib"] < 0.1
    assert "estimated peak on T4: 0.0 GiB" in str(planned) and "; beside it the CUDA context, 0.60)" in str(planned)


def test_layers_that_need_not_be_computed_twice() -> None:
    layers = torch.nn.ModuleList(GradientCheckpointingLayer() for _ in range(32))
    recomputation = Recomputation(layers, 6e9)
    measured = {"fixed": 4e9, "per_token": 5e5, "forward": 3e5, "chunk": 4e8, "kept": 1e5}

    def kept(tokens: int, **changes: float) -> int:
        vars(recomputation).update(measured | changes)
        recomputation.set_for(tokens)
        return sum(not layer.gradient_checkpointing for layer in layers)

    assert kept(4000) == 0 and kept(4200) == 0
    assert kept(2000) == 5  # 2e9 - 1e9 for the pass, 2e8 a layer
    assert kept(200) == 32
    assert kept(200, chunk=1.9e9) == 2


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "llama"])
def test_what_nf4_leaves_in_16_bits_is_counted(kind: str) -> None:
    """Experts lie in one tensor a layer, which is no linear layer, so bitsandbytes leaves them as they are."""
    from bnbench.finetune.tuners.adapter import linear_parameters

    widths: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    config = {
        "mixtral": lambda: transformers.MixtralConfig(**widths, num_local_experts=8),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**widths, num_experts=8, moe_intermediate_size=128),
        "llama": lambda: transformers.LlamaConfig(**widths),
    }[kind]()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    linear, total = linear_parameters(model), sum(p.numel() for p in model.parameters())
    inside = [m for n, m in model.named_modules() if type(m) is torch.nn.Linear and n != "lm_head"]
    outside = 512 * 128  # input embeddings, which stay in the CPU's memory, are not counted, the head is
    expected = sum(m.weight.numel() for m in inside) * (0.5 + (1 + 4 / 256) / 64)
    expected += 2 * (total - 2 * outside - sum(m.weight.numel() for m in inside) + outside)
    shape = Shape.of(config, total, linear)
    found = estimate(shape, load_recipe("t4"), ROWS, 1, 10, fused=True).terms["weights"]
    assert found == pytest.approx(expected, rel=1e-6)
    packed_all = estimate(Shape.of(config, total), load_recipe("t4"), ROWS, 1, 10, fused=True).terms["weights"]
    assert found > 1.5 * packed_all if kind != "llama" else found == pytest.approx(packed_all, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "one", "several"),
    [
        ({}, "one card of 48 GB (A40, L40S) holds it whole", {"16 GB": 9, "24 GB": 4, "32 GB": 2, "40 GB": 2}),
        ({"memory_gib": 60.0}, "one card of 80 GB (A100, H100) holds it", {}),
        (
            {"tuner": "lora", "quantisation": "none"},
            "one card of 192 GB (B200) holds it whole (143.",
            {"24 GB": 16, "32 GB": 8, "40 GB": 6, "48 GB": 5, "80 GB": 2, "141 GB": 2},
        ),
        (
            {"tuner": "lora", "quantisation": "none", "precision": "float32"},
            "no card holds it whole (285.",
            {"48 GB": 16, "80 GB": 5, "141 GB": 3, "192 GB": 2},
        ),
        ({"quantisation": "none", "tuner": "lora", "precision": "float32", "dora": True}, "sharing .*: none", {}),
    ],
)
def test_how_many_cards_a_70b_shape_needs(changes: dict[str, Any], one: str, several: dict[str, int]) -> None:
    shape = Shape.of(transformers.LlamaConfig(**LLAMA_70B), 70_553_706_496)
    recipe = replace(load_recipe("t4"), **changes)
    found = estimate(shape, recipe, ROWS, 16_384_000, 10, fused=True)
    assert re.search(one if "none" in one else re.escape(one), found.cards)
    assert found.cards in str(found) and found.summary()["cards"] == found.cards
    shared = {name[: name.index(" (")]: (n, gib) for name, (n, gib) in found.shared.items() if n > 1}
    assert {name: n for name, (n, _) in shared.items()} == several
    for name, (n, gib) in shared.items():
        # What each of so many needs is what the plan of one of so many processes says; of fewer it is too much.
        room = next(room for card, room in CARDS.items() if card.startswith(name))
        each, of_fewer = (
            sum(estimate(shape, recipe, ROWS, 16_384_000, 10, fused=True, sharing=count).terms.values()) / 2**30
            for count in (n, n - 1)
        )
        assert each == pytest.approx(gib) and each <= room < of_fewer
        assert f"{n} of {name} (" in found.cards and f"({gib:.1f} GiB on each)" in found.cards
    if not changes:
        assert 34 < found.terms["weights"] / 2**30 < 36
        with pytest.raises(RecipeError, match=r"a T4 has 14.6; the largest part: weights, .*; one card of 48 GB"):
            found.check_fits(int(14.6 * 2**30), "a T4")


def test_dry_run_of_a_70b_base_without_its_weights(
    request_for: Callable[..., FinetuneRequest], tiny_base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "70b", ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **LLAMA_70B, "head_dim": 128}), encoding="utf-8")
    planned = plan(request_for(base=str(folder), recipe="t4"), weights=False)
    assert planned.total - planned.trainable == 70_553_706_496
    # Its rows are short.
    said = r"one card of 40 GB \(A100\) holds it whole \(38.*: 4 of 16 GB \(T4\) \(.*, 2 of 24 GB .*, 2 of 32 GB"
    assert re.search(said, str(planned))
    assert "the base's weights are not here" in str(planned)
