"""The tokens of csebuetnlp's multilingual ROUGE for Bengali, as the tables of XL-Sum and BanglaNLG were scored.

Raw text is lowercased; control and joining characters are dropped, punctuation parts words and is dropped; letters,
numbers and symbols are parted as OpenNMT's tokenizer in its mode "aggressive" does; words of more than three
characters lose the endings of Rafi Kamal's stemmer (BanglaKit's port, MIT). য় there is one code point, so a text with
য় as two is stemmed otherwise: nothing is normalised, and scores hang on the spelling.
"""

from __future__ import annotations

import regex

from bnbench.metrics.normalization import Memo

# One ending of each row is taken off, in this order, the first that fits in a row; Y stands for the one code point য়.
_ROWS = (
    "ই ও তো",
    "কে তে রা",
    "চ্ছি চ্ছিল চ্ছে চ্ছিস চ্ছিলেন চ্ছ Yেছে েছ েছে েছেন রছ>র রব>র েল েলো ওYা েYে>া Y Yে Yেছিল েছিল েYেছিলেন>া েছিলেন"
    " লেন দের ের ার েন িস ছিলি ছি ছে লি বি ে",
    "টি টির েরটা েরটার টা টার গুলো গুলোর",
)
_ENDINGS = tuple(
    tuple((ending, put) for ending, _, put in (rule.partition(">") for rule in row.replace("Y", "\u09df").split()))
    for row in _ROWS
)
_SIGNS = "\u09be\u09bf\u09c0\u09c7\u09c1\u09c2\u09cb"  # of these alone no stem is made
_SHORTEST = 4  # characters of a word that is stemmed

_DROPPED = regex.compile(r"(?V1)[\p{C}\ufffd--[\t\n\r]]+")
_PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]+")
# A mark that stands alone, on a blank, goes with what OpenNMT's tokenizer calls that blank.
_MARK_ALONE = regex.compile(r" (?=\p{M})")
_PARTS = regex.compile(r"\p{L}[\p{L}\p{M}]*+|\p{N}[\p{N}\p{M}]*+|(?:％0020)?\p{M}++|[^\s\p{M}]\p{M}*+")
_CJK = regex.compile("([㐀-䶿一-鿿豈-﫿\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f])")
_KEPT = str.maketrans("▁￨￭", "_│■")  # characters that it keeps for itself


def tokens(text: str) -> list[str]:
    """The stemmed words, numbers and symbols of a raw text."""
    words = " ".join(_PUNCTUATION.sub(" ", _DROPPED.sub("", text.lower())).split())
    parts = " ".join(_PARTS.findall(_MARK_ALONE.sub(" ％0020", words))).translate(_KEPT)
    return [stem for stem in map(_STEMS.__getitem__, _CJK.sub(r" \1 ", parts).split()) if stem]


def _stem(word: str) -> str:
    for row in _ENDINGS if len(word) >= _SHORTEST else ():
        for ending, put in row:
            if word.endswith(ending):
                left = word[: -len(ending)]
                word = left + put if put or left.strip(_SIGNS) else word
                break
    return word


_STEMS = Memo(_stem)
