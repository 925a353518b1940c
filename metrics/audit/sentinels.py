"""Scores that know nothing of empathy. A metric that one of them matches measures nothing more on these replies.

Each is taken in whichever direction serves it better: where short replies are the warm ones, it is brevity that has to
be beaten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from bnbench.metrics.core import FloatArray
from bnbench.metrics.labelled import LabelledSet
from bnbench.metrics.tokenization import is_word, tokenize


@lru_cache(maxsize=20_000)
def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(is_word, tokenize(text)))


def _length(reply: str, message: str) -> float:
    return float(len(_words(reply)))


def _constant(reply: str, message: str) -> float:
    return 0.0


def _copy(reply: str, message: str) -> float:
    """F1 of the words that the reply shares with the message: 1 for the message given back."""
    ours, theirs = _words(reply), _words(message)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def _question(reply: str, message: str) -> float:
    return float("?" in reply)


SENTINELS: Mapping[str, Callable[[str, str], float]] = {
    "length": _length,
    "constant": _constant,
    "copy of the message": _copy,
    "question mark": _question,
}


def sentinel_scores(data: LabelledSet) -> dict[str, FloatArray]:
    """Each sentinel's n scores, by its name."""
    pairs = list(zip(data.replies, data.messages, strict=True))
    return {name: np.array([score(*pair) for pair in pairs]) for name, score in SENTINELS.items()}
