"""ROUGE-1, -2, -L and -Lsum with precision, recall and F. Equal to rouge-score with the same tokeniser, many times
faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from bnbench.metrics.core import FloatArray, Metric, Texts, ratio, signature
from bnbench.metrics.errors import UsageError
from bnbench.metrics.ngrams import IntArray
from bnbench.metrics.normalization import Normalizer
from bnbench.metrics.overlap import Pairs
from bnbench.metrics.tokenization import Preparation, preparation

TYPES = ("rougeL", "rouge1", "rouge2", "rougeLsum")


class ROUGE(Metric):
    """ROUGE (Lin 2004): overlap of words (1), word pairs (2), longest common subsequence (L), and that by sentence
    (Lsum).

    The mean over replies of each reply's precision, recall and F1; `value` is the F of the first of `types`.
    Punctuation is left out. Of several references the one with the highest F counts, for each type by itself. No
    stemming: it cannot see that দুঃখ and দুঃখের are one word, nor synonyms.
    """

    name: ClassVar[str] = "ROUGE"
    description: ClassVar[str] = "word overlap F1 (and precision, recall), mean over replies, 0-100, higher is better"
    needs: ClassVar[frozenset[str]] = frozenset({"references"})

    def __init__(self, norm: str | Normalizer = "bn1", tokenizer: str = "bn1", types: Sequence[str] = TYPES) -> None:
        for kind in types:
            if kind not in TYPES:
                raise UsageError(f"no ROUGE type {kind!r}; there are {', '.join(TYPES)}")
        self.preparation: Preparation = preparation(norm, tokenizer)
        self.types = tuple(types)
        parts = [f"{kind}_{part}" for kind in self.types for part in ("precision", "recall")]
        self.values = (*self.types, *parts)
        self.columns = (*self.values, "replies")

    def statistics(self, texts: Texts) -> FloatArray:
        """n x (3 types + 1): F of each type, then precision and recall of each, on 0-1, then 1."""
        pairs = Pairs.of(texts, self.preparation)
        found = [_scores(pairs, kind) for kind in self.types]
        best = [pairs.best(scores, scores[:, 0]) for scores in found]
        parts = [scores[:, part] for scores in best for part in (1, 2)]
        return np.column_stack([*(scores[:, 0] for scores in best), *parts, np.ones(len(texts))])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 3 types + 1) to (..., 3 types): 100 times the means."""
        return 100 * ratio(sums[..., :-1], sums[..., -1:])

    def signature(self, n: int) -> str:
        """`ROUGE|norm:bn1|tok:bn1|stem:no|n:...|bnbench:...`."""
        return signature(self.name, n, **self.preparation.choices, stem="no")


def _scores(pairs: Pairs, kind: str) -> FloatArray:
    """(pairs, 3): F, precision, recall."""
    if kind in ("rouge1", "rouge2"):
        hyp, ref, match = pairs.word_ngrams()[:, int(kind[-1]) - 1].T
        return _f_scores(match, hyp, ref)
    words = pairs.words()
    hypotheses, references = [words[t] for t in pairs.replies], [words[t] for t in pairs.references]
    common = _summary_hits(pairs) if kind == "rougeLsum" else _subsequences(hypotheses, references)
    return _f_scores(common, _lengths(hypotheses), _lengths(references))


def _f_scores(match: IntArray, hyp: IntArray, ref: IntArray) -> FloatArray:
    precision, recall = ratio(match, hyp), ratio(match, ref)
    return np.column_stack([ratio(2 * precision * recall, precision + recall), precision, recall])


def _subsequences(hypotheses: Sequence[str], references: Sequence[str]) -> IntArray:
    """Lengths of the longest common subsequences."""
    found: IntArray = process.cpdist(hypotheses, references, scorer=LCSseq.similarity, dtype=np.int64)
    return found


def _lengths(strings: Sequence[str]) -> IntArray:
    return np.array(list(map(len, strings)), dtype=np.int64)


def _summary_hits(pairs: Pairs) -> IntArray:
    sentences = pairs.sentences()
    found = [_union_hits(sentences[r], sentences[t]) for t, r in zip(pairs.replies, pairs.references, strict=True)]
    return np.array(found, dtype=np.int64)


def _union_hits(references: Sequence[str], candidates: Sequence[str]) -> int:
    """rouge-score's summary-level LCS: words of each reference sentence in its LCS with any candidate sentence, not
    counted twice.
    """
    if len(references) == len(candidates) == 1:
        return LCSseq.similarity(references[0], candidates[0])
    distinct = Counter(references)  # a text that loops says the same sentence a thousand times
    words, times = "\n".join(distinct), [n for sentence, n in distinct.items() for _ in f"{sentence}\n"]
    found: Counter[str] = Counter()
    for position in _positions(_union(list(distinct), dict.fromkeys(candidates))):
        found[words[position]] += times[position]
    ours = "".join(candidates)
    return sum(min(n, ours.count(word)) for word, n in found.items())


def _union(references: Sequence[str], candidates: Iterable[str]) -> int:
    """The positions (bits) of all reference sentences in their LCS with any candidate sentence.

    The dynamic program runs on bits (Hyyrö 2004), all reference sentences side by side in one integer with a zero bit
    between them, so that a carry cannot pass: bit p of `state` is 0 where the table grows from the reference word
    before p to p.
    """
    segments, where, inside = _laid_out(references)
    union = 0
    for candidate in candidates:
        masks = [where.get(word, 0) for word in candidate]
        state, stops = inside, []
        for mask in masks:
            if mask:
                state = ((state + (state & mask)) | (state & ~mask)) & inside
            stops.append(mask | (state ^ inside))
        grown = state ^ inside
        for segment in segments:
            if grown & segment:
                union |= _walk_back(masks, stops, segment)
    return union


def _laid_out(references: Sequence[str]) -> tuple[list[int], dict[str, int], int]:
    """The bits of each sentence, those of each word, and all of them; one bit between sentences is left out."""
    segments: list[int] = []
    where: dict[str, int] = {}
    bit = 1
    for sentence in references:
        segments.append((bit << len(sentence)) - bit)
        for word in sentence:
            where[word] = where.get(word, 0) | bit
            bit <<= 1
        bit <<= 1
    return segments, where, sum(segments)


def _walk_back(masks: Sequence[int], stops: Sequence[int], segment: int) -> int:
    """The bits of one LCS of a reference sentence and a candidate: of equally long ones the one that rouge-score finds.

    From the last candidate word back, rouge-score moves towards the beginning of the reference until it meets a
    match, which it takes, or a place where the table grows; `stops` has both.
    """
    found = 0
    for mask, stop in zip(reversed(masks), reversed(stops), strict=True):
        if not (stop := stop & segment):
            break
        bit = 1 << (stop.bit_length() - 1)
        if mask & bit:
            found |= bit
            segment &= bit - 1
        else:
            segment &= (bit << 1) - 1
    return found


def _positions(bits: int) -> Iterator[int]:
    while bits:
        bit = bits & -bits
        yield bit.bit_length() - 1
        bits ^= bit
