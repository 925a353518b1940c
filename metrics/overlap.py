"""What the overlap metrics share: texts as strings of one character per token, and the n-grams that two strings share.

So n-grams, subsequences and sentences of words are those of strings, which is what fast code exists for.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import count
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from bnbench.metrics.core import FloatArray, Made, Metric, Texts
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.normalization import Memo, Normalizer
from bnbench.metrics.tokenization import BY_WORD, SENTENCE_ENDS, Preparation, is_word, preparation

IntArray = npt.NDArray[np.int64]
Spelling = Literal["tokens", "words", "characters"]

# The characters of tokens lie in three ranges: sentence ends, other punctuation, words.
_FIRST_MARK, _FIRST_WORD, _END = 0x10, 0x1000, 0x110000
_SENTENCE_ENDS = re.compile("[\u0001-\u000f]+")
_PUNCTUATION = re.compile("[\u0001-\u0fff]+")
_BATCH = 128  # pairs whose n-grams are sorted together: the keys of so many stay in the processor's cache


class Vocabulary(dict[str, str]):
    """The character that stands for each token; `InputError` when the texts have more than a million tokens."""

    def __init__(self) -> None:
        self._marks, self._words = iter(range(_FIRST_MARK, _FIRST_WORD)), iter(range(_FIRST_WORD, _END))
        self.update((token, chr(number)) for number, token in enumerate(sorted(SENTENCE_ENDS), 1))

    def __missing__(self, token: str) -> str:
        number = next(self._words if is_word(token) else self._marks, None)
        if number is None:
            raise InputError("these texts have more than a million different words: score them in smaller parts")
        character = self[token] = chr(number)
        return character


class LexicalMetric(Metric):
    """A metric of the words of texts, which `norm` normalises and `tokenizer` cuts; `fixed` adds to its signature."""

    fixed: Mapping[str, object] = MappingProxyType({})

    def __init__(self, norm: str | Normalizer = "bn1", tokenizer: str = "bn1") -> None:
        self.preparation: Preparation = preparation(norm, tokenizer)
        self.choices = {**self.preparation.choices, **self.fixed}


class Pairs:
    """Every (reply, reference) pair of some texts, the pairs of one reply side by side from `first[reply]` on.

    `spelled` and `sentences` spell each distinct text, for `sides` to pick from; each spelling is made once.
    """

    def __init__(self, texts: Texts, preparation: Preparation) -> None:
        self.texts, self.preparation, self.vocabulary = texts, preparation, Vocabulary()
        references = texts.references or ()
        per_reply = np.array([len(some) for some in references], dtype=np.int64)
        self.first = per_reply.cumsum() - per_reply
        self.replies = [reply for reply, some in zip(texts.replies, references, strict=True) for _ in some]
        self.references = [reference for some in references for reference in some]
        self.single = len(self.references) == len(references)  # every reply has one reference
        # The different words of all texts, and the lines of each distinct text as places among them. A text whose
        # tokens depend on all of it is one word.
        self._numbers = defaultdict[str, int](count().__next__)
        place, beyond = self._numbers.__getitem__, preparation.normalizer.beyond_words
        self._texts = {
            text: [list(map(place, line.split())) for line in beyond(text).splitlines()]
            if preparation.tokenizer in BY_WORD
            else [[place(text)]]
            for text in dict.fromkeys((*self.replies, *self.references))
        }
        self.spelled, self._lines = Memo(self._spell).__getitem__, dict[str, list[str]]()

    @classmethod
    def of(cls, texts: Texts, preparation: Preparation) -> Self:
        """The pairs of these texts under this preparation, made once for all metrics."""
        return texts.derived(("pairs", preparation), lambda: cls(texts, preparation))

    def sides(self, spelled: Mapping[str, Made]) -> tuple[list[Made], list[Made]]:
        """The replies and the references of all pairs as `spelled` has them."""
        return [spelled[text] for text in self.replies], [spelled[text] for text in self.references]

    def best(self, table: FloatArray, score: FloatArray) -> FloatArray:
        """For each reply the row of `table` whose `score` is highest; of equal ones the first."""
        if self.single:
            return table
        ends = np.append(self.first[1:], len(score))
        return table[[start + int(score[start:end].argmax()) for start, end in zip(self.first, ends, strict=True)]]

    def _spell(self, spelling: str) -> dict[str, str]:
        """Each distinct text: a character for each of its "tokens", the same without punctuation ("words"), or the
        "characters" of its tokens, so without whitespace. The lines of tokens are kept, for `sentences`.

        What is made of words is made once for each, in a list: a look-up by place costs half of one by word.
        """
        if spelling == "words":
            return {text: _PUNCTUATION.sub("", tokens) for text, tokens in self.spelled("tokens").items()}
        character, prepared, words = self.vocabulary.__getitem__, self.preparation, self._numbers
        by_word = prepared.tokenizer in BY_WORD
        tokens = prepared.pieces.__getitem__ if by_word else prepared.tokens
        if spelling == "tokens":
            made = ["".join(map(character, tokens(word))) for word in words]
        else:
            normal = prepared.normalizer.words
            made = [normal[word] if by_word else "".join(tokens(word)) for word in words]
        lines = {t: ["".join(map(made.__getitem__, line)) for line in own] for t, own in self._texts.items()}
        self._lines = lines if spelling == "tokens" else self._lines
        return {text: "".join(own) for text, own in lines.items()}

    @cached_property
    def sentences(self) -> dict[str, list[str]]:
        """The words of each sentence, sentences without a word left out."""
        prepared, character = self.preparation, self.vocabulary.__getitem__
        self.spelled("tokens")
        found = {}
        for text, lines in self._lines.items():
            if prepared.tokenizer in BY_WORD:
                parts = [part for line in lines for part in _SENTENCE_ENDS.split(line)]
            else:  # these leave marks on words, so the sentences are bn1's
                parts = ["".join(map(character, prepared.tokens(s))) for s in prepared.split_sentences(text)]
            found[text] = [words for part in parts if (words := _PUNCTUATION.sub("", part))]
        return found

    def ngrams(self, spelling: Spelling, order: int) -> IntArray:
        """`ngram_counts` of the pairs, (pairs, order, 3), counted once for all metrics."""
        key = (spelling, order, self.preparation)
        return self.texts.derived(key, lambda: ngram_counts(*self.sides(self.spelled(spelling)), order))


def ngrams(text: str, n: int) -> Counter[str]:
    """How often each n-gram occurs in a string of one character per symbol."""
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def ngram_counts(hypotheses: Sequence[str], references: Sequence[str], order: int) -> IntArray:
    """(n, order, 3): n-grams of hypothesis, reference, and both (the fewer of the two), for each pair and order."""
    lengths = np.array([list(map(len, hypotheses)), list(map(len, references))], dtype=np.int64)
    counts = np.empty((len(hypotheses), order, 3), dtype=np.int64)
    counts[:, :, :2] = np.maximum(lengths.T[:, None, :] - np.arange(order)[None, :, None], 0)
    for start in range(0, len(hypotheses), _BATCH):
        rows = slice(start, start + _BATCH)
        counts[rows, :, 2] = _matches(hypotheses[rows], references[rows], order)
    return counts


def _matches(hypotheses: Sequence[str], references: Sequence[str], order: int) -> IntArray:
    """The common n-grams of each pair, (n, order), by sorting packed integers instead of counting Python objects.

    Every position's n-gram of the highest order becomes one 64-bit key, (pair, symbols, side). n-grams of all lower
    orders are prefixes, so equal ones are neighbours in the same order, and one sort serves all orders.
    """
    # All characters in a row, hypotheses first, as numbers 1 ... size of the alphabet.
    n, texts = len(hypotheses), [*hypotheses, *references]
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    present = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.uint64)
    present[codes] = 1
    numbers = present.cumsum(dtype=np.uint64)
    bits = int(numbers[-1]).bit_length()
    if order * bits + n.bit_length() + 1 > 64:  # the keys do not fit
        if n == 1:  # counted plainly
            both = [(ngrams(hypotheses[0], length), ngrams(references[0], length)) for length in range(1, order + 1)]
            return np.array([[(ours & theirs).total() for ours, theirs in both]])
        halves = (slice(n // 2), slice(n // 2, n))  # which have smaller alphabets
        return np.vstack([_matches(hypotheses[half], references[half], order) for half in halves])
    # Every text gets order - 1 zeros behind it, so that no n-gram reaches into the next.
    gap, lengths = order - 1, np.array(list(map(len, texts)), dtype=np.int64)
    at = np.arange(len(codes)) + (np.arange(2 * n) * gap).repeat(lengths)
    padded = np.zeros(len(codes) + gap * (2 * n + 1), dtype=np.uint64)
    padded[at] = numbers[codes]
    inner = len(padded) - gap
    keys = padded[:inner].copy()
    for shift in range(1, order):  # one symbol further at every position at once
        keys <<= np.uint64(bits)
        keys |= padded[shift : inner + shift]
    side, pair = (ids.astype(np.uint64) for ids in np.divmod(np.arange(2 * n), n))
    keys = keys[at]  # in place from here: the arrays are long
    keys |= (pair << np.uint64(order * bits)).repeat(lengths)
    keys <<= np.uint64(1)
    keys |= side.repeat(lengths)
    keys.sort()
    # Occurrences in hypothesis and reference are counted in the lower and upper half of one integer: one sum for both.
    matches = np.empty((n, order), dtype=np.int64)
    counts = np.where(keys & np.uint64(1), np.int64(1 << 32), np.int64(1))
    grams = keys >> np.uint64(1)
    for length in range(order, 0, -1):
        # Equal n-grams are neighbours: the sum over a run of them is the running sum at its end less that before it.
        last = np.flatnonzero(np.append(grams[1:] != grams[:-1], len(grams) > 0))
        counts = counts.cumsum()[last]
        counts[1:] -= counts[:-1].copy()
        grams = grams[last]
        common = np.minimum(counts >> 32, counts & 0xFFFFFFFF)
        common[(grams & np.uint64((1 << bits) - 1)) == 0] = 0  # ends beyond its text: an n-gram of a lower order only
        met = np.flatnonzero(common)
        owner = (grams[met] >> np.uint64(length * bits)).astype(np.int64)
        matches[:, length - 1] = np.bincount(owner, weights=common[met], minlength=n)
        grams >>= np.uint64(bits)  # the next lower order: the last symbol is dropped
    return matches
