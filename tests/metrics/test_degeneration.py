"""Each flag of a broken reply, on replies that have just that, and on healthy ones."""

from __future__ import annotations

import numpy as np
import pytest

from bnbench.metrics import Degeneration, Diversity, Texts

HEALTHY = [
    "আপনার কষ্টটা বুঝতে পারছি। আজ একটু বিশ্রাম নিন, তারপর কথা বলি।",
    "খুব খুব ভালো! হাহাহাহা 😊",
    "না না না, এমন ভাববেন না।",
    "GPT-4 দিয়ে লেখা যায়, তবে নিজে লিখলে মন ভালো হয়।",
    "১,৫০০ টাকা ৫:৩০-এ দিয়েছি।",
]


def flagged(reply: str, message: str | None = None, cut: bool | None = None) -> set[str]:
    metric = Degeneration()
    texts = Texts.of([reply], messages=None if message is None else [message], cut=None if cut is None else [cut])
    row = dict(zip(metric.columns, metric.statistics(texts)[0], strict=True))
    flags = ("empty", "cut", "replacement", "template", "loop", "wrong_script", "copy", "unfinished")
    found = {name for name in flags if row[name]}
    assert row["degenerate"] == bool(found - {"unfinished"})
    return found


@pytest.mark.parametrize("reply", HEALTHY)
def test_healthy_replies_have_no_flag(reply: str) -> None:
    assert flagged(reply, message="আমার মন খারাপ, কী করব?", cut=False) == set()


@pytest.mark.parametrize(
    ("reply", "flags"),
    [
        ("", {"empty"}),
        ("।?!", {"empty"}),
        (" \u200b\n", {"empty"}),
        ("সত্যি বলছ\ufffd", {"replacement", "unfinished"}),
        ("ভালো আছি।<|eot_id|>", {"template"}),
        ("user<|end_header_id|> ভালো আছি।", {"template"}),
        ("আমি জানি না। আমি জানি না। আমি জানি না।", {"loop"}),
        ("ভালো ভালো ভালো ভালো ভালো ভালো।", {"loop"}),
        ("আআআআআআআআআআআআ।", {"loop"}),
        ("কাকাকাকাকাকাকাকাকাকাকা।", {"loop"}),
        ("I am sorry to hear that.", {"wrong_script"}),
        ("मुझे दुख है।", {"wrong_script"}),
        ("আপনি কেমন আছেন", {"unfinished"}),
    ],
)
def test_each_flag(reply: str, flags: set[str]) -> None:
    assert flagged(reply) == flags


def test_copy_of_the_message_and_the_token_limit() -> None:
    message = "আমার চাকরিটা চলে গেছে, এখন কী করব বুঝতে পারছি না।"
    assert flagged("আমার চাকরিটা চলে গেছে, এখন কী করব বুঝতে পারছি না।", message) == {"copy"}
    assert flagged("চাকরিটা চলে গেছে শুনে খারাপ লাগছে, একটু সময় নিন।", message) == set()
    assert flagged("ভালো আছি।", cut=True) == {"cut"}


def test_rates_are_out_of_what_is_known() -> None:
    metric = Degeneration()
    half = metric.statistics(Texts.of(["ভালো আছি।", "ভালো আছি।"], cut=[True, False]))
    unknown = metric.statistics(Texts.of(["ভালো আছি।", "ভালো আছি।"]))
    made = dict(zip(metric.values, metric.formula(np.vstack([half, unknown]).sum(axis=0)), strict=True))
    assert (made["cut"], made["degenerate"], made["copy"]) == (50.0, 25.0, 0.0)


def test_lengths_letters_and_repeated_ngrams() -> None:
    made = (
        Degeneration()
        .score(["ক খ", "ক খ গ ঘ ঙ চ ছ", "ক abc", "ক খ গ ঘ ক খ গ ঘ"], ["ক খ গ ঘ ঙ চ ছ", "ক খ", "ক খ", "ক খ গ"])
        .scores
    )
    assert (made["too_short"], made["too_long"]) == (25.0, 25.0)
    assert made["foreign_letters"] == pytest.approx(100 * 3 / (2 + 7 + 4 + 8))
    assert made["repeated_4grams"] == pytest.approx(100 * 1 / (4 + 5))
    assert set(Degeneration().values) >= {"degenerate", "empty", "loop"}


def test_diversity() -> None:
    made = Diversity().score(["ক খ ক খ", "ক খ গ।"], ["ক খ গ ঘ ঙ চ ছ", "ক খ গ ঘ ঙ চ ছ"]).scores
    assert made["distinct1"] == pytest.approx(100 * 5 / 7)
    assert made["distinct2"] == pytest.approx(100 * 4 / 5)
    assert made["length_ratio"] == pytest.approx(50)
    assert Diversity().score(["ক"]).scores == {"distinct1": 100.0, "distinct2": 0.0, "length_ratio": 0.0}
