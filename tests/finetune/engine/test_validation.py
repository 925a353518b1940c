"""Validation while a training runs: what is measured, what is kept, and that a kill changes nothing."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bnbench.data.corpus import Example
from bnbench.errors import PartialRunError
from bnbench.finetune import FinetuneRequest, FinetuneResult, finetune, finetune_request, plan
from bnbench.finetune.engine.collate import IGNORED
from bnbench.finetune.engine.step import StepTrainer
from bnbench.metrics.normalization import normalize
from bnbench.plot import loss_svg
from bnbench.records import Validation, read_training
from bnbench.reports.panels import training_facts
from tests.finetune.conftest import make_examples, make_request

OFTEN = {"validate_every": "4", "patience": "0", "epochs": "4", "learning_rate": "8e-3"}
FILES = ("adapter_model.safetensors", "adapter_config.json", "loss.csv", "loss.svg")


def unlike(count: int) -> tuple[Example, ...]:
    """Replies that the training rows say nothing of: learning those makes these less likely."""
    texts = ["বৃষ্টি থামলে আমরা নদীর ধারে যাব।", "বইটা টেবিলের উপরে রাখা আছে।", "কাল সকালে ট্রেন ছাড়বে ঢাকা থেকে।"]
    return tuple(replace(e, id=f"v{e.id}", reference=texts[i % 3]) for i, e in enumerate(make_examples(count)))


def ask(base: Path, output: Path, recipe: str = "demo", **changes: Any) -> FinetuneRequest:
    settings = OFTEN | changes.pop("overrides", {})
    return make_request(base, output, settings, recipe=recipe, **{"validation": unlike(7), "rows": 16, **changes})


@pytest.fixture(scope="module", params=["demo", "t4"])
def whole(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe, and its training that nothing disturbed."""
    return request.param, finetune(ask(tiny_base, tmp_path_factory.mktemp("whole") / "out", request.param))


def bits_of(request: FinetuneRequest, adapter: Path | None) -> float:
    """Bits per character of the validation replies, one row at a time, by transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    planned, nats = plan(request), 0.0
    model = AutoModelForCausalLM.from_pretrained(planned.base.folder)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    for row in planned.validation:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        nats += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
    return nats / math.log(2) / sum(len(normalize(e.reference)) for e in request.validation)


@pytest.mark.no_cover
@pytest.mark.parametrize("packing", ["false", "true"])
def test_bits_are_those_of_the_kept_adapter(tiny_base: Path, tmp_path: Path, packing: str) -> None:
    request = ask(tiny_base, tmp_path / "out", overrides={"packing": packing, "tokens_per_row": "100"})
    found = finetune(request).validation
    assert found is not None and found.rows == 7 and [step for step, *_ in found.curve] == [0, 4, 8, 12, 16]
    assert found.curve[0][1] == pytest.approx(bits_of(request, None), rel=1e-5)
    assert found.best[1] == pytest.approx(bits_of(request, request.output), rel=1e-5)
    assert found.best[1] == min(bits for _, bits, _ in found.curve[1:])
    tokens = sum(row.supervised for row in plan(request).validation)
    for _, bits, nats in found.curve:
        assert nats * tokens == pytest.approx(bits * math.log(2) * found.characters)


@pytest.mark.no_cover
def test_the_training_is_as_it_is_without(whole: tuple[str, FinetuneResult], tiny_base: Path, tmp_path: Path) -> None:
    recipe, result = whole
    without = finetune(ask(tiny_base, tmp_path / "out", recipe, overrides={"validate_every": "0"}))
    assert without.validation is None and without.curve == result.curve


def same(a: FinetuneResult, b: FinetuneResult) -> bool:
    told = [read_training(one.output) for one in (a, b)]
    assert told[0] is not None and told[1] is not None and told[0].validation == told[1].validation == a.validation
    return a.validation == b.validation and all(
        (a.output / f).read_bytes() == (b.output / f).read_bytes() for f in FILES
    )


@pytest.mark.no_cover
@pytest.mark.parametrize(("at", "resumed_from"), [(0, 0), (4, 3), (12, 9), (16, 15)])
def test_stopped_in_a_validation_it_ends_with_the_same_bytes(
    whole: tuple[str, FinetuneResult], tiny_base: Path, tmp_path: Path, monkeypatch: Any, at: int, resumed_from: int
) -> None:
    recipe, result = whole
    request, compute = ask(tiny_base, tmp_path / "stopped", recipe), StepTrainer.compute_loss

    def interrupted(self: Any, model: Any, *given: Any, **more: Any) -> Any:
        if not model.training and self.state.global_step == at:
            raise KeyboardInterrupt
        return compute(self, model, *given, **more)

    monkeypatch.setattr(StepTrainer, "compute_loss", interrupted)
    with pytest.raises(PartialRunError):
        finetune(request)
    monkeypatch.undo()
    resumed = finetune(request)
    assert resumed.resumed_from == resumed_from and same(resumed, result)
    assert finetune(request).validation == result.validation  # read again from the record


@pytest.mark.parametrize("whole", ["t4"], indirect=True)
def test_killed_in_a_validation(
    whole: tuple[str, FinetuneResult], tiny_base: Path, tmp_path: Path, forked: Any
) -> None:
    request = ask(tiny_base, tmp_path / "killed", "t4")
    code = (
        "import os, signal\nfrom pathlib import Path\nimport torch\ntorch.set_num_threads(1)\n"
        "from bnbench.finetune import finetune\nfrom bnbench.finetune.engine.step import StepTrainer\n"
        "from tests.finetune.engine.test_validation import ask\n"
        "compute = StepTrainer.compute_loss\n"
        "def loss(self, model, *given, **more):\n"
        "    if not model.training and self.state.global_step == 8:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return compute(self, model, *given, **more)\n"
        "StepTrainer.compute_loss = loss\n"
        f"finetune(ask(Path({str(tiny_base)!r}), Path({str(request.output)!r}), 't4'))\n"
    )
    [done] = forked(code, folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    resumed = finetune(request)
    assert resumed.resumed_from == 6 and same(resumed, whole[1])


def test_patience_ends_it_and_the_best_is_kept(tiny_base: Path, tmp_path: Path) -> None:
    longer = {"epochs": "12", "validate_every": "2", "patience": "2", "learning_rate": "2e-2", "save_every": "2"}
    request = ask(tiny_base, tmp_path / "out", overrides=longer)
    result = finetune(request)
    found = result.validation
    assert found is not None and found.stopped and result.finished and result.steps < result.total_steps == 48
    assert result.steps == found.best[0] + 4 == found.curve[-1][0]  # two validations in a row
    assert found.best[1] == pytest.approx(bits_of(request, result.output), rel=1e-5)
    assert f"stopped early, at step {result.steps}" in str(result) and "adapter: " in str(result)
    # The same command says the same; what a killed process left before the record goes on to it.
    again = finetune(request)
    assert (again.steps, again.validation, again.curve) == (result.steps, found, result.curve)
    before = (result.output / "adapter_model.safetensors").read_bytes()
    (result.output / "training.json").unlink()
    resumed = finetune(request)
    assert 0 < resumed.resumed_from < result.steps and resumed.validation == found
    assert (result.output / "adapter_model.safetensors").read_bytes() == before


def test_the_demo_recipe_stops_where_it_overfits(tmp_path: Path) -> None:
    often = {"validate_every": "8", "patience": "1", "batch_size": "1", "epochs": "30"}
    hard = {"learning_rate": "1.2e-2", "schedule": "constant_with_warmup", "warmup": "0", "targets": "q_proj,v_proj"}
    request = finetune_request("demo", out=tmp_path / "out", limit=4, overrides=often | hard, device="cpu")
    assert len(request.validation) == 4
    result = finetune(request)
    found = result.validation
    assert found is not None and result.stopped_early and result.steps == found.best[0] + 8 < result.total_steps == 120
    base, best, last = found.curve[0][1], found.best[1], found.curve[-1][1]
    assert best < base and last > 1.01 * best
    assert sum(p.loss for p in result.curve[-6:]) < 0.9 * sum(p.loss for p in result.curve[:6])
    said = f"by step {result.steps} it was {last:.3f}, since it learns its rows by heart (overfitting). The adapter of"
    assert said in str(result)
    record = read_training(result.output)
    assert record is not None and said in dict(training_facts(record.summary()))["Validation"]
    assert "dashed: validation" in (result.output / "loss.svg").read_text(encoding="utf-8")


def test_what_is_said() -> None:
    def said(*bits: float, losses: tuple[float, ...] = (3, 3, 2, 2), stopped: bool = False) -> str:
        curve = tuple((i, y, 2 * y) for i, y in enumerate(bits))
        found = Validation(rows=5, characters=100, curve=curve, stopped=stopped)
        return found.said([(i + 1, y) for i, y in enumerate(losses)])

    start = "3.000 → 2.000 bits per character on 5 held-out replies, lowest at step"
    assert said(3, 2.5, 2.4, 2.2, 2) == f"{start} 4"
    assert said(3, 2.5, 2, 2.001) == f"{start} 2, no better at step 3 (2.001). The adapter of step 2 is kept"
    assert "by step 4 it was 2.500, since it learns its rows by heart (overfitting). The" in said(3, 2.5, 2, 2.2, 2.5)
    assert "since the training loss rose too" in said(3, 2.5, 2, 2.2, 2.5, losses=(2, 2, 3, 3))
    assert said(3, 2, 2.5, stopped=True).endswith("is kept; stopped early, at step 2")
    assert said(3, 4, 5).endswith("No step was better than the base: lower learning_rate")
    assert said(3, math.nan, 2) == f"{start} 2"


def test_both_curves_are_drawn() -> None:
    points, found = [(1, 3.0), (2, 2.0)], Validation(rows=1, characters=9, curve=((0, 2.0, 4.0), (2, 1.0, 1.0)))
    svg = loss_svg(points, validation=found)
    assert svg.count('<circle class="check"') == 2 and svg.count('r="6"') == 1
    assert 'class="check"' not in loss_svg(points) and loss_svg(points, validation=None) == loss_svg(points)


def test_which_rows_validate(tiny_base: Path, tmp_path: Path) -> None:
    asked = ask(tiny_base, tmp_path / "out", overrides={"validation_rows": "3"})
    planned = plan(asked)
    assert [row.id for row in planned.validation] == [e.id for e in asked.validation[:3]]
    assert "validated on 3 rows every 4 steps\n" in str(planned) and planned.summary()["validation_rows"] == 3
    more = plan(replace(asked, overrides={**asked.overrides, "validation_rows": "0", "patience": "5"}))
    assert len(more.validation) == 7 and "every 4 steps, until 5 in a row are no better" in str(more)
    assert planned.identity()["validation_sha256"] != more.identity()["validation_sha256"]
    assert "validation_sha256" not in plan(replace(asked, validation=())).identity()
    whole = finetune_request("demo", str(tiny_base), split="all", out=tmp_path / "all", device="cpu")
    assert whole.validation == () != finetune_request("demo", str(tiny_base), device="cpu").validation


def test_full_text_validates_on_replies(tiny_base: Path, tmp_path: Path) -> None:
    planned = plan(ask(tiny_base, tmp_path / "out", overrides={"loss": "full-text"}))
    assert all(row.labels[0] == IGNORED for row in planned.validation)
    assert planned.validation_characters == sum(len(normalize(e.reference)) for e in unlike(7))
