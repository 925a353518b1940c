from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bnbench.errors import TrainingError
from bnbench.finetune import FinetuneRequest, FinetuneResult, Plan, finetune, plan
from bnbench.finetune.engine.collate import IGNORED
from bnbench.finetune.recipes import Recipe

Request = Callable[..., FinetuneRequest]


def nll_per_row(planned: Plan) -> tuple[list[float], list[int]]:
    """Summed nats and supervised tokens of each row under the bare base, one row at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(planned.base.folder)
    sums, counts = [], []
    for row in planned.rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        sums.append(float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")))
        counts.append(int((labels != IGNORED).sum()))
    return sums, counts


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_loss_is_over_all_supervised_tokens_of_the_step(request_for: Request) -> None:
    request = request_for(rows=4, overrides={"batch_size": "1", "accumulate": "4", "epochs": "1", "dropout": "0"})
    sums, counts = nll_per_row(plan(request))
    assert max(counts) > 3 * min(counts)
    mean_of_means = sum(s / c for s, c in zip(sums, counts, strict=True)) / 4
    first = finetune(request).curve[0]
    assert first.loss == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert abs(first.loss - mean_of_means) > 1e-3


@pytest.mark.no_cover
def test_accumulating_gives_the_gradients_of_one_batch(request_for: Request) -> None:
    plain = {"dropout": "0", "epochs": "2", "save_every": "100", "warmup": "0.2"}  # at once, Adam enlarges roundings
    one = finetune(request_for("one", overrides={**plain, "batch_size": "4", "accumulate": "1"}))
    many = finetune(request_for("many", overrides={**plain, "batch_size": "1", "accumulate": "4"}))
    assert [p.step for p in one.curve] == list(range(1, 13))
    for a, b in zip(one.curve, many.curve, strict=True):
        assert (a.loss, a.learning_rate) == (pytest.approx(b.loss, rel=1e-4), b.learning_rate)
    for name, value in weights(one.output).items():
        assert torch.allclose(value, weights(many.output)[name], atol=2e-5), name


def test_what_the_folder_holds(request_for: Request, tiny_base: Path) -> None:
    request = request_for(base="demo", base_folder=tiny_base, revision="v1")
    result = finetune(request)
    assert "18 of 18 steps" in str(result) and str(request.output) in str(result)
    assert result.summary()["loss_at_start"] == pytest.approx(result.curve[0].loss)
    assert result.finished and result.steps == result.total_steps == 18 and result.peak_memory_bytes is None
    names = {f.name for f in request.output.iterdir()}
    assert names == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "training.json",
        "loss.csv",
        "loss.svg",
        "checkpoints",
    }
    config = json.loads((request.output / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("demo", "v1")
    assert config["target_modules"] == sorted(config["target_modules"])
    record = json.loads((request.output / "training.json").read_text(encoding="utf-8"))
    assert record["examples"] == [e.id for e in request.examples]
    assert record["data"]["fingerprint"] == "f00d" and record["recipe"]["r"] == 4 and record["seed"] == 42
    assert record["parameters"]["trainable"] == sum(v.numel() for v in weights(request.output).values())
    assert {"torch", "transformers", "peft"} <= set(record["packages"]) and record["command"] == request.command
    with (request.output / "loss.csv").open(encoding="utf-8", newline="") as file:
        rows = [(int(r["step"]), float(r["loss"]), float(r["learning_rate"])) for r in csv.DictReader(file)]
    assert rows == [(p.step, p.loss, p.learning_rate) for p in result.curve] == [tuple(p) for p in record["loss"]]


def test_it_learns_and_the_adapter_loads(request_for: Request, tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    request = request_for(overrides={"epochs": "12", "save_every": "100", "learning_rate": "5e-3"})
    curve = finetune(request).curve
    assert sum(p.loss for p in curve[-6:]) < 0.8 * sum(p.loss for p in curve[:6])
    ids = torch.tensor([[5, 6, 7, 8]])
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, request.output)
    assert not torch.allclose(adapted(ids).logits, before, atol=1e-2)
    with adapted.disable_adapter():
        assert torch.equal(adapted(ids).logits, before)


@pytest.mark.no_cover
@pytest.mark.parametrize("recipe", ["original-t4", "t4"])
def test_four_bit_recipes_train_on_the_cpu_with_float32_adapters(request_for: Request, recipe: str) -> None:
    result = finetune(request_for(recipe=recipe, rows=8, overrides={"r": "8", "batch_size": "1", "accumulate": "4"}))
    assert result.finished and len(result.curve) == 6
    assert all(v.dtype == torch.float32 for v in weights(result.output).values())
    assert any(v.abs().max() > 0 for n, v in weights(result.output).items() if "lora_B" in n)


@pytest.mark.no_cover
@pytest.mark.parametrize("recipe", ["original-t4", "t4"])
def test_frozen_weights_stay_in_16_bits(request_for: Request, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    """PEFT's `prepare_model_for_kbit_training` copies embeddings, head and norms to float32: 2.1 GB of Llama-3.1."""
    from bnbench.finetune.engine.step import StepTrainer

    found: dict[str, tuple[bool, torch.dtype]] = {}
    train = StepTrainer.train

    def noting(self: Any, **given: Any) -> Any:
        done = train(self, **given)
        found.update({name: (p.requires_grad, p.dtype) for name, p in self.model.named_parameters()})
        return done

    monkeypatch.setattr(StepTrainer, "train", noting)
    finetune(request_for(recipe=recipe, rows=4, overrides={"precision": "bfloat16", "epochs": "1"}))
    frozen = {dtype for trained, dtype in found.values() if not trained}
    assert frozen == {torch.bfloat16, torch.uint8}  # NF4 is packed in bytes
    assert {dtype for trained, dtype in found.values() if trained} == {torch.float32}
    assert any("embed_tokens" in name for name in found) and any("norm" in name for name in found)


def test_full_text_loss_counts_the_prompt(request_for: Request) -> None:
    request = request_for(rows=4, overrides={"loss": "full-text", "epochs": "1", "dropout": "0"})
    planned = plan(request)
    sums, counts = nll_per_row(planned)
    assert sum(counts) == sum(len(r.ids) - 1 for r in planned.rows)
    assert finetune(request).curve[0].loss == pytest.approx(sum(sums) / sum(counts), rel=1e-5)


def test_longest_rows_are_tried_first(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnbench.finetune.engine.step import StepTrainer

    shapes: list[tuple[int, ...]] = []

    def no_room(self: Any, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
        shapes.append(tuple(inputs.ids.shape))
        assert model.training and model.is_gradient_checkpointing  # or the trial would need other memory than a step
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(StepTrainer, "compute_loss", no_room)
    request = request_for(overrides={"checkpointing": "non-reentrant"})
    planned = plan(request)
    longest = max(planned.rows, key=lambda r: len(r.ids))
    with pytest.raises(
        TrainingError, match=rf"longest rows, tried first: 2 at once, .*{planned.longest} tokens \(id {longest.id}\)"
    ):
        finetune(request)
    assert shapes == [(2, planned.longest)]


def test_trying_the_longest_leaves_no_trace(
    request_for: Request, undisturbed: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnbench.finetune.engine.step import StepTrainer

    monkeypatch.setattr(StepTrainer, "try_largest", lambda *_: None)
    assert finetune(request_for()).curve == undisturbed.curve


def test_loss_that_is_no_number(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnbench.finetune.engine.step import StepTrainer

    compute = StepTrainer.compute_loss
    monkeypatch.setattr(StepTrainer, "compute_loss", lambda self, *a, **k: compute(self, *a, **k) * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 1: lower learning_rate"):
        finetune(request_for())


def test_a_training_of_one_step_trains(request_for: Request) -> None:
    result = finetune(request_for(rows=4, overrides={"epochs": "1"}))
    assert (result.total_steps, result.curve[0].learning_rate) == (1, 2e-3)
    assert any(v.any() for n, v in weights(result.output).items() if "lora_B" in n)


def test_an_adapter_that_did_not_change_is_not_done(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "count_warmup", lambda *_: 1)  # the only step at rate 0
    request = request_for(rows=4, overrides={"epochs": "1"})
    with pytest.raises(TrainingError, match="as it began, every lora_B zero"):
        finetune(request)
    assert not (request.output / "training.json").exists()


def test_nothing_is_printed_to_stdout(request_for: Request, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(request_for(rows=4))
    out, err = capsys.readouterr()
    assert out == "" and "train: 3/3" in err
