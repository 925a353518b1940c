"""What the audit does to replies, spelt out: every example is Bengali that one could write."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bnbench.metrics import get_metric, normalize, tokenize
from bnbench.metrics.audit.perturbations import (
    GENERIC,
    PERTURBATIONS,
    SPELLINGS,
    STAMPS,
    STAMPS_IN_A_CHAIN,
    compose_nukta,
    decompose_nukta,
    other_register,
    perturbed,
    shuffled,
    with_negation,
    without_negation,
)
from bnbench.metrics.labelled import labelled_set

BY_NAME = {each.name: each for each in PERTURBATIONS}


@pytest.mark.parametrize(
    ("name", "text", "spelt"),
    [
        ("nukta as one sign or two", "ব\u09dc \u09af\u09bc", "ব\u09a1\u09bc \u09af\u09bc"),
        ("nukta as one sign or two", "ব\u09a1\u09bc", "ব\u09dc"),
        ("danda after a blank", "ভালো। থাকো।", "ভালো । থাকো ।"),
        ("danda as . or |", "ভালো। আছি। তুমি?", "ভালো. আছি| তুমি?"),
        ("ZWNJ after hasanta", "কষ্ট", "কষ\u09cd\u200cট"),
        ("ra-ya in two encodings", "\u09b0\u200d\u09cd\u09afাব", "\u09b0\u09cd\u200d\u09afাব"),
        ("digits Bengali or ASCII", "৫টা ১০", "5টা 10"),
        ("digits Bengali or ASCII", "5টা", "৫টা"),
        ("khanda ta as ta and ZWJ", "হঠা\u09ce", "হঠা\u09a4\u09cd\u200d"),
        ("o, au as one sign or two", "ভাল\u09cb ন\u09ccকা", "ভাল\u09c7\u09be ন\u09c7\u09d7কা"),
    ],
)
def test_spellings(name: str, text: str, spelt: str) -> None:
    assert SPELLINGS[name](text) == spelt


def test_there_are_eight_and_they_are_the_same_text() -> None:
    assert len(SPELLINGS) == 8
    for reply in labelled_set().replies:
        for name, spelling in SPELLINGS.items():
            assert tokenize(spelling(reply)) == tokenize(reply), (name, reply)


def test_a_text_without_what_is_spelt_comes_back() -> None:
    assert all(spelling("আমি") == "আমি" for spelling in SPELLINGS.values())


@pytest.mark.parametrize(
    ("reply", "negated"),
    [
        ("আমি বুঝতে পারছি।", "আমি বুঝতে পারছি না।"),
        ("আমরা পাশে আছি।", "আমরা পাশে নেই।"),
        ("তুমি একা বসে আছ। কষ্ট হচ্ছে?", "তুমি একা বসে নেই। কষ্ট হচ্ছে?"),
        ("তোমার রাগটা আমি বুঝি", "তোমার রাগটা আমি বুঝি না"),
        ("মনটা ভার হয়ে গেল।", "মনটা ভার হয়ে গেল না।"),
        ("তোমার জন্য মায়া লাগছে। কথাটা শুনতে চাই।", "তোমার জন্য মায়া লাগছে না। কথাটা শুনতে চাই না।"),
        ("বুকটা মোচড় দেয়।", "বুকটা মোচড় দেয় না।"),
        ("মনে মনে তোমার কথা ভাবতেছি।", "মনে মনে তোমার কথা ভাবতেছি না।"),
        ("আমি তোমার কথা শুনব।", "আমি তোমার কথা শুনব না।"),
        ("একাই সব টানছেন।", "একাই সব টানছেন না।"),
        ("পাশে থাকলে হাতটা ধরতাম।", "পাশে থাকলে হাতটা ধরতাম না।"),
    ],
)
def test_negation_put_in(reply: str, negated: str) -> None:
    assert with_negation(reply) == negated


@pytest.mark.parametrize(
    "reply",
    [
        "সবটা বলুন।",  # বলুন না coaxes
        "একটু বসো।",
        "মাথায় হাত বুলিয়ে দিই।",  # দিই না offers
        "আমি অনেক ভেবেছি।",  # its negative is ভাবিনি
        "তুমি একা সব টেনেছিলে।",
        "কষ্ট হচ্ছে?",
        "কী যে আনন্দ হচ্ছে!",
        "কী হয়েছিল বুঝতে পারছি।",  # an indirect question
        "তুমি একা নও, আমি আছি।",  # negated already
        "আজ ভাত গলা দিয়ে নামেনি, জানি।",
        "যদি বলতে মন চায়।",
        "কথাটা মনে পড়ে।",  # পড়ে need not be a finite verb
        "আমার খুব ইচ্ছে।",
        "বাবাকে সালাম।",
        "গাছের কাছে।",
    ],
)
def test_no_negation_is_put_in_where_it_would_not_negate(reply: str) -> None:
    assert with_negation(reply) is None


@pytest.mark.parametrize(
    ("reply", "affirmed"),
    [
        ("চিন্তা করবেন না।", "চিন্তা করবেন।"),
        ("এই দোষ তোমার না।", "এই দোষ তোমার।"),
        ("আমি আপনাকে ছেড়ে যাচ্ছি না। আপনি কি আসবেন না?", "আমি আপনাকে ছেড়ে যাচ্ছি। আপনি কি আসবেন না?"),
        ("বলতে না পারার কষ্টটা বুঝি", "বলতে পারার কষ্টটা বুঝি"),
        ("রাগ চেপে রেখো না।", "রাগ চেপে রেখো।"),
    ],
)
def test_negation_taken_out(reply: str, affirmed: str) -> None:
    assert without_negation(reply) == affirmed


@pytest.mark.parametrize(
    "reply",
    [
        "কষ্ট হচ্ছে, তাই না?",
        "একটু বলুন না।",
        "একটু বলো না।",
        "মানুষ না, দোকানের জিনিস।",
        "রাগ, না ভয়, বুঝতে চাই।",
        "সে আছে কি না।",
        "এসব কিছু না।",
        "না-বলা কথাগুলো জমে আছে।",
        "একটা কথাও না বলে পাশে থাকতাম।",
        "কেউ কথা বলে না।",
        "তুমি একা নও।",
    ],
)
def test_other_na_stay(reply: str) -> None:
    assert without_negation(reply) is None


@pytest.mark.parametrize(
    ("polite", "familiar"),
    [
        ("আপনি কেমন আছেন?", "তুমি কেমন আছ?"),
        ("আপনার কষ্টটা বুঝি, আপনি একা নন।", "তোমার কষ্টটা বুঝি, তুমি একা নও।"),
        ("আপনি তখন কী ভাবছিলেন?", "তুমি তখন কী ভাবছিলে?"),
        ("আপনাকে কথাটা কে বলল, জানেন?", "তোমাকে কথাটা কে বলল, জানো?"),
        ("আপনারা বাঁধ ভাঙতে দেননি, নিজেরা দাঁড়ান।", "তোমরা বাঁধ ভাঙতে দাওনি, নিজেরা দাঁড়াও।"),
        ("আপনিও নিজের দিকে তাকান, একটু ঘুমান।", "তুমিও নিজের দিকে তাকাও, একটু ঘুমাও।"),
    ],
)
def test_register_swapped_both_ways(polite: str, familiar: str) -> None:
    assert other_register(polite) == familiar
    assert other_register(familiar) == polite


@pytest.mark.parametrize(
    ("reply", "swapped"),
    [
        ("চিন্তা করবেন না, আপনার পাশে আছি।", "চিন্তা কোরো না, তোমার পাশে আছি।"),
        ("আপনি আর কী করবেন, সবটা বলুন।", "তুমি আর কী করবে, সবটা বলো।"),
        ("আপনি একাই টেনেছেন। এখন একটু শুনুন, আসুন।", "তুমি একাই টেনেছ। এখন একটু শোনো, এসো।"),
        ("এসো বোন, ভাতটা তুমি খাও।", "আসুন বোন, ভাতটা আপনি খান।"),
        ("তুমি থাকলে ভালো হবে, কথাটা মনে রেখো।", "আপনি থাকলে ভালো হবে, কথাটা মনে রাখবেন।"),
        ("আপনি কাউকে দেখেননি?", "তুমি কাউকে দেখোনি?"),
    ],
)
def test_register_swapped(reply: str, swapped: str) -> None:
    assert other_register(reply) == swapped


@pytest.mark.parametrize(
    "reply",
    [
        "কষ্টটা বুঝি।",  # nobody is spoken to
        "আপনি আর তুমি এক নন।",
        "আপনার বাবা কিছু বলেছেন?",  # his is the -েন
        "আপনি সব একাই গোছান, মাতুন।",  # not a known verb
        "তুমি পারবে।",  # he would পারবে too
        "তুমি আমাকে বললে, ভালো লাগল।",  # said, or if said
        "এতদিন ভাবতে তুমি একা।",
        "আপনজন হারানো কঠিন।",
        "তোকে কে বলল?",
        "আপনি একটু সময় দিন।",  # give, or day
        "কাল দেখবা, তোমার ভালো লাগবে।",
    ],
)
def test_an_uncertain_register_stays(reply: str) -> None:
    assert other_register(reply) is None


def test_the_spelling_of_nukta_is_kept() -> None:
    one, two = compose_nukta("আপনি একটু দাঁড়ান।"), decompose_nukta("আপনি একটু দাঁড়ান।")
    assert one != two
    assert other_register(one) == compose_nukta("তুমি একটু দাঁড়াও।")
    assert other_register(two) == decompose_nukta("তুমি একটু দাঁড়াও।")
    assert with_negation(compose_nukta("মন চায়।")) == compose_nukta("মন চায় না।")


def test_shuffled_words() -> None:
    text = "তোমার মনটা ভালো নেই, বুঝতে পারছি। কী হয়েছে?"
    found = shuffled(text, random.Random(1))
    assert found is not None and found != text
    assert Counter(tokenize(found)) == Counter(tokenize(text))
    assert [mark for mark in found if mark in ",।?"] == [",", "।", "?"] and found.endswith("?")
    assert shuffled("কেমন আছ?", random.Random(1)) is None


def test_perturbed_rows_are_seeded_and_come_from_where_they_should() -> None:
    data = labelled_set("development")
    empathic = {place for place, row in enumerate(data.rows) if row.kind == "empathic"}
    for each in PERTURBATIONS:
        found = perturbed(each, data, 42)
        assert found and set(found) <= empathic
        assert found == perturbed(each, data, 42)
        assert all(normalize(text) and text != data.rows[place].reply for place, text in found.items())
    changed = [name for name in BY_NAME if perturbed(BY_NAME[name], data, 42) != perturbed(BY_NAME[name], data, 7)]
    assert changed == ["words shuffled", "keywords stuffed", "a generic reply", "another message's reply"]


NONSENSE = ("the reply over and over", "a letter over and over", "in Devanagari", "UTF-8 read as cp1252", "no word")


@pytest.mark.parametrize("metric", ["keyword-empathy", "semantic-empathy"])
def test_nonsense_earns_nothing(metric: str) -> None:
    data = labelled_set("held-out")
    found = [
        (text, data.messages[row]) for name in NONSENSE for row, text in perturbed(BY_NAME[name], data, 42).items()
    ]
    replies, messages = zip(*found, strict=True)
    assert len(found) >= 5 * int(data.empathic.sum())
    assert not get_metric(metric).score(replies, messages=messages).table[:, :-1].any()
    assert get_metric(metric).score(data.replies, messages=data.messages).value > 5


def test_replaced_replies() -> None:
    data = labelled_set("development")
    author = {row.reply: row.id for row in data.rows if row.kind == "empathic"}
    copied, other = (
        perturbed(BY_NAME[name], data, 42) for name in ("the message given back", "another message's reply")
    )
    stuffed, generic = (perturbed(BY_NAME[name], data, 42) for name in ("keywords stuffed", "a generic reply"))
    assert len(copied) == len(other) == len(stuffed) == len(generic) == len(author)
    for place, row in enumerate(data.rows):
        if row.kind == "empathic":
            register = "তুমি" if "তোমা" in row.reply or "তুমি" in row.reply else "আপনি"
            assert copied[place] == row.message
            assert author[other[place]] != row.id
            assert generic[place] in GENERIC[register]
            stamps = [stamp for stamp in STAMPS[register] if stamp in stuffed[place]]
            assert len(stamps) in STAMPS_IN_A_CHAIN and len(stuffed[place]) == len(" ".join(stamps))


def test_the_two_registers_of_what_is_put_in_say_the_same() -> None:
    for texts in (GENERIC, STAMPS):
        for polite, familiar in zip(texts["আপনি"], texts["তুমি"], strict=True):
            swapped = other_register(polite)
            assert swapped is None or swapped == familiar
