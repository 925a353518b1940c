"""The combined score: hand-computed values, how stable an order is, and what may not be combined."""

from __future__ import annotations

import pytest

from bnbench.metrics import combine, combine_results, evaluate_pairs
from bnbench.metrics.errors import InputError

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
    assert found.pairs_kept == {("b", "a"): found.order_kept}
    assert found.first["b"] == pytest.approx(found.order_kept) and sum(found.first.values()) == pytest.approx(1)
    assert combine({"a": A, "b": B}, {"x": 1, "y": 3}, draws=20_000) == found


def test_a_candidate_that_is_better_in_every_part_is_first_under_all_weights() -> None:
    found = combine({"low": {"x": 1.0, "y": 2.0}, "high": {"x": 3.0, "y": 4.0}}, {"x": 0.5, "y": 0.5})
    assert found.order_kept == 1 and found.first == {"high": 1.0, "low": 0.0}


def test_one_candidate_and_equal_candidates() -> None:
    alone = combine({"a": A}, {"x": 1})
    assert (alone.order_kept, alone.first, dict(alone.pairs_kept)) == (1.0, {"a": 1.0}, {})
    equal = combine({"a": A, "b": dict(A)}, {"x": 1, "y": 1})
    assert equal.order_kept == 1 and equal.first == {"a": 0.5, "b": 0.5}


def test_the_table_shows_parts_weights_and_stability() -> None:
    shown = str(combine({"a": A, "b": B}, {"x": 1, "y": 3}))
    assert "| b | 47.50 | 40.00 | 50.00 |" in shown
    assert "combined = 0.25 x + 0.75 y; the order stays under" in shown and "10,000 weights" in shown


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
    with pytest.raises(InputError, match=says):
        combine(parts, weights)


def test_results_of_runs() -> None:
    references = ["আমি ভালো আছি।", "সে আসবে না"]
    good = evaluate_pairs(references, references, ["ROUGE", "chrF++", "degeneration"])
    poor = evaluate_pairs(["আমি ভালো নেই।", "তুমি যাবে"], references, ["ROUGE", "chrF++", "degeneration"])
    found = combine_results({"poor": poor, "good": good}, {"ROUGE": 0.5, "chrF++": 0.5})
    assert found.scores["good"] == pytest.approx(100)
    assert found.scores["poor"] == pytest.approx((poor["ROUGE"].value + poor["chrF++"].value) / 2)
    with pytest.raises(InputError, match="lower is better"):
        combine_results({"good": good}, {"degeneration": 1})
    fewer = evaluate_pairs(references[:1], references[:1], ["ROUGE"])
    with pytest.raises(InputError, match="different signatures"):
        combine_results({"good": good, "fewer": fewer}, {"ROUGE": 1})
