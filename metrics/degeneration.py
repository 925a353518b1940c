"""Replies that are broken whatever they say: empty, cut, looping, in the wrong script, copied; and how varied the
words are.
"""

from __future__ import annotations

import re
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import regex
from rapidfuzz.distance import LCSseq

from bnbench.metrics.core import FloatArray, Texts, ratio
from bnbench.metrics.normalization import flags
from bnbench.metrics.overlap import LexicalMetric, Vocabulary
from bnbench.metrics.tokenization import Preparation, is_word

COPIED = 0.8
"""A reply of four or more words copies the message when this share of its words is a subsequence of the message."""
SHORT, LONG = 1 / 3, 3.0
"""A reply is too short or too long beside its reference when it has fewer or more times its words."""

# three times the same 2-20 words in a row, six times the same word, ten times the same 1-8 letters (more than laughter)
_LOOPING_WORDS = re.compile(r"(.)\1{5}|(.{2,20}?)\2{2}", re.DOTALL)
_LOOPING_LETTERS = re.compile("([A-Za-z\u0980-\u09ff]{1,8}?)\\1{9}")
_LETTER = regex.compile(r"\p{L}")
_BENGALI_LETTER = regex.compile(r"[\u0985-\u09b9\u09ce\u09dc-\u09e1\u09f0\u09f1]")
_ENDED = regex.compile(r"[।॥?!.…:;)\]”’\"'»\p{Extended_Pictographic}\ufe0f\p{Emoji_Modifier}]\s*$")

# Each value, what a reader's table calls it, and the column that counts what it is a share of.
_SHARES = {
    "degenerate": ("broken replies, %", "replies"),
    "empty": ("empty, %", "replies"),
    "cut": ("cut at the limit, %", "known_limit"),
    "replacement": ("broken characters, %", "replies"),
    "template": ("template remnants, %", "replies"),
    "loop": ("looping, %", "replies"),
    "wrong_script": ("wrong script, %", "replies"),
    "copy": ("copy of the message, %", "with_message"),
    "unfinished": ("unfinished, %", "replies"),
    "too_short": ("too short, %", "with_reference"),
    "too_long": ("too long, %", "with_reference"),
    "foreign_letters": ("foreign letters, %", "letters"),
    "repeated_4grams": ("repeated 4-grams, %", "4grams"),
}
_FLAGS = ("empty", "cut", "replacement", "template", "loop", "wrong_script", "copy")


class Degeneration(LexicalMetric):
    """Shares of broken replies, 0-100, lower is better. `degenerate`, the main value, is the share with any of the
    flags.

    empty: no word · cut: generation stopped at the token limit (only where that is known; share of the known) ·
    replacement: U+FFFD, a character cut in half · template: chat-template remnants · loop: words or characters that
    repeat without end · wrong_script: under half of the letters are Bengali · copy: four fifths of the reply stand in
    the message (where given). Not among the flags: unfinished (no sentence-final mark at the end), foreign_letters
    (share of letters that are not Bengali), repeated_4grams (share of 4-grams seen before in the reply, Welleck
    2019), too_short and too_long (beside the reference).
    """

    name: ClassVar[str] = "degeneration"
    description: ClassVar[str] = "share of broken replies by kind, 0-100, lower is better"
    higher_is_better: ClassVar[bool] = False

    columns = (
        *("replies", "known_limit", "with_message", "with_reference", "degenerate", *_FLAGS),
        *("unfinished", "too_short", "too_long", "foreign_letters", "letters", "repeated_4grams", "4grams"),
    )
    values = tuple(_SHARES)
    labels = MappingProxyType({value: label for value, (label, _) in _SHARES.items()})

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 19: four counts of what is known, one 0/1 per flag, and counts of letters and 4-grams."""
        rows = [self._row(texts, row) for row in range(len(texts))]
        table = [[row[column] for column in self.columns] for row in rows]
        return np.array(table, dtype=np.float64).reshape(-1, len(self.columns))

    def _row(self, texts: Texts, row: int) -> dict[str, float]:
        raw = texts.replies[row]
        seen, reply = flags(raw), self.preparation.normalizer(raw)
        words = _words(texts, self.preparation, raw)
        message = _words(texts, self.preparation, texts.messages[row]) if texts.messages is not None else []
        references = () if texts.references is None else texts.references[row]
        lengths = [len(_words(texts, self.preparation, reference)) for reference in references]
        # One character for each word, so that loops, copies and n-grams of words are those of strings.
        vocabulary = Vocabulary()
        encoded, asked = ("".join(map(vocabulary.__getitem__, tokens)) for tokens in (words, message))
        letters = len(_LETTER.findall(reply))
        foreign = letters - len(_BENGALI_LETTER.findall(reply))
        repeated, total = repeated_ngrams(encoded, 4)
        found = {
            "empty": not words,
            "cut": texts.cut is not None and texts.cut[row],
            "replacement": "replacement" in seen,
            "template": "template" in seen,
            "loop": bool(_LOOPING_WORDS.search(encoded) or _LOOPING_LETTERS.search(reply)),
            "wrong_script": 2 * foreign > letters,
            "copy": len(words) >= 4 and LCSseq.similarity(encoded, asked) >= COPIED * len(words),
        }
        return {
            "replies": 1,
            "known_limit": texts.cut is not None,
            "with_message": texts.messages is not None,
            "with_reference": texts.references is not None,
            "degenerate": any(found.values()),
            **found,
            "unfinished": bool(words) and not _ENDED.search(reply),
            "too_short": bool(lengths) and len(words) < SHORT * min(lengths),
            "too_long": bool(lengths) and len(words) > LONG * max(lengths),
            "foreign_letters": foreign,
            "letters": letters,
            "repeated_4grams": repeated,
            "4grams": total,
        }

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 19) to (..., 13): 100 times each count over the replies (letters, 4-grams) of which it could be
        known.
        """
        at = {name: sums[..., column] for column, name in enumerate(self.columns)}
        return np.stack([100 * ratio(at[value], at[out_of]) for value, (_, out_of) in _SHARES.items()], axis=-1)


class Diversity(LexicalMetric):
    """distinct-1 and distinct-2 (Li et al. 2016) inside replies: different words (word pairs) per word (pair), 0-100.

    Counted within each reply and summed, so that it is additive; long replies score lower, so compare replies of like
    length. `length_ratio` is the replies' words per 100 words of the (first) references; 100 is the same length.
    Higher is more varied, not better in itself.
    """

    name: ClassVar[str] = "diversity"
    description: ClassVar[str] = (
        "distinct words and word pairs within replies, 0-100, higher is more varied; length ratio in percent"
    )
    columns = ("distinct1", "words", "distinct2", "pairs", "compared_words", "reference_words")
    values = ("distinct1", "distinct2", "length_ratio")

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 6: different words and words, different pairs and pairs, words of reply and of reference."""
        rows = []
        for row, reply in enumerate(texts.replies):
            own = _words(texts, self.preparation, reply)
            distinct, pairs = len(set(own)), len(set(pairwise(own)))
            compared = [0, 0]
            if texts.references is not None:
                compared = [len(own), len(_words(texts, self.preparation, texts.references[row][0]))]
            rows.append([distinct, len(own), pairs, max(len(own) - 1, 0), *compared])
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.columns))

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 6) to (..., 3): 100 times the ratio of each two columns."""
        return 100 * ratio(sums[..., 0::2], sums[..., 1::2])


def _words(texts: Texts, prepared: Preparation, text: str) -> list[str]:
    """The words of a text, cut once for all the metrics here."""
    return texts.derived(("list of words", prepared, text), lambda: list(filter(is_word, prepared.tokens(text))))


def repeated_ngrams(words: str, n: int) -> tuple[int, int]:
    """(n-grams that stand earlier in the same string, all n-grams)."""
    total = max(len(words) - n + 1, 0)
    return total - len({words[i : i + n] for i in range(total)}), total
