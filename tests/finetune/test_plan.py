from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bnbench.errors import CandidateError, CorpusError, MissingExtraError, RecipeError
from bnbench.finetune import (
    FinetuneRequest,
    count_parameters,
    finetune_request,
    list_recipes,
    load_recipe,
    plan,
    recipe_list,
    recipe_table,
)
from bnbench.finetune.memory import outlook
from bnbench.finetune.plan import parse_duration, recipe_precision
from bnbench.models.hub import resolve_base
from bnbench.models.loading import Device
from bnbench.models.prompts import Prompter

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


@pytest.fixture
def llama_without_weights(llama_8b: Any, make_tokenizer: Callable[..., Any], tmp_path: Path) -> Path:
    folder = tmp_path / "Llama-3.1-8B"
    llama_8b.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_dry_run_needs_no_weights(
    llama_without_weights: Path, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnbench.models.hub.file_sha256", lambda path: pytest.fail(f"{path} was read"))
    request = request_for(base=str(llama_without_weights), recipe="t4", overrides={"r": "8"})
    planned = plan(request, weights=False)
    assert "3,407,872 of 8,033,669,120 parameters" in str(planned) and planned.summary()["weights_here"] is False
    assert "estimated peak on T4" in str(planned)
    assert f"the base's weights are not here (no .safetensors in {llama_without_weights})" in str(planned)
    with pytest.raises(CandidateError, match=r"no weights in .*: no model\.safetensors"):
        plan(request)


def test_a_dry_run_reads_no_weights_that_are_here(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnbench.models.hub.file_sha256", lambda path: pytest.fail(f"{path} was read"))
    planned = plan(request_for(), weights=False)
    assert planned.summary()["weights_here"] and "not here" not in str(planned)


def test_dry_run_numbers(request_for: Request) -> None:
    planned = plan(request_for())
    numbers = planned.summary()
    assert numbers["rows"] == 22 and numbers["steps"] == 18 and numbers["warmup_steps"] == 0
    assert numbers["trainable_parameters"] == planned.trainable < numbers["total_parameters"]
    assert numbers["tokens"] == sum(len(r.ids) for r in planned.rows) > numbers["supervised_tokens"] > 0
    assert numbers["longest_row_tokens"] == max(len(r.ids) for r in planned.rows)
    assert f"{planned.trainable:,} of {planned.total:,} parameters" in str(planned) and "18 steps of 4" in str(planned)
    assert numbers["precision"] == "float32" and "demo" in numbers["precision_reason"]


def test_rows_that_would_be_cut_are_refused(request_for: Request) -> None:
    with pytest.raises(CorpusError, match=r"22 of 22 rows .* longer than max_tokens = 32"):
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
    with pytest.raises(MissingExtraError, match=rf'{package} is not installed: pip install "\.\[(finetune|models)\]"'):
        plan(request_for(recipe="t4", overrides={}))


def test_base_folders_that_cannot_be_trained(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="no folder"):
        resolve_base(str(tmp_path / "missing"))
    with pytest.raises(CandidateError, match=r"no config\.json"):
        resolve_base(str(tiny_adapter))
    pickled = shutil.copytree(tiny_base, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CandidateError, match="weights are pickled"):
        resolve_base(str(pickled))
    (pickled / "decoy.safetensors").write_bytes((tiny_base / "model.safetensors").read_bytes())
    with pytest.raises(CandidateError, match="weights are pickled"):
        resolve_base(str(pickled))
    mute = shutil.copytree(tiny_base, tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    with pytest.raises(CandidateError, match="no tokenizer"):
        resolve_base(str(mute))


def test_base_is_identified_by_content(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    assert resolve_base(str(copy)).hashes == resolve_base(str(tiny_base)).hashes
    named = resolve_base("demo", folder=copy)
    assert (named.name, named.folder) == ("demo", copy)
    before = named.hashes
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert resolve_base(str(copy)).hashes != before


def test_base_from_the_hub_cache(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--NousResearch--Meta-Llama-3.1-8B-Instruct"
    shutil.copytree(tiny_base, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    found = resolve_base("NousResearch/Meta-Llama-3.1-8B-Instruct")
    assert found.hashes == resolve_base(str(tiny_base)).hashes and found.commit == "a" * 40
    with pytest.raises(CandidateError, match=r"NousResearch/other@v2 is not in the hub cache"):
        resolve_base("NousResearch/other", "v2")


@pytest.mark.parametrize(
    ("name", "dtype"), [("t4", "float16"), ("full-3-epochs", "float16"), ("original-t4", "bfloat16")]
)
def test_a_t4_computes_in_float16_unless_a_recipe_insists(name: str, dtype: str) -> None:
    chosen = recipe_precision(load_recipe(name), Device("cuda", "Tesla T4", (7, 5), 15 * 2**30), 8_030_261_248)
    assert chosen.dtype_name == dtype and ("Tesla T4 only emulates it" in chosen.reason) == (dtype == "bfloat16")


def test_pad_of_a_tokenizer_that_pads_with_its_end(
    request_for: Request, make_base: Any, make_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<|eot_id|>"
    planned = plan(request_for(base=str(make_base(tmp_path / "base", tokenizer))))
    assert planned.pad_id == tokenizer.convert_tokens_to_ids("<|finetune_right_pad_id|>") < len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|added|>"})
    request = request_for(base=str(make_base(tmp_path / "beyond", tokenizer, vocab_size=len(tokenizer) - 1)))
    assert plan(request).pad_id < len(tokenizer) - 1


def test_durations() -> None:
    assert [parse_duration(t) for t in ("11h30m", "45m", "90s", "1h1m1s")] == [41400.0, 2700.0, 90.0, 3661.0]
    for wrong in ("", "12", "1.5h", "30m11h"):
        with pytest.raises(RecipeError, match="write it as 11h30m"):
            parse_duration(wrong)


def test_columns_of_no_file() -> None:
    with pytest.raises(RecipeError, match="--columns says what the columns of --data are called"):
        finetune_request("dpo", None, columns={"chosen": "better"})


def test_recipe_table() -> None:
    table = recipe_table()
    assert all(name in table and load_recipe(name).card in table for name in list_recipes())
    estimates = {r["name"]: r["estimate"] for r in recipe_list()}
    assert estimates["demo"] is None and "on T4: 6.6 GiB at 4,096 tokens, 4,000 samples in about" in table
    assert estimates["original-t4"]["seconds"] == pytest.approx(9.7 * 3600, rel=0.2)  # as long as it did take
    assert estimates["lora-16bit"]["card"] == "L4" and estimates["t4"]["peak_gib"] < 7.2


def test_recipes_leave_time_and_memory_to_the_estimate() -> None:
    figure = re.compile(r"\b(GiB|hours?|minutes|times|half|third|fifth|faster|slower)\b|\d %")
    for recipe in map(load_recipe, list_recipes()):
        assert outlook(recipe) is None or not figure.search(f"{recipe.description} {recipe.card}"), recipe.name


def test_request_from_a_file(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "তথ্য.csv"
    rows = "\n".join(f"ঘুম,রাত জাগা {i},রাতে ঘুম আসে না {i} দিন ধরে,আজ রাতে {i} মিনিট হাঁটুন; আমরা পাশে আছি।" for i in range(12))
    file.write_text(f"Topics,Question-Title,Questions,Answers\n{rows}\n", encoding="utf-8")
    request = finetune_request("demo", str(tiny_base), str(file), limit=5, overrides={"epochs": "2"}, stop_after="90s")
    assert (request.output, request.stop_after, len(request.examples)) == (Path("adapters/demo-base"), 90.0, 5)
    assert request.base == str(tiny_base.resolve()) and request.base_folder is None
    assert plan(request).recipe.epochs == 2


def test_rows_that_do_not_fit_are_dropped_whole(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    long = "অনেক কথা জমে আছে। বলার মতো কেউ নেই। " * 60
    file.write_text(
        f"Questions,Answers\nঘুম আসে না কেন?,আজ একটু হাঁটুন। পাশে আছি।\n{long},শুনছি। সব বলুন আমাকে।\n", encoding="utf-8"
    )
    request = finetune_request("demo", str(tiny_base), str(file))
    assert len(request.examples) == 1
    assert plan(request).longest <= load_recipe("demo").max_tokens


def test_each_reply_of_chat_data_is_trained_on(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = ["মন খারাপ।", "কী হয়েছে?", "চাকরি গেছে।", "খুব কঠিন সময়।"]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps({"messages": t}) + "\n" for t in (turns, turns[:2])), encoding="utf-8")
    ask = partial(finetune_request, "demo", str(tiny_base), str(data), tmp_path / "out")
    with caplog.at_level("INFO", "bnbench.finetune"):
        last, every = plan(ask()), plan(ask(overrides={"supervise": "all"}))
    assert "every reply is trained on: 1 of 2 rows have several turns" in caplog.text
    answer = len(Prompter.load(every.base).answer(said[1]))
    assert sum(r.supervised for r in every.rows) == sum(r.supervised for r in last.rows) + answer
    assert last.identity()["recipe"]["supervise"] == "last" != every.identity()["recipe"]["supervise"]
    with pytest.raises(RecipeError, match="did you mean 'all'"):
        ask(overrides={"supervise": "al"})
