"""Bases beyond Llama: what the plan says of them is what training does, and `evaluate` takes what it writes."""

from __future__ import annotations

import gc
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bnbench.errors import CandidateError, RecipeError, TrainingError
from bnbench.finetune import FinetuneRequest, Plan, finetune, plan
from bnbench.finetune.engine.collate import Collate
from bnbench.finetune.engine.layers import ATTENTION, attend
from bnbench.finetune.engine.step import prepare
from bnbench.finetune.tuners.adapter import adapt, load_base
from bnbench.models import loading
from tests.bnbench.models.test_loading import BASES, BROKEN, GROUPED, SMALL, WIDTH, opened, truth
from tests.finetune.conftest import make_request

KINDS: dict[str, Any] = {
    **BASES,
    "mistral": lambda: transformers.MistralConfig(**WIDTH, num_key_value_heads=1, sliding_window=8, **SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, **SMALL),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, sliding_window=8, **SMALL),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, **SMALL
    ),
}  # fmt: skip
OF_LLAMA = "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"
OF_EXPERTS = "down_proj gate.weight gate_up_proj k_proj o_proj q_proj v_proj"
OF_BLOOM = "dense dense_4h_to_h dense_h_to_4h query_key_value"
STATE, OWN = "carry a state from token to token", "attention .* is its own"
SAID: dict[str, tuple[str, str]] = {
    "qwen2": (OF_LLAMA, ""), "qwen3": (OF_LLAMA, ""), "mistral": (OF_LLAMA, ""), "gemma3": (OF_LLAMA, ""),
    "gpt2": ("c_attn c_fc c_proj", ""), "opt": ("fc1 fc2 k_proj out_proj q_proj v_proj", ""), "neox": (OF_BLOOM, ""),
    "phi3": ("down_proj gate_up_proj o_proj qkv_proj", ""), "mixtral": (OF_EXPERTS, ""), "qwen3_moe": (OF_EXPERTS, ""),
    "xglm": ("fc1 fc2 k_proj out_proj q_proj v_proj", OWN),
    "bloom": (OF_BLOOM, OWN), "falcon": (OF_BLOOM, OWN), "gemma2": (OF_LLAMA, OWN),
    "gpt_oss": ("k_proj o_proj q_proj v_proj", OWN), "llama4": (OF_LLAMA, "layers of chunked attention"),
    "mamba": ("dt_proj in_proj x_proj", STATE),
    "qwen3_next": (f"in_proj_ba in_proj_qkvz out_proj shared_expert_gate {OF_EXPERTS}", STATE),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each architecture, with weights so large that every layer counts."""
    folders = {kind: tmp_path_factory.mktemp("bases") / kind for kind in KINDS}
    for kind, folder in folders.items():
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
    gc.freeze()  # every training and every load collects, over all that is imported
    return folders


def request_of(base: Path, output: Path, **overrides: str) -> FinetuneRequest:
    settings = {"packing": "true", "dropout": "0", "epochs": "1", **overrides}
    return make_request(base, output, {"batch_size": "2", "accumulate": "1", "r": "2", **settings}, rows=4)


def gradients(model: Any, losses: list[Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for loss in losses:
        loss().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def adapted(planned: Plan, base: Any) -> Any:
    torch.manual_seed(1)
    model = adapt(base, planned.recipe).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide every gradient of lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_is_what_training_does(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    targets, why = SAID[kind]
    request = request_of(bases[kind], tmp_path / "out")
    planned = plan(request)
    assert str(plan(request, weights=False)) == str(planned)
    assert planned.targets == tuple(sorted(targets.split())), planned.targets
    assert planned.recipe.packing is (not why)
    said = "packed, up to 4096 tokens" if not why else f"padded, not packed, since .*{why}"
    assert re.search(f"LoRA of rank 2 on {planned.targets[0]}.*; rows are {said}\n", str(planned))

    # The gradients of a step, packed or padded, are those of its samples one by one under transformers and peft alone.
    ours = adapted(planned, load_base(planned))
    prepare(ours, "cpu")
    passes = Collate(planned.recipe.tokens_per_row if planned.recipe.packing else None, planned.pad_id)(planned.rows)
    found = gradients(ours, [lambda p=p: ours(one_pass=p)["loss"] for p in passes])
    theirs = adapted(planned, loading.load_base(planned.base))

    def alone(row: Any) -> torch.Tensor:
        logits = theirs(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum")

    expected = gradients(theirs, [lambda row=row: alone(row) for row in planned.rows])
    assert found.keys() == expected.keys() and len(passes) == 1
    for name, gradient in expected.items():
        assert gradient.norm() > 0 and (found[name] - gradient).norm() <= 1e-3 * gradient.norm(), name

    # Two steps, and an adapter whose logits are PEFT's.
    result = finetune(request)
    tensors = load_file(result.output / "adapter_model.safetensors")
    assert result.steps == 2 and planned.trainable == sum(tensor.numel() for tensor in tensors.values())
    both = opened(bases[kind], f"own={result.output}")
    base, own = both.candidates
    assert torch.equal(both._probe(own), truth(both, bases[kind], result.output))
    assert torch.equal(both._probe(base), truth(both, bases[kind]))


@pytest.mark.parametrize(
    ("kind", "targets", "why"),
    [
        ("gpt2", "q_proj", "names 'q_proj', which the base has not; .* It has c_attn, c_fc, c_proj: --set targets=c_a"),
        ("gpt2", "c_attn,c_prj", "names 'c_prj', which the base has not; did you mean 'c_proj'"),
        ("gpt2", "mlp", "Target module GPT2MLP.* is not supported"),
        ("mixtral", "w1", "w1 without also targeting w3 because they are fused"),
        ("mamba", "out_proj", "'out_proj' is incompatible with Mamba"),
    ],
)  # fmt: skip
def test_targets_that_a_base_has_not(kind: str, targets: str, why: str, bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"^recipe demo: .*{why}") as caught:
        plan(request_of(bases[kind], tmp_path / "out", targets=targets), weights=False)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_experts_are_adapted_without_dropout(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="experts of this base are adapted without dropout: --set dropout=0"):
        plan(request_of(bases["mixtral"], tmp_path / "out", dropout="0.05"), weights=False)
    experts = plan(request_of(bases["mixtral"], tmp_path / "out", targets="w2"), weights=False)
    attention = plan(request_of(bases["mixtral"], tmp_path / "out", targets="q_proj", dropout="0.05"), weights=False)
    assert experts.targets == ("down_proj",) and attention.targets == ("q_proj",)


def test_a_head_that_is_trained(bases: dict[str, Path], tmp_path: Path) -> None:
    result = finetune(request_of(bases["neox"], tmp_path / "out", targets="lm_head,dense"))
    assert all(tensor.any() for tensor in load_file(result.output / "adapter_model.safetensors").values())


def test_layers_that_cannot_be_recomputed(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.OPTForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(RecipeError, match="OPTForCausalLM can recompute no layers: --set checkpointing=none"):
        plan(request_of(bases["opt"], tmp_path / "out", checkpointing="non-reentrant"), weights=False)


def test_mamba_is_not_trained_in_four_bits(bases: dict[str, Path], tmp_path: Path) -> None:
    request = request_of(bases["mamba"], tmp_path / "out", tuner="qlora", quantisation="nf4")
    with pytest.raises(RecipeError, match="must not be packed: --set tuner=lora --set quantisation=none"):
        plan(request, weights=False)


@pytest.mark.parametrize("sees", ["other samples", "later tokens"])
def test_attention_is_tried_before_it_trains(
    sees: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        if sees == "other samples":
            return attend(module, query, key, value, mask, **{**given, "lengths": ()})
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, ATTENTION, attention)
    with pytest.raises(TrainingError, match="OPTForCausalLM: its attention sees other samples, or later tokens"):
        finetune(request_of(bases["opt"], tmp_path / "out"))


# Tuples in place of named outputs are seen when the base first computes, which a dry run does not.
@pytest.mark.no_cover
@pytest.mark.parametrize("kind", [kind for kind in BROKEN if kind != "tuples"])
def test_broken_bases_in_a_dry_run(
    kind: str, tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, (damage, why) = shutil.copytree(tiny_base, tmp_path / "base"), BROKEN[kind]
    damage(folder)
    capfd.readouterr()
    with pytest.raises(CandidateError, match=f"^base {folder}: .*{why}") as caught:
        plan(request_of(folder, tmp_path / "out"), weights=False)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_encoders_are_not_trained(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    transformers.BertConfig(**WIDTH, vocab_size=400).save_pretrained(folder)
    with pytest.raises(CandidateError, match="a model of type bert is an encoder"):
        plan(request_of(folder, tmp_path / "out"), weights=False)
