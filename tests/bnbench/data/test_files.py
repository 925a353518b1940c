"""Cells that a file lacks and rows that it leaves blank: read as what they are, or refused with file and line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bnbench.data.corpus import load_corpus
from bnbench.data.files import iter_table
from bnbench.data.join import TextFile
from bnbench.errors import CorpusError
from bnbench.reports.human import workbook
from bnbench.score import score_files

REPLIES = ["আপনার কষ্টটা বুঝতে পারছি।", "", "আজ একটু জিরিয়ে নিন।"]


def texts(path: Path) -> list[Any]:
    return [row["reply"] for _, row in iter_table(path)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("torn.csv", "id,reply\n1,আমি শুনছি।\n2", "line 3: the row has no 'reply' (null) or ends early; an empty"),
        ("torn.tsv", "id\treply\n1\tআমি শুনছি।\n2\n", "line 3: the row has no 'reply'"),
        ("first.csv", "id,reply\n1\n2,আমি শুনছি।\n", "line 2: the row has no 'reply'"),
        ("id.csv", "reply,id\nআমি শুনছি।\nভালো থাকুন।,2\n", "line 2: the row has no 'id'"),
    ],
)
def test_a_row_that_ends_early_is_no_empty_reply(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        score_files(path, metrics=["degeneration"], quiet=True)
    assert f"{name}, {says}" in str(caught.value)


def test_references_of_a_torn_file_are_refused_too(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,reply\n1,আমি শুনছি।\n2,\n", encoding="utf-8")  # the second is an empty reply
    (tmp_path / "r.csv").write_text("id,reference\n1,আমি আছি।\n2", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"r\.csv, line 3: the row has no 'reference'$"):
        score_files(tmp_path / "p.csv", [tmp_path / "r.csv"], metrics=["chrF++"], quiet=True)


def test_what_nobody_needs_may_be_lacking(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("reply,message,title\nআমি শুনছি।,ঘুম আসে না।\nভালো থাকুন।\n", encoding="utf-8")
    assert [found for *_, found in TextFile.of(path, "reply", {}).rows()] == [("আমি শুনছি।",), ("ভালো থাকুন।",)]
    assert [found for *_, found in TextFile.of(path, "message", {}).rows()] == [("ঘুম আসে না।",), ("",)]
    path.write_text("question,answer,topic\nঘুম আসে না।,রাতে একটু হাঁটুন।\nকী করি?\n", encoding="utf-8")
    corpus = load_corpus(path)
    assert [(e.topic, e.reference) for e in corpus.select("all")] == [("", "রাতে একটু হাঁটুন।")]
    assert {step.name: step.dropped for step in corpus.steps if step.dropped} == {"empty": 1}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])  # the last is what Python on Windows writes as text
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_an_empty_line_in_one_column_is_an_empty_text(tmp_path: Path, name: str, end: str) -> None:
    path = tmp_path / name
    path.write_text(end.join(["", "reply", *REPLIES, "", "", "শেষ।", "", ""]), encoding="utf-8", newline="")
    assert texts(path) == [*REPLIES, "", "", "শেষ।"]
    if end != "\r\r\n":
        assert [number for number, _ in iter_table(path)] == [3, 4, 5, 6, 7, 8]


def test_an_empty_reply_shifts_nothing_and_several_columns_have_no_blank_rows(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("reply\n" + "\n".join(REPLIES) + "\n\n", encoding="utf-8")
    references = [{"reference": text} for text in (REPLIES[0], "রাতে একটু হাঁটুন।", REPLIES[2])]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(row) for row in references), encoding="utf-8")
    found = score_files(tmp_path / "p.csv", [tmp_path / "r.jsonl"], metrics=["chrF++"], quiet=True)
    assert found.results["chrF++"].per_item.tolist() == [100, 0, 100]
    (tmp_path / "b.csv").write_text("reply,n\nশুনছি।,1\n\nআছি।,2\n\n", encoding="utf-8")
    assert list(iter_table(tmp_path / "b.csv")) == [(2, {"reply": "শুনছি।", "n": "1"}), (4, {"reply": "আছি।", "n": "2"})]


def test_an_empty_cell_in_a_sheet_of_one_column_is_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(workbook([["reply"], *([text] for text in REPLIES), [""], [""]]))
    assert list(iter_table(tmp_path / "a.xlsx")) == [(at, {"reply": text}) for at, text in enumerate(REPLIES, 2)]
    (tmp_path / "b.xlsx").write_bytes(workbook([["reply", "n"], ["শুনছি।", "ক"], ["", ""], ["আছি।", "খ"]]))
    assert [number for number, _ in iter_table(tmp_path / "b.xlsx")] == [2, 4]


def test_a_cell_merged_over_rows_of_one_column_is_one_text(tmp_path: Path) -> None:
    whole = workbook([["reply"], ["শুনছি।"], [""], ["আছি।"], [""], ["থাকুন।"]])
    (tmp_path / "a.xlsx").write_bytes(whole)
    assert texts(tmp_path / "a.xlsx") == ["শুনছি।", "", "আছি।", "", "থাকুন।"]
    with zipfile.ZipFile(tmp_path / "a.xlsx") as old, zipfile.ZipFile(tmp_path / "b.xlsx", "w") as new:
        for name in old.namelist():
            merged = b'</sheetData><mergeCells count="1"><mergeCell ref="A2:A3"/></mergeCells>'
            new.writestr(name, old.read(name).replace(b"</sheetData>", merged))
    assert texts(tmp_path / "b.xlsx") == ["শুনছি।", "আছি।", "", "থাকুন।"]


def test_whether_quotes_of_several_rows_of_one_column_are_text_is_not_guessed(tmp_path: Path) -> None:
    lines = ["শুনছি।", '"আমি আছি।', "ভালো থাকুন।", "আজ ঘুমান।", 'পাশে আছি।"']
    (tmp_path / "q.tsv").write_text("\n".join(["reply", *lines]) + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"q\.tsv: quotes around several lines, alone in a row, may be .* as \.csv"):
        texts(tmp_path / "q.tsv")
    (tmp_path / "q.tsv").write_text('reply\n"সে বলল ""আছি""।"\n""\nশুনছি।\n', encoding="utf-8")
    assert texts(tmp_path / "q.tsv") == ['সে বলল "আছি"।', "", "শুনছি।"]


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("null", "NoneType"), ('"আছি।"', "str")])
def test_a_sample_of_inspect_that_is_no_object(tmp_path: Path, content: str, kind: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as log:
        log.writestr("samples/1.json", json.dumps({"id": 1, "output": {"completion": "শুনছি।"}}))
        log.writestr("samples/2.json", content)
    with pytest.raises(CorpusError, match=rf"a\.eval, samples/2\.json: a JSON {kind}; each sample is one object$"):
        score_files(tmp_path / "a.eval", metrics=["degeneration"], quiet=True)


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".jsonlines", ".JSONLINES"])
def test_endings_of_json_lines(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_text('{"reply": "শুনছি।"}\n\n{"reply": "আছি।"}\n', encoding="utf-8")
    assert [(number, found) for number, _, found in TextFile.of(path, "reply", {}).rows()] == [
        (1, ("শুনছি।",)),
        (3, ("আছি।",)),
    ]
