"""Several trainings by one command, in one ranking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.errors import PartialRunError, RecipeError
from bnbench.finetune import sweep as sweeps
from bnbench.finetune.sweep import parse_grid, sweep
from bnbench.records import read_run, read_training


def test_the_grid_is_every_combination() -> None:
    assert parse_grid(["lr=1e-4,2e-4", "r=8, 16"]) == [
        {"learning_rate": rate, "r": r} for rate in ("1e-4", "2e-4") for r in ("8", "16")
    ]
    for wrong in ("lr", "lr=", "=1", "r=8,,16", "r=8,8"):
        with pytest.raises(RecipeError, match="write it as KEY=VALUE,VALUE, each key and value once"):
            parse_grid([wrong])
    with pytest.raises(RecipeError, match="--sweep learning_rate=3"):
        parse_grid(["lr=1e-4", "learning_rate=3"])


def words(base: Path, out: Path, *more: str) -> list[str]:
    settings = ("epochs=1", "batch_size=2", "validate_every=1")
    chosen = [word for one in settings for word in ("--set", one)]
    return ["finetune", "--recipe", "demo", "--base", str(base), "--out", str(out), "--limit", "4", "--device", "cpu",
            *chosen, *more]  # fmt: skip


def test_each_is_trained_and_ranked(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sweep"
    asked = words(tiny_base, out, "--sweep", "lr=1e-3,8e-3", "r=2")
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    names = ["learning_rate-1e-3-r-2", "learning_rate-8e-3-r-2"]
    records = [read_training(out / name) for name in names]
    assert [r.recipe["learning_rate"] for r in records if r] == [1e-3, 8e-3]
    assert [r.recipe["r"] for r in records if r] == [2, 2]
    run = read_run(out / "evaluation")
    assert [c.name for c in run.record.candidates][1:] == names
    assert (run.record.corpus.split, len(run.examples)) == ("validation", 4)
    assert {e["id"] for e in run.examples}.isdisjoint(records[0].examples if records[0] else ())
    # What each took stands beside what it gained.
    text = (out / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert "What the adapters’ trainings took, and the settings in which they differ" in text
    table = text.split("settings in which they differ")[1].split("\n\n")[1]
    assert "| candidate | learning rate | steps |" in table
    assert "0.001" in table and "0.008" in table and "validation bits" in table
    for record in records:
        assert record is not None and record.validation is not None and f"{record.validation.best[1]:.3f}" in table
    # The same command trains nothing again.
    monkeypatch.setattr("bnbench.finetune.tuners.adapter.AdapterTuner.train", None)
    again = CliRunner().invoke(app, [*asked, "--json"])
    assert again.exit_code == 0 and names[0] in again.stdout and json.loads(again.stdout)


def test_what_cannot_be_swept(tiny_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for more, said in (
        (["--sweep", "lrr=1,2"], "unknown key 'lrr'"),
        (["--sweep", "r=2,4", "--split", "all"], "--sweep ranks on the split validation, and there is none"),
        (["r=2,4"], "KEY=VALUE,VALUE is for --sweep"),
        (["--sweep", "r=2,4", "--dry-run"], "no dry run"),
    ):
        done = CliRunner().invoke(app, words(tiny_base, tmp_path / "out", *more))
        assert done.exit_code == 2 and said in done.output, done.output
    monkeypatch.setattr(sweeps, "finetune", lambda request: type("R", (), {"finished": request.stop_after > 5})())
    given: dict[str, Any] = {
        "recipe": "demo", "base": str(tiny_base), "data": None, "overrides": {}, "limit": 4, "quiet": True,
        "split_sizes": "4000/300/300", "device": "cpu", "trust_remote_code": False,
    }  # fmt: skip
    with pytest.raises(PartialRunError, match=r"the time is up in .*r-2; the same command goes on\n  bnbench finetune"):
        sweep(parse_grid(["r=2,4"]), tmp_path / "s", stop_after="1s", command="bnbench finetune", **given)
