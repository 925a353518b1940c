"""Bengali text made comparable: one spelling for what readers see as one word. For scoring only; keep the raw text.

Unicode has several spellings for the same Bengali word, and programs mix them freely. Scored against itself in
another spelling, a text gets BLEU 8-31 for most of these differences. `bn1` is a list of named rules (`RULES`), each
of which a user can switch off, and the signature then says so: `norm:bn1-digits`. Whitespace always becomes single
spaces, line ends are kept.

What bn1 leaves alone on purpose: the colon of ৫:৩০, the separators of ১,৫০০.৭৫, ordinals (২য়), ৳, e-mail addresses,
English words, emoji with their joiners, quotation marks, hyphens, and real misspellings.

Full stops. `.` becomes `।` after a Bengali letter (a closing quote or bracket may stand between) unless a Latin
letter, a digit or another `.` follows; after a number that ends a line; and between two Bengali words without a
blank, where the first has two letters or is না and neither is an abbreviation, an initial or the end of a domain name
(…কমবে.আমি, but প্রথমআলো.কম, কি.মি., বি.বি.সি.). It stays in abbreviations: `ABBREVIATIONS` (মো. ডা. লি. নং.), single
consonants (ড. প. ক.), and initials in a row (এ. কে. ফজলুল হক, এম. এ.). A word of that list at the end of a sentence
therefore keeps its `.`; words that often end sentences (এল, কি, সে, জি, এ, ও) are not in it for that reason.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Generic, TypeVar

import regex

from bnbench.metrics.errors import InputError, UsageError

Made = TypeVar("Made")

_LETTERS = "\u0985-\u09b9\u09ce\u09dc-\u09e1\u09f0\u09f1\u09fc"
_SIGNS = "\u0981-\u0983\u09bc\u09be-\u09cd\u09d7\u09e2\u09e3\u09fe"
_BENGALI = _LETTERS + _SIGNS
_CLOSING = "”’\"')\\]»"

_ROLE = r"(?:user|assistant|system|ipython|model)\b"
_TEMPLATE = re.compile(
    rf"(?:\b{_ROLE}[ ]?)?<\|end_header_id\|>"
    rf"|(?:<\|(?:start_header_id|im_start)\|>|<start_of_turn>)(?:[ ]?{_ROLE})?"
    r"|<\|[A-Za-z0-9০-৯_]{1,40}(?:\|>|\|?$)|<end_of_turn>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>"
    r"|###[ ]?(?:Instruction|Response|Input|System|Human|Assistant)\b[ ]?:?"
)
_STRAY_CP1252 = re.compile("(?<![A-Za-z\u00c0-\u024f])\u00c2(?![A-Za-z\u00c0-\u024f])")
_INVISIBLE = regex.compile(r"(?V1)[[\p{Cc}\p{Cf}\p{Cs}]--[\t-\r\x1c-\x1f\x85\u200c\u200d\U000E0020-\U000E007F]]")
_KHANDA_TA = re.compile(f"\u09a4\u09cd\u200c*+(?:\u200d|(?![{_BENGALI}]))")
_RA_YA = re.compile("\u09b0(?:[\u200c\u200d]\u09cd|\u09cd[\u200c\u200d])\u09af")
# in an emoji sequence the joiner stands between pictographs; anywhere else it only changes how letters are drawn
_JOINER = regex.compile(
    r"\u200c|\u200d(?!\p{Extended_Pictographic})|(?<![\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f])\u200d"
)
_COLON = re.compile(f"(?<![{_BENGALI}])(?:(দু|নি|অন্ত|অত|পুন|স্বত|প্রাত|অধ|বহি):(?=[{_LETTERS}])|(মো|ডা):(?!\\S))")
_MAY_BE_VISARGA = re.compile("[\u09c1\u09bf\u09a4\u09a8\u09a7\u09cb\u09be]:")  # how the words in _COLON end
_DIGIT_RUN = re.compile(r"(?<![A-Za-z0-9০-৯._@/:+#%&=~-])[A-Za-z0-9০-৯._@/:+#%&=~-]++(?!\ufe0f?\u20e3)")
_LATIN = re.compile("[A-Za-z]")
_PIPE = re.compile("\\|(?![A-Za-z_])")
_FULL_STOP = re.compile(
    f"\\.(?:(?<=[{_BENGALI}]\\.)|(?<=[{_BENGALI}][{_CLOSING}]\\.)|(?<=[0-9০-৯]\\.)(?= *(?:\\n|$)))"
    f"(?:(?=(?P<glued>[{_LETTERS}][{_BENGALI}]*))|(?![\\w{_SIGNS}.@/\\\\-]))"
)
_BENGALI_BEFORE = re.compile(f"[{_BENGALI}](?:[{_CLOSING}]?|.*[0-9০-৯])\\s*$")
_BENGALI_LETTER = re.compile(f"[{_LETTERS}]")
_LAST_WORD = re.compile(f"(?<![{_BENGALI}])[{_BENGALI}]+$")
_SPELT = (
    "এ|বি|সি|ডি|ই|এফ|জি|এইচ|আই|জে|কে|এল|এম|এন|ও|পি|কিউ|আর|এস|টি|ইউ|ভি|ডব্লিউ|এক্স|ও(?:\u09af\u09bc|\u09df)াই|জেড|[ক-হ]"
)
_INITIAL_BEFORE = re.compile(f"(?<![{_BENGALI}])(?:{_SPELT})\\.\\s?$")
_INITIAL_AFTER = re.compile(f"\\s?(?:{_SPELT})\\.")
_INITIAL = re.compile(_SPELT)

_TITLES = "মো মোঃ মোসা মোছা মোহা মুহা ডা ডাঃ মি মিঃ অধ্যা প্রফ প্রফে ইঞ্জি অ্যাড এড"
_FIRMS_AND_UNITS = "লি লিঃ প্রা কোং রেজি নং সেমি কিমি গ্রা খ্রি খ্রিঃ খ্রী হি বাং ইং তাং সা সং সম্পা পৃ পৃঃ দ্র"
_LETTERS_OF_NAMES = "এম এফ এইচ বি ডি পি ডব্লিউ"
ABBREVIATIONS = frozenset(f"{_TITLES} {_FIRMS_AND_UNITS} {_LETTERS_OF_NAMES}".split())
"""Words whose full stop does not end a sentence."""
_DOMAINS = frozenset(["কম", "নেট", "অর্গ", "ইনফো", "বিডি", "গভ", "এডু"])


@dataclass(frozen=True)
class Rule:
    """One step of bn1: its name, why it exists, what it does, and how far it looks.

    `scope` is "text" (before all others), "word" (sees one whitespace-delimited word) or "sentence" (after all others).
    """

    name: str
    reason: str
    apply: Callable[[str], str] = field(repr=False)
    scope: str = "word"


def _template(text: str) -> str:
    while (stripped := _TEMPLATE.sub(" ", text)) != text:  # what is left can be a remnant again
        text = stripped
    return text


def _may_hold_template(text: str) -> bool:
    return "<" in text or "[" in text or "#" in text


def _holds_template(text: str) -> bool:
    return ("<" in text or "[" in text or "###" in text) and _TEMPLATE.search(text) is not None


def _khanda_ta(word: str) -> str:
    return _KHANDA_TA.sub("\u09ce", word) if "\u09a4\u09cd" in word else word


def _joiners(word: str) -> str:
    return _JOINER.sub("", word) if "\u200c" in word or "\u200d" in word else word


def _nfc(word: str) -> str:
    return unicodedata.normalize("NFC", word)


def _visarga(word: str) -> str:
    return _COLON.sub(lambda match: f"{match[1] or match[2]}\u0983", word) if ":" in word else word


_TO_ASCII = {0x09E6 + d: 0x30 + d for d in range(10)}
_TO_BENGALI = {0x30 + d: 0x09E6 + d for d in range(10)}


def _digits(word: str) -> str:
    return _DIGIT_RUN.sub(lambda run: run[0].translate(_TO_ASCII if _LATIN.search(run[0]) else _TO_BENGALI), word)


def _danda(text: str) -> str:
    text = text.replace("\u09f7", "।")
    return _PIPE.sub(_pipe, text) if "|" in text else text


def _pipe(match: re.Match[str]) -> str:
    line = match.string[max(0, match.start() - 40) : match.start()].rpartition("\n")[2].replace("|", "")
    return "।" if _BENGALI_BEFORE.search(line) else "|"


def _full_stop(text: str) -> str:
    return _FULL_STOP.sub(_sentence_end, text) if "." in text else text


def _sentence_end(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 40) : match.start()]
    if before[-1].isdigit():
        return "।" if _BENGALI_LETTER.search(before.rpartition("\n")[2]) else "."  # alone on its line it is a label: ১.
    found = _LAST_WORD.search(before)
    if found is None:  # a closing quote stands between, or a word of forty letters
        return "." if match["glued"] else "।"
    word = _nfc(found[0])
    after = match.string[match.end() : match.end() + 20]
    if _is_abbreviation(word, before[: found.start()], after):
        return "."
    return "।" if not match["glued"] or _ends_without_blank(word, _nfc(match["glued"]), after) else "."


def _ends_without_blank(word: str, following: str, after: str) -> bool:
    """Whether the stop between two words without a blank ends a sentence; not in প্রথমআলো.কম, কি.মি. or বি.বি.সি."""
    if following in _DOMAINS or following in ABBREVIATIONS or _INITIAL_AFTER.match(after) or _INITIAL.fullmatch(word):
        return False
    return word == "না" or len(_BENGALI_LETTER.findall(word)) > 1


def _is_abbreviation(word: str, before: str, after: str) -> bool:
    if word in ABBREVIATIONS or (len(word) == 1 and "ক" <= word <= "হ"):
        return True
    if not _INITIAL.fullmatch(word):
        return False
    return bool(_INITIAL_BEFORE.search(before) or _INITIAL_AFTER.match(after))


RULES: tuple[Rule, ...] = (
    Rule(
        "template", "chat-template remnants (<|eot_id|>, user<|end_header_id|>, [INST]) are not text", _template, "text"
    ),
    Rule("replacement", "U+FFFD is half a character that a token limit cut off", lambda w: w.replace("\ufffd", "")),
    Rule("cp1252", "a lone Â is what is left of a no-break space read as cp1252", lambda w: _STRAY_CP1252.sub("", w)),
    Rule(
        "invisible",
        "BOM, zero-width, bidi and control characters and lone surrogates cannot be seen",
        lambda w: _INVISIBLE.sub("", w),
    ),
    Rule("khanda_ta", "before Unicode 4.1 ৎ was written ত + hasanta + ZWJ", _khanda_ta),
    Rule(
        "ra_ya", "র‍্য is written with the joiner before or after the hasanta, or without", lambda w: _RA_YA.sub("র্য", w)
    ),
    Rule("joiners", "ZWJ and ZWNJ choose the shape of a conjunct, not its letters", _joiners),
    Rule("nfc", "য় ড় ঢ় ো ৌ exist as one code point and as two", _nfc),
    Rule("vowel_a", "অ + া looks like আ and is typed for it", lambda w: w.replace("\u0985\u09be", "\u0986")),
    Rule("visarga", "a colon is typed for visarga in দুঃখ, নিঃ-, অন্তঃ-, মোঃ", _visarga),
    Rule(
        "digits",
        "Bengali and ASCII digits are one number; ASCII beside Latin letters (MP3, a5@b.com), else Bengali",
        _digits,
    ),
    Rule("danda", "৷ (currency numerator four) and | after a Bengali word are typed for danda", _danda, "sentence"),
    Rule("full_stop", ". ends a sentence as danda does, but not in an abbreviation", _full_stop, "sentence"),
)
RULE_NAMES = tuple(rule.name for rule in RULES)
PROFILES = ("bn1", "none", "nfc", "indicnlp")

# Letters and signs in which no word rule finds anything to change: three words in four.
_UNCHANGED = (
    "(?:[\u0981-\u0983\u0986-\u098c\u098f\u0990\u0993-\u09a3\u09a5-\u09a8\u09aa-\u09b0\u09b2\u09b6-\u09b9\u09bc-\u09c4"
    "\u09c8\u09cb\u09cc\u09ce\u09e0-\u09e3]++"
    "|\u09c7(?![\u09be\u09d7])|\u0985(?!\u09be)|\u09a4(?!\u09cd(?![\u0995-\u09b9]))|\u09cd(?!\u09bc))"
)
UNCHANGED_WORD = re.compile(f"{_UNCHANGED}+")
CHANGEABLE_LINE = re.compile(f"(?:{_UNCHANGED}++\n)*+(.+)\n")  # others are passed over
# In words of these, which are most others, only three rules do.
_PLAIN_CHARACTERS = "[!-/;-~\u0964\u0965\u0981-\u09e3\u09f0-\u09ff]"
_PLAIN = re.compile(f"{_PLAIN_CHARACTERS}+")
_PLAIN_LINE = re.compile(f"^{_PLAIN_CHARACTERS}++$", re.MULTILINE)
_PLAIN_RULES = frozenset({"khanda_ta", "nfc", "vowel_a"})
# In a text of these (without অ + া or a colon for visarga, with joiners only in words that a blank follows) the
# sentence rules find what they would find after the word rules.
_NO_WORD_RULE_FIRST = re.compile(
    "(?:[ -~\n\u0964\u0965\u0980-\u09ff“”‘’–—…·€\u2600-\u27bf\U0001f000-\U0001faff]++"
    f"|[\u200c\u200d](?=[{_BENGALI}\u200c\u200d]++\\s))*+"
)


_LONGEST_REMEMBERED = 100  # a megabyte of one letter is not worth remembering


class Memo(dict[str, Made], Generic[Made]):
    """`function` of each word met, remembered; emptied when it holds `limit` words, so memory stays bounded."""

    def __init__(self, function: Callable[[str], Made], limit: int = 200_000) -> None:
        self.function, self.limit = function, limit

    def __missing__(self, word: str) -> Made:
        made = self.function(word)
        if len(word) <= _LONGEST_REMEMBERED:
            if len(self) >= self.limit:
                self.clear()
            self[word] = made
        return made

    def unknown(self, words: Iterable[str]) -> list[str]:
        """Those of the words that are worth remembering and not remembered yet."""
        return [word for word in words if word not in self and len(word) <= _LONGEST_REMEMBERED][: self.limit]

    def learn(self, words: Sequence[str], made: Iterable[Made]) -> None:
        """Remember what was made of these `unknown` words."""
        if len(self) + len(words) > self.limit:
            self.clear()
        self.update(zip(words, made, strict=True))


@dataclass(frozen=True)
class Normalizer:
    """Text to normalised text: `Normalizer()(text)`. `off` names bn1 rules that are not applied.

    Profiles: `bn1`; `none`; `nfc` (Unicode only); `indicnlp` (indic-nlp-library's normaliser for Bengali, for
    comparison with older papers: it turns ৫:৩০ into ৫ঃ৩০, drops ZWJ but not ZWNJ, and leaves digits, danda variants
    and ৎ as they are). Raises `UsageError` for an unknown profile or rule.
    """

    profile: str = "bn1"
    off: frozenset[str] = frozenset()

    def __reduce__(self) -> tuple[Callable[..., Normalizer], tuple[str, frozenset[str]]]:
        return _normalizer, (self.profile, self.off)  # without its memory of words

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UsageError(f"no normalisation profile {self.profile!r}; there are {', '.join(PROFILES)}")
        for name in sorted(self.off):
            if self.profile != "bn1" or name not in RULE_NAMES:
                near = difflib.get_close_matches(name, RULE_NAMES, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; {self.profile} has: {', '.join(RULE_NAMES)}"
                raise UsageError(f"{self.profile} has no rule {name!r} to switch off{hint}")

    @property
    def signature(self) -> str:
        """`bn1`, or `bn1-digits-danda` when those rules are off."""
        return "-".join([self.profile, *(name for name in RULE_NAMES if name in self.off)])

    def __call__(self, text: str) -> str:
        """The normalised text."""
        if self.profile != "bn1":
            return _OTHER_PROFILES[self.profile](text)
        normal = self._once(text)
        while normal != text and _may_hold_template(
            normal
        ):  # without its zero-width characters it may be a template remnant now
            text, normal = normal, self._once(normal)
        return normal

    def _once(self, text: str) -> str:
        for rule in self._scoped("text"):
            text = rule.apply(text)
        lines = (" ".join(filter(None, map(self.words.__getitem__, line.split()))) for line in text.splitlines())
        text = "\n".join(filter(None, lines))
        for rule in self._scoped("sentence"):
            text = rule.apply(text)
        return text

    def beyond_words(self, text: str) -> str:
        """The text with all that its words cannot be given one by one; what is left to do is `words[...]` of each."""
        if self.profile != "bn1":
            return self(text)
        bracketed = _may_hold_template(text)
        if not bracketed and "." not in text and "|" not in text and "\u09f7" not in text:
            return text
        if (
            _NO_WORD_RULE_FIRST.fullmatch(text) is None
            or "\u0985\u09be" in text
            or (_MAY_BE_VISARGA.search(text) and _COLON.search(text))
            or (bracketed and _holds_template(text))
        ):
            return self(text)
        for rule in self._scoped("sentence"):
            text = rule.apply(text)
        return text

    @cached_property
    def words(self) -> Memo[str]:
        """Whitespace-delimited words after the rules that see no further (bn1; other profiles have done all
        already).
        """
        if self.profile != "bn1":
            return Memo(str)
        rules = [(rule.name in _PLAIN_RULES, rule.apply) for rule in self._scoped("word")]
        every, plain = [apply for _, apply in rules], [apply for is_plain, apply in rules if is_plain]

        def normalised(word: str) -> str:
            if UNCHANGED_WORD.fullmatch(word):
                return word
            for apply in plain if _PLAIN.fullmatch(word) else every:
                word = apply(word)
            return word

        return Memo(normalised)

    def learn(self, words: Iterable[str]) -> None:
        """Have many words in `words`, for less than asking for each; whitespace may not stand in them."""
        if self.profile != "bn1":
            return
        plain = _PLAIN_LINE.findall("\n".join(self.words.unknown(words)))
        text = "\n".join(plain)
        for rule in self._scoped("word"):
            if rule.name in _PLAIN_RULES:
                text = rule.apply(text)
        self.words.learn(plain, text.split("\n") if plain else ())

    def _scoped(self, scope: str) -> list[Rule]:
        return self._rules[scope]

    @cached_property
    def _rules(self) -> dict[str, list[Rule]]:
        on = [rule for rule in RULES if rule.name not in self.off]
        return {scope: [rule for rule in on if rule.scope == scope] for scope in ("text", "word", "sentence")}


def _indicnlp(text: str) -> str:
    normalised: str = _indicnlp_normalizer().normalize(text)
    return normalised


@lru_cache(maxsize=1)
def _indicnlp_normalizer():  # type: ignore[no-untyped-def]  # the library has no types
    from indicnlp.normalize.indic_normalize import IndicNormalizerFactory

    return IndicNormalizerFactory().get_normalizer("bn")


_OTHER_PROFILES: dict[str, Callable[[str], str]] = {"none": lambda text: text, "nfc": _nfc, "indicnlp": _indicnlp}


@lru_cache(maxsize=64)
def _normalizer(profile: str, off: frozenset[str]) -> Normalizer:
    return Normalizer(profile, off)


def normalizer(profile: str | Normalizer = "bn1", off: Collection[str] = ()) -> Normalizer:
    """The normaliser of that profile; one object for equal arguments, so that its memory of words is shared."""
    return profile if isinstance(profile, Normalizer) else _normalizer(profile, frozenset(off))


def normalize(text: str, *, profile: str = "bn1", off: Collection[str] = ()) -> str:
    """`text` in one spelling, see the module's docstring. Raises `InputError` when `text` is not a string."""
    if not isinstance(text, str):
        raise InputError(f"only text can be normalised, not {type(text).__name__}")
    return normalizer(profile, off)(text)


def flags(text: str) -> frozenset[str]:
    """What bn1 strips from a raw text and a reader should know of: "template" (chat-template remnants), "replacement"
    (U+FFFD).
    """
    found = {"template"} if _TEMPLATE.search(text) else set()
    return frozenset(found | ({"replacement"} if "\ufffd" in text else set()))
