"""The checks of an audit, each from scores to a `Check`. Higher scores are better here: the caller turns them round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnbench.metrics.audit.agreement import Agreement, Groups, Measured, auc, difference, kendall
from bnbench.metrics.audit.perturbations import IN_MOST, SAME, WORSE, Perturbation
from bnbench.metrics.audit.report import AUC, FAILS, LIMIT, NOT_APPLICABLE, PASSES, Check, Estimate
from bnbench.metrics.core import FloatArray, ratio
from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.labelled import EMPATHIC, LabelledSet
from bnbench.metrics.significance import bootstrap

ALPHA = 0.05
FEWEST = 5
"""Messages without which an average says nothing."""
SAME_WITHIN = 0.1
"""Of the scores' standard deviation: what a reply in the other register may move them by on average."""
EQUAL_WITHIN = 1e-6
"""Of the scores' range: what is no change."""

HOLLOW_KINDS = frozenset({"stuffed", "copy"})
"""Kinds that have to score below the empathic replies in nearly every message, as their perturbations do."""
MAIN = ""
"""The name of a metric's main scores among its scores."""

Scores = Mapping[str, FloatArray]
Labelled = Mapping[str, Measured]


@dataclass(frozen=True)
class Changed:
    """The scores of some rows after a change of their text: row numbers, and the new scores."""

    rows: Groups
    scores: FloatArray


def spelling_check(name: str, scores: FloatArray, changed: Changed) -> Check:
    """No reply may score otherwise in another spelling."""
    moves = np.abs(changed.scores - scores[changed.rows])
    moved = int(np.count_nonzero(moves > _tolerance(scores)))
    largest = float(moves.max(initial=0.0))
    shown = f"{moved} change, by {largest:.2f} at most" if moved else "none changes"
    verdict = NOT_APPLICABLE if not len(moves) else FAILS if moved else PASSES
    numbers = {"changed": moved, "share": moved / max(1, len(moves)), "largest_change": largest}
    return Check("spelling", name, SAME, len(moves), shown if len(moves) else "", verdict, True, numbers)


@dataclass(frozen=True)
class Change:
    """What becomes of scores: `moves`, one for each changed reply, and the message that each belongs to.

    `expected` and `in_most` are as in `Perturbation`; with `in_most` the check is a gate.
    """

    group: str
    name: str
    expected: str
    in_most: float
    moves: FloatArray
    messages: Sequence[str]


def perturbed_change(perturbation: Perturbation, scores: FloatArray, changed: Changed, data: LabelledSet) -> Change:
    """What a perturbation does to the scores of empathic replies."""
    moves = changed.scores - scores[changed.rows]
    messages = [data.rows[row].id for row in changed.rows]
    return Change("change", perturbation.name, perturbation.expected, perturbation.in_most, moves, messages)


def kind_changes(scores: FloatArray, data: LabelledSet) -> list[Change]:
    """For each kind but empathic, how far its replies score from the mean of the same message's empathic ones."""
    empathic = {
        message: np.mean([scores[place] for place in places]) for message, places in _places(data, EMPATHIC).items()
    }
    found = []
    for kind in dict.fromkeys(row.kind for row in data.rows if row.kind != EMPATHIC):
        pairs = [
            (message, scores[place] - empathic[message])
            for message, places in _places(data, kind).items()
            if message in empathic
            for place in places
        ]
        in_most = IN_MOST if kind in HOLLOW_KINDS else 0.0
        moves = np.array([move for _, move in pairs], dtype=np.float64)
        found.append(Change("kind", kind, WORSE, in_most, moves, [message for message, _ in pairs]))
    return found


def _places(data: LabelledSet, kind: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, row in enumerate(data.rows):
        if row.kind == kind:
            found.setdefault(row.id, []).append(place)
    return found


def change_check(change: Change, scores: FloatArray, resamples: int, seed: int) -> Check:
    """The mean move of a message's replies, over messages, against what is expected."""
    moves, gate = _by_message(change.moves, change.messages), change.in_most > 0
    if len(moves) < FEWEST:
        shown = f"fewer than {FEWEST} messages"
        return Check(change.group, change.name, change.expected, len(moves), shown, NOT_APPLICABLE, gate, {})
    table = np.stack([moves, np.ones(len(moves))], axis=1)
    [spread] = bootstrap(table, lambda sums: ratio(sums[..., :1], sums[..., 1:]), resamples=resamples, seed=seed)
    worse = float(np.mean(moves < -_tolerance(scores)))
    better = float(np.mean(moves > _tolerance(scores)))
    mean, size, limit = float(moves.mean()), float(np.abs(moves).mean()), SAME_WITHIN * float(scores.std())
    if change.expected == SAME:
        good, shown = size <= limit, f"{size:.2f} on average, limit {limit:.2f}"
    else:
        good = spread.high < 0 and worse >= change.in_most
        shown = f"{Estimate(mean, spread.low, spread.high)}, worse {worse:.0%}, better {better:.0%}"
    numbers = {"mean_change": mean, "low": spread.low, "high": spread.high, "mean_absolute_change": size}
    numbers |= {"worse": worse, "better": better}
    return Check(change.group, change.name, change.expected, len(moves), shown, _verdict(good, gate), gate, numbers)


def measure_of(mechanism: str) -> str:
    """The name of the agreement with a mechanism's label."""
    return f"tau {mechanism}"


def agreements(scores: Scores, data: LabelledSet, groups: Groups) -> dict[str, Agreement]:
    """AUC by the main scores, and tau-b with each label by the scores of its name, or the main ones."""
    levels = data.levels.astype(np.float64)
    found = {AUC: auc(scores[MAIN], data.empathic, groups)}
    for place, name in enumerate(MECHANISMS):
        found[measure_of(name)] = kendall(scores.get(name, scores[MAIN]), levels[:, place], groups)
    return found


def in_its_better_direction(scores: FloatArray, data: LabelledSet, groups: Groups) -> dict[str, Agreement]:
    """A sentinel's agreements: each measure with the scores or with their opposite, whichever is higher."""
    forward, backward = (agreements({MAIN: turned}, data, groups) for turned in (scores, -scores))
    return {name: max(forward[name], backward[name], key=lambda a: a.value) for name in forward}


def sentinel_check(
    measure: str, metric: Labelled, sentinels: Mapping[str, Labelled], messages: int, *, gate: bool
) -> Check:
    """The metric against the sentinel that is best at this measure, on the same resamples of messages."""
    best = max(sentinels, key=lambda name: sentinels[name][measure].value)
    ours, theirs = metric[measure], sentinels[best][measure]
    lead = difference(ours, theirs)
    shown = f"{ours.value:.3f} vs {theirs.value:.3f} ({best}), p = {lead.p_value:.3f}"
    verdict = _verdict(lead.value > 0 and lead.p_value < ALPHA, gate)
    numbers = {
        "value": ours.value,
        "sentinel": best,
        "sentinel_value": theirs.value,
        "difference": lead.value,
        "low": lead.interval.low,
        "high": lead.interval.high,
        "p_value": lead.p_value,
        "p_values": {name: difference(ours, each[measure]).p_value for name, each in sentinels.items()},
        "tie_threshold": ours.tie_threshold,
    }
    return Check("labels", measure, "wins", messages, shown, verdict, gate, numbers)


def _verdict(good: bool, gate: bool) -> str:
    return PASSES if good else FAILS if gate else LIMIT


def estimates(labelled: Labelled) -> dict[str, Estimate]:
    """Each measure with its interval."""
    return {name: Estimate(each.value, each.interval.low, each.interval.high) for name, each in labelled.items()}


def _tolerance(scores: FloatArray) -> float:
    return EQUAL_WITHIN * float(np.ptp(scores)) if len(scores) else 0.0


def _by_message(moves: FloatArray, messages: Sequence[str]) -> FloatArray:
    """The mean of each message's moves."""
    found: dict[str, list[float]] = {}
    for message, move in zip(messages, moves, strict=True):
        found.setdefault(message, []).append(float(move))
    return np.array([np.mean(each) for each in found.values()], dtype=np.float64)
