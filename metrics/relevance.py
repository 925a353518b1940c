"""Whether a reply answers this message: of what it speaks, how much is the message's, and how much is of something else.

Three features of the reply's content words (those that the lexicon of keyword-empathy has not as common), each word
with the weight of its rarity among the messages of the development halves:

* `aligned`: the weighted mean, over the reply's words, of the cosine with the nearest content word of the message, 1
  where both are forms of one word;
* `heard`: log(1 + the weight of the words that are forms of the message's);
* `elsewhere`: log(1 + the weight of the others).

A logistic model of them was fitted by `scripts/calibrate_relevance.py` to labelled replies, mismatched ones, and replies
put under another message. A comfort that names nothing is neither here nor elsewhere, and scores low, not 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, MeanMetric, Texts
from bnbench.metrics.empathy import in_bengali
from bnbench.metrics.empathy.encoder import load_encoder, words_only
from bnbench.metrics.empathy.lexicon import Lexicon, load_lexicon
from bnbench.metrics.tokenization import is_word, preparation

FEATURES = ("aligned", "heard", "elsewhere")
CALIBRATION = Path(__file__).parent / "relevance.json"
FITTING = 0.6  # the fit from which on empathy counts whole
MISPLACED = 0.1  # what is left of the empathy of a reply that answers somebody else


class Rarity:
    """The weight of a word: log((N + 1) / (n + 1/2)) where n of N messages have a form of it."""

    def __init__(self, lexicon: Lexicon, counts: Mapping[str, int], messages: int) -> None:
        self._lexicon, self._counts, self._messages = lexicon, counts, messages

    def __getitem__(self, word: str) -> float:
        return float(np.log((self._messages + 1) / (self._counts.get(self._lexicon.keys[word], 0) + 0.5)))


def content_words(lexicon: Lexicon, text: str) -> list[str]:
    """The different content words of a text, in order."""
    words = dict.fromkeys(filter(is_word, preparation().tokens(text)))
    return [word for word in words if word not in lexicon.persons and not lexicon.is_common(word)]


def features(texts: Texts, counts: Mapping[str, int], messages: int) -> FloatArray:
    """`FEATURES` of each reply given its message, n x 3; 0 for a reply without content words."""
    lexicon, encoder = load_lexicon("bn"), words_only(load_encoder())
    asked, rarity = texts.messages or (), Rarity(lexicon, counts, messages)
    content = {text: content_words(lexicon, text) for text in dict.fromkeys((*texts.replies, *asked))}
    row_of = {word: row for row, word in enumerate(dict.fromkeys(chain.from_iterable(content.values())))}
    vectors, weights = encoder.encode(list(row_of)), np.array([rarity[word] for word in row_of])
    rows = {text: [row_of[word] for word in words] for text, words in content.items()}
    forms = {text: frozenset().union(*map(lexicon.stems.__getitem__, content[text])) for text in dict.fromkeys(asked)}
    found = np.zeros((len(texts), len(FEATURES)))
    for place, (reply, message) in enumerate(zip(texts.replies, asked, strict=True)):
        if own := rows[reply]:
            weight = weights[own]
            heard = np.array([not forms[message].isdisjoint(lexicon.stems[word]) for word in content[reply]])
            nearest = (vectors[own] @ vectors[rows[message]].T).max(axis=1) if rows[message] else np.zeros(len(own))
            shared = float(weight[heard].sum())
            aligned = float((np.where(heard, 1.0, nearest) * weight).sum() / weight.sum())
            found[place] = aligned, np.log1p(shared), np.log1p(float(weight.sum()) - shared)
    return found


@lru_cache(maxsize=1)
def _calibration() -> tuple[str, Mapping[str, Any]]:
    data = CALIBRATION.read_bytes()
    return hashlib.sha256(data).hexdigest()[:8], json.loads(data)


def chances(texts: Texts, head: str) -> FloatArray:
    """What one of the two models says of each reply, (n,), 0-1.

    `relevance`: it answers its message. `fit`: its empathy, if it has any, is for this message and for no other.
    """
    calibration = _calibration()[1]
    found = texts.derived("relevance", lambda: features(texts, calibration["counts"], calibration["messages"]))
    weights = np.array(calibration[head])
    chance: FloatArray = 1 / (1 + np.exp(-(found * weights[:-1]).sum(axis=1) - weights[-1]))
    return chance


def fitting(texts: Texts) -> FloatArray:
    """What the empathy of each reply counts, (n,): all where `fit` is `FITTING` or more, `MISPLACED` where it is 0."""
    share: FloatArray = MISPLACED + (1 - MISPLACED) * np.minimum(chances(texts, "fit") / FITTING, 1)
    return share


def relevance_id() -> str:
    """8 hex digits of the sha256 over the calibration."""
    return _calibration()[0]


class Relevance(MeanMetric):
    """How surely a reply answers its message and no other, 0-100; a copy of the message does, so read it beside others."""

    name: ClassVar[str] = "relevance"
    description: ClassVar[str] = "whether a reply answers its own message, 0-100, higher is better"
    needs = frozenset({"messages"})
    columns, values = ("relevance", "replies"), ("relevance",)

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 1: the chance of each reply, 0-1; romanised texts are read as Bengali."""
        return chances(in_bengali(texts), "relevance")[:, None]

    @property
    def choices(self) -> Mapping[str, object]:
        """The encoder, the lexicon that tells content words, the calibration, and how texts become words."""
        made_of = {"enc": words_only(load_encoder()).id, "lex": load_lexicon("bn").signature, "cal": relevance_id()}
        return {**made_of, **preparation().choices}
