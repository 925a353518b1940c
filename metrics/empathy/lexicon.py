"""Phrase lexicons: reading and checking a TOML file, compiling its patterns, finding them in the words of a sentence.

The pattern language is described at the head of `lexicons/bn.toml`. Everything is matched on whole bn1 tokens, so মন is
not found inside কেমন. The words of a pattern are normalised as texts are, so spellings that bn1 makes equal are equal.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from bnbench.metrics.empathy import MECHANISMS as MECHANISMS
from bnbench.metrics.errors import UsageError
from bnbench.metrics.normalization import normalize
from bnbench.metrics.tokenization import is_word, tokenize

_FILE_KEYS = (
    *("name", "version", "scoring", "patterns"),
    *("group", "stamps", "common", "address", "advising", "negators", "nonfinite", "endings", "classes"),
)
_FIELDS = ("mechanism", "level", "polarity", "negation", "when", "excludes", "family")
_GROUP_KEYS = (*_FIELDS, "stock", "phrases")
_CHOICES: dict[str, tuple[object, ...]] = {
    "mechanism": MECHANISMS,
    "level": (1, 2),
    "polarity": ("support", "against"),
    "negation": ("turns", "cancels", "keeps"),
    "scoring": ("mechanisms", "substrings"),
}
_WHEN = ("you", "question", "statement", "anchored", "no advice")
_SHORTEST_STEM = 2
"""Consonants and independent vowels that must be left of a word for what was cut off to be an ending."""
_MAX_GAP = 20
_FOLDER = Path(__file__).parent / "lexicons"


@dataclass(frozen=True)
class Entry:
    """One phrase of a lexicon: what it shows and under which conditions it counts."""

    phrase: str
    mechanism: str
    level: int
    polarity: str = "support"
    negation: str = "turns"
    when: frozenset[str] = frozenset()
    excludes: tuple[str, ...] = ()
    family: str = ""
    """Entries of one family are one entry where it is asked how many different ones a reply has."""
    stock: bool = False
    """Whether the phrase is said to everybody."""


@dataclass(frozen=True)
class Found:
    """A phrase found in a sentence: the positions of the words it names (gaps left out)."""

    phrase: str
    words: tuple[int, ...]


@dataclass(frozen=True)
class _Element:
    """What one place of a pattern takes: these words, and words with these endings, but none that is refused."""

    words: frozenset[str]
    suffixes: frozenset[str]
    refused: frozenset[str]


@dataclass(frozen=True)
class _Step:
    element: int
    gap: int


@dataclass(frozen=True)
class Lexicon:
    """A checked lexicon. `load_lexicon` makes it; `find` is what the metric uses."""

    name: str
    version: str
    sha256: str
    scoring: str
    entries: Mapping[str, Entry]
    stamps: frozenset[str]
    patterns: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]] = field(repr=False)
    endings: Mapping[str, tuple[str, ...]] = field(repr=False)
    negators: frozenset[str] = frozenset()
    nonfinite: tuple[str, ...] = ()
    common: frozenset[str] = frozenset()
    address: frozenset[str] = frozenset()
    advising: frozenset[str] = frozenset()

    @property
    def signature(self) -> str:
        """`bn.2-1a2b3c4d`: name, version and the first eight digits of the file's sha256."""
        return f"{self.name}.{self.version}-{self.sha256[:8]}"

    @cached_property
    def _compiled(self) -> _Patterns:
        excluded = (phrase for entry in self.entries.values() for phrase in entry.excludes)
        return _Patterns(self, dict.fromkeys((*self.entries, *self.stamps, *self.advising, *excluded)))

    def find(self, words: Sequence[str]) -> list[Found]:
        """Every phrase (entry, stamp or exclusion) at every place of one sentence, given as its words."""
        return self._compiled.find(words)

    @cached_property
    def second_person(self) -> frozenset[str]:
        """The words of class `you`; empty where the lexicon has none."""
        return frozenset(map(_normalised, self.classes.get("you", ())))

    @cached_property
    def persons(self) -> frozenset[str]:
        """The words of classes `you` and `me`."""
        return self.second_person | frozenset(map(_normalised, self.classes.get("me", ())))

    def stems(self, word: str) -> frozenset[str]:
        """The normalised word, and what is left of it without each ending of [endings] that it may have."""
        if word not in self._stems:
            cuts = range(1, min(len(word) - 1, self._longest_ending) + 1)
            kept = (word[:-cut] for cut in cuts if word[-cut:] in self._every_ending)
            letters = ((stem, sum(map(_is_letter, stem))) for stem in kept)
            self._stems[word] = frozenset({word, *(stem for stem, count in letters if count >= _SHORTEST_STEM)})
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

    @cached_property
    def _every_ending(self) -> frozenset[str]:
        return frozenset(_normalised(ending) for group in self.endings.values() for ending in group if ending)

    @cached_property
    def _longest_ending(self) -> int:
        return max(map(len, self._every_ending), default=0)

    @cached_property
    def _stems(self) -> dict[str, frozenset[str]]:
        return {}

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {}

    def counts(self) -> dict[str, int]:
        """Supporting entries per mechanism, and `against`."""
        kinds = [entry.mechanism if entry.polarity == "support" else "against" for entry in self.entries.values()]
        return {kind: kinds.count(kind) for kind in (*MECHANISMS, "against")}


class _Patterns:
    """Patterns as steps over numbered elements, indexed by the element they begin with."""

    def __init__(self, lexicon: Lexicon, phrases: Iterable[str]) -> None:
        self._lexicon = lexicon
        self._numbers: dict[_Element, int] = {}
        self._parts: dict[str, int] = {}
        self._beginning: dict[int, list[tuple[str, tuple[_Step, ...], frozenset[int]]]] = defaultdict(list)
        for phrase in phrases:
            for steps in self._variants(phrase):
                later = frozenset(step.element for step in steps[1:])
                self._beginning[steps[0].element].append((phrase, steps, later))
        self._words, self._suffixes = defaultdict(list), defaultdict(list)
        for element, number in self._numbers.items():
            for word in element.words - element.refused:
                self._words[word].append(number)
            for suffix in element.suffixes:
                self._suffixes[suffix].append((number, element.refused))
        self._longest = max(map(len, self._suffixes), default=0)
        self._known: dict[str, frozenset[int]] = {}

    _words: dict[str, list[int]]
    _suffixes: dict[str, list[tuple[int, frozenset[str]]]]

    def find(self, words: Sequence[str]) -> list[Found]:
        taken = list(map(self._elements, words))
        present: frozenset[int] = frozenset().union(*taken)
        return [
            Found(phrase, places)
            for start, elements in enumerate(taken)
            for element in elements
            for phrase, steps, later in self._beginning.get(element, ())
            if later <= present and (places := _follow(steps, taken, start)) is not None
        ]

    def _elements(self, word: str) -> frozenset[int]:
        if word not in self._known:
            found = set(self._words.get(word, ()))
            for length in range(1, min(len(word) - 1, self._longest) + 1):
                found.update(n for n, refused in self._suffixes.get(word[-length:], ()) if word not in refused)
            self._known[word] = frozenset(found)
        return self._known[word]

    def _variants(self, phrase: str) -> Iterator[tuple[_Step, ...]]:
        """The phrase with and without each of its optional words."""
        places: list[tuple[_Step | None, ...]] = []
        gap = 0
        for part in phrase.split():
            if part.startswith(".."):
                gap = _gap(part, phrase)
                continue
            step = _Step(self._number(part.replace("?", ""), phrase), gap)
            places.append((step, None) if "?" in part else (step,))
            gap = 0
        if not places or gap or None in places[0]:
            raise UsageError(f"pattern {phrase!r} must begin and end with a word that is not optional")
        for chosen in itertools.product(*places):
            yield tuple(step for step in chosen if step is not None)

    def _number(self, part: str, phrase: str) -> int:
        if part not in self._parts:
            element = self._element(part.split("/"), phrase)
            self._parts[part] = self._numbers.setdefault(element, len(self._numbers))
        return self._parts[part]

    def _element(self, alternatives: Iterable[str], phrase: str) -> _Element:
        made = [self._alternative(text, phrase) for text in alternatives]
        return _Element(*(frozenset[str]().union(*part) for part in zip(*made, strict=True)))

    def _alternative(self, text: str, phrase: str) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """The words, endings and refused words of one alternative."""
        none = frozenset[str]()
        if text.startswith("{") and text.endswith("}"):
            members = self._element(self._named("classes", text[1:-1], phrase), phrase)
            return members.words, members.suffixes, members.refused
        if text.startswith("*"):
            return none, frozenset({_normalised(text[1:])}), none
        if text.startswith("-"):
            return none, none, frozenset({_literal(text[1:], phrase)})
        if "+" in text:
            stem, _, group = text.partition("+")
            endings = map(_normalised, self._named("endings", group, phrase))
            return frozenset(map(_literal(stem, phrase).__add__, endings)), none, none
        return frozenset({_literal(text, phrase)}), none, none

    def _named(self, table: str, name: str, phrase: str) -> tuple[str, ...]:
        known: Mapping[str, tuple[str, ...]] = getattr(self._lexicon, table)
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


def _gap(part: str, phrase: str) -> int:
    digits = part[2:] or "3"
    if not digits.isascii() or not digits.isdigit() or not 0 < int(digits) <= _MAX_GAP:
        raise UsageError(f"pattern {phrase!r}: {part!r} is no gap; write .. or ..1 to ..{_MAX_GAP}")
    return int(digits)


def _is_letter(character: str) -> bool:
    return unicodedata.category(character) in ("Lo", "Ll", "Lu", "Nd")


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


def load_lexicon(name_or_path: str | Path) -> Lexicon:
    """A built-in lexicon by name, or one's own TOML file by path.

    Raises `UsageError` where the file is missing or not TOML, or has an unknown key or choice, a pattern that cannot be
    read, or a phrase twice; the message names the lines or the nearest name.
    """
    return _loaded(str(name_or_path))


@lru_cache(maxsize=16)
def _loaded(name: str) -> Lexicon:
    import tomllib  # here, because importing the metric reads no lexicon

    raw = _read(name)
    try:
        text = raw.decode("utf-8")
        table = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"lexicon {name}: not a TOML file in UTF-8: {error}") from error
    try:
        lexicon = _checked(table, text, hashlib.sha256(raw).hexdigest())
        lexicon.find(())
    except UsageError as error:
        raise UsageError(f"lexicon {name}: {error}") from error
    return lexicon


def _read(name: str) -> bytes:
    if "/" not in name and not name.endswith(".toml"):
        if name not in lexicon_names():
            known = ", ".join(lexicon_names())
            raise UsageError(f"no lexicon {name!r}{_nearest(name, lexicon_names())}; known: {known}, or a .toml file")
        return (_FOLDER / f"{name}.toml").read_bytes()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"lexicon {name}: cannot be read: {error.strerror}") from error


def _checked(table: Mapping[str, Any], text: str, sha256: str) -> Lexicon:
    _known_keys(table, _FILE_KEYS)
    for key in ("name", "version"):
        if not isinstance(table.get(key), str):
            raise UsageError(f'{key!r} is missing; add a line {key} = "..."')
    lexicon = Lexicon(
        name=table["name"],
        version=table["version"],
        sha256=sha256,
        scoring=_choice(table, "scoring", "mechanisms", "file"),
        entries=_entries(table.get("group", []), text),
        stamps=frozenset(_strings(table, "stamps")),
        patterns=_strings(table, "patterns"),
        classes={key: _strings(table["classes"], key) for key in table.get("classes", {})},
        endings={key: _strings(table["endings"], key) for key in table.get("endings", {})},
        negators=frozenset(map(_normalised, _strings(table, "negators"))),
        nonfinite=tuple(map(_normalised, _strings(table, "nonfinite"))),
        address=frozenset(map(_normalised, _strings(table, "address"))),
        advising=frozenset(_strings(table, "advising")),
        common=frozenset(map(_normalised, _strings(table, "common"))),
    )
    if not (lexicon.patterns if lexicon.scoring == "substrings" else lexicon.entries):
        raise UsageError('it has no phrase: add [[group]] tables with phrases, or patterns with scoring = "substrings"')
    return lexicon


def _entries(groups: Sequence[Mapping[str, Any]], text: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for number, group in enumerate(groups, 1):
        fields = _fields(group, f"[[group]] {number}")
        for phrase in _strings(group, "phrases"):
            if phrase in entries:
                raise UsageError(f"the phrase {phrase!r} stands twice, in lines {_lines(phrase, text)}: keep one")
            entries[phrase] = Entry(phrase, *fields)
    return entries


def _fields(group: Mapping[str, Any], place: str) -> tuple[Any, ...]:
    """What the entries of a group have in common, in the order of `Entry`."""
    _known_keys(group, _GROUP_KEYS, f"{place}: ")
    when = frozenset(_strings(group, "when"))
    for unknown in sorted(when.difference(_WHEN)):
        raise UsageError(f"{place}: when has {unknown!r}{_nearest(unknown, _WHEN)}; use {', '.join(_WHEN)}")
    defaults = {"polarity": "support", "negation": "turns"}
    chosen = (_choice(group, key, defaults.get(key), place) for key in _FIELDS[:4])
    return (*chosen, when, _strings(group, "excludes"), group.get("family", ""), _flag(group, "stock", place))


def _lines(phrase: str, text: str) -> str:
    first = text[: text.index("[[group]]")].count("\n") if "[[group]]" in text else 0
    numbered = list(enumerate(text.splitlines(), 1))[first:]
    return " and ".join(str(number) for number, line in numbered for _ in range(line.count(f'"{phrase}"')))


def _known_keys(table: Mapping[str, Any], known: tuple[str, ...], place: str = "") -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"{place}unknown key {key!r}{_nearest(key, known)}; known: {', '.join(known)}")


def _choice(table: Mapping[str, Any], key: str, default: object, place: str) -> Any:
    value = table.get(key, default)
    if value not in _CHOICES[key] or isinstance(value, bool):
        known = [str(choice) for choice in _CHOICES[key]]
        raise UsageError(f"{place}: {key} is {value!r}{_nearest(str(value), known)}; use {', '.join(known)}")
    return value


def _flag(group: Mapping[str, Any], key: str, place: str) -> bool:
    value = group.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{place}: {key} is {value!r}; use true or false")
    return value


def _strings(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{key!r} must be a list of strings")
    return tuple(value)


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib  # for a message only

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
