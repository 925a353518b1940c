"""Bengali in Latin letters becomes Bengali, in the spellings that people use; nothing else is touched."""

from __future__ import annotations

import pytest

from bnbench.metrics import KeywordEmpathy, SemanticEmpathy
from bnbench.metrics.romanised import bengali


@pytest.mark.parametrize(
    ("latin", "expected"),
    [
        ("ami bujhte parchi", "আমি বুঝতে পারছি"),
        ("ami bujhte parci", "আমি বুঝতে পারছি"),
        ("tomar jonno khub kharap lagche", "তোমার জন্য খুব খারাপ লাগছে"),
        ("tmr kosto ta bujhi, pashe achi", "তোমার কষ্ট টা বুঝি, পাশে আছি"),
        ("chinta koro na, sob thik hoye jabe.", "চিন্তা করো না, সব ঠিক হয়ে যাবে."),
        ("Apnar valobasha ekhono barite ache", "আপনার ভালোবাসা এখনো বাড়িতে আছে"),
        ("mon kharap? ki hoyeche bolo", "মন খারাপ? কী হয়েছে বলো"),
    ],
)
def test_romanised_words_become_the_words_they_sound_like(latin: str, expected: str) -> None:
    assert bengali(latin) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "আমি বুঝতে পারছি।",
        "আজ office এ boss এর কথা শুনে মন খারাপ।",
        "I am so sorry for your loss. It must be hard, and I am here with you.",
        "https://example.org/ki",
        "😂 12:30",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert bengali(text) == text


@pytest.mark.parametrize("mixed", ["৪th", "২nd", "4th", "t২০", "৩g", "x٣"])
def test_letters_beside_a_digit_of_any_script_are_no_romanised_word(mixed: str) -> None:
    assert bengali(f"ami {mixed} bujhi na") == f"আমি {mixed} বুঝি না"


def test_unknown_words_stay_in_latin_letters() -> None:
    assert bengali("ami zqxw bujhi na") == "আমি zqxw বুঝি না"


@pytest.mark.parametrize("metric", [KeywordEmpathy(), SemanticEmpathy()], ids=["keyword", "semantic"])
def test_a_romanised_reply_scores_as_in_bengali_letters(metric: KeywordEmpathy | SemanticEmpathy) -> None:
    message = "baba gele mash e mara gechen, or chosma ta ekhono tebiler upor rakha, shorate parchi na"
    reply = (
        "chosma tar dike takale babar kon kotha ta shobcheye beshi mone pore tomar? shune amar o chokhe pani chole elo."
    )
    in_bengali = "চশমা টার দিকে তাকালে বাবার কোন কথা টা সবচেয়ে বেশি মনে পড়ে তোমার? শুনে আমার ও চোখে পানি চলে এলো।"
    latin, script = metric.score([reply, in_bengali], messages=[message, bengali(message)]).per_item
    assert latin == pytest.approx(script, rel=0.15)
    assert latin > 15
