"""Whether a reply answers its own message: what is heard, what is elsewhere, what says nothing; and the fitted file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnbench.metrics import KeywordEmpathy, SemanticEmpathy, get_metric
from bnbench.metrics.core import Texts
from bnbench.metrics.labelled import blind_set
from bnbench.metrics.relevance import CALIBRATION, Relevance, chances, fitted

ROOT = Path(__file__).parents[2]
MESSAGE = "বাবা গত মাসে মারা গেছেন। ওঁর চশমাটা এখনও টেবিলের ওপর রাখা, সরাতে পারছি না।"
OTHER = "কাল ইন্টারভিউতে তোতলাতে তোতলাতে নিজের নামটাই বলতে পারিনি, বোর্ডের সবাই হাসছিল।"
REPLY = "চশমার দিকে তাকালে বাবার কোন কথাটা মনে পড়ে? টেবিলের ওপর ওটা থাক না আরও কিছু দিন।"
GENERAL = "আমি তোমার পাশে আছি, মন খারাপ কোরো না।"


def relevance(*pairs: tuple[str, str]) -> list[float]:
    replies, messages = zip(*pairs, strict=True)
    return Relevance().score(replies, messages=messages).per_item.tolist()


def test_a_reply_is_relevant_to_its_own_message_and_comfort_that_names_nothing_a_little() -> None:
    own, elsewhere, general = relevance((REPLY, MESSAGE), (REPLY, OTHER), (GENERAL, MESSAGE))
    assert own > 85 and elsewhere < 25
    assert elsewhere < general < 60 < own


def test_inflected_and_romanised_words_are_heard() -> None:
    [inflected, other] = relevance(("চশমাগুলোর কথা ভেবো না।", MESSAGE), ("ছাতাগুলোর কথা ভেবো না।", MESSAGE))
    assert inflected > other + 30
    romanised = "baba gele mash e mara gechen, or chosma ta ekhono tebiler upor rakha"
    assert relevance((REPLY, romanised))[0] > 80


def test_what_is_copied_says_nothing_of_the_reply() -> None:
    copied, alone = relevance((f"{MESSAGE} {GENERAL}", MESSAGE), (GENERAL, MESSAGE))
    assert copied == pytest.approx(alone, abs=5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rows = blind_set().part("development").rows[:60]
    replies, messages = [row.reply for row in rows], [row.message for row in rows]
    whole = Relevance().score(replies, messages=messages).per_item
    for start in (0, 17):
        part = Relevance().score(replies[start : start + 9], messages=messages[start : start + 9]).per_item
        np.testing.assert_array_equal(part, whole[start : start + 9])


def test_empty_texts_have_a_score_and_nothing_is_misplaced_without_a_message() -> None:
    assert np.isfinite(relevance(("", ""), ("", MESSAGE), ("🙂", "?"), (REPLY, ""))).all()
    unsaid, elsewhere = chances(Texts.of([REPLY, REPLY], messages=["", OTHER]), "fit")
    assert elsewhere < 0.25 < 0.85 < unsaid


def test_regional_words_are_heard_as_standard_ones_and_by_their_beginnings() -> None:
    message = "আঁর চশমাখান টেবিলত রাইখ্যি, হাপা মারা গেইয়ে ফর তুন ন ধরি।"
    regional, standard, other = relevance(
        ("চশমাডা টেবিলো থাউক।", message), ("চশমাটা টেবিলে থাক।", message), ("ছাতাডা আলমারিত থাউক।", message)
    )
    assert regional > other + 30 and standard > other + 30


@pytest.mark.parametrize("metric", [KeywordEmpathy(), SemanticEmpathy()], ids=["keyword", "semantic"])
def test_warmth_for_somebody_else_scores_below_warmth_for_this_person(metric: KeywordEmpathy | SemanticEmpathy) -> None:
    data = blind_set().part("development")
    scores = metric.score(data.replies, messages=data.messages).per_item
    kinds = np.array([row.kind for row in data.rows])
    above = scores[kinds == "warm"][:, None] - scores[kinds == "mismatched"][None]
    assert (np.sign(above) + 1).mean() / 2 > 0.88
    denied = scores[kinds == "warm"][:, None] - scores[kinds == "negated"][None]
    assert (np.sign(denied) + 1).mean() / 2 > 0.95


def test_the_metric_has_a_name_and_a_signature() -> None:
    assert isinstance(get_metric("Relevance"), Relevance)
    assert Relevance().signature(2).startswith(f"relevance|cal:{fitted().id}|lex:bn.3-")


def test_the_script_gives_the_shipped_calibration(tmp_path: Path) -> None:
    out = tmp_path / "relevance.json"
    command = [sys.executable, "scripts/calibrate_relevance.py", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fit: warm above mismatched, AUC 0.9" in done.stdout
    assert out.read_text("utf-8") == CALIBRATION.read_text("utf-8")
