"""What takes comfort back and what does not, in every form of address and in dialects; both scorers heed it."""

from __future__ import annotations

import pytest

from bnbench.metrics import KeywordEmpathy, SemanticEmpathy
from bnbench.metrics.empathy.lexicon import LEFT, load_polarity
from bnbench.metrics.tokenization import is_word, split_sentences, tokenize

MESSAGE = "কাল রাতে দাদু চলে গেলেন। আমি হোস্টেলে, শেষ দেখাটাও হলো না।"
WARM = "শেষবার দেখতে না পাওয়ার আফসোসটা শোকের সঙ্গে আলাদা করে বেঁধে। তোমার জন্য বুকটা ভারী হয়ে গেল। দাদুর কোন কথাটা বারবার মনে পড়ছে?"

REFUSED = (
    "তোর কষ্ট আমি বুঝি না, বুঝতে চাইও না।",
    "আপনার দুঃখ আমি বুঝতে পারছি না, পারবও না।",
    "কে বলল আমি তোমার পাশে আছি?",
    "কেডা কইছে আমি তোমার লগে আছি?",
    "ভেবো না তোমার জন্য আমার খারাপ লাগছে।",
    "আহা, কী কষ্ট! শুনে তো চোখের জলে ভেসে গেলাম।",
    "মায়া? কিসের মায়া? তোর লাইগা আমার কোনো মায়াটায়া নাই।",
    "থোড়াই কেয়ার করি আপনার এই চাকরি নিয়ে।",
    "তোমার কষ্টের ভাগ নিতে আমার বয়েই গেছে।",
    "আমারে এইসব শুনাইয়া লাভ নাই, আমার সময় নাই।",
    "তোমার কান্না শুনে আমার মন গলবে না।",
    "আঁই তোঁয়ার দুখ ন বুঝি, আর বুঝিবার দরকারও নাই।",
    "মুই তোমার কষ্ট বোঝোং না।",
    "আমি বুঝিনে বাপু, বুঝার ইচ্ছেও নেই।",
    "বুঝিনা তোর কষ্ট।",
    "তোমার সাফল্যে আমি মোটেই খুশি নই।",
    "আমার থেকে দরদ পাইবা না।",
    "আর কতবার শুনব তোমার কথা?",
    "কেন শুনব?",
    "শুনব না, কেন শুনব?",
    "এমন কথা আমি শুনি না।",
    "কোনোদিন তোর কথা শুনিনি, আজও শুনব না।",
    "এমন কথা শুনিনি, আর শুনতে চাইও না।",
    "আমি কি তোর মা? তোর কান্না শুনতে পারব না।",
    "না শুনব না তোমার কান্না।",
    "আমি তোমাকে খারাপ ভাবি না, তবে তোমার জন্য আমার মায়া হয় না।",
    "তোমার খবর শুনে আমি খুশি না।",
    "কিন্তু সেই কষ্টের সঙ্গী আমি হব না।",
    "আপনার চোখের জল মোছাতে আমি আসব না।",
    "আমার দরজা তোমার জন্য খোলা নয়।",
    "আমি আছি ভেবে বসে থাকিস না।",
    "তোমার ভয়ের কথা শুনে আমি একটুও বিচলিত নই।",
)
COMFORTING = (
    "চিন্তা করবেন না, আমি আছি।",
    "ভেবো না, আমি তোমার পাশে আছি।",
    "তোমার কোনো দোষ নেই, নিজেকে এত কষ্ট দিয়ো না।",
    "কী বলব বুঝতে পারছি না, শুনে বুকটা ভারী হয়ে গেল।",
    "আমি তোমার জায়গায় নেই, পুরোটা হয়তো বুঝব না, তবু শুনতে চাই।",
    "কে বলেছে তুমি একা? আমি আছি তো।",
    "তোকে একলা ছাড়ব না রে।",
    "সান্ত্বনা দেওয়ার ভাষা আমার জানা নেই।",
    "মিথ্যে সান্ত্বনা দেব না, এটা সত্যিই কঠিন।",
    "ভয় নাই, আমরা সবাই আছি লগে।",
    "তোমার কান্না দেখে আমার চোখের জল আটকাতে পারলাম না।",
    "আমি তো কাছে নেই, থাকলে মাথায় হাত বুলিয়ে দিতাম।",
    "কেউ বুঝল না তোকে, আমি বুঝি।",
    "শুনব না কেন, বলো।",
    "কেন শুনব না, সব বলো।",
    "তোমার পাশে থাকব না তো কার পাশে থাকব?",
    "এমন মায়ের কথা জীবনে শুনিনি রে।",
    "ওই রাতটা কী গেছে তোমার, সে কি আর বুঝি না?",
    "এই কষ্ট কি আমি বুঝি না? আমারও মা নেই।",
    "তোমার মায়ের গল্প আর কতবার শুনব, তবু পুরনো হয় না।",
    # A rule that took every "I … not" for a refusal heard the first three, those of feeling and mockery the others.
    "আমি আজ রাতে শুচ্ছি না, তোমার পাশেই জেগে আছি।",
    "মুই আইজ তোমারে ছাইড়া কোনোহানে যামু না।",
    "এইটা আমি মানতেই পারতেছি না, নামটা পর্যন্ত কেটে দিল!",
    "আমি তোকে কোনোদিন খারাপ ভাবি নাই।",
    "নামটা শুনে আমার মুখের হাসি থামছে না ভাই।",
)


def left(reply: str) -> float:
    found = []
    for sentence in split_sentences(reply):
        words = [is_word(token) for token in tokenize(sentence)]
        ends = [not after for word, after in zip(words, [*words[1:], False], strict=True) if word]
        found.append(load_polarity().left([token for token in tokenize(sentence) if is_word(token)], ends))
    return min(found)


@pytest.mark.parametrize("reply", REFUSED)
def test_a_refusal_takes_comfort_back(reply: str) -> None:
    assert left(reply) == LEFT


@pytest.mark.parametrize("reply", COMFORTING)
def test_a_negation_that_comforts_does_not(reply: str) -> None:
    assert left(reply) == 1


@pytest.mark.parametrize("metric", [KeywordEmpathy(), SemanticEmpathy()], ids=["keyword", "semantic"])
def test_both_scorers_take_back_what_the_reply_takes_back(metric: KeywordEmpathy | SemanticEmpathy) -> None:
    replies = [WARM, f"{WARM} ভেবো না তোমার জন্য আমার খারাপ লাগছে।", f"{WARM} চিন্তা কোরো না, আমি আছি।", REFUSED[0]]
    warm, withdrawn, reassuring, refused = metric.score(replies, messages=[MESSAGE] * 4).per_item
    assert 0 < withdrawn < 0.2 * warm
    assert reassuring > 0.6 * warm
    assert refused < 1
    assert f"|pol:{load_polarity().id}|" in metric.signature(4)
