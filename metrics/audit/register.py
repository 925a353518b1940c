"""আপনি ↔ তুমি: the same reply in the other register, where its words alone make that certain.

Pronouns and the verbs of the second person change together. A reply is left alone when it has no pronoun of the second
person, or of both registers, or another form of one (আপনে, আপনজন, তোকে), and where a verb does not show its person:

* Towards তুমি: -েন is also the third person of respect (বাবা বলেছেন). A reply that names such a person is left alone, and
  so is one with a word in -েন, -ুন or -ান that is neither a known verb nor a known other word, or with দিন (give, day)
  where a clause ends.
* Towards আপনি: -বে, -লে and -তে are also the third person, the conditional and the infinitive. A reply with -বে (other
  than হবে, লাগবে) is left alone, and one where -লে or -তে ends a clause. An imperative becomes -েন (বলো: বলেন), which is
  the present as well, as -ো is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from bnbench.metrics.audit.spelling import compose_nukta, decompose_nukta

Table = Mapping[str, str]

_WORD = re.compile("[\u0980-\u09fe\u200c\u200d]+")
_CLAUSE_END = re.compile(r"\s*(?:[।॥,;:!?—–|.\n’”]|তুমি|$)")  # or goes on with its subject: ভাবতে তুমি
_COMMAND = re.compile(r"\s*(?:[।!]|না(?![\u0980-\u09fe])|$)")
_PRONOUNS = {"আপনি": "তুমি", "আপনার": "তোমার", "আপনাকে": "তোমাকে", "আপনাদের": "তোমাদের", "আপনারা": "তোমরা"}
_ANY_PRONOUN = re.compile("আপন|তুমি|তোমা|তোমরা|(?:তুই|তোর|তোকে|তোদের|তোরা)(?:ই|ও)?$")

_CLITICS = ("", "ই", "ও", "টা")
_VERB_SUFFIXES = ("", "ই", "ও", "নি")
_VERB_ENDING = re.compile("(.*[েুা])ন(ই|ও|নি)?")
_PRESENT = re.compile("(?!(?:গা|মা|কা|পা)ছো?$)(.*ছ)ো?")
_UNCLEAR = re.compile(".*(?:বে|বা|ো)|রে")
_NOT_SECOND_PERSON = re.compile("হবে|লাগবে|অথবা|সেবা|বাবা|.*(?:তো|লো|নো|টো|গো)|(?:আ|বা|তে|কা)রো|বড়ো")


def _words(text: str) -> list[str]:
    return text.split()


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(polite, familiar) for polite, _, familiar in (pair.partition("-") for pair in text.split())]


_PEOPLE = _words(
    """
তিনি উনি ইনি যিনি ওঁ তাঁ এঁ যাঁ ওনা এনা অনেকে সকলে যারা মা আম্মা আম্মু বাবা আব্বা আব্বু স্যার ম্যাডাম দাদু দাদি দিদা নানা নানি
চাচা চাচি কাকা কাকিমা মামা মামি খালা ফুপু পিসি মাসি শাশুড়ি শ্বশুর শিক্ষক ডাক্তার চিকিৎসক স্বামী বর
"""
)
_RESPECTED = re.compile(f"(?:{'|'.join(_PEOPLE)})(?:ই|ও|র|কে|টা|রা|দের|য়ের|জি|জান|মা)*")
_NO_VERBS = frozenset(
    _words(
        """
কেন যেন সেন ট্রেন লেন টানাপোড়েন আগুন নতুন ফাল্গুন বেগুন খুন গান কান টান দান ধান মান জান সমান সম্মান অভিমান অপমান সন্তান
সাবধান সমাধান দোকান বাগান উঠান বিমান অনুষ্ঠান প্রধান বর্তমান স্থান সাবান প্রতিষ্ঠান
"""
    )
)


_STEMS = _words("কর বল দেখ থাক রাখ জান পার ভাব ধর পড় ডাক বস ফেল ছাড় কাঁদ হাস চল মার হাঁট মান ভালোবাস কাট টান জাগ খেল")
_SHIFTING_STEMS = _pairs("শুন-শোন বুঝ-বোঝ খুল-খোল তুল-তোল লিখ-লেখ শিখ-শেখ খুঁজ-খোঁজ ভুল-ভোল চিন-চেন ঘুর-ঘোর উঠ-ওঠ ফির-ফের")
_LONG_STEMS = _words(
    """
জানা পাঠা দাঁড়া তাকা দেখা শোনা ঘুমা খাওয়া শেখা কাটা সরা হারা বানা সামলা ঘোরা কমা বাড়া থামা চালা নামা আগলা বাঁচা লাগা
চা পা যা খা
"""
)
_IRREGULAR = _pairs("দেন-দাও নেন-নাও নিন-নাও হন-হও হোন-হও নন-নও আসেন-আসো আসুন-এসো")
_COMMANDS = _pairs(
    """
রাখবেন-রেখো থাকবেন-থেকো করবেন-কোরো বলবেন-বোলো ভাববেন-ভেবো যাবেন-যেয়ো জানাবেন-জানিয়ো দেবেন-দিয়ো নেবেন-নিয়ো পাবেন-পেয়ো
জানবেন-জেনো হারাবেন-হারিয়ো ছাড়বেন-ছেড়ো কাঁদবেন-কেঁদো পড়বেন-পোড়ো লিখবেন-লিখো
"""
)


def _tables() -> tuple[Table, Table]:
    """Verbs towards তুমি, and towards আপনি; the endings that are regular for every verb are not here."""
    verbs = [*_IRREGULAR, *((f"{stem}ন", f"{stem}ও") for stem in _LONG_STEMS)]
    for high, low in [*((stem, stem) for stem in _STEMS), *_SHIFTING_STEMS]:
        verbs += [(f"{high}ুন", f"{low}ো"), (f"{low}েন", f"{low}ো")]
    back = [(familiar, polite) for polite, familiar in [*verbs, *_COMMANDS, ("হন", "হও"), ("নেন", "নাও")]]
    return dict(verbs), dict(back)


_TO_FAMILIAR, _TO_POLITE = _tables()
_AS_COMMAND = dict(_COMMANDS)
_BACK = {familiar: polite for polite, familiar in _PRONOUNS.items()}


def other_register(text: str) -> str | None:
    """The reply with আপনি and তুমি exchanged, or None where that is not certain or there is neither."""
    plain = decompose_nukta(text)
    pronouns = [word for word in _WORD.findall(plain) if _ANY_PRONOUN.match(word)]
    if not pronouns:
        return None
    if all(_looked_up(word, _PRONOUNS, _CLITICS) for word in pronouns):
        respected = any(_RESPECTED.fullmatch(word) for word in _WORD.findall(plain))
        changed = None if respected else _replaced(plain, _familiar)
    elif all(_looked_up(word, _BACK, _CLITICS) for word in pronouns):
        changed = _replaced(plain, _polite)
    else:
        return None
    return changed if changed is None or plain == text else compose_nukta(changed)


def _replaced(text: str, replace: Callable[[str, str], str | None]) -> str | None:
    """Each word as `replace(word, what follows it)` gives it; None where it gives None for one."""
    parts, done = [], 0
    for match in _WORD.finditer(text):
        word = replace(match[0], text[match.end() :])
        if word is None:
            return None
        parts += [text[done : match.start()], word]
        done = match.end()
    return "".join([*parts, text[done:]])


def _looked_up(word: str, table: Table, suffixes: tuple[str, ...]) -> str | None:
    for suffix in suffixes:
        if word.endswith(suffix) and (found := table.get(word.removesuffix(suffix))):
            return found + suffix
    return None


def _familiar(word: str, after: str) -> str | None:
    if known := _looked_up(word, _PRONOUNS, _CLITICS) or _looked_up(word, _TO_FAMILIAR, _VERB_SUFFIXES):
        return known
    if word in _AS_COMMAND and _COMMAND.match(after):
        return _AS_COMMAND[word]
    if word in _NO_VERBS or not (verb := _VERB_ENDING.fullmatch(word)):
        return None if word == "দিন" and _CLAUSE_END.match(after) else word
    stem, suffix = verb[1], verb[2] or ""
    if stem.endswith("ছে"):
        return stem[:-1] + suffix
    return stem + suffix if stem.endswith(("লে", "বে", "তে")) else None


def _polite(word: str, after: str) -> str | None:
    known = _looked_up(word, _BACK, _CLITICS) or _looked_up(word, _TO_POLITE, ("", "নি"))
    if known:
        return known
    if word.endswith("ছিলে"):
        return word + "ন"
    if present := _PRESENT.fullmatch(word):
        return present[1] + "েন"
    unclear = _UNCLEAR.fullmatch(word) and not _NOT_SECOND_PERSON.fullmatch(word)
    return None if unclear or (word.endswith(("লে", "তে")) and _CLAUSE_END.match(after)) else word
