"""AUC, tau with tie calibration and alpha: hand-computed examples, a slow reference, and what a resample means."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bnbench.metrics.audit.agreement import MOST_GROUPS, auc, group_numbers, kendall, tie_threshold
from tests.metrics.conftest import krippendorff_alpha


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def one_group(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.int64)


def none(groups: np.ndarray) -> np.ndarray:
    """No resample of the groups."""
    return np.zeros((0, int(groups.max()) + 1))


def auc_of(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray) -> float:
    return auc(scores, positive, groups, none(groups)).value


def tau_of(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, threshold: float | None = None) -> float:
    return kendall(scores, labels, groups, none(groups), threshold).value


def slow_tau(scores: np.ndarray, labels: np.ndarray, tied: float) -> float:
    """tau-b by its definition, pair by pair."""
    agreeing = in_scores = in_labels = 0
    for i, j in itertools.combinations(range(len(scores)), 2):
        a = 0 if abs(scores[i] - scores[j]) <= tied else (1 if scores[i] > scores[j] else -1)
        b = np.sign(labels[i] - labels[j])
        agreeing += a * b
        in_scores += abs(a)
        in_labels += abs(b)
    return agreeing / math.sqrt(in_scores * in_labels) if in_scores and in_labels else 0.0


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 scores, their labels 0-2, and 20 groups of three."""
    chance = np.random.default_rng(5)
    labels = chance.integers(0, 3, 60).astype(np.float64)
    return (labels + chance.normal(size=60)).round(2), labels, np.arange(60) // 3


def test_auc_by_hand() -> None:
    # empathic 3, 1; rest 2, 1, 0: 3 wins thrice, 1 loses, ties, wins: (3 + 1.5) / 6
    scores, positive = numbers(3, 1, 2, 1, 0), np.array([True, True, False, False, False])
    assert auc_of(scores, positive, one_group(5)) == pytest.approx(4.5 / 6)
    assert auc_of(-scores, positive, one_group(5)) == pytest.approx(1.5 / 6)
    assert auc_of(np.zeros(5), positive, one_group(5)) == 0.5


def test_tau_b_by_hand() -> None:
    # pairs (1,1): tied in scores; (1,2), (1,2): agree, one tied in labels -> 1 agreeing of 2 score pairs, 2 label pairs
    assert tau_of(numbers(1, 1, 2), numbers(0, 1, 1), one_group(3), 0) == pytest.approx(1 / 2)
    assert tau_of(numbers(1, 2, 3), numbers(0, 1, 2), one_group(3), 0) == 1.0
    assert tau_of(numbers(3, 2, 1), numbers(0, 1, 2), one_group(3), 0) == -1.0
    assert tau_of(numbers(7, 7, 7), numbers(0, 1, 2), one_group(3)) == 0.0


def test_tau_is_that_of_its_definition(noisy: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, labels, groups = noisy
    for tied in (0.0, 0.5, 1.3):
        assert tau_of(scores, labels, groups, tied) == pytest.approx(slow_tau(scores, labels, tied))


def test_tie_calibration_finds_the_best_threshold(noisy: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, labels, groups = noisy
    gaps = {0.0, *(abs(a - b) for a, b in itertools.combinations(scores, 2))}
    best = max(slow_tau(scores, labels, gap) for gap in gaps)
    found = kendall(scores, labels, groups, none(groups))
    assert found.value == pytest.approx(best)
    assert found.value > tau_of(scores, labels, groups, 0)
    assert found.tie_threshold in gaps


def test_small_differences_become_ties_where_the_labels_tie() -> None:
    # within a level the scores differ by 1, between the levels by 10
    scores, labels = numbers(0, 1, 2, 10, 11, 12), numbers(0, 0, 0, 2, 2, 2)
    assert tie_threshold(scores, labels) == 2
    assert tau_of(scores, labels, one_group(6)) == 1.0
    assert tau_of(scores, labels, one_group(6), 0) == pytest.approx(9 / math.sqrt(15 * 9))


def test_a_resample_is_the_measure_of_the_rows_drawn(noisy: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, labels, groups = noisy
    drawn = np.random.default_rng(1).integers(0, 20, 20)
    weights = np.bincount(drawn, minlength=20).astype(np.float64)[None]
    rows = np.concatenate([np.flatnonzero(groups == group) for group in drawn])
    measured = auc(scores, labels > 0, groups, weights)
    assert measured.resampled[0] == pytest.approx(auc_of(scores[rows], labels[rows] > 0, one_group(60)))
    measured = kendall(scores, labels, groups, weights, 0.4)
    assert measured.resampled[0] == pytest.approx(slow_tau(scores[rows], labels[rows], 0.4))


def drawn_from(scores: np.ndarray, groups: np.ndarray, weights: np.ndarray):  # type: ignore[no-untyped-def]
    return auc(scores, np.arange(len(scores)) % 2 == 0, groups, weights)


def test_a_difference_is_paired() -> None:
    groups, weights = np.arange(40) // 2, np.random.default_rng(2).multinomial(20, [1 / 20] * 20, 999).astype(float)
    perfect = drawn_from(np.arange(40) % 2 * -1.0, groups, weights)
    random = drawn_from(np.random.default_rng(3).normal(size=40), groups, weights)
    (same, p_same), (better, p_better), (worse, p_worse) = (
        a.against(b) for a, b in ((random, random), (perfect, random), (random, perfect))
    )
    assert (same.value, p_same, same.estimate.low, same.estimate.high) == (0, 1, 0, 0)
    assert better.value > 0.2 and better.estimate.low > 0 and p_better == pytest.approx(2 / 1000)
    assert worse.value == -better.value and p_worse == p_better


def test_many_clusters_share_groups() -> None:
    found = group_numbers([f"m{i}" for i in range(MOST_GROUPS + 2)])
    assert found.max() == MOST_GROUPS - 1 and list(found[-2:]) == [0, 1]
    assert list(group_numbers(["b", "a", "b"])) == [0, 1, 0]


def test_more_rows_than_are_looked_at_at_once() -> None:
    chance = np.random.default_rng(4)
    scores, positive, groups = chance.normal(size=700), chance.random(700) < 0.3, np.arange(700) // 7
    won = [scores[i] > scores[j] for i in np.flatnonzero(positive) for j in np.flatnonzero(~positive)]
    found = auc(scores, positive, groups, np.ones((3, 100)))
    assert found.value == pytest.approx(np.mean(won))
    assert found.resampled == pytest.approx([found.value] * 3)  # every group once is no resample


def test_alpha_by_hand() -> None:
    # Items (0,0) (0,1) (1,1) (2,2): eight labels, 3 of 0, 3 of 1, 2 of 2. Ordinal distances, squared:
    # 0-1: (3+3-3)^2 = 9; 1-2: (3+2-2.5)^2 = 6.25; 0-2: (3+3+2-2.5)^2 = 30.25.
    # Observed: 2 * 9 / 8 = 2.25. Expected: 2 (3*3*9 + 3*2*6.25 + 3*2*30.25) / (8*7) = 600 / 56.
    # Alpha: 1 - 2.25 * 56 / 600 = 0.79.
    assert krippendorff_alpha([(0, 0), (0, 1), (1, 1), (2, 2)]) == pytest.approx(0.79)


def test_alpha_of_krippendorffs_own_example() -> None:
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", data C with ordinal distances: 0.815."""
    a = [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None]
    b = [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3]
    c = [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None]
    d = [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]
    assert krippendorff_alpha(list(zip(a, b, c, d, strict=True))) == pytest.approx(0.815, abs=0.0005)


def test_alpha_of_agreement_is_one_and_of_nothing_is_refused() -> None:
    assert krippendorff_alpha([(0, 0), (2, 2), (1, 1)]) == 1
    with pytest.raises(AssertionError, match="at least two levels"):
        krippendorff_alpha([(1, 1), (1, 1), (0, None)])
