"""Tokens of Bengali text: words with their signs, numbers whole, punctuation apart.

`bn1` is the tokeniser to use. The others are for comparability: `graphemes` (user-perceived characters), `intl`
(sacrebleu's, which keeps danda on a word that ends in a digit), `indicnlp` (indic-nlp-library's, which splits
১,৫০০.৭৫ and leaves “ ” ৳ attached; needs `pip install ".[compare]"`), `csebuetnlp` (the stems of XL-Sum's ROUGE).

Python's own `\\w+` is not for Bengali: it drops vowel signs and hasanta and splits two words in three (বুঝতে: ব, ঝত).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

import regex

from bnbench.metrics.exceptions import UsageError, require
from bnbench.metrics.normalization import EMOJI, UNCHANGED, Memo, Normalizer, normalizer, versioned

_CHARS = r"\p{L}\p{M}\p{N}\u200c\u200d"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MAIL = rf"[A-Za-z0-9][A-Za-z0-9._%+-]{{0,63}}@{_LABEL}(?:\.{_LABEL}){{1,4}}(?![{_CHARS}])"
_URL = r"https?://[^\s।॥“”\"<>]*[^\s।॥“”’!-/:-@\[-`{-~]"
_PICTURE = rf"{EMOJI}[\ufe0f\p{{Emoji_Modifier}}\U000E0020-\U000E007F]*"
_EMOJI = rf"[0-9]\ufe0f?\u20e3|\p{{Regional_Indicator}}{{2}}|{_PICTURE}(?:\u200d{_PICTURE})*"
_NUMBER = rf"\p{{Nd}}++(?:[.,:]\p{{Nd}}++)*+[{_CHARS}]*+"
_WORD = rf"[{_CHARS}]++(?:(?<=[A-Za-z])['’][A-Za-z]++[{_CHARS}]*+)*+"
_TOKEN = regex.compile(rf"{_MAIL}|{_URL}|{_EMOJI}|{_NUMBER}|{_WORD}|\S")
_HAS_WORD = regex.compile(rf"[\p{{L}}\p{{M}}\p{{N}}\p{{Regional_Indicator}}\u20e3]|{EMOJI}")
# Of a row of flags \X counts all that stand before each.
_GRAPHEME = regex.compile(r"\p{Regional_Indicator}{2}(?![\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}])|\X")

_CUT = Memo[Sequence[str]](_TOKEN.findall)

SENTENCE_ENDS = frozenset("।॥?!")
"""Tokens that end a sentence. `.` does not: after Bengali it has become danda, after English it is ambiguous."""
_CLOSING = frozenset("”’\"')]»")

# Two tokenisers cut each whitespace-delimited word by itself, two look at the whole text.
BY_WORD: dict[str, Callable[[str], Sequence[str]]] = {"bn1": _TOKEN.findall, "graphemes": _GRAPHEME.findall}
TOKENIZERS = (*BY_WORD, "indicnlp", "intl", "csebuetnlp")


@lru_cache(maxsize=1)
def _by_text(tokenizer: str) -> Callable[[str], list[str]]:
    if tokenizer == "intl":
        module = require("sacrebleu.tokenizers.tokenizer_intl", extra="compare", by='the tokeniser "intl"')
        split = module.TokenizerV14International()
        return lambda text: split(text).split()
    if tokenizer == "csebuetnlp":
        return _csebuetnlp
    module = require("indicnlp.tokenize.indic_tokenize", extra="compare", by='the tokeniser "indicnlp"')
    return lambda text: [token for token in module.trivial_tokenize(text, lang="bn") if token.strip()]


is_word = Memo(lambda token: token[:1].isalnum() or _HAS_WORD.search(token) is not None).__getitem__
"""Whether a token has a letter, a digit or an emoji, and is no punctuation or symbol, which ROUGE leaves out."""


@dataclass(frozen=True)
class Preparation:
    """How raw texts become tokens: a normaliser and a tokeniser. Metrics with equal ones share the work."""

    normalizer: Normalizer = field(default_factory=Normalizer)
    tokenizer: str = "bn1"

    @property
    def choices(self) -> dict[str, str]:
        """The part of a signature: norm and tok."""
        return {"norm": self.normalizer.signature, "tok": versioned(self.tokenizer)}

    def tokens(self, text: str) -> list[str]:
        """All tokens, punctuation included. bn1 and graphemes drop nothing but whitespace."""
        if self.tokenizer not in BY_WORD:
            return _by_text(self.tokenizer)(self.normalizer(text))
        return list(chain.from_iterable(map(self.pieces.__getitem__, self.normalizer.beyond_words(text).split())))

    @property
    @lru_cache(maxsize=64)  # noqa: B019 - one memory for all equal ones is what is wanted
    def pieces(self) -> Memo[tuple[str, ...]]:
        """The tokens of each word of `normalizer.beyond_words(text)`; only where the tokeniser is of `BY_WORD`."""
        words, split, bn1 = self.normalizer.words, BY_WORD[self.tokenizer], self.tokenizer == "bn1"
        return Memo(lambda raw: (raw,) if bn1 and UNCHANGED.fullmatch(raw) else tuple(split(words[raw])))

    def split_sentences(self, text: str) -> list[str]:
        """The normalised text cut at line ends and after । ॥ ? ! with the quotes or brackets that close there."""
        found: list[str] = []
        for line in self.normalizer(text).splitlines():
            sentence, ended = "", False
            for word in line.split():
                for token in _CUT[word]:
                    if ended and token not in SENTENCE_ENDS and token not in _CLOSING:
                        found.append(sentence)
                        sentence, ended = "", False
                    sentence += token
                    ended = ended or token in SENTENCE_ENDS
                sentence += " "
            found.append(sentence)
        return [sentence.strip() for sentence in found if sentence.strip()]


def preparation(norm: str | Normalizer = "bn1", tokenizer: str = "bn1") -> Preparation:
    """The preparation of these choices; UsageError for a tokeniser that is not known."""
    if tokenizer not in TOKENIZERS:
        raise UsageError(f"no tokeniser {tokenizer!r}; there are {', '.join(TOKENIZERS)}")
    return Preparation(normalizer(norm), tokenizer)


def tokenize(text: str, *, norm: str | Normalizer = "bn1", tokenizer: str = "bn1") -> list[str]:
    """The tokens of a text after normalisation, punctuation included."""
    return preparation(norm, tokenizer).tokens(text)


def split_sentences(text: str, *, norm: str | Normalizer = "bn1") -> list[str]:
    """The sentences of a text after normalisation."""
    return preparation(norm).split_sentences(text)


class BengaliTokenizer:
    """For other packages: `rouge_score.rouge_scorer.RougeScorer([...], tokenizer=BengaliTokenizer())` as it is.

    For sacrebleu, score `BengaliTokenizer(punctuation=True)(text)` (tokens joined by spaces) with `tokenize="none"`.
    """

    def __init__(self, norm: str | Normalizer = "bn1", tokenizer: str = "bn1", *, punctuation: bool = False) -> None:
        self._preparation, self._punctuation = preparation(norm, tokenizer), punctuation

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text; words only, unless `punctuation`."""
        tokens = self._preparation.tokens(text)
        return tokens if self._punctuation else list(filter(is_word, tokens))

    def __call__(self, text: str) -> str:
        """The tokens joined by spaces."""
        return " ".join(self.tokenize(text))

    def sentences(self, texts: Sequence[str]) -> list[str]:
        """Each text with one sentence a line, as rouge-score wants it for rougeLsum."""
        return ["\n".join(self._preparation.split_sentences(text)) for text in texts]


# `csebuetnlp`: the tokens of csebuetnlp's multilingual ROUGE for Bengali, as the tables of XL-Sum and BanglaNLG were
# scored. Raw text is lowercased; control and joining characters are dropped, punctuation parts words and is dropped;
# letters, numbers and symbols are parted as OpenNMT's tokenizer in its mode "aggressive" does; words of more than three
# characters lose the endings of Rafi Kamal's stemmer (BanglaKit's port, MIT). য় there is one code point, so a text with
# য় as two is stemmed otherwise: nothing is normalised, and scores hang on the spelling.
# One ending of each row is taken off, in this order, the first that fits in a row; Y stands for the one code point য়.
_ROWS = (
    "ই ও তো",
    "কে তে রা",
    "চ্ছি চ্ছিল চ্ছে চ্ছিস চ্ছিলেন চ্ছ Yেছে েছ েছে েছেন রছ>র রব>র েল েলো ওYা েYে>া Y Yে Yেছিল েছিল েYেছিলেন>া েছিলেন"
    " লেন দের ের ার েন িস ছিলি ছি ছে লি বি ে",
    "টি টির েরটা েরটার টা টার গুলো গুলোর",
)
_ENDINGS = [[rule.partition(">")[::2] for rule in row.replace("Y", "\u09df").split()] for row in _ROWS]
_VOWEL_SIGNS = "\u09be\u09bf\u09c0\u09c7\u09c1\u09c2\u09cb"  # of these alone no stem is made
_STEMMED_FROM = 4  # characters of a word that is stemmed

_DROPPED = regex.compile(r"(?V1)[\p{C}\ufffd--[\t\n\r]]+")
_MARKS = regex.compile(r"[\p{P}$+<=>^`|~]+")
# A mark that stands alone, on a blank, goes with what OpenNMT's tokenizer calls that blank.
_MARK_ALONE = regex.compile(r" (?=\p{M})")
_PARTS = regex.compile(r"\p{L}[\p{L}\p{M}]*+|\p{N}[\p{N}\p{M}]*+|(?:％0020)?\p{M}++|[^\s\p{M}]\p{M}*+")
_CJK = regex.compile("([㐀-䶿一-鿿豈-﫿\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f])")
_KEPT = str.maketrans("▁￨￭", "_│■")  # characters that it keeps for itself


def _csebuetnlp(text: str) -> list[str]:
    """The stemmed words, numbers and symbols of a raw text."""
    words = " ".join(_MARKS.sub(" ", _DROPPED.sub("", text.lower())).split())
    parts = " ".join(_PARTS.findall(_MARK_ALONE.sub(" ％0020", words))).translate(_KEPT)
    return [stem for stem in map(_STEMS.__getitem__, _CJK.sub(r" \1 ", parts).split()) if stem]


def _stem(word: str) -> str:
    for row in _ENDINGS if len(word) >= _STEMMED_FROM else ():
        for ending, put in row:
            if word.endswith(ending):
                left = word[: -len(ending)]
                word = left + put if put or left.strip(_VOWEL_SIGNS) else word
                break
    return word


_STEMS = Memo(_stem)
