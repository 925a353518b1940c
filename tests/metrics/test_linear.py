"""What reads raw text takes time in proportion to its length, whatever it holds: a megabyte of one thing ends nothing.

Measured is how the time grows from one length to eight times that: eightfold where it is linear, 64-fold where each
place looks at all others. Either is far from the bound between them, however busy the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from bnbench.data.corpus import is_lost, repair
from bnbench.metrics import (
    Degeneration,
    KeywordEmpathy,
    SemanticEmpathy,
    Texts,
    flags,
    get_metric,
    normalize,
    split_sentences,
    tokenize,
)
from bnbench.metrics.audit import perturbations
from bnbench.metrics.empathy.keyword import listed

ONE = "আমার মন খারাপ, কী করব?"
UNITS = [
    "ক",
    "ক.",
    "Â",
    " ",
    "\n",
    "<|a",
    "<|a|>",
    "\u09bc\u09cd",
    "্",
    "ত্\u200c",
    "“",
    "ক, ",
    "?? ",
    "🇧",
    "5",
    "’d",
    "টা",
    "না ",
]
keyword, semantic = KeywordEmpathy(), SemanticEmpathy()
READERS: dict[str, Callable[[str], object]] = {
    "normalize": normalize,
    "flags": flags,
    "split_sentences": split_sentences,
    "graphemes": lambda text: tokenize(text, tokenizer="graphemes"),
    "csebuetnlp": lambda text: tokenize(text, norm="none", tokenizer="csebuetnlp"),
    "repair": repair,
    "is_lost": is_lost,
    "degeneration": lambda text: Degeneration().statistics(Texts.of([text], [ONE], [ONE])),
    "address": lambda text: get_metric("address").statistics(Texts.of([text])),
    "ROUGE": lambda text: get_metric("ROUGE").statistics(Texts.of([text], [f"{text} ক"])),
    "keyword-empathy": lambda text: keyword.statistics(Texts.of([text], messages=[ONE])),
    "keyword-empathy, message": lambda text: keyword.statistics(Texts.of([ONE], messages=[text])),
    "semantic-empathy": lambda text: semantic.statistics(Texts.of([text], messages=[ONE])),
    "semantic-empathy, message": lambda text: semantic.statistics(Texts.of([ONE], messages=[text])),
    "with_negation": perturbations.with_negation,
    "without_negation": perturbations.without_negation,
    "other_register": perturbations.other_register,
    **perturbations.SPELLINGS,
}


def grows_in_proportion(read: Callable[[str], object], unit: str, length: int) -> bool:
    def seconds(size: int) -> float:
        text, start = (unit * size)[: size - size % len(unit)], time.process_time()
        read(text)
        return time.process_time() - start

    seconds(length // 4)  # what is loaded once is loaded now
    few = min(seconds(length) for _ in range(3))
    return any(seconds(8 * length) < 24 * few + 0.03 for _ in range(3))


@pytest.mark.no_cover
@pytest.mark.parametrize("name", READERS)
def test_time_grows_with_length(name: str) -> None:
    assert [unit for unit in UNITS if not grows_in_proportion(READERS[name], unit, 1500)] == []


def test_what_is_cheap_enough_to_hide_in_a_short_text() -> None:
    assert grows_in_proportion(lambda text: listed([True] * len(text)), "ক", 5_000)
    assert grows_in_proportion(READERS["keyword-empathy"], "“", 12_000)


def test_a_word_of_a_thousand_endings_is_read() -> None:
    for ending in ("ই", "কে", "গুলো", "ের"):
        assert keyword.score([ending * 2_000], messages=[ONE]).value == 0
        assert keyword.score([ONE], messages=[ending * 2_000]).value >= 0
