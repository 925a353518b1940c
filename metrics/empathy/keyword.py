"""Keyword empathy: which of the three mechanisms of EPITOME a reply shows to the message it answers, by a lexicon.

The mechanisms (Sharma, Miner, Atkins & Althoff 2020, "A Computational Approach to Understanding Empathy Expressed in
Text-Based Mental Health Support"): emotional reaction (warmth, concern, shared joy), interpretation (saying what the
person feels or went through), exploration (asking about it). A reply gets 0-100 for each; the main value is their mean.

How a reply is scored:

* A mechanism earns the levels (1 weak, 2 strong) of its two strongest *different* supporting entries, out of 4.
* An entry earns nothing a second time, inside quotation marks, or where its conditions do not hold; words strung
  together by commas (`LISTED` short parts in a row) earn nothing.
* Copied words earn nothing: a run of `COPIED_WORDS` that the message has too, a statement or a whole reply that is
  mostly such words, in any form and person (আমার ভাঙা ঘর, আপনার ভাঙা ঘরটা). A question may ask in the message's words.
* A sentence is *anchored* when it has a content word of its own that is a form of a content word of the message: not
  copied, no pronoun, none of the lexicon's common words. There weak interpretation and weak exploration are strong, and
  a statement that matches nothing still earns `TAKEN_UP` of interpretation. A reply with no anchor at all keeps
  `UNANCHORED` of its credit. (A lexicon without `common` words knows no anchors, and none of this holds.)
* Stock phrases, which could be said to everybody, earn `STOCK_ALONE` of their level in a reply with no anchor, and must
  be carried. One and a half of the different ones found are free, and each further one needs three points: one for each
  different content word of the reply's own, two for an anchored one. With the share s of them carried all three
  mechanisms are multiplied by 2s - 1, at least 0: two bare stamps keep half, three nothing. It is a share, so length
  is neutral.
* A reply of which half the sentences or more give advice does not tell the story back: what needs "no advice" is void.
* Entries against empathy (dismissing, blaming, mocking, preaching) multiply all three by 0.5 (weak) or 0.25 (strong),
  each once, and nothing else in their sentence counts.

It measures words and not care. That a reply takes up a word of the message does not say that it fits, nor
how a person would feel on reading it, and it is no clinical instrument.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Metric, Texts, ratio, signature
from bnbench.metrics.empathy import MECHANISMS, labels_by_means
from bnbench.metrics.empathy.lexicon import Entry, Found, Lexicon, load_lexicon
from bnbench.metrics.errors import InputError
from bnbench.metrics.normalization import normalize
from bnbench.metrics.tokenization import SENTENCE_ENDS, is_word, preparation, tokenize

COPIED_WORDS = 3
"""A run of this many words that also stands in the message (or the whole of a shorter message) is copied, in whatever
form and person: আমার ডেকটা বানালাম, আপনার ডেকটা বানালেন."""
FULL_LEVELS = 4
AGAINST = {1: 0.5, 2: 0.25}
FREE_PHRASES = 1.5
WORDS_PER_PHRASE = 3
UNANCHORED = 0.75
"""What is left of the credit of a reply that takes nothing up from the message: it would fit another as well."""
STOCK_ALONE = 0.5
"""What a stock phrase earns of its level in a reply that takes nothing up from the message."""
ADVICE_SHARE = 0.5
"""A reply of which this share of the sentences advises is advice, and does not count as telling the story back."""
COPIED_SHARE = 0.7
"""A sentence is copied when this share of its words stands in the message, in whatever order and person."""
LISTED = 6
LISTED_WORDS = 3
"""So many parts in a row, each of at most so many words between commas, are a list and say nothing to anybody. Nobody
comforts so: in the development half and in two other authors' sets, the longest row of an empathic reply has 3."""
NEGATION_REACH = 2
"""How many words after a phrase a না, নি, নয় ... still negates it, within its clause."""

TAKEN_UP = 0.5
"""What a statement that takes something up from the message, in words that match nothing, earns of interpretation."""
_TAKEN_UP = Entry("(taken up from the message)", "interpretation", 1, family="retelling")

_QUOTATION = {"“": "”", "‘": "’", '"': '"', "«": "»", "'": "'"}
_CASE_ENDING = re.compile("(?:টা|টি|টুকু|গুলো|এর|র|কে|তে|এ|ই|ও)(?:র|কে|তে|\u09af\u09bc|ই|ও)?(?![\u0980-\u09fe])")
"""What Bengali hangs on a quoted word: ‘না’টা, ‘ভয়’এর."""


@dataclass(frozen=True)
class Span:
    """A phrase found in a reply. `start` and `end` are characters of `normalize(reply)`; `text` is what stands there.

    `polarity` is "support" or "against" after negation. `counted` is False where it is found again, or is not one of
    the two strongest of its mechanism.
    """

    start: int
    end: int
    text: str
    entry: str
    mechanism: str
    level: int
    polarity: str
    counted: bool


class KeywordEmpathy(Metric):
    """Keyword empathy by a lexicon: `bn`, `original` (the original project's 14 substrings), or a TOML file's path.

    `KeywordEmpathy().score(replies, messages=messages)` gives a `Result`, and `mechanisms(result)` each reply's.
    `UsageError` for a bad lexicon.
    """

    name: ClassVar[str] = "keyword-empathy"
    description: ClassVar[str] = "mean of emotional reaction, interpretation, exploration, 0-100, higher is better"
    needs = frozenset({"messages"})

    def __init__(self, lexicon: str | Path = "bn") -> None:
        self._named = lexicon
        # Reading `bn` takes 0.2 s, so that waits until it is used; any other is checked here, where it is given.
        self._mechanisms = MECHANISMS if lexicon == "bn" or self.lexicon.scoring == "mechanisms" else ()
        self.columns = (*(self._mechanisms or ("keyword_empathy",)), "replies")
        self.values = ("keyword_empathy", *self._mechanisms)

    @property
    def lexicon(self) -> Lexicon:
        """The lexicon, read once in a process."""
        return load_lexicon(self._named)

    @property
    def labels(self) -> Mapping[str, str]:
        """What a reader's table calls each value."""
        return labels_by_means(self, super().labels, "keyword")

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 4: credit 0-1 for each mechanism, and 1 for the count; n x 2 for a lexicon without mechanisms."""
        self.check(texts)
        lexicon = self.lexicon
        if self._mechanisms:
            messages = {message: _Message.of(lexicon, message) for message in set(texts.messages or ())}
            pairs = zip(texts.replies, texts.messages or (), strict=True)
            credits = [_Reading.of(lexicon, reply, messages[message]).credits() for reply, message in pairs]
        else:
            credits = [[_share(lexicon, reply)] for reply in texts.replies]
        rows = np.array(credits, dtype=np.float64).reshape(len(texts), len(self.columns) - 1)
        return np.hstack([rows, np.ones((len(texts), 1))])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 4) to (..., 4): the mean of the three mechanisms, then each. Without them (..., 2) to (..., 1)."""
        means = 100 * ratio(sums[..., :-1], sums[..., -1:])
        return np.concatenate([means.mean(axis=-1, keepdims=True), means], axis=-1) if self._mechanisms else means

    def explain(self, reply: str, message: str = "") -> tuple[Span, ...]:
        """The phrases found in the reply and not set aside, in the order in which they stand."""
        if not self._mechanisms:
            raise InputError('explain needs a lexicon with mechanisms; use lexicon="bn" or your own')
        return _Reading.of(self.lexicon, reply, _Message.of(self.lexicon, message)).spans()

    def signature(self, n: int) -> str:
        """`keyword-empathy|lex:bn.2-1a2b3c4d|norm:bn1|tok:bn1|n:300|bnbench:0.2`."""
        choices = preparation().choices if self._mechanisms else {}
        return signature(self.name, n, lex=self.lexicon.signature, **choices)


def _share(lexicon: Lexicon, reply: str) -> float:
    """The original's rule: twice the share of patterns that occur anywhere in the reply, at most 1."""
    return min(1.0, 2 * sum(pattern in reply for pattern in lexicon.patterns) / len(lexicon.patterns))


@dataclass(frozen=True)
class _Sentence:
    """Words `start` to `end` of a text."""

    start: int
    end: int
    question: bool

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class _Words:
    """A normalised text as words; of each, where it starts, whether it is quoted, whether a clause ends with it."""

    text: str
    words: list[str]
    starts: list[int]
    quoted: list[bool]
    clause_ends: list[bool]
    sentences: list[_Sentence]

    @classmethod
    def of(cls, text: str) -> _Words:
        made = cls(normalize(text), [], [], [], [], [])
        closing, at = "", 0
        for token in tokenize(made.text, norm="none"):  # normalised already, and tokens must be found where they stand
            found = made.text.index(token, at)
            if "\n" in made.text[at:found]:
                made._end_sentence()
            at = found + len(token)
            if is_word(token):
                made._add(token, found, quoted=bool(closing))
                continue
            made.clause_ends[-1:] = [True] if made.words else []
            closing = _quotation(made.text, found, closing)
            if token in SENTENCE_ENDS:
                made._end_sentence(question=token == "?")
        made._end_sentence()
        return made

    def inside(self, sentence: _Sentence) -> list[str]:
        return self.words[sentence.start : sentence.end]

    def listed(self) -> list[bool]:
        """Which words stand in a list."""
        return [each for s in self.sentences for each in listed(self.clause_ends[s.start : s.end])]

    def _add(self, word: str, start: int, *, quoted: bool) -> None:
        self.words.append(word)
        self.starts.append(start)
        self.quoted.append(quoted)
        self.clause_ends.append(False)

    def _end_sentence(self, *, question: bool = False) -> None:
        begun = self.sentences[-1].end if self.sentences else 0
        if begun < len(self.words):
            self.clause_ends[-1] = True
            self.sentences.append(_Sentence(begun, len(self.words), question))


def listed(part_ends: Sequence[bool]) -> list[bool]:
    """Which words of a sentence stand in a row of `LISTED` short parts, of whether a part ends with each word."""
    found = [False] * len(part_ends)
    begun = row = short = 0  # where the part and the row of short parts begin, and how many parts the row has
    for end in (place + 1 for place, ends in enumerate(part_ends) if ends):
        short, row = (short + 1, row) if end - begun <= LISTED_WORDS else (0, end)
        if short >= LISTED:
            found[row:end] = [True] * (end - row)
        begun = end
    return found


def _quotation(text: str, place: int, closing: str) -> str:
    """What closes the quotation that the text is in after this character, "" outside; ক’দিন has an apostrophe."""
    mark = text[place]
    in_word = is_word(text[place - 1 : place]) and is_word(text[place + 1 : place + 2])
    if closing:
        apostrophe = in_word and mark in "'’" and not _CASE_ENDING.match(text, place + 1)
        return "" if mark == closing and not apostrophe else closing
    return _QUOTATION[mark] if mark in _QUOTATION and not in_word and _QUOTATION[mark] in text[place + 1 :] else ""


@dataclass(frozen=True)
class _Message:
    """What a message says: its runs of words and of keys, the stems of all its words, and of those not common."""

    run: int
    runs: set[tuple[str, ...]]
    stems: set[str]
    content: set[str]

    @classmethod
    def of(cls, lexicon: Lexicon, message: str) -> _Message:
        words = list(filter(is_word, tokenize(message)))
        run = min(COPIED_WORDS, len(words))
        runs = _runs([lexicon.key(word) for word in words], run)
        content = (word for word in words if lexicon.common and not lexicon.is_common(word))
        return cls(run, runs, _stems(lexicon, words), _stems(lexicon, content))

    def copied(self, lexicon: Lexicon, words: _Words) -> list[bool]:
        """Which words stand in a run that the message has too, or in a statement that is mostly such words."""
        copied = [each for sentence in words.sentences for each in self._copied(lexicon, words, sentence)]
        return [True] * len(copied) if sum(copied) >= COPIED_SHARE * len(copied) else copied

    def _copied(self, lexicon: Lexicon, text: _Words, sentence: _Sentence) -> list[bool]:
        """The same for the words of one sentence. A question may ask in the message's words."""
        words = text.inside(sentence)
        copied = [False] * len(words)
        keys = [lexicon.key(word) for word in words]
        for start in range(len(words) - self.run + 1 if self.run else 0):
            if tuple(keys[start : start + self.run]) in self.runs:
                copied[start : start + self.run] = [True] * self.run
        others = [word for word in words if word not in lexicon.persons]
        known = sum(not self.stems.isdisjoint(lexicon.stems(word)) for word in others)
        mostly = not sentence.question and known >= COPIED_SHARE * len(others)
        return [True] * len(words) if mostly or 2 * sum(copied) > len(words) else copied


def _runs(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _stems(lexicon: Lexicon, words: Iterable[str]) -> set[str]:
    return set[str]().union(*(lexicon.stems(word) for word in words))


@dataclass(frozen=True)
class _Match:
    entry: Entry
    words: tuple[int, ...]
    polarity: str
    level: float
    """The entry's level, raised where the sentence is anchored."""

    @property
    def kind(self) -> str:
        return self.entry.family or self.entry.phrase


@dataclass
class _Reading:
    """A reply after matching: what stands, the different stock phrases, the content of its own, the anchored of it."""

    lexicon: Lexicon
    words: _Words
    message: _Message
    void: list[bool]
    """Which words are copied or listed."""
    advises: bool
    matches: list[_Match]
    stock: set[str]
    own: set[str]
    anchored: set[str]

    @classmethod
    def of(cls, lexicon: Lexicon, reply: str, said: _Message) -> _Reading:
        words = _Words.of(reply)
        everything = [lexicon.find(words.inside(sentence)) for sentence in words.sentences]
        advising = [
            not sentence.question and any(each.phrase in lexicon.advising for each in found)
            for sentence, found in zip(words.sentences, everything, strict=True)
        ]
        advises = any(advising) and sum(advising) >= ADVICE_SHARE * len(advising)
        void = [a or b for a, b in zip(said.copied(lexicon, words), words.listed(), strict=True)]
        made = cls(lexicon, words, said, void, advises, [], set(), set(), set())
        claimed = set[int]()
        for sentence, found, advice in zip(words.sentences, everything, advising, strict=True):
            made._read(sentence, found, claimed, telling=not (sentence.question or advice or advises))
        return made

    def _read(self, sentence: _Sentence, everything: list[Found], claimed: set[int], *, telling: bool) -> None:
        """Take what stands in a sentence, each word for one phrase only, and the content that is left beside stock."""
        matches: list[_Match] = []
        places_of_stock = set[int]()
        content = self._content(sentence)
        anchors = {word for word in content if self._is_anchored(word)}
        for entry, found in self._standing(sentence, everything, anchored=bool(anchors)):
            places = tuple(sentence.start + place for place in found.words)
            polarity = _polarity(self.lexicon, self.words, entry, places[-1]) if entry else None
            if not claimed.isdisjoint(places) or (entry and not polarity):
                continue
            claimed.update(places)
            if entry is None or entry.stock:
                self.stock.add(found.phrase)
                places_of_stock.update(places)
            if entry and polarity:
                level = _level(entry, raised=bool(anchors) and not self.advises)
                matches.append(_Match(entry, places, polarity, level))
        against = [match for match in matches if match.polarity == "against"]
        free = sorted(place for word in anchors for place in content[word] if place not in claimed)
        if free and telling:
            matches.append(_Match(_TAKEN_UP, (free[0],), "support", TAKEN_UP))
        self.matches.extend(against or matches)
        left = {word for word, places in content.items() if not places <= places_of_stock}
        self.own.update(self.lexicon.key(word) for word in left)
        self.anchored.update(self.lexicon.key(word) for word in left & anchors)

    def _content(self, sentence: _Sentence) -> dict[str, set[int]]:
        """The words of a sentence that are neither common nor void, with their places."""
        content: dict[str, set[int]] = {}
        for place in range(sentence.start, sentence.end):
            word = self.words.words[place]
            if not self.void[place] and word not in self.lexicon.persons and not self.lexicon.is_common(word):
                content.setdefault(word, set()).add(place)
        return content

    def _is_anchored(self, word: str) -> bool:
        return not self.message.content.isdisjoint(self.lexicon.stems(word))

    def _standing(
        self, sentence: _Sentence, everything: list[Found], *, anchored: bool
    ) -> list[tuple[Entry | None, Found]]:
        """What is found in a sentence and not set aside, the most specific first; a stamp has no entry."""
        inside = self.words.inside(sentence)
        phrases = {found.phrase for found in everything}
        conditions = {
            "you": not self.lexicon.second_person.isdisjoint(inside),
            "question": sentence.question,
            "statement": not sentence.question,
            "anchored": anchored,
            "no advice": not self.advises,
        }
        holding = {name for name, holds in conditions.items() if holds}
        kept: list[tuple[Entry | None, Found]] = []
        for found in everything:
            entry = self.lexicon.entries.get(found.phrase)
            if entry:
                fits = entry.when <= holding and phrases.isdisjoint(entry.excludes)
            else:
                fits = found.phrase in self.lexicon.stamps
            places = [sentence.start + place for place in found.words]
            if fits and not all(self.void[place] or self.words.quoted[place] for place in places):
                kept.append((entry, found))
        return sorted(kept, key=_order)

    def credits(self) -> list[float]:
        """Three numbers in 0-1."""
        factor = float(np.prod([AGAINST[match.entry.level] for match in self._different("against")]))
        factor *= self._carried() * (1.0 if self.anchored or not self.lexicon.common else UNANCHORED)
        levels = dict.fromkeys(MECHANISMS, 0.0)
        for match in self._strongest():
            levels[match.entry.mechanism] += self._earned(match)
        return [factor * level / FULL_LEVELS for level in levels.values()]

    def spans(self) -> tuple[Span, ...]:
        counted = {match.words for match in (*self._strongest(), *self._different("against"))}
        return tuple(self._span(match, match.words in counted) for match in sorted(self.matches, key=lambda m: m.words))

    def _span(self, match: _Match, counted: bool) -> Span:
        start = self.words.starts[match.words[0]]
        end = self.words.starts[match.words[-1]] + len(self.words.words[match.words[-1]])
        text, entry = self.words.text[start:end], match.entry
        return Span(start, end, text, entry.phrase, entry.mechanism, entry.level, match.polarity, counted)

    def _different(self, polarity: str) -> Iterable[_Match]:
        """The strongest match of each entry and of each family of entries, the first of equals."""
        best: dict[str, _Match] = {}
        for match in self.matches:
            if match.polarity == polarity and (match.kind not in best or match.level > best[match.kind].level):
                best[match.kind] = match
        return best.values()

    def _earned(self, match: _Match) -> float:
        return match.level * STOCK_ALONE if match.entry.stock and not self.anchored else match.level

    def _strongest(self) -> Iterator[_Match]:
        different = sorted(self._different("support"), key=lambda match: -self._earned(match))
        for mechanism in MECHANISMS:
            yield from [match for match in different if match.entry.mechanism == mechanism][:2]

    def _carried(self) -> float:
        """The share that is left of everything when stock phrases are more than the reply's own content carries."""
        if not self.stock:
            return 1.0
        carried = FREE_PHRASES + (len(self.own) + len(self.anchored)) / WORDS_PER_PHRASE
        return min(1.0, max(0.0, 2 * carried / len(self.stock) - 1))


def _level(entry: Entry, *, raised: bool) -> float:
    """Weak interpretation and exploration are strong where they are said of something in this message."""
    fits = not entry.stock and entry.polarity == "support" and entry.mechanism != MECHANISMS[0]
    return 2 if raised and fits else entry.level


def _order(item: tuple[Entry | None, Found]) -> tuple[int, bool, int, int, int, str]:
    """More words first, then what speaks against, the stronger, the tighter, the earlier."""
    entry, found = item
    against = entry is not None and entry.polarity == "against"
    level = entry.level if entry else 0
    return -len(found.words), not against, -level, found.words[-1] - found.words[0], found.words[0], found.phrase


def _polarity(lexicon: Lexicon, words: _Words, entry: Entry, last: int) -> str | None:
    """The polarity that the words after the entry's last one leave it; None where they take it away."""
    if entry.negation == "keeps" or not _negated(lexicon, words, last):
        return entry.polarity
    return "against" if entry.negation == "turns" and entry.polarity == "support" else None


def _negated(lexicon: Lexicon, words: _Words, last: int) -> bool:
    """Whether a negator follows in the clause and does not belong to what comes after it (না বুঝে)."""
    for place in range(last + 1, min(last + 1 + NEGATION_REACH, len(words.words))):
        if words.clause_ends[place - 1]:
            return False
        if words.words[place] in lexicon.negators:
            return words.clause_ends[place] or not words.words[place + 1].endswith(lexicon.nonfinite)
    return False
