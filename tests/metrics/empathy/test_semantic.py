"""Semantic empathy: what earns and what does not, on texts written here; anchors, calibration, and what it may cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnbench.metrics import SemanticEmpathy, UsageError, get_metric
from bnbench.metrics.empathy import mechanisms
from bnbench.metrics.empathy.encoder import load_encoder, words_only
from bnbench.metrics.empathy.lexicon import MECHANISMS
from bnbench.metrics.empathy.semantic import CALIBRATION, CONTRASTS, FEATURES, HEADS, load_anchors, load_calibration
from bnbench.metrics.errors import InputError
from bnbench.metrics.labelled import labelled_set

ROOT = Path(__file__).parents[3]
MESSAGE = "বাবা গত মাসে মারা গেছেন। ওঁর চশমাটা এখনও টেবিলের ওপর রাখা, সরাতে পারছি না।"
REPLIES = {
    "warm": "তোমার জন্য বুকটা ভারী হয়ে গেল, কাছে থাকলে জড়িয়ে ধরতাম।",
    "seen": "চশমাটা সরালে যেন বাবাকেই আরেকবার বিদায় দিতে হবে, সেই ভয়েই হাত থেমে যায়।",
    "asking": "চশমাটার দিকে তাকালে বাবার কোন কথাটা সবচেয়ে বেশি মনে পড়ে তোমার?",
    "advice": "মৃত্যুসনদ তুলে ব্যাংকে জমা দিন, নমিনির কাগজও সঙ্গে রাখুন।",
    "dismissive": "সবার বাবাই একদিন মরে, একটা চশমা নিয়ে এত নাটক করার কিছু নাই।",
    "generic": "জীবন এগিয়ে চলে। নিয়মিত হাঁটুন, ভালো বই পড়ুন।",
    "stuffed": "আপনার কষ্ট বুঝতে পারছি। আমি দুঃখিত। আপনি একা নন। সাহস রাখুন, আশা রাখুন।",
    "copy": "বাবা গত মাসে মারা গেছেন। ওঁর চশমাটা এখনও টেবিলের ওপর রাখা, সরাতে পারছ না।",
}
EMPATHIC = ("warm", "seen", "asking")


@pytest.fixture(scope="module")
def metric() -> SemanticEmpathy:
    return SemanticEmpathy()


def scores(metric: SemanticEmpathy, *replies: str, message: str = MESSAGE) -> list[float]:
    return metric.score(replies, messages=[message] * len(replies)).per_item.tolist()


def test_an_empathic_reply_scores_above_every_other(metric: SemanticEmpathy) -> None:
    found = dict(zip(REPLIES, scores(metric, *REPLIES.values()), strict=True))
    empathic = [found.pop(name) for name in EMPATHIC]
    assert np.mean(empathic) > 1.3 * found.pop("dismissive")  # retelling with contempt is what it tells apart worst
    assert min(empathic) > 1.3 * max(found.values())
    assert found["copy"] == 0
    assert min(found.values()) >= 0 and max(empathic) <= 100


def test_each_mechanism_is_told_from_the_others(metric: SemanticEmpathy) -> None:
    result = metric.score([REPLIES[name] for name in EMPATHIC], messages=[MESSAGE] * 3)
    assert mechanisms(result).argmax(axis=0).tolist() == [0, 1, 2]
    assert mechanisms(result).shape == (3, 3)
    assert list(result.scores) == ["semantic_empathy", *MECHANISMS]
    assert result.value == pytest.approx(result.per_item.mean()) == pytest.approx(mechanisms(result).mean())


def test_saying_it_twice_earns_nothing(metric: SemanticEmpathy) -> None:
    once, twice = scores(metric, REPLIES["warm"], " ".join([REPLIES["warm"]] * 5))
    assert once == pytest.approx(twice)


def test_a_copied_sentence_counts_for_nothing(metric: SemanticEmpathy) -> None:
    alone, beside = scores(metric, REPLIES["warm"], MESSAGE.split("।")[0] + "। " + REPLIES["warm"])
    assert alone == pytest.approx(beside)
    assert scores(metric, "", "।?", MESSAGE) == [0, 0, 0]


def test_a_question_mark_does_not_make_exploration(metric: SemanticEmpathy) -> None:
    asked, kept, gone = scores(metric, REPLIES["advice"].replace("।", "?"), REPLIES["asking"], REPLIES["asking"][:-1])
    assert asked < gone and abs(kept - gone) < kept / 3


def test_an_answer_to_something_else_scores_less_on_average(metric: SemanticEmpathy) -> None:
    data = labelled_set("development")
    rows = [row for row in data.rows if row.kind == "empathic"]
    replies, messages = [row.reply for row in rows], [row.message for row in rows]
    there = metric.score(replies, messages=messages).value
    elsewhere = metric.score(replies, messages=messages[10:] + messages[:10]).value
    assert elsewhere < 0.85 * there


def test_development_half_as_calibrated(metric: SemanticEmpathy) -> None:
    data = labelled_set("development")
    found = metric.score(data.replies, messages=data.messages).per_item
    empathic = data.empathic
    assert np.mean(found[empathic][:, None] > found[~empathic]) > 0.95


def test_spellings_score_the_same(metric: SemanticEmpathy) -> None:
    reply = REPLIES["seen"]
    for spelt in (
        reply.replace("।", " |"),
        reply.replace("\u09df", "\u09af\u09bc"),
        reply.replace("ো", "\u09c7\u09be"),
    ):
        assert spelt != reply or "\u09df" not in reply
        assert scores(metric, spelt) == pytest.approx(scores(metric, reply))


def test_a_reply_does_not_depend_on_its_neighbours(metric: SemanticEmpathy) -> None:
    together = scores(metric, *REPLIES.values())
    alone = [scores(metric, reply)[0] for reply in REPLIES.values()]
    assert together == pytest.approx(alone, abs=1e-4)


def test_explain_names_the_nearest_anchor_and_what_is_copied(metric: SemanticEmpathy) -> None:
    copied, own = metric.explain("বাবা গত মাসে মারা গেছেন। আমি তোমার সঙ্গে আছি, যত রাতই হোক।", MESSAGE)
    assert (copied.void, own.void) == (True, False)
    assert own.nearest_class in ("emotional_reaction", "stamps") and own.nearest in load_anchors().sentences
    assert tuple(own.heads) == HEADS
    assert metric.explain("") == ()
    with pytest.raises(InputError, match="one reply"):
        metric.explain([REPLIES["warm"]], MESSAGE)  # type: ignore[arg-type]


def test_a_list_says_nothing(metric: SemanticEmpathy) -> None:
    listed = "কষ্ট, কান্না, ভরসা, গভীর সমবেদনা, পাশে থাকা, কেমন লাগছে, জড়িয়ে ধরা।"
    first, second = metric.explain(f"{listed} বাবার কথা খুব মনে পড়ছে, না?", MESSAGE)
    assert (first.void, second.void) == (True, False)
    assert scores(metric, listed) == [0]


def test_anchors_are_many_and_their_own() -> None:
    anchors = load_anchors()
    assert min(len(anchors.classes[name]) for name in MECHANISMS) >= 50
    assert min(len(anchors.classes[f"not_{name}"]) for name in MECHANISMS) >= 25
    assert set(anchors.classes) == {*MECHANISMS, *CONTRASTS, *(f"not_{name}" for name in MECHANISMS)}
    assert len(set(anchors.sentences)) == len(anchors.sentences)
    demo = (ROOT / "bnbench" / "demo" / "conversations.csv").read_text(encoding="utf-8")
    labelled = "\n".join(f"{row.message}\n{row.reply}" for row in labelled_set("development").rows)
    long = [sentence.rstrip("।?!") for sentence in anchors.sentences if len(sentence.split()) >= 5]
    assert [sentence for sentence in long if sentence in demo or sentence in labelled] == []


def test_bad_anchors_and_calibrations(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        load_anchors(file)
    file.write_text('advice = ["হাঁটুন।"]\n', "utf-8")
    with pytest.raises(UsageError, match="stamps"):
        load_anchors(file)
    other = tmp_path / "cal.json"
    with pytest.raises(UsageError, match="cannot be read"):
        load_calibration(other)
    other.write_text(json.dumps({"features": ["length"]}), "utf-8")
    with pytest.raises(UsageError, match="other features"):
        load_calibration(other)


def test_a_calibration_for_another_encoder_is_refused(tmp_path: Path) -> None:
    content = json.loads(CALIBRATION.read_text("utf-8"))
    file = tmp_path / "cal.json"
    file.write_text(json.dumps({**content, "encoder": "other@1"}), "utf-8")
    with pytest.raises(UsageError, match=r"for encoder other@1.*calibrate_semantic\.py --encoder"):
        SemanticEmpathy(calibration=file).signature(1)


def test_the_signature_names_encoder_anchors_and_calibration(metric: SemanticEmpathy) -> None:
    anchors, calibration = load_anchors().id, load_calibration().id
    assert metric.signature(3) == (
        f"semantic-empathy|enc:{words_only(load_encoder()).id}|anchors:{anchors}|cal:{calibration}|norm:bn1|tok:bn1|n:3|bnbench:0.2"
    )
    assert get_metric("semantic-empathy").signature(3) == metric.signature(3)


def test_the_script_gives_the_shipped_calibration(tmp_path: Path) -> None:
    out = tmp_path / "cal.json"
    command = [sys.executable, "scripts/calibrate_semantic.py", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": "."}, capture_output=True, text=True, check=True)
    assert "cross-validated by message" in done.stdout
    made, shipped = load_calibration(out), load_calibration()
    assert (made.encoder, made.anchors) == (shipped.encoder, shipped.anchors)
    for name in ("mean", "scale", "weights", "thresholds"):
        assert getattr(made, name) == pytest.approx(getattr(shipped, name), abs=1e-3)
    assert shipped.weights.shape == (len(MECHANISMS), len(FEATURES))


def test_no_torch_is_needed() -> None:
    code = "import sys; from bnbench.metrics import SemanticEmpathy as S; S().score(['ভালো'], messages=['কেমন?']); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
