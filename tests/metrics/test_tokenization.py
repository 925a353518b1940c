"""Tokens: words with their signs, numbers whole, punctuation apart."""

from __future__ import annotations

import hashlib
import unicodedata
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnbench.data.corpus import load_corpus
from bnbench.metrics import BengaliTokenizer, UsageError, normalize, split_sentences, tokenize
from bnbench.metrics.normalization import Normalizer
from bnbench.metrics.tokenization import _TOKEN, TOKENIZERS, Preparation, is_word

YA = "\u09af\u09bc"
SIGNS = [chr(c) for c in range(0x0980, 0x0A00) if unicodedata.category(chr(c)) in ("Mn", "Mc")]
MIXED = st.lists(
    st.one_of(
        st.characters(min_codepoint=0x0980, max_codepoint=0x09FF),
        st.sampled_from(list(" \n.,:;|।?!'’“”@-/_aZz09০৯৳😊\u200d\u200c")),
        st.sampled_from(["https://", "a@b.co", "don't", "👩‍👧", "5️⃣"]),
    ),
    max_size=40,
).map("".join)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("বুঝতে পারছি।", ["বুঝতে", "পারছি", "।"]),
        ("৫:৩০ ১,৫০০.৭৫", ["৫:৩০", "১,৫০০.৭৫"]),
        (f"২{YA} ৫টি ৳৫০", [f"২{YA}", "৫টি", "৳", "৫০"]),
        ("“ভালো”, (না)!", ["“", "ভালো", "”", ",", "(", "না", ")", "!"]),
        ("nila.r@example.com, ok", ["nila.r@example.com", ",", "ok"]),
        ("https://a.bd/x?y=1।", ["https://a.bd/x?y=1", "।"]),
        ("don't রাগ-অভিমান", ["don't", "রাগ", "-", "অভিমান"]),
        ("👨‍👩‍👧😊 ❤️", ["👨‍👩‍👧", "😊", "❤️"]),
        ("১৯৭১।২০", ["১৯৭১", "।", "২০"]),
        ("ড. রহমান", ["ড", ".", "রহমান"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_bn1(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_the_tables_of_regex_have_not_moved_for_what_bengali_texts_hold() -> None:
    # bn1 has no version of regex in its signature: one that cut such a text otherwise has to fail here.
    blocks = ((0x20, 0x250), (0x300, 0x370), (0x900, 0xA00), (0x2000, 0x2070), (0x2600, 0x27C0), (0x1F300, 0x1F650))
    known = [c for block in blocks for c in map(chr, range(*block)) if unicodedata.category(c) not in ("Cn", "Cs")]
    told = [(ord(c), len(_TOKEN.findall(f"ক{c}ক")), is_word(c)) for c in known]
    assert hashlib.sha256(repr(told).encode()).hexdigest()[:16] == "b445484b1c260f24"


def test_the_other_tokenisers() -> None:
    assert tokenize("ক্ষমা নেই", tokenizer="graphemes", norm="none")[-2:] == ["নে", "ই"]
    assert tokenize("ভালো।", tokenizer="intl") == ["ভালো", "।"]
    assert tokenize("১,৫০০", tokenizer="indicnlp") != ["১,৫০০"]
    assert set(TOKENIZERS) == {"bn1", "graphemes", "indicnlp", "intl", "csebuetnlp"}
    with pytest.raises(UsageError, match="graphemes"):
        tokenize("ভালো", tokenizer="13a")


@given(MIXED)
@settings(max_examples=400, deadline=None)
def test_no_sign_is_split_from_its_letter_and_nothing_is_lost(text: str) -> None:
    normal = normalize(text)
    for line in normal.split():
        tokens = Preparation().pieces[line]
        assert "".join(tokens) == line
        starts = set(accumulate(map(len, tokens)))
        for at in range(1, len(line)):
            if line[at] in SIGNS and (line[at - 1].isalnum() or line[at - 1] in SIGNS):
                assert at not in starts, tokens
    assert "".join(tokenize(text)) == "".join(normal.split())


@given(MIXED)
@settings(max_examples=400, deadline=None)
def test_tokens_do_not_depend_on_where_they_are_met(text: str) -> None:
    prepared = Preparation()
    assert prepared.tokens(text) == Preparation().tokens(normalize(text))
    assert [t for s in prepared.split_sentences(text) for t in prepared.tokens(s)] == prepared.tokens(text)
    assert all(
        len(t) == 1 or ((t[0].isalnum() or not t[0].isascii()) and (t[-1].isalnum() or not t[-1].isascii()))
        for t in prepared.tokens(text)
    )


def test_sentences() -> None:
    assert split_sentences("আঁই ন যাইয়ুম ন. তুঁই যাও. ড. রহমান আছেন ত. চল") == [
        *map(normalize, ("আঁই ন যাইয়ুম ন।", "তুঁই যাও।", "ড. রহমান আছেন ত।", "চল"))
    ]
    text = "তিনি বললেন, “যাও!” আমি গেলাম।তারপর?\nঠিক আছে। ড. রহমান এলেন. শেষ"
    assert split_sentences(text) == ["তিনি বললেন, “যাও!”", "আমি গেলাম।", "তারপর?", "ঠিক আছে।", "ড. রহমান এলেন।", "শেষ"]
    assert split_sentences("") == []


def test_is_word() -> None:
    assert all(map(is_word, ["ভালো", "২", "ok", "😊", "া", "🇧🇩"]))
    assert not any(map(is_word, ["।", "৳", "“", "-", "?"]))


def test_fits_into_rouge_score_and_sacrebleu() -> None:
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1"], tokenizer=BengaliTokenizer())
    assert scorer.score("আমি ভালো আছি।", "আমি ভালো আছি ।")["rouge1"].fmeasure == 1.0
    pretokenized = BengaliTokenizer(punctuation=True)
    assert pretokenized("আমি ভালো আছি।") == "আমি ভালো আছি ।"
    assert (
        sacrebleu.corpus_bleu([pretokenized("আমি ভালো আছি।")], [[pretokenized("আমি ভালো আছি ।")]], tokenize="none").score
        > 99
    )


def test_a_word_met_again_has_the_same_tokens() -> None:
    words = {w for e in load_corpus(None).select("all") for w in f"{e.question} {e.reference}".split()}
    words |= {"অা", "ত্", "ত্‍", "কে", "কে়", "কো", "ক্\u09bc", "হৎ", "।", "৫:৩০", "বাড়ি", "বাড়ি।", "ok", "দুঃখ"}
    prepared = Preparation(Normalizer())
    first = {word: prepared.tokens(word) for word in words}
    assert all(prepared.tokens(word) == first[word] == tokenize(normalize(word)) for word in words)
