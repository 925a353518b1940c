"""Empathy: by keywords, and by the nearness of meanings. Both speak of the three mechanisms of EPITOME."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnbench.metrics.core import FloatArray, Metric, Result
from bnbench.metrics.errors import InputError

MECHANISMS = ("emotional_reaction", "interpretation", "exploration")
"""The mechanisms of empathy after EPITOME (Sharma, Miner, Atkins & Althoff 2020), and the values that metrics give of
each."""


def mechanisms(result: Result) -> FloatArray:
    """Each reply's score of the three mechanisms, (n, 3), 0-100: emotional reaction, interpretation, exploration.

    Raises `InputError` where the metric has none, or only sums were kept.
    """
    if not set(MECHANISMS) <= set(result.of.values):
        raise InputError(f'{result.signature}: it has no mechanisms, as KeywordEmpathy("bn") and SemanticEmpathy have')
    return np.column_stack([result.per_reply[name] for name in MECHANISMS])


def labels_by_means(metric: Metric, labels: Mapping[str, str], means: str) -> dict[str, str]:
    """The labels of an empathy metric's values: several measure the same mechanisms, so each says how."""
    return {value: label if value == metric.values[0] else f"{label} ({means})" for value, label in labels.items()}
