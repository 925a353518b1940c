"""The curves in a tracker, and the one line of progress."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bnbench import progress
from bnbench.errors import MissingExtraError, TrainingError
from bnbench.finetune import FinetuneRequest, finetune, load_recipe
from bnbench.finetune.engine import trackers

PLANNING = sys.modules["bnbench.finetune.plan"]
Request = Callable[..., FinetuneRequest]


class Recorder:
    """All three trackers' calls, noted."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.logged: list[tuple[str, float, int]] = []
        self.closed = 0

    def init(self, **given: Any) -> Recorder:
        self.started.append(given)
        return self

    def SummaryWriter(self, *given: Any, **more: Any) -> Recorder:  # noqa: N802 - tensorboard's name
        self.started.append((given, more))
        return self

    def add_scalar(self, key: str, value: float, step: int) -> None:
        self.logged.append((key, value, step))

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged += [(key, value, step) for key, value in numbers.items()]

    def finish(self) -> None:
        self.closed += 1

    close = finish


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    one = Recorder()
    for module in trackers.PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, one)
    monkeypatch.setattr(PLANNING, "find_spec", lambda name: SimpleNamespace())
    return one


@pytest.mark.parametrize("name", list(trackers.PACKAGES))
def test_every_step_is_reported(name: str, recorder: Recorder, request_for: Request) -> None:
    request = request_for(rows=8, overrides={"report_to": name, "validate_every": "3"})
    request = replace(request, validation=request.examples[:2])
    result = finetune(request)
    reported = {(key, step): value for key, value, step in recorder.logged}
    assert [reported["loss", p.step] for p in result.curve] == [p.loss for p in result.curve]
    assert [reported["learning_rate", p.step] for p in result.curve] == [p.learning_rate for p in result.curve]
    assert result.validation is not None
    assert {step: reported["validation_bits", step] for step, *_ in result.validation.curve} == {
        step: bits for step, bits, _ in result.validation.curve
    }
    assert recorder.closed == 1 and len(recorder.started) == 1
    if name == "tensorboard":
        assert recorder.started == [((str(request.output / "tensorboard"),), {})]
    else:
        asked = recorder.started[0]
        assert (asked["project"], asked["name"], asked["resume"]) == ("bnbench", "out", "allow")
        assert asked["config"]["r"] == 4 and ("id" in asked) == (name == "wandb")


def test_a_tracker_that_does_not_start(recorder: Recorder, request_for: Request, monkeypatch: Any) -> None:
    def refused(**_: Any) -> None:
        raise ValueError("no login")

    monkeypatch.setattr(recorder, "init", refused)
    with pytest.raises(
        TrainingError, match=r'report_to = "wandb": it does not start \(no login\); --set report_to=none'
    ):
        finetune(request_for(overrides={"report_to": "wandb"}))


def test_a_tracker_that_is_not_there(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr(PLANNING, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'trackio is not installed: pip install "\.\[trackers\]"'):
        finetune(request_for(overrides={"report_to": "trackio"}))
    assert load_recipe("t4", {"report_to": "trackio"}).sha256 == load_recipe("t4").sha256  # it changes no training


def test_one_line_has_loss_speed_and_time(request_for: Request, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECONDS", 0.0)
    result = finetune(request_for(rows=8))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: ")]
    found = [
        re.fullmatch(r".*: (\d)/6 · loss ([\d.]+) · [\d.]+ steps/s · (\d+) tokens/s · \d+ s left", x)
        for x in lines[:-1]
    ]
    assert [(int(m[1]), float(m[2])) for m in found if m] == [(p.step, round(p.loss, 3)) for p in result.curve]
    assert all(m and int(m[3]) > 0 for m in found)
