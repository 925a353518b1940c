"""The audit of metrics whose faults are known: each is found, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from bnbench.metrics import KeywordEmpathy, Metric, Perplexity, UsageError, get_metric, tokenize
from bnbench.metrics.audit import AuditReport, Check, OriginalSemantic, audit, audits, audits_text, read_audits
from bnbench.metrics.audit.checks import references_of
from bnbench.metrics.audit.findings import NUMBER_OF_REPLIES
from bnbench.metrics.audit.perturbations import PERTURBATIONS, SPELLINGS
from bnbench.metrics.core import FloatArray, Texts, ratio
from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.empathy.encoder import load_encoder, words_only
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.labelled import LabelledReply, LabelledSet, labelled_set

FEW = 200  # resamples


class Toy(Metric):
    """A metric that is a function of the reply and the message."""

    name: ClassVar[str] = "toy"
    description: ClassVar[str] = "a toy"

    def __init__(self, score: Callable[[str, str], float | Sequence[float]], *values: str, lower: bool = False) -> None:
        self._score = score
        self.values = values or ("toy",)
        self.columns = (*self.values, "replies")
        if lower:
            self.higher_is_better = False  # type: ignore[misc]

    def statistics(self, texts: Texts) -> FloatArray:
        pairs = zip(texts.replies, texts.messages or (), strict=True)
        return np.array([[*np.atleast_1d(self._score(*pair)), 1] for pair in pairs], dtype=np.float64)

    def formula(self, sums: FloatArray) -> FloatArray:
        return ratio(sums[..., :-1], sums[..., -1:])

    @property
    def choices(self) -> Mapping[str, object]:
        return {"seen": "yes"}


def length(reply: str, message: str) -> float:
    return float(len(tokenize(reply)))


def knowing(value: Callable[[LabelledReply], float | Sequence[float]], unknown: float | Sequence[float] = 0.0) -> Toy:
    """A metric that looks the labels up, by the tokens of the reply and the message."""
    known = {(*tokenize(row.reply), row.message): value(row) for row in labelled_set().rows}
    return Toy(lambda reply, message: known.get((*tokenize(reply), message), unknown))


def verdicts(report: AuditReport, group: str) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks if check.group == group}


def check(report: AuditReport, name: str) -> Check:
    [found] = [each for each in report.checks if each.name == name]
    return found


@pytest.fixture(scope="module")
def keyword() -> AuditReport:
    return audit(KeywordEmpathy(), resamples=FEW)


@pytest.fixture(scope="module")
def original() -> AuditReport:
    return audit(KeywordEmpathy("original"), resamples=FEW)


def test_the_shipped_keyword_metric_is_trustworthy_on_the_held_out_half(keyword: AuditReport) -> None:
    assert keyword.trustworthy and keyword.verdict.startswith("trustworthy here")
    assert (keyword.replies, keyword.messages, keyword.data) == (240, 40, "empathy_bn.csv (held-out)")
    assert set(verdicts(keyword, "spelling").values()) == {"passes", "not applicable"}
    assert check(keyword, "AUC").numbers["value"] > 0.8
    # Credit hangs on the message's own words: a reply to another message is not anchored in this one.
    assert check(keyword, "another message's reply").verdict == "passes"


def test_the_originals_keywords_are_not(original: AuditReport) -> None:
    assert not original.trustworthy and not original.passed
    assert original.verdict == "not trustworthy here: not better than copy of the message"
    found = check(original, "AUC")
    assert found.numbers["value"] == pytest.approx(0.41, abs=0.005) and found.verdict == "fails"
    assert check(original, "keywords stuffed").numbers["better"] == 1
    assert check(original, "negation put in").verdict == "limit"
    assert check(original, "ZWNJ after hasanta").verdict == "fails"
    assert [row.name for row in original.standings if not row.sentinel] == [
        "keyword-empathy lex:original.1-71603595",
        f"original-semantic enc:{words_only(load_encoder()).id}",
    ]


def test_a_metric_that_knows_the_labels_passes_everything_it_can() -> None:
    report = audit(knowing(lambda row: float(row.kind == "empathic")), resamples=FEW)
    assert check(report, "AUC").numbers["value"] == 1 and report.trustworthy and report.passed
    found = verdicts(report, "change")
    assert found.pop("register swapped") == "limit"  # it does not know those replies
    assert set(found.values()) == {"passes"} and len(found) == len(PERTURBATIONS) - 1
    assert verdicts(report, "kind") == dict.fromkeys(["stuffed", "dismissive", "generic", "cold", "copy"], "passes")
    assert report.verdict == "trustworthy here; known limits: change register swapped"


def test_length_is_not_trusted_for_being_a_sentinel() -> None:
    report = audit(Toy(length), resamples=FEW)
    row = {standing.name: standing for standing in report.standings}
    assert row["toy seen:yes"].measures["AUC"].value == pytest.approx(row["length"].measures["AUC"].value, abs=0.02)
    assert not report.trustworthy and check(report, "AUC").verdict == "fails"


def test_a_constant_is_worth_nothing() -> None:
    report = audit(Toy(lambda reply, message: 7.0), resamples=FEW)
    assert check(report, "AUC").numbers["value"] == 0.5 and not report.passed
    assert set(verdicts(report, "spelling").values()) == {"passes", "not applicable"}
    assert check(report, "words shuffled").verdict == "limit" and check(report, "register swapped").verdict == "passes"


def test_shortness_is_a_sentinel_as_length_is() -> None:
    rows = labelled_set("held-out").rows
    short = {row.reply for row in rows if len(row.reply) < 110}
    data = LabelledSet(tuple(row for row in rows if (row.kind == "empathic") == (row.reply in short)), "short", "0")
    report = audit(knowing(lambda row: float(row.kind == "empathic")), data, resamples=FEW)
    found = check(report, "AUC")
    assert found.numbers["sentinel"] == "length" and found.numbers["sentinel_value"] > 0.9


def test_lower_is_better_is_turned_round() -> None:
    up = audit(Toy(length), resamples=FEW)
    down = audit(Toy(lambda reply, message: -length(reply, message), lower=True), resamples=FEW)
    assert [each.verdict for each in up.checks] == [each.verdict for each in down.checks]
    assert up.standings == down.standings


def test_a_mechanism_of_the_metrics_own_is_compared_with_its_label() -> None:
    levels = knowing(lambda row: [0.0, *map(float, row.levels)], [0.0] * 4)
    report = audit(Toy(levels._score, "toy", *MECHANISMS), resamples=FEW)
    for name in MECHANISMS:
        found = check(report, f"tau {name}")
        assert found.numbers["value"] == pytest.approx(1) and found.gate and found.verdict == "passes"
        assert set(found.numbers["p_values"]) == {"length", "constant", "copy of the message", "question mark"}
        assert max(found.numbers["p_values"].values()) < 0.01
    assert check(report, "AUC").numbers["value"] == 0.5 and not report.trustworthy
    assert not check(audit(Toy(length), resamples=FEW), "tau exploration").gate


@pytest.mark.parametrize(
    ("seen", "spelling"),
    [
        ("\u09df", "nukta as one sign or two"),
        ("।", "danda as . or |"),
        (" ", "danda after a blank"),
        ("\u200c", "ZWNJ after hasanta"),
        ("0123456789", "digits Bengali or ASCII"),
        ("\u09ce", "khanda ta as ta and ZWJ"),
        ("\u09cb", "o, au as one sign or two"),
    ],
)
def test_a_metric_that_sees_spelling_fails_there(seen: str, spelling: str) -> None:
    report = audit(Toy(lambda reply, message: 10.0 * sum(reply.count(mark) for mark in seen)), resamples=FEW)
    failed = check(report, spelling)
    assert failed.verdict == "fails" and failed.gate and not report.passed
    assert failed.numbers["largest_change"] >= 10 and failed.numbers["changed"] > 0
    assert failed.shown == f"{failed.numbers['changed']} change, by {failed.numbers['largest_change']:.2f} at most"


def test_every_reply_is_spelt_and_counted(keyword: AuditReport) -> None:
    replies = labelled_set("held-out").replies
    counted = {name: sum(spelling(reply) != reply for reply in replies) for name, spelling in SPELLINGS.items()}
    assert {each.name: each.n for each in keyword.checks if each.group == "spelling"} == counted
    assert check(keyword, "ra-ya in two encodings").verdict == "not applicable"


def test_the_mean_change_is_over_messages() -> None:
    report = audit(Toy(lambda reply, message: float(reply == message)), resamples=FEW)
    found = check(report, "the message given back")
    assert found.numbers["mean_change"] == 1 and found.numbers["better"] == 1 and found.verdict == "fails"
    assert found.n == 40
    assert check(report, "keywords stuffed").numbers["mean_change"] == 0


def test_a_copy_must_be_worse_in_nearly_every_message() -> None:
    ids = sorted(set(labelled_set("held-out").ids))
    fooled = {row.message for row in labelled_set("held-out").rows if row.id in ids[:4]}
    known = knowing(lambda row: float(row.kind == "empathic"))
    metric = Toy(lambda reply, message: 2.0 if reply == message in fooled else known._score(reply, message))
    found = check(audit(metric, resamples=FEW), "the message given back")
    assert found.numbers["worse"] == 0.9 and found.numbers["high"] < 0 and found.verdict == "fails"


def test_each_kind_is_held_against_the_same_messages_empathic_replies() -> None:
    data = labelled_set("held-out")
    worth = {"empathic": 2.0, "cold": 3.0, "stuffed": 1.0}
    fooled = next(row.id for row in data.rows if row.kind == "stuffed")
    metric = knowing(lambda row: 5.0 if (row.id, row.kind) == (fooled, "stuffed") else worth.get(row.kind, 0.0))
    report = audit(metric, data, resamples=FEW)
    found = {each.name: each for each in report.checks if each.group == "kind"}
    assert {name: each.n for name, each in found.items()} == {
        "stuffed": 20, "dismissive": 40, "generic": 40, "cold": 40, "copy": 20,
    }  # fmt: skip
    assert (found["cold"].numbers["mean_change"], found["cold"].verdict, found["cold"].gate) == (1, "limit", False)
    assert found["generic"].numbers["worse"] == 1 and found["generic"].verdict == "passes"
    assert found["stuffed"].numbers["worse"] == 0.95 and found["stuffed"].gate
    assert found["copy"].verdict == "passes" and found["copy"].gate


def test_references_are_other_empathic_replies() -> None:
    data = labelled_set("held-out")
    references = references_of(data)
    for row, reference in zip(data.rows, references, strict=True):
        empathic = [other for other in data.rows if other.id == row.id and other.kind == "empathic" and other != row]
        assert reference != row.reply and reference in [other.reply for other in empathic]
        assert sum(next(o for o in empathic if o.reply == reference).levels) == max(sum(o.levels) for o in empathic)


def test_a_reference_metric_can_be_audited() -> None:
    report = audit(get_metric("chrF++"), resamples=FEW)
    assert not report.trustworthy and set(verdicts(report, "spelling").values()) == {"passes", "not applicable"}


def test_what_cannot_be_audited() -> None:
    with pytest.raises(InputError, match="perplexity cannot be audited: it needs likelihoods"):
        audit(Perplexity())
    data = labelled_set("held-out")
    with pytest.raises(InputError, match="0 of 160 replies are empathic, and an audit needs some"):
        audit(Toy(length), LabelledSet(tuple(row for row in data.rows if row.kind != "empathic"), "mine", "0"))
    one = [row for row in data.rows if row.kind == "empathic"][::2]
    few = LabelledSet((*one, *(row for row in data.rows if row.kind == "cold")), "mine", "0")
    with pytest.raises(InputError, match="mine: message 'm01' has no other empathic reply"):
        audit(get_metric("chrF++"), few)
    with pytest.raises(InputError, match="4800 rows"):
        audit(Toy(length), LabelledSet(data.rows * 20, "mine", "0"))
    with pytest.raises(InputError, match="finite"):
        audit(Toy(lambda reply, message: float("nan")), resamples=FEW)


def test_few_messages_are_not_judged() -> None:
    data = labelled_set("held-out")
    few, four = (LabelledSet(data.rows[: 6 * n], "few", "0") for n in (5, 4))
    rare = [check for check in audit(Toy(length), few, resamples=FEW).checks if check.group == "change" and check.n < 5]
    assert rare and {check.verdict for check in rare} == {"not applicable"}
    with pytest.raises(InputError, match="few: messages: 4; an audit resamples them and needs 5 or more"):
        audit(Toy(length), four, resamples=FEW)


def test_it_is_deterministic_and_serialisable(original: AuditReport) -> None:
    again = audit(KeywordEmpathy("original"), resamples=FEW)
    assert again.as_dict() == original.as_dict() and str(again) == str(original)
    written = json.loads(json.dumps(original.as_dict(), ensure_ascii=False, allow_nan=False))
    assert written["verdict"] == original.verdict and written["passed"] is False and written["trustworthy"] is False
    assert len(written["checks"]) == 8 + len(PERTURBATIONS) + 5 + 4
    assert written["standings"][0]["measures"]["AUC"].keys() == {"value", "low", "high"}
    other = audit(KeywordEmpathy("original"), resamples=FEW, seed=7)
    assert other.as_dict() != original.as_dict()


def test_the_table(keyword: AuditReport, original: AuditReport) -> None:
    lines = str(keyword).splitlines()
    assert max(map(len, lines[1:])) <= 110
    assert lines[0] == keyword.signature and "240 replies to 40 messages, seed 42" in lines[1]
    assert any(line.startswith("spelling: danda after a blank") and line.endswith("pass *") for line in lines)
    limits = [each.name for each in keyword.checks if each.verdict == "limit"]
    assert limits and not any(each.gate for each in keyword.checks if each.verdict == "limit")
    for name in limits:
        assert any(line.startswith(f"change: {name}") and line.endswith("limit") for line in lines)
    both = audits_text([keyword, original])
    _, table = both.split("agreement with the labels")
    assert [line.split("  ")[0] for line in table.split("\n* a gate")[0].splitlines()[1:]] == [
        "keyword-empathy lex:bn.3",
        "keyword-empathy lex:original.1",
        "original-semantic enc:bn-static",
        *("length", "constant", "copy of the message", "question mark"),
    ]
    assert (
        both.count("agreement with the labels") == 1
        and max(len(line) for line in both.splitlines() if "|" not in line) <= 110
    )


def test_a_plain_audit_is_the_audit_again(original: AuditReport, tmp_path: Path) -> None:
    (tmp_path / "audits.json").write_text(json.dumps([original.as_dict()]), encoding="utf-8")
    assert read_audits(tmp_path / "audits.json") == [original]
    (tmp_path / "other.json").write_text('[{"metric": "x"}]', encoding="utf-8")
    for name, says in (("other.json", "not what `bnbench audit METRIC --json` prints"), ("none.json", "make a file")):
        with pytest.raises(UsageError, match=says):
            read_audits(tmp_path / name)


def test_the_audits_on_record_are_those_of_this_version() -> None:
    """Where it fails: run `python scripts/record_audits.py`, and look at what it changes in docs/empathy.md."""
    recorded, made = read_audits(), audits(["keyword-empathy", "semantic-empathy", "Keyword-Empathy"])
    assert [each.signature for each in recorded] == [each.signature for each in made]
    for old, new in zip(recorded, made, strict=True):
        assert (old.data, old.data_sha256, old.resamples, old.verdict) == (
            new.data, new.data_sha256, new.resamples, new.verdict,
        )  # fmt: skip
        assert [(c.name, c.verdict, c.shown) for c in old.checks] == [(c.name, c.verdict, c.shown) for c in new.checks]
        for one, other in zip(old.standings, new.standings, strict=True):
            assert one.name == other.name
            for name, estimate in one.measures.items():
                assert estimate.value == pytest.approx(other.measures[name].value, abs=1e-9)
                assert estimate.low == pytest.approx(other.measures[name].low, abs=1e-6)


def test_a_signature_without_its_number() -> None:
    assert NUMBER_OF_REPLIES.sub("", "x|lex:n.2-1a|n:240|bnbench:0.9") == "x|lex:n.2-1a|bnbench:0.9"
    assert NUMBER_OF_REPLIES.sub("", "x|norm:bn1|n:3") == "x|norm:bn1"


def test_the_originals_semantic_score_takes_any_encoder() -> None:
    class Letters:
        id = "letters@00000000"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([[text.count("ক"), text.count("ব"), 1] for text in texts], dtype=np.float32)

    names = [row.name for row in audit(OriginalSemantic(Letters()), resamples=FEW).standings]
    shipped = f"original-semantic enc:{words_only(load_encoder()).id}"
    assert names[::2][:2] == ["original-semantic enc:letters@00000000", shipped]
    assert names[1].startswith("keyword-empathy lex:original.1")


def test_audits_take_names_and_files(tmp_path: Path) -> None:
    header = "id,half,topic,message,reply,kind,emotional_reaction,interpretation,exploration\n"
    kinds = {"empathic": "তোমার জন্য মায়া লাগছে। কেমন লাগছিল তখন?", "cold": "নিয়মটা অফিসে জেনে নিন।"}
    rows = [
        f"{m},held-out,t,বার্তা {m},{reply} {m},{kind},{int(kind == 'empathic') * 2},0,0\n"
        for m in range(6)
        for kind, reply in kinds.items()
    ]
    path = tmp_path / "mine.csv"
    path.write_text(header + "".join(rows), encoding="utf-8")
    [report] = audits(["keyword-empathy"], path, resamples=FEW)
    assert (report.data, report.messages) == ("mine.csv", 6)
    assert [each.data for each in audits([Toy(length)], half="development", resamples=FEW)] == [
        "empathy_bn.csv (development)"
    ]
    with pytest.raises(InputError, match="perplexity cannot"):
        audits([Toy(length), "perplexity"], path)
    with pytest.raises(UsageError, match="there is no metric"):
        audits(["empathy"])


def test_reading_audits_reads_nothing_that_makes_them() -> None:
    code = "import sys; from bnbench.metrics.audit import read_audits; read_audits(); "
    code += (
        "sys.exit(any(m.startswith(('bnbench.metrics.audit.checks', 'bnbench.metrics.empathy')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_metrics_does_not_import_the_audit() -> None:
    code = "import sys, bnbench.metrics; sys.exit(any('audit' in m or 'labelled' in m for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
