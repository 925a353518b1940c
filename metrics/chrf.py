"""chrF and chrF++, F-scores of n-grams of characters and words. Equal to sacrebleu on the same tokenised text."""

from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Texts, ratio
from bnbench.metrics.overlap import LexicalMetric, Pairs, ngram_counts

CHAR_ORDER, BETA = 6, 2
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


class ChrF(LexicalMetric):
    """chrF (Popović 2015): F2 of the mean precision and recall of character n-grams of orders 1-6, whitespace left out.

    Of several references the one with the highest F counts. As in sacrebleu, orders that one side does not reach are
    left out of the mean. It sees no word order beyond six characters and no meaning: a negation costs hardly anything.
    """

    name: ClassVar[str] = "chrF"
    description: ClassVar[str] = "character n-gram F2, 0-100, higher is better"
    needs = frozenset({"references"})
    columns = tuple(f"char{n}_{what}" for n in range(1, CHAR_ORDER + 1) for what in ("hyp", "ref", "match"))
    values = ("chrF",)
    has_words: ClassVar[bool] = False

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 3(orders): n-grams of the reply, of its best reference, and common, for each order."""
        pairs = Pairs.of(texts, self.preparation)
        counts = [pairs.ngrams("characters", CHAR_ORDER)]  # (pairs, orders, 3), the words' behind the characters'
        if self.has_words and self.preparation.tokenizer == "bn1":
            counts.append(pairs.ngrams("tokens", 4)[:, :2])  # four orders, as BLEU has them counted
        elif self.has_words:  # chrF++ parts ASCII punctuation from words, which bn1 has done already
            character, spelled = pairs.vocabulary.__getitem__, {}
            for text in dict.fromkeys((*pairs.replies, *pairs.references)):
                parts = list[str]()  # one mark apart from a word's end, or else from its beginning
                for token in self.preparation.tokens(text):
                    at = len(token) - 1 if token[-1] in _ASCII_PUNCTUATION else int(token[0] in _ASCII_PUNCTUATION)
                    parts += [token[:at], token[at:]] if at else [token]
                spelled[text] = "".join(map(character, parts))
            counts.append(ngram_counts(*pairs.sides(spelled), 2))
        hyp, ref, match = np.moveaxis(np.concatenate(counts, axis=1), -1, 0)
        hyp = np.where(ref > 0, hyp, 0)  # as sacrebleu: no order counts that the reference lacks
        table = np.stack([hyp, ref, match], axis=-1).reshape(len(hyp), -1).astype(np.float64)
        return pairs.best(table, self.formula(table)[:, 0])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 3 orders) to (..., 1): 100 (1 + 4) P R / (4 P + R)."""
        hyp, ref, match = (sums[..., part::3] for part in range(3))
        reached = (hyp > 0) & (ref > 0)
        orders = reached.sum(axis=-1)
        precision = ratio((ratio(match, hyp) * reached).sum(axis=-1), orders)
        recall = ratio((ratio(match, ref) * reached).sum(axis=-1), orders)
        return 100 * ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)[..., None]


class ChrFPlusPlus(ChrF):
    """chrF++ (Popović 2017): chrF with word 1- and 2-grams beside the characters'. bnbench's primary metric."""

    name: ClassVar[str] = "chrF++"
    description: ClassVar[str] = "character and word n-gram F2, 0-100, higher is better"
    columns = (*ChrF.columns, *(f"word{n}_{what}" for n in (1, 2) for what in ("hyp", "ref", "match")))
    values = ("chrF++",)
    has_words = True
