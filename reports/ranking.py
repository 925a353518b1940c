"""Ranking: from the tables of one run or several to places with honest uncertainty.

The primary metric ranks: every pair is compared on it, with Holm's correction. A place is a range: 1 + how many are
certainly above, up to N - how many are certainly below. p-values of the other metrics are unadjusted.
"""

import json
import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from bnbench.errors import RunError, UsageError
from bnbench.metrics import significance
from bnbench.metrics.audit.findings import RECORD, Trust, read_audits, trust
from bnbench.metrics.combined import Combined, combine, weighted
from bnbench.metrics.core import FloatArray, Metric, ratio
from bnbench.metrics.registry import get_metric
from bnbench.metrics.significance import Interval, block_sums, counting, pseudo_values, resampled_sums
from bnbench.models.yardsticks import ANOTHER, ANOTHER_HALF, HALF, HALVES, REFERENCE
from bnbench.records import AUDITS, RATINGS, CandidateRecord, Generation, MetricRecord, Run, RunRecord, YardstickRecord
from bnbench.reports.people import TABLE, with_ratings

RESAMPLES = 10_000
LEVEL = 0.95
ALPHA = 0.05

IntArray = npt.NDArray[np.int64]
Pairs = dict[tuple[int, int], "Comparison"]


class Resampling(TypedDict):
    """How items are resampled; `clusters` names the dialogue of each, None where items count as independent."""

    resamples: int
    seed: int
    clusters: Sequence[Hashable] | None


@dataclass(frozen=True)
class Score:
    """One value of one metric over its items, with its 95 % interval (bootstrap-t, Wilson's of a share, NaN of one)."""

    metric: str
    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """`candidate` minus `other`, in pairs over the same items; of one item all but the difference are NaN."""

    candidate: str
    other: str
    metric: str
    name: str
    difference: float
    low: float  # of the 95 % interval, which comes from the same resamples as p
    high: float
    p: float
    p_holm: float | None  # on the primary metric alone
    smallest_detectable: float  # the true difference that so many items would show in 80 % of cases
    better: bool | None  # None where the items cannot tell: the interval holds 0, or p (p_holm if set) is 0.05 or more


@dataclass(frozen=True)
class Standing:
    """One candidate's range of ranks, its scores and differences to `compared_with`, each the primary value first."""

    candidate: str
    kind: str
    best_rank: int
    worst_rank: int
    compared_with: str | None  # an adapter's own base, else the first base, or the first candidate where there is none
    is_own_base: bool
    scores: tuple[Score, ...]
    versus_base: tuple[Comparison, ...]
    hit_limit_share: float | None
    first_share: float | None = None  # of resamples (of items and seeds) in which nobody was better; None of two or one

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


@dataclass(frozen=True, kw_only=True)
class Yardstick(YardstickRecord):
    """What replies without a model score here, by metric: its main value, outside of ranks and of Holm's family."""

    # Metrics in which the reference itself is certainly better: who is not better there says nothing to the message.
    floor_of: tuple[str, ...]
    scores: Mapping[str, Score]
    versus: Mapping[str, Mapping[str, Comparison]]  # each candidate less it, by candidate and metric, p unadjusted


@dataclass(frozen=True)
class Scored:
    """Replies of one origin by name, and their statistics by metric, a row an item."""

    name: str
    tables: Mapping[str, FloatArray]  # of a group the mean of `seeds`, the tables of each training seed
    seeds: tuple[Mapping[str, FloatArray], ...] = field(default=(), kw_only=True)

    def drawn(self, metric: str) -> FloatArray:
        """The table of one metric, n x k, or m x n x k of m training seeds."""
        return np.stack([own[metric] for own in self.seeds]) if self.seeds else self.tables[metric]


@dataclass(frozen=True)
class Entry(Scored):
    """One candidate of one run; an adapter was evaluated on `own_base`. `replies` and `tables` follow the items."""

    record: CandidateRecord
    replies: tuple[Generation, ...]
    of_replies: Mapping[str, FloatArray]  # of these very replies, where `tables` is the mean of drawings or seeds
    own_base: str | None = None


@dataclass(frozen=True)
class Group:
    """Candidates that differ in their training seed alone and rank as one: the seed and primary value of each."""

    name: str
    members: tuple[str, ...]
    seeds: tuple[int | None, ...]
    values: tuple[float, ...]
    share: float  # the part of the variance of the group's value that the seeds have, 0-1; the rest is the items'


@dataclass(frozen=True)
class Ranking:
    """Everything that a report says: `standings`, the best first, and what they were computed from."""

    primary: str
    primary_value: str
    higher_is_better: bool
    base: str  # what candidates without a base are compared with
    n: int  # items of which all candidates have the primary metric
    dialogues: int  # that these are of; n: each of its own
    seed: int
    resamples: int
    level: float
    standings: tuple[Standing, ...]
    pairs: tuple[Comparison, ...]
    groups: tuple[Group, ...]
    yardsticks: tuple[Yardstick, ...]
    telling: Mapping[str, Score]  # an AUC of each metric: how well it tells the replies to these messages from others
    values: Mapping[str, tuple[str, ...]]  # of each metric, the main one first
    signatures: Mapping[str, str]
    descriptions: Mapping[str, str]
    directions: Mapping[str, bool]
    notes: tuple[str, ...]
    combined: Combined | None
    trust: tuple[Trust, ...]
    metrics: Mapping[str, Metric] = field(repr=False, compare=False)
    entries: tuple[Entry, ...] = field(repr=False, compare=False)
    runs: tuple[Run, ...] = field(repr=False, compare=False)
    declared: str = field(repr=False)  # when the primary metric was
    how: Resampling = field(repr=False, compare=False)
    items: Mapping[str, IntArray] = field(repr=False, compare=False)  # by metric those that it counts, by number

    def unpassed(self, candidate: str, metric: str, name: str = "") -> list[Comparison]:
        """The candidate less each floor of the metric that it is not certainly better than; [] of a further value."""
        versus = (y.versus[candidate].get(metric) for y in self.yardsticks if metric in y.floor_of)
        return [c for c in versus if c and not c.better and name in ("", c.name)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the numbers without what they came from; no times, no paths, null for what is not finite."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.repr}
        plain: dict[str, Any] = json.loads(json.dumps(shown, default=asdict), parse_constant=lambda _: None)
        return plain


def rank(
    runs: Sequence[Run], *, resamples: int = RESAMPLES, audits: Path | None = None, primary: str | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Ranking:  # fmt: skip
    """Ranks the candidates of one run, or of several over the same items. `audits` is a file of further audits.

    `primary` ranks instead of the declared metric. Ratings by people count where there is one run: others' are of
    other raters. `groups` name candidates that differ in their training seed alone, and rank as one; None: those that
    the runs declared, else those whose trainings say so. Raises RunError as `collect` does, and UsageError where a
    candidate has no primary metric, or where that cannot be computed here, or `audits` not be read.
    """
    own = [path for run in runs if (path := run.path / AUDITS).is_file()]
    on_record = [audit for path in (RECORD, *own, *([audits] if audits else [])) for audit in read_audits(path)]
    if len(runs) == 1 and (runs[0].path / RATINGS).exists():
        runs = [with_ratings(runs[0])]
    entries, called = collect(runs)
    declared_groups = _groups(runs, called) if groups is None and any(r.record.groups for r in runs) else groups
    primary, seed = primary or runs[0].record.primary_metric, runs[0].record.seed
    named = [example.get("dialogue") or example["id"] for example in runs[0].examples]
    clusters = named if len(set(named)) < len(named) else None
    how: Resampling = {"resamples": resamples, "seed": seed, "clusters": clusters}
    described = {m.name: m for run in runs for m in run.record.metrics if not m.weights or _same_weights(runs)}
    metrics, entries, items, absent = _metrics(described, entries, primary, len(runs) > 1)
    entries, grouped = group(entries, declared_groups)
    if lacking := [e.name for e in entries if primary not in e.tables]:
        common = ", ".join(name for name in entries[0].tables if all(name in e.tables for e in entries)) or "no other"
        raise UsageError(f"{lacking[0]} has no {primary}, the primary metric; common to all candidates: {common}")
    ranks_by, n = metrics[primary], len(items[primary])
    # Every pair on the primary value, with Holm's correction over the family.
    raw: Pairs = {}
    for i, entry in enumerate(entries[:-1]):
        made = _compare(entry, [(other, ranks_by) for other in entries[i + 1 :]], how, 1)
        raw |= {(i, j): c for j, [c] in enumerate(made, i + 1)}
    adjusted = significance.holm([c.p for c in raw.values()])
    pairs = {pair: _judged(c, p, ranks_by) for (pair, c), p in zip(raw.items(), adjusted, strict=True)}
    baseline = next((e for e in entries if e.record.kind == "base"), entries[0])
    standings = _standings(entries, baseline, list(metrics.values()), pairs, how)
    standings.sort(key=lambda s: s.scores[0].value * (-1 if ranks_by.higher_is_better else 1))
    yardsticks, telling = _yardsticks(runs, entries, list(metrics.values()), items, how)
    # The combined score is of those that have every part.
    weights = next((described[name].weights for name in metrics if described[name].weights), None) or {}
    mains = {(name, metrics[name].values[0]) for name in weights}
    parts = {s.candidate: {x.metric: x.value for x in s.scores if (x.metric, x.name) in mains} for s in standings}
    whole = {who: of for who, of in parts.items() if len(of) == len(mains)}
    values = {name: tuple(m.values) for name, m in metrics.items()}
    signatures = {m: re.sub(r"\|n:\d+", f"|n:{len(items[m])}", described[m].signature) for m in metrics}
    notes = [*(n for run in runs for n in run.record.notes), *(_differences_between(runs) if runs[1:] else ()), *absent]
    before = runs[0].record.primary_metric
    declared = "declared before the run" if primary == before else f"chosen after the run, which declared {before}"
    return Ranking(
        primary=primary, primary_value=ranks_by.values[0], higher_is_better=ranks_by.higher_is_better,
        base=baseline.name, n=n, dialogues=len({named[i] for i in items[primary]}), seed=seed, resamples=resamples,
        level=LEVEL, how=how, items=items,
        standings=tuple(standings), pairs=tuple(pairs.values()), yardsticks=yardsticks,
        telling=telling, groups=_seeds(grouped, ranks_by, how) if grouped else (), values=values,
        signatures=signatures, descriptions={name: described[name].description for name in metrics},
        directions={name: m.higher_is_better for name, m in metrics.items()}, notes=tuple(dict.fromkeys(notes)),
        combined=combine(whole, weights, seed=seed) if weights else None, metrics=metrics,
        trust=trust(signatures, values, on_record), entries=tuple(entries), runs=tuple(runs), declared=declared,
    )  # fmt: skip


def collect(runs: Sequence[Run]) -> tuple[list[Entry], list[dict[str, str]]]:
    """The candidates of all runs, each once, and what each run's candidates are called among them.

    A name that stands for two different candidates gets its run's name added. A candidate of a later run is the same
    when identity (`key_fields`) and decoding are. Raises RunError where there are no runs, one stands twice, they are
    not over the same items, or a metric has another signature in one of them.
    """
    if not runs:
        raise RunError("nothing to report: name at least one run folder")
    signatures, entries = dict[str, tuple[str, Run]](), dict[str, Entry]()
    known, called = dict[str, str](), list[dict[str, str]]()  # identity -> the name by which it stands
    for at, run in enumerate(runs):
        # Its page holds the same run as its folder, and so does a copy.
        if twin := next((one for one in runs[:at] if one.record == run.record), None):
            raise RunError(f"{run.path} holds the same run as {twin.path}; it cannot be compared with itself")
        ours, theirs = ({e["id"]: e for e in each.examples} for each in (run, runs[0]))
        both = f"{run.path} ({len(ours)} items) and {runs[0].path} ({len(theirs)} items) cannot be compared"
        if list(ours) != list(theirs):
            what = "their items are in another order"
            if only := [item for item in {**ours, **theirs} if item not in ours or item not in theirs]:
                what = f"item {only[0]} is in one of them only ({len(only)} such)"
            raise RunError(f"{both}: {what}; evaluate both on the same data, --split and --limit")
        if changed := next(((i, f) for i, e in ours.items() for f in e if e[f] != theirs[i].get(f)), None):
            raise RunError(f"{both}: item {changed[0]} has another {changed[1]}")
        for metric in run.record.metrics:
            expected, other = signatures.setdefault(metric.name, (metric.signature, run))
            # Other weights of a combined score leave it out (`_same_weights`), and its parts are checked.
            if metric.signature != expected and not metric.weights:
                what = f"{metric.signature} cannot be ranked with {expected} of {other.path}"
                how = "run both evaluations again with the same version (their replies are kept)"
                raise RunError(f"{run.path}: {what}; {how}")
        names: dict[str, str] = {}
        called.append({})
        base: str | None = None  # a run has one at most, and it comes first
        for record in run.record.candidates:
            identity = json.dumps([record.key_fields, run.record.decoding], sort_keys=True)
            name, plain = known.get(identity, ""), record.name
            of_replies = {**run.tables[plain], **{m: drawn[:, 0] for m, drawn in run.drawn.get(plain, {}).items()}}
            if name:  # this run may have counted other metrics of the same replies
                old, tables = entries[name], {**run.tables[plain], **entries[name].tables}
                entries[name] = replace(old, tables=tables, of_replies={**of_replies, **old.of_replies})
            else:
                longer = f"{plain} ({run.record.name})"
                free = (n for n in (plain, longer) if n not in entries)
                name = next(free, "") or next(n for i in count(3) if (n := f"{longer} {i}") not in entries)
                own = base if record.kind == "adapter" else None
                entries[name] = Entry(name, run.tables[plain], record, run.replies[plain], of_replies, own)
            names[identity] = called[-1][record.name] = name
            base = name if record.kind == "base" else base
        known |= names
    return list(entries.values()), called


def _groups(runs: Sequence[Run], called: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The groups that the runs declared, of candidates as they are called among all."""
    found = dict[str, tuple[str, ...]]()
    for run, names in zip(runs, called, strict=True):
        for name, of in (run.record.groups or {}).items():
            members = tuple(names[member] for member in of)
            if members not in found.values():  # two runs may have the same group
                found[f"{name} ({run.record.name})" if name in found else name] = members
    return found


def group(
    entries: Sequence[Entry], declared: Mapping[str, Sequence[str]] | None
) -> tuple[list[Entry], dict[str, list[Entry]]]:
    """The entries with one for each group in the place of its members, and the members by the group's name."""
    known = {e.name: e for e in entries}
    if declared:
        check_groups(declared, known)
    found = {name: [known[member] for member in members] for name, members in (declared or {}).items()}
    # Where none is declared: adapters of one base whose recipes and rows are the same but for the seed.
    alike = dict[str, list[Entry]]()
    for e in entries if declared is None else ():
        if training := e.record.training:
            recipe = {k: v for k, v in training.recipe.items() if k not in ("seed", "name", "description")}
            same = [recipe, training.rows, training.steps, e.own_base, e.record.base, e.record.base_revision]
            alike.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(e)
    for those in alike.values():
        recipes = [e.record.training.recipe for e in those if e.record.training]
        if len({recipe.get("seed") for recipe in recipes}) == len(those) > 1:
            name = str(recipes[0].get("name"))
            found[name if name not in {*known, *found} else f"{name} ({', '.join(e.name for e in those)})"] = those
    made = list[Entry]()
    for e in entries:
        of = next((name for name, members in found.items() if e in members), "")
        if not of:
            made.append(e)
        elif e is found[of][0]:
            shared = set.intersection(*(set(one.tables) for one in found[of]))
            seeds = tuple({m: one.tables[m] for m in e.tables if m in shared} for one in found[of])
            tables = {m: np.mean([own[m] for own in seeds], axis=0) for m in seeds[0]}
            made.append(replace(e, name=of, tables=tables, seeds=seeds))
    return made, found


def check_groups(declared: Mapping[str, Sequence[str]], names: Collection[str]) -> None:
    """UsageError for a group of unknown candidates, of one alone, or that shares a member or its name with another."""
    members = [member for of in declared.values() for member in of]
    for name, of in declared.items():
        why = ""
        if unknown := [member for member in of if member not in names]:
            why = f"there is no candidate {unknown[0]!r}; there are {', '.join(names)}"
        elif len(of) < 2:
            why = "name two candidates or more, which differ in their training seed alone"
        elif twice := [member for member in of if members.count(member) > 1]:
            why = f"{twice[0]} is named twice"
        elif name in names:
            why = f"there is a candidate {name}; give the group another name"
        if why:
            raise UsageError(f"--group {name}={','.join(of)}: {why}")


def _seeds(grouped: Mapping[str, Sequence[Entry]], metric: Metric, how: Resampling) -> tuple[Group, ...]:
    """What each seed of each group scores, and how much of the variance of the group's score is theirs."""
    made = []
    for name, members in grouped.items():
        table = np.stack([e.tables[metric.name] for e in members])
        blocks = block_sums(table, how["clusters"])
        values = metric.formula(table.sum(axis=1))[:, 0].tolist()
        items = pseudo_values(blocks[counting(blocks)], metric.formula)
        of_seeds, of_items = significance.seed_variance(table, metric.formula)[0][0], items[:, 0].var() / len(items)
        seeds = tuple(e.record.training.recipe.get("seed") if e.record.training else None for e in members)
        share = float(ratio(of_seeds, of_seeds + of_items))
        made.append(Group(name, tuple(e.name for e in members), seeds, tuple(values), share))
    return tuple(made)


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
    if any((run.path / TABLE).exists() for run in runs):
        yield "ratings by people are left out: each run has raters of its own, so they do not compare the runs"
    for run in (run.record for run in runs[1:]):
        ours, theirs = _settings(run), _settings(first)
        if different := [name for name, value in ours.items() if value and theirs[name] and value != theirs[name]]:
            what = f"the runs {first.name} and {run.name} differ in {', '.join(different)}"
            yield f"{what}: differences between their candidates may come from there"
        if run.combined != first.combined:
            declared = " and ".join(f"{r.name} {weighted(r.combined) or 'none'}" for r in (first, run))
            yield f"the combined score is left out: the runs declared different ones, {declared}"
        if run.primary_metric != first.primary_metric:
            here = f"here {first.primary_metric} ranks, as {first.name} declared"
            yield f"the run {run.name} declared {run.primary_metric} as its primary metric; {here}"


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


def _metrics(
    described: Mapping[str, MetricRecord], entries: Sequence[Entry], primary: str, several: bool
) -> tuple[dict[str, Metric], list[Entry], dict[str, IntArray], list[str]]:
    """The metrics that can be computed here, the primary first, a combined score next; a note for each other one.

    With them the entries, of each metric with those rows alone that count for all who have it, and which items these
    are: every score and difference of a metric is over the same items, whichever metric ranks.
    """
    found, notes, items, n = dict[str, Metric](), list[str](), dict[str, IntArray](), len(entries[0].replies)
    tables = [dict(e.tables) for e in entries]
    for name in sorted(described, key=lambda n: (n != primary, not described[n].weights)):
        try:
            metric = get_metric(described[name].spelling or name)
            if tuple(metric.columns) != described[name].columns:
                held, has = (", ".join(columns) for columns in (described[name].columns, metric.columns))
                what = f"the run holds the statistics {held}, this version of {name} has {has}"
                raise UsageError(f"{what}; run the evaluation again (its replies are kept)")
            if "rivals" in metric.needs and several:
                raise UsageError(f"{name} compares the candidates of one run with each other")
            having = [own for own in tables if name in own]
            # Of a combined score every part counts.
            edges = np.cumsum([len(part.columns) for part in metric.parts])[:-1]
            parts = [part for own in having for part in np.split(own[name], edges, axis=1)]
            shared = np.all([np.full(n, fill_value=True), *((part != 0).any(axis=1) for part in parts)], axis=0)
            if not shared.any() and any(part.any() for part in parts):
                raise UsageError(f"no item has {name} for all candidates")
            shared |= not shared.any()  # of nothing: what the formula makes of it
            for own in having if not shared.all() else ():
                own[name] = own[name] * shared[:, None]
            found[name], items[name] = metric, np.flatnonzero(shared)
        except UsageError as error:
            if name == primary:
                raise
            notes.append(f"{name} is left out: {error}")
    return found, [replace(e, tables=own) for e, own in zip(entries, tables, strict=True)], items, notes


def _standings(
    entries: Sequence[Entry], baseline: Entry, metrics: Sequence[Metric], pairs: Pairs, how: Resampling
) -> list[Standing]:
    """Each candidate's place, scores, and differences to its own base or else to the baseline."""
    ranks_by, standings = metrics[0], []
    # A pair that Holm's correction leaves open separates nobody, whatever its own interval says.
    certain = {pair: Interval(c.low, c.high) for pair, c in pairs.items() if c.better is not None}
    ranges = significance.rank_ranges(certain, len(entries), higher_is_better=ranks_by.higher_is_better)
    # How often each is first where the items, and a group's seed, are drawn again; ties share.
    values, chance, shares = list[FloatArray](), np.random.default_rng([how["seed"], 3]), [None] * len(entries)
    for e in entries if len(entries) > 2 else ():
        seeds = e.drawn(ranks_by.name) if e.seeds else e.drawn(ranks_by.name)[None]
        drawn = np.stack([ranks_by.formula(resampled_sums(own, **how))[:, 0] for own in seeds])  # seeds x resamples
        values.append(drawn[chance.integers(0, len(drawn), drawn.shape[1]), np.arange(drawn.shape[1])])
    if values:
        drawn = np.stack(values) * (1 if ranks_by.higher_is_better else -1)
        first = (drawn >= drawn.max(axis=0) - 1e-9).astype(float)
        shares = (first / first.sum(axis=0)).mean(axis=1).tolist()
    for entry, ranks, share in zip(entries, ranges, shares, strict=True):
        own, versus = next((e for e in entries if e.name == entry.own_base), None), []
        if base := own or (baseline if baseline is not entry else None):
            shared = [(base, m) for m in metrics if m.name in entry.tables and m.name in base.tables]
            versus = [c for made in _compare(entry, shared, how) for c in made]
            adjusted = next(c.p_holm for c in pairs.values() if {c.candidate, c.other} == {entry.name, base.name})
            versus[0] = _judged(versus[0], adjusted, ranks_by)
        scores, other = tuple(_scores(entry, metrics, how)), base.name if base else None
        of_all = entry.record.hit_limit_share, share
        made = Standing(entry.name, entry.record.kind, *ranks, other, own is not None, scores, tuple(versus), *of_all)
        standings.append(made)
    return standings


def _yardsticks(
    runs: Sequence[Run], entries: Sequence[Entry], metrics: Sequence[Metric], items: Mapping[str, IntArray],
    how: Resampling,
) -> tuple[tuple[Yardstick, ...], dict[str, Score]]:  # fmt: skip
    """The yardsticks of the first run that has each, and how well each metric tells replies apart by them."""
    found, tables = dict[str, YardstickRecord](), dict[str, dict[str, FloatArray]]()
    for run in runs:  # a later run may have more metrics
        for y in run.record.yardsticks:
            if found.setdefault(y.name, y) == y:
                tables[y.name] = {**run.yardsticks[y.name], **tables.get(y.name, {})}
    for of in tables.values():  # over the items of the candidates, or not at all
        for m in (m for m in metrics if m.name in of):
            if not of[m.name].mean(axis=1)[items[m.name]].any(axis=1).all():
                del of[m.name]
    # Of several replies to an item, the row is the mean: what a formula makes of the sums is the score of all of them.
    # In binary fractions, so that counts which cancel out when rows are exchanged leave 0 and not 1e-17.
    means = {
        y: {m.name: (own[m.name].mean(axis=1) * 2**30).round() / 2**30 for m in metrics if m.name in own}
        for y, own in tables.items()
    }
    scored = {name: Scored(found[name].label, own) for name, own in means.items() if name not in HALVES and own}
    less: list[dict[tuple[str, str], Comparison]] = []
    for one in [*entries, *(scored[name] for name in (REFERENCE,) if name in scored)]:
        shared = [(of, m) for of in scored for m in metrics if m.name in one.tables and m.name in scored[of].tables]
        made = _compare(one, [(scored[of], m) for of, m in shared], how, 1) if shared else ()
        less.append({(of, m.name): c for (of, m), (c, *_) in zip(shared, made, strict=True)})
    yardsticks = []
    for name, own in scored.items():
        scores = {s.metric: s for s in _scores(own, metrics, how, 1)}
        versus = [{m: c for (of, m), c in each.items() if of == name} for each in less]
        floor_of = tuple(m for ideal in versus[len(entries) :] for m, c in ideal.items() if c.better)
        of_candidates = dict(zip((e.name for e in entries), versus, strict=False))
        yardsticks.append(Yardstick(**vars(found[name]), floor_of=floor_of, scores=scores, versus=of_candidates))
    # The AUC of each metric within items: how often the reply that belongs to a message scores above another item's.
    # That is the reference; but by a metric that reads references it scores 100 by construction, so there the first
    # half of a reference is the reply, and the second half what it is scored against: texts that share a message and
    # no sentence. Ties count a half; the interval is over items.
    telling = dict[str, Score]()
    for m in metrics:
        pair = (HALF, ANOTHER_HALF) if "references" in m.needs else (REFERENCE, ANOTHER)
        if not all(m.name in tables.get(name, {}) for name in pair):
            continue
        belongs, others = (np.nan_to_num(m.formula(tables[name][m.name])[..., 0]) for name in pair)
        won = (np.sign(((belongs - others) * (1 if m.higher_is_better else -1)).round(9)) + 1).mean(axis=1) / 2
        rows = np.column_stack([won, np.ones(len(won))]) * np.isin(np.arange(len(won)), items[m.name])[:, None]
        [ends] = significance.bootstrap(rows, lambda sums: ratio(sums[..., :1], sums[..., 1:]), **how)
        telling[m.name] = Score(m.name, m.values[0], float(won[items[m.name]].mean()), ends.low, ends.high)
    return tuple(yardsticks), telling


def _scores(entry: Scored, metrics: Sequence[Metric], how: Resampling, first: int | None = None) -> list[Score]:
    """All values, or the first so many, of all metrics that the entry has, from one drawing of resamples."""
    mine, alike = [m for m in metrics if m.name in entry.tables], dict[bytes, list[Metric]]()
    tables = [entry.drawn(m.name) for m in mine]
    for m, table in zip(mine, tables, strict=True):
        alike.setdefault(counting(table).tobytes(), []).append(m)
    if len(alike) > 1:  # metrics over the same items at once
        each = [score for these in alike.values() for score in _scores(entry, these, how, first)]
        return sorted(each, key=lambda score: [m.name for m in mine].index(score.metric))
    edges = np.cumsum([table.shape[-1] for table in tables])[:-1]
    names = [(m, value) for m in mine for value in m.values[:first]]
    shares = [place for place, (m, value) in enumerate(names) if value in m.shares]
    intervals = significance.bootstrap(
        np.concatenate(tables, axis=-1),
        lambda sums: np.concatenate(
            [m.formula(x)[..., :first] for m, x in zip(mine, np.split(sums, edges, axis=-1), strict=True)], axis=-1
        ), level=LEVEL, shares=shares, bounds=[m.bounds for m, _ in names], **how,
    )  # fmt: skip
    values = (x for m, t in zip(mine, tables, strict=True) for x in m.formula(block_sums(t).sum(axis=0))[:first])
    found = zip(names, values, intervals, strict=True)
    return [Score(m.name, name, float(value), i.low, i.high) for (m, name), value, i in found]


def _compare(
    a: Scored, against: Sequence[tuple[Scored, Metric]], how: Resampling, first: int | None = None
) -> Iterator[list[Comparison]]:
    """Every value, or the first so many, of each metric, compared with the entry beside it."""
    firsts = [lambda sums, of=m.formula: of(sums)[..., :first] for _, m in against]
    tests = [(a.drawn(m.name), b.drawn(m.name), formula) for (b, m), formula in zip(against, firsts, strict=True)]
    shares, bounds = [m.share_places for _, m in against], [m.bounds for _, m in against]
    found = significance.paired_tests(tests, level=LEVEL, shares=shares, bounds=bounds, **how)
    for (b, metric), results in zip(against, found, strict=True):
        made = []
        for name, r in zip(metric.values[:first], results, strict=True):
            told = r.difference, r.interval.low, r.interval.high, r.p_value, None, r.smallest_detectable, None
            made.append(_judged(Comparison(a.name, b.name, metric.name, name, *told), None, metric))
        yield made


def compare(
    ranking: Ranking, candidate: str, other: str, metric: str, name: str, items: IntArray | None = None
) -> Comparison | None:
    """Two candidates on any value, of some items or all, p unadjusted; None where one of them lacks the metric."""
    entries: dict[str, Scored] = {e.name: e for e in ranking.entries}
    a, b = entries[candidate], entries[other]
    if metric not in a.tables or metric not in b.tables:
        return None
    if items is not None:
        kept = np.isin(np.arange(len(a.tables[metric])), items)[:, None]
        parts = [[{metric: of[metric] * kept} for of in (one.tables, *one.seeds)] for one in (a, b)]
        a, b = (Scored(one.name, whole, seeds=tuple(s)) for one, (whole, *s) in zip((a, b), parts, strict=True))
    [made] = _compare(a, [(b, ranking.metrics[metric])], ranking.how)
    return next(c for c in made if c.name == name)


def alike(ranking: Ranking) -> list[tuple[str, ...]]:
    """Runs of neighbours in the ranking of whom no two can be told apart, the longest each; they may overlap."""
    apart = {frozenset((c.candidate, c.other)) for c in ranking.pairs if c.better is not None}
    names, found = [s.candidate for s in ranking.standings], list[tuple[str, ...]]()
    for start in range(len(names)):
        end = start + 1
        while end < len(names) and not any(frozenset((names[end], one)) in apart for one in names[start:end]):
            end += 1
        if not found or names[end - 1] not in found[-1]:
            found.append(tuple(names[start:end]))
    return found


def _judged(comparison: Comparison, p_holm: float | None, metric: Metric) -> Comparison:
    """The comparison judged by its adjusted p, where it has one."""
    p = comparison.p if p_holm is None else p_holm
    clear = p < ALPHA and not comparison.low <= 0 <= comparison.high  # p is not a number where there is one item
    better = (comparison.low > 0) == metric.higher_is_better if clear else None
    return replace(comparison, p_holm=p_holm, better=better)
