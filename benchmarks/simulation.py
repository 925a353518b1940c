"""Do intervals, p-values and places keep what they promise? Experiments of known truth, simulated.

    python benchmarks/simulation.py [--experiments 200] [--intervals 1000] [--seed 1]

1. Intervals: how often a 95 % interval of a score and of a difference holds the truth, and how often a difference that
   is none is called significant: means, shares and ratios of sums, light and heavy tails, dialogues; n = 10 to 300.
2. All or nothing: most replies of two candidates are the same, and where they differ, they differ by all. What p and
   interval say of k one-signed differences among n items, beside the exact p of exchanged pairs; how often differences
   of random signs are called one, and how often one-signed ones are found, and their mean held by the interval.
3. Rankings: six candidates of known quality, three training seeds each, over the same items. How often the range of
   ranks holds the true rank, and how often two that are alike are called different after Holm's correction (in any of
   the pairs of an experiment), for single candidates and for groups of seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import combinations

import numpy as np

from bnbench.metrics.significance import Interval, PairedResult, bootstrap, holm, paired_tests, rank_ranges

Array = np.ndarray
SIZES = (10, 20, 40, 100, 300)
RESAMPLES = 2_000
BIG = 200_000  # items that stand for all messages, where the truth has no formula


def score(sums: Array) -> Array:
    """100 times the first sum over the second: a mean, a share and a ratio of sums alike."""
    return 100 * sums[..., :1] / np.maximum(sums[..., 1:2], 1e-9)


def table(kind: str, n: int, chance: np.random.Generator, skill: float = 0.0, items: Array | None = None) -> Array:
    """n items of one candidate; `items` is what makes a message hard for all of them, one standard normal each."""
    hard = chance.standard_normal(n) if items is None else items
    own, one = 0.6 * hard + 0.8 * chance.standard_normal(n) + skill, np.ones(n)
    if kind == "mean":  # as chrF++ of single replies
        return np.stack([0.3 + 0.1 * own, one], axis=1)
    if kind == "skew mean":  # as empathy: most near 0, a few high
        return np.stack([np.exp(0.7 * own) / 10, one], axis=1)
    if kind == "heavy mean":  # Student's t with three degrees of freedom
        return np.stack([0.3 + 0.1 * (0.6 * hard + chance.standard_t(3, n) / 2 + skill), one], axis=1)
    if kind == "share":  # one reply in five has the flag
        return np.stack([(own > 0.84).astype(float), one], axis=1)
    if kind == "rare share":  # one in thirty
        return np.stack([(own > 1.83).astype(float), one], axis=1)
    length = np.ceil(np.exp(3.5 + 0.6 * chance.standard_normal(n)))
    if kind == "ratio":  # as repeated 4-grams: a rate of its own in each reply, in replies of lognormal lengths
        return np.stack([chance.binomial(length.astype(int), 1 / (1 + np.exp(1.5 - 0.5 * own))), length], axis=1)
    if kind == "heavy ratio":  # long replies have lower rates, and lengths heavy tails
        length = np.ceil(np.exp(3.5 + chance.standard_normal(n)))
        return np.stack([chance.binomial(length.astype(int), 1 / (2 + length / 40 + np.exp(-own))), length], axis=1)
    if kind.startswith("bursty ratio"):  # as foreign letters: nothing in eleven replies of twelve
        return np.stack([length * (own > 1.38) * chance.beta(2, 2, n), length], axis=1)
    raise ValueError(kind)


MEANS = ("mean", "skew mean", "heavy mean", "share", "rare share")
RATIOS = ("ratio", "heavy ratio", "bursty ratio", "bursty ratio, no bounds")


def in_dialogues(kind: str, n: int, chance: np.random.Generator) -> tuple[Array, Array, list[int]]:
    """Two equal candidates on n dialogues of two to ten items, which share half of their variance."""
    of = np.repeat(np.arange(n), chance.integers(2, 11, n))
    hard, talks = chance.standard_normal((2, len(of))), chance.standard_normal((2, n))
    a, b = (table(kind, len(of), chance, items=0.5 * hard[0] + 1.5 * talks[i][of]) for i in (0, 1))
    return a, b, of.tolist()


def intervals(kind: str, n: int, times: int, seed: int, dialogues: bool) -> tuple[float, float, float]:
    """Coverage of the score's interval, of the difference's, and the share of false positives."""
    chance = np.random.default_rng([seed, n, len(kind), dialogues])
    if dialogues:
        big, _, _ = in_dialogues(kind, BIG // 6, np.random.default_rng(9))
    else:
        big = table(kind, BIG * 10, np.random.default_rng(9))
    truth, kept, kept_pair, false = score(big.sum(0))[0], 0, 0, 0
    for i in range(times):
        clusters = None
        if dialogues:
            a, b, clusters = in_dialogues(kind, n, chance)
        else:
            items = chance.standard_normal(n)
            a, b = (table(kind, n, chance, items=items) for _ in "ab")
        shares = [0] if "share" in kind else []
        # Shares and ratios are of a scale whose ends are known, as those of `degeneration` are, but for the last.
        ends = [(-np.inf, np.inf) if "mean" in kind or "no bounds" in kind else (0.0, 100.0)]
        how = {"resamples": RESAMPLES, "seed": i, "clusters": clusters, "bounds": ends}
        [own] = bootstrap(a, score, shares=shares, **how)
        kept += own.low <= truth <= own.high
        [[found]] = paired_tests([(a, b, score)], **how)
        kept_pair += found.interval.low <= 0 <= found.interval.high
        false += found.p_value < 0.05
    return kept / times, kept_pair / times, false / times


def unlike(n: int, times: int, seed: int) -> dict[str, float]:
    """False positives where means are equal and spreads are not."""
    chance, found = np.random.default_rng([seed, n, 77]), {}
    draws: dict[str, Callable[[], tuple[Array, Array]]] = {
        "normal, spreads 1 : 4": lambda: (chance.normal(0, 1, n), chance.normal(0, 4, n)),
        "constant against exponential": lambda: (np.ones(n), chance.exponential(1, n)),
        "constant against lognormal (σ = 1)": lambda: (np.full(n, np.exp(0.5)), chance.lognormal(0, 1, n)),
    }
    for name, draw in draws.items():
        false = 0
        for i in range(times):
            a, b = (np.stack([x, np.ones(n)], axis=1) for x in draw())
            false += paired_tests([(a, b, score)], resamples=RESAMPLES, seed=i)[0][0].p_value < 0.05
        found[name] = false / times
    return found


def of_gaps(gaps: Array, seed: int) -> list[PairedResult]:
    """A paired test of each row of differences, (experiments, n)."""
    tables = [np.stack([row, np.ones(len(row))], axis=1) for row in gaps]
    tests = [(one, one * [0, 1], score) for one in tables]
    return [found for (found,) in paired_tests(tests, resamples=RESAMPLES, seed=seed)]


def all_or_nothing(n: int, times: int, seed: int) -> dict[str, str]:
    """False positives; then how often one-signed differences are found, and how often the interval holds their mean."""
    chance, found = np.random.default_rng([seed, n, 78]), {}
    for rate in (0.15, 0.3, 0.6, 0.9):
        gaps = (chance.random((times, n)) < rate) * chance.uniform(0.8, 1, (times, n))
        none, one = (of_gaps(x, seed) for x in (gaps * chance.choice([-1, 1], gaps.shape), gaps))
        false, clear = (np.mean([r.p_value < 0.05 for r in results]) for results in (none, one))
        held = np.mean([r.interval.low <= 90 * rate <= r.interval.high for r in one])
        found[f"{rate:.0%} of items differ"] = f"{false:.3f} {clear:.3f} {held:.3f}"
    return found


QUALITY = (0.0, 0.0, 0.25, 0.25, 0.5, 1.0)  # of six candidates, in standard deviations of an item; two pairs are alike
SEED_SPREAD = 0.15  # of training seeds, in the same


def experiment(kind: str, n: int, seed: int, grouped: bool) -> tuple[int, bool]:
    """How many of the six ranges hold the true rank, and whether a pair of equals is called different."""
    chance = np.random.default_rng([seed, n, len(kind), grouped])
    items = chance.standard_normal(n)
    candidates = []
    for quality in QUALITY:
        # Single candidates are what they are: their seed is part of what they are ranked by.
        skills = quality + (SEED_SPREAD * chance.standard_normal(3) if grouped else np.zeros(1))
        made = np.stack([table(kind, n, chance, skill, items) for skill in skills])
        candidates.append(made if grouped else made[0])
    pairs = list(combinations(range(len(QUALITY)), 2))
    tests = [(candidates[i], candidates[j], score) for i, j in pairs]
    found = [one for (one,) in paired_tests(tests, resamples=RESAMPLES, seed=seed)]
    adjusted = holm([one.p_value for one in found])
    clear = [
        p < 0.05 and not one.interval.low <= 0 <= one.interval.high for one, p in zip(found, adjusted, strict=True)
    ]
    certain = {
        pair: one.interval if is_clear else Interval(-np.inf, np.inf)
        for pair, one, is_clear in zip(pairs, found, clear, strict=True)
    }
    ranges = rank_ranges(certain, len(QUALITY))
    right = 0
    for quality, (best, worst) in zip(QUALITY, ranges, strict=True):
        above, below = sum(q > quality for q in QUALITY), sum(q < quality for q in QUALITY)
        right += best <= 1 + above and worst >= len(QUALITY) - below  # equals share their places
    return right, any(is_clear and QUALITY[i] == QUALITY[j] for (i, j), is_clear in zip(pairs, clear, strict=True))


def main() -> None:
    """Prints all tables."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--experiments", type=int, default=200)
    ask.add_argument("--intervals", type=int, default=1000)
    ask.add_argument("--seed", type=int, default=1)
    given, start = ask.parse_args(), time.time()
    print(f"coverage of 95 % intervals (score, difference) and false positives, {given.intervals} experiments each")
    print(f"{'':26}" + "".join(f"{f'n = {n}':>20}" for n in SIZES))
    for dialogues in (False, True):
        for kind in (*MEANS, *RATIOS):
            cells = [intervals(kind, n, given.intervals, given.seed, dialogues) for n in SIZES]
            name = f"{kind}{', dialogues' if dialogues else ''}"
            print(f"{name:26}" + "".join(f"{f'{a:.3f} {b:.3f} {p:.3f}':>20}" for a, b, p in cells), flush=True)
    print("\nfalse positives where spreads differ")
    rows = [unlike(n, given.intervals, given.seed) for n in SIZES]
    for name in rows[0]:
        print(f"{name:36}" + "".join(f"{f'{row[name]:.3f}':>10}" for row in rows), flush=True)
    print("\np and 95 % interval where k of n items differ by 100 and to one side (in brackets 2 / 2^k)")
    for n in (10, 15, 40):
        results = of_gaps(np.tril(np.ones((n, n))), given.seed)
        told = (f"{k}: {r.p_value:.4f} ({2 / 2**k:.4f}) {r.interval}" for k, r in enumerate(results, 1) if k < 17)
        print(f"n = {n}", *told, sep="\n    ")
    print("\nwhere items differ by all or nothing: false positives; of one sign: found, mean held")
    rows = [all_or_nothing(n, given.intervals, given.seed) for n in (10, 15, 20, 40)]
    for name in rows[0]:
        print(f"{name:24}" + "".join(f"{row[name]:>22}" for row in rows), flush=True)
    print(
        f"\nsix candidates, {given.experiments} experiments: "
        "ranges that hold the true rank, experiments with a false positive"
    )
    for grouped in (False, True):
        for kind in ("mean", "heavy mean", "skew mean", "ratio", "heavy ratio"):
            cells = []
            for n in (40, 100, 300):
                found = [experiment(kind, n, s, grouped) for s in range(given.experiments)]
                rights, falses = zip(*found, strict=True)
                cells.append(f"{sum(rights) / len(rights) / len(QUALITY):.3f} {sum(falses) / len(falses):.3f}")
            print(
                f"{f'{kind}, groups of 3 seeds' if grouped else kind:30}" + "".join(f"{c:>16}" for c in cells),
                flush=True,
            )
    print(f"\n{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
