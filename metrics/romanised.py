"""Bengali in Latin letters (ami bujhte parchi) put into Bengali script, and regional words in their standard form.

People spell it as they hear it: ছ is chh, ch or s, অ is o or nothing, য-ফলা doubles or is left out. So a Latin word is
taken for the known Bengali word that sounds most like it, and of equals for the more frequent one. Known are the words
of this project's own texts, the most frequent first (`bn_words.txt`, CC0). What sounds like what: `romanised.toml`.
"""

from __future__ import annotations

import math
import re
import tomllib
import unicodedata
from collections import defaultdict
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from bnbench.metrics.normalization import Memo, normalize

_LATIN, _BENGALI = re.compile("[A-Za-z]"), re.compile("[\u0985-\u09b9\u09ce\u09dc-\u09df]")
_WORD = re.compile(r"(?<![A-Za-z\d@._/-])[A-Za-z]+(?![A-Za-z\d@_/]|\.[A-Za-z])")
_ASPIRATE, _DOUBLE = re.compile("(?<=[kgjtdbr])h"), re.compile(r"([a-z])\1+")
_CONSONANT = "(?:[\u0995-\u09b9]\u09bc?)"  # as bn1 has them
_FOLDER = Path(__file__).parent
_WORDS = _FOLDER / "bn_words.txt"  # that are known, the most frequent first
_SIGNS = frozenset("ািীুূেোৃৈৌ্ঃ")
_ONE_SIGN = {"\u09af\u09bc": "\u09df", "\u09a1\u09bc": "\u09dc", "\u09a2\u09bc": "\u09dd"}  # য় ড় ঢ়
_TO_FRAME = str.maketrans({**dict.fromkeys("aeiouyOYBNH"), "c": "s", "f": "p"})


def bengali(text: str) -> str:
    """The text; where it is mostly Latin and not English, with each word that sounds like a known one in Bengali."""
    latin = len(_LATIN.findall(text))
    if not latin or latin <= len(_BENGALI.findall(text)):
        return text
    sounds, words = _sounds(), _WORD.findall(text)
    if sum(word.lower() in sounds.english for word in words) >= sounds.english_share * len(words):
        return text
    return _WORD.sub(lambda word: sounds.known[word[0].lower()], text)


class Sounds:
    """What `romanised.toml` says; `known` has for a Latin word in small letters the Bengali word, or itself."""

    def __init__(self) -> None:
        table = tomllib.loads((_FOLDER / "romanised.toml").read_text("utf-8"))
        self.english, self.english_share = frozenset(table["english"]), table["english_share"]
        self._of, self._latin = table["sounds"], table["latin"]
        self._left_out, self._short = table["left_out"], table["short"]
        self._joined, self._most = {**_ONE_SIGN, **table["joined"]}, table["most"]
        self._heard = {pair: cost for two, cost in table["heard"].items() for pair in (two, two[::-1])}
        # Every known word under its consonants, with what its rank costs and how it sounds.
        self._by_frame: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
        for rank, word in enumerate(_WORDS.read_text("utf-8").split(), 1):
            sounds = self._said(word)
            for frame in {_frame(sounds), _frame(sounds.replace("B", "b").replace("N", "n"))}:
                self._by_frame[frame].append((table["frequent"] * float(np.log10(rank)), word, sounds))
        self.known = Memo(self._find)

    def _find(self, word: str) -> str:
        if word in self._short:
            return str(self._short[word])
        heard = word
        for letters, sound in self._latin.items():
            heard = heard.replace(letters, sound)
        heard = _DOUBLE.sub(r"\1", _ASPIRATE.sub("H", heard))
        best = (math.inf, word)
        for rare, known, sounds in self._by_frame.get(_frame(heard), ()):
            cost = self._cost(heard, sounds, min(self._most, best[0] - rare + 1e-9))  # which no sum's rounding passes
            if cost <= self._most:
                best = min(best, (cost + rare, known))
        return best[1]

    def _said(self, word: str) -> str:
        """A Bengali word in Latin sounds."""
        for letters, as_one in self._joined.items():
            word = word.replace(letters, as_one)
        found = ""
        for place, letter in enumerate(word):
            found += self._of.get(letter, "")
            after, cluster = word[place + 1 : place + 2], word[place - 1 : place] in ("্", "ঃ")
            # A consonant without a sign is said with a vowel, but mostly not at the end of a word, if it is no cluster.
            if ("ক" <= letter <= "হ" or letter in "\u09dc\u09ddB") and (after or cluster):
                found += "" if after in _SIGNS or after == "B" else "O"
        return _DOUBLE.sub(r"\1", found)

    def _cost(self, heard: str, sounds: str, limit: float) -> float:
        """What a Latin word costs as a spelling of Bengali sounds: an edit distance, infinite above `limit`."""
        out, heard_as = self._left_out, self._heard
        without = [out.get(letter, 1.0) for letter in sounds]
        row: list[float] = [0.0, *accumulate(without)]
        for letter in heard:
            last, alone = row, out.get(letter, 1.0)
            before = last[0] + alone
            row = [before]
            for place, other in enumerate(sounds):
                same = last[place] if letter == other else last[place] + heard_as.get(letter + other, 1.0)
                put_in, left_out = last[place + 1] + alone, before + without[place]
                before = same if same <= put_in else put_in
                before = before if before <= left_out else left_out
                row.append(before)
            if min(row) > limit:  # no way through the table gets cheaper
                return math.inf
        return row[-1]


def _frame(sounds: str) -> str:
    """The consonants of a word, by which it is looked up, less what people leave out or write in several ways."""
    return _DOUBLE.sub(r"\1", sounds.replace("ng", "n").translate(_TO_FRAME))


@lru_cache(maxsize=1)
def standard() -> Memo[str]:
    """Of each normalised word its standard form by `dialects.toml`, or itself: তোঁয়ার and তুমার are তোমার."""
    # As NFC has it, and bn1: য় and ড় are two code points.
    table = tomllib.loads(unicodedata.normalize("NFC", (_FOLDER / "dialects.toml").read_text("utf-8")))
    words = {normalize(word): normalize(forms).split() for word, forms in table["words"].items()}
    forms = {form: word for word, regional in words.items() for form in regional}
    known = {*normalize(_WORDS.read_text("utf-8")).split(), *words}
    sounds, endings = (
        [(re.compile(pattern.replace("C", _CONSONANT)), to) for pattern, to in table["rules"][name]]
        for name in ("sounds", "endings")
    )

    def found(word: str) -> str:
        if word in known or word in forms or not _BENGALI.search(word):
            return forms.get(word, word)
        heard = [word, *(rule.sub(to, word) for rule, to in sounds if rule.search(word))]
        # A rule counts where it leads to a known word.
        ended = (rule.sub(to, each) for each in heard for rule, to in endings if rule.search(each))
        return next((forms.get(each, each) for each in chain(heard, ended) if each in forms or each in known), word)

    return Memo(found)


_sounds = lru_cache(maxsize=1)(Sounds)
