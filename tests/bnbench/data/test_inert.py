"""Cells of the CSV files that bnbench writes: no spreadsheet runs them, and they are read back as they were."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.data.corpus import load_corpus, write_dropped
from bnbench.data.files import csv_text, read_records
from bnbench.data.pairs import load_pairs, preferences

RUN = ("=HYPERLINK(1)", "+১ করে দেখুন", "- প্রথমে জল খান", "@SUM(A1)", "＝১+১")


@pytest.mark.parametrize("cell", [*RUN, "'=ছিল", "কেমন আছেন?", "", "'"])
def test_what_is_written_inert_is_read_as_it_was(tmp_path: Path, cell: str) -> None:
    (tmp_path / "a.csv").write_text(csv_text([["text", "id"], [cell, "1"]]), encoding="utf-8", newline="\n")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["text"][:1] not in tuple("=+-@＝")
    [row] = read_records(tmp_path / "a.csv").values()
    assert row["text"] == cell if not cell.startswith("'=") else "=ছিল"


def test_pairs_are_inert_in_a_spreadsheet_and_whole_in_training(tmp_path: Path) -> None:
    lines = [{"message": "মাথা ধরেছে।", "reply": text, "rating": i} for i, text in enumerate(RUN[:3], 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    preferences(tmp_path / "a.jsonl", tmp_path / "pairs.csv", margin=0.5, rating_columns=["rating"])
    with (tmp_path / "pairs.csv").open(encoding="utf-8", newline="") as file:
        cells = {cell for row in csv.reader(file) for cell in row}
    assert {f"'{text}" for text in RUN[:3]} < cells and not cells & set(RUN)
    made = load_pairs(tmp_path / "pairs.csv").pairs.values()  # rated 3, 2 and 1: the best against each of the others
    assert {pair.chosen.reference for pair in made} == {RUN[2]}
    assert {pair.rejected.reference for pair in made} == set(RUN[:2])


def test_dropped_rows_are_inert(tmp_path: Path) -> None:
    data = [*((f"প্রশ্ন {i} কী?", f"উত্তর {i} এই যে।") for i in range(6)), (RUN[0], "হুম"), ("@কে?", "")]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"question": q, "reference": a}) + "\n" for q, a in data), encoding="utf-8"
    )
    write_dropped(load_corpus(tmp_path / "a.jsonl"), tmp_path / "dropped.csv")
    with (tmp_path / "dropped.csv").open(encoding="utf-8", newline="") as file:
        questions = [row["question"] for row in csv.DictReader(file)]
    assert sorted(questions) == [f"'{RUN[0]}", "'@কে?"]


def test_json_on_a_terminal_has_no_control_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnbench.data.corpus.Corpus.summary", lambda _: {"name": "ক\x9b2J\u202eখ\x1b"}, raising=False)
    told = CliRunner().invoke(app, ["corpus", "--json"]).stdout
    assert "\\u009b" in told and "\\u202e" in told and "\\u001b" in told
    assert json.loads(told) == {"name": "ক\x9b2J\u202eখ\x1b"}
