"""What a user imports and gets: one line per result, shared work, clear errors, and defined scores for every odd
text.
"""

from __future__ import annotations

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
    Perplexity,
    Texts,
    evaluate_pairs,
    evaluate_stream,
    get_metric,
    metric_names,
    statistics,
)

ROOT = Path(__file__).parents[2]
LEXICAL = ["chrF++", "chrF", "BLEU", "ROUGE"]


def test_the_public_names_are_there() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) == set(package._WHERE)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing


def test_a_result() -> None:
    result = ROUGE().score(["আমি ভালো আছি।", "সে আসবে না"], ["আমি ভালো আছি ।", "তুমি কাল যাবে?"])
    assert result.value == result.scores["rougeL"] == 50.0
    assert result.per_item.tolist() == [100.0, 0.0]
    assert result.interval == Interval(0.0, 100.0)
    assert result.table.shape == (2, 13)
    assert str(result) == "ROUGE 50.00 [0.00, 100.00] ROUGE|norm:bn1|tok:bn1|stem:no|n:2|bnbench:0.2"
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
    from bnbench.metrics import evaluation

    metrics = [ROUGE(), BLEU(), ChrFPlusPlus()]
    texts = Texts.of(pairs[0][:101], pairs[1][:101], pairs[1][:101], [[1.0, 2, 3, 4]] * 101, [True] * 101)
    whole = statistics(texts, metrics)
    monkeypatch.setattr(evaluation.parts, "__defaults__", (7,))
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
    assert evaluate_pairs(["ক"] * 2, ["ক", "খ"], ["ROUGE"], clusters=["a", "a"])["ROUGE"].interval == Interval(
        50.0, 50.0
    )


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
    with pytest.raises(InputError, match="named twice"):
        evaluate_pairs(["ক"], ["ক"], ["ROUGE", "rouge"])
    with pytest.raises(InputError, match="1 clusters"):
        evaluate_pairs(["ক", "খ"], ["ক", "খ"], ["ROUGE"], clusters=["a"])
    with pytest.raises(InputError, match="perplexity needs likelihoods"):
        evaluate_pairs(["ক"], ["ক"], [Perplexity()])


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
