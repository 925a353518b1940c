"""What the overlap metrics share: texts as strings of one character per token, made once for all metrics.

Equal tokens of a set of texts become equal characters. n-grams of words, longest common subsequences of words and
sentences of words are then n-grams, subsequences and parts of strings, which is what fast code exists for. The
characters lie in three ranges: sentence ends, other punctuation, words; a line end stays a line end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np

from bnbench.metrics.core import FloatArray, Made, Texts
from bnbench.metrics.errors import InputError
from bnbench.metrics.ngrams import IntArray, ngram_counts
from bnbench.metrics.tokenization import SENTENCE_ENDS, Preparation, is_word

_FIRST_MARK, _FIRST_WORD = 0x10, 0x1000
_SENTENCE_ENDS = re.compile("[\u0001-\u000f]+")
_PUNCTUATION = re.compile("[\u0001-\u0fff]+")


class Vocabulary(dict[str, str]):
    """The character that stands for each token. Raises `InputError` when a set of texts has more than a million
    tokens.
    """

    def __init__(self) -> None:
        self._marks, self._words = iter(range(_FIRST_MARK, _FIRST_WORD)), iter(range(_FIRST_WORD, 0x110000))
        self.update((token, chr(number)) for number, token in enumerate(sorted(SENTENCE_ENDS), 1))

    def __missing__(self, token: str) -> str:
        character = self[token] = self._new(self._words if is_word(token) else self._marks, 1)[0]
        return character

    def for_words(self, n: int) -> list[str]:
        """n characters that stand for words and for no token yet."""
        return self._new(self._words, n)

    @staticmethod
    def _new(numbers: Iterator[int], n: int) -> list[str]:
        characters = list(map(chr, islice(numbers, n)))
        if len(characters) < n:
            raise InputError("these texts have more than a million different words: score them in smaller parts")
        return characters


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
        return texts.derived(("pairs", preparation), lambda: cls._made(texts, preparation))

    @classmethod
    def _made(cls, texts: Texts, preparation: Preparation) -> Pairs:
        references = texts.references or ()
        per_reply = np.array([len(r) for r in references], dtype=np.int64)
        replies = tuple(reply for reply, r in zip(texts.replies, references, strict=True) for _ in r)
        return cls(texts, preparation, replies, tuple(texts.reference_texts()), per_reply.cumsum() - per_reply)

    @property
    def single(self) -> bool:
        """Whether every reply has exactly one reference."""
        return len(self.replies) == len(self.first)

    def tokens(self) -> dict[str, str]:
        """Each distinct text as one character per token."""
        return self._derived("tokens", lambda: {text: "".join(lines) for text, lines in self._encoded().items()})

    def words(self) -> dict[str, str]:
        """The same without punctuation."""
        return self._derived("words", lambda: {text: _PUNCTUATION.sub("", s) for text, s in self.tokens().items()})

    def sentences(self) -> dict[str, list[str]]:
        """The words of each sentence of each distinct text, sentences without a word left out."""
        return self._derived("sentences", self._sentences)

    def _derived(self, key: Hashable, make: Callable[[], Made]) -> Made:
        return self.texts.derived((key, self.preparation), make)

    def _sentences(self) -> dict[str, list[str]]:
        if self.preparation.by_word:
            return {text: [s for line in lines for s in _cut(line)] for text, lines in self._encoded().items()}
        split, encode = self.preparation.split_sentences, self._encode
        return self.texts.mapped(
            ("by sentence", self.preparation),
            lambda text: [w for s in split(text) if (w := _PUNCTUATION.sub("", encode(s)))],
        )

    def _encoded(self) -> dict[str, list[str]]:
        """The lines of each distinct text as one character per token; one line where tokens depend on the whole
        text.
        """
        return self._derived("encoded", self._encoded_by_word if self.preparation.by_word else self._encoded_by_text)

    def _encoded_by_word(self) -> dict[str, list[str]]:
        numbers, texts = self._numbered()
        encode = self._codes(numbers).__getitem__
        return {text: ["".join(map(encode, line)) for line in lines] for text, lines in texts.items()}

    def _codes(self, numbers: Mapping[str, int]) -> list[str]:
        """One character per token of each word, in the order of their numbers. Most words are one token, themselves."""
        vocabulary, pieces = self._vocabulary(), self.preparation.pieces
        several = self.preparation.learn(numbers)
        characters = vocabulary.for_words(len(numbers))
        tokens = set(chain.from_iterable(map(pieces.__getitem__, several)))
        vocabulary.update({t: characters[numbers[t]] for t in tokens if t in numbers and t not in several})
        new = [t for t in tokens if t not in vocabulary and is_word(t)]
        vocabulary.update(zip(new, vocabulary.for_words(len(new)), strict=True))
        character = vocabulary.__getitem__
        for word in several:
            characters[numbers[word]] = "".join(map(character, pieces[word]))
        return characters

    def _encoded_by_text(self) -> dict[str, list[str]]:
        return self.texts.mapped(("by text", self.preparation), lambda text: [self._encode(text)])

    def _encode(self, text: str) -> str:
        return "".join(map(self._vocabulary().__getitem__, self.preparation.tokens(text)))

    def _vocabulary(self) -> Vocabulary:
        return self._derived("vocabulary", Vocabulary)

    def _numbered(self) -> tuple[dict[str, int], dict[str, list[list[int]]]]:
        """The words of all texts, numbered as they come, and the numbers in each line of each distinct text.

        Words as they are after the rules that look further than a word. Each is looked up once, fresh from the text:
        whatever is made of words lies in lists in the order of their numbers.
        """
        beyond, numbers = self.preparation.normalizer.beyond_words, defaultdict[str, int](count().__next__)
        number, key = numbers.__getitem__, ("numbered", self.preparation.normalizer)

        def lines(text: str) -> list[list[int]]:
            return [list(map(number, line.split())) for line in beyond(text).splitlines()]

        return self.texts.derived(key, lambda: (numbers, self.texts.mapped((key, "lines"), lines)))

    def word_ngrams(self) -> IntArray:
        """`ngram_counts` of the words up to pairs, shape (pairs, 2, 3)."""
        return self._derived("word n-grams", lambda: self._counted(self.words(), 2))

    def token_ngrams(self) -> IntArray:
        """`ngram_counts` of all tokens up to fours, shape (pairs, 4, 3)."""
        return self._derived("token n-grams", lambda: self._counted(self.tokens(), 4))

    def character_ngrams(self, order: int) -> IntArray:
        """`ngram_counts` of the characters of all tokens (so without whitespace), shape (pairs, order, 3)."""
        return self._derived(("character n-grams", order), lambda: self._counted(self._characters(), order))

    def _characters(self) -> dict[str, str]:
        if not self.preparation.by_word:
            return self.texts.mapped(("joined", self.preparation), lambda text: "".join(self.preparation.tokens(text)))
        numbers, texts = self._numbered()
        word = list(map(self.preparation.normalizer.words.__getitem__, numbers)).__getitem__
        return {t: "".join([w for line in lines for w in map(word, line)]) for t, lines in texts.items()}

    def _counted(self, strings: dict[str, str], order: int) -> IntArray:
        return ngram_counts([strings[t] for t in self.replies], [strings[t] for t in self.references], order)

    def best(self, table: FloatArray, score: FloatArray) -> FloatArray:
        """For each reply the row of `table` whose `score` is highest; of equal ones the first."""
        if self.single:
            return table
        ends = np.append(self.first[1:], len(score))
        return table[[start + int(score[start:end].argmax()) for start, end in zip(self.first, ends, strict=True)]]


def _cut(line: str) -> list[str]:
    return [words for part in _SENTENCE_ENDS.split(line) if (words := _PUNCTUATION.sub("", part))]
