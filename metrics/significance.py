"""Intervals, paired tests and rankings, all as matrix products on tables of additive statistics.

What an item adds to a score, whatever the formula, is its pseudo-value: n f(all) - (n - 1) f(all but it). For a mean it
is the item's own value; the mean of all is the score. So one way serves means, ratios of sums and BLEU alike, and one
question is asked of a score and of a difference (bootstrap-t): a resample of n items is a row of multinomial weights,
and how far its mean is from the score, in its own standard errors, says how far the score may be from the truth. The
interval of a difference and its p come from the same resamples: it excludes 0 where p < 1 - level, and only there. A
score has no p: each of its ends is the farther one of the symmetric and the equal-tailed interval.

The weights depend on n, their number and the seed alone, whatever is resampled: comparisons are paired.

Above `BLOCKS` items (or clusters) the rows are first summed into `BLOCKS` blocks, item i into block i mod `BLOCKS`,
and these are resampled: 1/sqrt(2 BLOCKS) = 0.7 % more error of an interval's width, less than 10,000 resamples have.

Sources: Efron & Tibshirani 1993 (jackknife, bootstrap-t); Hall 1988 (symmetric and equal-tailed); Wilson 1927 (shares);
Korn & Graubard 1998 (of clusters); Koehn 2004 (paired bootstrap); Fisher 1935 (exchanged pairs); Phipson & Smyth 2010
((c + 1) / (R + 1)); Holm 1979; Field & Welsh 2007 (clusters). How often they are right: `benchmarks/simulation.py`.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from bnbench.metrics.exceptions import InputError

FloatArray = npt.NDArray[np.float64]
Formula = Callable[[FloatArray], FloatArray]
Clusters = Sequence[Hashable] | None
Bounds = Sequence[tuple[float, float]]

BLOCKS = 10_000
FEW = 30  # items under which intervals are not to be trusted, as measured by `benchmarks/simulation.py`
TOO_FEW = (
    "too few to trust the intervals; of 10 or 20 items the 95 % ones held the truth in 91 to 99 of 100 simulations, "
    "and in 59 to 79 where a few replies hold nearly all of a ratio of no known scale"
)
_CELLS = 2_000_000  # weights at once: 16 MB as float64
_HELD = 2**25  # counts that are kept for the next table, a byte each
_FLOOR = 1 / 16  # of a resample's variance: one that missed the few items that differ would divide by nothing
_FLOOR_AWAY = 1 / 4  # where it missed the few that speak for 0: of 3 in 15 3.5 % miss all, and reached as far as the 12
_POWER = 0.841621  # z(.80): power 80 %
_DETECTABLE = 1.959964 + _POWER  # z(.975): two-sided alpha .05


@dataclass(frozen=True)
class Interval:
    """A confidence interval in the units of the score it belongs to; `level` is its coverage, 0.95 by default."""

    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"[{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class PairedResult:
    """A minus B for one value: the difference, its interval, and the two-sided p of the same resamples.

    `smallest_detectable` is the true difference that a study of this size would find in 80 % of cases at alpha .05.
    """

    difference: float
    interval: Interval
    p_value: float
    smallest_detectable: float

    def __str__(self) -> str:
        return f"{self.difference:+.2f} {self.interval}, p = {self.p_value:.4f}"


def bootstrap(
    table: FloatArray, formula: Formula, *, resamples: int = 10_000, seed: int = 42, level: float = 0.95,
    clusters: Clusters = None, shares: Sequence[int] = (), bounds: Bounds = (),
) -> list[Interval]:  # fmt: skip
    """Bootstrap-t intervals of every value that `formula` makes of the (n, k) table's column sums.

    A table of m training seeds is (m, n, k), and the interval is of what any seed would give: both are drawn.
    `clusters` names the dialogue of each row: whole dialogues are resampled. `shares` are the places of values that are
    shares of rows in per cent, which get Wilson's intervals. `bounds` are the ends of each value's scale, or of all: a
    value that is at the low end in all of n rows reaches up to Wilson's of none in n. Raises `InputError` on an empty
    table; what one row (or cluster) alone gives is NaN.
    """
    blocks, of_seeds = block_sums(table, clusters), seed_variance(table, formula)
    blocks = blocks[counting(blocks)]
    n, whole, values = len(blocks), formula(blocks.sum(axis=0)), pseudo_values(blocks, formula)
    side = (1 + level) / 2
    reaches, variance = _reaches(values, of_seeds[None], resamples, seed), values.var(axis=0) + n * of_seeds[0]
    both, upper, lower = (_critical(x, p) for x, p in ((np.abs(reaches), level), (reaches, side), (-reaches, side)))
    # No score is beyond what the lowest and the highest item add, or beyond its scale.
    rows, (bottom, top) = formula(blocks), np.array(bounds or [(-math.inf, math.inf)]).T
    least, most = _scale(rows, np.stack([bottom, top]))
    low = np.maximum(whole - np.maximum(both, upper), np.maximum(values.min(axis=0), least))
    high = np.minimum(whole + np.maximum(both, lower), np.minimum(values.max(axis=0), most))
    # What no item has others may have: as many as Wilson's interval of none in n holds, all that the scale allows each.
    nothing, z = (rows <= bottom).all(axis=0) & (top < math.inf), NormalDist().inv_cdf(side)
    high = np.where(nothing, high + np.where(nothing, top - bottom, 0) * z**2 / (n + z**2), high)
    for i in shares if n > 1 else ():
        # As many independent rows as have the variance found; where all rows are alike, each cluster counts once. The
        # variance of clusters is an estimate, for which Student's t stands (Fisher & Cornish 1960: its expansion).
        share = whole[i] / 100
        t = z + (z**3 + z) / (4 * (n - 1)) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (n - 1) ** 2) if clusters else z
        of = 1e4 * share * (1 - share) * n / variance[i] * (z / t) ** 2 if variance[i] > 1e-9 else n
        middle, half = share + z * z / 2 / of, z * math.sqrt((share * (1 - share) + z * z / 4 / of) / of)
        low[i], high[i] = (100 * max(0.0, min(1.0, (middle + sign * half) / (1 + z * z / of))) for sign in (-1, 1))
    ends = np.stack([low, high], axis=1).round(9) + (math.nan if n == 1 else 0.0)
    return [Interval(low, high, level) for low, high in ends.tolist()]


def _scale(rows: FloatArray, bounds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Where each value's scale ends: at its bounds, else at 0 and 100 where none of the rows, (n, v), is beyond."""
    least, most = np.where(rows.min(axis=0) >= 0, 0, -math.inf), np.where(rows.max(axis=0) <= 100 + 1e-9, 100, math.inf)
    return np.where(bounds[0] > -math.inf, bounds[0], least), np.where(bounds[1] < math.inf, bounds[1], most)


def pseudo_values(blocks: FloatArray, formula: Formula) -> FloatArray:
    """What each row adds to every value, (n, k) to (n, v): the jackknife's pseudo-values, whose mean is the value."""
    total, n = blocks.sum(axis=0), len(blocks)
    whole, others = formula(total), total - blocks
    others[np.abs(others) < 1e-12 * np.abs(total)] = 0  # what differences of floats leave of nothing
    values = n * whole - (n - 1) * formula(others)
    values += whole - values.mean(axis=0)
    return values


def paired_tests(
    comparisons: Sequence[tuple[FloatArray, FloatArray, Formula]], *, resamples: int = 10_000, seed: int = 42,
    level: float = 0.95, clusters: Clusters = None, shares: Sequence[Sequence[int]] = (), bounds: Bounds = (),
) -> list[list[PairedResult]]:  # fmt: skip
    """Compare candidates on the same n items: one `PairedResult` of A - B for each value of each comparison's formula.

    A comparison is (table A, table B, formula), either table (m, n, k) where it is of m training seeds; many at once
    cost little more than one and give the same numbers. `shares` has for each comparison what `bootstrap` takes, and
    `bounds` the ends of its scale. Rows that do not count in both tables are left out. Of one item all but the
    difference is NaN. Raises `InputError` where two tables have different shapes, or no row that counts in both.
    """
    shares, bounds = shares or [()] * len(comparisons), bounds or [(-math.inf, math.inf)] * len(comparisons)
    alike = dict[bytes, list[int]]()  # comparisons over the same rows
    for at, (a, b, _) in enumerate(comparisons):
        alike.setdefault(counting(a, b).tobytes(), []).append(at)
    if len(alike) > 1:
        made = dict[int, list[PairedResult]]()
        how: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level, "clusters": clusters}
        for these in alike.values():
            how |= {"shares": [shares[at] for at in these], "bounds": [bounds[at] for at in these]}
            made |= zip(these, paired_tests([comparisons[at] for at in these], **how), strict=True)
        return [made[at] for at in range(len(comparisons))]
    kept = np.frombuffer(next(iter(alike)), np.bool_)[:, None]
    rows = block_sums(kept.astype(float), clusters)[:, 0] > 0
    comparisons = comparisons if kept.all() else [(a * kept, b * kept, formula) for a, b, formula in comparisons]
    # The differences lie side by side: every comparison sees the same resamples.
    gaps, told, noise = list[FloatArray](), list[FloatArray](), list[list[FloatArray]]()
    for (a, b, formula), own, ends in zip(comparisons, shares, bounds, strict=True):
        x, y = (block_sums(side, clusters)[rows] for side in (a, b))
        ours, theirs = pseudo_values(x, formula), pseudo_values(y, formula)
        gaps.append(ours - theirs)
        differ = ((x != y).any(axis=1, keepdims=True) & (gaps[-1].round(9) != 0)).sum(axis=0)
        difference, is_share = formula(x.sum(axis=0)) - formula(y.sum(axis=0)), np.isin(np.arange(len(differ)), own)
        # Neither score leaves its scale. One of which each item is at the top, as the reference's, is there: no other
        # is above. At the bottom none is known to be: what no reply had another may have, and so it is with shares.
        least, most = _scale(both := formula(np.vstack([x, y])), np.array(ends))
        low, high = (np.where((v >= most - 1e-9).all(axis=0) & ~is_share, most, least) for v in (ours, theirs))
        unseen = is_share | ((both <= ends[0]).all(axis=0) & (x != y).any() & (ends[1] < math.inf))
        told.append(np.stack([difference, differ, unseen, low - most, most - high]))
        noise.append([seed_variance(side, formula) for side in (a, b)])
    values, of_seeds = np.hstack(gaps), np.concatenate(noise, axis=-1)
    whole, differ, unseen, least, most = np.hstack(told)
    n, near, differ = len(values), whole.round(9), np.maximum(differ, 1)
    reaches = np.abs(_reaches(values, of_seeds, resamples, seed, near))
    # Were A and B alike, the m items that differ would as likely have the other sign, each by itself: all have one in
    # 2 of 2^m cases, and no p is below (Fisher 1935). Where it is what holds p up, the interval goes as far as 0.
    p_values = np.where(near != 0, np.maximum((reaches >= np.abs(near)).mean(axis=0), 2 * 0.5**differ), 1)
    reach = np.maximum(_critical(reaches, level), np.where(p_values >= 1 - level, np.abs(near), 0))
    by_seeds = of_seeds[:, 0].sum(axis=0)
    error = np.sqrt(values.var(axis=0, ddof=min(n - 1, 1)) / n + by_seeds)
    # Of two or three seeds the interval is far wider than a normal one, and what it misses is larger as much.
    detectable = np.maximum(_DETECTABLE * error, np.where(by_seeds > 0, reach + _POWER * error, 0))
    # Of shares that differ alike in all n items, and of what neither has in any, others may differ by Wilson's of none.
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    reach = np.where((error < 1e-6) & (unseen > 0), np.maximum(reach, most * z2 / (n + z2)), reach)
    low, high = (near - np.clip(near - least, 0, reach)).round(9), (near + np.clip(most - near, 0, reach)).round(9)
    table = np.column_stack([whole, low, high, p_values, detectable])
    table[:, 1:] += math.nan if n == 1 else 0.0
    results = (PairedResult(d, Interval(low, high, level), p, least) for d, low, high, p, least in table.tolist())
    return [list(islice(results, one.shape[1])) for one in told]


def counting(*tables: FloatArray) -> npt.NDArray[np.bool_]:
    """Which of n rows count in every table, (n,): a metric that has nothing to say of a reply leaves a row of zeros.

    Where none does, all: a score is then what the formula makes of nothing. `InputError` where tables share no row.
    """
    if len({np.shape(table)[-2:] for table in tables}) > 1:
        raise InputError(f"tables of shapes {[*map(np.shape, tables)]} cannot be compared in pairs")
    if len(tables) > 1 and not all(np.isfinite(table).all() for table in tables):
        raise InputError("a table holds NaN or an infinite value: an item counts with a number, or not at all")
    rows = [(np.asarray(table) != 0).any(axis=-1) for table in tables]
    each = [held.all(axis=tuple(range(held.ndim - 1))) for held in rows]  # of seeds: in every one
    shared: npt.NDArray[np.bool_] = np.logical_and.reduce(each)
    if not shared.any() and any(one.any() for one in each):
        raise InputError("no row counts in all of the tables, so nothing can be compared")
    return shared if shared.any() else np.ones_like(shared)


def seed_variance(table: FloatArray, formula: Formula) -> FloatArray:
    """The variance of what m seeds score, and its degrees of freedom, (m, n, k) to (2, v); 0 without seeds."""
    scores = formula(table.sum(axis=-2))
    if table.ndim == 2:
        return np.stack([np.zeros_like(scores), np.ones_like(scores)])
    return np.stack([scores.var(axis=0, ddof=1) / len(scores), np.full(scores.shape[1], len(scores) - 1.0)])


def _reaches(values: FloatArray, noise: FloatArray, resamples: int, seed: int, side: Any = 0) -> FloatArray:
    """How far each resample's mean is above the mean of n values, in its own standard errors, times that of the mean.

    (n, v) to (resamples + 1, v): what was observed is one of the possible resamples, so that p is never 0, and is as
    far as can be. To nine decimals: sums of the same values in another order are no difference. `side` is the side of 0
    where a difference is. `noise` has variances of the mean, and their degrees of freedom, on top. Those of a few seeds
    are not resampled: they are drawn as normal ones, their variances as chi-squared (Krishnamoorthy, Lu & Mathew 2007).
    """
    n, around = len(values), values - values.mean(axis=0)
    variance = (around**2).mean(axis=0)
    means, squares = np.hsplit(resampled_sums(np.hstack([around, around**2]), resamples=resamples, seed=seed) / n, 2)
    floor = np.where(means * side > 0, _FLOOR_AWAY, _FLOOR) * variance
    own, generator = np.maximum(squares - means**2, floor), np.random.default_rng([seed, 2])
    for spread, freedom in noise:
        if spread.any():
            means += np.sqrt(spread) * generator.standard_normal((resamples, 1))
            own += n * spread * generator.chisquare(freedom, size=own.shape) / freedom
            variance = variance + n * spread
    far = means * np.sqrt(np.divide(variance, own, out=np.zeros_like(means), where=own > 0))
    return np.vstack([np.full_like(variance, np.inf), far.round(9)])


def _critical(reaches: FloatArray, level: float) -> FloatArray:
    """The largest distance at which p is not under 1 - level, one for each column of `_reaches`."""
    as_far = math.ceil(round((1 - level) * len(reaches), 6))
    found: FloatArray = -np.partition(-reaches, as_far - 1, axis=0)[as_far - 1]
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the adjusted p is below alpha, and so is the family-wise error."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return list(map(float, adjusted))


def rank_ranges(
    differences: Mapping[tuple[int, int], Interval], n: int, *, higher_is_better: bool = True
) -> list[tuple[int, int]]:
    """The (best, worst) rank of each of n candidates that the data allow: 1 + certainly above ... n - certainly below.

    `differences[i, j]` is the interval of i - j, once for each pair; i is certainly above j when it excludes 0 on i's
    side. For ranges that hold all at once with 95 %, make the intervals with level 1 - .05 / (number of pairs).
    """
    above, below = [0] * n, [0] * n
    for (i, j), interval in differences.items():
        if not (0 <= i < n and 0 <= j < n) or i == j:
            raise InputError(f"the pair {(i, j)} does not name two of {n} candidates")
        if interval.low > 0 or interval.high < 0:
            winner, loser = (i, j) if (interval.low > 0) == higher_is_better else (j, i)
            above[loser] += 1
            below[winner] += 1
    return [(1 + above[i], n - below[i]) for i in range(n)]


def resampled_sums(
    table: FloatArray, *, resamples: int = 10_000, seed: int = 42, clusters: Clusters = None
) -> FloatArray:
    """The column sums of each bootstrap resample, shape (resamples, k)."""
    blocks = block_sums(table, clusters)
    blocks = blocks[counting(blocks)]
    counts = (_held if len(blocks) * resamples <= _HELD else _counts)(len(blocks), resamples, seed)
    return np.vstack([some.astype(np.float64) @ blocks for some in counts])


def _counts(n: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """How often each resample has each of n items, in slices of `_CELLS` counts at most; none is anywhere near 256."""
    generator, step = np.random.default_rng([seed, 0]), max(1, _CELLS // n)
    for start in range(0, resamples, step):
        # Multinomial(n; 1/n ...) counts: n items are drawn and counted, which is the fast way. One bincount serves some
        # resamples at once, since those of resample r are counted from r n on.
        height = min(step, resamples - start)
        items = generator.integers(0, n, size=(height, n), dtype=np.int32)
        items += np.arange(0, height * n, n, dtype=np.int32)[:, None]
        yield np.bincount(items.ravel(), minlength=height * n).reshape(height, n).astype(np.uint8)


@lru_cache(maxsize=4)
def _held(n: int, resamples: int, seed: int) -> tuple[npt.NDArray[np.uint8], ...]:
    """The same, drawn once: a report resamples the same items some twenty times."""
    return tuple(_counts(n, resamples, seed))


def block_sums(table: FloatArray, clusters: Clusters = None) -> FloatArray:
    """What is resampled as one, a row each: the table's rows, or sums over clusters, or over `BLOCKS` blocks of either.

    Of m training seeds, (m, n, k), the mean table's. Raises `InputError` without rows, or without a cluster for each.
    """
    table = table.mean(axis=0) if table.ndim == 3 else table
    if table.ndim != 2 or not len(table):
        raise InputError(f"a table of shape {table.shape} cannot be resampled: it needs a row per reply, at least one")
    group, groups = np.arange(len(table)), len(table)
    if clusters is not None:
        if len(clusters) != len(table):
            raise InputError(f"{len(table)} rows but {len(clusters)} clusters: name the cluster of each row")
        numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
        group, groups = np.array([numbers[name] for name in clusters]), len(numbers)
    elif groups <= BLOCKS:
        return table
    groups = min(groups, BLOCKS)
    return np.stack([np.bincount(group % BLOCKS, weights=column, minlength=groups) for column in table.T], axis=1)
