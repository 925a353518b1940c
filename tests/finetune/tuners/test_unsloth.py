"""The tuner "unsloth" around a stand-in for the package: Unsloth itself needs a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bnbench.errors import MissingExtraError, RecipeError
from bnbench.finetune import FinetuneRequest, finetune, load_recipe, plan
from bnbench.finetune.engine.collate import IGNORED
from bnbench.finetune.tuners.unsloth import UnslothTuner
from bnbench.models.loading import Device

planning = import_module("bnbench.finetune.plan")
Request = Callable[..., FinetuneRequest]
PLAIN = {
    "quantisation": "none",
    "precision": "auto",
    "dropout": "0",
    "packing": "false",
    "batch_size": "2",
    "accumulate": "2",
}


class Stand:
    """Unsloth's two functions by transformers and PEFT, noisy as it is; notes arguments and batches."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.batches: list[dict[str, Any]] = []

    def from_pretrained(self, **given: Any) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        print("==((====))==  Unsloth")
        self.calls.append(("from_pretrained", given))
        model = AutoModelForCausalLM.from_pretrained(given["model_name"])
        model.register_forward_pre_hook(lambda module, args, kwargs: self.batches.append(kwargs), with_kwargs=True)
        return model, AutoTokenizer.from_pretrained(given["model_name"])

    def get_peft_model(self, model: Any, **given: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        self.calls.append(("get_peft_model", given))
        shape = {k: v for k, v in given.items() if k not in ("use_gradient_checkpointing", "random_state")}
        return get_peft_model(model, LoraConfig(**shape, task_type="CAUSAL_LM"))


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand()
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=made, __spec__=object()))
    monkeypatch.setattr(UnslothTuner, "check", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    return made


def test_trains_our_rows_as_the_tuner_lora_does(
    request_for: Request, stand: Stand, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = finetune(request_for("ours", rows=6, overrides=PLAIN))
    request = request_for(
        "theirs", rows=6, overrides={**PLAIN, "tuner": "unsloth"}, base="demo", base_folder=tiny_base, revision="v1"
    )
    theirs = finetune(request)
    assert [p.loss for p in theirs.curve] == pytest.approx([p.loss for p in ours.curve], rel=1e-5)
    expected, found = (load_file(r.output / "adapter_model.safetensors") for r in (ours, theirs))
    assert all(torch.allclose(found[name], value, atol=1e-4) for name, value in expected.items())
    config = json.loads((theirs.output / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("demo", "v1")
    assert capsys.readouterr().out == ""
    labels = stand.batches[-1]["labels"]
    rows = {row.ids: row.labels for row in plan(request).rows}
    for ids, line in zip(stand.batches[-1]["input_ids"].tolist(), labels.tolist(), strict=True):
        length = max(len(r) for r in rows if tuple(ids[: len(r)]) == r)
        assert line == [*rows[tuple(ids[:length])], *[IGNORED] * (len(line) - length)]


def test_settings_of_the_recipe_are_unsloth_s(request_for: Request, stand: Stand, tiny_base: Path) -> None:
    asked = {"targets": "all-linear", "max_tokens": "777", "checkpointing": "none", "seed": "7"}
    finetune(request_for(rows=4, overrides={**PLAIN, "tuner": "unsloth", **asked, "epochs": "1", "alpha": "9"}))
    (loading, loaded), (adapting, adapted) = stand.calls
    assert (loading, adapting) == ("from_pretrained", "get_peft_model")
    assert loaded == {
        "model_name": str(tiny_base), "max_seq_length": 777, "dtype": torch.float32, "load_in_4bit": False,
        "use_gradient_checkpointing": False, "trust_remote_code": False, "random_state": 7,
        "use_safetensors": True,
    }  # fmt: skip
    assert (adapted["r"], adapted["lora_alpha"], adapted["lora_dropout"], adapted["bias"]) == (4, 9, 0.0, "none")
    assert len(adapted["target_modules"]) == 7 and "down_proj" in adapted["target_modules"]
    assert adapted["use_gradient_checkpointing"] is False and adapted["random_state"] == 7


@pytest.mark.no_cover
def test_stopped_and_gone_on_with(request_for: Request, stand: Stand) -> None:
    settings = {**PLAIN, "tuner": "unsloth", "epochs": "2"}
    whole = finetune(request_for("whole", rows=8, overrides=settings))
    first = finetune(request_for("cut", rows=8, overrides=settings, stop_after=0.0))
    assert not first.finished and first.steps == 1
    again = finetune(request_for("cut", rows=8, overrides=settings))
    assert again.resumed_from == 1 and again.curve == whole.curve
    written = [(r.output / "adapter_model.safetensors").read_bytes() for r in (whole, again)]
    assert written[0] == written[1]


def test_refused_before_anything_is_loaded(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for(recipe="unsloth", overrides={})
    monkeypatch.setattr(planning, "resolve_base", lambda *_, **__: pytest.fail("the base was looked for"))
    with pytest.raises(RecipeError, match='tuner "unsloth" needs an NVIDIA GPU'):
        plan(request)
    monkeypatch.setattr(Device, "of", lambda wanted: Device("cuda", "Tesla T4", (7, 5), 15 * 2**30))
    monkeypatch.setitem(sys.modules, "unsloth", None)
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="unsloth is not installed: pip install unsloth"):
        plan(request)


def test_dry_run_needs_neither(request_for: Request) -> None:
    assert plan(request_for(recipe="unsloth", overrides={}), weights=False).recipe.tuner == "unsloth"


def test_what_unsloth_cannot_do_is_named() -> None:
    with pytest.raises(
        RecipeError, match=r'tuner "unsloth" needs validate_every = 0, packing = false, memory_gib = 0\.0'
    ):
        load_recipe("t4", {"tuner": "unsloth", "memory_gib": "13"})
    with pytest.raises(RecipeError, match="needs double_quantisation = true, checkpointing = non-reentrant"):
        load_recipe("unsloth", {"double_quantisation": "false", "checkpointing": "reentrant"})
