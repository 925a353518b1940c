"""bn1: one spelling for what readers see as one word, and nothing else touched."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bnbench.metrics import InputError, Normalizer, UsageError, flags, normalize
from bnbench.metrics.normalization import _PLAIN, RULE_NAMES, RULES, UNCHANGED
from bnbench.metrics.tokenization import _TOKEN

YA_NUKTA, RRA, RHA = "\u09af\u09bc", "\u09a1\u09bc", "\u09a2\u09bc"
BENGALI = st.lists(
    st.one_of(
        st.characters(min_codepoint=0x0980, max_codepoint=0x09FF),
        st.sampled_from(
            list(" \n\t.|।৷:,?!'\"”’)-@/<>[]#aAZ059\u200c\u200d\u200b\ufeff\ufffd\u00c2\u00a0😊\ufe0f\u20e3")
            + list("\u0302\u0338\u0323\u0327\u212b\u2000\u037e\u0340\u226e\u226f")
        ),
        st.sampled_from(
            [
                "মো",
                "ড",
                "এ",
                "কে.",
                "না.",
                "কম",
                *"ত্ে়াযরড",
                "দু",
                "ত্",
                "র‍্য",
                "য়",
                "<|",
                "|>",
                "eot_id",
                "user",
                "[INST]",
                "\ud800",
            ]
        ),
    ),
    max_size=30,
).map("".join)


@pytest.mark.parametrize(
    "text",
    [
        "৫:৩০",
        "১,৫০০.৭৫",
        f"২{YA_NUKTA}",
        "৳৫০",
        "nila.rahman5@example.com",
        "The weather isn't bad, e.g. 25 degrees".replace("25", "many"),
        "👨‍👩‍👧 ❤️ 👍🏽 5️⃣ 🇧🇩",
        "“ভালো” ‘না’",
        "ড. রহমান",
        "মো. করিম",
        "এ. কে. ফজলুল হক",
        "এম. এ. পাস",
        "আমি ড. রহমানকে চিনি",
        "শ. ম. রেজাউল করিম, আ. স. ম. আবদুর রব, ন. ম. রহমান",
        "আ. লীগের আ.রহমান",
        "ক. প্রথম\nক.\nপরে",
        "শাহজালাল (র.)",
        "কি.মি.",
        "বি.বি.সি.",
        "প্রথমআলো.কম",
        "ভালো...",
        "https://example.com/a?b=c.",
        "a | b",
        "১. প্রথম",
        f"বিষ{YA_NUKTA}: মন",
        "COVID-19",
        "সূর্য",
    ],
)
def test_leaves_alone(text: str) -> None:
    assert normalize(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u09df\u09dc\u09dd", YA_NUKTA + RRA + RHA),
        ("প\u09a1\u09be\u09bc", f"প{RRA}\u09be"),
        ("ব\u09a1\u09c7\u09bc\u09be", f"ব{RRA}\u09cb"),
        ("ক্\u09cdষমা", "ক্ষমা"),
        ("সত্\u200c\u09cd", "সৎ"),
        ("হঠাত\u200c\u09cd", "হঠাৎ"),
        ("A\u0302 ভালো", "ভালো"),
        ("A\u200b\u0302 ভালো", "ভালো"),
        ("না.কে.", "না।কে।"),
        ("<|eot_id|\u226fভালো", "<|eot_id|\u226fভালো"),
        ("<|eot_id|>\u0338ভালো", "<|eot_id|\u226fভালো"),
        ("ক\u09c7\u09beন", "ক\u09cbন"),
        ("ক\u09c7\u09d7", "ক\u09cc"),
        ("অ\u09beপনি", "আপনি"),
        ("হঠাত\u09cd\u200d", "হঠা\u09ce"),
        ("উত\u09cd\u200dসব", "উ\u09ceসব"),
        ("হঠাত\u09cd", "হঠা\u09ce"),
        ("সত্য", "সত্য"),
        ("র\u200d\u09cdযাব", "র\u09cdযাব"),
        ("র\u09cd\u200dযাব", "র\u09cdযাব"),
        ("র\u200c\u09cdযাব", "র\u09cdযাব"),
        ("ক\u09cd\u200cষ", "ক\u09cdষ"),
        ("ভালো\u200b\ufeff\u200e", "ভালো"),
        ("ভা\u00adলো\u0007\ud800", "ভালো"),
        ("ভালো\u00a0আছি\t\r\n ভালো", "ভালো আছি\nভালো"),
        ("ভাল.", "ভাল।"),
        ("কমবে.আমি না.কেন", "কমবে।আমি না।কেন"),
        ("শেষে এল. গেল.", "শেষে এল। গেল।"),
        ("ভাল.", "ভাল।"),
        ("কমবে.আমি না.কেন", "কমবে।আমি না।কেন"),
        ("শেষে এল. গেল.", "শেষে এল। গেল।"),
        ("ভাল | মন্দ", "ভাল । মন্দ"),
        ("“ভাল” | মন্দ", "“ভাল” । মন্দ"),
        ("ভাল.", "ভাল।"),
        ("কমবে.আমি না.কেন", "কমবে।আমি না।কেন"),
        ("শেষে এল. গেল.", "শেষে এল। গেল।"),
        ("ভাল. মন্দ.", "ভাল। মন্দ।"),
        ("“ভাল”.", "“ভাল”।"),
        ("“ভাল.”", "“ভাল।”"),
        ("ভাল.\nমন্দ", "ভাল।\nমন্দ"),
        ("ড. রহমান ভাল.", "ড. রহমান ভাল।"),
        ("আঁই ন যাইতাম ন. তুঁই যাও.", "আঁই ন যাইতাম ন। তুঁই যাও।"),
        ("কনঅ কতা হুনে ন.আঁর কী", "কনঅ কতা হুনে ন।আঁর কী"),
        ("মাতে ন. ড. রহমান আইলে", "মাতে ন। ড. রহমান আইলে"),
        ("“যাইতাম ন.” হিতে কইল", "“যাইতাম ন।” হিতে কইল"),
        ("হ. বুঝছি. শক্ত হ. খোঁজ ল. আছি ত.", "হ। বুঝছি। শক্ত হ। খোঁজ ল। আছি ত।"),
        ("খুইলা ক.\nউত্তর খ.", "খুইলা ক।\nউত্তর খ।"),
        ("আসবে এ.\nক. ভাত", "আসবে এ।\nক. ভাত"),
        ("ন. ম. রহমান যান ন.", "ন. ম. রহমান যান ন।"),
        ("বাক্\u200cস. মন্দ", "বাক্স। মন্দ"),
        ("তুমি কে.", "তুমি কে।"),
        ("জন্ম ১৯৭১.", "জন্ম ১৯৭১।"),
        ("5:30", "৫:৩০"),
        ("1,500.75 টাকা", "১,৫০০.৭৫ টাকা"),
        ("a5@b.com ৫ 7", "a5@b.com ৫ ৭"),
        ("MP৩", "MP3"),
        ("COVID-১৯", "COVID-19"),
        ("২০২৩-এর", "২০২৩-এর"),
        ("দু:খ. নি:শ্বাস", "দুঃখ। নিঃশ্বাস"),
        ("মো: করিম", "মোঃ করিম"),
        ("ভালো\ufffd", "ভালো"),
        ("user<|end_header_id|>ভালো<|eot_id|>", "ভালো"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nভালো", "ভালো"),
        ("ভালো<|eot_", "ভালো"),
        ("[INST] ভালো [/INST]</s>", "ভালো"),
        ("<start_of_turn>model\nভালো<end_of_turn>", "ভালো"),
        ("Âভালো Â আছি", "ভালো আছি"),
        ("Ângela", "Ângela"),
    ],
)
def test_changes(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_rules_are_named_and_reasoned_and_can_be_switched_off() -> None:
    assert len(set(RULE_NAMES)) == len(RULES) == 15
    changed_by = {
        "template": "<|eot_id|>ভাল", "replacement": "ভা\ufffdল", "cp1252": "Â ভাল", "invisible": "ভা\u200bল",
        "khanda_ta": "হঠাত্\u200d ক", "ra_ya": "র\u200d্যাব", "joiners": "ক্\u200cষ", "nfc": "\u09df", "vowel_a": "অাপনি",
        "nukta": "ড\u09be\u09bc", "hasanta": "ক্\u09cdষ",
        "visarga": "দু:খ", "digits": "5", "danda": "ভাল৷", "full_stop": "ভাল.",
    }  # fmt: skip
    assert set(changed_by) == set(RULE_NAMES)
    for name, text in changed_by.items():
        others = ["joiners"] if name == "ra_ya" else []  # without the joiners there is only one encoding left
        assert normalize(text, off=others) != normalize(text, off=[name, *others]), name
        assert Normalizer(off=frozenset([name])).signature == f"bn1-{name}"
    assert Normalizer(off=frozenset(["danda", "digits"])).signature == "bn1-digits-danda"


def test_profiles() -> None:
    assert normalize(" \u09df ৫:৩০ ", profile="none") == " \u09df ৫:৩০ "
    assert normalize("\u09df ভাল৷", profile="nfc") == f"{YA_NUKTA} ভাল৷"
    assert normalize("৫:৩০", profile="indicnlp") == "৫ঃ৩০"  # its known fault, kept for comparison


def test_wrong_requests_say_what_there_is() -> None:
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        normalize("ভাল", off=["digit"])
    with pytest.raises(UsageError, match="indicnlp"):
        normalize("ভাল", profile="bn2")
    with pytest.raises(UsageError, match="nfc has no rule 'digits'"):
        normalize("ভাল", profile="nfc", off=["digits"])
    with pytest.raises(InputError, match="not NoneType"):
        normalize(None)  # type: ignore[arg-type]


def test_flags() -> None:
    assert flags("ভালো আছি।") == frozenset()
    assert flags("সত্য\ufffd") == {"replacement"}
    assert flags("ভালো<|eot_id|>\ufffd") == {"replacement", "template"}


@given(st.lists(st.tuples(BENGALI, st.sampled_from(["NFC", "NFD"])), max_size=4))
@settings(max_examples=300, deadline=None)
def test_canonically_equivalent_texts_become_one(parts: list[tuple[str, str]]) -> None:
    mixed = "".join(unicodedata.normalize(form, text) for text, form in parts)
    assert normalize(mixed) == normalize("".join(text for text, _ in parts))


@pytest.mark.no_cover
@given(BENGALI)
@settings(max_examples=1000, deadline=None)
@example("অাই. কে.")
@example("বাক্\u200cস. ")
@example("ভালো\u200b.")
@example("কে.\nকে.")
@example("সে এল. ড.")
def test_is_idempotent_and_canonical(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert normalize(unicodedata.normalize("NFD", text)) == normalize(unicodedata.normalize("NFC", text)) == once
    assert not re.search("[\u200b\ufeff\ufffd\ud800-\udfff]|  | \n|\n ", once)


def _rule_by_rule(text: str) -> str:
    """bn1 without any of its shortcuts."""
    for rule in RULES:
        if "text" in rule.scope:
            text = rule.apply(text)
    lines = []
    for line in text.splitlines():
        words = line.split()
        for _ in range(4):
            for rule in RULES:
                if "word" in rule.scope:
                    words = list(map(rule.apply, words))
        lines.append(" ".join(filter(None, words)))
    text = "\n".join(filter(None, lines))
    for rule in RULES:
        if rule.scope == "sentence":
            text = rule.apply(text)
    return text


@given(BENGALI)
@settings(max_examples=400, deadline=None)
def test_shortcuts_give_what_all_rules_give(text: str) -> None:
    plain = _rule_by_rule(_rule_by_rule(text))
    assert normalize(text) == plain
    whole = Normalizer()
    lazily = ["".join(map(whole.words.__getitem__, line.split())) for line in whole.beyond_words(text).splitlines()]
    assert [line for line in lazily if line] == [line.replace(" ", "") for line in plain.splitlines()]


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "text", ["ক" * 10**6, "ক." * 300_000, "a." * 300_000, "<|" * 300_000, "5a" * 300_000, "| " * 300_000]
)
def test_a_megabyte_takes_linear_time(text: str) -> None:
    assert normalize(text)


@pytest.mark.no_cover
def test_what_is_passed_over_at_sight_no_rule_changes() -> None:
    block = [chr(code) for code in range(0x0980, 0x0A00)]
    marks = ["", *"কতঅরযড", *"\u09bc\u09be\u09c7\u09cd\u09d7\u200c\u200d।:-'’5a"]
    words = [a + b + c for a in block for b in marks for c in marks]
    word_rules = [rule for rule in RULES if "word" in rule.scope] * 3
    unchanged = plain = 0
    for word in words:
        every = word
        for rule in word_rules:
            every = rule.apply(every)
        if UNCHANGED.fullmatch(word):
            assert every == word and _TOKEN.findall(word) == [word], ascii(word)
            unchanged += 1
        # The rules for plain words do all that every rule does.
        assert Normalizer().words[word] == every, ascii(word)
        plain += _PLAIN.fullmatch(word) is not None
    assert 5_000 < unchanged < plain < len(words)
