"""What people said of the replies of a run: ratings as metrics, how far raters agree, and how many it takes.

Ratings lie in ratings.jsonl under a hash of the texts that were read, so that none is taken for one of another reply.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from bnbench.errors import UsageError
from bnbench.metrics.audit.agreement import kendall, tie_threshold
from bnbench.metrics.audit.findings import Estimate
from bnbench.metrics.core import FloatArray, MeanMetric, Metric, Texts, ratio
from bnbench.metrics.significance import bootstrap
from bnbench.records import PERSON, RATINGS, MetricRecord, Rating, Run, read_lines

CRITERIA = ("empathy", "relevance", "fluency", "overall")
LEVELS = 5  # of each criterion, from 1
TABLE = "human-ratings.csv"  # what an import writes beside ratings.jsonl, for people and `bnbench preferences`
BETTER = "better"  # of two replies: 0 neither, 1 the first, 2 the second


class Rated(MeanMetric):
    """A metric of what people gave: a sum over a count. Only `with_ratings` makes its tables."""

    columns = ("sum", "ratings")
    is_percent, scale = False, 1

    def __init__(self) -> None:
        self.values, self.drawn = (self.name.replace("-", "_"),), dict[str, object]()

    @property
    def choices(self) -> Mapping[str, object]:
        """How many raters, with a hash of their names, and how many items they saw."""
        if not self.drawn:
            raise UsageError(f"{self.name} is what people give to a finished run: `bnbench human sheet RUN` asks them")
        return self.drawn

    def per_reply(self, texts: Texts) -> FloatArray:
        """Raises UsageError: people read a run, not any text."""
        what = f"a run that people read, not of {len(texts)} replies"
        raise UsageError(f"{self.name} is of {what}: `bnbench human sheet`")


_MEAN = "mean rating of {} by people, 1-5, higher is better"
_TOLD: dict[str, Any] = {of: {"description": _MEAN.format(of), "bounds": (1, LEVELS)} for of in CRITERIA}
_WON = "share of comparisons with other candidates that people decided for it, a tie half, 0-100, higher is better"
_TOLD["wins"] = {"description": _WON, "bounds": (0, 100), "is_percent": True}
Empathy, Relevance, Fluency, Overall, Wins = (
    type(of.title(), (Rated,), {**own, "__doc__": own["description"], "name": f"human-{of}"})
    for of, own in _TOLD.items()
)


@dataclass(frozen=True)
class People:
    """What R people gave to C candidates on n items; NaN where they gave nothing."""

    raters: tuple[str, ...]
    given: Mapping[str, FloatArray]  # (n, C, R) by criterion
    better: FloatArray  # (n, C, C, R): 1 where the first of two candidates was better, 0.5 where neither was
    by_pairs: bool
    own: npt.NDArray[np.bool_]  # (n, C), without a reply that another candidate gave before
    stale: int  # ratings of replies that the run no longer holds

    def tables(self) -> dict[str, FloatArray]:
        """The statistics of each metric by its name: sums and counts, n x C x 2."""
        whole = dict(self.given) | {"wins": 100 * self.better.reshape(*self.better.shape[:2], -1)}
        return {f"human-{of}": np.stack([np.nansum(x, -1), (~np.isnan(x)).sum(-1)], -1) for of, x in whole.items()}


def text_key(item: str, *texts: str) -> str:
    """The key of a rating: a hash of the item and of the text, or the two texts in the order shown, that were read."""
    return hashlib.sha256(json.dumps(["human", item, *texts]).encode()).hexdigest()


def read_people(run: Run) -> People | None:
    """What people gave to the replies of a run, of two answers to one question the later; None where there is none."""
    rows = [row for row in read_lines(Rating, run.path / RATINGS) if row.rater.startswith(PERSON)]
    said = {(row.key, row.rater, row.criterion): row.value for row in rows}
    if not said:
        return None
    raters = tuple(dict.fromkeys(row.rater for row in rows))
    replies = [[generations[i].reply for generations in run.replies.values()] for i in range(len(run.examples))]
    shape = len(replies), len(run.replies), len(raters)
    given, used = {criterion: np.full(shape, np.nan) for criterion in CRITERIA}, set[tuple[str, str, str]]()
    better, won = np.full((*shape[:2], *shape[1:]), np.nan), {0.0: 0.5, 1.0: 1.0, 2.0: 0.0}

    def answer(key: str, rater: str, criterion: str) -> float:
        used.add((key, rater, criterion))
        return said.get((key, rater, criterion), math.nan)

    for i, (example, texts) in enumerate(zip(run.examples, replies, strict=True)):
        for r, rater in enumerate(raters):
            for c, text in enumerate(texts):
                key = text_key(example["id"], text)
                for criterion, of in given.items():
                    of[i, c, r] = answer(key, rater, criterion)
            for a, b in permutations(range(shape[1]), 2):  # asked in one of the two orders, if at all
                share = won.get(answer(text_key(example["id"], texts[a], texts[b]), rater, BETTER))
                if share is not None:
                    better[i, a, b, r], better[i, b, a, r] = share, 1 - share
    by_pairs = not bool(np.isnan(better).all())
    if not by_pairs:  # then the better reply is the one that the same person rated higher
        overall = given["overall"]
        better = 0.5 + 0.5 * np.sign(overall[:, :, None] - overall[:, None, :])
        better[:, range(shape[1]), range(shape[1])] = np.nan
    own = np.array([[text not in texts[:c] for c, text in enumerate(texts)] for texts in replies])
    return People(raters, given, better, by_pairs, own, len(said.keys() - used))


def with_ratings(run: Run) -> Run:
    """The run with what people gave as metrics: items that nobody rated have empty rows, which do not count."""
    people = read_people(run)
    if people is None or not (rated := {k: t for k, t in people.tables().items() if t[..., 1].any()}):
        return run
    tables = {
        name: {**own, **{k: t[:, c] for k, t in rated.items() if t[:, c, 1].any()}}
        for c, (name, own) in enumerate(run.tables.items())
    }
    notes, described = [*run.record.notes], [*run.record.metrics]
    if people.stale:
        notes.append(f"{people.stale} answers of people are of other replies than this run holds, and are left out")
    who = hashlib.sha256(json.dumps(sorted(people.raters)).encode()).hexdigest()[:8]
    for metric in (kind() for kind in (Empathy, Relevance, Fluency, Overall, Wins)):
        if metric.name in rated:
            items = int(rated[metric.name][..., 1].any(axis=1).sum())
            metric.drawn = {"raters": f"{len(people.raters)}-{who}", "items": items}
            metric.drawn |= {"by": "pairs" if people.by_pairs else "ratings"} if isinstance(metric, Wins) else {}
            described.append(MetricRecord.of(metric, items))
    return replace(run, record=replace(run.record, metrics=tuple(described), notes=tuple(notes)), tables=tables)


def coincidences(given: FloatArray) -> FloatArray:
    """Krippendorff's coincidences of each text, T x 25, from its ratings by R people, T x R with NaN for none.

    They add up over texts, so that alpha has intervals as every metric has. A text rated once counts nothing.
    """
    counts = (given[:, :, None] == np.arange(1, LEVELS + 1)).sum(axis=1).astype(np.float64)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(LEVELS)
    return ratio(pairs, (counts.sum(axis=1) - 1)[:, None, None]).reshape(len(given), -1)


def alpha(sums: FloatArray) -> FloatArray:
    """Krippendorff's ordinal alpha, (..., 1), of summed coincidences (..., 25): 1 is agreement, 0 what chance gives.

    NaN where all ratings are one number. Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    observed = sums.reshape(*sums.shape[:-1], LEVELS, LEVELS)
    totals = observed.sum(axis=-1)
    below = np.cumsum(totals, axis=-1) - totals / 2  # the middle rank of each level; distances between them are ordinal
    distance = (below[..., :, None] - below[..., None, :]) ** 2
    apart = ratio((totals[..., :, None] * totals[..., None, :] * distance).sum(axis=(-1, -2)), totals.sum(axis=-1) - 1)
    return np.where(apart > 0, 1 - ratio((observed * distance).sum(axis=(-1, -2)), apart), np.nan)[..., None]


@dataclass(frozen=True)
class Agreement:
    """How far people agree with each other, and metrics with people; every estimate has a 95 % interval over items."""

    raters: int
    items: int
    texts: int
    alpha: Mapping[str, Estimate]  # Krippendorff's, ordinal, by criterion
    severity: Mapping[str, Mapping[str, Estimate]]  # by rater, criterion: points lower than others rate the same texts
    means: Mapping[str, Mapping[str, Estimate]]  # what each candidate, or group of them, got by metric
    # Kendall's tau-b with human-overall: over single replies, ties calibrated, and over candidates (None under three).
    metrics: Mapping[str, tuple[Estimate, float | None]]
    by_pairs: bool  # wins are of comparisons asked for, else of ratings

    def summary(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(vars(self), default=vars), parse_constant=lambda _: None)
        return plain


def agreement(
    run: Run, metrics: Mapping[str, Metric], means: Mapping[str, Mapping[str, Estimate]] | None = None, *,
    seed: int = 42, resamples: int = 2_000,
) -> Agreement:  # fmt: skip
    """Agreement on a run, as `with_ratings` gives it, whose `metrics` are compared with people; UsageError without.

    `means` are those of a ranking, so that what people gave is one number wherever it stands.
    """
    people = read_people(run)
    if people is None or np.isnan(people.given["overall"]).all():
        raise UsageError(f"{run.path}: nobody rated it yet; `bnbench human sheet {run.path}` makes forms for people")
    rated = people.own & ~np.isnan(np.stack(list(people.given.values()))).all(axis=(0, -1))
    items, flat = np.nonzero(rated)[0], {criterion: x[rated] for criterion, x in people.given.items()}  # texts x raters

    def estimate(table: FloatArray, formula: Any, ends: tuple[float, float]) -> Estimate:
        [interval] = bootstrap(table, formula, resamples=resamples, seed=seed, clusters=list(items), bounds=[ends])
        return Estimate(float(formula(table.sum(axis=0))[0]), interval.low, interval.high)

    mean, severity = Overall().formula, dict[str, dict[str, Estimate]]()
    for criterion, x in flat.items():
        count, total = (~np.isnan(x)).sum(axis=1, keepdims=True), np.nansum(x, axis=1, keepdims=True)
        gap = np.where(count > 1, ratio(total - x, count - 1) - x, np.nan)
        for r, rater in enumerate(people.raters):
            table = np.column_stack([np.nan_to_num(gap[:, r]), ~np.isnan(gap[:, r])])
            is_known = table[:, 1].sum() > 1  # one reply that others rated does not say how strict someone is
            found = estimate(table, mean, (1 - LEVELS, LEVELS - 1)) if is_known else Estimate(*[math.nan] * 3)
            severity.setdefault(rater.removeprefix(PERSON), {})[criterion] = found
    # Each metric's tau-b with the mean overall rating, over replies and candidates; NaN and None where it is 0 / 0.
    ratings, against = people.tables()["human-overall"], dict[str, tuple[Estimate, float | None]]()
    rows, which = np.nonzero((ratings[..., 1] > 0) & people.own)
    shown, groups = np.unique(rows, return_inverse=True)
    weights = np.random.default_rng(seed).multinomial(len(shown), np.full(len(shown), 1 / len(shown)), 500)
    liked, theirs = ratio(*ratings[rows, which].T), ratio(*ratings[shown].sum(axis=0).T)
    for name, metric in metrics.items():
        tables = [own[name] for own in run.tables.values() if name in own]
        if name.startswith("human-") or len(tables) < len(run.tables):
            continue
        turn = 1.0 if metric.higher_is_better else -1.0
        single = turn * np.nan_to_num(metric.formula(np.stack(tables, axis=1))[rows, which, 0], posinf=0.0, neginf=0.0)
        per_reply = Estimate(*[math.nan] * 3)
        if np.ptp(single) and np.ptp(liked):
            # Where no threshold makes it agree with people, the one that ties all would hide that it contradicts them.
            tied = threshold if (threshold := tie_threshold(single, liked)) < np.ptp(single) else 0.0
            per_reply = kendall(single, liked, groups, weights.astype(np.float64), tied).estimate
        # Candidates are compared by their scores on the items that people saw.
        scores = turn * np.array([metric.formula(own[shown].sum(axis=0))[0] for own in tables])
        order = kendall(scores, theirs, np.arange(len(scores)), np.zeros((0, len(scores))), 0.0).value
        against[name] = per_reply, order if len(scores) > 2 and np.ptp(scores) and np.ptp(theirs) else None
    alphas = {criterion: estimate(coincidences(x), alpha, (-math.inf, 1)) for criterion, x in flat.items()}
    given, seen = means or {}, len(np.unique(items))
    return Agreement(len(people.raters), seen, len(items), alphas, severity, given, against, people.by_pairs)


@dataclass(frozen=True)
class Plan:
    """How many items detect a difference between two candidates' means, by the number of raters a text."""

    criterion: str
    difference: float
    power: float
    pairs: int
    alpha: float  # Krippendorff's
    spread: float  # points: the standard deviation over items of the true difference between two replies
    noise: float  # points: that of one person's answer to the same difference
    items: Mapping[int, int]

    def __str__(self) -> str:
        family = f" over {self.pairs} pairs (Bonferroni)" if self.pairs > 1 else ""
        level = f"{100 * self.power:g} % power at 5 % two-sided{family}"
        width, agreed = len(str(max(self.items.values()))), f"{self.alpha:.2f}".replace("-", "\N{MINUS SIGN}")
        return "\n".join([
            f"To see a difference of {self.difference:g} in {self.criterion} with {level}:",
            *(f"  {m} {'raters' if m > 1 else 'rater':<6} a text: {n:>{width}} items" for m, n in self.items.items()),
            f"From Krippendorff’s α {agreed}, a spread of {self.spread:.2f} points between items and of "
            f"{self.noise:.2f} between raters, as seen so far.",
        ])  # fmt: skip


def plan(run: Run, difference: float = 0.3, power: float = 0.8, criterion: str = "overall", most: int = 5) -> Plan:
    """How many items it takes with 1 to `most` raters, from the spread that the ratings of a run show.

    The difference d of two candidates on an item, by one rater, has the variance s² over items (true differences) plus
    e² (what raters see otherwise, which alpha measures as 1 - alpha of all variance). Both are estimated by one-way
    analysis of variance, within and between items, pooled over pairs of candidates; a rater's severity that is the same
    for both cancels in d. With m raters n = (z(1 - a/2k) + z(power))² (s² + e²/m) / difference² + z(1 - a/2k)² / 2, for
    k pairs, a = 0.05.

    Sources: Guenther 1981, "Sample size formulas for normal theory t tests" (the last term); Searle, Casella &
    McCulloch 1992 (variance components); Bonferroni stands for Holm, which never needs more. Raises UsageError without
    ratings by two people of two candidates.
    """
    if criterion not in CRITERIA or not (difference > 0 and 0 < power < 1):
        known = ", ".join(CRITERIA)
        raise UsageError(f"a plan is for one of {known}, a difference above 0 and a power between 0 and 1")
    people, (a, b) = read_people(run), np.triu_indices(len(run.replies), 1)
    x = people.given[criterion] if people else np.full((1, len(run.replies), 1), np.nan)
    d = x[:, a] - x[:, b]  # items x pairs x raters
    count = (~np.isnan(d)).sum(axis=-1)
    means, freedom = ratio(np.nansum(d, axis=-1), count), int(np.maximum(count - 1, 0).sum())
    if not freedom or (count > 0).sum() < 2 or not np.nanvar(d):
        how = "ask two people or more about 10 items or more first: `bnbench human sheet RUN --items 10`"
        what = f"ratings of {criterion} of two candidates by two people, and differences among them"
        raise UsageError(f"{run.path}: a plan needs {what}; {how}")
    noise = float(np.nansum((d - means[..., None]) ** 2)) / freedom
    seen = count > 0
    between = np.mean([means[seen[:, k], k].var(ddof=1) for k in range(len(a)) if seen[:, k].sum() > 1])
    spread = max(0.0, float(between) - noise * float((1 / count[seen]).mean()))
    wide = NormalDist().inv_cdf(1 - 0.025 / len(a))
    needed = (wide + NormalDist().inv_cdf(power)) ** 2 / difference**2
    items = {m: math.ceil(needed * (spread + noise / m) + wide**2 / 2) for m in range(1, most + 1)}
    agreed = float(alpha(coincidences(x.reshape(-1, x.shape[-1])).sum(axis=0))[0])
    return Plan(criterion, difference, power, len(a), agreed, spread**0.5, noise**0.5, items)
