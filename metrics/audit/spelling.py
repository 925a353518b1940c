"""Eight ways in which one Bengali text is spelt by different keyboards and programs. No score may notice them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import count

Spelling = Callable[[str], str]

_NUKTA = {"\u09df": "\u09af\u09bc", "\u09dc": "\u09a1\u09bc", "\u09dd": "\u09a2\u09bc"}
_VOWELS = {"\u09cb": "\u09c7\u09be", "\u09cc": "\u09c7\u09d7"}
_DIGITS = dict(zip("০১২৩৪৫৬৭৮৯", "0123456789", strict=True))
_DANDA = re.compile("(?<=[\u0985-\u09b9\u09bc-\u09ce\u09d7\u09dc-\u09e3])।")
_OLD_RA_YA, _NEW_RA_YA = "\u09b0\u09cd\u200d\u09af", "\u09b0\u200d\u09cd\u09af"


def decompose_nukta(text: str) -> str:
    """য় ড় ঢ় as two code points, as Unicode's normal forms have them."""
    return _replaced(text, _NUKTA.items())


def compose_nukta(text: str) -> str:
    """য় ড় ঢ় as one code point."""
    return _replaced(text, ((two, one) for one, two in _NUKTA.items()))


def _replaced(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text


def _swapped(pairs: Mapping[str, str]) -> Spelling:
    """Each left side as its right one; where there is none, each right side as its left one."""

    def swap(text: str) -> str:
        changed = _replaced(text, pairs.items())
        return changed if changed != text else _replaced(text, ((right, left) for left, right in pairs.items()))

    return swap


def _danda_typed(text: str) -> str:
    """The dandas after a Bengali letter as . and | in turn."""
    number = count()
    return _DANDA.sub(lambda _: ".|"[next(number) % 2], text)


SPELLINGS: Mapping[str, Spelling] = {
    "nukta as one sign or two": _swapped(_NUKTA),
    "danda after a blank": lambda text: re.sub("(?<=\\S)।", " ।", text),
    "danda as . or |": _danda_typed,
    "ZWNJ after hasanta": lambda text: re.sub("\u09cd(?![\u200c\u200d])", "\u09cd\u200c", text),
    "ra-ya in two encodings": _swapped({_NEW_RA_YA: _OLD_RA_YA}),
    "digits Bengali or ASCII": _swapped(_DIGITS),
    "khanda ta as ta and ZWJ": _swapped({"\u09ce": "\u09a4\u09cd\u200d"}),
    "o, au as one sign or two": _swapped(_VOWELS),
}
"""By name; a text in which there is nothing to spell otherwise comes back as it is."""
