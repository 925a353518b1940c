"""The labelled set: what its card says of it, and files of the same form."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from bnbench.metrics import KeywordEmpathy, SemanticEmpathy, UsageError, tokenize
from bnbench.metrics.audit.agreement import auc
from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.labelled import (
    HALVES,
    REQUIRED,
    LabelledSet,
    blind_set,
    calibration_set,
    labelled_set,
    read_labelled,
)
from bnbench.metrics.tokenization import is_word
from tests.metrics.conftest import krippendorff_alpha

CARD = files("bnbench.metrics.labelled").joinpath("README.md").read_text(encoding="utf-8")
FIRST, _, THIRD = CARD.partition("## A third set")


def given_away(data: LabelledSet, feature: list[float]) -> float:
    one_group, no_resamples = np.zeros(len(data), dtype=np.int64), np.zeros((0, 1))
    return auc(np.array(feature, dtype=np.float64), data.empathic, one_group, no_resamples).value


def words(text: str) -> int:
    return sum(map(is_word, tokenize(text)))


def card_row(name: str, card: str = FIRST) -> list[float]:
    [line] = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    return [float(cell) for cell in line.split("|")[2:-1]]


def test_eighty_messages_with_six_replies_in_two_halves() -> None:
    data = labelled_set()
    assert len(data) == 480 and set(Counter(data.ids).values()) == {6} and len(set(data.messages)) == 80
    assert len(set(data.replies)) == 480
    for half in HALVES:
        part = labelled_set(half)
        assert len(part) == 240 and {row.half for row in part.rows} == {half}
        kinds = Counter(row.kind for row in part.rows)
        assert kinds == {"empathic": 80, "cold": 40, "generic": 40, "dismissive": 40, "stuffed": 20, "copy": 20}
    assert not set(labelled_set("development").ids) & set(labelled_set("held-out").ids)


def test_the_halves_are_drawn_by_hash() -> None:
    development = set(labelled_set("development").ids)
    for kind in ("stuffed", "copy"):
        ids = [row.id for row in labelled_set().rows if row.kind == kind]
        ids.sort(key=lambda name: hashlib.sha256(f"42:{name}".encode()).hexdigest())
        assert set(ids[:20]) <= development and not set(ids[20:]) & development


def test_the_agreement_is_what_the_card_says() -> None:
    for place, name in enumerate(MECHANISMS):
        found = [
            krippendorff_alpha([(row.levels[place], row.second[place]) for row in part.rows if row.second])
            for part in (labelled_set(), *map(labelled_set, HALVES))
        ]
        assert card_row(f"α {name}") == pytest.approx(found, abs=0.0005)


def test_neither_length_nor_question_marks_give_the_label_away() -> None:
    parts = (labelled_set(), *map(labelled_set, HALVES))
    lengths = [given_away(part, [words(reply) for reply in part.replies]) for part in parts]
    questions = [given_away(part, ["?" in reply for reply in part.replies]) for part in parts]
    assert all(0.4 < value < 0.6 for value in lengths) and all(value < 0.7 for value in questions)
    assert card_row("AUC of length in words") == pytest.approx(lengths, abs=0.0005)
    assert card_row("AUC of a question mark") == pytest.approx(questions, abs=0.0005)


def test_the_blind_set_is_what_its_card_says() -> None:
    data = blind_set()
    assert len(data) == len(set(zip(data.messages, data.replies, strict=True))) == 4748
    assert set(Counter(data.ids).values()) == {6, 8}
    with files("bnbench.metrics.labelled").joinpath("blind_bn.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    everybody = "ABDEFMNPQRcdefghijklnopqrstuvwxyz"
    by_writers = [
        [line for line in lines if line["id"][0] in writers]
        for writers in (everybody, "pqr", "st", "def", "cijkln", "yz", "uv", "gh", "owx", "EF", "ABD", "MNPQR")
    ]
    assert card_row("messages", THIRD) == [len({line["id"] for line in some}) for some in by_writers]
    for names, column in (
        (("warm", "plain_warm"), "kind"),
        (("belittling", "negated"), "kind"),
        (("dialect",), "variety"),
    ):
        counts = [[sum(line[column] == name for line in some) for name in names] for some in by_writers]
        assert all(", ".join(map(str, each)) in THIRD for each in counts)
    for name in MECHANISMS:
        pairs = [[(int(line[f"{name}_first"]), int(line[f"{name}_second"])) for line in some] for some in by_writers]
        assert card_row(f"α {name}", THIRD) == pytest.approx(list(map(krippendorff_alpha, pairs)), abs=0.0006)
    assert all((line["half"] == "held-out") is (line["id"][0] in "ghuvowxABD") for line in lines)
    for line in lines:
        for name in MECHANISMS:  # the final label is one of the two, or lies between them
            assert line[name] in (line[f"{name}_first"], line[f"{name}_second"], "1")
        if line["kind"] in ("negated", "mismatched"):
            assert line["interpretation"] == line["exploration"] == "0"


def test_our_metrics_learn_from_no_held_out_reply() -> None:
    held_out = {row.reply for data in (labelled_set(), blind_set()) for row in data.part("held-out").rows}
    assert len(held_out) == 240 + 1416
    assert len(calibration_set()) == 240 + 3332 + 480
    assert held_out.isdisjoint(calibration_set().replies)


def test_labels_fit_the_kinds() -> None:
    for row in labelled_set().rows:
        assert row.second is not None
        if row.kind in ("cold", "copy", "dismissive"):
            assert row.levels == (0, 0, 0)
        if row.kind == "empathic":
            assert sum(row.levels) > 0
        if row.kind == "stuffed":
            assert max(row.levels) <= 1


def test_the_texts_are_clean() -> None:
    for row in labelled_set().rows:
        for text in (row.message, row.reply, row.topic):
            assert text == text.strip() and "\n" not in text
            assert not re.search("[\ufffd\u09bc0-9]|\\s।", text), (
                text
            )  # nukta letters as one, danda close, Bengali digits


def test_the_card_says_who_made_it() -> None:
    for words_of_it in ("CC0 1.0", "No person", "Not for"):
        assert words_of_it in CARD
    assert all(f"`{name}`" in CARD for name in ("id", "half", "kind", "topic", *REQUIRED))


ROW = {
    "id": "a1",
    "half": "held-out",
    "topic": "কাজ",
    "message": "চাকরিটা গেল।",
    "reply": "মনটা ভার হয়ে গেল।",
    "kind": "empathic",
    **dict.fromkeys(MECHANISMS, "1"),
}


def write(path: Path, *changes: dict[str, str | None], separator: str = ",") -> Path:
    rows = [{**ROW, **change} for change in changes]
    names = [name for name in rows[0] if rows[0][name] is not None]
    lines = [separator.join(names), *(separator.join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", {}, {"reply": "অফিসে যান।", "kind": "cold", "exploration": "0"})
    data = read_labelled(path)
    assert (len(data), data.ids, data.source) == (2, ("a1", "a1"), "mine.csv")
    assert list(data.empathic) == [True, False] and data.levels.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert data.rows[0].second is None and data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for separator in "\t;":
        assert read_labelled(write(tmp_path / "mine.tsv", {}, separator=separator)).rows == data.rows[:1]
    seconds = {f"{name}_second": "2" for name in MECHANISMS}
    assert read_labelled(write(tmp_path / "second.csv", seconds)).rows[0].second == (2, 2, 2)


def test_a_file_needs_only_messages_replies_and_labels(tmp_path: Path) -> None:
    bare = dict.fromkeys(("id", "half", "topic", "kind"))
    strong = {**bare, "reply": "মনটা ভেঙে গেছে না?", "exploration": "2"}
    data = read_labelled(write(tmp_path / "bare.csv", bare, strong, {**bare, "message": "ভর্তি হলাম!"}))
    assert data.ids == ("চাকরিটা গেল।", "চাকরিটা গেল।", "ভর্তি হলাম!")
    assert [row.kind for row in data.rows] == ["other", "empathic", "other"]
    with pytest.raises(InputError, match="no row has half 'held-out'"):
        data.part("held-out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"reply": None}], "bad.csv: no column reply; a labelled file has message, reply, emotional_reaction"),
        ([{"kind": " "}], "bad.csv, line 2: kind is empty"),
        ([{}, {"exploration": "3"}], "bad.csv, line 3: exploration is '3'; a level is 0"),
        ([{"interpretation": ""}], "bad.csv, line 2: interpretation is ''"),
        ([{"reply": " "}], "bad.csv, line 2: reply is empty"),
        ([{"half": "test"}], "bad.csv, line 2: half is 'test'; use one of development, held-out"),
        ([{}, {"message": "অন্য কথা।"}], "id 'a1' has two different messages"),
        ([{}, {"half": "development"}], "id 'a1' has two different halves"),
        ([{"reply": "এক, দুই"}], "bad.csv, line 2: more fields than columns"),
        ([{"exploration_second": "x"}], "bad.csv, line 2: emotional_reaction_second is None"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: list[dict[str, str | None]], message: str) -> None:
    path = write(tmp_path / "bad.csv", *changes)
    with pytest.raises(InputError, match=re.escape(message)):
        read_labelled(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_labelled(tmp_path / "none.csv")
    latin = tmp_path / "latin.csv"
    latin.write_bytes(",".join(REQUIRED).encode() + b"\nna\xefve")
    with pytest.raises(InputError, match=re.escape("latin.csv, line 2: not UTF-8")):
        read_labelled(latin)
    with pytest.raises(InputError, match="there is no row"):
        empty = tmp_path / "empty.csv"
        empty.write_text(",".join(REQUIRED) + "\n", encoding="utf-8")
        read_labelled(empty)
    with pytest.raises(InputError, match="no row has half 'development'"):
        read_labelled(write(tmp_path / "half.csv", {}), "development")
    with pytest.raises(UsageError, match="there is no half 'test'"):
        labelled_set("test")


@pytest.mark.parametrize("metric", [KeywordEmpathy(), SemanticEmpathy()], ids=lambda m: m.name)
def test_other_writers_empathic_replies_are_known_too(metric: KeywordEmpathy | SemanticEmpathy) -> None:
    others = read_labelled(str(files("bnbench.metrics.labelled").joinpath("others_bn.csv")))
    assert len(others) == 480 and len(set(others.ids)) == 80
    scores = metric.score(list(others.replies), messages=list(others.messages)).per_item
    assert given_away(others, list(scores)) > 0.9
