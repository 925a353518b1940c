"""Keyword empathy: polarity, copies, stuffing, quotes, questions, spelling, the lexicon file, and how fast it is."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from bnbench.metrics.empathy import MECHANISMS, mechanisms
from bnbench.metrics.empathy.head import load_head
from bnbench.metrics.empathy.keyword import KeywordEmpathy, Span, _Words
from bnbench.metrics.empathy.lexicon import load_lexicon, load_polarity
from bnbench.metrics.empathy.semantic import SemanticEmpathy
from bnbench.metrics.evaluation import evaluate_pairs
from bnbench.metrics.exceptions import InputError, UsageError
from bnbench.metrics.labelled import blind_set, calibration_set
from bnbench.metrics.relevance import fitted

MESSAGE = "কাল রাতে দাদু চলে গেলেন। আমি হোস্টেলে, শেষ দেখাটাও হলো না।"
WARM = "শেষবার দেখতে না পাওয়ার আফসোসটা শোকের সঙ্গে আলাদা করে বেঁধে। আজ রাতটা একা ঘরে থেকো না। দাদুর কোন কথাটা বারবার মনে পড়ছে?"
STUFFED = "আমি দুঃখিত, কষ্ট বুঝতে পারছি, পাশে আছি, মন খারাপ কোরো না, সাহস রাখো, আশা রাখো, সহানুভূতি, কেমন লাগছে, একা নও, ভরসা রাখো।"
COLD = "হোস্টেল সুপারের কাছে লিখিত আবেদন করে ছুটি নাও। ট্রেনের টিকিট অনলাইনে কাটলে সময় বাঁচবে।"


# The lexicon without what the head hears, for what the phrases alone earn.
PHRASES = Path(tempfile.mkdtemp()) / "phrases.toml"
PHRASES.write_text(
    (files("bnbench.metrics.empathy") / "lexicons/bn.toml").read_text("utf-8").replace("words = true", "")
)


def score(reply: str, message: str = "") -> float:
    return float(KeywordEmpathy(PHRASES).score([reply], messages=[message]).value)


def spans(reply: str, message: str = "") -> list[tuple[str, str]]:
    return [(span.mechanism, span.polarity) for span in KeywordEmpathy(PHRASES).explain(reply, message)]


def test_a_warm_concrete_reply_scores_above_cold_stuffed_and_copied_ones() -> None:
    warm = score(WARM, MESSAGE)
    assert warm > 30
    assert score(COLD, MESSAGE) == 0
    assert score(STUFFED, MESSAGE) < 5
    assert score(MESSAGE, MESSAGE) == 0


def test_result_has_what_the_issue_asks_for() -> None:
    replies, messages = [WARM, COLD, STUFFED], [MESSAGE] * 3
    result = KeywordEmpathy().score(replies, messages=messages)
    assert mechanisms(result).shape == (3, 3)
    assert result.table.shape == (3, 4)
    np.testing.assert_allclose(result.per_item, mechanisms(result).mean(axis=1))
    beside = evaluate_pairs(replies, messages=messages, metrics=["keyword-empathy", "semantic-empathy", "degeneration"])
    np.testing.assert_array_equal(mechanisms(beside["keyword-empathy"]), mechanisms(result))
    assert mechanisms(beside["semantic-empathy"]).shape == (3, 3)
    with pytest.raises(InputError, match=r"degeneration.*no mechanisms"):
        _ = mechanisms(beside["degeneration"])
    assert result.value == pytest.approx(result.per_item.mean())
    assert list(result.scores) == ["keyword_empathy", *MECHANISMS]
    assert result.interval.low <= result.value <= result.interval.high
    assert (
        result.signature
        == f"keyword-empathy|lex:{load_lexicon('bn').signature}|pol:{load_polarity().id}|head:{load_head().id}"
        f"|fit:{fitted().id}|norm:bn1|tok:bn1|n:3|bnbench:0.9"
    )
    assert str(result).startswith("keyword-empathy ")


def test_messages_are_needed_and_no_text_breaks_it() -> None:
    with pytest.raises(InputError, match="messages"):
        KeywordEmpathy().score([WARM])
    odd = ["", " ", "\u09bc’ড্\u200d\u2028ক", "|.?", "।।।", "?", "“", "🙂", "ok ok ok", "না না না", "\n\n", "ক’দিনে"]
    table = KeywordEmpathy().score(odd, messages=odd).table
    assert np.isfinite(table).all()
    assert KeywordEmpathy().formula(np.zeros(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("reply", "mechanism", "polarity"),
    [
        ("চিন্তা করবেন না, সময় লাগে।", "emotional_reaction", "support"),
        ("মন খারাপ কোরো না ভাই।", "emotional_reaction", "support"),
        ("তোমার কোনো দোষ নেই এতে।", "emotional_reaction", "support"),
        ("আপনি একা নন, আমরা আছি।", "emotional_reaction", "support"),
        ("আপনার কষ্টটা বুঝতে পারছি।", "interpretation", "support"),
        ("রাগে গা জ্বলারই কথা।", "interpretation", "support"),
        ("এত দিন একা একা এই ভার বয়ে বেড়াচ্ছেন।", "interpretation", "support"),
        ("এখন কেমন লাগছে আপনার?", "exploration", "support"),
        ("ওর কোন কথাটা সবচেয়ে বেশি মনে পড়ছে?", "exploration", "support"),
        ("কষ্ট বুঝি না, ওসব ছাড়ো।", "interpretation", "against"),
        ("আমার কী করার আছে।", "emotional_reaction", "against"),
        ("এত কান্নাকাটি করে লাভ নেই।", "emotional_reaction", "against"),
        ("নাটক কোরো না।", "emotional_reaction", "against"),
        ("আমি দুঃখিত নই।", "emotional_reaction", "against"),
        ("তোমার অনুভূতি বুঝতে পারছি না।", "interpretation", "against"),
    ],
)
def test_polarity_belongs_to_the_phrase(reply: str, mechanism: str, polarity: str) -> None:
    assert (mechanism, polarity) in spans(reply)
    opposite = "support" if polarity == "against" else "against"
    assert opposite not in {found for _, found in spans(reply)}


def test_what_speaks_against_lowers_what_speaks_for() -> None:
    assert score(f"{WARM} নাটক কোরো না।", MESSAGE) < score(WARM, MESSAGE) / 2


def test_words_are_matched_whole_and_inflected() -> None:
    assert spans("কেমন সুন্দর দিন।") == []
    forms = ("দুঃখ", "দুঃখটা", "দুঃখের", "দুঃখই", "দুঃখগুলো", "দুঃখটুকু")
    for form in forms:
        assert "interpretation" in {mechanism for mechanism, _ in spans(f"তোমার ওই {form} আলাদা।")}, form
    for verb in ("পারছি", "পারি", "পারলাম"):
        assert ("interpretation", "support") in spans(f"বুঝতে {verb}।")


def test_both_registers_and_both_banks_are_known() -> None:
    for reply in (
        "একা থাকবেন না।", "একা থেকো না।", "একা থাকিস না।", "ভয় পাইয়েন না।", "এক গ্লাস পানি খান।", "এক গ্লাস জল খাও।",
        "শুনে খারাপ লাগলো।", "শুনে খারাপ লাগল।",
    ):  # fmt: skip
        assert ("emotional_reaction", "support") in spans(reply), reply


def test_a_question_counts_only_where_it_asks_the_person() -> None:
    for asking in ("তোমার পাশে এখন কে আছে?", "কবে থেকে এমন হচ্ছে?", "মা শুনে কী বললেন?", "আপনি ঘুমোতে পারছেন?"):
        assert ("exploration", "support") in spans(asking), asking
    for not_asking in (
        "ট্রেন কয়টায় ছাড়ে?", "টাকা জমা হয়েছে?", "কাঁদলে কি চাকরি ফিরে আসবে?", "এত কান্নার কী আছে?", "আপনি কোন মুখে বলছেন?",
        "তোমার কান্না দেখে কী লাভ?", "এখন কেমন লাগছে আপনার।",
    ):  # fmt: skip
        assert "exploration" not in {mechanism for mechanism, _ in spans(not_asking)}, not_asking


def test_repeating_a_phrase_earns_once() -> None:
    once = "আমি তোমার পাশে আছি।"
    assert score(once) > 0
    assert score(f"{once} {once}") == pytest.approx(score(once))
    assert score(" ".join([once] * 5)) == 0  # a loop


def test_quoted_words_are_not_the_reply_s_own() -> None:
    said = "লিখে পাঠানো যায়, {}আমি তোমার পাশে আছি{}।"
    assert score(said.format("", "")) > 0
    for opening, closing in ("‘’", "“”", '""', "''"):
        assert score(said.format(opening, closing)) == 0
    assert score("তৃতীয় 'না'টা শুনে খুব খারাপ লাগল।") > 0
    assert score("দু’ভাঁড় চা খেয়ে এলেন, আহা, ক’দিনে কী-ই বা ভোলা যায়।") > 0


def test_copied_words_earn_nothing() -> None:
    message = "আমি খুব কষ্টে আছি, বুকটা ভেঙে যাচ্ছে, দম বন্ধ লাগছে"
    assert score(message) > 0
    assert score(message, message) == 0
    assert score("বুকটা ভেঙে যাচ্ছে, দম বন্ধ লাগছে", message) == 0


def test_stamps_must_be_carried_by_words_of_ones_own_whatever_the_length() -> None:
    stamps = "আপনার কষ্ট বুঝতে পারছি। আপনার পাশে আছি। আপনি একা নন। সাহস রাখুন। আশা রাখুন। কেমন লাগছে আপনার?"
    assert score(stamps) == 0
    assert score(f"{stamps} {stamps}") == 0
    assert score("পাশে আছি। কেমন লাগছে?") > 0


HOME = "বাবা মারা গেছেন এগারো দিন। আজ আলমারি খুলে ওঁর পুরনো শালটা পেলাম, নাকে চেপে বসে রইলাম মেঝেতে।"


def test_a_lone_stock_phrase_earns_little_and_three_bare_ones_nothing() -> None:
    one, two, three = "আমি দুঃখিত।", "আমি দুঃখিত। পাশে আছি।", "আমি দুঃখিত। পাশে আছি। সাহস রাখুন।"
    assert 0 < score(one, HOME) < score(WARM, MESSAGE) / 5
    assert 0 < score(two, HOME) <= score(one, HOME)
    assert score(three, HOME) == 0
    assert score(f"{three} কষ্ট পাবেন না। ভালো দিন আসবেই। রাতের পরেই ভোর। কেমন লাগছে আপনার?", HOME) == 0


def test_stock_phrases_are_carried_by_content_anchored_in_the_message() -> None:
    chain = "আমি দুঃখিত। পাশে আছি। সাহস রাখুন।"
    carrying = "শালের গন্ধে মানুষটা আবার ঘরে ফিরে আসে, আলমারির তাকে তাকে।"
    assert score(f"{chain} {carrying}", HOME) > score(carrying, HOME)
    elsewhere = "ট্রেনের জানালায় বর্ষার মাঠ ছুটে যায়।"
    assert score(f"{chain} {carrying}", HOME) > score(f"{chain} {elsewhere}", HOME)


def test_stuffing_is_found_at_any_length() -> None:
    chain = ["আপনার কষ্ট বুঝতে পারছি।", "আমি দুঃখিত।", "আপনি একা নন।", "পাশে আছি।", "আশা রাখুন।", "মন শক্ত করুন।", "চিন্তা করবেন না।"]
    for size in range(3, len(chain) + 1):
        assert score(" ".join(chain[:size]), HOME) == 0, size
        assert score(" ".join(chain[:size] * 3), HOME) == 0, size


def test_a_stamp_is_worth_more_where_the_reply_takes_something_up() -> None:
    reply = "শুনে খুব খারাপ লাগল। শালটা এখনও আলমারিতেই থাক।"
    reaction = mechanisms(KeywordEmpathy(PHRASES).score([reply, reply], messages=[HOME, "পরীক্ষায় ফেল করেছি।"]))[:, 0]
    assert reaction[0] > 2 * reaction[1] > 0


@pytest.mark.parametrize(
    "copy",
    [
        f"হ্যাঁ, {HOME}",
        "হ্যাঁ। বাবা মারা গেছেন এগারো দিন।",
        "আপনার বাবা মারা গেছেন এগারো দিন। আজ আলমারি খুলে ওঁর পুরনো শালটা পেলেন, নাকে চেপে বসে রইলেন মেঝেতে।",
        "এগারো দিন বাবা মারা গেছেন। আপনি আলমারি খুলে শালটা পেলেন। মেঝেতে বসে রইলেন।",
        "তোমার বাবা মারা গেছেন। আলমারি খুলে শালটা পেলে, মেঝেতে বসে রইলে।",
    ],
)
def test_a_near_copy_in_another_person_earns_nothing(copy: str) -> None:
    assert score(copy, HOME) == 0
    assert score(copy, "কাল থেকে বৃষ্টি হচ্ছে।") > 0 or copy.startswith("হ্যাঁ")


def test_a_question_may_ask_in_the_words_of_the_message() -> None:
    asking = "শালটা পেয়ে মেঝেতে বসে কোন দিনটার কথা মনে পড়ছিল?"
    assert score(asking, HOME) > 15


def test_a_question_made_of_the_message_s_words_is_not_a_copy() -> None:
    asking = "মেঝেতে বসে শালটা চেপে আলমারিতে কী পেলেন?"
    assert ("exploration", "support") in spans(asking, HOME)


def test_a_run_in_other_forms_is_copied_and_anchors_nothing() -> None:
    reply = "ট্রেনে যেতে দেখি, বইয়ের নায়ক আলমারিটা খুলে ওঁর পুরনো শালটার খোঁজ করে।"
    assert score(reply, HOME) == 0
    assert score(reply.replace("খুলে ওঁর", "বেচে"), HOME) > 0


def test_an_anchored_word_carries_twice() -> None:
    chain = "আমি দুঃখিত। পাশে আছি। সাহস রাখুন। ভয় নেই। চিন্তা করবেন না।"
    one, three = "শালের ওম, জানালা, বর্ষা, শীত, বিকেল।", "শালের ওম, আলমারি, মেঝে, শীত, বিকেল।"
    assert score(f"{chain} {three}", HOME) > 1.3 * score(f"{chain} {one}", HOME) > 0


def test_a_specific_question_is_stronger_than_one_for_anyone() -> None:
    replies = ["শালটায় কার গন্ধ পেলেন?", "কেমন লাগছে?", "আপনি কী মনে করেন?"]
    explored = mechanisms(KeywordEmpathy(PHRASES).score(replies, messages=[HOME] * 3))[:, 2]
    assert explored[0] >= 2 * explored[1] > 0
    assert explored[0] > explored[2]


@pytest.mark.parametrize(
    ("reply", "mechanism"),
    [
        ("শালটা নয়, ওঁর গায়ের ওমটাই আজ নাকে এসে লাগল।", 1),
        ("এই ভয়েই আলমারিটা এতদিন কেউ ছোঁয়নি।", 1),
        ("আলমারির পাল্লার আড়ালে বাবা এখনও আছেন, তাই হাত সরে না।", 1),
        ("পাশে থাকলে শালটা আপনার গায়ে জড়িয়ে দিতাম।", 0),
        ("গলাটা ধরে এল শালের কথা পড়ে।", 0),
        ("ভাই, আপনের লাইগা বুকটা মোচড় দিয়া উঠল।", 0),
        ("ওঁর শালের গল্পটা একটু বলুন না।", 2),
        ("শালটা কোথায় পরতেন উনি, কী গল্প করতেন, শুনতে চাই।", 2),
    ],
)
def test_specific_and_figurative_replies_are_found(reply: str, mechanism: int) -> None:
    assert mechanisms(KeywordEmpathy(PHRASES).score([reply], messages=[HOME]))[0, mechanism] >= 25, spans(reply, HOME)


def test_an_unknown_statement_about_the_message_earns_a_little_interpretation() -> None:
    reply = "শালের ভাঁজে ভাঁজে শীতের বিকেল।"
    found = KeywordEmpathy().explain(reply, HOME)
    assert [(span.text, span.entry) for span in found] == [("শালের", "(taken up from the message)")]
    assert 0 < score(reply, HOME) < 8
    assert score(reply, "চাকরিটা চলে গেল।") == 0


def test_advice_does_not_tell_the_story_back() -> None:
    advice = "শালটা ড্রাই ক্লিন করান। আলমারিতে ন্যাপথলিন রাখুন। আপনার আলমারির কাঠে ঘুণ ধরেছে।"
    telling = "শালটা বুকে চেপে আপনি মেঝেতে বসেছেন। আপনার আলমারির কাঠে ঘুণ ধরেছে।"
    assert score(advice, HOME) == 0 < score(telling, HOME)


def test_a_reply_that_takes_nothing_up_keeps_only_a_part() -> None:
    reply = "আজ রাতটা একা ঘরে কাটাবেন না, এক কাপ চা খান।"
    assert score(f"{reply} শালটা কাছে থাক।", HOME) > score(f"{reply} ছাতাটা কাছে থাক।", HOME) > 0


@pytest.mark.parametrize(
    "dismissing",
    [
        "চিন্তা করবেন না, এসব আজকাল কে মানে!",
        "মন খারাপ করবেন না, ওসব কিছু না।",
        "আপনার কষ্ট বুঝি, কিন্তু লোকে কী বলবে?",
        "পাশে আছি, তবে মিছিমিছি কান্নাকাটি করছেন।",
        "আমি বুঝি, মানিয়ে নিতে শিখুন, সবাই তো পারে।",
        "আহা, এই নিয়ে আর কী চান?",
        "শুনে খারাপ লাগল, তবে আগেভাগে ডাক্তার দেখান নাই ক্যান?",
    ],
)
def test_warm_words_do_not_save_a_dismissive_reply(dismissing: str) -> None:
    assert "against" in {polarity for _, polarity in spans(dismissing, HOME)}
    assert score(dismissing, HOME) < 3


def test_taking_shame_away_is_not_blame() -> None:
    for reply in ("ছেলেমানুষি কেন হবে, কাকাবাবু।", "কীসের পাপ!", "এটা পাপ নয়।", "তুমি ছোটলোক নও।"):
        assert ("emotional_reaction", "support") in spans(reply), reply
        assert "against" not in {polarity for _, polarity in spans(reply)}, reply


def test_forms_of_a_word_are_one_word() -> None:
    lexicon = load_lexicon("bn")
    for one, other in (("শালটা", "শালের"), ("চালালেন", "চালিয়ে"), ("নাচলাম", "নাচলেন"), ("আলমারি", "আলমারিতে"), ("ঘরটার", "ঘরে")):
        assert not lexicon.stems[one].isdisjoint(lexicon.stems[other]), (one, other)
    for one, other in (("মা", "মাছ"), ("কলা", "কলম"), ("ছেলে", "ছেড়ে")):
        assert lexicon.stems[one].isdisjoint(lexicon.stems[other]), (one, other)
    assert [lexicon.content[word] for word in ("দুঃখের", "মা", "মাকে", "আপনার")] == [False, False, True, False]


@pytest.mark.parametrize("text", [WARM, "য়ে আর ড়ে: পড়ে খুব খারাপ লাগল, ভয় পেয়ো না। এখন কেমন লাগছে তোমার?"])
def test_spelling_that_bn1_makes_equal_leaves_the_score_alone(text: str) -> None:
    expected = score(text, MESSAGE)
    assert expected > 0
    decomposed = text.replace("য়", "য\u09bc").replace("ড়", "ড\u09bc")
    variants = [
        decomposed,
        unicodedata.normalize("NFD", text),
        text.replace("।", " ।"),
        text.replace("।", "৷"),
        text.replace("ো", "\u09c7\u09be"),
        text.replace(" ", "  "),
        "\ufeff" + text,
    ]
    for variant in variants:
        assert score(variant, MESSAGE) == pytest.approx(expected)


def test_explain_marks_what_stands_in_the_normalised_reply() -> None:
    from bnbench.metrics.normalization import normalize

    found = KeywordEmpathy().explain(WARM, MESSAGE)
    assert {span.mechanism for span in found} == set(MECHANISMS)
    assert all(isinstance(span, Span) and normalize(WARM)[span.start : span.end] == span.text for span in found)
    assert [span.start for span in found] == sorted(span.start for span in found)
    assert any(span.counted for span in found)


def test_original_lexicon_scores_as_the_original_did() -> None:
    metric = KeywordEmpathy("original")
    result = metric.score(["মন খারাপ, কষ্ট", "আমি আশাবাদী", "ভালো"], messages=["", "", ""])
    np.testing.assert_allclose(result.per_item, [100 * 2 * 2 / 14, 100 * 2 / 14, 0])
    assert metric.score([STUFFED], messages=[""]).value > 80
    assert "lex:original.1-" in result.signature
    with pytest.raises(InputError, match="no mechanisms"):
        _ = mechanisms(result)
    with pytest.raises(InputError, match="explain"):
        metric.explain("কষ্ট")
    assert len(metric.lexicon.patterns) == 14 and metric.lexicon.patterns[::13] == ("বুঝতে পারছি", "একা নন")


def test_the_lexicon_is_as_large_as_it_should_be() -> None:
    entries = load_lexicon("bn").entries.values()
    counts = Counter(entry.mechanism if entry.polarity == "support" else "against" for entry in entries)
    assert len(entries) >= 300
    assert all(counts[kind] >= 60 for kind in (*MECHANISMS, "against"))


HEAD = 'name = "mine"\nversion = "1"\n[endings]\nnoun = ["", "টা"]\n[classes]\nyou = ["তুমি"]\n'
GROUP = '[[group]]\nmechanism = "interpretation"\nlevel = 1\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_user_gives_his_own_lexicon(tmp_path: Path) -> None:
    path = write(tmp_path, f'{HEAD}{GROUP}phrases = ["আকাশ+noun ..2 নীল", "{{you}} খুব? ভালো"]\n')
    metric = KeywordEmpathy(path)
    result = metric.score(["আকাশটা আজ বড় নীল।", "তুমি খুব ভালো।", "আকাশ এক দুই তিন নীল"], messages=[""] * 3)
    assert mechanisms(result)[:, 1].tolist() == [25, 25, 0]
    assert metric.signature(2).startswith("keyword-empathy|lex:mine.1-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD.replace("endings", "ending") + GROUP + 'phrases = ["ক"]', "unknown key 'ending'.*did you mean 'endings'"),
        (HEAD + GROUP + 'phrase = ["কষ্ট"]', "group.. 1: unknown key 'phrase'.*did you mean 'phrases'"),
        (HEAD + GROUP.replace("interpretation", "interpretaton") + 'phrases = ["ক"]', "did you mean 'interpretation'"),
        (HEAD + GROUP.replace("1", "3") + 'phrases = ["ক"]', "level is 3"),
        (HEAD + GROUP + 'phrases = ["কষ্ট", "দুঃখ",\n"কষ্ট"]', "'কষ্ট' stands twice, in lines 10 and 11"),
        (HEAD + GROUP + 'phrases = ["কষ্ট+nown"]', r"no \[endings\] 'nown'; did you mean 'noun'"),
        (HEAD + GROUP + 'phrases = ["{yuo} ভালো"]', r"no \[classes\] 'yuo'; did you mean 'you'"),
        (HEAD + GROUP + 'phrases = ["কষ্ট .."]', "must begin and end with"),
        (HEAD + GROUP + 'phrases = ["কষ্ট ..99 দুঃখ"]', "is no gap"),
        (HEAD + GROUP + 'phrases = ["কষ্ট,দুঃখ"]', "is not one word"),
        (HEAD + GROUP + 'when = ["questoin"]\nphrases = ["কষ্ট"]', "did you mean 'question'"),
        (HEAD + GROUP + 'phrases = "কষ্ট"', "'phrases' must be a list of strings"),
        (HEAD + GROUP + 'stock = "yes"\nphrases = ["কষ্ট"]', "stock is 'yes'; use true, false"),
        (HEAD, "no phrase"),
        ('version = "1"\n', "'name' is missing"),
        ("name = ", "not a TOML file"),
    ],
)
def test_a_lexicon_is_checked_on_loading(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        KeywordEmpathy(write(tmp_path, text))


def test_an_unknown_lexicon_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'original'.*known: bn, original, or a \.toml file"):
        KeywordEmpathy("orignal")
    with pytest.raises(UsageError, match="cannot be read"):
        KeywordEmpathy(tmp_path / "absent.toml")


def test_importing_reads_no_lexicon_and_nothing_heavy() -> None:
    code = (
        "import sys; import bnbench.metrics.empathy.keyword as e; e.KeywordEmpathy(); "
        "from bnbench.metrics.empathy.lexicon import load_lexicon; assert load_lexicon.cache_info().currsize == 0; "
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_string_of_keywords_says_nothing() -> None:
    message = "অফিসে সবাই আমাকে এড়িয়ে চলে।"
    listed = "অফিসে সহমর্মিতা, চোখের জল, গভীর কষ্ট, পাশে আছি, মনের কথা, কেমন লাগছে, কাঁধে হাত।"
    told = "অফিসে সবাই এড়িয়ে চললে কষ্ট হওয়ারই কথা, রাগ হয়, ভয় হয়, একা লাগে।"
    scorer = KeywordEmpathy()
    assert scorer.explain(listed, message) == ()
    first, second = scorer.score([listed, told], messages=[message] * 2).per_item
    assert first == 0 < second


@pytest.mark.parametrize(
    ("reply", "mechanism"),
    [
        ("আপনার জন্য খুব মন খারাপ হচ্ছে।", "emotional_reaction"),
        ("বুকটা ভারী হয়ে এল কথাটা শুনে।", "emotional_reaction"),
        ("তোমার বুকটা ভারী হয়ে আছে।", "interpretation"),
    ],
)
def test_whose_heart_it_is(reply: str, mechanism: str) -> None:
    found = KeywordEmpathy().explain(reply, "বাবা মারা গেছেন।")
    assert {span.mechanism for span in found if span.level == 2} == {mechanism}


def test_words_weigh_beside_the_phrases() -> None:
    assert load_lexicon("bn").words and not load_lexicon(PHRASES).words
    assert score(COLD, MESSAGE) == 0  # by phrases nothing, and by words hardly more
    message = "বাবা গত মাসে মারা গেছেন। ওঁর চশমাটা এখনও টেবিলের ওপর রাখা, সরাতে পারছি না।"
    warmer = "চশমাটার কথা পড়ে বুকটা ভারী হয়ে গেল। টেবিলের ওপর ওটা দেখলে বাবার কোন কথাটা সবচেয়ে বেশি মনে পড়ে তোমার?"
    cold, warm, copied = KeywordEmpathy().score([COLD, warmer, message], messages=[message] * 3).per_item
    assert cold < 8 < 30 < warm and copied == 0


@pytest.mark.parametrize("metric", [KeywordEmpathy(), SemanticEmpathy()], ids=lambda metric: metric.name)
def test_a_tag_asks_nothing_and_an_offer_to_listen_does(metric: KeywordEmpathy | SemanticEmpathy) -> None:
    message = "বাবা মারা গেছেন এগারো দিন। আজ আলমারি খুলে ওঁর পুরনো শালটা পেলাম।"
    told = "শালটা হাতে নিয়ে ওঁর গলাটাই কানে বাজছিল তোমার"
    texts = [
        f"{told}, কেমন লাগছিল?", f"{told}, তাই না?", f"{told}, তাই না রে?", f"{told}, তাই না।",
        f"{told}। রাতে আসি, ওঁর গল্প শুনব তোমার কাছে।", f"{told}। রাতে আসি, ওঁর গল্প করব তোমার কাছে।",
    ]  # fmt: skip
    asked, *tags, plain, listened, talked = mechanisms(metric.score(texts, messages=[message] * 6))[:, 2]
    assert asked > 4 * max(tags) and max(tags) < 2 * plain + 1 and listened > 2 * talked


@pytest.mark.parametrize("metric", [KeywordEmpathy(), SemanticEmpathy()], ids=lambda metric: metric.name)
def test_only_what_the_reply_itself_asks_explores(metric: KeywordEmpathy | SemanticEmpathy) -> None:
    message = "মা গত সপ্তাহে মারা গেছেন। ওঁর শাড়িটা আলমারিতে ঝুলছে, হাত দিতে পারছি না। কেন এমন হলো?"
    asked = "মায়ের কোন কথাটা সবচেয়ে বেশি মনে পড়ে তোমার"
    told = "মায়ের শাড়িটা ছুঁতে গিয়ে হাত কেঁপে ওঠে, বুকটা ভেঙে যায় তোমার।"
    texts = [asked + end for end in ("।", "?", "!?", "?!!!", "।?")]
    texts += [told, f"{told} ওরা বলেছে “সময় নেই?”", f"{told} কেন এমন হলো?", f"{told} একা লাগে, তাই না রে ভাই?"]
    unmarked, *marked, plain, quoted, copied, tag = mechanisms(metric.score(texts, messages=[message] * 9))[:, 2]
    assert min(marked) > 2.5 * unmarked and max(quoted, copied, tag) < 1.5 * plain + 2


def test_exploration_is_asking_and_more_than_a_question_mark() -> None:
    message = "বাবা মারা গেছেন এগারো দিন। আজ আলমারি খুলে ওঁর পুরনো শালটা পেলাম।"
    texts = [f"শালটা হাতে নিয়ে বাবার কোন কথাটা মনে পড়ছিল{end}" for end in "?।"] + ["আপনার কাছে রিপোর্টের কপি আছে?"]
    asked, unmarked, idle = mechanisms(KeywordEmpathy().score(texts, messages=[message] * 3))[:, 2]
    assert asked > 2 * unmarked > 0 and asked > 4 * idle
    data = blind_set().part("development")
    found = mechanisms(KeywordEmpathy().score(data.replies, messages=data.messages))[:, 2]
    marks, asking = np.array(["?" in reply for reply in data.replies]), data.levels[:, 2] == 2
    assert np.median(found[asking & marks]) > 10 * found[marks & (data.levels[:, 2] == 0)].mean()
    assert found[~marks & ~asking].mean() < 3


def test_where_words_start_changes_nothing_but_what_is_quoted() -> None:
    marks = [*' \n\u2028\u200c“’"।?-৷`|🙂', "<br>", "[INST]", "&nbsp;", "...", ". ", "ন্‍"]
    chance = random.Random(5)
    for row in calibration_set().rows:
        at = chance.randrange(len(row.reply))
        for text in (row.reply, row.reply[:at] + chance.choice(marks) + row.reply[at:]):
            quick, placed = _Words(text, False), _Words(text, True)
            for name in ("words", "quoted", "clause_ends", "sentences"):
                assert getattr(quick, name) == getattr(placed, name), text
