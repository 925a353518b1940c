"""What the overlap metrics share: texts as strings of one character per token, made once for all metrics.

Equal tokens of a set of texts become equal characters. n-grams of words, longest common subsequences of words and sentences of
words are then n-grams, subsequences and parts of strings, which is what fast code exists for. The characters lie in three ranges:
sentence ends, other punctuation, words; a line end stays a line end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnbench.metrics.core import FloatArray, Texts
from bnbench.metrics.errors import InputError
from bnbench.metrics.ngrams import IntArray, ngram_counts
from bnbench.metrics.normalization import Memo
from bnbench.metrics.tokenization import SENTENCE_ENDS, Preparation, is_word

_FIRST_MARK, _FIRST_WORD = 0x0B, 0x1000
_SENTENCE_ENDS = re.compile("[\u0001-\u000a]+")
_PUNCTUATION = re.compile("[\u0001-\u0fff]+")


class Vocabulary(dict[str, str]):
    """The character that stands for each token. Raises `InputError` when a set of texts has more than a million tokens."""

    def __init__(self) -> None:
        self._marks, self._words = iter(range(_FIRST_MARK, _FIRST_WORD)), iter(range(_FIRST_WORD, 0x110000))
        self.update((token, chr(number)) for number, token in enumerate(sorted(SENTENCE_ENDS), 1))

    def __missing__(self, token: str) -> str:
        number = next(self._words if is_word(token) else self._marks, None)
        if number is None:
            raise InputError("these texts have more than a million different words: score them in smaller parts")
        character = self[token] = chr(number)
        return character


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

    def encoded(self) -> dict[str, str]:
        """Each distinct text as one character per token, line ends kept."""
        return self.texts.derived(("encoded", self.preparation), self._encoded)

    def _encoded(self) -> dict[str, str]:
        character = Vocabulary().__getitem__
        if not self.preparation.by_word:
            return self.texts.mapped(("by text", self.preparation), lambda text: self._encoded_by_text(text, character))
        pieces = self.preparation.pieces
        encode = Memo(lambda word: "".join(map(character, pieces[word]))).__getitem__
        return {text: "\n".join(["".join(map(encode, line)) for line in lines]) for text, lines in self._lines().items()}

    def _encoded_by_text(self, text: str, character: Callable[[str], str]) -> str:
        sentences = self.preparation.split_sentences(text)
        return "\n".join("".join(map(character, self.preparation.tokens(sentence))) for sentence in sentences)

    def _lines(self) -> dict[str, list[list[str]]]:
        """The words of each line of each distinct text, to which only the rules that see no further than a word are left to apply."""
        beyond = self.preparation.normalizer.beyond_words
        return self.texts.mapped(
            ("lines", self.preparation.normalizer), lambda text: [line.split() for line in beyond(text).splitlines()]
        )

    def tokens(self) -> dict[str, str]:
        """Each distinct text as one character per token."""
        found = self.encoded()
        return self.texts.derived(("tokens", self.preparation), lambda: {t: s.replace("\n", "") for t, s in found.items()})

    def words(self) -> dict[str, str]:
        """The same without punctuation."""
        found = self.encoded()
        return self.texts.derived(("words", self.preparation), lambda: {t: _PUNCTUATION.sub("", s) for t, s in found.items()})

    def sentences(self) -> dict[str, list[str]]:
        """The words of each sentence of each distinct text, sentences without a word left out."""
        return self.texts.derived(
            ("sentences", self.preparation), lambda: {text: _sentences(s) for text, s in self.encoded().items()}
        )

    def word_ngrams(self) -> IntArray:
        """`ngram_counts` of the words up to pairs, shape (pairs, 2, 3)."""
        return self.texts.derived(("word n-grams", self.preparation), lambda: self._counted(self.words(), 2))

    def token_ngrams(self) -> IntArray:
        """`ngram_counts` of all tokens up to fours, shape (pairs, 4, 3)."""
        return self.texts.derived(("token n-grams", self.preparation), lambda: self._counted(self.tokens(), 4))

    def character_ngrams(self, order: int) -> IntArray:
        """`ngram_counts` of the characters of all tokens (so without whitespace), shape (pairs, order, 3)."""
        return self.texts.derived(
            ("character n-grams", self.preparation, order), lambda: self._counted(self._characters(), order)
        )

    def _characters(self) -> dict[str, str]:
        if not self.preparation.by_word:
            return self.texts.mapped(("joined", self.preparation), lambda text: "".join(self.preparation.tokens(text)))
        word = self.preparation.normalizer.words.__getitem__ if self.preparation.normalizer.profile == "bn1" else str
        return {t: "".join([w for line in lines for w in map(word, line)]) for t, lines in self._lines().items()}

    def _counted(self, strings: dict[str, str], order: int) -> IntArray:
        return ngram_counts([strings[t] for t in self.replies], [strings[t] for t in self.references], order)

    def best(self, table: FloatArray, score: FloatArray) -> FloatArray:
        """For each reply the row of `table` whose `score` is highest; of equal ones the first."""
        if self.single:
            return table
        ends = np.append(self.first[1:], len(score))
        return table[[start + int(score[start:end].argmax()) for start, end in zip(self.first, ends, strict=True)]]


def _sentences(encoded: str) -> list[str]:
    return [words for part in _SENTENCE_ENDS.split(encoded) if (words := _PUNCTUATION.sub("", part))]
