from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import bnbench
from bnbench.errors import RecipeError
from bnbench.finetune import get_tuner, tuner_names
from bnbench.finetune.tuners import base as tuner


class MyTuner:
    def train(self, job: tuner.Job) -> tuner.Outcome:
        return tuner.Outcome(job.steps, (), 0.0, None)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        EntryPoint("mine", f"{__name__}:MyTuner", tuner.GROUP),
        EntryPoint("broken", "no_such_module:Tuner", tuner.GROUP),
    ]
    monkeypatch.setattr(tuner, "entry_points", lambda group: found)


@pytest.mark.usefixtures("plugins")
def test_plugins_join_the_shipped_ones() -> None:
    assert tuner_names() == ("broken", "dpo", "lora", "mine", "qlora", "unsloth")
    assert isinstance(get_tuner("mine"), MyTuner)


@pytest.mark.usefixtures("plugins")
def test_broken_plugin_is_named_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bnbench.finetune"), pytest.raises(RecipeError, match="no_such_module"):
        get_tuner("broken")
    assert "no_such_module:Tuner does not load and is skipped" in caplog.text
    assert get_tuner("lora") is not None


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
