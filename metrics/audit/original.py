"""The original project's semantic empathy as a metric, to be shown beside others: `audit(metric, beside=[...])`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Metric, Texts, ratio, signature
from bnbench.metrics.empathy.encoder import Encoder
from bnbench.metrics.original import semantic_scores


class OriginalSemantic(Metric):
    """How many of 12 patterns have cosine > 0.7 with the reply, by any encoder; see `bnbench.metrics.original`."""

    name: ClassVar[str] = "original-semantic"
    description: ClassVar[str] = "the original project's semantic empathy, 0-100, higher is better"

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.columns, self.values = ("semantic", "replies"), ("semantic",)

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 2: the score of each reply, 0-1, and 1 for the count."""
        scores = semantic_scores(texts.replies, self._encoder.encode) / 100
        return np.stack([scores, np.ones(len(texts))], axis=1)

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 2) to (..., 1): the mean."""
        return 100 * ratio(sums[..., :1], sums[..., 1:])

    def signature(self, n: int) -> str:
        """`original-semantic|enc:bn-static@1a2b3c4d|n:300|bnbench:0.2`."""
        return signature(self.name, n, enc=self._encoder.id)
