from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

import bnbench
from bnbench.errors import RecipeError
from bnbench.finetune import FinetuneRequest, Job, Outcome, Point, Tuner, finetune, get_tuner, load_recipe
from bnbench.finetune.recipes import TUNERS
from bnbench.models.loading import Device


class MyTuner(Tuner):
    """All that a tuner of another package must hold: one step of plain gradient descent for each row."""

    def train(self, job: Job) -> Outcome:
        import torch

        from bnbench.finetune import adapt, load_base, save_adapter

        model = adapt(load_base(job), job.recipe)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        curve = []
        for step in range(job.steps):
            row = job.rows[step % len(job.rows)]
            loss = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(Point(step + 1, loss.item(), 0.1))
        save_adapter(job, model)
        return Outcome(job.steps, tuple(curve), 0.0)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        EntryPoint("mine", f"{__name__}:MyTuner", "bnbench.finetuners"),
        EntryPoint("broken", "no_such_module:Tuner", "bnbench.finetuners"),
        EntryPoint("other", "pathlib:Path", "bnbench.finetuners"),
    ]
    plain = metadata.entry_points
    monkeypatch.setattr(
        metadata, "entry_points", lambda **given: found if given.get("group") == found[0].group else plain(**given)
    )


@pytest.mark.usefixtures("plugins")
def test_a_tuner_of_one_method_trains(request_for: Callable[..., FinetuneRequest]) -> None:
    request = request_for(rows=6, overrides={"tuner": "mine"})
    result = finetune(request)
    assert result.finished and len(result.curve) == result.total_steps
    assert any(value.any() for value in load_file(request.output / "adapter_model.safetensors").values())
    assert finetune(request).curve == result.curve
    assert (request.output / "loss.csv").read_text(encoding="utf-8").count("\n") == 1 + len(result.curve)


@pytest.mark.usefixtures("plugins")
def test_plugins_join_the_shipped_ones() -> None:
    assert TUNERS.names() == ("dpo", "lora", "qlora", "unsloth", "mine", "other")
    assert isinstance(get_tuner("mine"), MyTuner) and isinstance(get_tuner("LoRA"), Tuner)
    mine = get_tuner("mine")
    assert (mine.packages, mine.data, mine.keys, mine.shares_steps) == ({}, "examples", {}, False)


@pytest.mark.usefixtures("plugins")
def test_broken_plugin_is_named_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bnbench"), pytest.raises(RecipeError, match="no_such_module"):
        get_tuner("broken")
    assert "(no_such_module:Tuner) is skipped" in caplog.text
    with pytest.raises(RecipeError, match=r"'other' is <class 'pathlib.*no subclass of bnbench\.finetune\.Tuner"):
        get_tuner("other")


def test_tuners_refuse_what_they_cannot_do() -> None:
    t4, cpu = load_recipe("t4"), Device("cpu")
    for name in ("qlora", "dpo", "unsloth"):
        own = load_recipe("t4" if name == "qlora" else name)
        get_tuner(name).check(own, None)
    with pytest.raises(RecipeError, match='tuner "qlora" contradicts quantisation "none"'):
        get_tuner("qlora").check(SimpleNamespace(tuner="QLoRA", quantisation="none"), None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"needs packing = false, dropout = 0\.0, validate_every = 0, beta above 0"):
        get_tuner("dpo").check(SimpleNamespace(**{**vars(t4), "own": {"beta": 0.0}}), None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match='tuner "unsloth" needs validate_every = 0, packing = false'):
        get_tuner("unsloth").check(t4, None)
    with pytest.raises(RecipeError, match=r"needs an NVIDIA GPU \(this is cpu\)"):
        get_tuner("unsloth").check(load_recipe("unsloth"), cpu)


def test_unknown_tuner_has_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="there is no tuner 'qlorra'; did you mean 'qlora'"):
        get_tuner("qlorra")


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, bnbench.finetune; print({'torch', 'transformers', 'peft', 'trl', 'datasets'} & set(sys.modules))"
    )
    root = Path(bnbench.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "set()"
