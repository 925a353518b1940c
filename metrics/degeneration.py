"""Replies that are broken whatever they say (empty, cut, looping, in the wrong script, copied), and varied words."""

import math
import re
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import islice, pairwise
from types import MappingProxyType
from typing import ClassVar, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import regex
from rapidfuzz.distance import LCSseq

from bnbench.metrics.core import FloatArray, Texts, ratio
from bnbench.metrics.normalization import EMOJI, Memo, flags
from bnbench.metrics.overlap import LexicalMetric, Vocabulary
from bnbench.metrics.tokenization import Preparation, is_word, preparation

BoolArray = npt.NDArray[np.bool_]
Block = TypeVar("Block", str, list[str])

COPIED = 0.8  # the share of a reply's words, four or more, that as a subsequence of the message make it a copy
SHORT, LONG = 1 / 3, 3.0  # times the words of its reference, which a reply may not fall short of or exceed

_LETTER = regex.compile(r"\p{L}")
_FOREIGN_LETTER = regex.compile(r"(?V1)[\p{L}--[\u0985-\u09b9\u09ce\u09dc-\u09e1\u09f0\u09f1]]")
_BENGALI_LETTER = re.compile("[\u0985-\u09b9\u09ce\u09dc-\u09e1\u09f0\u09f1]")


# What has to stand in a row how often to be a loop: a word six times, 1-8 letters within a word ten times (more than
# laughter), what is longer three times, emoji and numbers twenty times, dots and dashes as often as they like.
def _times_words(block: Sequence[str]) -> float:
    return 20 if not any(map(_LETTER.search, block)) else 6 if len(block) == 1 else 3


def _times_letters(block: str) -> float:
    return math.inf if not _LETTER.search(block) else 10 if len(block) <= 8 else 3


_ENDED = regex.compile(rf"(?:{EMOJI}|[।॥?!.…:;)\]”’\"'»\ufe0f\p{{Emoji_Modifier}}])\s*$")

_SHARES = {  # each value, what a reader's table calls it, and the column that counts what it is a share of
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
    template: chat-template remnants · loop: words or letters over and over · wrong_script: under half of
    the letters are Bengali · copy: four fifths of the reply stand in the message. Not among the flags: unfinished (no
    sentence-final mark), foreign_letters, repeated_4grams (seen before in the reply, Welleck 2019), too short or long.
    """

    name: ClassVar[str] = "degeneration"
    description: ClassVar[str] = "share of broken replies by kind, 0-100, lower is better"
    higher_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 100.0)  # so that no foreign letter in n replies is not [0, 0]

    columns = ("replies", "known_limit", "with_message", "with_reference", *tuple(_SHARES)[:-1])
    columns += ("letters", "repeated_4grams", "4grams")
    values = tuple(_SHARES)
    labels = MappingProxyType({value: label for value, (label, _) in _SHARES.items()})
    shares = frozenset(value for value, (_, out_of) in _SHARES.items() if out_of not in ("letters", "4grams"))

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 19: four counts of what is known, one 0/1 per flag, and counts of letters and 4-grams."""
        rows: list[list[float]] = []
        words = partial(_words, texts, self.preparation)
        read = texts.derived(("readings", self.preparation), partial(_readings, texts, self.preparation))
        known = [1, texts.cut is not None, texts.messages is not None, texts.references is not None]
        for at, raw in enumerate(texts.replies):
            seen, reply, (own, letters, foreign, loops) = flags(raw), self.preparation.normalizer(raw), read[at]
            lengths = [len(words(reference)) for reference in (texts.references[at] if texts.references else ())]
            # One character for each word, so that copies and n-grams of words are those of strings.
            character = Vocabulary().__getitem__
            encoded = "".join(map(character, own))
            message = "".join(map(character, words(texts.messages[at]))) if texts.messages else ""
            fours = [encoded[i : i + 4] for i in range(len(encoded) - 3)]
            broken = [  # empty, cut, replacement, template, loop, wrong_script, copy
                not own, texts.cut is not None and texts.cut[at], "replacement" in seen, "template" in seen, loops,
                2 * foreign > letters, len(own) >= 4 and LCSseq.similarity(encoded, message) >= COPIED * len(own),
            ]  # fmt: skip
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
    description = "distinct words and word pairs within replies, 0-100, higher is more varied; length ratio in percent"
    columns = ("distinct1", "words", "distinct2", "pairs", "compared_words", "reference_words")
    values = ("distinct1", "distinct2", "length_ratio")

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 6: different words and words, different pairs and pairs, words of reply and of reference."""
        rows, words = [], partial(_words, texts, self.preparation)
        for at, own in enumerate(map(words, texts.replies)):
            compared = [0, 0] if texts.references is None else [len(own), len(words(texts.references[at][0]))]
            rows.append([len(set(own)), len(own), len(set(pairwise(own))), max(len(own) - 1, 0), *compared])
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.columns))

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 6) to (..., 3): 100 times the ratio of each two columns."""
        return 100 * ratio(sums[..., 0::2], sums[..., 1::2])


class _Reading(NamedTuple):
    """A reply as far as it can be broken whatever it says."""

    words: list[str]
    letters: int
    foreign: int
    loops: bool


def nonsense(texts: Texts) -> BoolArray:
    """Which of n replies nobody can read, whatever scorers find: no word, a loop, mostly foreign or broken letters."""
    prepared = preparation()
    readings = texts.derived(("readings", prepared), partial(_readings, texts, prepared))
    return np.array([
        not read.words or read.loops or 2 * (read.foreign + (lost := raw.count("\ufffd"))) > read.letters + lost
        for raw, read in zip(texts.replies, readings, strict=True)
    ], dtype=np.bool_)  # fmt: skip


def _readings(texts: Texts, prepared: Preparation) -> list[_Reading]:
    found = []
    for words in (_words(texts, prepared, raw) for raw in texts.replies):
        letters, foreign, loops = map(sum, zip((0, 0, 0), *map(_read.__getitem__, words), strict=True))
        repeats = len(words) - 1 - len(set(pairwise(words))) > 2  # any loop of words has three pairs again
        found.append(_Reading(words, letters, foreign, loops > 0 or (repeats and loop(words, _times_words))))
    return found


@Memo
def _read(word: str) -> tuple[int, int, bool]:
    """How many letters a word has, how many of them are foreign, and whether it loops."""
    foreign = len(_FOREIGN_LETTER.findall(word))
    loops = len(word) >= 10 and _LETTER.search(word) is not None and loop(word, _times_letters)
    return foreign + len(_BENGALI_LETTER.findall(word)), foreign, loops


def loop(symbols: Block, times: Callable[[Block], float]) -> bool:
    """Whether a block of n symbols stands in a row as often as `times` of the block asks, which is three or more.

    A block of any length is found, in O(n log n) steps; one that itself repeats something shorter counts as that.
    """
    # At each place stands the number of the `size` symbols from there. In a row of equal blocks that are no longer than
    # `size`, what stands at a place was seen last one block before, so the distance stays the same for a while.
    size, numbers = 1, cast(Sequence[Hashable], symbols)
    while True:
        last: dict[Hashable, int] = {}
        distance = same = 0
        for place, number in enumerate(numbers):
            before, last[number] = last.get(number, place), place
            same = same + 1 if place - before == distance else 1
            distance = place - before
            row = same - 1 + size + distance  # symbols that a block of `distance` has stood in a row for
            whole = distance and row >= 3 * distance and row % distance == 0
            if whole and row >= distance * times(symbols[place - distance : place]):
                return True
        if len(last) == len(numbers):  # nothing of this size stands twice
            return False
        ids: dict[Hashable, int] = {}
        pairs = zip(numbers, islice(numbers, size, None), strict=False)
        size, numbers = 2 * size, [ids.setdefault(pair, len(ids)) for pair in pairs]


def _words(texts: Texts, prepared: Preparation, text: str) -> list[str]:
    # Cut once for both metrics.
    return texts.derived(("list of words", prepared, text), lambda: list(filter(is_word, prepared.tokens(text))))
