"""Bootstrap, paired tests, Holm, rank ranges: against closed forms, plain loops and sacrebleu."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import sacrebleu

from bnbench.metrics import (
    BLEU,
    BengaliTokenizer,
    Degeneration,
    InputError,
    Interval,
    PairedResult,
    bootstrap,
    holm,
    paired_tests,
    rank_ranges,
)
from bnbench.metrics import significance as module

FloatArray = np.ndarray


def paired(a: FloatArray, b: FloatArray, formula: object, **how: object) -> list[PairedResult]:
    return paired_tests([(a, b, formula)], **how)[0]


def mean(sums: FloatArray) -> FloatArray:
    return sums[..., :1] / np.maximum(sums[..., 1:2], 1)


def table(values: FloatArray) -> FloatArray:
    return np.column_stack([values, np.ones(len(values))])


@pytest.fixture
def scores() -> FloatArray:
    return np.random.default_rng(5).normal(50, 10, 400)


def test_interval_of_a_mean_is_the_normal_one(scores: FloatArray) -> None:
    interval = bootstrap(table(scores), mean)[0]
    reach = 1.96 * scores.std() / 20
    assert interval.low == pytest.approx(scores.mean() - reach, abs=0.08)
    assert interval.high == pytest.approx(scores.mean() + reach, abs=0.08)
    assert interval.level == 0.95
    wider = bootstrap(table(scores), mean, level=0.99)[0]
    assert wider.low < interval.low < interval.high < wider.high


def test_weights_are_multinomial_and_seeded(scores: FloatArray) -> None:
    weights = module.resampled_sums(np.eye(400), resamples=2000, seed=1)
    assert weights.shape == (2000, 400)
    assert (weights.sum(axis=1) == 400).all()
    assert weights.var() == pytest.approx(1 - 1 / 400, abs=0.01)
    assert bootstrap(table(scores), mean, seed=1) == bootstrap(table(scores), mean, seed=1)
    assert bootstrap(table(scores), mean, seed=1) != bootstrap(table(scores), mean, seed=2)


def test_coverage_is_what_it_says() -> None:
    chance = np.random.default_rng(0)
    found = [bootstrap(table(chance.normal(0, 1, 100)), mean, resamples=600, seed=s)[0] for s in range(300)]
    assert 0.90 < np.mean([i.low < 0 < i.high for i in found]) < 0.985


def test_chunks_do_not_change_the_numbers(scores: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = table(scores), table(scores[::-1] + 1)
    whole = paired(a, b, mean)
    monkeypatch.setattr(module, "_CELLS", 40_000)
    module._held.cache_clear()
    sums = module.resampled_sums(a, resamples=500)
    assert sums.shape == (500, 2)
    assert paired(a, b, mean)[0].interval.low == pytest.approx(whole[0].interval.low, abs=0.15)


def test_weights_that_are_kept_are_those_that_are_drawn(scores: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = module.resampled_sums(table(scores), resamples=700, seed=5)
    assert (module.resampled_sums(table(scores), resamples=700, seed=5) == kept).all()
    monkeypatch.setattr(module, "_HELD", 0)
    monkeypatch.setattr(module, "_held", None)
    assert (module.resampled_sums(table(scores), resamples=700, seed=5) == kept).all()


def test_p_and_interval_of_a_difference_are_nearly_student_s() -> None:
    chance = np.random.default_rng(6)
    a, b = chance.normal(50, 10, 60), chance.normal(47, 8, 60)
    made, gaps = paired(table(a), table(b), mean)[0], a - b
    error = gaps.std(ddof=1) / np.sqrt(60)
    reach = 2.001 * error  # t(.975) of 59 degrees of freedom
    assert made.difference == pytest.approx(gaps.mean())
    assert made.p_value == pytest.approx(2 * NormalDist().cdf(-abs(gaps.mean()) / error), abs=0.02)
    assert (made.interval.low, made.interval.high) == pytest.approx(
        (gaps.mean() - reach, gaps.mean() + reach), abs=0.15
    )


def test_p_is_uniform_without_a_difference() -> None:
    chance = np.random.default_rng(3)
    drawn = chance.normal(0, 1, (200, 2, 60))
    p = [paired(table(a), table(b), mean, resamples=400, seed=s)[0].p_value for s, (a, b) in enumerate(drawn)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.10
    assert np.mean(p) == pytest.approx(0.5, abs=0.07)


def test_a_candidate_against_itself(scores: FloatArray) -> None:
    made = paired(table(scores), table(scores), mean)[0]
    assert (made.difference, made.p_value, made.smallest_detectable) == (0.0, 1.0, 0.0)
    assert made.interval == Interval(0.0, 0.0)


def test_p_is_never_zero(scores: FloatArray) -> None:
    made = paired(table(scores + 30), table(scores), mean, resamples=999)[0]
    assert made.p_value == 1 / 1000


def test_smallest_detectable_difference_is_detected_in_four_cases_of_five() -> None:
    chance = np.random.default_rng(8)
    base = chance.normal(0, 1, 150)
    least = paired(table(base), table(np.zeros(150)), mean)[0].smallest_detectable
    found = []
    for seed in range(150):
        drawn = chance.normal(least, 1, 150)
        found.append(paired(table(drawn), table(np.zeros(150)), mean, resamples=300, seed=seed)[0].p_value < 0.05)
    assert 0.68 < np.mean(found) < 0.92


def test_clusters_are_resampled_whole() -> None:
    chance = np.random.default_rng(2)
    dialogue = np.repeat(np.arange(40), 10)
    values = chance.normal(0, 1, 40)[dialogue] + chance.normal(0, 0.1, 400)
    alone, whole = (
        bootstrap(table(values), mean)[0],
        bootstrap(table(values), mean, clusters=[f"d{i}" for i in dialogue])[0],
    )
    assert whole.high - whole.low == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.25)
    assert whole.high - whole.low > 2.5 * (alone.high - alone.low)
    shuffled = chance.permutation(400)
    again = bootstrap(table(values[shuffled]), mean, clusters=dialogue[shuffled].tolist())[0]
    assert again.high - again.low == pytest.approx(whole.high - whole.low, rel=0.1)


def test_many_rows_are_summed_into_blocks_first() -> None:
    values = np.random.default_rng(1).normal(0, 1, 60_000)
    interval = bootstrap(table(values), mean, resamples=2000)[0]
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / np.sqrt(60_000), rel=0.1)


def test_several_at_once_are_the_same_as_one_by_one(scores: FloatArray) -> None:
    def two(sums: FloatArray) -> FloatArray:
        return np.concatenate([mean(sums), sums[..., :1]], axis=-1)

    first = (table(scores), table(scores[::-1].copy()), mean)
    second = (np.column_stack([scores**2, np.ones(400), scores]), np.column_stack([scores, np.ones(400), scores]), two)
    together = paired_tests([first, second])
    alone = [paired(*first), paired(*second)]
    assert [len(found) for found in together] == [1, 2]
    for ours, theirs in zip(together, alone, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.p_value == b.p_value
            assert (a.difference, a.interval.low) == pytest.approx((b.difference, b.interval.low), rel=1e-9)


def test_agrees_with_sacrebleu(pairs: tuple[list[str], list[str]]) -> None:
    from sacrebleu.significance import _bootstrap_resample, _paired_ar_test, estimate_ci

    def swapped(text: str, at: int) -> str:
        first, second, *rest = text.split() if len(text.split()) > 1 else [text, ""]
        return " ".join([second, first, *rest] if at else [first, second, *rest])

    # Both are shorter than the references: where the brevity penalty sets in, exchanging and leaving out part ways.
    predictions, references = ([" ".join(p.split()[:-2]) or p for p in pairs[0][:300]]), pairs[1][:300]
    other = [swapped(p, i % 4 == 1) for i, p in enumerate(predictions)]
    predictions = [swapped(p, i % 3 == 0) for i, p in enumerate(predictions)]
    tokenize = BengaliTokenizer(punctuation=True)
    ours, others, theirs = ([tokenize(t) for t in texts] for texts in (predictions, other, references))
    peer, metric = sacrebleu.BLEU(tokenize="none", force=True), BLEU()
    stats = peer._extract_corpus_statistics(ours, [theirs])
    _, resampled = _bootstrap_resample(stats, peer, n_samples=2000)
    centre, reach = estimate_ci(np.array([s.score for s in resampled]))
    a, b = metric.score(predictions, references), metric.score(other, references)
    assert 2 * reach < a.interval.high - a.interval.low < 2.2 * reach  # theirs are percentiles, which are narrower
    assert (a.interval.low + a.interval.high) / 2 == pytest.approx(centre, abs=0.25)
    base = {"BLEU": (stats, peer._aggregate_and_compute(stats))}
    _, found = _paired_ar_test(base, "other", others, [theirs], {"BLEU": peer}, n_samples=2000, seed=1)
    made = paired(a.table, b.table, metric.formula)[0]
    assert made.p_value == pytest.approx(found["BLEU"].p_value, abs=0.03)
    assert 0.02 < made.p_value < 0.9


def test_an_interval_holds_0_where_p_does_not_reject_and_only_there() -> None:
    def rate(sums: FloatArray) -> FloatArray:
        return 100 * sums[..., :1] / np.maximum(sums[..., 1:2], 1)

    chance, clear = np.random.default_rng(4), 0
    for seed in range(150):
        lengths = np.ceil(chance.lognormal(3.5, 0.8, (2, 30)))
        counts = chance.binomial(lengths.astype(int), chance.beta(0.3 + 0.2 * (seed % 3), 8, (2, 30)))
        a, b = np.stack([counts, lengths], axis=2).astype(float)
        made = paired(a, b * [1 + seed % 2, 1], rate, resamples=399, seed=seed)[0]
        assert (made.interval.low <= 0 <= made.interval.high) == (made.p_value >= 0.05)
        clear += made.p_value < 0.05
    assert 10 < clear < 130


def test_a_difference_of_rare_shares_is_not_found_too_often() -> None:
    """Against McNemar's exact test, which knows that of 11 replies that differ 9 speak for one side."""
    a, b = np.zeros(60), np.zeros(60)
    a[:9], b[9:11] = 100, 100
    exact = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert paired(table(a), table(b), mean)[0].p_value == pytest.approx(exact, abs=0.04)
    one = np.zeros(60)
    one[0] = 100  # that a single reply differs is nothing
    made = paired(table(one), table(np.zeros(60)), mean)[0]
    assert made.p_value > 0.3 and made.interval.low < -3 and 5 < made.interval.high < 10


def test_shares_have_wilsons_interval() -> None:
    """Against the worked example of Wilson's interval: none of 40 is 0 to 8.76 %, 2 of 40 1.38 to 16.50 %."""
    for hits, low, high in ((0, 0.0, 8.76), (2, 1.38, 16.50), (40, 91.24, 100.0)):
        rows = table(100.0 * (np.arange(40) < hits))
        interval = bootstrap(rows, mean, shares=[0])[0]
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01)
    # Ten replies to each of four messages that are all alike say no more than four.
    by_cluster = bootstrap(table(np.zeros(40)), mean, shares=[0], clusters=[i // 10 for i in range(40)])[0]
    assert by_cluster.high == pytest.approx(bootstrap(table(np.zeros(4)), mean, shares=[0])[0].high)
    # 40 clusters of three rows that agree are 40 rows, but for Student's t with 39 degrees of freedom.
    hits, z, t = 100.0 * (np.arange(40) < 8), NormalDist().inv_cdf(0.975), 2.022691
    of = bootstrap(table(np.repeat(hits, 3)), mean, shares=[0], clusters=[i // 3 for i in range(120)])[0]
    n = 40 * (z / t) ** 2
    half = 100 * z / (1 + z * z / n) * math.sqrt(0.2 * 0.8 / n + z * z / 4 / n**2)
    assert of.high - of.low == pytest.approx(2 * half, rel=1e-4)
    plain = bootstrap(table(hits), mean, shares=[0])[0]
    assert of.low < plain.low and of.high > plain.high


def test_what_no_item_has_others_may_have() -> None:
    """A ratio of which no reply has any is known no better than a share without a hit: Wilson's of none in 40 items."""
    lengths = np.random.default_rng(3).integers(5, 80, 40)
    none = np.stack([np.zeros(40), lengths], axis=1)

    def rate(sums: FloatArray) -> FloatArray:
        return np.stack([sums[..., 0] / sums[..., 1] * 100, sums[..., 0] / sums[..., 1]], axis=-1)

    percent, part = bootstrap(none, rate, bounds=[(0, 100), (0, 1)])
    assert (percent.low, percent.high) == pytest.approx((0, 8.76), abs=0.01)
    assert (part.low, part.high) == pytest.approx((0, 0.0876), abs=1e-4)  # in the units of its own scale
    ends = {"bounds": [(0, 100)]}
    ten = bootstrap(none, rate, clusters=[i // 10 for i in range(40)], **ends)[0]
    assert ten.high == pytest.approx(bootstrap(none[:4], rate, **ends)[0].high)  # of dialogues as many as there are
    both = paired_tests([(none, none * [1, 2], rate)], **ends)[0][0]
    assert (both.interval.low, both.interval.high) == pytest.approx((-8.76, 8.76), abs=0.01) and both.p_value == 1
    same = paired_tests([(none, none, rate)], **ends)[0][0]
    assert (same.interval.low, same.interval.high) == (0, 0)  # the same replies have the same of it, whatever it is
    # Of a scale that is not said nothing is known, nor is 0 the end of one that goes below.
    for unknown in ({}, {"bounds": [(-4, 4)]}, {"bounds": [(0, math.inf)]}):
        assert bootstrap(none, rate, **unknown)[0] == Interval(0.0, 0.0)
        assert paired_tests([(none, none * [1, 2], rate)], **unknown)[0][0].interval == Interval(0.0, 0.0)
    # Of some it is the bootstrap's; where all are at the top, as the reference is, it is known.
    none[0, 0] = 1
    assert 0 < bootstrap(none, rate, **ends)[0].high < 1
    assert bootstrap(table(np.full(40, 100.0)), mean, **ends)[0] == Interval(100.0, 100.0)


def test_no_foreign_letter_in_forty_replies_is_not_none_at_all() -> None:
    found = Degeneration().score(["আমি ভালো আছি, তুমি কেমন আছ?"] * 39 + ["তোমার কথাটা শুনে খুব ভালো লাগল।"])
    ends = found.intervals["foreign_letters"]
    assert (ends.low, ends.high) == pytest.approx((0, 8.76), abs=0.01)


def test_of_skew_items_each_end_is_the_farther_one_of_the_symmetric_and_the_equal_tailed_interval() -> None:
    x = 5 + np.random.default_rng(4).lognormal(0, 0.6, 40)
    around = x - x.mean()
    sums = module.resampled_sums(np.column_stack([around, around**2]), resamples=4_000, seed=42) / 40
    t = sums[:, 0] / np.sqrt(sums[:, 1] - sums[:, 0] ** 2) * x.std()
    equal_tailed, symmetric = np.quantile(t, [0.975, 0.025]), np.quantile(np.abs(t), 0.95)
    made = bootstrap(table(x), mean, resamples=4_000)[0]
    assert -equal_tailed[1] > 1.1 * symmetric > 1.2 * equal_tailed[0]
    ends = x.mean() - symmetric, x.mean() - equal_tailed[1]
    assert (made.low, made.high) == pytest.approx(ends, rel=0.01)
    # Items that lie evenly around their mean have one interval, whichever way it is made.
    even = bootstrap(table(np.concatenate([x, -x])), mean, resamples=20_000)[0]
    assert even.high == pytest.approx(-even.low, rel=0.05)


@pytest.mark.parametrize(("hits", "low", "high"), [((0, 0), -8.76, 8.76), ((1, 1), -8.76, 8.76), ((1, 0), 91.24, 100)])
def test_shares_that_differ_alike_in_all_items_are_no_certainty(hits: tuple[int, int], low: float, high: float) -> None:
    """Wilson's interval of none in 40 goes up to 8.76 %: so many other items may differ otherwise."""
    a, b = (table(np.full(40, 100.0 * hit)) for hit in hits)
    [[made], [mean_of]] = paired_tests([(a, b, mean), (a, b, mean)], shares=[[0], []])
    assert (made.interval.low, made.interval.high) == pytest.approx((low, high), abs=0.01)
    assert mean_of.interval.low == mean_of.interval.high == made.difference  # of no share, whose ends nobody knows
    by_cluster = paired_tests([(a, b, mean)], shares=[[0]], clusters=[i // 10 for i in range(40)])[0][0]
    assert by_cluster.interval.high - by_cluster.interval.low > 40


@pytest.mark.parametrize("n", [2, 5, 6, 20])
def test_where_all_items_differ_by_the_same_p_is_that_of_the_sign_test(n: int) -> None:
    made = paired(table(np.full(n, 4.0)), table(np.full(n, 3.0)), mean)[0]
    assert made.p_value == max(2 * 0.5**n, 1 / 10_001)
    assert (made.p_value < 0.05) == (made.interval.low > 0)


ALL_OR_NOTHING = [(n, k) for n in (10, 15, 20, 30) for k in range(1, n + 1)]


def one_signed(n: int, k: int) -> PairedResult:
    """k of n replies differ, all by nearly as much and to one side."""
    gaps = np.where(np.arange(n) < k, 80 + np.random.default_rng(k).random(n), 0)
    return paired(table(gaps), table(np.zeros(n)), mean)[0]


@pytest.mark.parametrize(("n", "k"), ALL_OR_NOTHING)
def test_no_p_is_below_that_of_an_exact_test_of_exchanged_pairs(n: int, k: int) -> None:
    """Against SciPy's exact test of paired exchanges (all 2^n of them for as many as 10 items)."""
    from scipy.stats import permutation_test

    made, gaps = one_signed(n, k), np.where(np.arange(n) < k, 80.0, 0)
    exact = 2 * 0.5**k
    if n == 10:
        both = (gaps, np.zeros(n))
        of = permutation_test(
            both, lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
        )
        assert of.pvalue == pytest.approx(exact)
    assert max(exact, 1 / 10_001) <= made.p_value <= 1.25 * exact + 0.01
    assert (made.interval.low > 0) == (made.p_value < 0.05) == (made.interval.low > 1e-6)


@pytest.mark.parametrize("n", [10, 15, 20, 30])
def test_more_evidence_gives_no_larger_p_and_no_lower_end(n: int) -> None:
    made = [one_signed(n, k) for k in range(1, n + 1)]
    for less, more in pairwise(made):
        assert more.p_value <= less.p_value + 2e-3  # resamples of few items have few values
        assert more.interval.low >= less.interval.low - 3 or more.interval.low < 0


def test_replies_that_are_the_same_do_not_speak_for_a_ratio_either() -> None:
    """Leaving out a reply that both have moves a ratio's difference, and yet it is none that could be exchanged."""
    chance = np.random.default_rng(2)
    lengths = np.ceil(chance.lognormal(3.5, 0.3, 20))
    a = np.column_stack([np.round(lengths * 0.6), lengths])
    for k in (2, 5, 6):
        b = a * np.where(np.arange(20) < k, [[0.05], [0.5]], 1.0).T
        assert (module.pseudo_values(a, mean) - module.pseudo_values(b, mean)).all()
        made = paired(a, b, mean)[0]
        assert made.p_value >= 2 * 0.5**k and (made.interval.low > 0) == (made.p_value < 0.05)
        # So it is of whole dialogues: five replies of each are one.
        talks = [i // 5 for i in range(100)]
        by_dialogue = paired(np.repeat(a, 5, axis=0), np.repeat(b, 5, axis=0), mean, clusters=talks)[0]
        assert by_dialogue.p_value >= 2 * 0.5**k


@pytest.mark.parametrize("top", [95.0, 100.0])
def test_no_interval_of_a_difference_leaves_what_is_possible(top: float) -> None:
    lengths, ends = np.ceil(np.random.default_rng(3).lognormal(3, 1, 15)), []
    for k in range(1, 16):
        rates = np.where(np.arange(15) < k, np.linspace(0, 5, 15), top)
        good, bad = (np.column_stack([x * lengths, lengths]) for x in (np.full(15, top), rates))
        made, other = paired(good, bad, mean)[0], paired(bad, good, mean)[0]
        assert made.interval.low <= made.difference <= made.interval.high <= 100
        assert (other.interval.low, other.interval.high) == (-made.interval.high, -made.interval.low)
        assert (made.interval.low <= 0) == (made.p_value >= 0.05)
        ends.append((made.interval.low, made.interval.high))
    lows, highs = zip(*ends, strict=True)
    assert 100 in highs  # beyond it without the end
    # What every item has in full, as the reference has, is known: nothing scores above it. 95 is not.
    assert (min(lows) == 0) == (top == 100)


def test_no_difference_of_ratings_is_more_than_their_scale() -> None:
    a, b = table(np.array([5.0, 4.0] * 5)), table(np.array([1.0, 1.0, 1.0, 1.0, 5.0] * 2))
    tests, ratings = [(a, b, mean), (a, np.where(np.arange(10)[:, None] < 5, b, 0), mean)], (1.0, 5.0)
    for of in (tests, tests[:1]):  # over different items and alone
        for [free], [made] in zip(paired_tests(of), paired_tests(of, bounds=[ratings] * len(of)), strict=True):
            assert free.interval.high > 4 == made.interval.high
            assert (made.interval.low, made.p_value) == (max(free.interval.low, -4), free.p_value)


def test_pseudo_values_of_a_mean_are_the_values_and_of_a_ratio_what_each_row_adds(scores: FloatArray) -> None:
    assert module.pseudo_values(table(scores), mean)[:, 0] == pytest.approx(scores)
    rows = np.column_stack([scores, np.arange(1, 401.0)])
    ratio = scores.sum() / rows[:, 1].sum()
    made = module.pseudo_values(rows, mean)[:, 0]
    assert made.mean() == pytest.approx(ratio)
    assert made - ratio == pytest.approx((scores - ratio * rows[:, 1]) / rows[:, 1].mean(), rel=0.02, abs=1e-3)
    assert module.pseudo_values(rows[:1], mean)[0, 0] == scores[0]


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own step-down by hand
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rank_ranges() -> None:
    apart, tie = Interval(1, 2), Interval(-1, 2)
    assert rank_ranges({(0, 1): apart, (0, 2): apart, (1, 2): tie}, 3) == [(1, 1), (2, 3), (2, 3)]
    assert rank_ranges({(0, 1): apart, (0, 2): tie, (1, 2): tie}, 3, higher_is_better=False) == [(2, 3), (1, 2), (1, 3)]
    assert rank_ranges({(1, 0): Interval(-2, -1)}, 2) == [(1, 1), (2, 2)]
    assert rank_ranges({}, 1) == [(1, 1)]
    with pytest.raises(InputError, match="two of 2"):
        rank_ranges({(0, 2): tie}, 2)


def test_impossible_requests(scores: FloatArray) -> None:
    with pytest.raises(InputError, match="at least one"):
        bootstrap(np.empty((0, 2)), mean)
    with pytest.raises(InputError, match="399"):
        bootstrap(table(scores), mean, clusters=["a"] * 399)
    with pytest.raises(InputError, match="compared in pairs"):
        paired(table(scores), table(scores[:-1]), mean)


def test_several_seeds_are_drawn_as_well_as_the_items() -> None:
    """Of 200 groups of three seeds whose true difference is 0, hardly more than one in twenty is called different."""
    chance, found, alone = np.random.default_rng(11), [], []
    for seed in range(200):
        hard = chance.normal(0, 6, 50)
        a, b = (
            np.stack([table(50 + hard + skill + chance.normal(0, 8, 50)) for skill in chance.normal(0, 2, 3)])
            for _ in range(2)
        )
        found.append(paired(a, b, mean, resamples=500, seed=seed)[0])
        alone.append(paired(a[0], b[0], mean, resamples=500, seed=seed)[0].p_value < 0.05)
    assert np.mean([one.p_value < 0.05 for one in found]) <= 0.07
    assert np.mean(alone) > 0.2  # one seed of each takes the seed's luck for the recipe's
    assert all((one.interval.low <= 0 <= one.interval.high) == (one.p_value >= 0.05) for one in found)
    # What would often go undetected is more than what the interval reaches, wide as it is of three seeds.
    assert all(one.smallest_detectable > one.interval.high - one.difference for one in found)
    spread, freedom = module.seed_variance(a, mean)
    assert freedom[0] == 2 and spread[0] == pytest.approx(np.var([t[:, 0].mean() for t in a], ddof=1) / 3)


@pytest.mark.parametrize("clustered", [False, True])
def test_coverage_of_ratios_and_of_dialogues(clustered: bool) -> None:
    """In short what benchmarks/simulation.py measures: of 300 intervals of a ratio of sums 93-98 % hold the truth."""

    def rate(sums: FloatArray) -> FloatArray:
        return 100 * sums[..., :1] / np.maximum(sums[..., 1:2], 1)

    chance, held, clear = np.random.default_rng(17), 0, 0
    for seed in range(300):
        talks = np.repeat(np.arange(40), chance.integers(2, 7, 40)) if clustered else np.arange(40)
        own = chance.normal(0, 1, 40)[talks] + 0.5 * chance.normal(0, 1, (2, len(talks)))
        lengths = np.ceil(chance.lognormal(3.5, 0.6, own.shape))
        rates = np.clip(0.3 + 0.08 * own, 0.02, 0.98)
        a, b = np.stack([chance.binomial(lengths.astype(int), rates), lengths], axis=2).astype(float)
        how = {"resamples": 400, "seed": seed, "clusters": talks.tolist() if clustered else None}
        [interval] = bootstrap(a, rate, **how)
        held += interval.low <= 30 <= interval.high
        clear += paired(a, b, rate, **how)[0].p_value < 0.05
    assert 0.93 <= held / 300 <= 0.98
    assert clear / 300 <= 0.075


@pytest.mark.parametrize("clusters", [None, [str(i // 3) for i in range(30)]])
def test_rows_of_zeros_do_not_count(clusters: list[str] | None) -> None:
    chance = np.random.default_rng(5)
    whole = [np.column_stack([chance.normal(mean, 1, 30), np.ones(30)]) for mean in (3.0, 2.0, 1.0)]
    a, b, c = (table * (np.arange(30) % 5 < most)[:, None] for table, most in zip(whole, (2, 3, 5), strict=True))
    how, named = {"resamples": 500, "clusters": clusters}, lambda rows: clusters and [clusters[i] for i in rows]
    rows = np.flatnonzero(a[:, 1])
    alone = bootstrap(a[rows], mean, resamples=500, clusters=named(rows))
    assert bootstrap(a, mean, **how) == alone != bootstrap(whole[0], mean, **how)
    # A pair is over the rows that both have, whatever stands beside it.
    found = paired_tests([(a, b, mean), (b, c, mean), (c, c + 1, mean)], shares=[(0,), (), ()], **how)
    for (x, y), own, shares in zip(((a, b), (b, c), (c, c + 1)), found, ([(0,)], [], []), strict=True):
        rows = np.flatnonzero(x[:, 1] * y[:, 1])
        kept = [(x[rows], y[rows], mean)]
        assert own == paired_tests(kept, resamples=500, clusters=named(rows), shares=shares)[0]
    with pytest.raises(InputError, match="no row counts in all of the tables"):
        paired_tests([(a, whole[0] - a, mean)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_not_compared(value: float) -> None:
    a, b = np.ones((6, 2)), np.ones((6, 2))
    a[3, 0] = value
    for tables in ((a, b), (b, a)):
        with pytest.raises(InputError, match="NaN or an infinite value"):
            paired_tests([(*tables, lambda sums: sums[..., :1] / sums[..., 1:])])
