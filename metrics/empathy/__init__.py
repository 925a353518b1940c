"""Empathy: by keywords (`keyword`, `lexicon`), and by the nearness of meanings (`semantic`, `encoder`).

Both score the three mechanisms of EPITOME (Sharma, Miner, Atkins & Althoff 2020, "A Computational Approach to
Understanding Empathy Expressed in Text-Based Mental Health Support").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, MeanMetric, Result, Texts
from bnbench.metrics.degeneration import nonsense
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.romanised import bengali

MECHANISMS = ("emotional_reaction", "interpretation", "exploration")
"""Warmth, concern or shared joy; saying what the person feels or went through; asking about it."""


def mechanisms(result: Result) -> FloatArray:
    """Each reply's score of the three mechanisms, (n, 3), 0-100; `InputError` where there are none, or sums only."""
    if not set(MECHANISMS) <= set(result.of.values):
        raise InputError(f'{result.signature}: it has no mechanisms, as KeywordEmpathy("bn") and SemanticEmpathy have')
    return np.column_stack([result.per_reply[name] for name in MECHANISMS])


def in_bengali(texts: Texts) -> Texts:
    """The texts with romanised replies and messages in Bengali script, done once for all metrics that share them."""
    made = texts.derived("in Bengali script", lambda: Texts(
        tuple(map(bengali, texts.replies)), messages=texts.messages and tuple(map(bengali, texts.messages)),
    ))  # fmt: skip
    # The very texts where nothing was romanised: what is derived of them is shared with other metrics, too.
    return texts if (made.replies, made.messages) == (texts.replies, texts.messages) else made


class EmpathyMetric(MeanMetric):
    """A metric whose main value is the mean of its others, the mechanisms, of which each is a mean over replies."""

    description: ClassVar[str] = "mean of emotional reaction, interpretation, exploration, 0-100, higher is better"
    needs = frozenset({"messages"})
    columns = (*MECHANISMS, "replies")

    @property
    def labels(self) -> Mapping[str, str]:
        """As of any metric; and since two metrics measure the same mechanisms, each says by which means."""
        means, own = self.name.removesuffix("-empathy"), super().labels
        return {value: own[value] if value == self.values[0] else f"{own[value]} ({means})" for value in self.values}

    def statistics(self, texts: Texts) -> FloatArray:
        """As of any mean, of texts in Bengali script, nonsense earning nothing; without mechanisms as they stand."""
        self.check(texts)
        if not self.values[1:]:
            return super().statistics(texts)
        read = in_bengali(texts)
        table = super().statistics(read)
        table[nonsense(read), :-1] = 0
        return table

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 4) to (..., 4): the mean of the three mechanisms, then each. A lexicon without them has one mean."""
        means = super().formula(sums)
        return np.concatenate([means.mean(axis=-1, keepdims=True), means], axis=-1) if self.values[1:] else means
