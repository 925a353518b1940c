"""Bengali text made comparable: one spelling for what readers see as one word. For scoring only; keep the raw text.

Unicode has several spellings for the same Bengali word, and programs mix them freely. Scored against itself in another
spelling, a text gets BLEU 8-31 for most of these differences. `bn1` is a list of named rules (`RULES`), each of which a user can
switch off, and the signature then says so: `norm:bn1-digits`.

What bn1 leaves alone on purpose: U+003A in times (৫:৩০), separators in numbers (১,৫০০.৭৫), ordinals (২য়), ৳, e-mail addresses,
English words, emoji with their joiners, quotation marks, hyphens, and real misspellings.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import regex

from bnbench.metrics.errors import InputError

_LETTER = "\u0985-\u09b9\u09ce\u09dc-\u09e1\u09f0\u09f1\u09fc"
_SIGN = "\u0981-\u0983\u09bc\u09be-\u09cd\u09d7\u09e2\u09e3\u09fe"
_BENGALI = _LETTER + _SIGN

_TEMPLATE = re.compile(
    r"(?:\b(?:user|assistant|system|ipython)\b\s*)?<\|end_header_id\|>"
    r"|<\|start_header_id\|>(?:\s*(?:user|assistant|system|ipython)\b)?"
    r"|<\|im_start\|>(?:\s*(?:user|assistant|system)\b)?"
    r"|<start_of_turn>(?:\s*(?:user|model)\b)?|<end_of_turn>"
    r"|<\|[A-Za-z0-9_]{1,40}(?:\|>|\|?$)|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>"
    r"|###[ ]?(?:Instruction|Response|Input|System|Human|Assistant)[ ]?:?"
)
_STRAY_CP1252 = re.compile(r"(?<![A-Za-z\u00c0-\u024f])\u00c2(?![A-Za-z\u00c0-\u024f])")
_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\ue000-\uf8ff]"
)
_BLANKS = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r" ?(?:\n ?)+")
_KHANDA_TA = re.compile(f"\u09a4\u09cd(?:\u200d|\u200c?(?![{_BENGALI}\u200c\u200d]))")
_RA_YA = re.compile("\u09b0(?:[\u200c\u200d]\u09cd|\u09cd[\u200c\u200d])\u09af")
# In an emoji sequence the joiner stands before a pictograph; anywhere else it only changes how letters look.
_JOINER = regex.compile(r"\u200c|\u200d(?!\p{Extended_Pictographic})|(?<![\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f])\u200d")
_PIPE = re.compile(f"(?<=[{_BENGALI}])([”’\"')\\]]?\\s*)\\|(?![A-Za-z0-9_])")
_FULL_STOP = re.compile(f"([{_LETTER}][{_BENGALI}]*)([”’\"')\\]]?)\\.(?![\\w{_BENGALI}.@/\\\\_-])")
_NEXT_INITIAL = re.compile(f"\\s*[{_LETTER}][{_SIGN}]*\\.")
_WORD_BEFORE = re.compile(f"(?<![{_BENGALI}])")
_COLON = re.compile(
    f"(?<![{_BENGALI}])(?:(দু|নি|অন্ত|অত|পুন|স্বত|প্রাত|অধ|বহি):(?=[{_LETTER}])|(মো|ডা):(?=\\s))"
)
_DIGIT_RUN = re.compile(r"[A-Za-z0-9০-৯._@/:+#%&=?~-]*[0-9০-৯][A-Za-z0-9০-৯._@/:+#%&=?~-]*(?!\ufe0f?\u20e3)")
_HAS_LATIN = re.compile("[A-Za-z]")
_TO_ASCII = {0x09E6 + d: 0x30 + d for d in range(10)}
_TO_BENGALI = {0x30 + d: 0x09E6 + d for d in range(10)}

ABBREVIATIONS = frozenset(
    "মো মোসা মোছা মোহা মুহা ডা অধ্যা প্রফে প্রফ ইঞ্জি অ্যাড এড লি প্রা কোং রেজি নং মি মিঃ সেমি কিমি গ্রা লিঃ খ্রি খ্রিঃ খ্রী হি বাং ইং "
    "সং সম্পা পৃ পৃঃ দ্র অনু উপ যুগ্ম জন্ম মৃ তাং বিঃদ্র সা শ্রী ডিগ্রি".split()
)
"""Words whose full stop never ends a sentence. Single consonants (ড., প., ক.) never do; এ., ও., ই. and the like do unless
another initial follows (এ. কে. ফজলুল হক). Words that are also common at the end of a sentence (কি, সে, জি) are left out."""

_CONSONANTS = frozenset(map(chr, range(0x0995, 0x09BA)))


@dataclass(frozen=True)
class Rule:
    """One step of bn1: its name, why it exists, and what it does to a text."""

    name: str
    reason: str
    apply: Callable[[str], str] = field(repr=False)
    plain: bool = True
    """Whether it can change a text of printable ASCII without digits and of Bengali characters: most texts are that."""


def _template(text: str) -> str:
    if "<" not in text and "[" not in text and "###" not in text:
        return text
    while (stripped := _TEMPLATE.sub(" ", text)) != text:  # what is left can make a new remnant
        text = stripped
    return text


def _replacement(text: str) -> str:
    return text.replace("\ufffd", "")


def _cp1252(text: str) -> str:
    return _STRAY_CP1252.sub("", text)


def _invisible(text: str) -> str:
    return _INVISIBLE.sub("", text)


def _spaces(text: str) -> str:
    if "\n" in text or "\u2028" in text or "\r" in text or "\u0085" in text:
        text = "\n".join(text.splitlines())
        return _BLANK_LINES.sub("\n", _BLANKS.sub(" ", text)).strip()
    return " ".join(text.split())


def _khanda_ta(text: str) -> str:
    return _KHANDA_TA.sub("ৎ", text) if "\u09a4\u09cd" in text else text


def _ra_ya(text: str) -> str:
    return _RA_YA.sub("র্য", text)


def _joiners(text: str) -> str:
    return _JOINER.sub("", text) if "\u200c" in text or "\u200d" in text else text


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _bengali_nfc(text: str) -> str:
    """NFC of a text that has, beside Bengali, only characters that NFC leaves alone; ten times faster than the general one."""
    if "\u09dc" in text or "\u09dd" in text or "\u09df" in text:
        text = text.replace("ড়", "ড\u09bc").replace("ঢ়", "ঢ\u09bc").replace("য়", "য\u09bc")
    if "\u09cd\u09bc" in text or "\u09fe" in text:  # marks in another order: rare enough for the general way
        return _nfc(text)
    return text.replace("\u09c7\u09be", "\u09cb").replace("\u09c7\u09d7", "\u09cc")


def _vowel_a(text: str) -> str:
    return text.replace("\u0985\u09be", "আ")


def _danda(text: str) -> str:
    text = text.replace("\u09f7", "।")
    return _PIPE.sub(r"\1।", text) if "|" in text else text


def _full_stop(text: str) -> str:
    return _FULL_STOP.sub(_sentence_end, text) if "." in text else text


def _sentence_end(match: re.Match[str]) -> str:
    word, closing = match[1], match[2]
    whole = word if not _glued(match) else ""
    if whole in ABBREVIATIONS or whole in _CONSONANTS:
        return match[0]
    if len(whole) == 1 and _NEXT_INITIAL.match(match.string, match.end()):
        return match[0]
    return f"{word}{closing}।"


def _glued(match: re.Match[str]) -> bool:
    """Whether digits or Latin letters stand before the word without a space: ৫মি. is still an abbreviation, MPমি is not a word."""
    return match.start() > 0 and match.string[match.start() - 1].isascii() and match.string[match.start() - 1].isalpha()


def _visarga(text: str) -> str:
    return _COLON.sub(lambda match: f"{match[1] or match[2]}\u0983", text) if ":" in text else text


def _digits(text: str) -> str:
    return _DIGIT_RUN.sub(_one_script, text)


def _one_script(match: re.Match[str]) -> str:
    run = match[0]
    return run.translate(_TO_ASCII if _HAS_LATIN.search(run) else _TO_BENGALI)
