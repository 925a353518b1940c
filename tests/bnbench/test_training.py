"""The record of a training as others read it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import bnbench
from bnbench.errors import RunError
from bnbench.records import Gain, as_json, read_training, thinned
from bnbench.reports.panels import training_facts

ADAPTER = Path(bnbench.__file__).parent / "demo" / "adapter"


def test_the_bundled_adapter() -> None:
    record = read_training(ADAPTER)
    assert record is not None
    summary = record.summary()
    assert (summary.rows, summary.steps, summary.device) == (160, 160, "cpu")
    assert summary.recipe["name"] == "demo" and summary.loss_at_start > summary.loss_at_end + 1
    assert as_json(record) == json.loads((ADAPTER / "training.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", float("nan"), 7])
def test_targets_are_told_whatever_a_record_has_for_them(targets: object) -> None:
    record = read_training(ADAPTER)
    assert record is not None
    told = dict(training_facts(replace(record, recipe={**record.recipe, "targets": targets}).summary()))["Adapter"]
    assert told.endswith(f", on {'q_proj, v_proj' if isinstance(targets, list) else targets}")


def test_what_a_preference_training_gained() -> None:
    record = read_training(ADAPTER)
    assert record is not None and "Preferences" not in dict(training_facts(record.summary()))
    gain = Gain(31, 20, 0.1, 0.518, -0.2, 0.9, 0.2, 0.6, 1.5, -3.7)
    told = dict(training_facts(replace(record, gain=gain).summary()))["Preferences"]
    assert told.startswith("the chosen reply gained +0.52 nats (95 % −0.20 to +0.90)") and "31 held-out pairs" in told


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"loss": [["x", 1.0, 0]]}, r'loss\[0\]\[0\] is "x", not a whole number'),
        ({"loss": []}, "loss has no step"),
        ({"data": {}}, "data.fingerprint is missing"),
        ({"parameters": {"trainable": 3, "total": "many"}}, 'parameters.total is "many", not a whole number'),
    ],
)
def test_a_damaged_record_is_named_with_its_key(damage: dict[str, object], says: str, tmp_path: Path) -> None:
    record = json.loads((ADAPTER / "training.json").read_text(encoding="utf-8"))
    (tmp_path / "training.json").write_text(json.dumps({**record, **damage}), encoding="utf-8")
    with pytest.raises(RunError, match=rf"training\.json: damaged \({says}\); put back what"):
        read_training(tmp_path)


def test_what_is_no_record_of_ours(tmp_path: Path) -> None:
    assert read_training(tmp_path) is None
    for theirs in ("[1]", "{}", '{"schema_version": 2}'):
        (tmp_path / "training.json").write_text(theirs, encoding="utf-8")
        assert read_training(tmp_path) is None
    (tmp_path / "training.json").write_text("[1", encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        read_training(tmp_path)
    shutil.copy(ADAPTER / "training.json", tmp_path)
    assert read_training(tmp_path) is not None


def test_thinning_keeps_the_mean() -> None:
    points = [(i, float(i % 7)) for i in range(1, 961)]
    few = thinned(points)
    assert len(few) == 240 and few[-1][0] == 960 and few[0] == (4, (1 + 2 + 3 + 4) / 4)
    assert sum(y for _, y in few) / 240 == pytest.approx(sum(y for _, y in points) / 960)
    assert thinned(points[:240]) == points[:240]
