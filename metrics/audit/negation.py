"""না put in and taken out, so that what is left is well-formed Bengali that says the opposite.

Put in: after the finite verb that ends a statement (আমি বুঝতে পারছি। আমি বুঝতে পারছি না।), and নেই in place of আছি or আছে
(পাশে আছি। পাশে নেই।). Not in a question or an exclamation, not in a statement that has কী or যদি or is negated already,
and not after what না would not negate: a command or an offer (বলুন না, দিই না coax), a perfect (করেছি: its negative is
করিনি), a form that need not be a verb (পড়ে, বলে, শুনে).

Taken out: in a statement, a না with a word before it and a word or the end of the sentence after it. Not the না of তাই না,
কি না, কিছু না, আর না, একটা কথাও না, of coaxing (বলুন না, বলো না), of alternatives and contrasts (রাগ, না ভয়; মানুষ না, জিনিস),
not part of a word (না-বলা), and not where another word asks for it (কেউ, কিচ্ছু, কখনো).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bnbench.metrics.audit.spelling import compose_nukta, decompose_nukta

_LETTERS = "[\u0980-\u09fe\u200c\u200d]"
_SENTENCE = re.compile("[^।॥?!|\n]+(?:[।॥?!|]+|\n|$)")
_LAST_WORD = re.compile(f"(?<![\u0980-\u09fe-])({_LETTERS}+)(?=[।॥|\\s]*$)")
_NEGATED = re.compile(f"(?<!{_LETTERS})(?:না|নাই|নেই|নয়|নন|নও|নই)(?!{_LETTERS})|[িেোইওন\u09bc]নি(?!{_LETTERS})")
_ASKS = re.compile(f"(?<!{_LETTERS})(?:কী|কি|কে|কেন|কেমন|কত|কখন|কোথায়|কোন|যদি)(?!{_LETTERS})")
_NA = re.compile(f"({_LETTERS}+) +না(?= +{_LETTERS}|[।॥|\\s]*$)")
_COAXED = re.compile(".*ুন|(?:বল|দেখ|শোন|আস|চল|বস|কর|ধর|থাক)ো|এসো|দাও|নাও|খাও|যাও")
_FIXED = re.compile("তাই|কি|কী|কিছু|আর|কেন|তো|যেন|হ্যাঁ|.*ও")
_NEGATIVE_WORDS = re.compile(f"(?<!{_LETTERS})(?:কেউ|কিচ্ছু|কিছুই|মোটে|একটুও|একচুলও|এতটুকু|কখনো|কখনও|কোনো|কোনও)")

_IS = re.compile("আছ(?:ি|ে|েন|ো)?")
_CONTINUOUS = "(?:.*[ক-হ\u09bc]|.*চ্|চাই|গাই|বই|.*[ক-হই]তে)ছ(?:ি|ে|েন|ো)?"
_FIRST_PERSON = "(?:কর|বুঝ|পার|জান|থাক|ভাব|রাখ|বল|ভালোবাস|মান)ি|(?:চা|যা|পা|জানা|হ)ই"
_THIRD_PERSON = "(?:আস|থাক|লাগ|পার|কর|বাড়|কম)ে|(?:যা|হ|দে|নে|পা|চা)য়"
_PAST = ".+(?<!েছি)(?:লাম|লেন)|(?:হ|গে|এ|লাগ|ছি|দি|নি|রই|উঠ|পড়|বল|কর|পে|থাক|ফেল|হই)লো?|.+তাম"
_FUTURE = "(?:হ|যা|থাক|আস|লাগ|পার|উঠ|কর|বল|দে|নে|পা|জানা|দেখ|শুন|বুঝ|রাখ|ধর|কাট|পড়|ফির|চল|বাঁচ|জান|বস|ভাব)ব(?:ে|েন|ো)?"
_FINITE = re.compile("|".join((_CONTINUOUS, _FIRST_PERSON, _THIRD_PERSON, _PAST, _FUTURE)))
_NO_VERBS = re.compile("ইচ্ছে|স্বচ্ছ|অস্বচ্ছ|তুচ্ছ|গুচ্ছ|যথেচ্ছ|সালাম|কালাম|ইসলাম|গোলাম")


def with_negation(text: str) -> str | None:
    """The reply with each of its statements negated that can be; None where none can."""
    return _by_sentence(text, _negated)


def without_negation(text: str) -> str | None:
    """The reply without its না; None where none can be taken out."""
    return _by_sentence(text, _affirmed)


def _by_sentence(text: str, change: Callable[[str], str]) -> str | None:
    plain = decompose_nukta(text)
    changed = _SENTENCE.sub(lambda sentence: change(sentence[0]), plain)
    if changed == plain:
        return None
    return changed if plain == text else compose_nukta(changed)


def _negated(sentence: str) -> str:
    if _asks_or_exclaims(sentence) or _NEGATED.search(sentence) or _ASKS.search(sentence):
        return sentence
    return _LAST_WORD.sub(lambda word: _negative(word[1]), sentence)


def _negative(word: str) -> str:
    if _IS.fullmatch(word):
        return "নেই"
    return f"{word} না" if _FINITE.fullmatch(word) and not _NO_VERBS.fullmatch(word) else word


def _affirmed(sentence: str) -> str:
    if _asks_or_exclaims(sentence) or _NEGATIVE_WORDS.search(sentence):
        return sentence
    return _NA.sub(lambda found: found[0] if _keeps_na(found[1]) else found[1], sentence)


def _asks_or_exclaims(sentence: str) -> bool:
    return sentence.rstrip().endswith(("?", "!"))


def _keeps_na(word: str) -> bool:
    return (_COAXED.fullmatch(word) or _FIXED.fullmatch(word)) is not None
