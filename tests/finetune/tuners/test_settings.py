"""Each setting of a recipe changes what it names, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bnbench.errors import RecipeError
from bnbench.finetune import FinetuneRequest, finetune, load_recipe, plan
from bnbench.finetune.engine.collate import Row, make_pass, pack
from bnbench.finetune.engine.layers import add_noise
from bnbench.finetune.engine.step import Monitor, StepTrainer, prepare
from bnbench.finetune.tuners.adapter import AdapterTuner, adapt, load_base
from bnbench.records import TrainingSummary
from bnbench.reports.panels import training_facts

Request = Callable[..., FinetuneRequest]
ONE_STEP = {"epochs": "1", "dropout": "0", "warmup": "0", "schedule": "constant_with_warmup"}


def trainer_of(request: FinetuneRequest) -> Any:
    job = plan(request)
    return AdapterTuner().trainer(job, load_base(job), Monitor(job))


@pytest.mark.parametrize("optimizer", ["adamw_torch", "paged_adamw_8bit"])
def test_lora_plus_gives_b_peft_s_rate(request_for: Request, optimizer: str) -> None:
    from peft.optimizers import create_loraplus_optimizer

    settings = {"lora_plus": "16", "weight_decay": "0.07", "optimizer": optimizer}
    trainer = trainer_of(request_for(overrides=settings))
    trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    theirs = create_loraplus_optimizer(trainer.model, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=16.0)
    assert rates == {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    assert set(rates.values()) == {2e-3, 16 * 2e-3}
    decayed = {
        id(p) for group in trainer.optimizer.param_groups if group["weight_decay"] == 0.07 for p in group["params"]
    }
    assert decayed == rates.keys()


def test_the_optimizer_does_not_wait_for_the_card(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitsandbytes does so after each matrix, all in one stream."""
    waited = list[Any]()
    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", waited.append)
    trainer = trainer_of(request_for(overrides={"optimizer": "paged_adamw_8bit"}))
    optimizer = trainer.create_optimizer()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not waited and not any(torch.equal(p, old) for p, old in zip(trained, before, strict=True))


def test_lora_plus_trains_b_faster_and_logs_the_rate_of_a(request_for: Request) -> None:
    found = {}
    for ratio in ("1", "4"):
        result = finetune(request_for(ratio, rows=4, overrides={**ONE_STEP, "lora_plus": ratio, "weight_decay": "0"}))
        assert [p.learning_rate for p in result.curve] == [2e-3]
        found[ratio] = load_file(result.output / "adapter_model.safetensors")
    for name, value in found["1"].items():
        if "lora_B" in name:  # from zero, by the rate
            assert torch.allclose(found["4"][name], 4 * value, rtol=1e-4, atol=1e-7), name
        else:
            assert torch.equal(found["4"][name], value), name


def test_weight_decay_shrinks_a(request_for: Request) -> None:
    found = [
        load_file(
            finetune(request_for(decay, rows=4, overrides={**ONE_STEP, "weight_decay": decay})).output
            / "adapter_model.safetensors"
        )
        for decay in ("0", "1")
    ]
    request = request_for(rows=4, overrides=ONE_STEP)
    torch.manual_seed(42)
    before = {
        n: p for n, p in adapt(load_base(plan(request)), plan(request).recipe).named_parameters() if "lora_A" in n
    }
    assert before
    for name, value in before.items():
        key = name.replace(".default", "")
        # AdamW: A − rate · decay · A, apart from the step (Loshchilov & Hutter 2019).
        assert torch.allclose(found[1][key], found[0][key] - 2e-3 * value, atol=1e-6), name


def test_gradients_are_clipped_at_max_grad_norm(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def noting(self: Any, *given: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([g.reshape(-1) for g in gradients]).norm()))
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    for most in ("0", "0.5"):
        finetune(request_for(most, rows=4, overrides={**ONE_STEP, "max_grad_norm": most}))
    free, clipped = norms
    assert free > 0.6 and clipped == pytest.approx(0.5, rel=1e-3)


def test_noise_is_neftune_s_and_only_in_training(request_for: Request) -> None:
    from transformers.integrations.neftune import neftune_post_forward_hook

    job = plan(request_for(rows=4))
    model = adapt(load_base(job), job.recipe)
    prepare(model, "cpu")
    embedding = model.get_base_model().get_input_embeddings()
    seen: list[torch.Tensor] = []
    add_noise(model, 5.0)
    embedding.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    long, short = (Row("", tuple(range(10, 10 + n)), tuple(range(10, 10 + n))) for n in (90, 10))
    model.eval()(one_pass=make_pass([long, short]))
    torch.manual_seed(3)
    model.train()(one_pass=make_pass([long, short]))
    torch.manual_seed(3)
    model(one_pass=make_pass([long]))
    clean, packed, alone = seen
    noise, width = packed - clean, clean.shape[-1]
    for part, length in ((noise[:, :90], 90), (noise[:, 90:], 10)):
        assert 0.9 < float(part.abs().max()) / (5 / math.sqrt(length * width)) <= 1 + 1e-5
    torch.manual_seed(3)
    embedding.neftune_noise_alpha = 5.0
    expected = neftune_post_forward_hook(embedding, (), clean[:, :90].clone())
    assert torch.allclose(alone, expected, atol=1e-6)


def test_noise_changes_a_training_and_is_the_same_each_time(request_for: Request) -> None:
    noisy = {**ONE_STEP, "neftune": "5", "epochs": "2", "save_every": "1"}
    one, again = (finetune(request_for(name, rows=8, overrides=noisy)) for name in ("one", "again"))
    assert one.curve == again.curve != finetune(request_for("plain", rows=8, overrides=noisy | {"neftune": "0"})).curve


def test_an_epoch_s_samples_fill_the_rows(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[list[int]] = []
    batches = StepTrainer.get_batch_samples

    def noting(self: Any, *given: Any) -> Any:
        passes, tokens = batches(self, *given)
        steps.append([length for one in passes for p in one for length in p.lengths])
        return passes, tokens

    monkeypatch.setattr(StepTrainer, "get_batch_samples", noting)
    full = {
        "packing": "true",
        "packing_over": "epoch",
        "tokens_per_row": "400",
        "batch_size": "1",
        "accumulate": "2",
        "epochs": "2",
    }
    request = request_for(rows=22, overrides=full)
    planned = plan(request)
    packs = pack(planned.rows, 400)
    assert sorted(row.id for one in packs for row in one) == sorted(row.id for row in planned.rows)
    assert all(sum(len(row.ids) for row in one) <= 400 for one in packs) and len(packs) < 22 / 2
    assert planned.steps == 2 * math.ceil(len(packs) / 2) and "steps of 2 full rows" in str(planned)
    result = finetune(request)
    assert result.steps == planned.steps and planned.estimate.largest_pass == 400
    lengths, half = sorted(len(row.ids) for row in planned.rows), planned.steps // 2
    for epoch in (steps[:half], steps[half:]):
        assert sorted(n for step in epoch for n in step) == lengths
    assert steps[:half] != steps[half:]
    with pytest.raises(RecipeError, match='packing_over is "epoch", and packing is false'):
        load_recipe("demo", {"packing_over": "epoch"})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rslora", "true", "lora, rsLoRA, r 4"),
        ("dora", "true", "lora, DoRA, r 4"),
        ("lora_plus", "16", "seed 42, LoRA+ 16"),
        ("neftune", "5", "seed 42, NEFTune 5"),
        ("supervise", "all", "every reply of a conversation"),
    ],
)
def test_each_is_in_the_signature_and_on_the_card(key: str, value: str, said: str) -> None:
    plain, changed = load_recipe("demo", {"r": "4"}), load_recipe("demo", {"r": "4", key: value})
    assert changed.sha256 != plain.sha256

    def facts(recipe: dict[str, Any]) -> str:
        summary = TrainingSummary(
            recipe=recipe, rows=1, steps=1, seconds=1.0, precision={}, peak_memory_bytes=None, device="cpu", gain=None,
            loss_at_start=1.0, loss_at_end=1.0, loss=((1, 1.0),),
        )  # fmt: skip
        return str(training_facts(summary))

    assert said in facts(changed.to_dict()) and said not in facts(plain.to_dict())


@pytest.mark.parametrize("settings", [{"dora": "true"}, {"rslora": "true", "r": "64"}])
def test_what_is_written_is_what_peft_loads(request_for: Request, tiny_base: Path, settings: dict[str, str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    request = request_for(rows=8, overrides={**settings, "dropout": "0", "validate_every": "1"})
    request = replace(request, validation=request.examples[:2])
    found = finetune(request).validation
    assert found is not None
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), request.output)
    assert model.peft_config["default"].use_dora == ("dora" in settings)
    nats = 0.0
    for row in plan(request).validation:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum"))
    assert nats / math.log(2) / found.characters == pytest.approx(found.best[1], rel=1e-5)
