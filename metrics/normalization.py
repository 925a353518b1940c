"""Bengali text made comparable: one spelling for what readers see as one word. For scoring only; keep the raw text.

Scored against itself in another spelling, a text gets BLEU 8-31 for most of these differences. `bn1` is a list of named
rules (`RULES`), each of which a user can switch off, and the signature then says so: `norm:bn1-digits`. Whitespace
always becomes single spaces, line ends are kept. What bn1 leaves alone on purpose: the colon of ৫:৩০, the separators of
১,৫০০.৭৫, ordinals (২য়), ৳, e-mail addresses, English words, emoji with their joiners, quotation marks, hyphens, and
real misspellings.

Full stops. `.` becomes `।` after a Bengali letter (a closing quote or bracket may stand between) unless a Latin
letter, a digit or another `.` follows; after a number that ends a line; and between two Bengali words without a
blank, where the first has two letters or is না and neither is an abbreviation, an initial or the end of a domain name
(…কমবে.আমি, but প্রথমআলো.কম, কি.মি., বি.বি.সি.). It stays in abbreviations: `ABBREVIATIONS` (মো. ডা. লি. নং.), single
letters that more follows on their line (ড. রহমান, আ. লীগ) or that are alone on it (ক.), and initials in a row (এ. কে.
ফজলুল হক, শ. ম.). A word of that list at the end of a sentence keeps its `.`; words that often end sentences (এল, কি,
সে, এ, ও; ন, "not" in Chattogram, হ, ল, ত) are in none of both for that reason, and are initials beside others alone.
"""

import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from operator import methodcaller
from typing import Generic, NamedTuple, TypeVar

import regex

from bnbench.metrics.exceptions import InputError, UsageError, nearest, require

Made = TypeVar("Made")

_LETTERS = "\u0985-\u09b9\u09ce\u09dc-\u09e1\u09f0\u09f1\u09fc"
_SIGNS = "\u0981-\u0983\u09bc\u09be-\u09cd\u09d7\u09e2\u09e3\u09fe"
_BENGALI = _LETTERS + _SIGNS
_CLOSING = "”’\"')\\]»"

EMOJI = r"(?:(?![0-9#*\p{Regional_Indicator}\p{Emoji_Modifier}])\p{Emoji})"
"""One emoji without what follows it. `Extended_Pictographic` had ★ ♡ ☑ too, until Unicode 17 took them out."""

_ROLE = r"(?:user|assistant|system|ipython|model)\b"
_TEMPLATE = re.compile(
    rf"(?:\b{_ROLE}[ ]?)?<\|end_header_id\|>"
    rf"|(?:<\|(?:start_header_id|im_start)\|>|<start_of_turn>)(?:[ ]?{_ROLE})?"
    r"|<\|[A-Za-z0-9০-৯_]{1,40}\|>|<end_of_turn>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>"
    r"|###[ ]?(?:Instruction|Response|Input|System|Human|Assistant)\b[ ]?:?"
)
_CUT_TEMPLATE = re.compile(r"<\|[A-Za-z0-9০-৯_]{1,40}\|?\s{0,9}$")  # by a token limit
_STRAY_CP1252 = re.compile("(?<![A-Za-z\u00c0-\u024f])\u00c2(?![A-Za-z\u00c0-\u024f])")
_INVISIBLE = regex.compile(r"(?V1)[[\p{Cc}\p{Cf}\p{Cs}]--[\t-\r\x1c-\x1f\x85\u200c\u200d\U000E0020-\U000E007F]]")
_MANY_MARKS = regex.compile(r"\P{ccc=0}{50,}+")
_NUKTA = re.compile("([\u0995-\u09b9])([\u09be-\u09cc\u09d7]++)(\u09bc++)")
_KHANDA_TA = re.compile(f"\u09a4\u09cd\u200c*+(?:\u200d|(?![{_BENGALI}]))")
_RA_YA = re.compile("\u09b0(?:[\u200c\u200d]\u09cd|\u09cd[\u200c\u200d])\u09af")
# in an emoji sequence the joiner stands between pictographs; anywhere else it only changes how letters are drawn
_JOINER = regex.compile(rf"\u200c|\u200d(?!{EMOJI})|(?<!{EMOJI}|[\p{{Emoji_Modifier}}\ufe0f])\u200d")
_COLON = re.compile(f"(?<![{_BENGALI}])(?:(দু|নি|অন্ত|অত|পুন|স্বত|প্রাত|অধ|বহি):(?=[{_LETTERS}])|(মো|ডা):(?!\\S))")
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
    "এ|বি|সি|ডি|ই|এফ|জি|এইচ|আই|জে|কে|এল|এম|এন|ও|পি|কিউ|আর|এস|টি|ইউ|ভি|ডব্লিউ|এক্স|ও(?:\u09af\u09bc|\u09df)াই|জেড|সা|[আক-হ]"
)
_INITIAL_BEFORE = re.compile(f"(?<![{_BENGALI}])(?:{_SPELT})\\. ?\\Z")  # on its line
_INITIAL_AFTER = re.compile(f"(?! ড\\.) ?(?:{_SPELT})\\.")  # a title begins a name
_INITIAL, _LETTER, _SAID = map(re.compile, (_SPELT, "[আক-হ]", "[নহলত]"))  # and the letters that are words

_TITLES = "মো মোঃ মোসা মোছা মোহা মুহা ডা ডাঃ মি মিঃ অধ্যা প্রফ প্রফে ইঞ্জি অ্যাড এড"
_FIRMS_AND_UNITS = "লি লিঃ প্রা কোং রেজি নং সেমি কিমি গ্রা খ্রি খ্রিঃ খ্রী হি বাং ইং তাং সা সং সম্পা পৃ পৃঃ দ্র"
_LETTERS_OF_NAMES = "এম এফ এইচ বি ডি পি ডব্লিউ"
ABBREVIATIONS = frozenset(f"{_TITLES} {_FIRMS_AND_UNITS} {_LETTERS_OF_NAMES}".split())
"""Words whose full stop does not end a sentence."""
_DOMAINS = frozenset(["কম", "নেট", "অর্গ", "ইনফো", "বিডি", "গভ", "এডু"])


class Rule(NamedTuple):
    """A step of bn1. `scope` names when: "text" (before all others), "word" (sees no blanks), "sentence" (at last)."""

    name: str
    apply: Callable[[str], str]
    scope: str = "word"


def _nfc(text: str) -> str:
    if len(text) > 100:  # beyond any word: Unicode's own ordering of marks takes quadratic time, and none when sorted
        text = _MANY_MARKS.sub(lambda marks: "".join(sorted(marks[0], key=unicodedata.combining)), text)
    return unicodedata.normalize("NFC", text)


def _template(text: str) -> str:
    while (stripped := _TEMPLATE.sub(" ", text)) != text:  # what is left can be a remnant again
        text = stripped
    end = len(text)
    while cut := _CUT_TEMPLATE.search(text, max(0, end - 60), end):
        end = cut.start()
    return text[:end]


# What digits become, by whether Latin letters stand beside them: ASCII, else Bengali.
_DIGITS = {True: {0x09E6 + d: 0x30 + d for d in range(10)}, False: {0x30 + d: 0x09E6 + d for d in range(10)}}


def _pipe(match: re.Match[str]) -> str:
    """A danda for a | that follows a Bengali word (or a number after one) on its line."""
    line = match.string[max(0, match.start() - 40) : match.start()].rpartition("\n")[2].replace("|", "")
    return "।" if _BENGALI_BEFORE.search(line) else "|"


def _sentence_end(match: re.Match[str]) -> str:
    """A danda for a full stop that ends a sentence, as the head of this module says."""
    before = match.string[max(0, match.start() - 40) : match.start()]
    after = match.string[match.end() : match.end() + 20]
    if before[-1].isdigit():
        return "।" if _BENGALI_LETTER.search(before.rpartition("\n")[2]) else "."  # alone on its line it is a label: ১.
    if (found := _LAST_WORD.search(before)) is None:  # a closing quote stands between, or a word of forty letters
        return "." if match["glued"] else "।"
    # Abbreviations, single letters that do not end their line, and initials beside another initial keep it.
    word, before = unicodedata.normalize("NFC", found[0]), before[: found.start()]
    said, initial = _SAID.fullmatch(word), _INITIAL.fullmatch(word)
    letter = not said and _LETTER.fullmatch(word) and (after[:1] not in ("", "\n") or before[-1:] in ("", "\n"))
    beside_another = word != "ড" and _INITIAL_BEFORE.search(before)  # before a title the other has ended its sentence
    if letter or word in ABBREVIATIONS or (initial and (beside_another or _INITIAL_AFTER.match(after))):
        return "."
    if not match["glued"]:
        return "।"
    # Between two words without a blank it is a stop, but not in প্রথমআলো.কম, কি.মি. or বি.বি.সি.
    following = unicodedata.normalize("NFC", match["glued"])
    ends = said or (not initial and (word == "না" or len(_BENGALI_LETTER.findall(word)) > 1))
    return "।" if ends and following not in _DOMAINS and following not in ABBREVIATIONS else "."


RULES = (  # each comes after those that make what it looks for
    Rule("nfc", _nfc, "text, word"),  # য় ড় ঢ় ো ৌ exist as one code point and as two
    # chat-template remnants (<|eot_id|>, user<|end_header_id|>, [INST]) are not text
    Rule("template", _template, "text"),
    Rule("replacement", methodcaller("replace", "\ufffd", "")),  # U+FFFD is half a character that a token limit cut off
    # BOM, zero-width, bidi and control characters and lone surrogates cannot be seen
    Rule("invisible", partial(_INVISIBLE.sub, "")),
    Rule("cp1252", partial(_STRAY_CP1252.sub, "")),  # a lone Â is what is left of a no-break space read as cp1252
    Rule("nukta", partial(_NUKTA.sub, r"\1\3\2")),  # the dot of য় ড় ঢ় is typed before the vowel sign and after it
    Rule("hasanta", partial(re.compile("\u09cd++").sub, "\u09cd")),  # two hasantas are drawn as one
    Rule("khanda_ta", partial(_KHANDA_TA.sub, "\u09ce")),  # before Unicode 4.1 ৎ was written ত + hasanta + ZWJ
    # র‍্য is written with the joiner before or after the hasanta, or without
    Rule("ra_ya", partial(_RA_YA.sub, "\u09b0\u09cd\u09af")),
    Rule("joiners", partial(_JOINER.sub, "")),  # ZWJ and ZWNJ choose the shape of a conjunct, not its letters
    Rule("vowel_a", methodcaller("replace", "\u0985\u09be", "\u0986")),  # অ + া looks like আ and is typed for it
    # a colon is typed for visarga in দুঃখ, নিঃ-, অন্তঃ-, মোঃ
    Rule("visarga", partial(_COLON.sub, lambda match: f"{match[1] or match[2]}\u0983")),
    # Bengali and ASCII digits are one number; ASCII beside Latin letters (MP3, a5@b.com), else Bengali
    Rule("digits", partial(_DIGIT_RUN.sub, lambda run: run[0].translate(_DIGITS[bool(_LATIN.search(run[0]))]))),
    # ৷ (currency numerator four) and | after a Bengali word are typed for danda
    Rule("danda", lambda text: _PIPE.sub(_pipe, text.replace("\u09f7", "।")), "sentence"),
    # . ends a sentence as danda does, but not in an abbreviation
    Rule("full_stop", partial(_FULL_STOP.sub, _sentence_end), "sentence"),
)
RULE_NAMES = tuple(rule.name for rule in RULES)
_OF_TEXT, _OF_WORD, _OF_SENTENCE = ([r for r in RULES if scope in r.scope] for scope in ("text", "word", "sentence"))
PROFILES = ("bn1", "none", "nfc", "indicnlp")
_FROM = {"graphemes": "regex", "intl": "sacrebleu", "indicnlp": "indic-nlp-library"}

# Letters and signs in which no word rule finds anything to change: most words are made of them, and are one token.
UNCHANGED = re.compile(
    "(?:[\u0981-\u0983\u0986-\u098c\u098f\u0990\u0993-\u09a3\u09a5-\u09a8\u09aa-\u09b0\u09b2\u09b6-\u09b9\u09bd-\u09c4"
    "\u09c8\u09cb\u09cc\u09ce\u09e0-\u09e3]++|(?<![\u09be-\u09cc])\u09bc"
    "|\u09c7(?![\u09be\u09d7])|\u0985(?!\u09be)|\u09a4(?!\u09cd(?![\u0995-\u09b9]))|\u09cd(?![\u09bc\u09cd]))+"
)
# In words of these, which are most others, only five rules do.
_PLAIN = re.compile("[!-/;-~\u0964\u0965\u0981-\u09e3\u09f0-\u09ff‘’“”]+")
_RULES_FOR_PLAIN = ("nfc", "nukta", "hasanta", "khanda_ta", "vowel_a")
_BRACKETS = "<[#"  # without one of these a text holds no template remnant


class Memo(dict[str, Made], Generic[Made]):
    """`function` of each word met, remembered; emptied when it holds `limit` words, so memory stays bounded."""

    def __init__(self, function: Callable[[str], Made], limit: int = 200_000) -> None:
        self.function, self.limit = function, limit

    def __missing__(self, word: str) -> Made:
        made = self.function(word)
        if len(word) <= 100:  # a megabyte of one letter is not worth remembering
            if len(self) >= self.limit:
                self.clear()
            self[word] = made
        return made


@dataclass(frozen=True)
class Normalizer:
    """Text to normalised text: `Normalizer()(text)`. `off` names bn1 rules that are not applied.

    Profiles: `bn1`; `none`; `nfc` (Unicode only); `indicnlp` (indic-nlp-library's, for comparison with older papers:
    it turns ৫:৩০ into ৫ঃ৩০, drops ZWJ but not ZWNJ, and leaves digits, danda variants and ৎ as they are; needs
    `pip install ".[compare]"`). Raises `UsageError` for an unknown profile or rule.
    """

    profile: str = "bn1"
    off: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UsageError(f"no normalisation profile {self.profile!r}; there are {', '.join(PROFILES)}")
        for name in sorted(self.off):
            if self.profile != "bn1" or name not in RULE_NAMES:
                hint = nearest(name, RULE_NAMES) or f"; {self.profile} has: {', '.join(RULE_NAMES)}"
                raise UsageError(f"{self.profile} has no rule {name!r} to switch off{hint}")

    @property
    def signature(self) -> str:
        """`bn1`, or `bn1-digits-danda` when those rules are off."""
        return "-".join([versioned(self.profile), *(name for name in RULE_NAMES if name in self.off)])

    def __call__(self, text: str) -> str:
        """The normalised text."""
        if self.profile == "nfc":
            return _nfc(text)
        if self.profile != "bn1":
            return str(_indicnlp().normalize(text)) if self.profile == "indicnlp" else text
        while True:
            before = text
            for rule in _OF_TEXT if any(map(text.__contains__, _BRACKETS)) else ():
                text = text if rule.name in self.off else rule.apply(text)
            lines = (" ".join(filter(None, map(self.words.__getitem__, line.split()))) for line in text.splitlines())
            text = "\n".join(filter(None, lines))
            for rule in _OF_SENTENCE:
                text = text if rule.name in self.off else rule.apply(text)
            # Without its zero-width characters it may be a template remnant now, and is looked at again.
            if text == before or not any(map(text.__contains__, _BRACKETS)):
                return text

    def beyond_words(self, text: str) -> str:
        """The text with all that its words cannot be given one by one: `words` do the rest."""
        beyond = "." in text or "|" in text or "<" in text or "[" in text or "#" in text or "\u09f7" in text
        return self(text) if beyond or self.profile != "bn1" else text

    @property
    @lru_cache(maxsize=64)  # noqa: B019 - one memory for all equal ones is what is wanted
    def words(self) -> Memo[str]:
        """Whitespace-delimited words after the rules that see no further (other profiles than bn1 have done all)."""
        rules = [rule for rule in _OF_WORD if rule.name not in self.off] if self.profile == "bn1" else []
        for_plain = [rule for rule in rules if rule.name in _RULES_FOR_PLAIN]

        def normalised(word: str) -> str:
            if UNCHANGED.fullmatch(word):
                return word
            before, applied = "", for_plain if _PLAIN.fullmatch(word) else rules
            while word != before:  # what one rule takes away may join what a rule before it looks for
                before = word
                for rule in applied:
                    word = rule.apply(word)
            return word

        return Memo(normalised)


@lru_cache(maxsize=1)
def _indicnlp():  # type: ignore[no-untyped-def]  # the library has no types
    module = require("indicnlp.normalize.indic_normalize", extra="compare", by='the normalisation profile "indicnlp"')
    return module.IndicNormalizerFactory().get_normalizer("bn")


def normalizer(profile: str | Normalizer = "bn1", off: Collection[str] = ()) -> Normalizer:
    """The normaliser of that profile, or the one that is given."""
    return profile if isinstance(profile, Normalizer) else Normalizer(profile, frozenset(off))


def normalize(text: str, *, profile: str = "bn1", off: Collection[str] = ()) -> str:
    """`text` in one spelling, see the module's docstring. Raises `InputError` when `text` is not a string."""
    if not isinstance(text, str):
        raise InputError(f"only text can be normalised, not {type(text).__name__}")
    return normalizer(profile, off)(text)


def versioned(name: str) -> str:
    """A name in a signature: `intl@2.6.0` if another package's version moves it; `MissingExtraError` without that."""
    if name == "indicnlp":
        require("indicnlp", extra="compare", by=f'"{name}"')
    return f"{name}@{metadata.version(_FROM[name])}" if name in _FROM else name


def flags(text: str) -> frozenset[str]:
    """What bn1 strips from a raw text and a reader should know of: "template" remnants, "replacement" (U+FFFD)."""
    template = _TEMPLATE.search(text) or _CUT_TEMPLATE.search(text, max(0, len(text) - 60))
    return frozenset(name for name, there in {"template": template, "replacement": "\ufffd" in text}.items() if there)
