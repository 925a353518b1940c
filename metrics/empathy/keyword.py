"""Keyword empathy: which of the three mechanisms of EPITOME a reply shows to the message it answers, by a lexicon.

The rules, one by one: "How a score is made" in `docs/empathy.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from bnbench.metrics.core import FloatArray, Texts
from bnbench.metrics.empathy import MECHANISMS, EmpathyMetric
from bnbench.metrics.empathy.head import load_head, weighed
from bnbench.metrics.empathy.lexicon import Entry, Found, Lexicon, load_lexicon, load_polarity
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.normalization import normalize
from bnbench.metrics.relevance import chances, fitted
from bnbench.metrics.romanised import bengali
from bnbench.metrics.tokenization import SENTENCE_ENDS, is_word, preparation, tokenize

COPIED_WORDS, COPIED_SHARE = 3, 0.7  # a run of words that the message has too; the share of its words in a sentence
# So many parts in a row, each of at most so many words between commas, are a list. Nobody comforts so: in the
# development half and in two other authors' sets, the longest row of an empathic reply has 3.
LISTED, LISTED_WORDS = 6, 3
FULL_LEVELS = 4  # the levels of a mechanism's two strongest entries
AGAINST = {1: 0.5, 2: 0.25}  # what is left where something of a level speaks against empathy
UNANCHORED = 0.75  # what is left of a reply that takes nothing up from the message: it would fit another as well
STOCK_ALONE = 0.5  # what a stock phrase earns of its level in such a reply
FREE_PHRASES, WORDS_PER_PHRASE = 1.5, 3  # stock phrases that need no words to carry them; what each further one needs
ADVICE_SHARE = 0.5  # of the sentences: a reply that advises so much does not count as telling the story back
NEGATION_REACH = 2  # how many words after a phrase a না, নি, নয় ... still negates it, within its clause
WORDS, UNASKED = 0.5, 0.25  # earned beside phrases by each level of the head; kept of exploration that asks nothing
TAKEN_UP = 0.5  # what a statement that takes something up, in words that match nothing, earns of interpretation
TAG = re.compile(r"\b(?:তাই (?:না|নাকি|তো)|তাইনা|ঠিক না)(?: [^ ]+){0,2}$")  # a question that only asks to agree
LISTENING = {"শুনব", "শুনবো", "শুনি", "শুনুম", "শুনমু", "শুইনব", "শুইনমু", "হুনুম", "হুনমু", "হুনি"}  # so tell me more
_TAKEN_UP = Entry("(taken up from the message)", "interpretation", 1, family="retelling")

_UNPLACED = re.compile(r"[\w\u0980-\u09ff\u0964\u0965 ,;:?!()-]*")  # nothing that quotes, ends a line or goes
_QUOTATION = {"“": "”", "‘": "’", '"': '"', "«": "»", "'": "'"}
# What Bengali hangs on a quoted word: ‘না’টা, ‘ভয়’এর.
_CASE_ENDING = re.compile("(?:টা|টি|টুকু|গুলো|এর|র|কে|তে|এ|ই|ও)(?:র|কে|তে|\u09af\u09bc|ই|ও)?(?![\u0980-\u09fe])")


class Span(NamedTuple):
    """A phrase found in a reply: `text`, from `start` to `end` in the characters of `normalize(bengali(reply))`."""

    start: int
    end: int
    text: str
    entry: str
    mechanism: str
    level: int
    polarity: str  # after negation
    counted: bool  # False where it is found again, or not of its mechanism's two strongest


class KeywordEmpathy(EmpathyMetric):
    """Keyword empathy by a lexicon: `bn`, `original` (14 substrings), a TOML file's path; `UsageError` if it is bad."""

    name: ClassVar[str] = "keyword-empathy"

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

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 3: credit 0-1 for each mechanism; n x 1 for a lexicon without mechanisms."""
        lexicon = self.lexicon
        if self._mechanisms:
            messages = {message: _Message(lexicon, message) for message in set(texts.messages or ())}
            # Six numbers in 0-1: what the phrases earn for each mechanism, and what is left of what the words do, of
            # their general kindness, which stock phrases have too, and of exploration.
            credits = []
            for reply, message in zip(texts.replies, texts.messages or (), strict=True):
                said = _Reading(lexicon, reply, messages[message])
                factor = said.left * prod([AGAINST[match.entry.level] for match in said.against])
                if said.stock:
                    carried = FREE_PHRASES + (len(said.own) + len(said.anchored)) / WORDS_PER_PHRASE
                    factor *= min(1.0, max(0.0, 2 * carried / len(said.stock) - 1))
                fits = 1.0 if said.anchored or not lexicon.common else UNANCHORED
                sums = (sum(x for match, x in said.earning if match.entry.mechanism == m) for m in MECHANISMS)
                phrases = [factor * fits * level / FULL_LEVELS for level in sums]
                own = [word for word, hides in zip(said.text.words, said.hidden, strict=True) if not hides]
                asks = any(s.question and not said.hidden[s.end - 1] for s in said.text.sentences)
                asked = 1.0 if asks or phrases[2] > 0 or not LISTENING.isdisjoint(own) else UNASKED
                credits.append([*phrases, factor * bool(own), said.left * bool(own), asked])
        else:  # the original's rule: twice the share of patterns that occur anywhere in the reply, at most 1
            found = (sum(pattern in reply for pattern in lexicon.patterns) for reply in texts.replies)
            credits = [[min(1.0, 2 * count / len(lexicon.patterns))] for count in found]
        table = np.array(credits, dtype=np.float64).reshape(len(texts), -1)
        if not lexicon.words:
            return table[:, : len(self.columns) - 1]
        # What the words say: phrases count in proportion to their mean level, and each level adds some.
        levels = (by_words := texts.derived("head", lambda: load_head().read(texts.replies)))[:, 1:]  # semantic's, too
        earned = np.minimum(1, levels.mean(axis=1, keepdims=True) * table[:, :3] + WORDS * levels * table[:, 3:4])
        earned[:, 2] *= table[:, 5]
        return weighed(earned, by_words, chances(texts, "fit"), table[:, 4])

    def explain(self, reply: str, message: str = "") -> tuple[Span, ...]:
        """The phrases found in the reply and not set aside, in the order in which they stand."""
        if not self._mechanisms:
            raise InputError('explain needs a lexicon with mechanisms; use lexicon="bn" or your own')
        reading = _Reading(self.lexicon, bengali(reply), _Message(self.lexicon, bengali(message)), placed=True)
        text, counting = reading.text, [*(match for match, _ in reading.earning), *reading.against]
        counted, spans = {match.words for match in counting}, []
        for entry, words, polarity, _ in sorted(reading.matches, key=lambda match: match.words):
            start, end = text.starts[words[0]], text.starts[words[-1]] + len(text.words[words[-1]])
            said = text.text[start:end], entry.phrase, entry.mechanism, entry.level, polarity
            spans.append(Span(start, end, *said, words in counted))
        return tuple(spans)

    @property
    def choices(self) -> Mapping[str, object]:
        """The lexicon, and where its phrases are words, what takes comfort back and how texts become words."""
        fit = {"head": load_head().id, "fit": fitted().id} if self.lexicon.words else {}
        words = {"pol": load_polarity().id, **fit, **preparation().choices} if self._mechanisms else {}
        return {"lex": self.lexicon.signature, **words}


class _Sentence(NamedTuple):
    start: int  # of the text's words
    end: int
    question: bool


class _Words:
    """A normalised text as words; of each, where it starts, whether it is quoted, whether a clause ends with it."""

    def __init__(self, raw: str, placed: bool) -> None:
        # Where words start in the text says what is quoted, and is explained; elsewhere nobody asks.
        self.text = text = normalize(raw) if placed or not _UNPLACED.fullmatch(raw) else ""
        self.words, self.starts = words, starts = list[str](), list[int]()
        self.quoted, self.clause_ends = quoted, clause_ends = list[bool](), list[bool]()
        self.sentences, breaks = list[_Sentence](), dict[int, bool]()  # by how many words stand before: whether it asks
        closing, found, at = "", 0, 0  # what closes the quotation that the text is in, and where the last token stands
        last = {mark: text.rfind(closes) for mark, closes in _QUOTATION.items() if closes in text}
        for token in preparation().tokens(raw):
            if text:
                if text[at] == "\n":  # else one space stands there, or the token
                    breaks.setdefault(len(words), False)
                found = text.index(token, at)
                at = found + len(token)
            if is_word(token):
                words.append(token)
                starts.append(found)
                quoted.append(closing != "")
                clause_ends.append(False)
                continue
            if words and token != "-":  # সুখ-দুঃখ is one thing
                clause_ends[-1] = True
            # Within a word it is an apostrophe (ক’দিন) and opens nothing; it closes only before a case ending (‘না’টা).
            if token == closing or (not closing and last.get(token, -1) >= at):
                in_word = is_word(text[found - 1 : found]) and is_word(text[at : at + 1])
                if closing and not (in_word and token in "'’" and not _CASE_ENDING.match(text, at)):
                    closing = ""
                elif not closing and not in_word:
                    closing = _QUOTATION[token]
            elif token in SENTENCE_ENDS:
                breaks[len(words)] = breaks.get(len(words), False) or token == "?"
        start = 0
        for end, question in {**breaks, len(words): breaks.get(len(words), False)}.items():
            if start < end:
                clause_ends[end - 1] = True
                question = question and not TAG.search(" ".join(words[start:end][-4:]))
                self.sentences.append(_Sentence(start, end, question))
                start = end


def listed(part_ends: Sequence[bool]) -> list[bool]:
    """Which words of a sentence stand in a row of `LISTED` short parts, of whether a part ends with each word."""
    found = [False] * len(part_ends)
    begun = row = short = 0  # where the part and the row of short parts begin, and how many parts the row has
    for end in [at for at, ends in enumerate(part_ends, 1) if ends] if sum(part_ends) >= LISTED else ():
        short, row = (short + 1, row) if end - begun <= LISTED_WORDS else (0, end)
        if short >= LISTED:
            new = row if short == LISTED else begun
            found[new:end] = [True] * (end - new)
        begun = end
    return found


class _Message:
    """What a message says: its `runs` of words as keys, and the stems of all its words, and of those not common."""

    def __init__(self, lexicon: Lexicon, message: str) -> None:
        words = list(filter(is_word, tokenize(message)))
        keys = [lexicon.keys[word] for word in words]
        self.run = min(COPIED_WORDS, len(words))
        self.runs = {tuple(keys[start : start + self.run]) for start in range(len(keys) - self.run + 1)}
        content = [word for word in words if lexicon.common and lexicon.content[word]]
        stems = lexicon.stems.__getitem__
        self.stems, self.content = (set[str]().union(*map(stems, some)) for some in (words, content))


_Placed = tuple[Entry, tuple[int, ...], str]  # an entry, the places of its words, and its polarity there


class _Match(NamedTuple):
    """An entry where it stands; `level` is the entry's, raised where the sentence is anchored."""

    entry: Entry
    words: tuple[int, ...]
    polarity: str
    level: float


class _Reading:
    """A reply as its message sees it: what matches, and of that, what each match that counts earns, and what speaks
    against empathy. `own` and `anchored` are keys of its content words, and of those among them that are the message's;
    what is copied, listed or quoted is in neither of them.
    """

    def __init__(self, lexicon: Lexicon, reply: str, message: _Message, placed: bool = False) -> None:
        self.lexicon, self.message, self.text = lexicon, message, _Words(reply, placed)
        sentences = self.text.sentences
        found = [lexicon.matcher.find(self.text.words[each.start : each.end]) for each in sentences]
        advising = [
            bool(phrases) and not sentence.question and any(phrase in lexicon.advising for phrase, _ in phrases)
            for sentence, phrases in zip(sentences, found, strict=True)
        ]
        self.advises = any(advising) and sum(advising) >= ADVICE_SHARE * len(advising)
        # Copied is what stands in a run that the message has too, or in a statement or reply that is mostly such words.
        copied: list[bool] = []
        for sentence in sentences:
            words = self.text.words[sentence.start : sentence.end]
            here, keys = [False] * len(words), [lexicon.keys[word] for word in words]
            runs = [*zip(*(keys[start:] for start in range(message.run)), strict=False)]
            for start, run in enumerate(() if message.runs.isdisjoint(runs) else runs):
                if run in message.runs:
                    here[start : start + message.run] = [True] * message.run
            others = [word for word in words if word not in lexicon.persons]
            known = len(others) - sum(map(message.stems.isdisjoint, map(lexicon.stems.__getitem__, others)))
            # A question may ask in the message's words.
            mostly = not sentence.question and known >= COPIED_SHARE * len(others)
            copied += [True] * len(words) if mostly or 2 * sum(here) > len(words) else here
        whole = sum(copied) >= COPIED_SHARE * len(copied)
        lists = (each for s in sentences for each in listed(self.text.clause_ends[s.start : s.end]))
        self.void = [whole or a or b for a, b in zip(copied, lists, strict=True)]
        self.hidden = [a or b for a, b in zip(self.void, self.text.quoted, strict=True)]
        self.matches: list[_Match] = []
        self.stock, self.own, self.anchored = set[str](), set[str](), set[str]()
        polarity, self.left = load_polarity(), 1.0
        for sentence, phrases, advice in zip(sentences, found, advising, strict=True):
            # A sentence that takes comfort back speaks for nothing, and of what the others say little is left.
            part = slice(sentence.start, sentence.end)
            own, quoted = self.text.words[part], self.text.quoted[part]
            if True in quoted:
                own = ["" if hidden else word for word, hidden in zip(own, quoted, strict=True)]
            left = polarity.left(own, self.text.clause_ends[part])
            self.left = min(self.left, left)
            self._read(sentence, phrases, telling=not (sentence.question or advice or self.advises), refusing=left < 1)
        # Of each entry, and of each family of entries, the strongest match counts, the first of equals; and of those
        # that support, the two of each mechanism that earn most.
        best: dict[tuple[str, str], _Match] = {}
        for match in self.matches:
            kind = match.polarity, match.entry.family or match.entry.phrase
            if kind not in best or match.level > best[kind].level:
                best[kind] = match
        self.against = [match for match in best.values() if match.polarity == "against"]
        alone = 1.0 if self.anchored else STOCK_ALONE
        earned = [(m, m.level * (alone if m.entry.stock else 1)) for m in best.values() if m.polarity == "support"]
        earned.sort(key=lambda pair: -pair[1])
        self.earning = [pair for name in MECHANISMS for pair in [p for p in earned if p[0].entry.mechanism == name][:2]]

    def _read(self, sentence: _Sentence, phrases: Sequence[Found], *, telling: bool, refusing: bool) -> None:
        """Take what stands in a sentence, each word for one phrase only, and the content that is left beside stock."""
        lexicon = self.lexicon
        content: dict[str, set[int]] = {}
        for place in range(sentence.start, sentence.end):
            if not self.void[place] and lexicon.content[word := self.text.words[place]]:
                content.setdefault(word, set()).add(place)
        anchors = {word for word in content if not self.message.content.isdisjoint(lexicon.stems[word])}
        matches: list[_Match] = []
        claimed, places_of_stock = set[int](), set[int]()
        for entry, places, polarity in self._standing(sentence, phrases, anchored=bool(anchors)) if phrases else ():
            if not claimed.isdisjoint(places):
                continue
            claimed.update(places)
            if entry.stock:
                self.stock.add(entry.phrase)
                places_of_stock.update(places)
            if entry.mechanism:
                # Weak interpretation and exploration are strong where they are said of something in this message.
                fits = not entry.stock and entry.polarity == "support" and entry.mechanism != MECHANISMS[0]
                raised = fits and anchors and not self.advises
                matches.append(_Match(entry, places, polarity, 2 if raised else entry.level))
        free = sorted(place for word in anchors for place in content[word] if place not in claimed)
        if free and telling:
            matches.append(_Match(_TAKEN_UP, (free[0],), "support", TAKEN_UP))
        against = [match for match in matches if match.polarity == "against"]
        self.matches += against if against or refusing else matches
        if refusing:
            return

        left = {word for word, places in content.items() if not places <= places_of_stock}
        self.own.update(map(lexicon.keys.__getitem__, left))
        self.anchored.update(map(lexicon.keys.__getitem__, left & anchors))

    def _standing(self, sentence: _Sentence, phrases: Sequence[Found], *, anchored: bool) -> list[_Placed]:
        """The entries and stamps that stand, with places and polarity after negation, the most specific first."""
        lexicon, ends = self.lexicon, self.text.clause_ends
        conditions = {
            "you": not lexicon.you.isdisjoint(self.text.words[sentence.start : sentence.end]),
            "question": sentence.question, "statement": not sentence.question, "anchored": anchored,
            "no advice": not self.advises,
        }  # fmt: skip
        given, present = {name for name, holds in conditions.items() if holds}, {phrase for phrase, _ in phrases}
        kept = []
        for phrase, words in phrases:
            entry = lexicon.entries.get(phrase) or lexicon.stamps.get(phrase)
            if entry and given.issuperset(entry.when) and present.isdisjoint(entry.excludes):
                places, polarity = tuple(map(sentence.start.__add__, words)), entry.polarity
                for place in range(places[-1] + 1, min(places[-1] + 1 + NEGATION_REACH, len(ends))):
                    if entry.negation == "keeps" or ends[place - 1]:
                        break
                    if self.text.words[place] in lexicon.negators:
                        # না before a nonfinite verb belongs to that (না বুঝে), and not to what stands before it.
                        if ends[place] or not self.text.words[place + 1].endswith(lexicon.nonfinite):
                            polarity = "against" if entry.negation == "turns" and polarity == "support" else ""
                        break
                if polarity and not all(map(self.hidden.__getitem__, places)):
                    # More words first, then what speaks against, the stronger, the tighter, the earlier.
                    supports, spread = entry.polarity != "against", places[-1] - places[0]
                    rank = -len(places), supports, -entry.level, spread, places[0], phrase
                    kept.append((rank, entry, places, polarity))
        return [(entry, places, polarity) for _, entry, places, polarity in sorted(kept, key=lambda item: item[0])]
