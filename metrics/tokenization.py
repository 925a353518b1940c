"""Tokens of Bengali text: words with their signs, numbers whole, punctuation apart.

`bn1` is the tokeniser to use. The others are for comparability: `graphemes` (user-perceived characters), `intl`
(sacrebleu's, which keeps danda on a word that ends in a digit), `indicnlp` (indic-nlp-library's, which splits
১,৫০০.৭৫ and leaves “ ” ৳ attached).

Python's own `\\w+` must not be used on Bengali: it leaves out vowel signs and hasanta and splits two words in three
(বুঝতে: ব, ঝত).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain

import regex

from bnbench.metrics.errors import UsageError
from bnbench.metrics.normalization import CHANGEABLE_LINE, UNCHANGED_WORD, Memo, Normalizer, normalizer

_CHARS = r"\p{L}\p{M}\p{N}\u200c\u200d"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MAIL = rf"[A-Za-z0-9][A-Za-z0-9._%+-]{{0,63}}@{_LABEL}(?:\.{_LABEL}){{1,4}}(?![{_CHARS}])"
_URL = r"https?://[^\s।॥“”\"<>]*[^\s।॥“”’!-/:-@\[-`{-~]"
_PICTURE = r"\p{Extended_Pictographic}[\ufe0f\p{Emoji_Modifier}\U000E0020-\U000E007F]*"
_EMOJI = rf"[0-9]\ufe0f?\u20e3|\p{{Regional_Indicator}}{{2}}|{_PICTURE}(?:\u200d{_PICTURE})*"
_NUMBER = rf"\p{{Nd}}++(?:[.,:]\p{{Nd}}++)*+[{_CHARS}]*+"
_WORD = rf"[{_CHARS}]++(?:(?<=[A-Za-z])['’][A-Za-z]++[{_CHARS}]*+)*+"
_TOKEN = regex.compile(rf"{_MAIL}|{_URL}|{_EMOJI}|{_NUMBER}|{_WORD}|\S")
# the same grammar for words of Bengali, Latin letters and punctuation without digits, at half the price
_PLAIN = re.compile(
    "[!-/;-?A-~\u0964\u0965\u0981-\u0983\u0985-\u098c\u098f\u0990\u0993-\u09a8\u09aa-\u09b0\u09b2\u09b6-\u09b9"
    "\u09bc-\u09c4\u09c7\u09c8\u09cb-\u09ce\u09d7\u09dc\u09dd\u09df-\u09e3“”‘’–—…]+"
)
_PLAIN_TOKEN = re.compile("[A-Za-z\u0981-\u09e3]++(?:(?<=[A-Za-z])['’][A-Za-z]++[A-Za-z\u0981-\u09e3]*+)*+|.")
_HAS_WORD = regex.compile(r"[\p{L}\p{M}\p{N}\p{Extended_Pictographic}\p{Regional_Indicator}\u20e3]")
_GRAPHEME = regex.compile(r"\X")

SENTENCE_ENDS = frozenset("।॥?!")
"""Tokens that end a sentence. `.` does not: after Bengali it has become danda, and after English it is ambiguous."""
_CLOSING = frozenset("”’\"')]»")


def _bn1(word: str) -> tuple[str, ...]:
    if _PLAIN.fullmatch(word) and "://" not in word:
        return tuple(_PLAIN_TOKEN.findall(word))
    return tuple(_TOKEN.findall(word))


def _graphemes(word: str) -> tuple[str, ...]:
    return tuple(_GRAPHEME.findall(word))


def _intl(text: str) -> list[str]:
    joined: str = _intl_tokenizer()(text)
    return joined.split()


@lru_cache(maxsize=1)
def _intl_tokenizer() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International

    tokenizer: Callable[[str], str] = TokenizerV14International()
    return tokenizer


def _indicnlp(text: str) -> list[str]:
    from indicnlp.tokenize.indic_tokenize import trivial_tokenize

    return [token for token in trivial_tokenize(text, lang="bn") if token.strip()]


_BY_WORD: dict[str, Callable[[str], tuple[str, ...]]] = {"bn1": _bn1, "graphemes": _graphemes}
_BY_TEXT: dict[str, Callable[[str], list[str]]] = {"indicnlp": _indicnlp, "intl": _intl}
TOKENIZERS = (*_BY_WORD, *_BY_TEXT)


def is_word(token: str) -> bool:
    """Whether a token has a letter, a digit or an emoji; the others are punctuation and symbols, which ROUGE leaves
    out.
    """
    return token[:1].isalnum() or _HAS_WORD.search(token) is not None


@dataclass(frozen=True)
class Preparation:
    """How raw texts become tokens: a normaliser and a tokeniser. Hashable, so that metrics with equal ones share the
    work.
    """

    normalizer: Normalizer = field(default_factory=Normalizer)
    tokenizer: str = "bn1"

    def __reduce__(self) -> tuple[Callable[..., Preparation], tuple[Normalizer, str]]:
        return _preparation, (self.normalizer, self.tokenizer)  # without its memory of words

    def __post_init__(self) -> None:
        if self.tokenizer not in TOKENIZERS:
            raise UsageError(f"no tokeniser {self.tokenizer!r}; there are {', '.join(TOKENIZERS)}")

    @property
    def choices(self) -> dict[str, str]:
        """The part of a signature: norm and tok."""
        return {"norm": self.normalizer.signature, "tok": self.tokenizer}

    def tokens(self, text: str) -> list[str]:
        """All tokens, punctuation included. bn1 and graphemes drop nothing but whitespace."""
        if self.tokenizer in _BY_TEXT:
            return _BY_TEXT[self.tokenizer](self.normalizer(text))
        return list(chain.from_iterable(map(self.pieces.__getitem__, self.normalizer.beyond_words(text).split())))

    @property
    def by_word(self) -> bool:
        """Whether the tokens of a text are those of its whitespace-delimited words, one word after the other."""
        return self.tokenizer in _BY_WORD

    @cached_property
    def pieces(self) -> Memo[tuple[str, ...]]:
        """The tokens of each word of `normalizer.beyond_words(text)`; only where `by_word`."""
        split, words = _BY_WORD[self.tokenizer], self.normalizer.words
        if self.tokenizer == "bn1":
            return Memo(lambda raw: (raw,) if UNCHANGED_WORD.fullmatch(raw) else split(words[raw]))
        return Memo(lambda raw: split(words[raw]))

    def learn(self, words: Collection[str]) -> Collection[str]:
        """Have the `pieces` of many words at hand, at half the price of asking for each; only where `by_word`.

        Gives back the words whose pieces must be asked for; the others are known at sight to be one token, themselves.
        """
        if self.tokenizer != "bn1":
            return set(words)
        # The blank is a last line to be found: after it, nothing is left to be searched in vain.
        several = set(CHANGEABLE_LINE.findall("\n".join([*words, " ", ""]))) - {" "}
        new = self.pieces.unknown(several)
        self.normalizer.learn(new)
        self.pieces.learn(new, map(_bn1, map(self.normalizer.words.__getitem__, new)))
        return several

    def split_sentences(self, text: str) -> list[str]:
        """The normalised text cut at line ends and after । ॥ ? ! with the quotes or brackets that close there."""
        return [sentence for line in self.normalizer(text).splitlines() for sentence in _sentences(line)]


def _sentences(line: str) -> Iterator[str]:
    sentence, ended = "", False
    for word in line.split():
        for token in _bn1(word):
            if ended and token not in SENTENCE_ENDS and token not in _CLOSING:
                yield sentence.strip()
                sentence, ended = "", False
            sentence += token
            ended = ended or token in SENTENCE_ENDS
        sentence += " "
    if sentence.strip():
        yield sentence.strip()


@lru_cache(maxsize=64)
def _preparation(norm: Normalizer, tokenizer: str) -> Preparation:
    return Preparation(norm, tokenizer)


def preparation(norm: str | Normalizer = "bn1", tokenizer: str = "bn1") -> Preparation:
    """The preparation of these choices; one object for equal arguments, so that its memory of words is shared."""
    return _preparation(normalizer(norm), tokenizer)


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
