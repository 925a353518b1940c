"""Whether a reply answers this message: of what it speaks, how much is the message's, how much of something else.

Two features of a reply's content words, each with the weight of its rarity in a fixed bank of texts, the messages that
our metrics learn from with their replies: a form of a word that few of them have says whose reply it is. Content are
those that the lexicon of keyword-empathy has not as common, and what a person is called by (দাদু), since the message
may be about him.

* `heard`: log(1 + the weight of the words that are forms of the message's);
* `elsewhere`: log(1 + the weight of the others).

Two logistic models of them were fitted by `scripts/calibrate_relevance.py` to labelled replies, mismatched ones, and
replies put under another message: `relevance` (it answers its message) and `fit` (its empathy, if it has any, is for
this message and no other: a comfort that names nothing is neither heard nor elsewhere, is little relevant, and fits).
Cosines of the shipped encoder between the words of both added next to nothing (AUC 0.936 for 0.933), so none is here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bnbench.metrics.core import FloatArray, MeanMetric, Texts
from bnbench.metrics.empathy import in_bengali
from bnbench.metrics.empathy.lexicon import load_lexicon
from bnbench.metrics.normalization import Memo
from bnbench.metrics.romanised import standard
from bnbench.metrics.tokenization import is_word, preparation

CALIBRATION = Path(__file__).parent / "relevance.json"
COPIED, BEGINNING = 5, 4  # words in a row that are copied; letters that are a word’s beginning


class ContentWords:
    """What a text speaks of, by the lexicon `bn` and the counts of a bank of messages.

    `weights` has for each normalised word log((N + 1) / (n + 1/2)), where n of the bank's N messages have a form of it,
    or 0 for a word that is common and no content.
    """

    def __init__(self, counts: Mapping[str, int], messages: int) -> None:
        lexicon = load_lexicon("bn")
        # Words are forms of each other that have a stem or, in a dialect's endings that we do not know, a beginning.
        self.forms = Memo(lambda word: lexicon.stems[word] | {f"{word[:BEGINNING]}-"})

        def weight(word: str) -> float:
            if not is_word(word) or word in lexicon.persons or not lexicon.common.isdisjoint(lexicon.stems[word]):
                return 0.0
            return float(np.log((messages + 1) / (counts.get(lexicon.keys[word], 0) + 0.5)))

        self.weights: Memo[float] = Memo(weight)

    def read(self, text: str) -> tuple[list[str], list[tuple[str, ...]]]:
        """The tokens of a text, regional words in their standard form, and every run of `COPIED` of them."""
        tokens = list(map(standard().__getitem__, preparation().tokens(text)))
        return tokens, [*zip(tokens, tokens[1:], tokens[2:], tokens[3:], tokens[4:], strict=False)]

    def features(self, texts: Texts) -> FloatArray:
        """`heard` and `elsewhere` of each reply, n x 2, less what it copies; 0 where the message has no content."""
        asked = {}
        for message in dict.fromkeys(texts.messages or ()):
            tokens, runs = self.read(message)
            forms = frozenset().union(*(self.forms[word] for word in tokens if self.weights[word]))
            asked[message] = forms, set(runs)
        found = []
        for reply, message in zip(texts.replies, texts.messages or (), strict=True):
            (forms, known), (tokens, runs) = asked[message], self.read(reply)
            for start, run in enumerate(() if known.isdisjoint(runs) else runs):
                if run in known:
                    tokens[start : start + COPIED] = [""] * COPIED
            words = dict.fromkeys(tokens) if forms else ()
            weights = {word: weight for word in words if (weight := self.weights[word])}
            heard = sum(weight for word, weight in weights.items() if not forms.isdisjoint(self.forms[word]))
            found.append((heard, max(0.0, sum(weights.values()) - heard)))
        return np.log1p(np.array(found, dtype=np.float64).reshape(-1, 2))


class Fitted(NamedTuple):
    """A calibration file: its hash, the weights of both models with their constants last, and what tells content."""

    id: str
    models: Mapping[str, Any]
    content: ContentWords


@lru_cache(maxsize=1)
def fitted() -> Fitted:
    """The calibration that ships with bnbench."""
    data = CALIBRATION.read_bytes()
    found = json.loads(data)
    content = ContentWords(found["counts"], found["messages"])
    return Fitted(hashlib.sha256(data).hexdigest()[:8], found["models"], content)


def chances(texts: Texts, model: str) -> FloatArray:
    """What `relevance` or `fit` says of each reply, (n,), 0-1; texts in Bengali script."""
    weights = np.array(fitted().models[model])
    found = texts.derived("relevance", lambda: fitted().content.features(texts))
    chance: FloatArray = 1 / (1 + np.exp(-(found * weights[:-1]).sum(axis=1) - weights[-1]))
    return chance


class Relevance(MeanMetric):
    """How surely a reply answers its message and no other, 0-100; what it copies of the message says nothing."""

    name: ClassVar[str] = "relevance"
    description: ClassVar[str] = "whether a reply answers its own message, 0-100, higher is better"
    needs = frozenset({"messages"})
    columns, values = ("relevance", "replies"), ("relevance",)

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 1: the chance of each reply, 0-1; romanised texts are read as Bengali."""
        return chances(in_bengali(texts), "relevance")[:, None]

    @property
    def choices(self) -> Mapping[str, object]:
        """The calibration, the lexicon that tells content words, and how texts become words."""
        return {"cal": fitted().id, "lex": load_lexicon("bn").signature, **preparation().choices}
