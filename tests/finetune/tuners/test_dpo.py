from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bnbench.data.corpus import make_example
from bnbench.data.pairs import Pair
from bnbench.errors import PartialRunError, RecipeError, RunError
from bnbench.finetune import FinetuneRequest, FinetuneResult, finetune, finetune_request, load_recipe, plan
from bnbench.finetune.engine.collate import IGNORED, Row
from bnbench.finetune.engine.processes import Stop
from bnbench.finetune.memory import LLAMA_8B, estimate
from bnbench.finetune.tuners.dpo import measure_gain
from bnbench.models.prompts import Prompter
from tests.finetune.conftest import MESSAGES, make_request

Make = Callable[..., FinetuneRequest]
SHORT = {
    "quantisation": "none",
    "optimizer": "adamw_torch",
    "checkpointing": "none",
    "epochs": "2",
    "accumulate": "4",
    "r": "4",
    "learning_rate": "5e-3",
    "save_every": "2",
    "warmup": "0",
}


def make_pairs(count: int, start: int = 0) -> tuple[Pair, ...]:
    def example(i: int, reply: str) -> Any:
        return make_example("মানসিক স্বাস্থ্য", "", f"{MESSAGES[i % 4]} ({i})", reply)

    return tuple(
        Pair(example(i, f"আপনার কষ্টটা বুঝতে পারছি। পাশে আছি {i % 2}।"), example(i, "এত ভাবার কী আছে! কাজে মন দিন।"))
        for i in range(start, start + count)
    )


@pytest.fixture
def pairs_for(tiny_base: Path, tmp_path: Path) -> Make:
    return lambda output="out", **changes: request_of(tiny_base, tmp_path / output, **changes)


def request_of(base: Path, output: Path, overrides: dict[str, str] | None = None, **changes: Any) -> FinetuneRequest:
    given = {"examples": (), "pairs": make_pairs(12), "held_out": make_pairs(12, 100), "recipe": "dpo", **changes}
    return replace(make_request(base, output), overrides={**SHORT, **(overrides or {})}, **given)


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """The 6 steps of the default request, never stopped; its folder is read only."""
    return finetune(request_of(tiny_base, tmp_path_factory.mktemp("trained") / "out"))


def trainer_of(request: FinetuneRequest) -> Any:
    from bnbench.finetune.engine.step import Monitor
    from bnbench.finetune.tuners.adapter import load_base
    from bnbench.finetune.tuners.dpo import PreferenceTuner

    job = plan(request)
    return PreferenceTuner().trainer(job, load_base(job), Monitor(job))


def test_trl_trains_on_exactly_our_ids(pairs_for: Make) -> None:
    request = pairs_for(overrides={"batch_size": "3"})
    planned = plan(request)
    prompts = Prompter.load(planned.base)
    wanted = [prompts.training(e) for p in request.pairs for e in (p.chosen, p.rejected)]
    found = []
    for batch in trainer_of(request).get_train_dataloader():
        rows = []
        for ids, shown, counted in zip(
            batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"].bool(), strict=True
        ):
            assert (ids[~shown] == planned.pad_id).all() and not counted[~shown].any()
            rows.append((tuple(ids[shown].tolist()), tuple(counted[shown].tolist())))
        replies = [prompts.decode(ids[counted.index(True) :]) for ids, counted in rows]
        assert all(reply.startswith("আপনার কষ্টটা") for reply in replies[:3])  # chosen first, then rejected
        assert replies[3:] == ["এত ভাবার কী আছে! কাজে মন দিন।"] * 3
        prompted = [ids[: counted.index(True)] for ids, counted in rows]
        assert prompted[:3] == prompted[3:]
        found += rows
    assert sorted(found) == sorted((a + b, (False,) * len(a) + (True,) * len(b)) for a, b in wanted)
    assert all(ids.count(prompts.bos_id) == 1 and ids[0] == prompts.bos_id for ids, _ in found)
    assert all(ids[-1] in prompts.stop_ids and counted[-1] for ids, counted in found)
    assert planned.pad_id not in prompts.stop_ids


def test_no_second_model_and_no_second_adapter(pairs_for: Make) -> None:
    trainer = trainer_of(pairs_for())
    assert trainer.ref_model is None and list(trainer.model.peft_config) == ["default"]
    assert not trainer.args.bf16 and not trainer.args.fp16 and trainer.data_collator.max_length is None
    assert trainer.processing_class is None


@pytest.mark.parametrize(("dtype", "flags"), [("bfloat16", (True, False)), ("float16", (False, True))])
def test_sixteen_bit_arithmetic_is_the_job_s(
    pairs_for: Make, monkeypatch: pytest.MonkeyPatch, dtype: str, flags: tuple[bool, bool]
) -> None:
    import trl

    from bnbench.finetune.tuners.dpo import PreferenceTuner

    def seen(self: Any, args: Any, **_: Any) -> None:
        raise InterruptedError(args)  # fp16's scaler is refused on a CPU

    monkeypatch.setattr(trl.DPOTrainer, "__init__", seen)
    planned = plan(pairs_for())
    planned = replace(planned, precision=replace(planned.precision, dtype_name=dtype))
    with pytest.raises(InterruptedError) as caught:
        PreferenceTuner().trainer(planned, torch.nn.Module(), None)
    (arguments,) = caught.value.args
    assert (arguments.bf16, arguments.fp16) == flags and arguments.max_length is None
    assert arguments.gradient_checkpointing_kwargs == {"use_reentrant": False} and arguments.n_gpu <= 1


def test_the_chosen_reply_gains_on_other_messages(trained: FinetuneResult) -> None:
    gain = trained.gain
    assert trained.curve[0].loss == pytest.approx(math.log(2), abs=1e-6)  # policy and reference begin as one
    assert trained.curve[-1].loss < 0.6 and trained.steps == 6
    assert gain is not None and (gain.pairs, gain.messages) == (12, 12)
    assert gain.margin > 0.1 and gain.low > 0 and gain.p_value < 0.01 and gain.won == 1
    assert "12 held-out pairs of 12 messages: reward margin 0 → +" in str(trained) and "nats a pair" in str(trained)
    record = json.loads((trained.output / "training.json").read_text(encoding="utf-8"))
    assert record["gain"] == asdict(gain) and record["recipe"]["beta"] == 0.1
    assert len(record["examples"]) == 24 and "trl" in record["packages"]
    kept = {f.name for f in (trained.output / "checkpoints" / "checkpoint-6").iterdir()}
    assert not {"tokenizer.json", "ref"} & kept and not (trained.output / "checkpoints" / "README.md").exists()


def test_the_margin_is_what_transformers_and_peft_say(trained: FinetuneResult, tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    planned = plan(request_of(tiny_base, trained.output))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), trained.output)

    def log_p(row: Row) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        return -float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))

    adapter = [log_p(row) for row in planned.held_out]
    with model.disable_adapter():
        base = [log_p(row) for row in planned.held_out]
    change = np.array(adapter) - np.array(base)
    assert trained.gain is not None
    assert trained.gain.chosen == pytest.approx(change[::2].mean(), rel=1e-4)
    assert trained.gain.rejected == pytest.approx(change[1::2].mean(), rel=1e-4)
    assert trained.gain.margin == pytest.approx(0.1 * (change[::2] - change[1::2]).mean(), rel=1e-4)


def same(a: FinetuneResult, b: FinetuneResult) -> bool:
    files = ("adapter_model.safetensors", "adapter_config.json", "loss.csv")
    return a.gain == b.gain and all((a.output / f).read_bytes() == (b.output / f).read_bytes() for f in files)


@pytest.mark.no_cover
def test_stopped_and_gone_on_with_it_ends_with_the_same_bytes(
    pairs_for: Make, trained: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finetune(pairs_for(stop_after=0.0))
    assert (first.finished, first.steps, first.gain) == (False, 1, None)
    ask, asked = Stop.__call__, []

    def terminate(self: Stop) -> bool:
        asked.append(None)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return ask(self)

    monkeypatch.setattr(Stop, "__call__", terminate)
    with pytest.raises(PartialRunError, match="stopped by SIGTERM: step 3 is saved"):
        finetune(pairs_for())
    monkeypatch.undo()
    last = finetune(pairs_for())
    assert last.finished and last.resumed_from == 3 and same(last, trained)
    again = finetune(pairs_for())
    assert again.gain == trained.gain and str(trained.gain) in str(again)


@pytest.mark.no_cover
def test_checkpointed_layers_give_the_same_adapter(pairs_for: Make, trained: FinetuneResult) -> None:
    result = finetune(pairs_for(overrides={"checkpointing": "non-reentrant"}))
    before = load_file(trained.output / "adapter_model.safetensors")
    for name, value in load_file(result.output / "adapter_model.safetensors").items():
        assert torch.allclose(value, before[name], atol=1e-5), name


@pytest.mark.no_cover
def test_four_bit_base_under_autocast_has_a_float32_adapter(pairs_for: Make) -> None:
    card = {"quantisation": "nf4", "precision": "bfloat16", "optimizer": "paged_adamw_8bit", "r": "8"}
    request = pairs_for(overrides={**card, "checkpointing": "non-reentrant", "epochs": "1"})
    trained = [p for p in trainer_of(request).model.parameters() if p.requires_grad]
    assert trained and all(p.dtype == torch.float32 for p in trained)  # TRL makes it bfloat16
    result = finetune(request)
    assert all(v.dtype == torch.float32 for v in load_file(result.output / "adapter_model.safetensors").values())
    assert result.gain is not None and result.gain.margin > 0


def test_nothing_held_out(pairs_for: Make) -> None:
    result = finetune(pairs_for(held_out=(), pairs=make_pairs(4), overrides={"epochs": "1"}))
    assert "no pairs were held out" in str(result) and result.summary().get("gain") is None
    assert json.loads((result.output / "training.json").read_text(encoding="utf-8")).get("gain") is None
    assert finetune(pairs_for(held_out=(), pairs=make_pairs(4), overrides={"epochs": "1"})).gain is None


def test_gain_resamples_messages() -> None:
    base = np.zeros((12, 2))
    adapter = np.array([[2.0, 0.0]] * 6 + [[0.0, 1.0]] * 6)
    pairs, one_message_each_half = [measure_gain(base, adapter, m, 0.5) for m in (range(12), [0] * 6 + [1] * 6)]
    assert (pairs.margin, pairs.won, pairs.chosen, pairs.rejected) == (0.25, 0.5, 1.0, 0.5)
    assert one_message_each_half.low < -0.5 and one_message_each_half.high > 1.0  # whole halves come and go
    assert pairs.low > one_message_each_half.low and one_message_each_half.messages == 2


def test_plan_counts_pairs(pairs_for: Make) -> None:
    planned = plan(pairs_for())
    assert "12 pairs and 12 held out" in str(planned) and (planned.steps, len(planned.rows)) == (6, 24)
    assert (planned.summary()["rows"], planned.summary()["held_out_rows"]) == (24, 24)


def test_estimate_counts_both_rows_and_the_reference() -> None:
    recipe = load_recipe("dpo")
    rows = [Row("", (0,) * 500, (0,) * 500)] * 2 + [Row("", (0,) * 400, (0,) * 400)] * 6
    pairs = estimate(LLAMA_8B, recipe, rows, 1, 100, gpu="H100")
    alone = replace(recipe, tuner="qlora", own={})
    rows_alone = estimate(LLAMA_8B, alone, rows, 1, 100, gpu="H100", fused=False)
    assert (pairs.largest_pass, rows_alone.largest_pass) == (1000, 500)
    assert pairs.terms["activations kept"] == 2 * rows_alone.terms["activations kept"]
    assert pairs.terms["one layer or loss chunk"] > 2 * rows_alone.terms["one layer or loss chunk"] - 2**30
    assert pairs.seconds is not None and rows_alone.seconds is not None and pairs.seconds > 1.3 * rows_alone.seconds


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("t4", "beta", "0.1", 'beta is 0.1, and only the tuner "dpo" has one'),
        ("dpo", "beta", "0", "needs beta above 0, such as 0.1"),
        ("dpo", "beta", "-1", "beta is -1.0: it must lie between 0 and 100"),
        ("dpo", "packing", "true", "needs packing = false"),
        ("dpo", "loss", "full-text", "needs loss = completion"),
        ("dpo", "dropout", "0.1", "needs dropout = 0.0"),
        ("dpo", "memory_gib", "13", "needs memory_gib = 0.0"),
        ("dpo", "dpo_beta", "0.1", "did you mean 'beta'"),
    ],
)
def test_settings_that_mean_nothing(name: str, key: str, value: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(name, {key: value})


def test_request_reads_pairs_and_holds_the_other_half_out(tiny_base: Path) -> None:
    request = finetune_request("dpo", str(tiny_base), limit=5, overrides={"max_tokens": "100000"})
    assert (len(request.pairs), request.examples) == (5, ()) and len(request.held_out) == 5
    everything = finetune_request("dpo", str(tiny_base), overrides={"max_tokens": "100000"})
    assert len(everything.held_out) > 150 and everything.held_out[:5] == request.held_out
    with pytest.raises(RecipeError, match='the tuner "lora" trains on examples, and no pairs'):
        plan(replace(request, recipe="demo", overrides={}))
    with pytest.raises(RecipeError, match='the tuner "dpo" trains on pairs, and no examples'):
        plan(replace(request, pairs=(), held_out=()))


@pytest.fixture(scope="module")
def supervised(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """An adapter of the tuner "lora", to go on with."""
    settings = {"targets": "q_proj,v_proj", "rslora": "true", "dropout": "0", "epochs": "2"}
    return finetune(make_request(tiny_base, tmp_path_factory.mktemp("sft") / "sft", settings, rows=8))


def going_on(pairs_for: Make, supervised: FinetuneResult, output: str = "out", **changes: Any) -> FinetuneRequest:
    return replace(pairs_for(output, **changes), start=supervised.output)


@pytest.mark.no_cover
@pytest.mark.parametrize("settings", [{}, {"quantisation": "nf4", "precision": "bfloat16"}])
def test_the_adapter_that_it_goes_on_with_is_the_reference(
    pairs_for: Make, supervised: FinetuneResult, tiny_base: Path, settings: dict[str, str]
) -> None:
    request = going_on(pairs_for, supervised, overrides=settings)
    planned = plan(request)
    assert (planned.recipe.r, planned.recipe.targets, planned.recipe.rslora) == (4, ("q_proj", "v_proj"), True)
    assert f"goes on with {supervised.output}, which is its reference" in str(planned)
    assert planned.estimate.terms["adapter"] == 2 * planned.estimate.terms["gradients"]
    trainer = trainer_of(request)
    start = load_file(supervised.output / "adapter_model.safetensors")
    held = dict(trainer.model.named_parameters())
    for name, value in start.items():
        for kind in ("default", "ref"):  # to the bit, whatever TRL rounds
            assert torch.equal(held[name.replace(".weight", f".{kind}.weight")].cpu(), value), (name, kind)
    assert {n.split(".")[-2] for n, p in held.items() if p.requires_grad} == {"default"}

    result = finetune(request)
    assert result.curve[0].loss == pytest.approx(math.log(2), abs=1e-6 if not settings else 1e-2)
    assert result.gain is not None and result.gain.margin > 0
    record = json.loads((result.output / "training.json").read_text(encoding="utf-8"))
    assert record["start"] == str(supervised.output) and "start_sha256" in record["identity"]
    assert not (result.output / "ref").exists()
    written = load_file(result.output / "adapter_model.safetensors")
    assert written.keys() == start.keys() and any(not torch.equal(written[n], start[n]) for n in start)


def test_the_gain_is_on_the_adapter_that_it_went_on_with(
    pairs_for: Make, supervised: FinetuneResult, tiny_base: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    request = going_on(pairs_for, supervised)
    result, planned = finetune(request), plan(request)
    sums = []
    for folder in (supervised.output, result.output):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
        sums.append([])
        for row in planned.held_out:
            with torch.no_grad():
                logits = model(torch.tensor([row.ids])).logits[0, :-1]
            labels = torch.tensor(row.labels[1:])
            sums[-1].append(-float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")))
    change = np.array(sums[1]) - np.array(sums[0])
    assert result.gain is not None
    assert result.gain.margin == pytest.approx(0.1 * (change[::2] - change[1::2]).mean(), rel=1e-3)


@pytest.mark.no_cover
def test_gone_on_with_and_stopped_it_ends_with_the_same_bytes(pairs_for: Make, supervised: FinetuneResult) -> None:
    whole = finetune(going_on(pairs_for, supervised, "whole"))
    first = finetune(going_on(pairs_for, supervised, "stopped", stop_after=0.0))
    assert (first.finished, first.steps) == (False, 1)
    last = finetune(going_on(pairs_for, supervised, "stopped"))
    assert last.resumed_from == 1 and same(last, whole)
    with pytest.raises(RunError, match=r"belongs to another training; different: .*start_sha256"):
        finetune(pairs_for("stopped"))


def test_what_cannot_be_gone_on_with(pairs_for: Make, supervised: FinetuneResult, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(RecipeError, match=r'the tuner "lora" begins with a new adapter: --start is for pairs'):
        plan(replace(going_on(pairs_for, supervised), recipe="demo", overrides={}))
    odd = tmp_path / "odd"
    shutil.copytree(supervised.output, odd)
    config = json.loads((odd / "adapter_config.json").read_text(encoding="utf-8"))
    (odd / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}), encoding="utf-8")
    with pytest.raises(
        RecipeError, match="only a LoRA of plain linear layers can be gone on with, because of its use_dora"
    ):
        plan(replace(pairs_for(), start=odd))


def test_a_request_takes_the_base_of_the_adapter(supervised: FinetuneResult, tiny_base: Path) -> None:
    request = finetune_request("dpo", start=supervised.output, limit=2, overrides={"max_tokens": "100000"})
    assert request.base == str(tiny_base) and request.start == supervised.output
    bundled = finetune_request("dpo", start=Path("bnbench-demo/adapter"), limit=2)  # as `evaluate --adapter` takes it
    assert bundled.base == "bnbench-demo/base" and (bundled.start / "adapter_config.json").is_file()
