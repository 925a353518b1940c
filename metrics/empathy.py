"""Keyword empathy: which of the three mechanisms of EPITOME a reply shows to the message it answers, by a lexicon.

Sharma, Miner, Atkins & Althoff (2020), "A Computational Approach to Understanding Empathy Expressed in Text-Based Mental Health
Support": emotional reaction (warmth, concern, shared joy), interpretation (saying what the person feels or went through),
exploration (asking about it). Every reply gets 0-100 for each; the main value is their mean.

How a reply is scored:

* A mechanism earns the levels (1 weak, 2 strong) of its two strongest *different* supporting entries, out of 4.
* An entry earns nothing inside quotation marks, in words copied from the message, where its conditions do not hold, or twice.
* Entries against empathy (dismissing, blaming, mocking) multiply all three by 0.65 (weak) or 0.4 (strong), each once.
* Stamps must be carried: of u different phrases found, two are free and each further one needs three different words that the
  reply has of its own (in no phrase, not copied, no pronoun of the second person). Where a / u < 1 of them are carried, the score
  is multiplied by (a / u) squared. It is a proportion, so long replies gain nothing by it.

It measures words, not care: it is no measure of how a person would feel on reading the reply, and no clinical instrument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Metric, Result, Texts, ratio, signature
from bnbench.metrics.errors import InputError
from bnbench.metrics.lexicon import MECHANISMS, Entry, Found, Lexicon, load_lexicon
from bnbench.metrics.normalization import normalize
from bnbench.metrics.tokenization import SENTENCE_ENDS, is_word, preparation, tokenize

COPIED_WORDS = 3
"""A run of this many words that also stands in the message (or the whole message, where it is shorter) is copied."""
FULL_MARKS = 4
AGAINST = {1: 0.65, 2: 0.4}
FREE_PHRASES = 2
WORDS_PER_PHRASE = 3
NEGATION_REACH = 2

_OPENING = {"“": "”", "‘": "’", '"': '"', "«": "»", "'": "'"}


@dataclass(frozen=True)
class Span:
    """A phrase found in a reply. `start` and `end` are characters of `normalize(reply)`; `text` is what stands there.

    `polarity` is "support" or "against" after negation; `counted` is False for the third and further entries of a mechanism.
    """

    start: int
    end: int
    text: str
    entry: str
    mechanism: str
    level: int
    polarity: str
    counted: bool


@dataclass(frozen=True)
class EmpathyResult(Result):
    """A result whose `mechanisms` are the three scores of every reply."""

    @property
    def mechanisms(self) -> FloatArray:
        """Shape (n, 3), 0-100: emotional reaction, interpretation, exploration. `InputError` for a lexicon without them."""
        if len(self.of.values) == 1:
            raise InputError(f"{self.signature}: this lexicon has no mechanisms; use lexicon=\"bn\" or one of your own")
        return self.of.formula(self.table)[:, 1:]


class KeywordEmpathy(Metric):
    """Keyword empathy by a lexicon: `bn`, `original` (the 14 substrings of the original project), or the path of a TOML file.

    `KeywordEmpathy().score(replies, messages=messages)` gives an `EmpathyResult`. Raises `UsageError` for a bad lexicon.
    """

    name: ClassVar[str] = "keyword-empathy"
    description: ClassVar[str] = "mean of emotional reaction, interpretation, exploration by lexicon, 0-100, higher is better"
    needs: ClassVar[frozenset[str]] = frozenset({"messages"})

    def __init__(self, lexicon: str | Path = "bn") -> None:
        self.lexicon_name = lexicon
        self.scoring = load_lexicon(lexicon).scoring if lexicon != "bn" else "mechanisms"
        mechanisms = MECHANISMS if self.scoring == "mechanisms" else ()
        self.columns = (*(mechanisms or ("keyword_empathy",)), "replies")
        self.values = ("keyword_empathy", *mechanisms)

    @property
    def lexicon(self) -> Lexicon:
        """The lexicon, read when it is first needed."""
        return load_lexicon(self.lexicon_name)

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 4: credit 0-1 for each mechanism, and 1 (for the count of replies); n x 2 for a lexicon without mechanisms."""
        self.check(texts)
        pairs = list(zip(texts.replies, texts.messages or (), strict=True))
        if self.scoring == "substrings":
            credits = [[_substrings(self.lexicon, reply)] for reply, _ in pairs]
        else:
            credits = [_Reply.read(self.lexicon, reply, message).credits() for reply, message in pairs]
        return np.hstack([np.array(credits, dtype=np.float64).reshape(len(pairs), -1), np.ones((len(pairs), 1))])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 4) to (..., 4): the mean of the three mechanisms, then each; with one credit only, (..., 2) to (..., 1)."""
        means = 100 * ratio(sums[..., :-1], sums[..., -1:])
        return means if len(self.values) == 1 else np.concatenate([means.mean(axis=-1, keepdims=True), means], axis=-1)

    def result(
        self, texts: Texts, clusters: Sequence[object] | None = None, resamples: int = 10_000, seed: int = 42
    ) -> EmpathyResult:
        """As every metric's, with `mechanisms`."""
        made = super().result(texts, clusters, resamples, seed)
        return EmpathyResult(made.of, made.table, made.resamples, made.seed, made.level, made.clusters)

    def explain(self, reply: str, message: str = "") -> tuple[Span, ...]:
        """The phrases that were found in the reply and not set aside, in the order in which they stand."""
        if self.scoring == "substrings":
            raise InputError("explain needs a lexicon with mechanisms, and this one has only patterns; use lexicon=\"bn\"")
        return _Reply.read(self.lexicon, reply, message).spans()

    def signature(self, n: int) -> str:
        """`keyword-empathy|lex:bn.2-1a2b3c4d|norm:bn1|tok:bn1|n:300|bnbench:0.1`."""
        if self.scoring == "substrings":
            return signature(self.name, n, lex=self.lexicon.signature)
        return signature(self.name, n, lex=self.lexicon.signature, **preparation().choices)


def _substrings(lexicon: Lexicon, reply: str) -> float:
    """The original's rule: twice the share of patterns that occur anywhere in the reply, at most 1."""
    return min(1.0, 2 * sum(pattern in reply for pattern in lexicon.patterns) / len(lexicon.patterns))


@dataclass(frozen=True)
class _Words:
    """A text as words with what stands around them. All lists have one item a word; `sentences` are (start, end, question)."""

    text: str
    words: list[str]
    starts: list[int]
    quoted: list[bool]
    clause_ends: list[bool]
    sentences: list[tuple[int, int, bool]]

    @classmethod
    def of(cls, text: str) -> _Words:
        text = normalize(text)
        made = cls(text, [], [], [], [], [])
        begun, closing, at = 0, "", 0
        for token in tokenize(text):
            found = text.index(token, at)
            if "\n" in text[at:found]:
                begun = made._end_sentence(begun, question=False)
            at = found + len(token)
            if is_word(token):
                made.words.append(token)
                made.starts.append(found)
                made.quoted.append(bool(closing))
                made.clause_ends.append(False)
                continue
            made._end_clause()
            closing = _quotation(text, found, closing)
            if token in SENTENCE_ENDS:
                begun = made._end_sentence(begun, question=token == "?")
        made._end_sentence(begun, question=False)
        return made

    def _end_clause(self) -> None:
        if self.clause_ends:
            self.clause_ends[-1] = True

    def _end_sentence(self, begun: int, *, question: bool) -> int:
        if begun < len(self.words):
            self._end_clause()
            self.sentences.append((begun, len(self.words), question))
        return len(self.words)


def _quotation(text: str, place: int, closing: str) -> str:
    """The mark that closes the quotation the text is in after this character, "" outside. An apostrophe inside a word is neither."""
    mark = text[place]
    if closing:
        inside_word = mark == closing and text[place - 1 : place].strip() and text[place + 1 : place + 2].isalpha()
        return "" if mark == closing and not inside_word else closing
    before = text[place - 1 : place]
    begins = mark in _OPENING and (not before or not is_word(before)) and _OPENING[mark] in text[place + 1 :]
    return _OPENING[mark] if begins else ""


@dataclass(frozen=True)
class _Match:
    entry: Entry
    words: tuple[int, ...]
    polarity: str


@dataclass(frozen=True)
class _Reply:
    """A reply after matching: the matches that stand, the different stamps, and the words of its own that carry them."""

    words: _Words
    matches: list[_Match]
    stamps: set[str] = field(repr=False)
    own: set[str] = field(repr=False)

    @classmethod
    def read(cls, lexicon: Lexicon, reply: str, message: str) -> _Reply:
        words = _Words.of(reply)
        copied = _copied(words.words, _message_words(message))
        made = cls(words, [], set(), set())
        claimed: set[int] = set()
        for start, end, question in words.sentences:
            for kind, found in _standing(lexicon, words, (start, end, question), copied):
                places = {start + place for place in found.words}
                if places & claimed:
                    continue
                claimed |= places
                if kind is None:
                    made.stamps.add(found.phrase)
                elif (match := _matched(lexicon, words, kind, tuple(sorted(places)))) is not None:
                    made.matches.append(match)
        left = (word for place, word in enumerate(words.words) if place not in claimed and not copied[place])
        made.own.update(word for word in left if word not in lexicon.second_person)
        return made

    def credits(self) -> list[float]:
        """Three numbers in 0-1."""
        factor = self._carried() * self._against()
        best = {match.entry.phrase: match for match in self._best()}.values()
        return [
            factor * sum(match.entry.level for match in best if match.entry.mechanism == mechanism) / FULL_MARKS
            for mechanism in MECHANISMS
        ]

    def spans(self) -> tuple[Span, ...]:
        """Every match; a support entry is counted at its first place only, and only the two strongest of a mechanism."""
        counted = list(map(id, (*self._best(), *self._distinct("against"))))
        return tuple(self._span(match, id(match) in counted) for match in sorted(self.matches, key=lambda m: m.words))

    def _span(self, match: _Match, counted: bool) -> Span:
        first, last = match.words[0], match.words[-1]
        start, end = self.words.starts[first], self.words.starts[last] + len(self.words.words[last])
        entry = match.entry
        return Span(start, end, self.words.text[start:end], entry.phrase, entry.mechanism, entry.level, match.polarity, counted)

    def _distinct(self, polarity: str) -> Iterable[_Match]:
        first: dict[str, _Match] = {}
        for match in self.matches:
            if match.polarity == polarity:
                first.setdefault(match.entry.family or match.entry.phrase, match)
        return first.values()

    def _best(self) -> Iterator[_Match]:
        for mechanism in MECHANISMS:
            matches = [match for match in self._distinct("support") if match.entry.mechanism == mechanism]
            yield from sorted(matches, key=lambda match: -match.entry.level)[:2]

    def _against(self) -> float:
        factor = 1.0
        for match in self._distinct("against"):
            factor *= AGAINST[match.entry.level]
        return factor

    def _carried(self) -> float:
        found = len({match.entry.phrase for match in self.matches} | self.stamps)
        carried = FREE_PHRASES + len(self.own) / WORDS_PER_PHRASE
        return min(1.0, max(0.0, 2 * carried / found - 1)) if found else 1.0


def _message_words(message: str) -> list[str]:
    return list(filter(is_word, tokenize(message)))


def _copied(words: Sequence[str], message: Sequence[str]) -> list[bool]:
    """Which words stand in a run of `COPIED_WORDS` that the message has too."""
    n = min(COPIED_WORDS, len(message))
    copied = [False] * len(words)
    runs = {tuple(message[i : i + n]) for i in range(len(message) - n + 1)} if n else set()
    for start in range(len(words) - n + 1):
        if runs and tuple(words[start : start + n]) in runs:
            copied[start : start + n] = [True] * n
    return copied


def _standing(
    lexicon: Lexicon, words: _Words, sentence: tuple[int, int, bool], copied: Sequence[bool]
) -> list[tuple[Entry | None, Found]]:
    """What is found in a sentence and not set aside, the most specific first: more words, then against, stronger, tighter."""
    start, end, question = sentence
    inside = words.words[start:end]
    found = lexicon.find(inside)
    phrases = {f.phrase for f in found}
    you = not lexicon.second_person.isdisjoint(inside)
    holds = {"you": you, "question": question, "statement": not question}
    kept: list[tuple[Entry | None, Found]] = []
    for f in found:
        if all(copied[start + place] or words.quoted[start + place] for place in f.words):
            continue
        entry = lexicon.entries.get(f.phrase)
        if entry is not None and all(map(holds.__getitem__, entry.when)) and phrases.isdisjoint(entry.excludes):
            kept.append((entry, f))
        elif f.phrase in lexicon.stamps:
            kept.append((None, f))
    return sorted(kept, key=_order)


def _order(item: tuple[Entry | None, Found]) -> tuple[int, int, int, int, int, str]:
    entry, found = item
    level = 0 if entry is None else entry.level
    against = entry is not None and entry.polarity == "against"
    return -len(found.words), -against, -level, found.words[-1] - found.words[0], found.words[0], found.phrase


def _matched(lexicon: Lexicon, words: _Words, entry: Entry, places: tuple[int, ...]) -> _Match | None:
    """The match with the polarity that the words after it leave it, or None where they take it away."""
    if entry.negation == "keeps" or not _negated(lexicon, words, places[-1]):
        return _Match(entry, places, entry.polarity)
    turned = entry.negation == "turns" and entry.polarity == "support"
    return _Match(entry, places, "against") if turned else None


def _negated(lexicon: Lexicon, words: _Words, place: int) -> bool:
    """Whether a negator follows within `NEGATION_REACH` words of the same clause, and does not belong to what comes after it."""
    for after in range(place + 1, min(place + 1 + NEGATION_REACH, len(words.words))):
        if words.clause_ends[after - 1]:
            return False
        if words.words[after] in lexicon.negators:
            if words.clause_ends[after]:
                return True
            return not words.words[after + 1].endswith(lexicon.nonfinite)
    return False
