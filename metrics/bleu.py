"""BLEU of a corpus and of single replies. Equal to sacrebleu with `effective_order` on the same tokenised text."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Texts, ratio
from bnbench.metrics.overlap import LexicalMetric, Pairs

ORDER = 4


class BLEU(LexicalMetric):
    """BLEU (Papineni et al. 2002): geometric mean of the 1-4-gram precisions times the brevity penalty, exponential
    smoothing.

    Orders of which no reply has an n-gram are left out (sacrebleu's `effective_order`), so that `per_item` is
    sentence BLEU and a text scores 100 against itself however short; the corpus score is sacrebleu's default wherever
    any reply has four tokens. Several references: clipped by the highest count in any, length of the closest. It
    cannot see meaning, nor inflection.
    """

    name: ClassVar[str] = "BLEU"
    description: ClassVar[str] = "1-4-gram precision with brevity penalty, 0-100, higher is better"
    needs = frozenset({"references"})
    columns = (*("hyp_len", "ref_len"), *(f"{what}{n}" for what in ("match", "total") for n in range(1, ORDER + 1)))
    values = ("BLEU",)
    fixed = MappingProxyType({"smooth": "exp", "eff": "yes"})

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 10: tokens of the reply and of the closest reference, then matches and totals of the orders 1-4."""
        pairs = Pairs.of(texts, self.preparation)
        if not pairs.single:
            tokens = pairs.tokens()
            rows = [
                _several(tokens[reply], [tokens[r] for r in references])
                for reply, references in zip(texts.replies, texts.references or (), strict=True)
            ]
            return np.array(rows, dtype=np.float64)
        counts = pairs.token_ngrams()
        return np.hstack([counts[:, 0, :2], counts[:, :, 2], counts[:, :, 0]]).astype(np.float64)

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 10) to (..., 1), as sacrebleu's compute_bleu with smooth_method="exp", effective_order=True."""
        hyp, ref, match, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
        reached = total > 0
        missed = reached & (match == 0)
        halvings = np.where(missed, missed.cumsum(axis=-1), 0)
        precision = np.where(missed, ratio(100, total * 2.0**halvings), 100 * ratio(match, total))
        logs = np.log(np.where(reached, precision, 1)).sum(axis=-1)
        penalty = np.exp(np.minimum(0, 1 - ratio(ref, hyp)))
        score = penalty * np.exp(ratio(logs, reached.sum(axis=-1)))
        return np.where(match.any(axis=-1), np.minimum(score, 100.0), 0.0)[..., None]


def _several(hypothesis: str, others: list[str]) -> list[int]:
    """The statistics against several references, counted plainly: each n-gram clipped by its highest count in any of
    them.
    """
    closest = min((len(r) for r in others), key=lambda length: (abs(length - len(hypothesis)), length))
    matches = []
    for n in range(1, ORDER + 1):
        most: Counter[str] = Counter()
        for other in others:
            most |= _ngrams(other, n)
        matches.append((_ngrams(hypothesis, n) & most).total())
    return [len(hypothesis), closest, *matches, *(max(len(hypothesis) - n + 1, 0) for n in range(1, ORDER + 1))]


def _ngrams(words: str, n: int) -> Counter[str]:
    return Counter(words[i : i + n] for i in range(len(words) - n + 1))
