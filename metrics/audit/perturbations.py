"""What is done to a reply, and what a metric of empathy should then do.

The Bengali itself (what is put in, which words negate, which verbs have two registers) is data: `bn.toml`.
"""

import random
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from bnbench.metrics.labelled import LabelledReply, LabelledSet

WORSE, SAME = "worse", "same"
IN_MOST = 0.95  # of messages: where a copy and stuffed keywords have to score below the empathic replies
STAMPS_IN_A_CHAIN = range(3, 9)  # short chains are harder to tell from a reply than long ones

Spelling = Callable[[str], str]  # the same reply as another keyboard or program writes it

_NUKTA = {"\u09df": "\u09af\u09bc", "\u09dc": "\u09a1\u09bc", "\u09dd": "\u09a2\u09bc"}


def _replaced(text: str, pairs: Mapping[str, str]) -> str:
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text


def _backwards(pairs: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in pairs.items()}


# য় ড় ঢ় as two code points, as Unicode's normal forms have them, and as one.
decompose_nukta = partial(_replaced, pairs=_NUKTA)
compose_nukta = partial(_replaced, pairs=_backwards(_NUKTA))


def _exchanged(pairs: Mapping[str, str]) -> Spelling:
    """Each left side as its right one; where there is none, each right side as its left one."""
    return lambda text: changed if (changed := _replaced(text, pairs)) != text else _replaced(text, _backwards(pairs))


def _danda_typed(text: str) -> str:
    """The dandas after a Bengali letter as . and | in turn."""
    typed = cycle(".|")
    return re.sub("(?<=[\u0985-\u09b9\u09bc-\u09ce\u09d7\u09dc-\u09e3])।", lambda _: next(typed), text)


SPELLINGS: Mapping[str, Spelling] = {
    "nukta as one sign or two": _exchanged(_NUKTA),
    "danda after a blank": lambda text: re.sub("(?<=\\S)।", " ।", text),
    "danda as . or |": _danda_typed,
    "ZWNJ after hasanta": lambda text: re.sub("\u09cd(?![\u200c\u200d])", "\u09cd\u200c", text),
    "ra-ya in two encodings": _exchanged({"\u09b0\u200d\u09cd\u09af": "\u09b0\u09cd\u200d\u09af"}),
    "digits Bengali or ASCII": _exchanged(dict(zip("০১২৩৪৫৬৭৮৯", "0123456789", strict=True))),
    "khanda ta as ta and ZWJ": _exchanged({"\u09ce": "\u09a4\u09cd\u200d"}),
    "o, au as one sign or two": _exchanged({"\u09cb": "\u09c7\u09be", "\u09cc": "\u09c7\u09d7"}),
}
"""Eight ways to write one text, by name; a text in which there is nothing to spell otherwise comes back as it is."""

# What the other changes know of Bengali; its patterns see য় ড় ঢ় as two code points.
_BN = tomllib.loads(decompose_nukta((Path(__file__).parent / "bn.toml").read_text("utf-8")))
GENERIC: Mapping[str, Sequence[str]] = _BN["generic"]  # replies that fit any message, in আপনি and in তুমি
STAMPS: Mapping[str, Sequence[str]] = _BN["stamps"]  # stock phrases in the two registers
_LETTER = "[\u0980-\u09fe\u200c\u200d]"


def _rewriting(change: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """The change of a text in the text's own spelling of য় ড় ঢ়; None where it changes nothing."""

    @wraps(change)
    def rewritten(text: str) -> str | None:
        plain = decompose_nukta(text)
        changed = change(plain)
        if changed is None or changed == plain:
            return None
        return changed if plain == text else compose_nukta(changed)

    return rewritten


_NOT = _BN["negation"]
_NEGATORS, _ASKING, _NEEDS_NA = (f"(?<!{_LETTER})(?:{'|'.join(_NOT[k])})" for k in ("negators", "asking", "negative"))
_NOT_TO_NEGATE = re.compile(f"(?:{_NEGATORS}|{_ASKING}|[িেোইওন\u09bc]নি)(?!{_LETTER})|[?!]\\s*$")
_NOT_TO_AFFIRM = re.compile(f"{_NEEDS_NA}|[?!]\\s*$")
_SENTENCE = re.compile("[^।॥?!|\n]+(?:[।॥?!|]+|\n|$)")
_LAST_WORD = re.compile(f"(?<![\u0980-\u09fe-])({_LETTER}+)(?=[।॥|\\s]*$)")
_NA = re.compile(f"(?<!{_LETTER})({_LETTER}+) +না(?= +{_LETTER}|[।॥|\\s]*$)")
_KEEPS_NA, _FINITE = re.compile(f"{_NOT['coaxed']}|{_NOT['fixed']}"), re.compile("|".join(_NOT["finite"]))


@_rewriting
def with_negation(text: str) -> str | None:
    """The reply with each of its statements negated that can be (`bn.toml`); None where none can."""

    def negative(word: re.Match[str]) -> str:
        if re.fullmatch("আছ(?:ি|ে|েন|ো)?", word[1]):
            return "নেই"
        return f"{word[1]} না" if _FINITE.fullmatch(word[1]) and word[1] not in _NOT["no_verbs"] else word[1]

    def negated(sentence: re.Match[str]) -> str:
        return sentence[0] if _NOT_TO_NEGATE.search(sentence[0]) else _LAST_WORD.sub(negative, sentence[0])

    return _SENTENCE.sub(negated, text)


@_rewriting
def without_negation(text: str) -> str | None:
    """The reply without its না; None where none can be taken out (`bn.toml`)."""

    def positive(found: re.Match[str]) -> str:
        return found[0] if _KEEPS_NA.fullmatch(found[1]) else found[1]

    def affirmed(sentence: re.Match[str]) -> str:
        return sentence[0] if _NOT_TO_AFFIRM.search(sentence[0]) else _NA.sub(positive, sentence[0])

    return _SENTENCE.sub(affirmed, text)


def _with(suffixes: Sequence[str], table: Mapping[str, str]) -> dict[str, str]:
    """The table, and both sides of it with each suffix; where a form is had in two ways, without one."""
    return {**{old + each: new + each for each in reversed(suffixes) for old, new in table.items()}, **table}


_YOU = _BN["register"]
_WORD = re.compile(f"{_LETTER}+")
_ANY_PRONOUN = re.compile("আপন|তুমি|তোমা|তোমরা|(?:তুই|তোর|তোকে|তোদের|তোরা)(?:ই|ও)?$")
_RESPECTED = re.compile(f"(?:{'|'.join(_YOU['people'])})(?:ই|ও|র|কে|টা|রা|দের|য\u09bcের|জি|জান|মা)*")
_CLAUSE_END = re.compile(r"\s*(?:[।॥,;:!?—–|.\n’”]|তুমি|$)")  # or goes on with its subject: ভাবতে তুমি
_COMMAND_END = re.compile(r"\s*(?:[।!]|না(?![\u0980-\u09fe])|$)")
_VERB_ENDING = re.compile("(.*[েুা])ন(ই|ও|নি)?")
_PRESENT = re.compile("(?!(?:গা|মা|কা|পা)ছো?$)(.*ছ)ো?")
_SURE = "হবে|লাগবে|অথবা|সেবা|বাবা|.*(?:তো|লো|নো|টো|গো)|(?:আ|বা|তে|কা)রো|বড\u09bcো"
_UNCLEAR = re.compile(f"(?!(?:{_SURE})$)(?:.*(?:বে|বা|ো)|রে)")

# Pronouns, and verbs as far as their endings are not the same for every verb. One familiar form may stand for two
# polite ones: the later of these wins, করেন before করুন.
_STEMS = {**{stem: stem for stem in _YOU["stems"]}, **_YOU["shifting_stems"]}
_VERBS = {
    **_YOU["irregular"],
    **{f"{stem}ন": f"{stem}ও" for stem in _YOU["long_stems"]},
    **{f"{high}ুন": f"{low}ো" for high, low in _STEMS.items()},
    **{f"{low}েন": f"{low}ো" for low in _STEMS.values()},
}
_BACK = {**_backwards(_VERBS), **_backwards(_YOU["commands"]), "হও": "হন", "নাও": "নেন"}
_FAMILIAR_PRONOUNS = _with(("ই", "ও", "টা"), _YOU["pronouns"])
_POLITE_PRONOUNS = _with(("ই", "ও", "টা"), _backwards(_YOU["pronouns"]))
_TO_FAMILIAR = {**_with(("ই", "ও", "নি"), _VERBS), **_FAMILIAR_PRONOUNS}
_TO_POLITE = {**_with(("নি",), _BACK), **_POLITE_PRONOUNS}


def _familiar(word: str, after: str) -> str | None:
    """A word of an আপনি reply in a তুমি reply, by what follows it; None where that is not certain."""
    if known := _TO_FAMILIAR.get(word):
        return known
    command: str | None = _YOU["commands"].get(word)
    if command and _COMMAND_END.match(after):
        return command
    if word in _YOU["no_verbs"] or not (verb := _VERB_ENDING.fullmatch(word)):
        return None if word == "দিন" and _CLAUSE_END.match(after) else word
    stem, suffix = verb[1], verb[2] or ""
    if stem.endswith("ছে"):
        return stem[:-1] + suffix
    return stem + suffix if stem.endswith(("লে", "বে", "তে")) else None


def _polite(word: str, after: str) -> str | None:
    """A word of a তুমি reply in an আপনি reply, by what follows it; None where that is not certain."""
    if known := _TO_POLITE.get(word):
        return known
    if word.endswith("ছিলে"):
        return word + "ন"
    if present := _PRESENT.fullmatch(word):
        return present[1] + "েন"
    return None if (word.endswith(("লে", "তে")) and _CLAUSE_END.match(after)) or _UNCLEAR.fullmatch(word) else word


@_rewriting
def other_register(text: str) -> str | None:
    """The reply with আপনি and তুমি exchanged, in pronouns and verbs; None where that is not certain (`bn.toml`)."""
    words = _WORD.findall(text)
    pronouns = {word for word in words if _ANY_PRONOUN.match(word)}
    to_familiar, to_polite = (pronouns <= known.keys() for known in (_FAMILIAR_PRONOUNS, _POLITE_PRONOUNS))
    if not pronouns or not (to_familiar or to_polite) or (to_familiar and any(map(_RESPECTED.fullmatch, words))):
        return None
    found = [(_familiar if to_familiar else _polite)(match[0], text[match.end() :]) for match in _WORD.finditer(text)]
    certain = iter([word for word in found if word is not None])
    return None if None in found else _WORD.sub(lambda _: next(certain), text)


class Context(NamedTuple):
    """What a change may use: a row, the empathic replies to another message, and the reply's register (`GENERIC`)."""

    row: LabelledReply
    elsewhere: Sequence[str]
    chance: random.Random
    register: str


class Perturbation(NamedTuple):
    """`apply` gives another reply to the same message, or None where it cannot; the score gets WORSE or stays SAME."""

    name: str
    expected: str
    apply: Callable[[Context], str | None]
    in_most: float = 0.0  # the share of messages in which it has to get worse; 0: it is enough that it does on average


def shuffled(text: str, chance: random.Random) -> str | None:
    """The words in another order, punctuation and blanks where they were; None for a text of less than three words."""
    word = re.compile('[^\\s।॥?!,;:“”‘’"()…—–|.]+')
    if len(set(words := word.findall(text))) < 3:
        return None
    order = words[:]
    while order == words:
        chance.shuffle(order)
    left = iter(order)
    return word.sub(lambda _: next(left), text)


def _stuffed(c: Context) -> str:
    return " ".join(c.chance.sample(STAMPS[c.register], c.chance.choice(STAMPS_IN_A_CHAIN)))


PERTURBATIONS: tuple[Perturbation, ...] = (
    Perturbation("negation put in", WORSE, lambda c: with_negation(c.row.reply)),
    Perturbation("negation taken out", WORSE, lambda c: without_negation(c.row.reply)),
    Perturbation("words shuffled", WORSE, lambda c: shuffled(c.row.reply, c.chance)),
    Perturbation("the message given back", WORSE, lambda c: c.row.message, IN_MOST),
    Perturbation("keywords stuffed", WORSE, _stuffed, IN_MOST),
    Perturbation("a generic reply", WORSE, lambda c: c.chance.choice(GENERIC[c.register])),
    Perturbation("another message's reply", WORSE, lambda c: c.chance.choice(c.elsewhere) if c.elsewhere else None),
    # Nonsense, of which nothing may be earned.
    Perturbation("the reply over and over", WORSE, lambda c: " ".join([c.row.reply] * 3), IN_MOST),
    Perturbation("a letter over and over", WORSE, lambda c: "’d" * 40, IN_MOST),
    Perturbation(
        "in Devanagari", WORSE, lambda c: re.sub("[ঀ-৾]", lambda sign: chr(ord(sign[0]) - 0x80), c.row.reply), IN_MOST
    ),
    Perturbation("UTF-8 read as cp1252", WORSE, lambda c: c.row.reply.encode().decode("cp1252", "replace"), IN_MOST),
    Perturbation("no word", WORSE, lambda c: "।", IN_MOST),
    Perturbation("register swapped", SAME, lambda c: other_register(c.row.reply)),
)


def perturbed(perturbation: Perturbation, data: LabelledSet, seed: int) -> dict[int, str]:
    """The perturbed text of each empathic row that it applies to and changes, by the row's number."""
    replies: dict[str, list[str]] = {}
    for row in data.rows:
        if row.empathic:
            replies.setdefault(row.id, []).append(row.reply)
    ids = list(replies)  # another message is the same one for all replies to a message, a seeded shift further on
    shift = random.Random(seed).randrange(1, len(ids)) if len(ids) > 1 else 0
    elsewhere = {name: replies[ids[(place + shift) % len(ids)]] if shift else [] for place, name in enumerate(ids)}
    found: dict[int, str] = {}
    for place, row in enumerate(data.rows):
        if row.empathic:
            # A generator of the row's own: what happens to it does not hang on the rows before it.
            chance = random.Random(f"{seed}:{perturbation.name}:{place}")
            familiar = re.search("(?<![\u0980-\u09fe])(?:তুমি|তোমা|তোমরা|তুই|তোর|তোকে)", row.reply)
            text = perturbation.apply(Context(row, elsewhere[row.id], chance, "তুমি" if familiar else "আপনি"))
            if text is not None and text != row.reply:
                found[place] = text
    return found
