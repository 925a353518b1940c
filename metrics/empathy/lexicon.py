"""Phrase lexicons: reading and checking a TOML file, compiling its patterns, finding them in the words of a sentence.

The pattern language is described at the head of `lexicons/bn.toml`. Everything is matched on whole bn1 tokens, so মন is
not found inside কেমন. The words of a pattern are normalised as texts are, so spellings that bn1 makes equal are equal.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import tomllib
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.exceptions import UsageError, nearest, read_small
from bnbench.metrics.normalization import Memo, normalize
from bnbench.metrics.tokenization import is_word, tokenize

# What a file and each [[group]] of it may have: a string, tables, one of several choices, or a list of strings (where
# the list here is not empty, of these).
_FILE: dict[str, Any] = {"name": str, "version": str, "scoring": ("mechanisms", "substrings"), "words": (True, False)}
_FILE |= {"group": dict, "classes": dict, "endings": dict, "patterns": [], "stamps": [], "advising": []}
_FILE |= {"negators": [], "nonfinite": [], "common": [], "address": []}
_GROUP: dict[str, Any] = {"mechanism": MECHANISMS, "level": (1, 2), "polarity": ("support", "against")}
_GROUP |= {"negation": ("turns", "cancels", "keeps"), "family": str, "stock": (True, False), "phrases": []}
_GROUP |= {"when": ["you", "question", "statement", "anchored", "no advice"], "excludes": []}
_DEFAULTS = {
    "scoring": "mechanisms", "polarity": "support", "negation": "turns", "family": "", "stock": False, "words": False,
}  # fmt: skip
_SHORTEST_STEM = 2  # consonants and independent vowels that are left of a word when what was cut off is an ending
_LONGEST_WORD = 100  # characters of what has endings; anything longer is noise, and would have hundreds
_MAX_GAP = 20
LEFT = 0.1  # of the comfort of a reply that takes it back
_FOLDER = Path(__file__).parent / "lexicons"
_normalised = lru_cache(maxsize=100_000)(normalize)  # most stems and endings stand in many patterns


class Entry(NamedTuple):
    """One phrase of a lexicon: what it shows, and under which conditions it counts."""

    phrase: str
    mechanism: str  # none of one that shows nothing (a stamp)
    level: int
    polarity: str = "support"
    negation: str = "turns"
    when: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    family: str = ""  # entries of one are one entry where it is asked how many different ones a reply has
    stock: bool = False  # said to everybody


Found = tuple[str, tuple[int, ...]]
"""A phrase found in a sentence, and the positions of the words it names (gaps left out)."""


class Lexicon:
    """A checked lexicon, made by `load_lexicon`; `matcher.find` is what the metric uses.

    `you` are the words of class `you`, `persons` those of `you` and `me`; empty where the lexicon has none. `stems` has
    for each normalised word the word and what is left of it without each ending that it may have; `keys` the word
    without person and, one after the other, its endings: no stem, but the same for all its forms. `words` says whether
    what the head hears in a reply's words counts beside the phrases.
    """

    def __init__(self, table: Mapping[str, Any], text: str, sha256: str) -> None:
        given = _checked(table, _FILE)
        self.scoring, self.patterns, self.words = given["scoring"], given["patterns"], given["words"]
        self.signature = f"{given['name']}.{given['version']}-{sha256[:8]}"
        self.entries: dict[str, Entry] = {}
        for number, group in enumerate(given["group"], 1):
            shared = _checked(group, _GROUP, f"[[group]] {number}: ")
            for phrase in shared.pop("phrases"):
                if phrase in self.entries:
                    lines = enumerate(text.splitlines(), 1)
                    after = text[: max(0, text.find("[[group]]"))].count("\n")
                    found = [str(n) for n, line in lines if n > after for _ in range(line.count(f'"{phrase}"'))]
                    raise UsageError(f"the phrase {phrase!r} stands twice, in lines {' and '.join(found)}: keep one")
                self.entries[phrase] = Entry(phrase, **shared)
        if not (self.patterns if self.scoring == "substrings" else self.entries):
            raise UsageError('it has no phrase: add [[group]] tables, or patterns with scoring = "substrings"')
        self.stamps = {each: Entry(each, "", 0, negation="keeps", stock=True) for each in given["stamps"]}
        self.advising = frozenset(given["advising"])
        classes, endings = (_checked(of, {name: [] for name in of}) for of in (given["classes"], given["endings"]))
        excluded = itertools.chain.from_iterable(entry.excludes for entry in self.entries.values())
        phrases = dict.fromkeys((*self.entries, *self.stamps, *given["advising"], *excluded))
        self.matcher = Matcher(phrases, classes=classes, endings=endings)

        self.nonfinite = tuple(map(_normalised, given["nonfinite"]))
        words = (given["negators"], given["common"], given["address"], classes.get("you", ()), classes.get("me", ()))
        self.negators, self.common, self.address, self.you, me = (frozenset(map(_normalised, each)) for each in words)
        self.persons = self.you | me
        self._endings = frozenset(map(_normalised, itertools.chain.from_iterable(endings.values()))) - {""}
        self._longest = max(map(len, self._endings), default=0)
        self.stems: Memo[frozenset[str]] = Memo(self._stems)
        self.keys: Memo[str] = Memo(self._key)
        # No content of a reply's own: persons, `address`, and `common` in any form.
        others = self.persons | self.address
        self.content = Memo(lambda word: word not in others and self.common.isdisjoint(self.stems[word]))

    def _stems(self, word: str) -> frozenset[str]:
        found = {word}
        for cut in range(1, min(len(word) - 1, self._longest) + 1):
            if word[-cut:] in self._endings and len(word) <= _LONGEST_WORD:
                letters = sum(unicodedata.category(c) in ("Lo", "Ll", "Lu", "Nd") for c in word[:-cut])
                found |= {word[:-cut]} if letters >= _SHORTEST_STEM else set()
        return frozenset(found)

    def _key(self, word: str) -> str:
        shorter = "" if word in self.persons else min(self.stems[word], key=len)
        return shorter if shorter in ("", word) else self.keys[shorter]


class _Element(NamedTuple):
    """What one place of a pattern takes: these words, and words with these endings, but none that is refused."""

    words: frozenset[str]
    suffixes: frozenset[str]
    refused: frozenset[str]


_Step = tuple[int, int]  # the number of an element, and how many words may stand between it and the step before
_Pattern = tuple[str, tuple[_Step, ...], frozenset[int]]  # a phrase, its steps, and the elements of all but the first


class Matcher:
    """Phrases as patterns of steps over numbered elements, indexed by the element that they begin with.

    Raises `UsageError` for a pattern that cannot be read, or that names a class or an ending there is not.
    """

    def __init__(self, phrases: Iterable[str], **tables: Mapping[str, tuple[str, ...]]) -> None:
        self._tables = tables
        numbers: dict[_Element, int] = {}
        parts: dict[str, int] = {}  # the number of each part as it is written, since most stand in many phrases
        self._beginning: dict[int, list[_Pattern]] = defaultdict(list)
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
                step = (parts[text], gap)
                places.append((step, None) if "?" in part else (step,))
                gap = 0
            if not places or gap or None in places[0]:
                raise UsageError(f"pattern {phrase!r} must begin and end with a word that is not optional")
            for chosen in itertools.product(*places):  # with and without each of its optional words
                steps = tuple(step for step in chosen if step is not None)
                self._beginning[steps[0][0]].append((phrase, steps, frozenset(element for element, _ in steps[1:])))
        # From a word to the elements that take it: by the whole word, or by what it ends with.
        self._words: dict[str, list[int]] = defaultdict(list)
        self._suffixes: dict[str, list[tuple[int, frozenset[str]]]] = defaultdict(list)
        for element, number in numbers.items():
            for word in element.words - element.refused:
                self._words[word].append(number)
            for suffix in element.suffixes:
                self._suffixes[suffix].append((number, element.refused))
        self._longest = max(map(len, self._suffixes), default=0)
        elements = list(numbers)
        every = itertools.chain.from_iterable(self._beginning.values())
        rarest = (min((elements[number].words for number, _ in steps), key=len) for _, steps, _ in every)
        # Where no pattern has suffixes, no phrase stands in a sentence that has none of these words.
        self.telling = frozenset(itertools.chain.from_iterable(rarest))
        self._known: Memo[tuple[frozenset[int], list[_Pattern]]] = Memo(self._read)

    def find(self, words: Sequence[str]) -> list[Found]:
        """Every phrase (entry, stamp or exclusion) at every place of one sentence, given as its words."""
        known = list(map(self._known.__getitem__, words))
        taken = [elements for elements, _ in known]
        present: frozenset[int] = frozenset().union(*taken)
        return [
            (phrase, places)
            for start, (_, beginning) in enumerate(known)
            for phrase, steps, later in beginning
            if later <= present and (places := _follow(steps, taken, start)) is not None
        ]

    def _read(self, word: str) -> tuple[frozenset[int], list[_Pattern]]:
        """The numbers of the elements that take a word, and the patterns that may begin with it."""
        found = set(self._words.get(word, ()))
        for length in range(1, min(len(word) - 1, self._longest) + 1):
            if (ending := word[-length:]) in self._suffixes:
                found.update(n for n, refused in self._suffixes[ending] if word not in refused)
        return frozenset(found), [pattern for element in found for pattern in self._beginning.get(element, ())]

    def _element(self, alternatives: Iterable[str], phrase: str) -> _Element:
        """What a part's alternatives take: {class}, *suffix, -refused, stem+endings, or a word."""

        def named(table: str, name: str) -> tuple[str, ...]:
            known = self._tables[table]
            if name not in known:
                raise UsageError(f"pattern {phrase!r}: there is no [{table}] {name!r}{nearest(name, known)}")
            return known[name]

        words, suffixes, refused = set[str](), set[str](), set[str]()
        for text in alternatives:
            if text.startswith("{") and text.endswith("}"):
                members = self._element(named("classes", text[1:-1]), phrase)
                for ours, theirs in zip((words, suffixes, refused), members, strict=True):
                    ours |= theirs
            elif text.startswith("*"):
                suffixes.add(_normalised(text[1:]))
            else:
                is_refused = text.startswith("-")
                stem, plus, group = (text[1:], "", "") if is_refused else text.partition("+")
                endings = map(_normalised, named("endings", group)) if plus else ("",)
                tokens = tokenize(stem)
                if len(tokens) != 1 or not is_word(tokens[0]):
                    how = "write words apart, with a space between"
                    raise UsageError(f"pattern {phrase!r}: {stem!r} is not one word; {how}")
                (refused if is_refused else words).update(map(tokens[0].__add__, endings))
        return _Element(frozenset(words), frozenset(suffixes), frozenset(refused))


def _follow(steps: tuple[_Step, ...], taken: Sequence[frozenset[int]], start: int) -> tuple[int, ...] | None:
    """The places of all steps, each the first word that fits within its gap; goes back where that leads nowhere."""
    if len(steps) == 1:
        return (start,)
    element, gap = steps[1]
    for place in range(start + 1, min(start + 2 + gap, len(taken))):
        if element in taken[place] and (rest := _follow(steps[1:], taken, place)):
            return (start, *rest)
    return None


@lru_cache(maxsize=16)
def load_lexicon(name_or_path: str | Path) -> Lexicon:
    """A built-in lexicon by name, or one's own TOML file by path; read once in a process.

    Raises `UsageError` where the file is missing or not TOML, or a key, choice or pattern is wrong, or a phrase twice.
    """
    name, names = str(name_or_path), sorted(path.stem for path in _FOLDER.glob("*.toml"))
    if "/" not in name and not name.endswith(".toml") and name not in names:
        raise UsageError(f"no lexicon {name!r}{nearest(name, names) or ';'} known: {', '.join(names)}, or a .toml file")
    try:
        raw = read_small(_FOLDER / f"{name}.toml" if name in names else name)
        text = raw.decode("utf-8")
        return Lexicon(tomllib.loads(text), text, hashlib.sha256(raw).hexdigest())
    except OSError as error:
        raise UsageError(f"lexicon {name}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"lexicon {name}: not a TOML file in UTF-8: {error}") from error
    except UsageError as error:
        raise UsageError(f"lexicon {name}: {error}") from error


class Polarity:
    """Whether a sentence takes comfort back: what both empathy scorers know of refusal, mockery (`polarity.toml`)."""

    def __init__(self) -> None:
        data = (Path(__file__).parent / "polarity.toml").read_bytes()
        table = tomllib.loads(data.decode("utf-8"))
        self.id = f"{table['name']}.{table['version']}-{hashlib.sha256(data).hexdigest()[:8]}"
        tables = {"classes": table["classes"], "endings": table["endings"]}
        of = [(phrase, group) for group in reversed(table["group"]) for phrase in group["phrases"]]
        self._groups = {phrase: frozenset(group["unless"]) for phrase, group in of}
        self._alone = {phrase for phrase, group in of if group.get("alone")}
        self._refusals = Matcher(self._groups, **tables)
        self._lifting = Matcher(frozenset().union(*self._groups.values()), **tables)
        self._meaning_yes = Matcher(table["lifting"], **tables)
        verbs = [text for name in table["verbs"] for text in table["classes"][name] if " " not in text]
        stems = [text.partition("+")[0] + end for text in verbs for end in (("", "ই", "ও") if "+" in text else ("",))]
        self._joined = {normalize(s + no): (normalize(s), read) for s in stems for no, read in table["joined"].items()}
        self._telling = self._refusals.telling | self._joined.keys()

    def left(self, words: Sequence[str], clause_ends: Sequence[bool]) -> float:
        """How much of its comfort a reply keeps beside a sentence of these words, 0-1, where 1 takes nothing back."""
        if self._telling.isdisjoint(words):
            return 1.0
        # The words of each clause, a negation that is written on its verb taken off it.
        clauses: list[list[str]] = [[]]
        for word, end in zip(words, clause_ends, strict=True):
            clauses[-1] += self._joined.get(word, (word,))
            if end:
                clauses.append([])
        found: list[str] = []
        for clause in itertools.filterfalse(self._refusals.telling.isdisjoint, clauses):
            places = self._refusals.find(clause)
            refused = [phrase for phrase, at in places if phrase not in self._alone or len(at) == len(clause)]
            found += refused if refused and not self._meaning_yes.find(clause) else ()
        lifting = {phrase for phrase, _ in self._lifting.find([*itertools.chain(*clauses)])} if found else ()
        return LEFT if any(self._groups[phrase].isdisjoint(lifting) for phrase in found) else 1.0


load_polarity = lru_cache(maxsize=1)(Polarity)


def _checked(table: Mapping[str, Any], schema: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Every key of the schema with its value or default, lists as tuples."""

    def among(value: object, known: Collection[object]) -> str:
        names = [str(each).lower() if isinstance(each, bool) else str(each) for each in known]
        return f"{value!r}{nearest(str(value), names) or ';'} use {', '.join(names)}"

    for key in table:
        if key not in schema:
            raise UsageError(f"{place}unknown key {key!r}{nearest(key, schema) or ';'} known: {', '.join(schema)}")
    found: dict[str, Any] = {}
    for key, kind in schema.items():
        value = table.get(key, _DEFAULTS.get(key, [] if isinstance(kind, list) else {} if kind is dict else None))
        if isinstance(kind, list):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise UsageError(f"{place}{key!r} must be a list of strings")
            if wrong := [item for item in value if kind and item not in kind]:
                raise UsageError(f"{place}{key} has {among(wrong[0], kind)}")
            value = tuple(value)
        elif kind is str and not isinstance(value, str):
            raise UsageError(f'{place}{key!r} is missing; add a line {key} = "..."')
        elif kind not in (str, dict) and (value not in kind or isinstance(value, bool) != isinstance(kind[0], bool)):
            raise UsageError(f"{place}{key} is {among(value, kind)}")  # to Python, true is 1
        found[key] = value
    return found
