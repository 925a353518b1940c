"""The original project's figures, reproduced from its formulas with the numbers worked out by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from bnbench.metrics import (
    InputError,
    MissingExtraError,
    Normalizer,
    normalization,
    original_scores,
    tokenization,
    tokenize,
)
from bnbench.metrics.original import PATTERNS, semantic_scores

REPLY = "আমি বুঝতে পারছি, খুব কষ্ট হচ্ছে। ঠিক আছে, ok 5"


def test_keyword_score() -> None:
    assert len(PATTERNS) == 14
    replies = [REPLY, "কিছু না", " ".join(PATTERNS)]
    alone = [original_scores([reply], ["ক"]).keyword for reply in replies]
    assert alone == pytest.approx([200 * 3 / 14, 0, 100])
    assert original_scores(replies, replies).keyword == pytest.approx(sum(alone) / 3)


def test_semantic_score_takes_any_encoder() -> None:
    def encode(texts: object) -> list[list[float]]:
        return [[2.0, 0] if "কষ্ট" in text or "আশা" in text else [0, 3.0] for text in texts]  # type: ignore[attr-defined]

    made = semantic_scores(["কষ্ট", "আনন্দ"], encode)
    assert made.tolist() == pytest.approx([200 * 2 / 12, 100])
    with pytest.raises(InputError, match="one row per text"):
        semantic_scores(["কষ্ট"], lambda texts: np.zeros((2, 3)))
    assert semantic_scores(["কষ্ট"], lambda texts: np.zeros((13, 3))).tolist() == [0.0]


def test_the_published_combination_mixes_scales() -> None:
    made = original_scores(["we are not bad"], ["we are not bad"])
    assert (made.bleu, made.rougeL, made.keyword) == (pytest.approx(100), 1, 0)
    assert made.combined == pytest.approx(25 + 0.15)


def test_ascii_rouge_is_blind_to_bengali() -> None:
    assert original_scores(["আমি ভালো আছি।"], ["আমি ভালো আছি।"]).rougeL == 0.0
    assert original_scores(["আমি ভালো ok 5"], ["বৃষ্টি ok 5"]).rouge1 == 1.0


def test_all_figures_and_what_they_should_have_been() -> None:
    made = original_scores([REPLY, "তুমি একা নন"], [REPLY, "তুমি একা নন"], messages=["মন খারাপ", "একা লাগে"])
    assert "keyword-empathy" in made.corrected
    assert "keyword-empathy" not in original_scores([REPLY], [REPLY]).corrected
    assert made.rougeL == 0.5
    assert made.keyword == pytest.approx((200 * 3 / 14 + 200 / 14) / 2)
    assert made.semantic is None
    assert made.combined == pytest.approx(0.25 * made.bleu + 0.15 * 0.5 + 0.6 * made.keyword / 100)
    assert {made.corrected[name] for name in ("BLEU", "rouge1", "rouge2", "rougeL")} == {100.0}
    assert made.corrected["combined"] == pytest.approx(0.25 * 100 + 0.15 * 100 + 0.6 * made.keyword)
    assert "norm:none" in made.signature
    glued = original_scores(["আমি ভালো আছি। তুমি"], ["আমি ভালো আছি । তুমি"])
    assert glued.bleu < 50


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="no reply"):
        original_scores([], [])
    with pytest.raises(InputError, match="2 references"):
        original_scores(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("rouge_score", lambda: original_scores(["ক"], ["ক"])),
        ("indicnlp", lambda: Normalizer("indicnlp")("ক")),
        ("indicnlp", lambda: tokenize("ক", tokenizer="indicnlp")),
        ("sacrebleu", lambda: tokenize("ক", tokenizer="intl")),
    ],
)
def test_packages_for_comparison_are_an_extra(
    module: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    for cached in (normalization._indicnlp, tokenization._by_text):
        cached.cache_clear()
    with pytest.raises(MissingExtraError, match=rf'needs {module}: pip install "\.\[compare\]"'):
        use()
