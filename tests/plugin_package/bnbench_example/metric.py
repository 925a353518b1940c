"""A metric: how many replies ask something back."""

import numpy as np

from bnbench.metrics import MeanMetric, Texts
from bnbench.metrics.core import FloatArray


class Questions(MeanMetric):
    """The share of replies with a question mark in them, 0-100."""

    name = "questions"
    description = "share of replies that ask something back, 0-100, higher is better"
    columns = ("questions", "n")
    values = ("questions",)
    labels = {"questions": "asks back, %"}  # noqa: RUF012 - never changed

    def per_reply(self, texts: Texts) -> FloatArray:
        """1 for a reply that asks, n x 1."""
        return np.array([["?" in reply] for reply in texts.replies], dtype=np.float64)
