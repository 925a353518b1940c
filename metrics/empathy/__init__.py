"""Empathy: by keywords (`keyword`, `lexicon`), and by the nearness of meanings (`semantic`, `encoder`).

Both score the three mechanisms of EPITOME (Sharma, Miner, Atkins & Althoff 2020, "A Computational Approach to
Understanding Empathy Expressed in Text-Based Mental Health Support").
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Metric, Result, Texts, ratio
from bnbench.metrics.errors import InputError

MECHANISMS = ("emotional_reaction", "interpretation", "exploration")
"""What empathy metrics call their values of each: warmth, concern or shared joy; saying what the person feels or went
through; asking about it."""


def mechanisms(result: Result) -> FloatArray:
    """Each reply's score of the three mechanisms, (n, 3), 0-100. `InputError` where the metric has none."""
    places = [place for place, name in enumerate(result.of.values) if name in MECHANISMS]
    if len(places) < len(MECHANISMS):
        raise InputError(f'{result.signature}: it has no mechanisms, as KeywordEmpathy("bn") and SemanticEmpathy have')
    return result.of.formula(result.table)[:, places]


class EmpathyMetric(Metric):
    """A metric whose main value is the mean of three others, the mechanisms; each of them is a mean over replies."""

    description: ClassVar[str] = "mean of emotional reaction, interpretation, exploration, 0-100, higher is better"
    needs: ClassVar[frozenset[str]] = frozenset({"messages"})
    columns = (*MECHANISMS, "replies")

    @abstractmethod
    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 3: the mechanisms of each reply, 0-1."""

    def statistics(self, texts: Texts) -> FloatArray:
        """The numbers of each reply, and 1 for the count."""
        self.check(texts)
        return np.column_stack([self.per_reply(texts), np.ones(len(texts))])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 4) to (..., 4): the mean of the three mechanisms, then each; just the one of a metric without them."""
        means = 100 * ratio(sums[..., :-1], sums[..., -1:])
        return np.concatenate([means.mean(axis=-1, keepdims=True), means], axis=-1) if self.values[1:] else means
