"""Replies that are broken whatever they say (empty, cut, looping, in the wrong script, copied), and varied words."""

from __future__ import annotations

import re
from functools import partial
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

COPIED = 0.8  # the share of a reply's words, four or more, that as a subsequence of the message make it a copy
SHORT, LONG = 1 / 3, 3.0  # times the words of its reference, which a reply may not fall short of or exceed

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


class Degeneration(LexicalMetric):
    """Shares of broken replies, 0-100, lower is better. The main value, `degenerate`, is the share with any flag:

    empty: no word · cut: generation stopped at the token limit · replacement: U+FFFD, a character cut in half ·
    template: chat-template remnants · loop: words or characters that repeat without end · wrong_script: under half of
    the letters are Bengali · copy: four fifths of the reply stand in the message. Not among the flags: unfinished (no
    sentence-final mark), foreign_letters, repeated_4grams (seen before in the reply, Welleck 2019), too short or long.
    """

    name: ClassVar[str] = "degeneration"
    description: ClassVar[str] = "share of broken replies by kind, 0-100, lower is better"
    higher_is_better: ClassVar[bool] = False

    columns = (
        *("replies", "known_limit", "with_message", "with_reference"),
        *tuple(_SHARES)[:-1],
        *("letters", "repeated_4grams", "4grams"),
    )
    values = tuple(_SHARES)
    labels = MappingProxyType({value: label for value, (label, _) in _SHARES.items()})
    shares = frozenset(value for value, (_, out_of) in _SHARES.items() if out_of not in ("letters", "4grams"))

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 19: four counts of what is known, one 0/1 per flag, and counts of letters and 4-grams."""
        rows: list[list[float]] = []
        words = partial(_words, texts, self.preparation)
        known = [1, texts.cut is not None, texts.messages is not None, texts.references is not None]
        for at, raw in enumerate(texts.replies):
            seen, reply, own = flags(raw), self.preparation.normalizer(raw), words(raw)
            lengths = [len(words(reference)) for reference in (texts.references[at] if texts.references else ())]
            letters = len(_LETTER.findall(reply))
            foreign = letters - len(_BENGALI_LETTER.findall(reply))
            # One character for each word, so that loops, copies and n-grams of words are those of strings.
            character = Vocabulary().__getitem__
            encoded = "".join(map(character, own))
            message = "".join(map(character, words(texts.messages[at]))) if texts.messages else ""
            fours = [encoded[i : i + 4] for i in range(len(encoded) - 3)]
            broken = [  # empty, cut, replacement, template, loop, wrong_script, copy
                not own,
                texts.cut is not None and texts.cut[at],
                "replacement" in seen,
                "template" in seen,
                bool(_LOOPING_WORDS.search(encoded) or _LOOPING_LETTERS.search(reply)),
                2 * foreign > letters,
                len(own) >= 4 and LCSseq.similarity(encoded, message) >= COPIED * len(own),
            ]
            unfinished = bool(own) and not _ENDED.search(reply)
            too_short = bool(lengths) and len(own) < SHORT * min(lengths)
            too_long = bool(lengths) and len(own) > LONG * max(lengths)
            counts = [foreign, letters, len(fours) - len(set(fours)), len(fours)]
            rows.append([*known, any(broken), *broken, unfinished, too_short, too_long, *counts])
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.columns))

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 19) to (..., 13): 100 times each count over the replies (letters, 4-grams) of which it is known."""
        at = {name: sums[..., column] for column, name in enumerate(self.columns)}
        return np.stack([100 * ratio(at[value], at[out_of]) for value, (_, out_of) in _SHARES.items()], axis=-1)


class Diversity(LexicalMetric):
    """distinct-1 and distinct-2 (Li et al. 2016) inside replies: different words (word pairs) per word (pair), 0-100.

    Long replies score lower, so compare replies of like length. `length_ratio` is the replies' words per 100 words of
    the (first) references. Higher is more varied, not better in itself.
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
        words = partial(_words, texts, self.preparation)
        for at, own in enumerate(map(words, texts.replies)):
            compared = [0, 0] if texts.references is None else [len(own), len(words(texts.references[at][0]))]
            rows.append([len(set(own)), len(own), len(set(pairwise(own))), max(len(own) - 1, 0), *compared])
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.columns))

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 6) to (..., 3): 100 times the ratio of each two columns."""
        return 100 * ratio(sums[..., 0::2], sums[..., 1::2])


def _words(texts: Texts, prepared: Preparation, text: str) -> list[str]:
    # Cut once for both metrics.
    return texts.derived(("list of words", prepared, text), lambda: list(filter(is_word, prepared.tokens(text))))
