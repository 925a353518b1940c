"""The notebook for Kaggle runs from top to bottom on the CPU: this checkout's wheel, the bundled base, a few rows."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "kaggle_t4.ipynb", as_version=4)
PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
SMALL = {
    "SOURCE": str(ROOT), "EXTRAS": "finetune", "DATA": str(ROOT / "bnbench" / "demo" / "conversations.csv"),
    "BASE": "bnbench-demo/base", "RECIPE": "demo", "TRAIN_ROWS": 4, "TEST_ROWS": 3, "MAX_WORDS": 4, "RATED_ITEMS": 3,
    "CARDS": 1, "BASE_ID": "org/base",
}  # fmt: skip


def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pip builds and installs this checkout alone, into a folder of its own; the rest is there, and nothing is fetched.
    target = tmp_path / "installed"
    for name in ("NO_DEPS", "NO_INDEX", "DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(f"PIP_{name}", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # the option's own name is negated: 0 is without isolation
    monkeypatch.setenv("PIP_TARGET", str(target))
    monkeypatch.setenv("PYTHONPATH", str(target))
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(target / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    small = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in SMALL.items()))
    at = next(i for i, cell in enumerate(NOTEBOOK.cells) if cell.id == "parameters")
    ours = nbformat.from_dict({**NOTEBOOK, "cells": [*NOTEBOOK.cells[: at + 1], small, *NOTEBOOK.cells[at + 1 :]]})
    client = nbclient.NotebookClient(ours, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell fails

    printed = {
        cell.id: "".join(o.get("text", "") for o in cell.outputs) for cell in ours.cells if cell.cell_type == "code"
    }
    assert (target / "bnbench" / "demo" / "base" / "model.safetensors").is_file()
    assert "160 train · 40 validation · 40 test" in printed["data"]
    assert "4 rows" in printed["dry-run"] and "4 of 4 steps" in printed["train"]
    assert "The 3 items" in printed["evaluate"] and "chrF++" in printed["evaluate"]
    shown = next(o.data["text/html"] for cell in ours.cells if cell.id == "report" for o in cell.outputs)
    assert shown.startswith("<div><iframe") and "&lt;!doctype html&gt;" in shown and "chrF++" in shown
    assert len(list((tmp_path / "runs" / "mine" / "human").glob("rater-*.html"))) == 3
    assert "org/base" in (tmp_path / "published" / "mine" / "README.md").read_text(encoding="utf-8")


def test_it_is_kept_without_outputs_and_answers_what_the_original_wrote_down() -> None:
    raw = json.loads((ROOT / "notebooks" / "kaggle_t4.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in raw["cells"])
    told = ["0.0000", r"`\w+`", "0.81", "3.67", "19.33", "0.320", "256", "512", "5,000", "bf16", "14.162"]
    for said in [*told, "10 replies", "One rater", "accelerate launch"]:
        assert said in PROSE, said
    assert re.findall(r"^## ([০-৯])\. .*[\u0980-\u09ff] · [A-Z]", PROSE, re.M) == list("১২৩৪৫৬৭৮")
