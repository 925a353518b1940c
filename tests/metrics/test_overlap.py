"""BLEU, ROUGE, chrF, chrF++: equal to the reference implementations on the same tokens, digit for digit."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from bnbench.metrics import (
    BLEU,
    ROUGE,
    BengaliTokenizer,
    ChrF,
    ChrFPlusPlus,
    Texts,
    UsageError,
    get_metric,
    overlap,
    tokenize,
)
from bnbench.metrics.overlap import ngram_counts, ngrams

Pairs = tuple[list[str], list[str]]
GOLDEN = Path(__file__).parents[1] / "golden" / "overlap.json"


def pretokenized(texts: list[str], tokenizer: str = "bn1") -> list[str]:
    return list(map(BengaliTokenizer(tokenizer=tokenizer, punctuation=True), texts))


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text(encoding="utf-8")), ids=lambda case: case["why"])
def test_hand_checked_numbers(case: dict) -> None:
    made = {
        **ROUGE().score([case["reply"]], [case["references"]]).scores,
        **BLEU().score([case["reply"]], [case["references"]]).scores,
        **ChrF().score([case["reply"]], [case["references"]]).scores,
    }
    assert {name: pytest.approx(made[name], abs=1e-9) for name in case["scores"]} == case["scores"]


def test_rouge_equals_rouge_score(pairs: Pairs) -> None:
    predictions, references = pairs
    kinds, tokenizer = ["rouge1", "rouge2", "rougeL"], BengaliTokenizer()
    scorer, table = RougeScorer(kinds, tokenizer=tokenizer), ROUGE(types=kinds).score(predictions, references).table
    found = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    for column, kind in enumerate(kinds):
        for part, name in ((column, "fmeasure"), (3 + 2 * column, "precision"), (4 + 2 * column, "recall")):
            assert np.abs(table[:, part] - [getattr(score[kind], name) for score in found]).max() < 1e-12


def test_rouge_of_csebuetnlp_equals_theirs() -> None:
    rows = json.loads(GOLDEN.with_name("csebuetnlp.json").read_text(encoding="utf-8"))["rows"]
    metric = get_metric("ROUGE-csebuetnlp")
    made = metric.score([row[0] for row in rows], [row[1] for row in rows])
    theirs = np.array([row[2:] for row in rows])
    assert len(rows) == 500 and theirs.mean() > 0.3
    for column, kind in enumerate(("rouge1", "rouge2", "rougeL")):
        assert np.abs(made.per_reply[kind] / 100 - theirs[:, column]).max() < 1e-9
    assert made.signature == ROUGE(profile="csebuetnlp").signature(500)
    assert made.signature.startswith("ROUGE-csebuetnlp|norm:none|tok:csebuetnlp|stem:yes|n:500|")
    assert metric.labels["rougeL"] == "ROUGE-L (csebuetnlp)"
    with pytest.raises(UsageError, match="rougeLsum"):
        ROUGE(profile="csebuetnlp", types=["rougeLsum"])
    with pytest.raises(UsageError, match="csebuetnlp"):
        ROUGE(profile="xlsum")
    with pytest.raises(UsageError, match="its own norm"):
        ROUGE(norm="nfc", profile="csebuetnlp")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("করেছিলেন, বলেন না-কি ভাইরা!", ["কর", "ব", "না", "কি", "ভাই"]),
        ("২০২৩সালে GPT4 ৳৫০", ["২০২৩", "সাল", "gpt", "4", "৳", "৫০"]),
        ("র\u200dযাব ক্ষ\u200cমা", ["রযাব", "ক্ষমা"]),
        ("বা\u09df বা\u09af\u09bcই ঘরেরটা", ["বা\u09df", "বা\u09af\u09bc", "ঘর"]),
        ("করবে করবো বলব এটি", ["করব", "করবো", "বলব", "এটি"]),
        ("\u09be ক \u09be", ["\u09be", "ক", "％0020\u09be"]),
        ("漢字ক", ["漢", "字", "ক"]),
        (" ।", []),
    ],
)
def test_stems_of_csebuetnlp(text: str, tokens: list[str]) -> None:
    assert tokenize(text, norm="none", tokenizer="csebuetnlp") == tokens


def test_rouge_lsum_equals_rouge_score(pairs: Pairs) -> None:
    predictions, references = pairs[0][:700], pairs[1][:700]
    tokenizer = BengaliTokenizer()
    scorer = RougeScorer(["rougeLsum"], tokenizer=tokenizer)
    table = ROUGE(types=["rougeLsum"]).score(predictions, references).table
    by_line = zip(tokenizer.sentences(predictions), tokenizer.sentences(references), strict=True)
    found = [scorer.score(r, p)["rougeLsum"] for p, r in by_line]
    assert np.abs(table[:, :3] - [(s.fmeasure, s.precision, s.recall) for s in found]).max() < 1e-12


SENTENCE = st.lists(st.sampled_from(["ক", "খ", "গ", "ঘ", "ঙ"]), max_size=12).map(" ".join)
TEXT = st.lists(SENTENCE, max_size=5).map("।".join)


@pytest.mark.no_cover
@given(TEXT, TEXT)
@settings(max_examples=400, deadline=None)
def test_rouge_equals_rouge_score_where_words_repeat(prediction: str, reference: str) -> None:
    tokenizer, kinds = BengaliTokenizer(), ["rougeL", "rouge1", "rouge2", "rougeLsum"]
    score = RougeScorer(kinds, tokenizer=tokenizer).score(*tokenizer.sentences([reference, prediction]))
    made = ROUGE(types=kinds).score([prediction], [reference]).scores
    assert {kind: made[kind] for kind in kinds} == {kind: pytest.approx(100 * score[kind].fmeasure) for kind in kinds}


@pytest.mark.no_cover
@pytest.mark.parametrize("tokenizer", ["bn1", "intl", "graphemes", "indicnlp"])
def test_bleu_and_chrf_equal_sacrebleu(pairs: Pairs, tokenizer: str) -> None:
    many = 2000 if tokenizer == "bn1" else 150
    predictions, references = pairs[0][:many], pairs[1][:many]
    ours, theirs = pretokenized(predictions, tokenizer), pretokenized(references, tokenizer)
    peers = [
        (BLEU(tokenizer=tokenizer), sacrebleu.BLEU(tokenize="none", force=True)),
        (ChrF(tokenizer=tokenizer), sacrebleu.CHRF()),
        (ChrFPlusPlus(tokenizer=tokenizer), sacrebleu.CHRF(word_order=2)),
    ]
    for metric, peer in peers:
        made = metric.score(predictions, references)
        assert made.value == pytest.approx(peer.corpus_score(ours, [theirs]).score, abs=1e-9)
        if metric.name == "BLEU":
            peer = sacrebleu.BLEU(tokenize="none", force=True, effective_order=True)
        singly = [peer.sentence_score(p, [r]).score for p, r in zip(ours[:400], theirs[:400], strict=True)]
        assert np.abs(made.per_item[: len(singly)] - singly).max() < 1e-9


SHORT = st.lists(
    st.sampled_from(["আমি", "না", "ভালো", "ক", "খ", "আছি।", "আজকে", "।", "?!", "5", "(", "😊", "ok.", "\n", "\u200b"]),
    max_size=4,
).map(" ".join)


@pytest.mark.no_cover
@given(st.lists(st.tuples(SHORT, SHORT, SHORT), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
@example([("", "", "")])
@example([("", "ক", ""), ("ক", "", "")])
@example([("।", "ক", "।")])
def test_short_and_empty_texts_equal_the_peers_too(texts: list[tuple[str, str, str]]) -> None:
    predictions, *references = map(list, zip(*texts, strict=True))
    ours, *theirs = map(pretokenized, (predictions, *references))
    bleu = sacrebleu.BLEU(tokenize="none", force=True, effective_order=True)
    for metric, peer in ((BLEU(), bleu), (ChrF(), sacrebleu.CHRF()), (ChrFPlusPlus(), sacrebleu.CHRF(word_order=2))):
        for streams in (1, 2):  # of references
            given_to_us = list(zip(*references[:streams], strict=True))
            made, against = metric.score(predictions, given_to_us), list(zip(*theirs[:streams], strict=True))
            corpus = peer.corpus_score(ours, theirs[:streams]).score
            assert made.value == pytest.approx(corpus, abs=1e-9), (metric.name, streams)
            singly = [peer.sentence_score(p, list(r)).score for p, r in zip(ours, against, strict=True)]
            assert made.per_item.tolist() == pytest.approx(singly, abs=1e-9), (metric.name, streams)
    tokenizer, kinds = BengaliTokenizer(), ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, tokenizer=tokenizer)
    table = ROUGE(types=kinds).score(predictions, references[0]).table
    found = [scorer.score(*tokenizer.sentences([r, p])) for p, r, _ in texts]
    assert np.abs(table[:, :4] - [[score[kind].fmeasure for kind in kinds] for score in found]).max() < 1e-12
    parts = [[part for kind in kinds for part in (score[kind].precision, score[kind].recall)] for score in found]
    assert np.abs(table[:, 4:12] - parts).max() < 1e-12


def test_an_order_that_the_reference_lacks_counts_nothing_of_the_reply() -> None:
    replies, references = ["আমি ভালো আছি", "তুমি কেমন আছ আজকে"], ["না", "তুমি কেমন আছ আজ"]
    assert ChrF().score(replies, references).value == pytest.approx(90.73, abs=0.005)
    assert ChrFPlusPlus().score(replies, references).value == pytest.approx(83.47, abs=0.005)


def test_several_references_equal_the_peers(pairs: Pairs) -> None:
    predictions, first = pairs[0][:200], pairs[1][:200]
    second, third = pairs[1][200:400], pairs[0][200:400]
    several = [list(r) for r in zip(second, first, third, strict=True)]
    ours, theirs = pretokenized(predictions), [pretokenized(r) for r in (second, first, third)]
    for metric, peer in (
        (BLEU(), sacrebleu.BLEU(tokenize="none", force=True)),
        (ChrF(), sacrebleu.CHRF()),
        (ChrFPlusPlus(), sacrebleu.CHRF(word_order=2)),
    ):
        assert metric.score(predictions, several).value == pytest.approx(
            peer.corpus_score(ours, theirs).score, abs=1e-9
        )
    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=BengaliTokenizer())
    made = ROUGE().score(predictions, several).scores
    for kind in ("rouge1", "rougeL"):
        means = np.mean([scorer.score_multi(r, p)[kind].fmeasure for p, r in zip(predictions, several, strict=True)])
        assert made[kind] == pytest.approx(100 * means, abs=1e-9)


def test_unequal_numbers_of_references_are_allowed() -> None:
    made = ROUGE().score(["আমি ভালো", "তুমি কোথায়"], [["সে কে", "আমি ভালো"], ["তুমি কোথায়"]])
    assert made.per_item.tolist() == [100.0, 100.0]


@given(
    st.lists(st.tuples(st.text("কখ গ\U00010000a", max_size=40), st.text("কখ গ\U00010000a", max_size=40)), max_size=9)
)
@settings(max_examples=200, deadline=None)
def test_sorted_keys_count_as_counting_does(texts: list[tuple[str, str]]) -> None:
    made = ngram_counts([a for a, _ in texts], [b for _, b in texts], 6)
    for (a, b), counts in zip(texts, made, strict=True):
        for n, found in enumerate(counts.tolist(), 1):
            ours, theirs = ngrams(a, n), ngrams(b, n)
            assert found == [ours.total(), theirs.total(), (ours & theirs).total()]


def test_alphabets_too_large_for_packed_keys_are_counted_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(overlap, "ngrams", lambda text, n: asked.append((len(text), n)) or ngrams(text, n))
    made = ngram_counts([wide, "কখ"], [wide[:100] + "ক" + wide[100:], "কখ"], 6)
    assert made[0, :, 2].tolist() == [3000 - max(n - 1, 0) - (n - 1) for n in range(1, 7)]
    assert made[1, :2, 2].tolist() == [2, 1]
    assert asked == [(length, n) for n in range(1, 7) for length in (3000, 3001)]


@pytest.mark.parametrize(
    ("reply", "reference", "words"),
    [("(5", "5.", [2, 2, 1]), ("(5)", "(5", [2, 2, 0]), ("-", "-", [1, 1, 1]), ("হ্যাঁ", "5)", [1, 2, 0])],
)
def test_chrf_parts_ascii_punctuation_as_sacrebleu_does(reply: str, reference: str, words: list[int]) -> None:
    metric = ChrFPlusPlus(norm="none", tokenizer="intl")  # which leaves these marks on numbers
    made = metric.score([reply], [reference])
    assert (
        dict(zip(metric.columns, made.table[0], strict=True)).items()
        >= dict(zip(("word1_hyp", "word1_ref", "word1_match"), words, strict=True)).items()
    )
    assert made.value == pytest.approx(sacrebleu.CHRF(word_order=2).sentence_score(reply, [reference]).score)


def test_signatures_and_unknown_types() -> None:
    assert ChrFPlusPlus().signature(300) == "chrF++|norm:bn1|tok:bn1|n:300|bnbench:0.9"
    theirs = f"BLEU|norm:none|tok:intl@{version('sacrebleu')}|"
    assert BLEU(norm="none", tokenizer="intl").signature(2).startswith(theirs)
    assert f"|tok:graphemes@{version('regex')}|" in ChrF(tokenizer="graphemes").signature(2)
    assert f"|norm:indicnlp@{version('indic-nlp-library')}|tok:bn1|" in ROUGE(norm="indicnlp").signature(2)
    with pytest.raises(UsageError, match="rouge3"):
        ROUGE(types=["rouge3"])


def test_texts_are_prepared_once_for_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnbench.metrics.normalization import Normalizer

    seen: list[str] = []
    plain = Normalizer.beyond_words
    monkeypatch.setattr(Normalizer, "beyond_words", lambda self, text: seen.append(text) or plain(self, text))
    texts = Texts.of(["আমি ভালো।", "তুমি?"], ["আমি ভালো।", "সে এল।"])
    for metric in (ROUGE(), BLEU(), ChrF(), ChrFPlusPlus()):
        metric.statistics(texts)
    assert sorted(seen) == sorted({"আমি ভালো।", "তুমি?", "সে এল।"})
