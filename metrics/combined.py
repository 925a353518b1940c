"""A combined score: a weighted mean of scores that are all on 0-100, with declared weights.

One number hides what it is made of, and its order of candidates hangs on the weights. So it is never given alone: the
parts stand beside it, and how much of the order other weights would keep. Weights are drawn from the flat Dirichlet
distribution, in which every division of the whole among the parts is equally likely.

    >>> parts = {"base": {"chrF++": 21.0, "keyword-empathy": 12.0}, "tuned": {"chrF++": 24.0, "keyword-empathy": 30.0}}
    >>> found = combine(parts, {"chrF++": 0.5, "keyword-empathy": 0.5})
    >>> found.scores["tuned"], found.order_kept
    (27.0, 1.0)

The original project's formula, which adds scores of different scales, is in `original_scores` and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bnbench.metrics.core import FloatArray, Result
from bnbench.metrics.errors import InputError

_TIE = 1e-9


@dataclass(frozen=True)
class Combined:
    """Combined scores of some candidates, with all that they hang on.

    `scores` and `parts` are 0-100, candidates in order of their score; `weights` sum to 1. `order_kept` is the share of
    drawn weights under which no two candidates change places, `pairs_kept` the same for each two neighbours in the
    order, `first` the share under which a candidate comes first (shared where several do).
    """

    weights: Mapping[str, float]
    parts: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, float]
    order_kept: float
    pairs_kept: Mapping[tuple[str, str], float]
    first: Mapping[str, float]
    draws: int
    seed: int

    def __str__(self) -> str:
        """A table in Markdown, and below it the weights and how stable the order is."""
        names = list(self.weights)
        head = ["candidate", "combined", *names, "first under other weights"]
        rows = [
            [
                who,
                f"{self.scores[who]:.2f}",
                *(f"{self.parts[who][name]:.2f}" for name in names),
                f"{self.first[who]:.0%}",
            ]
            for who in self.scores
        ]
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        weights = " + ".join(f"{weight:.3g} {name}" for name, weight in self.weights.items())
        kept = (
            f"the order stays under {self.order_kept:.0%} of {self.draws:,} weights drawn at random (seed {self.seed})"
        )
        return "\n".join([*lines, "", f"combined = {weights}; {kept}"])


def combine(
    parts: Mapping[str, Mapping[str, float]],
    weights: Mapping[str, float],
    *,
    draws: int = 10_000,
    seed: int = 42,
) -> Combined:
    """The weighted mean of each candidate's `parts`: candidate -> metric -> score on 0-100, higher better.

    Weights need not sum to 1. Raises `InputError` where a weight is not positive, a candidate lacks a part, or a part
    lies outside 0-100; scores of one metric must come from one signature (`combine_results` checks that).
    """
    declared = _declared(weights)
    table = _table(parts, list(declared))
    own = table @ np.array(list(declared.values()))
    order = np.argsort(-own, kind="stable")
    names = [list(parts)[place] for place in order]
    drawn = np.random.default_rng(seed).dirichlet(np.ones(len(declared)), size=draws) @ table[order].T
    kept = drawn[:, :-1] - drawn[:, 1:] >= -_TIE
    best = drawn >= drawn.max(axis=1, keepdims=True) - _TIE
    first = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return Combined(
        weights=declared,
        parts={who: {name: float(parts[who][name]) for name in declared} for who in names},
        scores={who: float(own[place]) for who, place in zip(names, order, strict=True)},
        order_kept=float(kept.all(axis=1).mean()),
        pairs_kept=dict(zip(pairwise(names), map(float, kept.mean(axis=0)), strict=True)),
        first=dict(zip(names, map(float, first), strict=True)),
        draws=draws,
        seed=seed,
    )


def combine_results(
    results: Mapping[str, Mapping[str, Result]],
    weights: Mapping[str, float],
    *,
    draws: int = 10_000,
    seed: int = 42,
) -> Combined:
    """`combine` of results as `evaluate_pairs` gives them: candidate -> metric -> result.

    Raises `InputError` also for a metric of which lower is better, and where signatures differ between candidates.
    """
    parts: dict[str, dict[str, float]] = {}
    for who, found in results.items():
        parts[who] = {name: found[name].value for name in weights if name in found}
        for name in parts[who]:
            if not found[name].of.higher_is_better:
                raise InputError(f"{name} cannot be part of a combined score: lower is better, or it is not on 0-100")
    for name in weights:
        signatures = {found[name].signature for found in results.values() if name in found}
        if len(signatures) > 1:
            raise InputError(
                f"{name}: scores with different signatures cannot be combined: {', '.join(sorted(signatures))}"
            )
    return combine(parts, weights, draws=draws, seed=seed)


def _declared(weights: Mapping[str, float]) -> dict[str, float]:
    bad = [name for name, weight in weights.items() if not (math.isfinite(weight) and weight > 0)]
    if bad or not weights:
        raise InputError(f"weights must be positive numbers, one for each part: {', '.join(bad) or 'there is none'}")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _table(parts: Mapping[str, Mapping[str, float]], names: list[str]) -> FloatArray:
    """(candidates, parts)."""
    if not parts:
        raise InputError("there is no candidate to score")
    for who, scores in parts.items():
        missing = [name for name in names if name not in scores]
        if missing:
            raise InputError(f"{who} has no score for {', '.join(missing)}; every candidate needs every part")
        wrong = [name for name in names if not 0 <= scores[name] <= 100]
        if wrong:
            raise InputError(f"{who}: {', '.join(f'{name} is {scores[name]}' for name in wrong)}; parts are on 0-100")
    return np.array([[scores[name] for name in names] for scores in parts.values()], dtype=np.float64)
