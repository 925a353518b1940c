"""What a metric of empathy is shown beside: scores that know nothing of empathy, and those of the original project.

A metric that one of the first, a sentinel, matches measures nothing more on these replies. Each sentinel is taken in
whichever direction serves it better: where short replies are the warm ones, it is brevity that has to be beaten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, MeanMetric, Texts
from bnbench.metrics.empathy.encoder import Encoder
from bnbench.metrics.labelled import LabelledSet
from bnbench.metrics.original import semantic_scores
from bnbench.metrics.tokenization import is_word, tokenize


def sentinel_scores(data: LabelledSet) -> dict[str, FloatArray]:
    """Each sentinel's n scores, by its name."""
    words = {text: [*filter(is_word, tokenize(text))] for text in {*data.replies, *data.messages}}
    copied = np.zeros(len(data))  # F1 of the words shared with the message: 1 for the message given back
    for place, row in enumerate(data.rows):
        ours, theirs = words[row.reply], words[row.message]
        shared = sum((Counter(ours) & Counter(theirs)).values())
        copied[place] = 2 * shared / (len(ours) + len(theirs)) if shared else 0.0
    return {
        "length": np.array([float(len(words[reply])) for reply in data.replies]),
        "constant": np.zeros(len(data)),
        "copy of the message": copied,
        "question mark": np.array([float("?" in reply) for reply in data.replies]),
    }


class OriginalSemantic(MeanMetric):
    """How many of 12 patterns have cosine > 0.7 with the reply, by any encoder; see `bnbench.metrics.original`."""

    name: ClassVar[str] = "original-semantic"
    description: ClassVar[str] = "the original project's semantic empathy, 0-100, higher is better"
    columns, values = ("semantic", "replies"), ("semantic",)

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 1: the score of each reply, 0-1."""
        return semantic_scores(texts.replies, self._encoder.encode)[:, None] / 100

    @property
    def choices(self) -> Mapping[str, object]:
        """The encoder."""
        return {"enc": self._encoder.id}
