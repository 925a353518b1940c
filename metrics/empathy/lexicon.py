"""Phrase lexicons: reading and checking a TOML file, compiling its patterns, finding them in the words of a sentence.

The pattern language is described at the head of `lexicons/bn.toml`. Everything is matched on whole bn1 tokens, so মন is
not found inside কেমন. The words of a pattern are normalised as texts are, so spellings that bn1 makes equal are equal.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.exceptions import UsageError
from bnbench.metrics.normalization import Memo, normalize
from bnbench.metrics.tokenization import is_word, tokenize

_TABLES = ("classes", "endings")
_WORDS = ("negators", "nonfinite", "common", "address")
_FILE_KEYS = ("name", "version", "scoring", "patterns", "group", "stamps", "advising", *_WORDS, *_TABLES)
_GROUP_KEYS = ("mechanism", "level", "polarity", "negation", "when", "excludes", "family", "stock", "phrases")
_CHOICES: dict[str, tuple[object, ...]] = {
    "mechanism": MECHANISMS,
    "level": (1, 2),
    "polarity": ("support", "against"),
    "negation": ("turns", "cancels", "keeps"),
    "scoring": ("mechanisms", "substrings"),
}
_WHEN = ("you", "question", "statement", "anchored", "no advice")
_SHORTEST_STEM = 2  # consonants and independent vowels that are left of a word when what was cut off is an ending
_MAX_GAP = 20
_FOLDER = Path(__file__).parent / "lexicons"


@dataclass(frozen=True)
class Entry:
    """One phrase of a lexicon: what it shows and under which conditions it counts.

    Entries of one `family` are one entry where it is asked how many different ones a reply has. A `stock` phrase is
    said to everybody.
    """

    phrase: str
    mechanism: str
    level: int
    polarity: str = "support"
    negation: str = "turns"
    when: frozenset[str] = frozenset()
    excludes: tuple[str, ...] = ()
    family: str = ""
    stock: bool = False


@dataclass(frozen=True)
class Found:
    """A phrase found in a sentence: the positions of the words it names (gaps left out)."""

    phrase: str
    words: tuple[int, ...]


@dataclass(frozen=True)
class Lexicon:
    """A checked lexicon, made by `load_lexicon`; `matcher.find` is what the metric uses.

    `you` are the words of class `you`, `persons` those of `you` and `me`; empty where the lexicon has none. `endings`
    are all that may be cut off a word.
    """

    name: str
    version: str
    sha256: str
    scoring: str
    entries: Mapping[str, Entry]
    matcher: Matcher = field(repr=False)
    stamps: frozenset[str]
    patterns: tuple[str, ...]
    negators: frozenset[str]
    nonfinite: tuple[str, ...]
    common: frozenset[str]
    address: frozenset[str]
    advising: frozenset[str]
    you: frozenset[str]
    persons: frozenset[str]
    endings: frozenset[str]
    longest_ending: int
    _stems: dict[str, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _keys: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def signature(self) -> str:
        """`bn.2-1a2b3c4d`: name, version and the first eight digits of the file's sha256."""
        return f"{self.name}.{self.version}-{self.sha256[:8]}"

    def stems(self, word: str) -> frozenset[str]:
        """The normalised word, and what is left of it without each ending of [endings] that it may have."""
        if word not in self._stems:
            found = {word}
            for cut in range(1, min(len(word) - 1, self.longest_ending) + 1):
                if word[-cut:] in self.endings:
                    letters = sum(unicodedata.category(c) in ("Lo", "Ll", "Lu", "Nd") for c in word[:-cut])
                    found |= {word[:-cut]} if letters >= _SHORTEST_STEM else set()
            self._stems[word] = frozenset(found)
        return self._stems[word]

    def key(self, word: str) -> str:
        """A word without person and, one after the other, its endings: no stem, but the same for all its forms."""
        if word not in self._keys:
            shorter = "" if word in self.persons else min(self.stems(word), key=len)
            self._keys[word] = shorter if shorter in ("", word) else self.key(shorter)
        return self._keys[word]

    def is_common(self, word: str) -> bool:
        """Whether a normalised word is of `address`, or of `common` in any form: no content of a reply's own."""
        return word in self.address or not self.common.isdisjoint(self.stems(word))


class _Element(NamedTuple):
    """What one place of a pattern takes: these words, and words with these endings, but none that is refused."""

    words: frozenset[str]
    suffixes: frozenset[str]
    refused: frozenset[str]


class _Step(NamedTuple):
    """The number of an element, and how many words may stand between it and the step before."""

    element: int
    gap: int


class Matcher:
    """Phrases as patterns of steps over numbered elements, indexed by the element that they begin with.

    Raises `UsageError` for a pattern that cannot be read, or that names a class or an ending there is not.
    """

    def __init__(
        self, phrases: Iterable[str], classes: Mapping[str, tuple[str, ...]], endings: Mapping[str, tuple[str, ...]]
    ) -> None:
        self._tables = {"classes": classes, "endings": endings}
        numbers: dict[_Element, int] = {}
        parts: dict[str, int] = {}  # the number of each part as it is written, since most stand in many phrases
        self._beginning: dict[int, list[tuple[str, tuple[_Step, ...], frozenset[int]]]] = defaultdict(list)
        for phrase in phrases:
            places: list[tuple[_Step | None, ...]] = []
            gap = 0
            for part in phrase.split():
                if part.startswith(".."):
                    gap = int(part[2:] or 3) if re.fullmatch("[.]{2}[0-9]{0,2}", part) else 0
                    if not 0 < gap <= _MAX_GAP:
                        raise UsageError(f"pattern {phrase!r}: {part!r} is no gap; write .. or ..1 to ..{_MAX_GAP}")
                    continue
                text = part.replace("?", "")
                if text not in parts:
                    parts[text] = numbers.setdefault(self._element(text.split("/"), phrase), len(numbers))
                step = _Step(parts[text], gap)
                places.append((step, None) if "?" in part else (step,))
                gap = 0
            if not places or gap or None in places[0]:
                raise UsageError(f"pattern {phrase!r} must begin and end with a word that is not optional")
            for chosen in itertools.product(*places):  # with and without each of its optional words
                steps = tuple(step for step in chosen if step is not None)
                self._beginning[steps[0].element].append((phrase, steps, frozenset(s.element for s in steps[1:])))
        # From a word to the elements that take it: by the whole word, or by what it ends with.
        self._words: dict[str, list[int]] = defaultdict(list)
        self._suffixes: dict[str, list[tuple[int, frozenset[str]]]] = defaultdict(list)
        for element, number in numbers.items():
            for word in element.words - element.refused:
                self._words[word].append(number)
            for suffix in element.suffixes:
                self._suffixes[suffix].append((number, element.refused))
        self._longest = max(map(len, self._suffixes), default=0)
        self._known: Memo[frozenset[int]] = Memo(self._elements)

    def find(self, words: Sequence[str]) -> list[Found]:
        """Every phrase (entry, stamp or exclusion) at every place of one sentence, given as its words."""
        taken = list(map(self._known.__getitem__, words))
        present: frozenset[int] = frozenset().union(*taken)
        return [
            Found(phrase, places)
            for start, elements in enumerate(taken)
            for element in elements
            for phrase, steps, later in self._beginning.get(element, ())
            if later <= present and (places := _follow(steps, taken, start)) is not None
        ]

    def _elements(self, word: str) -> frozenset[int]:
        """The numbers of the elements that take a word."""
        found = set(self._words.get(word, ()))
        for length in range(1, min(len(word) - 1, self._longest) + 1):
            found.update(n for n, refused in self._suffixes.get(word[-length:], ()) if word not in refused)
        return frozenset(found)

    def _element(self, alternatives: Iterable[str], phrase: str) -> _Element:
        """What a part's alternatives take: {class}, *suffix, -refused, stem+endings, or a word."""
        words, suffixes, refused = set[str](), set[str](), set[str]()
        for text in alternatives:
            if text.startswith("{") and text.endswith("}"):
                members = self._element(self._named("classes", text[1:-1], phrase), phrase)
                words |= members.words
                suffixes |= members.suffixes
                refused |= members.refused
            elif text.startswith("*"):
                suffixes.add(_normalised(text[1:]))
            elif text.startswith("-"):
                refused.add(_literal(text[1:], phrase))
            else:
                stem, plus, group = text.partition("+")
                endings = map(_normalised, self._named("endings", group, phrase)) if plus else ("",)
                words.update(map(_literal(stem, phrase).__add__, endings))
        return _Element(frozenset(words), frozenset(suffixes), frozenset(refused))

    def _named(self, table: str, name: str, phrase: str) -> tuple[str, ...]:
        known = self._tables[table]
        if name not in known:
            raise UsageError(f"pattern {phrase!r}: there is no [{table}] {name!r}{_nearest(name, known)}")
        return known[name]


def _follow(steps: tuple[_Step, ...], taken: Sequence[frozenset[int]], start: int) -> tuple[int, ...] | None:
    """The places of all steps, each the first word that fits within its gap; goes back where that leads nowhere."""
    if len(steps) == 1:
        return (start,)
    following = steps[1]
    for place in range(start + 1, min(start + 2 + following.gap, len(taken))):
        if following.element in taken[place]:
            rest = _follow(steps[1:], taken, place)
            if rest is not None:
                return (start, *rest)
    return None


@lru_cache(maxsize=100_000)
def _normalised(text: str) -> str:
    return normalize(text)


def _literal(text: str, phrase: str) -> str:
    tokens = tokenize(text)
    if len(tokens) != 1 or not is_word(tokens[0]):
        raise UsageError(f"pattern {phrase!r}: {text!r} is not one word; write words apart, with a space between them")
    return tokens[0]


def lexicon_names() -> tuple[str, ...]:
    """The lexicons that come with bnbench."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


@lru_cache(maxsize=16)
def load_lexicon(name_or_path: str | Path) -> Lexicon:
    """A built-in lexicon by name, or one's own TOML file by path; read once in a process.

    Raises `UsageError` where the file is missing or not TOML, or has an unknown key or choice, a pattern that cannot be
    read, or a phrase twice; the message names the lines or the nearest name.
    """
    import tomllib  # here, because importing the metric reads no lexicon

    name, names = str(name_or_path), lexicon_names()
    if "/" not in name and not name.endswith(".toml") and name not in names:
        raise UsageError(f"no lexicon {name!r}{_nearest(name, names)}; known: {', '.join(names)}, or a .toml file")
    try:
        raw = (_FOLDER / f"{name}.toml" if name in names else Path(name)).read_bytes()
        text = raw.decode("utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"lexicon {name}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"lexicon {name}: not a TOML file in UTF-8: {error}") from error
    try:
        return _checked(table, text, hashlib.sha256(raw).hexdigest())
    except UsageError as error:
        raise UsageError(f"lexicon {name}: {error}") from error


def _checked(table: Mapping[str, Any], text: str, sha256: str) -> Lexicon:
    _check_keys(table, _FILE_KEYS)
    for key in ("name", "version"):
        if not isinstance(table.get(key), str):
            raise UsageError(f'{key!r} is missing; add a line {key} = "..."')
    scoring = _choice(table, "scoring", "mechanisms", "file")
    entries: dict[str, Entry] = {}
    for number, group in enumerate(table.get("group", []), 1):
        place = f"[[group]] {number}"
        _check_keys(group, _GROUP_KEYS, f"{place}: ")
        when = frozenset(_strings(group, "when"))
        for unknown in sorted(when.difference(_WHEN)):
            raise UsageError(f"{place}: when has {unknown!r}{_nearest(unknown, _WHEN)}; use {', '.join(_WHEN)}")
        defaults = {"mechanism": None, "level": None, "polarity": "support", "negation": "turns"}
        shared: dict[str, Any] = {key: _choice(group, key, default, place) for key, default in defaults.items()}
        shared |= {"when": when, "excludes": _strings(group, "excludes"), "family": group.get("family", "")}
        if not isinstance(stock := group.get("stock", False), bool):
            raise UsageError(f"{place}: stock is {stock!r}; use true or false")
        for phrase in _strings(group, "phrases"):
            if phrase in entries:
                lines = enumerate(text.splitlines(), 1)
                after = text[: max(0, text.find("[[group]]"))].count("\n")
                found = [str(n) for n, line in lines if n > after for _ in range(line.count(f'"{phrase}"'))]
                raise UsageError(f"the phrase {phrase!r} stands twice, in lines {' and '.join(found)}: keep one")
            entries[phrase] = Entry(phrase, **shared, stock=stock)
    patterns = _strings(table, "patterns")
    if not (patterns if scoring == "substrings" else entries):
        raise UsageError('it has no phrase: add [[group]] tables with phrases, or patterns with scoring = "substrings"')
    classes, endings = ({key: _strings(of, key) for key in of} for of in (table.get(k, {}) for k in _TABLES))
    stamps, advising = frozenset(_strings(table, "stamps")), frozenset(_strings(table, "advising"))
    excluded = (phrase for entry in entries.values() for phrase in entry.excludes)
    words = {key: tuple(map(_normalised, _strings(table, key))) for key in _WORDS}
    you, me = (frozenset(map(_normalised, classes.get(name, ()))) for name in ("you", "me"))
    all_endings = frozenset(map(_normalised, itertools.chain.from_iterable(endings.values()))) - {""}
    return Lexicon(
        name=table["name"],
        version=table["version"],
        sha256=sha256,
        scoring=scoring,
        entries=entries,
        matcher=Matcher(dict.fromkeys((*entries, *stamps, *advising, *excluded)), classes, endings),
        stamps=stamps,
        patterns=patterns,
        negators=frozenset(words["negators"]),
        nonfinite=words["nonfinite"],
        common=frozenset(words["common"]),
        address=frozenset(words["address"]),
        advising=advising,
        you=you,
        persons=you | me,
        endings=all_endings,
        longest_ending=max(map(len, all_endings), default=0),
    )


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], place: str = "") -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"{place}unknown key {key!r}{_nearest(key, known)}; known: {', '.join(known)}")


def _choice(table: Mapping[str, Any], key: str, default: object, place: str) -> Any:
    value = table.get(key, default)
    if value not in _CHOICES[key] or isinstance(value, bool):  # to Python, true is 1
        known = [str(choice) for choice in _CHOICES[key]]
        raise UsageError(f"{place}: {key} is {value!r}{_nearest(str(value), known)}; use {', '.join(known)}")
    return value


def _strings(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{key!r} must be a list of strings")
    return tuple(value)


def _nearest(name: str, known: Collection[str]) -> str:
    import difflib  # for a message only

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
