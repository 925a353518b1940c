"""What the overlap metrics share: texts as strings of one character per token, made once for all metrics.

Equal tokens of a set of texts become equal characters. n-grams of words, longest common subsequences of words and
sentences of words are then n-grams, subsequences and parts of strings, which is what fast code exists for. The
characters lie in three ranges: sentence ends, other punctuation, words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Made, Metric, Texts
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.ngrams import IntArray, ngram_counts
from bnbench.metrics.normalization import Normalizer
from bnbench.metrics.tokenization import SENTENCE_ENDS, Preparation, is_word, preparation

_FIRST_MARK, _FIRST_WORD, _END = 0x10, 0x1000, 0x110000
_SENTENCE_ENDS = re.compile("[\u0001-\u000f]+")
_PUNCTUATION = re.compile("[\u0001-\u0fff]+")


class Vocabulary(dict[str, str]):
    """The character that stands for each token. Raises `InputError` when a set of texts has more than a million
    tokens.
    """

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
    """A metric of the words of texts: `norm` and `tokenizer` say how they are normalised and cut, and so does the
    signature, with what else is `fixed`.
    """

    fixed: ClassVar[Mapping[str, object]] = MappingProxyType({})

    def __init__(self, norm: str | Normalizer = "bn1", tokenizer: str = "bn1") -> None:
        self.preparation: Preparation = preparation(norm, tokenizer)

    @property
    def choices(self) -> Mapping[str, object]:
        """`norm`, `tok` and what is fixed."""
        return {**self.preparation.choices, **self.fixed}


@dataclass(frozen=True)
class Pairs:
    """Every (reply, reference) pair of some texts, the pairs of one reply side by side.

    `first[i]` is the first pair of reply i; with one reference each it is 0 ... n-1.
    """

    texts: Texts
    preparation: Preparation
    replies: tuple[str, ...]
    references: tuple[str, ...]
    first: IntArray

    @classmethod
    def of(cls, texts: Texts, preparation: Preparation) -> Pairs:
        """The pairs of these texts under this preparation; made once and shared by all metrics."""

        def made() -> Pairs:
            references = texts.references or ()
            per_reply = np.array([len(r) for r in references], dtype=np.int64)
            replies = tuple(reply for reply, r in zip(texts.replies, references, strict=True) for _ in r)
            return cls(texts, preparation, replies, tuple(texts.reference_texts()), per_reply.cumsum() - per_reply)

        return texts.derived(("pairs", preparation), made)

    @property
    def single(self) -> bool:
        """Whether every reply has exactly one reference."""
        return len(self.replies) == len(self.first)

    def best(self, table: FloatArray, score: FloatArray) -> FloatArray:
        """For each reply the row of `table` whose `score` is highest; of equal ones the first."""
        if self.single:
            return table
        ends = np.append(self.first[1:], len(score))
        return table[[start + int(score[start:end].argmax()) for start, end in zip(self.first, ends, strict=True)]]

    def tokens(self) -> dict[str, str]:
        """Each distinct text as one character per token."""
        lines = self._lines()
        return self._mapped("tokens", lambda text: "".join(lines[text]))

    def words(self) -> dict[str, str]:
        """The same without punctuation."""
        tokens = self.tokens()
        return self._mapped("words", lambda text: _PUNCTUATION.sub("", tokens[text]))

    def sentences(self) -> dict[str, list[str]]:
        """The words of each sentence of each distinct text, sentences without a word left out."""
        prepared, lines = self.preparation, self._lines()

        def cut(text: str) -> list[str]:
            if prepared.by_word:
                parts = [part for line in lines[text] for part in _SENTENCE_ENDS.split(line)]
            else:  # these leave marks on words, so the sentences are bn1's
                character = self._vocabulary.__getitem__
                parts = ["".join(map(character, prepared.tokens(s))) for s in prepared.split_sentences(text)]
            return [words for part in parts if (words := _PUNCTUATION.sub("", part))]

        return self._mapped("sentences", cut)

    def characters(self) -> dict[str, str]:
        """Each distinct text as the characters of its tokens, so without whitespace."""
        words, texts = self._numbered()
        normal = self.preparation.normalizer.words.__getitem__
        if not self.preparation.by_word:
            normal = lambda text: "".join(self.preparation.tokens(text))  # noqa: E731
        of = list(map(normal, words)).__getitem__
        return self._mapped("characters", lambda text: "".join(["".join(map(of, line)) for line in texts[text]]))

    def ngrams(self, of: Callable[[Pairs], dict[str, str]], order: int) -> IntArray:
        """`ngram_counts` of the pairs as `of` (`Pairs.words`, ...) spells them, counted once; (pairs, order, 3)."""

        def counted() -> IntArray:
            made = of(self)
            return ngram_counts([made[t] for t in self.replies], [made[t] for t in self.references], order)

        return self.texts.derived((of, self.preparation, order), counted)

    def _lines(self) -> dict[str, list[str]]:
        """Each line of each distinct text as one character per token."""
        prepared, (words, texts) = self.preparation, self._numbered()
        tokens = prepared.pieces.__getitem__ if prepared.by_word else prepared.tokens
        character = self._vocabulary.__getitem__
        codes = ["".join(map(character, tokens(word))) for word in words].__getitem__
        return self._mapped("lines", lambda text: ["".join(map(codes, line)) for line in texts[text]])

    def _numbered(self) -> tuple[Collection[str], dict[str, list[list[int]]]]:
        """The different words of all texts, and the lines of each distinct text as places among them.

        What is made of words is made once for each different one, in a list; a text is then a few look-ups by place,
        which cost half of those by word. A text whose tokens depend on all of it is one word.
        """
        places = self.texts.derived(("places", self.preparation), lambda: defaultdict[str, int](count().__next__))
        place, beyond = places.__getitem__, self.preparation.normalizer.beyond_words
        if not self.preparation.by_word:
            return places, self._mapped("numbered", lambda text: [[place(text)]])
        return places, self._mapped(
            "numbered", lambda text: [list(map(place, line.split())) for line in beyond(text).splitlines()]
        )

    @property
    def _vocabulary(self) -> Vocabulary:
        return self.texts.derived(("vocabulary", self.preparation), Vocabulary)

    def _mapped(self, key: Hashable, function: Callable[[str], Made]) -> dict[str, Made]:
        return self.texts.mapped((key, self.preparation), function)
