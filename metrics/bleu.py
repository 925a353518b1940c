"""BLEU of a corpus and of single replies. Equal to sacrebleu with `effective_order` on the same tokenised text."""

from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Texts, ratio
from bnbench.metrics.overlap import LexicalMetric, Pairs, ngrams

ORDERS = (1, 2, 3, 4)


class BLEU(LexicalMetric):
    """BLEU (Papineni et al. 2002): geometric mean of 1-4-gram precisions times brevity penalty, exponential smoothing.

    Orders of which no reply has an n-gram are left out (sacrebleu's `effective_order`), so that `per_item` is sentence
    BLEU and a text scores 100 against itself however short; the corpus score is sacrebleu's default wherever any reply
    has four tokens. It cannot see meaning, nor inflection.
    """

    name: ClassVar[str] = "BLEU"
    description: ClassVar[str] = "1-4-gram precision with brevity penalty, 0-100, higher is better"
    needs = frozenset({"references"})
    columns = ("hyp_len", "ref_len", *(f"match{n}" for n in ORDERS), *(f"total{n}" for n in ORDERS))
    values = ("BLEU",)
    fixed = MappingProxyType({"smooth": "exp", "eff": "yes"})

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 10: tokens of the reply and of the closest reference, then matches and totals of the orders 1-4."""
        pairs = Pairs.of(texts, self.preparation)
        if pairs.single:
            counts = pairs.ngrams("tokens", ORDERS[-1])
            return np.hstack([counts[:, 0, :2], counts[:, :, 2], counts[:, :, 0]]).astype(np.float64)
        rows, spelled = [], pairs.spelled("tokens")
        for reply, references in zip(texts.replies, texts.references or (), strict=True):
            hyp, refs = spelled[reply], [spelled[reference] for reference in references]
            # Of several references the length of the closest counts, of equally close ones the shorter, and an n-gram
            # matches as often as it occurs in the one that has it most often.
            closest = min(map(len, refs), key=lambda length: (abs(length - len(hyp)), length))
            most = [reduce(or_, [ngrams(ref, n) for ref in refs]) for n in ORDERS]
            matches = [(ngrams(hyp, n) & counts).total() for n, counts in zip(ORDERS, most, strict=True)]
            rows.append([len(hyp), closest, *matches, *(max(len(hyp) - n + 1, 0) for n in ORDERS)])
        return np.array(rows, dtype=np.float64)

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 10) to (..., 1), as sacrebleu's compute_bleu with smooth_method="exp", effective_order=True."""
        hyp, ref, match, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
        reached = total > 0
        missed = reached & (match == 0)
        halvings = np.where(missed, missed.cumsum(axis=-1), 0)
        precision = np.where(missed, ratio(100, total * 2.0**halvings), 100 * ratio(match, total))
        logs = np.log(np.where(reached, precision, 1)).sum(axis=-1)
        score = np.exp(np.minimum(0, 1 - ratio(ref, hyp))) * np.exp(ratio(logs, reached.sum(axis=-1)))
        return np.where(match.any(axis=-1), np.minimum(score, 100.0), 0.0)[..., None]
