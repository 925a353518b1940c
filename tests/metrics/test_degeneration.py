"""Each flag of a broken reply, on replies that have just that, and on healthy ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnbench.metrics import Degeneration, Diversity, Texts
from bnbench.metrics.degeneration import loop, nonsense

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


@pytest.mark.parametrize(
    ("reply", "looping"),
    [
        ("’d" * 12, True),
        (f"{'ক্ষ-' * 12}", True),
        ("১২৩৪৫৬৭৮ " * 3, False),  # numbers, as in a table
        ("❤️" * 12 + " পাশে আছি।", False),
        ("😊" * 30, True),
        ("ভালো" + "." * 300, False),
        ("ভালো আছি! " * 2 + "ভালো থেকো।", False),
        (" ".join(f"শব্দ{chr(0x995 + n % 25)}" for n in range(25)) + " শেষ।", False),
        ("একটি দীর্ঘ কথা, " + " ".join(f"{chr(0x995 + n)}{chr(0x9BE + n % 3)}" for n in range(30)) + "।", False),
    ],
)
def test_what_a_loop_is(reply: str, looping: bool) -> None:
    metric = Degeneration()
    assert metric.score([reply]).scores["loop"] == 100 * looping


@pytest.mark.parametrize("period", [2, 20, 21, 47, 300])
def test_a_loop_is_found_at_any_period(period: int) -> None:
    block = [f"শব্দ{chr(0x995 + n // 30)}{chr(0x995 + n % 30)}" for n in range(period)]
    for before in (0, 7):
        words = [f"আগে{chr(0x995 + n)}" for n in range(before)]
        assert loop([*words, *block * 3], lambda _: 3)
        assert not loop([*words, *block * 3][:-1], lambda _: 3)
        assert Degeneration().score([" ".join([*words, *block * 3])]).scores["loop"] == 100


@given(st.text("কখগ", max_size=24), st.text("কখগঘ", min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_a_loop_is_what_trying_every_block_finds(before: str, block: str, times: int, least: int) -> None:
    def needed(block: str) -> int:
        return least if len(block) < 3 else 3

    def again(start: int, size: int) -> bool:
        part = text[start : start + size]
        primitive = (part + part).find(part, 1) == size
        return primitive and text.startswith(part * max(3, needed(part)), start)

    text = before + block * times
    sizes = range(1, len(text) // 3 + 1)
    assert loop(text, needed) == any(again(start, size) for size in sizes for start in range(len(text)))


def test_nonsense() -> None:
    none = ["", "।?!", "\ufffd\ufffd কি", "à¦•à¦¿ à¦•à¦°à¦¬", "मुझे दुख है।", "I am sorry.", "’d" * 40, "জানি না। " * 3]
    some = [*HEALTHY, "সত্যি বলছ\ufffd", "😊", "OK, ঠিক আছে।", "ভালো আছি।<|eot_id|>"]
    assert nonsense(Texts.of([*none, *some])).tolist() == [True] * len(none) + [False] * len(some)


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
