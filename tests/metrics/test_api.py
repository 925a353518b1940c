"""What a user imports and gets: one line per result, shared work, clear errors, and defined scores for every odd
text.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bnbench.metrics as package
from bnbench.metrics import (
    BLEU,
    ROUGE,
    ChrFPlusPlus,
    InputError,
    Interval,
    MeanMetric,
    PairedResult,
    Perplexity,
    Result,
    Texts,
    evaluate_pairs,
    evaluate_stream,
    get_metric,
    metric_names,
    paired_test,
    paired_tests,
    statistics,
    table_of,
)
from bnbench.score import Scores

ROOT = Path(__file__).parents[2]
LEXICAL = ["chrF++", "chrF", "BLEU", "ROUGE"]


def test_the_public_names_are_there() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert package.__all__ == sorted(package.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing


def test_a_result() -> None:
    result = ROUGE().score(["আমি ভালো আছি।", "সে আসবে না"], ["আমি ভালো আছি ।", "তুমি কাল যাবে?"])
    assert result.value == result.scores["rougeL"] == 50.0
    assert result.per_item.tolist() == [100.0, 0.0]
    assert result.interval == Interval(0.0, 100.0)
    assert result.table.shape == (2, 13)
    assert str(result) == "ROUGE 50.00 [0.00, 100.00] ROUGE|norm:bn1|tok:bn1|stem:no|n:2|bnbench:0.9"
    assert repr(result).startswith("<Result ROUGE: rougeL 50.00, rouge1 50.00, ")
    assert repr(result).endswith("; n 2>")
    one = ROUGE().score(["ক"], ["ক"])
    assert repr(one) and "intervals" not in vars(one)  # which costs a bootstrap
    assert str(one).startswith("ROUGE 100.00 ROUGE|")  # one reply has no interval
    assert set(result.intervals) == set(result.scores)


def test_all_metrics_at_once_equal_each_alone(pairs: tuple[list[str], list[str]]) -> None:
    predictions, references = pairs[0][:300], pairs[1][:300]
    done: list[int] = []
    together = evaluate_pairs(predictions, references, LEXICAL, progress=done.append)
    assert sum(done) == 300
    for name in LEXICAL:
        alone = get_metric(name).score(predictions, references)
        assert together[name].scores == alone.scores
        assert together[name].signature == alone.signature


def test_parts_equal_the_whole(pairs: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = [ROUGE(), BLEU(), ChrFPlusPlus()]
    texts = Texts.of(pairs[0][:101], pairs[1][:101], pairs[1][:101], [[1.0, 2, 3, 4]] * 101, [True] * 101)
    whole = statistics(texts, metrics)
    monkeypatch.setattr(Texts.parts, "__defaults__", (7,))
    assert all(np.array_equal(a, b) for a, b in zip(whole, statistics(texts, metrics), strict=True))


@pytest.mark.parametrize("n", [60, 25_000])
def test_a_stream_equals_the_whole(n: int, pairs: tuple[list[str], list[str]]) -> None:
    predictions, references = (pairs[0][:60] * n)[:n], (pairs[1][1:61] * n)[:n]
    short = [" ".join(text.split()[:4]) for text in predictions], [" ".join(text.split()[:4]) for text in references]
    whole = evaluate_pairs(*short, ["BLEU", "ROUGE"], resamples=200)
    stream = (Texts.of(short[0][i : i + 7_000], short[1][i : i + 7_000]) for i in range(0, n, 7_000))
    streamed = evaluate_stream(stream, ["BLEU", "ROUGE"], resamples=200)
    for name, result in streamed.items():
        assert result.signature == whole[name].signature
        assert result.scores == pytest.approx(dict(whole[name].scores), abs=1e-9)
        assert result.intervals == whole[name].intervals
    if n > 10_000:
        with pytest.raises(InputError, match="not kept"):
            _ = streamed["BLEU"].per_item
    else:
        assert np.array_equal(streamed["BLEU"].per_item, whole["BLEU"].per_item)


class Threads(MeanMetric):
    """How many threads numpy's library of linear algebra was told to take in the process that counts."""

    name, values, columns = "threads", ("threads",), ("threads", "replies")
    scale = 1.0

    def per_reply(self, texts: Texts) -> np.ndarray:
        return np.full((len(texts), 1), float(os.environ["OPENBLAS_NUM_THREADS"]))


def test_processes_do_not_take_each_other_s_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several that had a thread for each core spent their time waiting for one another."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert evaluate_stream([Texts.of(["ক", "খ"])], [Threads()], workers=2)["threads"].value == 1


def test_a_stream_on_two_processes(pairs: tuple[list[str], list[str]]) -> None:
    done: list[int] = []
    stream = (Texts.of(pairs[0][i : i + 50], pairs[1][i : i + 50]) for i in range(0, 400, 50))
    streamed = evaluate_stream(stream, ["BLEU"], workers=2, progress=done.append)
    whole = evaluate_pairs(pairs[0][:400], pairs[1][:400], ["BLEU"])
    assert np.array_equal(streamed["BLEU"].table, whole["BLEU"].table)
    assert done == [50] * 8
    with pytest.raises(InputError, match="no reply"):
        evaluate_stream([], ["BLEU"])


def test_default_metrics_follow_what_is_given() -> None:
    assert list(evaluate_pairs(["ভালো"])) == ["degeneration"]
    everything = evaluate_pairs(["ভালো"], ["ভালো"], messages=["কেমন?"], likelihoods=[[1, 1, 1, 1]], cut=[False])
    assert list(everything) == [
        "chrF++",
        "BLEU",
        "ROUGE",
        "keyword-empathy",
        "semantic-empathy",
        "perplexity",
        "degeneration",
    ]


def test_intervals_of_dialogues() -> None:
    result = ROUGE().score(["ক"] * 4, ["ক", "ক", "খ", "খ"], clusters=["a", "a", "b", "b"])
    assert result.interval == Interval(0.0, 100.0)
    one = evaluate_pairs(["ক"] * 2, ["ক", "খ"], ["ROUGE"], clusters=["a", "a"])["ROUGE"]
    assert one.value == 50 and np.isnan([one.interval.low, one.interval.high]).all()  # one dialogue tells nothing


ODD = ["", " ", "।।।", "ok", "\ud800", "\ufffd", "😊", "ক" * 1000, "\x00", "<|eot_id|>", "া", "\u200d"]


@pytest.mark.parametrize("profile", ["bn1", "none"])
def test_odd_texts_have_defined_scores(profile: str) -> None:
    for a in ODD:
        for metric in (ROUGE(norm=profile), BLEU(norm=profile), ChrFPlusPlus(norm=profile)):
            values = list(metric.score([a] * len(ODD), ODD).scores.values())
            assert np.isfinite(values).all() and min(values) >= 0 and max(values) <= 100


def test_odd_texts_in_every_metric_there_is() -> None:
    texts = Texts.of(ODD, list(reversed(ODD)), ODD, [[0.0, 0, 0, 0]] * len(ODD), [False] * len(ODD))
    for name in metric_names():
        if name != "BERTScore":
            result = get_metric(name).result(texts)
            assert np.isfinite(list(result.scores.values())).all(), name
            assert np.isfinite(result.per_item).all(), name
            assert "nan" not in str(result), name


@pytest.mark.parametrize("text", ["ক" * 10**6, "ক খ গ। " * 10**5], ids=["one letter", "many sentences"])
def test_a_megabyte(text: str) -> None:
    made = evaluate_pairs([text], [text[: len(text) // 2]], ["chrF++", "BLEU", "degeneration"])
    assert 0 < made["chrF++"].value < 100
    scores = ROUGE().score([text], [text]).scores
    assert scores["rougeL"] == scores["rougeLsum"] == 100.0


def test_only_punctuation_has_no_words() -> None:
    assert ROUGE().score(["।?!"], ["।?!"]).value == 0.0
    assert BLEU().score(["।?!"], ["।?!"]).value == 100.0
    assert BLEU().score([""], [""]).value == 0.0


def test_errors_say_what_and_where() -> None:
    with pytest.raises(InputError, match="2 replies but 1 references"):
        ROUGE().score(["ক", "খ"], ["ক"])
    with pytest.raises(InputError, match="ROUGE needs references"):
        ROUGE().score(["ক"])
    with pytest.raises(InputError, match="no reply"):
        ROUGE().score([], [])
    with pytest.raises(InputError, match="no reply"):
        evaluate_pairs([], [])
    with pytest.raises(InputError, match="reply 1 is NoneType"):
        ROUGE().score(["ক", None], ["ক", "খ"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="reference 0 is float"):
        ROUGE().score(["ক"], [[float("nan")]])  # type: ignore[list-item]
    with pytest.raises(InputError, match="row 0: the reference is float"):
        ROUGE().score(["ক"], [float("nan")])  # type: ignore[list-item]
    with pytest.raises(InputError, match="row 1: no reference"):
        ROUGE().score(["ক", "খ"], [["ক"], []])
    with pytest.raises(InputError, match="replies is one string"):
        ROUGE().score("ক", ["ক"])
    with pytest.raises(InputError, match="give a list"):
        evaluate_pairs(["ক"], ["ক"], "ROUGE")
    with pytest.raises(InputError, match="ROUGE and ROUGE:none: a run has one ROUGE"):
        evaluate_pairs(["ক"], ["ক"], ["ROUGE", "rouge:none"])
    assert list(evaluate_pairs(["ক"], ["ক"], ["ROUGE", "rouge"])) == ["ROUGE"]
    with pytest.raises(InputError, match="1 clusters"):
        evaluate_pairs(["ক", "খ"], ["ক", "খ"], ["ROUGE"], clusters=["a"])
    with pytest.raises(InputError, match="perplexity needs likelihoods"):
        evaluate_pairs(["ক"], ["ক"], [Perplexity()])


THREE = ["আমি ভালো আছি।", "সে আসবে না", "বৃষ্টি পড়ছে"]


def test_columns_of_data_frames_and_arrays_are_sequences() -> None:
    import pandas as pd

    frame = pd.DataFrame({"reply": THREE, "reference": THREE[::-1]})
    expected = ROUGE().score(THREE, THREE[::-1]).scores
    assert ROUGE().score(frame["reply"], frame["reference"]).scores == expected
    assert ROUGE().score(np.array(THREE), np.array(THREE[::-1])).scores == expected
    several = np.array([[text, text] for text in THREE[::-1]])
    assert ROUGE().score(tuple(THREE), several).scores == expected
    assert evaluate_pairs(frame["reply"], frame["reference"], ["ROUGE"], clusters=frame["reply"])


@pytest.mark.parametrize("place", ["predictions", "references", "messages", "clusters"])
def test_what_iterates_over_something_else_is_refused(place: str) -> None:
    import pandas as pd

    given: dict[str, object] = {"predictions": THREE, "references": THREE, "messages": THREE, "clusters": THREE}
    what = "replies" if place == "predictions" else place
    for wrong, why in (
        (pd.DataFrame({"a": THREE, "b": THREE, "c": THREE}), rf"{what} is a DataFrame, whose column names .*frame\["),
        (dict.fromkeys(THREE, "ক"), f"{what} is a dict, whose keys would be scored"),
        (set(THREE), f"{what} is a set, which has no order"),
        ("ক খ", f"{what} is one string"),
        (b"abc", f"{what} is one string"),
        (3, f"{what} is int"),
    ):
        with pytest.raises(InputError, match=why):
            evaluate_pairs(metrics=["ROUGE"], **{**given, place: wrong})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="row 1: references is a set"):
        ROUGE().score(THREE, [["ক"], {"ক"}, ["খ"]])  # type: ignore[list-item]


def test_references_as_sacrebleu_takes_them(caplog: pytest.LogCaptureFixture) -> None:
    for streams in ([THREE], [THREE, THREE[::-1]], (np.array(THREE),)):
        with pytest.raises(
            InputError, match=r"as sacrebleu takes them: a list of streams.*list\(zip\(\*references\)\)"
        ):
            ROUGE().score(THREE, streams)
        assert ROUGE().score(THREE, list(zip(*streams, strict=True))).value == 100
    assert not caplog.messages
    # One reply: a list of one text, or of several texts, means the same in both layouts.
    assert ROUGE().score(THREE[:1], [THREE]).value == 100
    with pytest.raises(InputError, match="as sacrebleu takes them"):
        ROUGE().score(THREE[:1], [THREE[:1], THREE[1:2]])
    # Two plain references for one reply are no streams, and a list that is merely too short is too short.
    for references in (THREE[:2], [THREE[:1], THREE[:1]]):
        with pytest.raises(InputError, match="replies but 2 references: give one per reply"):
            ROUGE().score(THREE[:1] if references == THREE[:2] else THREE, references)
    # A square may be either: it is read as documented, and says so.
    assert ROUGE().score(THREE, [THREE, THREE, THREE]).value == 100
    assert "3 lists of 3 texts for 3 replies, read as the references of each reply" in caplog.text


def test_a_result_shows_itself_in_a_notebook() -> None:
    class Marked(ROUGE):
        name = "<script>"

    shown = Marked(types=["rougeL"]).score(THREE, THREE)._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "<td>ROUGE-L</td><td>100.00</td><td>[100.00, 100.00]</td>" in shown and "95 % interval" in shown
    assert "<td></td>" in ROUGE().score(["ক"], ["ক"])._repr_html_()  # one reply has no interval


def test_two_results_are_compared() -> None:
    worse = [" ".join(text.split()[:-1]) for text in THREE]
    a, b = ROUGE().score(THREE, THREE), ROUGE().score(worse, THREE)
    made = paired_test(a, b)
    assert isinstance(made, PairedResult)
    assert made.difference == pytest.approx(a.value - b.value)
    assert (made.interval.low, made.p_value) == (0, 0.25)  # 2 / 2^3: of three pairs no test of exchanges says more
    [expected] = paired_tests([(a.table, b.table, a.of.formula)])
    assert made == expected[0]
    assert paired_test(a, b, value="rouge2") == expected[a.of.values.index("rouge2")]
    assert str(made).startswith(f"+{made.difference:.2f} [") and str(made).endswith(f"p = {made.p_value:.4f}")
    with pytest.raises(InputError, match="different signatures cannot be compared"):
        paired_test(a, ROUGE(norm="none").score(THREE, THREE))
    with pytest.raises(InputError, match=r"n:3\|.* and .*n:2\|"):
        paired_test(a, ROUGE().score(THREE[:2], THREE[:2]))
    with pytest.raises(InputError, match="different clusters"):
        paired_test(a, ROUGE().score(worse, THREE, clusters=["a", "a", "b"]))
    with pytest.raises(InputError, match="no value 'rouge9'; there are rougeL"):
        paired_test(a, b, value="rouge9")


def test_a_stream_is_compared_with_a_whole() -> None:
    texts, others = (THREE * 4_000)[:10_500], (THREE[1:] * 6_000)[:10_500]
    whole = [BLEU().score(given, texts, resamples=50) for given in (texts, others)]
    streamed = evaluate_stream([Texts.of(others, texts)], ["BLEU"], resamples=50)["BLEU"]
    assert paired_test(whole[0], streamed) == paired_test(*whole)


def test_results_are_found_whatever_the_capitals() -> None:
    results = evaluate_pairs(THREE, THREE, ["rouge", "CHRF++"])
    assert list(results) == ["ROUGE", "chrF++"]
    assert results["rouge"] is results["ROUGE"] is results.get("Rouge")
    assert "chrf++" in results and "BLEU" not in results and results.get("BLEU") is None
    with pytest.raises(KeyError, match="BLEU"):
        results["BLEU"]


class Words(MeanMetric):
    name = "words-each"
    description = "words a reply"
    columns = ("words", "replies")
    values = ("words_each",)
    scale = 1

    def per_reply(self, texts: Texts) -> np.ndarray:
        return np.array([[len(reply.split())] for reply in texts.replies])

    def signature(self, n: int) -> str:
        return f"words|n:{n}"


def test_a_mean_over_replies_in_a_few_lines() -> None:
    result = Words().score(["ক", "ক খ গ"])
    assert (result.value, result.per_item.tolist(), result.table.tolist()) == (2, [1, 3], [[1, 1], [3, 1]])
    assert Words().labels == {"words_each": "words each"} and Words().details == frozenset()
    assert np.isfinite(Words().formula(np.zeros(2))).all()


class Known(Words):
    def per_reply(self, texts: Texts) -> np.ndarray:  # of an empty reply nothing can be said
        return np.array([[len(reply.split()) or None] for reply in texts.replies])


def test_a_reply_of_which_a_metric_says_nothing_does_not_count() -> None:
    replies, others = ["ক", "", "ক খ গ", "ক খ", "", "ক খ গ ঘ"], ["ক খ", "ক", "", "ক খ গ", "", "ক"]
    result, alone = (Known().score(texts, resamples=200) for texts in (replies, list(filter(None, replies))))
    assert result.table[1].tolist() == result.table[4].tolist() == [0, 0]
    assert (result.value, result.intervals) == (alone.value, alone.intervals) and result.value == 2.5
    both = [0, 3, 5]
    kept = (Known().score([texts[i] for i in both], resamples=200) for texts in (replies, others))
    assert paired_test(result, Known().score(others, resamples=200)) == paired_test(*kept)
    told = str(Scores(6, {"words-each": result}))
    assert "words-each: on only 4 of the 6 replies, where it has a value: too few to trust" in told


def test_labels_are_those_of_every_value() -> None:
    for name in metric_names():
        metric = get_metric(name)
        assert set(metric.labels) == set(metric.values) and metric.details < set(metric.values)
    assert get_metric("keyword-empathy").labels["keyword_empathy"] == "keyword empathy"
    assert get_metric("semantic-empathy").labels["exploration"] == "exploration (semantic)"
    assert get_metric("perplexity").labels["bits_per_character"] == "bits per character"
    assert get_metric("perplexity").details == {"bits_per_byte"}


def test_the_table_of_a_metric_is_its_own_or_its_parts() -> None:
    result = ROUGE().score(THREE, THREE)
    assert isinstance(result, Result) and table_of(ROUGE(), {"ROUGE": result.table}) is result.table
    with pytest.raises(InputError, match="BLEU: BLEU was not scored"):
        table_of(BLEU(), {"ROUGE": result.table})


def test_too_many_words_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnbench.metrics import overlap

    monkeypatch.setattr(overlap, "_FIRST_WORD", 0x110000 - 2)
    with pytest.raises(InputError, match="smaller parts"):
        ROUGE().score(["ক খ গ"], ["ক"])


def test_importing_is_light_and_ignores_files_of_the_same_name(tmp_path: Path) -> None:
    for name in ("metrics.py", "reports.py"):
        (tmp_path / name).write_text("raise RuntimeError('the wrong file')", encoding="utf-8")
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); from bnbench.metrics import ROUGE; "
        "assert ROUGE().score(['ক'], ['ক']).value == 100; "
        "print(sorted({'torch', 'transformers', 'pandas', 'sacrebleu', 'rouge_score', 'indicnlp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
