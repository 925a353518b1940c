"""The combined score: hand-computed values, how stable an order is, and what may not be combined."""

from __future__ import annotations

import numpy as np
import pytest

from bnbench.metrics import (
    ROUGE,
    ChrFPlusPlus,
    CombinedScore,
    Texts,
    combine,
    combined_result,
    evaluate_pairs,
    evaluate_stream,
    get_metric,
    metric_names,
    table_of,
)
from bnbench.metrics.combined import parse_weights
from bnbench.metrics.exceptions import InputError, UsageError
from bnbench.metrics.significance import bootstrap, pseudo_values

A = {"x": 60.0, "y": 20.0}
B = {"x": 40.0, "y": 50.0}


def test_a_weighted_mean_in_order_of_the_score() -> None:
    found = combine({"a": A, "b": B}, {"x": 1, "y": 3})
    assert found.weights == {"x": 0.25, "y": 0.75}
    assert list(found.scores.items()) == [("b", 47.5), ("a", 30.0)]
    assert found.parts == {"b": B, "a": A}


def test_how_much_of_the_order_other_weights_keep() -> None:
    found = combine({"a": A, "b": B}, {"x": 1, "y": 3}, draws=20_000)
    # b leads as long as 40w + 50(1-w) > 60w + 20(1-w), that is w < 0.6, and w is uniform
    assert found.order_kept == pytest.approx(0.6, abs=0.015)
    [pair] = found.neighbours
    assert (pair.above, pair.below, pair.kept) == ("b", "a", found.order_kept)
    # Within half of 0.25 : 0.75 the share of x is at most 0.375 / 0.75.
    assert pair.kept_near == found.order_kept_near == 1
    assert pair.flip == ("x", pytest.approx(0.6))
    assert found.first["b"] == pytest.approx(found.order_kept) and sum(found.first.values()) == pytest.approx(1)
    assert combine({"a": A, "b": B}, {"x": 1, "y": 3}, draws=20_000) == found


def test_near_weights_may_turn_an_order_too() -> None:
    # x : y = 0.55 (1 + u) : 0.45 (1 + v), u and v uniform on +-0.5; b leads where 0.55 (1 + u) < 1.5 * 0.45 (1 + v).
    found = combine({"a": A, "b": B}, {"x": 55, "y": 45}, draws=20_000)
    u, v = np.random.default_rng(0).uniform(0.5, 1.5, (2, 100_000))
    assert found.order_kept_near == pytest.approx(np.mean(0.55 * u < 1.5 * 0.45 * v), abs=0.015) != found.order_kept


def test_the_flip_is_where_the_scores_are_equal() -> None:
    parts = {"a": {"x": 60.0, "y": 20.0, "z": 30.0}, "b": {"x": 40.0, "y": 50.0, "z": 20.0}}
    weights = {"x": 0.2, "y": 0.5, "z": 0.3}
    [pair] = combine(parts, weights).neighbours
    assert pair.flip is not None
    part, weight = pair.flip
    others = {name: w * (1 - weight) / (1 - weights[part]) for name, w in weights.items()}
    turned = combine(parts, others | {part: weight}).scores
    assert turned["a"] == pytest.approx(turned["b"])


def test_a_candidate_that_is_better_in_every_part_is_first_under_all_weights() -> None:
    found = combine({"low": {"x": 1.0, "y": 2.0}, "high": {"x": 3.0, "y": 4.0}}, {"x": 0.5, "y": 0.5})
    assert found.order_kept == 1 and found.first == {"high": 1.0, "low": 0.0}


def test_one_candidate_and_equal_candidates() -> None:
    alone = combine({"a": A}, {"x": 1})
    assert (alone.order_kept, alone.first, alone.neighbours, alone.stability()) == (1.0, {"a": 1.0}, (), [])
    equal = combine({"a": A, "b": dict(A)}, {"x": 1, "y": 1})
    assert equal.order_kept == 1 and equal.first == {"a": 0.5, "b": 0.5}
    assert equal.stability() == ["The order of these scores stays under all weights (10,000 drawn, seed 42)."]


def test_the_table_shows_parts_weights_and_stability() -> None:
    shown = str(combine({"a": A, "b": B}, {"x": 1, "y": 3}))
    assert "| b | 47.50 | 40.00 | 50.00 |" in shown
    lines = shown.splitlines()[-3:]
    assert lines[0] == "combined = 0.25 x + 0.75 y"
    assert lines[1].startswith("The order of these scores stays under ") and "10,000 of each drawn" in lines[1]
    assert lines[2].startswith("b and a change places where x weighs 0.60 instead of 0.25")


@pytest.mark.parametrize(
    ("parts", "weights", "says"),
    [
        ({"a": {"x": 101.0}}, {"x": 1}, "0-100"),
        ({"a": {"x": float("nan")}}, {"x": 1}, "0-100"),
        ({"a": {"y": 1.0}}, {"x": 1}, "no score for x"),
        ({"a": A}, {"x": 0, "y": 1}, "positive.*x"),
        ({"a": A}, {"x": float("inf")}, "positive.*x"),
        ({"a": A}, {}, "positive"),
        ({}, {"x": 1}, "no candidate"),
    ],
)
def test_what_is_refused(parts: dict[str, dict[str, float]], weights: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        combine(parts, weights)


def test_rounding_is_no_score_above_100() -> None:
    assert combine({"a": {"x": 100.00000000000001}}, {"x": 1}).scores["a"] == pytest.approx(100)


REFERENCES = ["আমি ভালো আছি।", "সে আসবে না"]
REPLIES = ["আমি ভালো নেই।", "তুমি যাবে"]
WEIGHTS = {"ROUGE": 1.0, "chrF++": 3.0}


def test_the_score_is_the_weighted_mean_of_its_parts_in_every_resample() -> None:
    parts = evaluate_pairs(REPLIES, REFERENCES, ["ROUGE", "chrF++"])
    result = CombinedScore(WEIGHTS).score(REPLIES, REFERENCES)
    assert result.value == pytest.approx(0.25 * parts["ROUGE"].value + 0.75 * parts["chrF++"].value)
    np.testing.assert_allclose(result.per_item, 0.25 * parts["ROUGE"].per_item + 0.75 * parts["chrF++"].per_item)
    added = [pseudo_values(part.table, part.of.formula)[:, 0] for part in (parts["ROUGE"], parts["chrF++"])]
    of_both = pseudo_values(result.table, result.of.formula)[:, 0]
    np.testing.assert_allclose(of_both, 0.25 * added[0] + 0.75 * added[1])
    reach = result.interval.high - result.value
    again = bootstrap(np.column_stack([of_both, np.ones(len(of_both))]), lambda sums: sums[..., :1] / sums[..., 1:])
    assert again[0].high - result.value == pytest.approx(reach)
    assert CombinedScore(WEIGHTS).score(REFERENCES, REFERENCES).value == pytest.approx(100)


def test_it_is_made_from_parts_that_were_scored() -> None:
    parts = evaluate_pairs(REPLIES, REFERENCES, ["ROUGE", "chrF++", "BLEU"])
    made, whole = combined_result(parts, WEIGHTS), CombinedScore(WEIGHTS).score(REPLIES, REFERENCES)
    assert (made.value, made.interval, made.signature) == (whole.value, whole.interval, whole.signature)
    with pytest.raises(InputError, match=r"semantic-empathy was not scored"):
        combined_result(parts, {"semantic-empathy": 1})


def test_it_is_a_metric_by_name_that_counts_nothing_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = get_metric("combined:rouge=1,CHRF++=3")
    assert isinstance(metric, CombinedScore) and metric.weights == {"ROUGE": 0.25, "chrF++": 0.75}
    assert metric.spelling == "combined:ROUGE=0.25,chrF++=0.75"
    assert metric.needs == {"references"} and "combined" not in metric_names()
    thirds = CombinedScore({"ROUGE": 1, "chrF++": 1, "BLEU": 1})
    again = get_metric(thirds.spelling)
    assert isinstance(again, CombinedScore) and again.weights == thirds.weights  # to the last digit

    counted: list[str] = []
    for kind in (ROUGE, ChrFPlusPlus):
        plain = kind.statistics
        monkeypatch.setattr(
            kind, "statistics", lambda self, texts, plain=plain: counted.append(self.name) or plain(self, texts)
        )
    beside = evaluate_pairs(REPLIES, REFERENCES, ["ROUGE", metric, "chrF++"])
    assert sorted(counted) == ["ROUGE", "chrF++"]
    assert list(beside) == ["ROUGE", "combined", "chrF++"]
    assert beside["combined"].value == pytest.approx(0.25 * beside["ROUGE"].value + 0.75 * beside["chrF++"].value)
    alone = evaluate_pairs(REPLIES, REFERENCES, ["combined:ROUGE=1,chrF++=3"])
    assert list(alone) == ["combined"] and alone["combined"].scores == beside["combined"].scores
    streamed = evaluate_stream([Texts.of(REPLIES, REFERENCES)], ["combined:ROUGE=1,chrF++=3"])
    assert np.array_equal(streamed["combined"].table, beside["combined"].table)
    tables = {name: beside[name].table for name in ("ROUGE", "chrF++")}
    assert np.array_equal(table_of(metric, tables), beside["combined"].table)
    with pytest.raises(InputError, match=r"chrF\+\+ was not scored"):
        table_of(metric, {"ROUGE": tables["ROUGE"]})


def test_it_reads_no_other_metric_of_the_same_name() -> None:
    with pytest.raises(InputError, match=r"reads chrF\+\+\|norm:bn1.*; beside it stands chrF\+\+\|norm:none"):
        evaluate_pairs(REPLIES, REFERENCES, ["combined:ROUGE=1,chrF++=3", "chrF++:none"])
    with pytest.raises(UsageError, match=r"combined needs an argument: write combined:ARGUMENT"):
        get_metric("combined")


def test_the_signature_has_the_weights_and_the_parts_choices() -> None:
    signature = CombinedScore(WEIGHTS).signature(300)
    assert signature.startswith("combined|ROUGE:0.25|chrF++:0.75|parts:") and "|n:300|bnbench:" in signature
    assert CombinedScore({"ROUGE": 1, "chrF++": 1}).signature(300) != signature
    digits = [ROUGE(), ChrFPlusPlus(norm="none")]
    assert CombinedScore(WEIGHTS, digits).signature(300).split("|")[3] != signature.split("|")[3]


def test_a_part_that_lacks_something_says_so() -> None:
    with pytest.raises(InputError, match="keyword-empathy needs messages"):
        CombinedScore({"keyword-empathy": 1, "ROUGE": 1}).score(REPLIES, REFERENCES)


def test_weights_as_they_are_typed() -> None:
    assert parse_weights("chrf++=1, semantic-empathy = 3") == {"chrF++": 0.25, "semantic-empathy": 0.75}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "METRIC=WEIGHT"),
        ("chrF++", "METRIC=WEIGHT"),
        ("chrF++=1,", "METRIC=WEIGHT"),
        ("chrF+++=1", r"did you mean 'chrF\+\+'"),
        ("BLEU=1,bleu=2", "BLEU is named twice"),
        ("bleu=1", "BLEU alone is no combination"),
        ("BLEU=half", "'half', not a number"),
        ("BLEU=-1", "positive.*BLEU"),
        ("BLEU=0", "positive.*BLEU"),
        ("BLEU=nan", "positive.*BLEU"),
    ],
)
def test_weights_that_cannot_be_read(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_weights(text)


@pytest.mark.parametrize("name", ["perplexity", "degeneration"])
def test_a_metric_of_which_lower_is_better_is_no_part(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot be part .* lower is better"):
        CombinedScore({name: 1, "chrF++": 1})
