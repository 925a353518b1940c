"""A combined score: a weighted mean of scores that are all on 0-100, with declared weights.

One number hides what it is made of, and its order of candidates hangs on the weights. So it is never given alone: the
parts stand beside it, and how much of the order other weights would keep (`combine`).
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Metric, Result, Texts, ratio, table_of
from bnbench.metrics.exceptions import InputError, UsageError
from bnbench.metrics.registry import get_metric

NAME = "combined"
NEAR = 0.5  # how far weights near the declared ones may lie from them: each by up to this share of itself
_TIE = 1e-9
_TURNS = 5  # that are told, the nearest ones


def parse_weights(text: str) -> dict[str, float]:
    """`chrF++=0.25,semantic-empathy=0.75` as weights that sum to 1, by metric; `UsageError` for what is not so."""
    weights: dict[str, float] = {}
    for part in map(str.strip, text.split(",")):
        spelling, _, number = (piece.strip() for piece in part.rpartition("="))
        if not spelling:
            raise UsageError(f"combined score, {part!r}: write METRIC=WEIGHT,METRIC=WEIGHT")
        metric = get_metric(spelling)
        if metric.name in (known.partition(":")[0] for known in weights):
            raise UsageError(f"combined score: {metric.name} is named twice")
        try:
            weights[metric.spelling] = float(number)
        except ValueError:
            raise UsageError(f"combined score: the weight of {metric.name} is {number!r}, not a number") from None
    declared = _declared(weights)
    if len(weights) == 1:
        raise UsageError(f"combined score: {metric.name} alone is no combination; name two metrics or more")
    return declared


class CombinedScore(Metric):
    """The weighted mean of the main values of several metrics, each on 0-100 and higher better.

    `weights`: metric (as `get_metric` takes it) -> weight, which need not sum to 1, or the text that `parse_weights`
    takes; `metrics` are the parts where they have other settings. Raises `UsageError` for a weight that is not positive
    or a metric of another scale or of which lower is better. Its table is its parts', side by side.
    """

    name: ClassVar[str] = NAME
    description: ClassVar[str] = "weighted mean of its parts, 0-100, higher is better; weights declared before the run"
    values = (NAME,)

    def __init__(self, weights: str | Mapping[str, float], metrics: Sequence[Metric] | None = None) -> None:
        declared = parse_weights(weights) if isinstance(weights, str) else _declared(weights)
        self.parts = tuple([get_metric(name) for name in declared] if metrics is None else metrics)
        self.weights = dict(zip((part.name for part in self.parts), declared.values(), strict=True))
        for part in self.parts:
            if not (part.higher_is_better and part.is_percent):
                raise UsageError(f"{part.name} cannot be part of a combined score: it is {part.description}")
        self.columns = tuple(f"{part.name}/{column}" for part in self.parts for column in part.columns)
        self.needs = frozenset[str]().union(*(part.needs for part in self.parts))
        self.argument = ",".join(f"{p.spelling}={w!r}" for p, w in zip(self.parts, declared.values(), strict=True))

    def statistics(self, texts: Texts) -> FloatArray:
        """The tables of the parts side by side."""
        return table_of(self, {part.name: part.statistics(texts) for part in self.parts})

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., k) to (..., 1)."""
        edges = np.cumsum([len(part.columns) for part in self.parts])[:-1]
        tables = zip(self.parts, np.split(sums, edges, axis=-1), strict=True)
        mains = np.stack([part.formula(own)[..., 0] for part, own in tables], axis=-1)
        score: FloatArray = mains @ np.array(list(self.weights.values()))
        return score[..., None]

    @property
    def choices(self) -> Mapping[str, object]:
        """The weight of each part, and a hash of the parts' signatures."""
        digest = hashlib.sha256(" ".join(part.signature(0) for part in self.parts).encode()).hexdigest()[:8]
        return {**{name: f"{w:.6g}" for name, w in self.weights.items()}, "parts": digest}


def combined_result(results: Mapping[str, Result], weights: Mapping[str, float]) -> Result:
    """The combined score made of `results`, by metric as `evaluate_pairs` gives them; `InputError` if a part lacks."""
    if missing := [name for name in weights if name not in results]:
        raise InputError(f"combined score: {', '.join(missing)} was not scored")
    parts = [results[name] for name in weights]
    of = CombinedScore(weights, [part.of for part in parts])
    return replace(parts[0], of=of, table=table_of(of, {part.metric: part.table for part in parts}))


@dataclass(frozen=True)
class Neighbours:
    """Two candidates next to each other in the order, and how firmly."""

    above: str
    below: str
    kept: float  # the share of drawn weights that keep `above` above `below`, ties included
    kept_near: float  # the same of weights near the declared ones
    flip: tuple[str, float] | None  # the part and its nearest weight where they change places, the others in proportion


@dataclass(frozen=True)
class Combined:
    """Combined scores of some candidates, with all that they hang on.

    `scores` and `parts` are in order of the score. `order_kept` is the share of weights, drawn from the flat Dirichlet
    distribution (every division of the whole is equally likely), under which no two candidates change places, and
    `first` that under which a candidate comes first; `order_kept_near` is of weights within ±50 % of those declared.
    """

    weights: Mapping[str, float]
    parts: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, float]
    order_kept: float
    order_kept_near: float
    neighbours: tuple[Neighbours, ...]
    first: Mapping[str, float]
    draws: int
    seed: int

    def stability(self, shown: Callable[[str], str] = str) -> list[str]:
        """Sentences: how much of the order other weights keep, and where it turns. `shown` spells a candidate."""
        if not self.neighbours:
            return []
        shares = (self.order_kept, self.order_kept_near)
        kept, near = ("all" if share >= 1 else f"{math.floor(100 * share)} % of all" for share in shares)
        near = f", and under {near} that lie within ±{100 * NEAR:.0f} % of the declared ones" if kept != "all" else ""
        drawn = f"{self.draws:,} {'of each ' if near else ''}drawn, seed {self.seed}"
        told = [f"The order of these scores stays under {kept} weights{near} ({drawn})."]
        turns = [(pair, *pair.flip, self.weights[pair.flip[0]]) for pair in self.neighbours if pair.flip]
        for pair, part, weight, declared in sorted(turns, key=lambda turn: abs(turn[2] - turn[3]))[:_TURNS]:
            told.append(
                f"{shown(pair.above)} and {shown(pair.below)} change places where {part} weighs {weight:.2f} "
                f"instead of {declared:.2f}; {math.floor(100 * pair.kept)} % of all weights keep their order."
            )
        return told

    def __str__(self) -> str:
        """A table in Markdown, and below it the weights and how stable the order is."""
        head = ["candidate", NAME, *self.weights, "first under other weights"]
        rows = [
            [who, *(f"{x:.2f}" for x in (score, *self.parts[who].values())), f"{self.first[who]:.0%}"]
            for who, score in self.scores.items()
        ]
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        return "\n".join([*lines, "", f"{NAME} = {weighted(self.weights)}", *self.stability()])


def combine(
    parts: Mapping[str, Mapping[str, float]], weights: Mapping[str, float], *, draws: int = 10_000, seed: int = 42
) -> Combined:
    """The weighted mean of each candidate's `parts`: candidate -> metric -> score on 0-100, of one signature each.

    Raises `UsageError` where a weight is not positive, `InputError` where a part is missing or lies outside 0-100.
    """
    declared = _declared(weights)
    if not parts:
        raise InputError("there is no candidate to score")
    for who, scores in parts.items():
        for name in declared:
            if name not in scores:
                raise InputError(f"{who} has no score for {name}; every candidate needs every part")
            if not -_TIE <= scores[name] <= 100 + _TIE:
                raise InputError(f"{who}: {name} is {scores[name]}; parts are on 0-100")

    table = np.array([[scores[name] for name in declared] for scores in parts.values()], dtype=np.float64)
    own = np.array(list(declared.values()))
    order = np.argsort(-(table @ own), kind="stable")
    names, table = [list(parts)[place] for place in order], table[order]
    # What other weights would make of it: any at all, and such as lie near the declared ones.
    generator = np.random.default_rng(seed)
    drawn = generator.dirichlet(np.ones(len(own)), size=draws) @ table.T
    near = own * generator.uniform(1 - NEAR, 1 + NEAR, size=(draws, len(own)))
    near = near / near.sum(axis=1, keepdims=True) @ table.T
    # Whether each two neighbours keep their order, (draws, candidates - 1).
    kept, kept_near = (scores[:, :-1] - scores[:, 1:] >= -_TIE for scores in (drawn, near))
    # The gap of two neighbours is w own + (1 - w) others, where `others` is the mean gap of the other parts in their
    # proportions. It closes at `turns`, one for each part, of which the nearest to the declared weight is told.
    gaps = table[:-1] - table[1:]
    others = np.array([ratio(gap @ own - own * gap, 1 - own) for gap in gaps]).reshape(gaps.shape)
    turns = np.where(others == gaps, -1.0, ratio(others, others - gaps))
    distance = np.where((turns >= 0) & (turns <= 1) & (own < 1), np.abs(turns - own), np.inf)
    nearest = [(row, int(part)) for row, part in enumerate(distance.argmin(axis=1))]
    flips = [([*declared][at[1]], float(turns[at])) if distance[at] < np.inf else None for at in nearest]
    pairs = zip(names, names[1:], kept.mean(axis=0).tolist(), kept_near.mean(axis=0).tolist(), flips, strict=False)
    best = drawn >= drawn.max(axis=1, keepdims=True) - _TIE
    first = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return Combined(
        weights=declared, parts={who: {name: float(parts[who][name]) for name in declared} for who in names},
        scores=dict(zip(names, (table @ own).tolist(), strict=True)), order_kept=float(kept.all(axis=1).mean()),
        order_kept_near=float(kept_near.all(axis=1).mean()), neighbours=tuple(Neighbours(*pair) for pair in pairs),
        first=dict(zip(names, first.tolist(), strict=True)), draws=draws, seed=seed,
    )  # fmt: skip


def weighted(weights: Mapping[str, float]) -> str:
    """`0.5 chrF++ + 0.5 semantic-empathy`."""
    return " + ".join(f"{weight:.3g} {name}" for name, weight in weights.items())


def _declared(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights so that they sum to 1; `UsageError` where one is not a positive number, or there is none."""
    bad = [name for name, weight in weights.items() if not (math.isfinite(weight) and weight > 0)]
    if bad or not weights:
        raise UsageError(f"weights must be positive numbers, one for each part: {', '.join(bad) or 'there is none'}")
    total = math.fsum(weights.values())
    if math.isclose(total, 1, rel_tol=1e-12):  # they do already, and stay to the last digit what they were
        total = 1.0
    return {name: weight / total for name, weight in weights.items()}
