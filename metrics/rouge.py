"""ROUGE-1, -2, -L and -Lsum, as rouge-score has them with the same tokeniser, many times faster."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import ClassVar

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from bnbench.metrics.core import FloatArray, MeanMetric, Texts, ratio
from bnbench.metrics.exceptions import UsageError
from bnbench.metrics.normalization import Normalizer
from bnbench.metrics.overlap import LexicalMetric, Pairs, Spelling

TYPES = ("rougeL", "rouge1", "rouge2", "rougeLsum")


class ROUGE(LexicalMetric, MeanMetric):
    """ROUGE (Lin 2004): overlap of words (1), word pairs (2), longest common subsequence (L), by sentence (Lsum).

    The mean over replies of each reply's precision, recall and F1; `value` is the F of the first of `types`.
    Punctuation is left out. Of several references the one with the highest F counts, for each type by itself. No
    stemming: it cannot see that দুঃখ and দুঃখের are one word, nor synonyms.
    `profile="csebuetnlp"` is ROUGE-1, -2 and -L of raw texts with csebuetnlp's tokens and stems, under a name of its
    own, to stand beside the tables of XL-Sum and BanglaNLG. Raises `UsageError` for an unknown type or profile.
    """

    name: ClassVar[str] = "ROUGE"
    description: ClassVar[str] = "word overlap F1 (and precision, recall), mean over replies, 0-100, higher is better"
    needs = frozenset({"references"})

    def __init__(
        self, norm: str | Normalizer = "bn1", tokenizer: str = "bn1", types: Sequence[str] | None = None, *,
        profile: str | None = None,
    ) -> None:  # fmt: skip
        known: tuple[str, ...] = TYPES
        if profile is not None:
            if profile != "csebuetnlp" or (norm, tokenizer) != ("bn1", "bn1"):
                there = '"csebuetnlp", which has its own norm and tokenizer'
                raise UsageError(f"ROUGE profile {profile!r}: there is {there}")
            self.name = f"{self.name}-{profile}"  # type: ignore[misc]  # so that both can stand in one run
            norm, tokenizer, known = "none", profile, TYPES[:3]
        types = known if types is None else types
        if unknown := [kind for kind in types if kind not in known]:
            raise UsageError(f"no {self.name} type {unknown[0]!r}; there are {', '.join(known)}")
        self.profile, self.fixed = profile, {"stem": "yes" if profile else "no"}
        super().__init__(norm, tokenizer)
        self.types = tuple(types)
        parts = [f"{kind}_{part}" for kind in self.types for part in ("precision", "recall")]
        self.values = (*self.types, *parts)
        self.columns = (*self.values, "replies")
        self.details = frozenset({*parts, *self.types} & {*parts, "rougeLsum"})
        whose = f" ({profile})" if profile else ""
        self.labels = {**self.labels, **{kind: kind.replace("rouge", "ROUGE-") + whose for kind in self.types}}

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x (3 types): F of each type, then precision and recall of each, on 0-1."""
        pairs, best = Pairs.of(texts, self.preparation), []
        spelling: Spelling = "tokens" if self.profile else "words"  # ৳ is one to csebuetnlp, too
        for kind in self.types:
            if kind in ("rouge1", "rouge2"):
                hyp, ref, match = pairs.ngrams(spelling, 2)[:, int(kind[-1]) - 1].T
            else:
                replies, references = pairs.sides(pairs.spelled(spelling))
                hyp, ref = (np.array(list(map(len, strings)), dtype=np.int64) for strings in (replies, references))
                if kind == "rougeL":
                    match = process.cpdist(replies, references, scorer=LCSseq.similarity, dtype=np.int64)
                else:
                    match = np.array(list(map(_union_hits, *pairs.sides(pairs.sentences))), dtype=np.int64)
            precision, recall = ratio(match, hyp), ratio(match, ref)
            f = ratio(2 * precision * recall, precision + recall)
            best.append(pairs.best(np.column_stack([f, precision, recall]), f))
        return np.column_stack([*(scores[:, 0] for scores in best), *(scores[:, 1:] for scores in best)])


CSEBUETNLP = partial(ROUGE, profile="csebuetnlp")


def _union_hits(candidates: Sequence[str], references: Sequence[str]) -> int:
    """rouge-score's summary-level LCS: words of reference sentences in an LCS with any candidate's, none twice.

    The dynamic program runs on bits (Hyyrö 2004), all reference sentences side by side in one integer with a zero bit
    between them, so that a carry cannot pass: bit p of `state` is 0 where the table grows at the reference word p.
    """
    if len(references) == len(candidates) == 1:
        return LCSseq.similarity(references[0], candidates[0])
    # Reference words that no candidate has change nothing. A text that loops says one sentence a thousand times.
    known = frozenset("".join(candidates)).__contains__
    times = Counter("".join(filter(known, sentence)) for sentence in references)
    # Where each sentence lies, where each word stands in any of them, and all bits that are words.
    segments, where, bit = list[int](), dict[str, int](), 1
    for sentence in times:
        segments.append((bit << len(sentence)) - bit)
        for word in sentence:
            where[word] = where.get(word, 0) | bit
            bit <<= 1
        bit <<= 1  # the bit between two sentences
    inside = sum(segments)
    union = 0  # of the reference words in an LCS with any candidate sentence
    for candidate in dict.fromkeys(candidates):
        # Forwards: one row of the table for each candidate word. `rows` keeps, for the way back, where the word
        # matches, and where it matches or the table grows. Of words in a row that match nowhere one stands for all.
        state, grown, met, rows = inside, 0, 0, [(0, 0)]
        for word in candidate:
            if mask := where.get(word, 0):
                hit = state & mask
                state = ((state + hit) | (state - hit)) & inside
                grown = state ^ inside
                met |= mask
                rows.append((mask, mask | grown))
            elif rows[-1][0]:
                rows.append((0, grown))
        # Backwards: of equally long subsequences the one that rouge-score finds. From the last candidate word back it
        # moves towards the beginning of the reference until it meets a match, which it takes, or a place where the
        # table grows, from where the next word looks on.
        rows.reverse()
        for segment in segments:
            matching = met & segment
            if (grown & segment).bit_count() == matching.bit_count():
                union |= matching  # all does that can, or there is nothing, which is the rule
                continue
            for mask, stop in rows:
                if not (stop := stop & segment):
                    break
                bit = 1 << (stop.bit_length() - 1)
                union |= mask & bit
                segment &= (bit if mask & bit else bit << 1) - 1

    chosen = list(map("1".__eq__, f"{union:b}"[::-1]))  # the lowest bit is that of the first word
    words = "".join(compress("\n".join(times), chosen))
    if len(times) == len(references) and len(set(words)) == len(words):
        return len(words)
    often = compress((n for sentence, n in times.items() for n in [n] * (len(sentence) + 1)), chosen)
    hits = Counter("".join(word * n for word, n in zip(words, often, strict=True)))
    return (hits & Counter("".join(candidates))).total()
