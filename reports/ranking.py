"""Ranking: from the tables of one run or several to places with honest uncertainty.

One primary metric, declared before the run, ranks; every pair of candidates is compared on it over the same items, with
Holm's correction. The other metrics are secondary: their differences to the base are shown with unadjusted p-values.
A place is a range: 1 + how many are certainly above, up to N - how many are certainly below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnbench.errors import UsageError
from bnbench.metrics.audit.findings import read_audits
from bnbench.metrics.combined import NAME as COMBINED
from bnbench.metrics.combined import Combined, CombinedScore, combine
from bnbench.metrics.core import FloatArray, Metric
from bnbench.metrics.registry import get_metric
from bnbench.metrics.significance import Interval, PairedResult, bootstrap, holm, paired_tests, rank_ranges
from bnbench.records import Run
from bnbench.reports.entries import Entry, collect, differences_between, same_weights
from bnbench.reports.trust import Trust, trust

RESAMPLES = 10_000
LEVEL = 0.95
ALPHA = 0.05
_OPEN = Interval(-math.inf, math.inf)
_NO_INTERVAL = Interval(math.nan, math.nan)

Pair = tuple[int, int]
_Test = tuple[FloatArray, FloatArray, Callable[[FloatArray], FloatArray]]


@dataclass(frozen=True)
class Score:
    """One value of one metric over all items, with its 95 % bootstrap interval."""

    metric: str
    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """`candidate` minus `other`, in pairs over the same items: 95 % bootstrap interval, approximate-randomisation p.

    `p_holm` is set where the comparison belongs to the family of the primary metric. `better` says whether the
    candidate is better or worse; None means that the items cannot tell: the interval holds 0, or p (p_holm where it is
    set) is not under 0.05. `smallest_detectable` is the true difference that so many items would show in 80 % of cases.
    Of one item, the interval, p and the detectable difference are NaN (null in JSON), and those of `Score` too.
    """

    candidate: str
    other: str
    metric: str
    name: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float | None
    smallest_detectable: float
    better: bool | None


@dataclass(frozen=True)
class Standing:
    """One candidate's place: the range of ranks that the data allow, its scores, its differences to `compared_with`.

    That is an adapter's own base (`is_own_base`), else the first base, or the first candidate where there is no base.
    """

    candidate: str
    kind: str
    best_rank: int
    worst_rank: int
    compared_with: str | None
    is_own_base: bool
    scores: tuple[Score, ...]
    versus_base: tuple[Comparison, ...]
    hit_limit_share: float | None

    def score(self, metric: str, name: str) -> Score | None:
        """One value of one metric; None where the candidate lacks it."""
        return next((s for s in self.scores if (s.metric, s.name) == (metric, name)), None)

    def value(self, metric: str, name: str) -> float | None:
        """The same without its interval."""
        score = self.score(metric, name)
        return None if score is None else score.value

    def versus(self, metric: str, name: str) -> Comparison | None:
        """The difference of one value to the candidate's base; None for the base, and where one of the two lacks it."""
        return next((c for c in self.versus_base if (c.metric, c.name) == (metric, name)), None)


@dataclass(frozen=True)
class Ranking:
    """Everything that a report says in numbers. `standings` is sorted by the primary value, best first.

    `values` names each metric's values, the main one first. `base` is what candidates without a base are compared with.
    `combined` has the parts and the stability of the combined score, where one was declared; `trust` what is on record
    about metrics that were audited.
    """

    primary: str
    primary_value: str
    higher_is_better: bool
    base: str
    n: int
    seed: int
    resamples: int
    level: float
    standings: tuple[Standing, ...]
    pairs: tuple[Comparison, ...]
    values: Mapping[str, tuple[str, ...]]
    signatures: Mapping[str, str]
    descriptions: Mapping[str, str]
    directions: Mapping[str, bool]
    notes: tuple[str, ...]
    combined: Combined | None
    trust: tuple[Trust, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: no times, no paths, and null for a number that is not finite."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def primary_score(self, standing: Standing) -> Score:
        """The value that ranks."""
        score = standing.score(self.primary, self.primary_value)
        assert score is not None  # rank() refuses candidates without it
        return score


def rank(runs: Sequence[Run], *, resamples: int = RESAMPLES, audits: Path | None = None) -> Ranking:
    """Ranks the candidates of one run, or of several over the same items. `audits` is a file of further audits.

    Raises:
        RunError: see `collect`. UsageError: the primary metric is missing for a candidate, or it is not installed here;
            `audits` cannot be read.
    """
    on_record = [*read_audits(), *(read_audits(audits) if audits else [])]
    entries = collect(runs)
    primary, seed = runs[0].meta["primary_metric"], runs[0].meta["seed"]
    lacking = [e.name for e in entries if primary not in e.tables]
    if lacking:
        raise UsageError(f"{lacking[0]} has no {primary}: choose with --primary a metric that every candidate has")
    described = {m["name"]: m for run in runs for m in run.meta["metrics"]}
    if not same_weights(runs):
        described.pop(COMBINED, None)
    metrics, absent = _metrics(described, primary)
    pairs = _pairs(entries, metrics[primary], resamples, seed)
    standings = _standings(entries, list(metrics.values()), pairs, resamples, seed)
    best_first = -1.0 if metrics[primary].higher_is_better else 1.0
    main = metrics[primary].values[0]
    values = {name: tuple(m.values) for name, m in metrics.items()}
    signatures = {name: described[name]["signature"] for name in metrics}
    standings.sort(key=lambda s: best_first * next(x.value for x in s.scores if (x.metric, x.name) == (primary, main)))
    return Ranking(
        primary=primary,
        primary_value=main,
        higher_is_better=metrics[primary].higher_is_better,
        base=_baseline(entries).name,
        n=len(runs[0].examples),
        seed=seed,
        resamples=resamples,
        level=LEVEL,
        standings=tuple(standings),
        pairs=tuple(pairs.values()),
        values=values,
        signatures=signatures,
        descriptions={name: described[name]["description"] for name in metrics},
        directions={name: m.higher_is_better for name, m in metrics.items()},
        notes=tuple(
            dict.fromkeys([*(n for run in runs for n in run.meta["notes"]), *differences_between(runs), *absent])
        ),
        combined=_combined(standings, metrics, seed),
        trust=trust(signatures, values, on_record),
    )


def _combined(standings: Sequence[Standing], metrics: Mapping[str, Metric], seed: int) -> Combined | None:
    """The parts of the combined score of every candidate that has it, and what other weights would make of them."""
    of = metrics.get(COMBINED)
    if not isinstance(of, CombinedScore):
        return None
    parts = {
        s.candidate: {
            part.name: value for part in of.parts if (value := s.value(part.name, part.values[0])) is not None
        }
        for s in standings
    }
    return combine({who: have for who, have in parts.items() if len(have) == len(of.parts)}, of.weights, seed=seed)


def _metrics(described: Mapping[str, Mapping[str, Any]], primary: str) -> tuple[dict[str, Metric], list[str]]:
    """The metrics that this installation can compute, the primary first; a note for each that it cannot."""
    found, notes = {}, []
    for name in sorted(described, key=lambda n: (n != primary, n != COMBINED)):
        try:
            found[name] = _metric(name, described[name])
        except UsageError as error:
            if name == primary:
                raise
            notes.append(f"{name} is left out: {error}")
    return found, notes


def _metric(name: str, described: Mapping[str, Any]) -> Metric:
    metric = CombinedScore(described["weights"]) if name == COMBINED else get_metric(name)
    if list(metric.columns) != list(described["columns"]):
        raise UsageError(
            f"the run holds the statistics {', '.join(described['columns'])}, this version of {name} has "
            f"{', '.join(metric.columns)}; run the evaluation again (its replies are kept)"
        )
    return metric


def _baseline(entries: Sequence[Entry]) -> Entry:
    return next((e for e in entries if e.kind == "base"), entries[0])


def _base_of(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """What an entry is compared with: its own base where it has one, else the first base (or candidate) of all."""
    own = next((e for e in entries if e.name == entry.own_base), None)
    base = own or _baseline(entries)
    return None if base is entry else base


def _standings(
    entries: Sequence[Entry], metrics: Sequence[Metric], pairs: Mapping[Pair, Comparison], resamples: int, seed: int
) -> list[Standing]:
    # A pair that Holm's correction leaves open separates nobody, whatever its own interval says.
    certain = {pair: Interval(c.low, c.high) if c.better is not None else _OPEN for pair, c in pairs.items()}
    ranges = rank_ranges(certain, len(entries), higher_is_better=metrics[0].higher_is_better)
    adjusted = {frozenset((c.candidate, c.other)): c.p_holm for c in pairs.values()}
    return [
        _standing(entry, place, _base_of(entry, entries), metrics, adjusted, resamples, seed)
        for entry, place in zip(entries, ranges, strict=True)
    ]


def _standing(
    entry: Entry,
    place: tuple[int, int],
    base: Entry | None,
    metrics: Sequence[Metric],
    adjusted: Mapping[frozenset[str], float | None],
    resamples: int,
    seed: int,
) -> Standing:
    scores = _scores(entry, metrics, resamples, seed)
    versus = _compare(entry, base, metrics, resamples, seed) if base else []
    if base:
        versus[0] = _with_holm(versus[0], adjusted[frozenset((entry.name, base.name))], metrics[0])
    return Standing(
        candidate=entry.name,
        kind=entry.kind,
        best_rank=place[0],
        worst_rank=place[1],
        compared_with=base.name if base else None,
        is_own_base=base is not None and base.name == entry.own_base,
        scores=tuple(scores),
        versus_base=tuple(versus),
        hit_limit_share=entry.hit_limit_share,
    )


def _scores(entry: Entry, metrics: Sequence[Metric], resamples: int, seed: int) -> list[Score]:
    """All values of all metrics that the entry has, from one drawing of resamples."""
    mine = [m for m in metrics if m.name in entry.tables]
    tables = [entry.tables[m.name] for m in mine]
    edges = np.cumsum([table.shape[1] for table in tables])[:-1]

    def formula(sums: FloatArray) -> FloatArray:
        parts = zip(mine, np.split(sums, edges, axis=-1), strict=True)
        return np.concatenate([m.formula(part) for m, part in parts], axis=-1)

    table = np.hstack(tables)
    names = [(m.name, value) for m in mine for value in m.values]
    intervals = bootstrap(table, formula, resamples=resamples, seed=seed, level=LEVEL)
    if len(table) == 1:  # its resamples are all alike, which is no certainty
        intervals = [_NO_INTERVAL] * len(names)
    values = formula(table.sum(axis=0))
    return [Score(*name, float(v), i.low, i.high) for name, v, i in zip(names, values, intervals, strict=True)]


def _compare(a: Entry, b: Entry, metrics: Sequence[Metric], resamples: int, seed: int) -> list[Comparison]:
    """Every value of every metric that both have."""
    shared = [m for m in metrics if m.name in a.tables and m.name in b.tables]
    tests = [(a.tables[m.name], b.tables[m.name], m.formula) for m in shared]
    found = _paired_tests(tests, resamples, seed)
    return [
        _comparison(a, b, metric, name, result)
        for metric, results in zip(shared, found, strict=True)
        for name, result in zip(metric.values, results, strict=True)
    ]


def _paired_tests(tests: Sequence[_Test], resamples: int, seed: int) -> list[list[PairedResult]]:
    """`paired_tests`, but from one item follow neither intervals nor p-values."""
    found = paired_tests(tests, resamples=resamples, seed=seed, level=LEVEL)
    if len(tests[0][0]) > 1:
        return found
    return [[PairedResult(r.difference, _NO_INTERVAL, math.nan, math.nan) for r in results] for results in found]


def _comparison(a: Entry, b: Entry, metric: Metric, name: str, result: PairedResult) -> Comparison:
    low, high, p = result.interval.low, result.interval.high, result.p_value
    better = _better(low, high, p, metric.higher_is_better)
    return Comparison(
        a.name, b.name, metric.name, name, result.difference, low, high, p, None, result.smallest_detectable, better
    )  # fmt: skip


def _better(low: float, high: float, p: float, higher_is_better: bool) -> bool | None:
    if not p < ALPHA or low <= 0 <= high:  # p is not a number where there is one item
        return None
    return (low > 0) == higher_is_better


def _with_holm(comparison: Comparison, p_holm: float | None, metric: Metric) -> Comparison:
    p = comparison.p if p_holm is None else p_holm
    return replace(
        comparison, p_holm=p_holm, better=_better(comparison.low, comparison.high, p, metric.higher_is_better)
    )


def _pairs(entries: Sequence[Entry], metric: Metric, resamples: int, seed: int) -> dict[Pair, Comparison]:
    """Every pair on the primary value, with Holm's correction over the family."""
    pairs: dict[Pair, Comparison] = {}
    for i, a in enumerate(entries[:-1]):
        others = range(i + 1, len(entries))
        tests = [(a.tables[metric.name], entries[j].tables[metric.name], metric.formula) for j in others]
        found = _paired_tests(tests, resamples, seed)
        pairs |= {
            (i, j): _comparison(a, entries[j], metric, metric.values[0], r[0])
            for j, r in zip(others, found, strict=True)
        }
    adjusted = holm([c.p for c in pairs.values()])
    return {pair: _with_holm(c, p, metric) for (pair, c), p in zip(pairs.items(), adjusted, strict=True)}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
