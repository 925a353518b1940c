"""What is done to an empathic reply, and what a metric of empathy should then do.

A perturbation gives another reply to the same message, or None where it does not apply. Each is well-formed Bengali
except the one that shuffles the words. What is put in is written here, in আপনি and in তুমি, whichever the reply uses.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bnbench.metrics.audit.negation import with_negation, without_negation
from bnbench.metrics.audit.register import other_register
from bnbench.metrics.labelled import EMPATHIC, LabelledReply, LabelledSet

WORSE, SAME = "worse", "same"
IN_MOST = 0.95
"""The share of messages in which a copy and stuffed keywords have to score below the message's empathic replies."""

GENERIC = {
    "আপনি": (
        "জীবনে ভালো আর মন্দ, দুই রকম সময়ই আসে। ধৈর্য ধরে এগিয়ে যান, সময়ের সঙ্গে সব ঠিক হয়ে যায়।",
        "আপনার কথা জানলাম। নিজের খেয়াল রাখবেন। আপনার জন্য শুভকামনা রইল।",
        "বিষয়টা গুরুত্বপূর্ণ। ভেবেচিন্তে সিদ্ধান্ত নিন, দরকার হলে অভিজ্ঞ কারও পরামর্শ নিন।",
        "লেখার জন্য ধন্যবাদ। আর কিছু জানার থাকলে আপনি বলতে পারেন।",
    ),
    "তুমি": (
        "জীবনে ভালো আর মন্দ, দুই রকম সময়ই আসে। ধৈর্য ধরে এগিয়ে যাও, সময়ের সঙ্গে সব ঠিক হয়ে যায়।",
        "তোমার কথা জানলাম। নিজের খেয়াল রেখো। তোমার জন্য শুভকামনা রইল।",
        "বিষয়টা গুরুত্বপূর্ণ। ভেবেচিন্তে সিদ্ধান্ত নাও, দরকার হলে অভিজ্ঞ কারও পরামর্শ নাও।",
        "লেখার জন্য ধন্যবাদ। আর কিছু জানার থাকলে তুমি বলতে পারো।",
    ),
}
STAMPS = {
    "আপনি": (
        "আপনার কষ্টটা আমি বুঝতে পারছি।",
        "আমি সত্যিই দুঃখিত।",
        "আপনি একা নন।",
        "আমরা আপনার পাশে আছি।",
        "মন খারাপ করবেন না।",
        "চিন্তা করবেন না।",
        "আশা হারাবেন না।",
        "সাহস রাখুন।",
        "আপনার অনুভূতি খুবই স্বাভাবিক।",
        "সব ঠিক হয়ে যাবে।",
        "আপনার জন্য অনেক ভালোবাসা।",
        "এখন কেমন লাগছে?",
    ),
    "তুমি": (
        "তোমার কষ্টটা আমি বুঝতে পারছি।",
        "আমি সত্যিই দুঃখিত।",
        "তুমি একা নও।",
        "আমরা তোমার পাশে আছি।",
        "মন খারাপ কোরো না।",
        "চিন্তা কোরো না।",
        "আশা হারিয়ো না।",
        "সাহস রাখো।",
        "তোমার অনুভূতি খুবই স্বাভাবিক।",
        "সব ঠিক হয়ে যাবে।",
        "তোমার জন্য অনেক ভালোবাসা।",
        "এখন কেমন লাগছে?",
    ),
}
STAMPS_IN_A_CHAIN = range(3, 9)
"""Short chains are harder to tell from a reply than long ones."""

_FAMILIAR = re.compile("(?<![\u0980-\u09fe])(?:তুমি|তোমা|তোমরা|তুই|তোর|তোকে)")
_WORD = re.compile('[^\\s।॥?!,;:“”‘’"()…—–|.]+')


@dataclass(frozen=True)
class Context:
    """What a perturbation may use beside the reply: the empathic replies to another message, and a seeded generator."""

    row: LabelledReply
    elsewhere: Sequence[str]
    chance: random.Random

    @property
    def register(self) -> str:
        """ "তুমি" where the reply says so, else "আপনি"."""
        return "তুমি" if _FAMILIAR.search(self.row.reply) else "আপনি"


@dataclass(frozen=True)
class Perturbation:
    """`expected` is what the score should do: get "worse" or stay the "same".

    `in_most` is the share of messages in which it has to get worse; 0: it is enough that it does on average.
    """

    name: str
    expected: str
    apply: Callable[[Context], str | None]
    in_most: float = 0.0


def shuffled(text: str, chance: random.Random) -> str | None:
    """The words in another order, punctuation and blanks where they were; None for a text of less than three words."""
    words = _WORD.findall(text)
    if len(set(words)) < 3:
        return None
    order = words[:]
    while order == words:
        chance.shuffle(order)
    left = iter(order)
    return _WORD.sub(lambda _: next(left), text)


def _stuffed(context: Context) -> str:
    return " ".join(context.chance.sample(STAMPS[context.register], context.chance.choice(STAMPS_IN_A_CHAIN)))


PERTURBATIONS: tuple[Perturbation, ...] = (
    Perturbation("negation put in", WORSE, lambda c: with_negation(c.row.reply)),
    Perturbation("negation taken out", WORSE, lambda c: without_negation(c.row.reply)),
    Perturbation("words shuffled", WORSE, lambda c: shuffled(c.row.reply, c.chance)),
    Perturbation("the message given back", WORSE, lambda c: c.row.message, IN_MOST),
    Perturbation("keywords stuffed", WORSE, _stuffed, IN_MOST),
    Perturbation("a generic reply", WORSE, lambda c: c.chance.choice(GENERIC[c.register])),
    Perturbation("another message's reply", WORSE, lambda c: c.chance.choice(c.elsewhere) if c.elsewhere else None),
    Perturbation("register swapped", SAME, lambda c: other_register(c.row.reply)),
)


def perturbed(perturbation: Perturbation, data: LabelledSet, seed: int) -> dict[int, str]:
    """The perturbed text of each empathic row that it applies to and changes, by the row's number.

    "Another message" is the same one for all replies to a message, a seeded shift further on.
    """
    replies: dict[str, list[str]] = {}
    for row in data.rows:
        if row.kind == EMPATHIC:
            replies.setdefault(row.id, []).append(row.reply)
    elsewhere = _shifted(replies, seed)
    found: dict[int, str] = {}
    for place, row in enumerate(data.rows):
        if row.kind == EMPATHIC:
            chance = random.Random(f"{seed}:{perturbation.name}:{place}")
            text = perturbation.apply(Context(row, elsewhere[row.id], chance))
            if text is not None and text != row.reply:
                found[place] = text
    return found


def _shifted(replies: Mapping[str, Sequence[str]], seed: int) -> dict[str, Sequence[str]]:
    ids = list(replies)
    if len(ids) < 2:
        return dict.fromkeys(ids, ())
    shift = random.Random(seed).randrange(1, len(ids))
    return {name: replies[ids[(place + shift) % len(ids)]] for place, name in enumerate(ids)}
