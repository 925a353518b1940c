"""Ranking: from the tables of one run or several to places with honest uncertainty.

One primary metric, declared before the run, ranks; every pair of candidates is compared on it over the same items, with
Holm's correction. The other metrics are secondary: their differences to the base are shown with unadjusted p-values.
A place is a range: 1 + how many are certainly above, up to N - how many are certainly below.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bnbench.errors import RunError, UsageError
from bnbench.metrics.audit.findings import read_audits
from bnbench.metrics.combined import Combined, combine, weighted
from bnbench.metrics.core import FloatArray, Metric
from bnbench.metrics.registry import get_metric
from bnbench.metrics.significance import Interval, PairedResult, bootstrap, holm, paired_tests, rank_ranges
from bnbench.records import CandidateRecord, Generation, MetricRecord, Run, RunRecord
from bnbench.reports.trust import Trust, trust

RESAMPLES = 10_000
LEVEL = 0.95
ALPHA = 0.05
_OPEN = Interval(-math.inf, math.inf)
_NO_INTERVAL = Interval(math.nan, math.nan)

Pair = tuple[int, int]


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
class Entry:
    """One candidate of one run. `replies` and `tables` are in the order of the items; `own_base` is the name of the
    base that an adapter was evaluated on.
    """

    name: str
    record: CandidateRecord
    replies: tuple[Generation, ...]
    tables: Mapping[str, FloatArray]
    own_base: str | None = None


@dataclass(frozen=True)
class Ranking:
    """Everything that a report says. `standings` is sorted by the primary value, best first.

    `values` names each metric's values, the main one first. `base` is what candidates without a base are compared with.
    `combined` has the parts and the stability of the combined score, where one was declared; `trust` what is on record
    about metrics that were audited. `metrics`, `entries` and `runs` are what the numbers were computed from.
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
    metrics: Mapping[str, Metric] = field(repr=False, compare=False)
    entries: tuple[Entry, ...] = field(repr=False, compare=False)
    runs: tuple[Run, ...] = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the numbers without what they came from; no times, no paths, null for what is not finite."""
        plain: dict[str, Any] = _finite(asdict(replace(self, metrics={}, entries=(), runs=())))
        return {key: value for key, value in plain.items() if key not in ("metrics", "entries", "runs")}

    def primary_score(self, standing: Standing) -> Score:
        """The value that ranks."""
        score = standing.score(self.primary, self.primary_value)
        assert score is not None  # rank() refuses candidates without it
        return score

    def __str__(self) -> str:
        from bnbench.reports.render import terminal

        return terminal(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the ranking and the metrics, without the page around them."""
        from bnbench.reports.html import fragment

        return fragment(self)


def rank(runs: Sequence[Run], *, resamples: int = RESAMPLES, audits: Path | None = None) -> Ranking:
    """Ranks the candidates of one run, or of several over the same items. `audits` is a file of further audits.

    Raises:
        RunError: as `collect` does. UsageError: the primary metric is missing for a candidate, or it is not installed
            here; `audits` cannot be read.
    """
    on_record = [*read_audits(), *(read_audits(audits) if audits else [])]
    entries = collect(runs)
    primary, seed = runs[0].record.primary_metric, runs[0].record.seed
    lacking = [e.name for e in entries if primary not in e.tables]
    if lacking:
        raise UsageError(f"{lacking[0]} has no {primary}: choose with --primary a metric that every candidate has")
    described = {m.name: m for run in runs for m in run.record.metrics if not m.weights or _same_weights(runs)}
    metrics, absent = _metrics(described, primary)
    ranks_by = metrics[primary]
    pairs = _pairs(entries, ranks_by, resamples, seed)
    baseline = next((e for e in entries if e.record.kind == "base"), entries[0])
    standings = _standings(entries, baseline, list(metrics.values()), pairs, resamples, seed)
    main, turn = ranks_by.values[0], -1.0 if ranks_by.higher_is_better else 1.0
    standings.sort(key=lambda s: turn * (s.value(primary, main) or 0.0))
    values = {name: tuple(m.values) for name, m in metrics.items()}
    signatures = {name: described[name].signature for name in metrics}
    notes = [*(n for run in runs for n in run.record.notes), *_differences_between(runs), *absent]
    return Ranking(
        primary=primary,
        primary_value=main,
        higher_is_better=ranks_by.higher_is_better,
        base=baseline.name,
        n=len(runs[0].examples),
        seed=seed,
        resamples=resamples,
        level=LEVEL,
        standings=tuple(standings),
        pairs=tuple(pairs.values()),
        values=values,
        signatures=signatures,
        descriptions={name: described[name].description for name in metrics},
        directions={name: m.higher_is_better for name, m in metrics.items()},
        notes=tuple(dict.fromkeys(notes)),
        combined=_combined(standings, [described[name] for name in metrics], metrics, seed),
        trust=trust(signatures, values, on_record),
        metrics=metrics,
        entries=tuple(entries),
        runs=tuple(runs),
    )


# --------------------------------------------------------------------------------------- the candidates of several runs


def collect(runs: Sequence[Run]) -> list[Entry]:
    """The candidates of all runs, each once; a name that stands for two different candidates gets its run's name added.

    A candidate of a later run is the same when identity (`key_fields`) and decoding are.

    Raises:
        RunError: no runs, the runs are not over the same items, or a metric has another signature in one of them.
    """
    if not runs:
        raise RunError("nothing to report: name at least one run folder")
    signatures: dict[str, tuple[str, Run]] = {}
    entries: dict[str, Entry] = {}
    known: dict[str, str] = {}  # identity -> the name by which it stands
    for run in runs:
        _check_items(run, runs[0])
        for metric in run.record.metrics:
            expected, other = signatures.setdefault(metric.name, (metric.signature, run))
            # Other weights of a combined score leave it out (`_same_weights`), and its parts are checked.
            if metric.signature != expected and not metric.weights:
                raise RunError(
                    f"{run.path}: {metric.signature} cannot be ranked with {expected} of {other.path}; "
                    "run both evaluations again with the same version (their replies are kept)"
                )
        names: dict[str, str] = {}
        base: str | None = None  # a run has one at most, and it comes first
        for record in run.record.candidates:
            identity = json.dumps([record.key_fields, run.record.decoding], sort_keys=True)
            name = known.get(identity, "")
            if not name:
                plain, longer = record.name, f"{record.name} ({run.record.name})"
                free = (n for n in (plain, longer) if n not in entries)
                name = next(free, "") or next(n for i in count(3) if (n := f"{longer} {i}") not in entries)
                own = base if record.kind == "adapter" else None
                entries[name] = Entry(name, record, run.replies[plain], run.tables[plain], own)
            names[identity] = name
            base = name if record.kind == "base" else base
        known |= names
    return list(entries.values())


def _check_items(run: Run, first: Run) -> None:
    ours, theirs = ({e["id"]: e for e in r.examples} for r in (run, first))
    if list(ours) != list(theirs):
        only = [i for i in ours if i not in theirs] + [i for i in theirs if i not in ours]
        what = (
            f"item {only[0]} is in one of them only ({len(only)} such)" if only else "their items are in another order"
        )
        raise RunError(
            f"{run.path} ({len(ours)} items) and {first.path} ({len(theirs)} items) cannot be compared: {what}; "
            "evaluate both on the same data, --split and --limit"
        )
    changed = next(((i, f) for i, e in ours.items() for f in e if e[f] != theirs[i].get(f)), None)
    if changed:
        raise RunError(f"{run.path} and {first.path} cannot be compared: item {changed[0]} has another {changed[1]}")


def _same_weights(runs: Sequence[Run]) -> bool:
    """Whether all runs declared the same combined score, or none. RunError where not and it is what ranks."""
    first = runs[0].record
    same = all(run.record.combined == first.combined for run in runs)
    if not same and any(m.weights for m in first.metrics if m.name == first.primary_metric):
        raise RunError(
            f"{runs[0].path} ranks by a combined score that not all of {', '.join(str(run.path) for run in runs[1:])} "
            "declared; evaluate them with the same --combine, or name first a run with another primary metric"
        )
    return same


def _differences_between(runs: Sequence[Run]) -> Iterator[str]:
    """A note for each run that does not share more than its candidates with the first: decoding, precision, prompts."""
    first = runs[0].record
    for run in (run.record for run in runs[1:]):
        ours, theirs = _settings(run), _settings(first)
        different = [name for name, value in ours.items() if value and theirs[name] and value != theirs[name]]
        if different:
            yield (
                f"the runs {first.name} and {run.name} differ in {', '.join(different)}: "
                "differences between their candidates may come from there"
            )
        if run.combined != first.combined:
            declared = " and ".join(f"{r.name} {weighted(r.combined) or 'none'}" for r in (first, run))
            yield f"the combined score is left out: the runs declared different ones, {declared}"
        if run.primary_metric != first.primary_metric:
            yield (
                f"the run {run.name} declared {run.primary_metric} as its primary metric; "
                f"here {first.primary_metric} ranks, as {first.name} declared"
            )


def _settings(record: RunRecord) -> dict[str, Any]:
    """What moves replies; each None where a run has recorded replies only, of which nothing is known."""
    decoding, precision, prompt = record.decoding, record.precision, record.prompt
    if all(candidate.kind == "predictions" for candidate in record.candidates):
        decoding = precision = prompt = {}
    # max_new_tokens follows from max_words and the tokenizer, so it differs between models that were decoded alike.
    return {
        "decoding": {k: v for k, v in decoding.items() if k != "max_new_tokens" or not decoding.get("max_words")},
        "dtype": precision.get("dtype"),
        "quantisation": precision.get("quantisation"),
        "prompt format": prompt.get("kind"),
        "system prompt": prompt.get("system"),
    }


# --------------------------------------------------------------------------------------------------- scores and tests


def _metrics(described: Mapping[str, MetricRecord], primary: str) -> tuple[dict[str, Metric], list[str]]:
    """The metrics that this installation can compute, the primary first, a combined score next; a note for each that
    it cannot. UsageError where that is the primary.
    """
    found, notes = {}, []
    for name in sorted(described, key=lambda n: (n != primary, not described[n].weights)):
        try:
            metric = get_metric(described[name].spelling or name)
            if tuple(metric.columns) != described[name].columns:
                raise UsageError(
                    f"the run holds the statistics {', '.join(described[name].columns)}, this version of {name} has "
                    f"{', '.join(metric.columns)}; run the evaluation again (its replies are kept)"
                )
            found[name] = metric
        except UsageError as error:
            if name == primary:
                raise
            notes.append(f"{name} is left out: {error}")
    return found, notes


def _combined(
    standings: Sequence[Standing], records: Sequence[MetricRecord], metrics: Mapping[str, Metric], seed: int
) -> Combined | None:
    """The parts of the combined score of every candidate that has it, and what other weights would make of them."""
    weights = next((record.weights for record in records if record.weights), None)
    if not weights:
        return None
    parts = {s.candidate: {name: s.value(name, metrics[name].values[0]) for name in weights} for s in standings}
    whole = {
        who: {name: value for name, value in scores.items() if value is not None}
        for who, scores in parts.items()
        if None not in scores.values()
    }
    return combine(whole, weights, seed=seed)


def _standings(
    entries: Sequence[Entry],
    baseline: Entry,
    metrics: Sequence[Metric],
    pairs: Mapping[Pair, Comparison],
    resamples: int,
    seed: int,
) -> list[Standing]:
    """Each candidate's place, scores, and differences to its own base or else to the baseline."""
    ranks_by, *_ = metrics
    # A pair that Holm's correction leaves open separates nobody, whatever its own interval says.
    certain = {pair: Interval(c.low, c.high) if c.better is not None else _OPEN for pair, c in pairs.items()}
    ranges = rank_ranges(certain, len(entries), higher_is_better=ranks_by.higher_is_better)
    standings = []
    for entry, (best, worst) in zip(entries, ranges, strict=True):
        own = next((e for e in entries if e.name == entry.own_base), None)
        base = own or (baseline if baseline is not entry else None)
        versus = _compare(entry, base, metrics, resamples, seed) if base else []
        if base:
            both = {entry.name, base.name}
            adjusted = next(c.p_holm for c in pairs.values() if {c.candidate, c.other} == both)
            versus[0] = _with_holm(versus[0], adjusted, ranks_by)
        standings.append(
            Standing(
                candidate=entry.name,
                kind=entry.record.kind,
                best_rank=best,
                worst_rank=worst,
                compared_with=base.name if base else None,
                is_own_base=own is not None,
                scores=tuple(_scores(entry, metrics, resamples, seed)),
                versus_base=tuple(versus),
                hit_limit_share=entry.record.hit_limit_share,
            )
        )
    return standings


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


def _pairs(entries: Sequence[Entry], metric: Metric, resamples: int, seed: int) -> dict[Pair, Comparison]:
    """Every pair on the primary value, with Holm's correction over the family."""
    pairs: dict[Pair, Comparison] = {}
    for i, a in enumerate(entries[:-1]):
        others = range(i + 1, len(entries))
        tests = [(a.tables[metric.name], entries[j].tables[metric.name], metric.formula) for j in others]
        for j, results in zip(others, paired_tests(tests, resamples=resamples, seed=seed, level=LEVEL), strict=True):
            pairs[i, j] = _comparison(a, entries[j], metric, metric.values[0], results[0])
    adjusted = holm([c.p for c in pairs.values()])
    return {pair: _with_holm(c, p, metric) for (pair, c), p in zip(pairs.items(), adjusted, strict=True)}


def _compare(a: Entry, b: Entry, metrics: Sequence[Metric], resamples: int, seed: int) -> list[Comparison]:
    """Every value of every metric that both have."""
    shared = [m for m in metrics if m.name in a.tables and m.name in b.tables]
    tests = [(a.tables[m.name], b.tables[m.name], m.formula) for m in shared]
    return [
        _comparison(a, b, metric, name, result)
        for metric, results in zip(
            shared, paired_tests(tests, resamples=resamples, seed=seed, level=LEVEL), strict=True
        )
        for name, result in zip(metric.values, results, strict=True)
    ]


def _comparison(a: Entry, b: Entry, metric: Metric, name: str, result: PairedResult) -> Comparison:
    interval, p, least = result.interval, result.p_value, result.smallest_detectable
    if len(a.replies) == 1:  # from one item follow neither intervals nor p-values
        interval, p, least = _NO_INTERVAL, math.nan, math.nan
    ends = interval.low, interval.high
    made = Comparison(a.name, b.name, metric.name, name, result.difference, *ends, p, None, least, None)
    return _with_holm(made, None, metric)


def _with_holm(comparison: Comparison, p_holm: float | None, metric: Metric) -> Comparison:
    """The comparison judged by its adjusted p, where it has one."""
    p = comparison.p if p_holm is None else p_holm
    clear = p < ALPHA and not comparison.low <= 0 <= comparison.high  # p is not a number where there is one item
    better = (comparison.low > 0) == metric.higher_is_better if clear else None
    return replace(comparison, p_holm=p_holm, better=better)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
