"""chrF and chrF++: F-scores of character n-grams, with word n-grams in chrF++. Equal to sacrebleu on the same
tokenised text.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Texts, ratio
from bnbench.metrics.ngrams import IntArray, ngram_counts
from bnbench.metrics.normalization import Normalizer
from bnbench.metrics.overlap import LexicalMetric, Pairs

_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


class ChrF(LexicalMetric):
    """chrF (Popović 2015): F2 of the mean precision and recall of character n-grams of orders 1-6, whitespace left out.

    Of several references the one with the highest F counts. As in sacrebleu, orders that one side does not reach are
    left out of the mean. It cannot see word order beyond six characters, nor meaning: a negated reply scores nearly
    as high.
    """

    name: ClassVar[str] = "chrF"
    description: ClassVar[str] = "character n-gram F2, 0-100, higher is better"
    needs = frozenset({"references"})
    word_order: ClassVar[int] = 0
    char_order: ClassVar[int] = 6
    beta: ClassVar[int] = 2

    def __init__(self, norm: str | Normalizer = "bn1", tokenizer: str = "bn1") -> None:
        super().__init__(norm, tokenizer)
        kinds = [("char", self.char_order), ("word", self.word_order)]
        orders = [f"{kind}{n}" for kind, most in kinds for n in range(1, most + 1)]
        self.columns = tuple(f"{order}_{what}" for order in orders for what in ("hyp", "ref", "match"))
        self.values = (self.name,)

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 3(orders): n-grams of the reply, of its best reference, and common, for each order."""
        pairs = Pairs.of(texts, self.preparation)
        found = pairs.character_ngrams(self.char_order)
        if self.word_order:
            # chrF++ parts ASCII punctuation from words, which bn1 has done already.
            parted = self.preparation.tokenizer != "bn1"
            words = _parted_counts(pairs, self.word_order) if parted else pairs.token_ngrams()[:, : self.word_order]
            found = np.concatenate([found, words], axis=1)
        hyp = np.where(found[..., 1] > 0, found[..., 0], 0)  # as sacrebleu: no order counts that the reference lacks
        found = np.stack([hyp, found[..., 1], found[..., 2]], axis=-1)
        table = found.reshape(len(pairs.replies), -1).astype(np.float64)
        return pairs.best(table, self.formula(table)[:, 0])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 3 orders) to (..., 1): 100 (1 + 4) P R / (4 P + R)."""
        hyp, ref, match = (sums[..., part::3] for part in range(3))
        reached = (hyp > 0) & (ref > 0)
        orders = reached.sum(axis=-1)
        precision = ratio((ratio(match, hyp) * reached).sum(axis=-1), orders)
        recall = ratio((ratio(match, ref) * reached).sum(axis=-1), orders)
        factor = self.beta**2
        return 100 * ratio((1 + factor) * precision * recall, factor * precision + recall)[..., None]


class ChrFPlusPlus(ChrF):
    """chrF++ (Popović 2017): chrF with word 1- and 2-grams beside the characters'. bnbench's primary metric."""

    name: ClassVar[str] = "chrF++"
    description: ClassVar[str] = "character and word n-gram F2, 0-100, higher is better"
    word_order: ClassVar[int] = 2


def _parted_counts(pairs: Pairs, order: int) -> IntArray:
    """Word n-grams, shape (pairs, order, 3), of tokens from which ASCII punctuation is parted."""
    character: defaultdict[str, str] = defaultdict(map(chr, count(1)).__next__)
    strings = pairs.texts.mapped(
        ("parted", pairs.preparation),
        lambda text: "".join(character[part] for token in pairs.preparation.tokens(text) for part in _parts(token)),
    )
    return ngram_counts([strings[t] for t in pairs.replies], [strings[t] for t in pairs.references], order)


def _parts(token: str) -> tuple[str, ...]:
    """One ASCII punctuation mark apart from a word's end, or else from its beginning."""
    if len(token) > 1 and token[-1] in _ASCII_PUNCTUATION:
        return token[:-1], token[-1]
    if len(token) > 1 and token[0] in _ASCII_PUNCTUATION:
        return token[0], token[1:]
    return (token,)
