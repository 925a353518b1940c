import ftfy
import pytest

from bnbench.data.corpus import is_lost, load_corpus, repair

TEXT = "এটা সত্যিই খারাপ। আপনি কি ভালো আছেন? ৫০% ঠিক — “হ্যাঁ”"


def as_cp1252(text: str) -> str:
    """What a program that reads UTF-8 as cp1252 shows; the five undefined bytes stay C1 characters."""
    return "".join(bytes([b]).decode("cp1252", errors="ignore") or chr(b) for b in text.encode("utf-8"))


def test_mojibake_is_undone_once_and_twice():
    assert as_cp1252(TEXT) != TEXT
    assert repair(as_cp1252(TEXT)) == TEXT
    assert repair(as_cp1252(as_cp1252(TEXT))) == TEXT


def test_mojibake_beside_sound_bengali_is_undone():
    assert repair(f"ভালো {as_cp1252('মন')} নেই") == "ভালো মন নেই"


@pytest.mark.parametrize("text", [TEXT, "café naïve à la carte", "à¦", "", "€ 50, £5", "🙂 ঠিক আছে"])
def test_sound_text_is_left_alone(text):
    assert repair(text) == text


@pytest.mark.parametrize(
    ("damaged", "sound"),
    [
        ("\ufeffআমি ভালো আছি।", "আমি ভালো আছি।"),
        ("কি খেলা এবং পুরস্কার প্রকার>", "কি খেলা এবং পুরস্কার প্রকার"),
        ("খুব ভালো @", "খুব ভালো"),
        ("আমি\u00a0 \u00a0ভালো   আছি", "আমি ভালো আছি"),
        ("ঠিক আছেÂ\u00a0তাহলে", "ঠিক আছে তাহলে"),
        ("ভালোো থেকো", "ভালো থেকো"),
        ("ধন্যবাদ user<|end_header_id|> আপনাকে<|eot_id|>", "ধন্যবাদ আপনাকে"),
        ("প্রথম লাইন।\r\n  দ্বিতীয় লাইন।", "প্রথম লাইন।\nদ্বিতীয় লাইন।"),
    ],
)
def test_damage_seen_in_real_rows(damaged, sound):
    assert repair(damaged) == sound


@pytest.mark.parametrize(
    "text", ["মেইল করুন a.b@example.com ঠিকানায়", "৫ > ৩ আর ২ < ৪", "র\u200d\u09cdযাব ও ক্‌ষ", "@রিমা কেমন আছ?"]
)
def test_what_is_no_damage_stays(text):
    assert repair(text) == text


TEXTS = [text for e in load_corpus(None).select("all") for text in (e.question, e.reference)]
DAMAGE = {  # how a text was damaged, and how many of the 480 are mended
    "a blank for the no-break space": (lambda t: as_cp1252(t).replace("\u00a0", " "), 480),
    "the same, read wrongly twice": (lambda t: as_cp1252(as_cp1252(t)).replace("\u00a0", " "), 480),
    "half of it damaged": (lambda t: as_cp1252(t[: len(t) // 2]) + t[len(t) // 2 :], 480),
    "another encoding": (lambda t: t.encode().decode("mac_roman"), 480),
    "bytes without a character left out": (lambda t: "".join(c for c in as_cp1252(t) if not "\x80" <= c < "\xa0"), 4),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_lost_a_byte_is_mended_or_counted_as_lost(damage):
    spoil, mended = DAMAGE[damage]
    made = [repair(spoil(text)) for text in TEXTS]
    assert sum(found == text for found, text in zip(made, TEXTS, strict=True)) == mended
    assert all(is_lost(found) == (found != text) for found, text in zip(made, TEXTS, strict=True))


def test_sound_bengali_is_never_fixed():
    assert [text for text in TEXTS if repair(text) != text or is_lost(text)] == []
    assert sum(ftfy.fix_text(text) != text for text in TEXTS) > 400  # why it is never used


@pytest.mark.parametrize(
    ("text", "lost"), [("?????? ???? ?????? ??", True), ("সত্যি?? কেন??", False), ("কী করব ??? বলুন", False)]
)
def test_words_of_question_marks_are_lost(text, lost):
    assert is_lost(repair(text)) == lost
