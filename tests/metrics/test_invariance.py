"""Same text, another spelling: every score stays where it was. And the text against itself is 100, always."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bnbench.metrics import BLEU, ROUGE, ChrF, ChrFPlusPlus, KeywordEmpathy, Metric, Result

LETTER = "[\u0985-\u09b9\u09bc-\u09ce\u09d7\u09dc-\u09e3]"
PRECOMPOSED = {"\u09af\u09bc": "\u09df", "\u09a1\u09bc": "\u09dc", "\u09a2\u09bc": "\u09dd"}
TO_ASCII = str.maketrans("০১২৩৪৫৬৭৮৯", "0123456789")


def nukta_as_one(text: str) -> str:
    for two, one in PRECOMPOSED.items():
        text = text.replace(two, one)
    return text


def joiner_in_ra_ya(text: str, joined: str) -> str:
    return re.sub("\u09b0[\u200c\u200d]?\u09cd\u09af", joined, text)


def nukta_as_two(text: str) -> str:
    for two, one in PRECOMPOSED.items():
        text = text.replace(one, two)
    return text


SPELLINGS: dict[str, Callable[[str], str]] = {
    "nukta as one code point": nukta_as_one,
    "nukta as two": nukta_as_two,
    "danda spaced": lambda text: text.replace("।", " । "),
    "danda as full stop": lambda text: re.sub(f"(?<={LETTER})।", ".", text),
    "danda as pipe": lambda text: re.sub(f"(?<={LETTER})।", "|", text),
    "danda as U+09F7": lambda text: text.replace("।", "৷"),
    "ZWNJ after hasanta": lambda text: text.replace("\u09cd", "\u09cd\u200c"),
    "ra-ya with ZWJ before hasanta": lambda text: joiner_in_ra_ya(text, "\u09b0\u200d\u09cd\u09af"),
    "ra-ya with ZWJ after hasanta": lambda text: joiner_in_ra_ya(text, "\u09b0\u09cd\u200d\u09af"),
    "ASCII digits": lambda text: text.translate(TO_ASCII),
    "old khanda ta": lambda text: text.replace("\u09ce", "\u09a4\u09cd\u200d"),
    "o split": lambda text: text.replace("\u09cb", "\u09c7\u09be"),
    "au split": lambda text: text.replace("\u09cc", "\u09c7\u09d7"),
    "BOM and zero-width spaces": lambda text: "\ufeff" + text.replace(" ", " \u200b"),
}  # fmt: skip
EXTRA = ["হঠাৎ র‍্যাব ৫:৩০-এ এসে ১,৫০০.৭৫ টাকা চাইল। উৎসব ২য় দিন।", "কার্যালয়ে সূর্য ওঠার আগে ক্ষমা চাই। বড় দুঃখ, মৌমাছি আর নৌকা।"]


@pytest.mark.no_cover
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("metric", [BLEU(), ROUGE(), ChrF(), ChrFPlusPlus()], ids=lambda metric: metric.name)
def test_another_spelling_is_the_same_text(metric: Metric, spelling: str, sentences: list[str]) -> None:
    texts = [*EXTRA, *sentences]
    changed = list(map(SPELLINGS[spelling], texts))
    assert changed != texts
    for made in (metric.score(changed, texts), metric.score(texts, changed)):
        assert set(made.scores.values()) == {100.0}
        assert set(made.per_item) == {100.0}


@pytest.fixture(scope="module")
def plain(sentences: list[str]) -> Result:
    return KeywordEmpathy().score(sentences[1::2], messages=sentences[0::2])


@pytest.mark.no_cover
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_keyword_empathy_does_not_see_the_spelling(spelling: str, sentences: list[str], plain: Result) -> None:
    messages, replies = sentences[0::2], sentences[1::2]
    changed = KeywordEmpathy().score(
        list(map(SPELLINGS[spelling], replies)), messages=list(map(SPELLINGS[spelling], messages))
    )
    assert plain.value > 0
    assert np.array_equal(changed.table, plain.table)


def test_without_the_rule_the_score_falls(sentences: list[str]) -> None:
    from bnbench.metrics import Normalizer

    one, two = list(map(nukta_as_one, sentences)), list(map(nukta_as_two, sentences))
    assert BLEU(norm="none").score(one, two).value < 80
    old = [text.replace("\u09ce", "\u09a4\u09cd\u200d") for text in EXTRA]
    assert BLEU(norm=Normalizer(off=frozenset({"khanda_ta"}))).score(old, EXTRA).value < 90


def test_unrelated_sentences_have_no_rouge() -> None:
    made = ROUGE().score(["আমি ভালো আছি।", "বৃষ্টি পড়ছে, ok 5!"], ["তুমি কোথায় ছিলে।", "কাজটা শেষ হলো? (হ্যাঁ)"])
    assert set(made.scores.values()) == {0.0}


BENGALI = st.lists(
    st.one_of(
        st.characters(min_codepoint=0x0985, max_codepoint=0x09B9, categories=["Lo"]),
        st.sampled_from(list("ািীুূেোৌ্ংঃঁ়ৎ \n।?০৫a5.|\u200c\u200d")),
    ),
    min_size=1,
    max_size=25,
).map("".join)


@pytest.mark.no_cover
@given(BENGALI)
@settings(max_examples=400, deadline=None)
@example("ক")
@example("ক খ")
@example("র‍্য")
def test_every_text_is_itself(text: str) -> None:
    if not any("\u0985" <= character <= "\u09b9" for character in text):
        return
    for metric in (BLEU(), ROUGE(), ChrF(), ChrFPlusPlus()):
        made = metric.score([text], [text])
        assert made.value == 100.0


@pytest.mark.no_cover
@given(BENGALI, BENGALI)
@settings(max_examples=200, deadline=None)
def test_scores_are_finite_and_within_their_scale(a: str, b: str) -> None:
    for metric in (BLEU(), ROUGE(), ChrF(), ChrFPlusPlus()):
        values = np.array(list(metric.score([a, b], [b, a]).scores.values()))
        assert np.isfinite(values).all()
        assert (values >= 0).all() and (values <= 100 + 1e-9).all()
