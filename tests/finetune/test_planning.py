from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnbench.errors import CandidateError, MissingExtraError, RecipeError, TrainingError
from bnbench.finetune import FinetuneRequest, count_parameters, load_recipe, plan
from bnbench.finetune.base import resolve_base
from bnbench.finetune.planning import count_steps

Request = Callable[..., FinetuneRequest]


@pytest.fixture(scope="module")
def llama_8b() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


@pytest.mark.parametrize("name", ["original-t4", "t4"])
def test_parameters_of_the_original(llama_8b: Any, name: str) -> None:
    assert count_parameters(llama_8b, load_recipe(name)) == (3_407_872, 8_033_669_120)


def test_parameters_of_all_linear_layers(llama_8b: Any) -> None:
    recipe = load_recipe("t4", {"targets": "all-linear", "r": "16"})
    assert count_parameters(llama_8b, recipe) == (41_943_040, 8_030_261_248 + 41_943_040)


def test_unknown_target_names_the_nearest(llama_8b: Any) -> None:
    with pytest.raises(RecipeError, match="targets names 'v_prj', which the base has not; did you mean 'v_proj'"):
        count_parameters(llama_8b, load_recipe("t4", {"targets": "q_proj,v_prj"}))


def test_steps() -> None:
    recipe = load_recipe("t4")
    assert count_steps(4000, recipe) == 1000
    assert count_steps(4001, recipe) == 1001
    assert (
        count_steps(160, load_recipe("t4", {"epochs": "2.5", "batch_size": "3", "accumulate": "4"})) == 35
    )  # 54 batches, 14 steps, ×2.5


def test_dry_run_numbers(request_for: Request) -> None:
    planned = plan(request_for())
    numbers = planned.summary()
    assert numbers["rows"] == 22 and numbers["steps"] == 18 and numbers["warmup_steps"] == 1
    assert numbers["trainable_parameters"] == planned.trainable < numbers["total_parameters"]
    assert numbers["tokens"] == sum(len(r.ids) for r in planned.rows) > numbers["supervised_tokens"] > 0
    assert numbers["longest_row_tokens"] == max(len(r.ids) for r in planned.rows)
    assert f"{planned.trainable:,} of {planned.total:,} parameters" in str(planned) and "18 steps of 4 rows" in str(
        planned
    )
    assert numbers["precision"] == "float32" and "demo" in numbers["precision_reason"]


def test_rows_that_would_be_cut_are_refused(request_for: Request) -> None:
    with pytest.raises(TrainingError, match=r"22 of 22 rows .* longer than max_tokens = 32"):
        plan(request_for(overrides={"max_tokens": "32"}))


def test_bad_devices(request_for: Request) -> None:
    with pytest.raises(RecipeError, match="choose auto, cpu or cuda"):
        plan(request_for(device="gpu"))
    with pytest.raises(RecipeError, match="float16"):
        plan(request_for(overrides={"precision": "float16"}))


@pytest.mark.parametrize("package", ["torch", "peft", "bitsandbytes"])
def test_missing_package_gives_the_pip_command(
    request_for: Request, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=rf'{package} is not installed: pip install "bnbench\[(finetune|models)\]"'
    ):
        plan(request_for(recipe="t4", overrides={}))


def test_base_folders_that_cannot_be_trained(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="no folder"):
        resolve_base(str(tmp_path / "missing"))
    with pytest.raises(CandidateError, match=r"no config\.json"):
        resolve_base(str(tiny_adapter))
    pickled = shutil.copytree(tiny_base, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CandidateError, match=r"no \.safetensors"):
        resolve_base(str(pickled))
    mute = shutil.copytree(tiny_base, tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    with pytest.raises(CandidateError, match="no tokenizer"):
        resolve_base(str(mute))


def test_base_is_identified_by_content(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    assert resolve_base(str(copy)).hashes() == resolve_base(str(tiny_base)).hashes()
    named = resolve_base("demo", folder=copy)
    assert (named.name, named.folder) == ("demo", copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert resolve_base(str(copy)).hashes() != named.hashes()


def test_base_from_the_hub_cache(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--NousResearch--Meta-Llama-3.1-8B-Instruct"
    shutil.copytree(tiny_base, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    found = resolve_base("NousResearch/Meta-Llama-3.1-8B-Instruct")
    assert found.hashes() == resolve_base(str(tiny_base)).hashes() and found.commit == "a" * 40
    with pytest.raises(CandidateError, match=r"NousResearch/other@v2 is not in the hub cache"):
        resolve_base("NousResearch/other", "v2")
