"""The audit: one pass of the metric over the replies and all that is made of them, then the checks.

Higher scores are better throughout: those of a metric that is better lower are turned round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnbench.metrics.audit.agreement import MOST_ROWS, Agreement, Groups, auc, group_numbers, kendall
from bnbench.metrics.audit.findings import (
    AUC,
    FAILS,
    LIMIT,
    NOT_APPLICABLE,
    PASSES,
    AuditReport,
    Check,
    Estimate,
    Standing,
)
from bnbench.metrics.audit.perturbations import IN_MOST, PERTURBATIONS, SAME, SPELLINGS, WORSE, perturbed
from bnbench.metrics.audit.rivals import OriginalSemantic, sentinel_scores
from bnbench.metrics.core import FloatArray, Metric, Texts, ratio
from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.empathy.encoder import load_encoder, words_only
from bnbench.metrics.empathy.keyword import KeywordEmpathy
from bnbench.metrics.evaluation import statistics
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.labelled import EMPATHIC, LabelledSet, labelled_set, read_labelled
from bnbench.metrics.registry import get_metric
from bnbench.metrics.significance import bootstrap, resampled_sums

ALPHA = 0.05
FEWEST = 5
"""Messages without which an average says nothing."""
SAME_WITHIN = 0.1
"""Of the scores' standard deviation: what a reply in the other register may move them by on average."""
EQUAL_WITHIN = 1e-6
"""Of the scores' range: what is no change."""
HOLLOW_KINDS = frozenset({"stuffed", "copy"})
"""Kinds that have to score below the empathic replies in nearly every message, as their perturbations do."""
_MAIN = ""  # the name of a metric's main scores among its scores
_COMMON_CHOICES = ("norm", "tok", "n", "bnbench")  # parts of signatures that do not tell one scorer from another

Scores = Mapping[str, FloatArray]
Agreements = Mapping[str, Agreement]
Moves = Mapping[int, float]  # of a row's number: how far its score moves


def audits(
    metrics: Sequence[str | Metric],
    data: str | Path | None = None,
    half: str | None = None,
    *,
    seed: int = 42,
    resamples: int = 2000,
) -> list[AuditReport]:
    """One audit for each metric, by name or as it is, on a labelled file or the shipped set.

    `half` is "development", "held-out" or, for all, None; of the shipped set None is the held-out half. Raises as
    `audit` and `read_labelled` do, before anything is scored.
    """
    chosen = [get_metric(metric) if isinstance(metric, str) else metric for metric in metrics]
    labelled = labelled_set(half or "held-out") if data is None else read_labelled(data, half)
    for metric in chosen:
        _check_auditable(metric, labelled)
    return [audit(metric, labelled, seed=seed, resamples=resamples) for metric in chosen]


def audit(
    metric: Metric,
    data: LabelledSet | None = None,
    *,
    seed: int = 42,
    resamples: int = 2000,
    beside: Sequence[Metric] | None = None,
) -> AuditReport:
    """Audit a metric on labelled replies, by default the held-out half of the shipped set.

    `beside` are metrics whose agreement with the labels is shown in the same table (default: the original project's
    keyword score, and its semantic score with the shipped encoder). The same arguments give the same report. Raises
    `InputError` where the metric needs likelihoods, the set has no empathic reply or nothing else, fewer than 5
    messages, more than 4,000 rows, or too few replies to give references.
    """
    data = labelled_set("held-out") if data is None else data
    _check_auditable(metric, data)
    variants = {
        name: {place: spelt for place, reply in enumerate(data.replies) if (spelt := spell(reply)) != reply}
        for name, spell in SPELLINGS.items()
    }
    variants |= {each.name: perturbed(each, data, seed) for each in PERTURBATIONS}
    scores, moves = _scored(metric, data, variants)
    main = scores[_MAIN]

    # How all scorers agree with the labels: each under the same resamples of messages, so that they can be compared.
    groups = group_numbers(data.ids)
    weights = resampled_sums(np.eye(int(groups.max()) + 1), resamples=resamples, seed=seed)
    agreements = partial(_agreements, data=data, groups=groups, weights=weights)
    if beside is None:
        originals = (KeywordEmpathy("original"), OriginalSemantic(words_only(load_encoder())))
        beside = [original for original in originals if _label(original) != _label(metric)]
    found = {_label(metric): agreements(scores)}
    found |= {_label(each): agreements(_scored(each, data, {})[0]) for each in beside}
    sentinels: dict[str, Agreements] = {}
    for name, values in sentinel_scores(data).items():
        ways = [agreements({_MAIN: turned}) for turned in (values, -values)]
        sentinels[name] = {key: max((way[key] for way in ways), key=lambda a: a.value) for key in ways[0]}

    equal = EQUAL_WITHIN * float(np.ptp(main))
    checks = [_spelling_check(name, moves[name], equal) for name in SPELLINGS]
    how: dict[str, Any] = {"deviation": float(main.std()), "equal": equal, "resamples": resamples, "seed": seed}
    checks += [_change_check(change, data, **how) for change in _changes(main, moves, data)]
    checks += _label_checks(scores, found[_label(metric)], sentinels, len(set(data.ids)))
    return AuditReport(
        metric=metric.name,
        signature=metric.signature(len(data)),
        data=data.source,
        data_sha256=data.sha256,
        replies=len(data),
        messages=len(set(data.ids)),
        seed=seed,
        resamples=resamples,
        checks=tuple(checks),
        standings=tuple(
            Standing(name, is_sentinel, {key: each.estimate for key, each in measures.items()})
            for is_sentinel, scorers in ((False, found), (True, sentinels))
            for name, measures in scorers.items()
        ),
    )


def _check_auditable(metric: Metric, data: LabelledSet) -> None:
    unmet = sorted(metric.needs - {"references", "messages"})
    if unmet:
        raise InputError(f"{metric.name} cannot be audited: it needs {', '.join(unmet)}, which labelled replies lack")
    empathic = int(data.empathic.sum())
    if not 0 < empathic < len(data):
        raise InputError(
            f"{data.source}: {empathic} of {len(data)} replies are {EMPATHIC}, and an audit needs some that are and "
            "some that are not: by the column kind, or without it by a mechanism that is labelled 2"
        )
    if (messages := len(set(data.ids))) < FEWEST:
        raise InputError(f"{data.source}: messages: {messages}; an audit resamples them and needs {FEWEST} or more")
    if len(data) > MOST_ROWS:
        raise InputError(f"{data.source}: {len(data)} rows, and every pair is looked at: take {MOST_ROWS} or fewer")
    if "references" in metric.needs:
        references_of(data)


def references_of(data: LabelledSet) -> list[str]:
    """For each reply the best-labelled empathic one among the other replies to its message, the first of equals.

    Raises `InputError` for a message without a second empathic reply.
    """
    empathic: dict[str, list[int]] = {}
    for place, row in enumerate(data.rows):
        if row.kind == EMPATHIC:
            empathic.setdefault(row.id, []).append(place)
    found = []
    for place, row in enumerate(data.rows):
        others = [other for other in empathic.get(row.id, ()) if other != place]
        if not others:
            raise InputError(
                f"{data.source}: message {row.id!r} has no other empathic reply that could be the reference of one; "
                "a metric that needs references needs two for each message"
            )
        found.append(data.rows[max(others, key=lambda other: sum(data.rows[other].levels))].reply)
    return found


def _scored(
    metric: Metric, data: LabelledSet, variants: Mapping[str, Mapping[int, str]]
) -> tuple[Scores, dict[str, Moves]]:
    """The metric's scores of the replies, main and of each mechanism that it names, and how far each variant of a
    reply moves the main one, by the reply's number. Everything is scored in one pass.
    """
    places = [*range(len(data)), *(place for texts in variants.values() for place in texts)]
    replies = [*data.replies, *(text for texts in variants.values() for text in texts.values())]
    references = references_of(data) if "references" in metric.needs else None
    texts = Texts.of(
        replies,
        None if references is None else [references[place] for place in places],
        [data.messages[place] for place in places],
    )
    values = metric.formula(statistics(texts, [metric])[0]) * (1 if metric.higher_is_better else -1)
    if not np.isfinite(values).all():
        raise InputError(f"{metric.name}: not every reply has a finite score")
    main = values[: len(data), 0]
    named = {name: values[: len(data), place] for place, name in enumerate(metric.values) if name in MECHANISMS}
    changed = iter(values[len(data) :, 0])
    moves: dict[str, Moves] = {
        name: {row: float(next(changed) - main[row]) for row in texts_of} for name, texts_of in variants.items()
    }
    return {_MAIN: main, **named}, moves


def _label(metric: Metric) -> str:
    """The name and the choices of the signature that tell it from the same metric with other settings."""
    name, *parts = metric.signature(0).split("|")
    return " ".join([name, *(part for part in parts if part.partition(":")[0] not in _COMMON_CHOICES)])


def _agreements(scores: Scores, data: LabelledSet, groups: Groups, weights: FloatArray) -> Agreements:
    """AUC by the main scores, and tau-b with each label by the scores of its name, or the main ones."""
    found = {AUC: auc(scores[_MAIN], data.empathic, groups, weights)}
    for name, levels in zip(MECHANISMS, data.levels.T.astype(np.float64), strict=True):
        found[f"tau {name}"] = kendall(scores.get(name, scores[_MAIN]), levels, groups, weights)
    return found


def _spelling_check(name: str, moves: Moves, equal: float) -> Check:
    """No reply may score otherwise in another spelling."""
    sizes = [abs(move) for move in moves.values()]
    moved, largest = sum(size > equal for size in sizes), max(sizes, default=0.0)
    numbers = {"changed": moved, "share": moved / max(1, len(sizes)), "largest_change": largest}
    if not sizes:
        return Check("spelling", name, SAME, 0, "", NOT_APPLICABLE, True, numbers)
    shown = f"{moved} change, by {largest:.2f} at most" if moved else "none changes"
    return Check("spelling", name, SAME, len(sizes), shown, FAILS if moved else PASSES, True, numbers)


class _Change(NamedTuple):
    """What is done to replies and how far their scores move; `expected` and `in_most` are as in `Perturbation`.

    With `in_most` the check is a gate.
    """

    group: str
    name: str
    expected: str
    in_most: float
    moves: Moves


def _changes(scores: FloatArray, moves: Mapping[str, Moves], data: LabelledSet) -> Iterator[_Change]:
    """What each perturbation does to empathic replies, and how far each other kind lies from the mean of the empathic
    replies to the same message.
    """
    for each in PERTURBATIONS:
        yield _Change("change", each.name, each.expected, each.in_most, moves[each.name])
    rows = list(enumerate(data.rows))
    empathic = _by_message({place: float(scores[place]) for place, row in rows if row.kind == EMPATHIC}, data)
    for kind in dict.fromkeys(row.kind for row in data.rows if row.kind != EMPATHIC):
        of_kind = [(place, row.id) for place, row in rows if row.kind == kind and row.id in empathic]
        distances = {place: float(scores[place] - empathic[message]) for place, message in of_kind}
        yield _Change("kind", kind, WORSE, IN_MOST if kind in HOLLOW_KINDS else 0.0, distances)


def _by_message(values: Moves, data: LabelledSet) -> dict[str, float]:
    """The mean of each message's values."""
    found: dict[str, list[float]] = {}
    for row, value in values.items():
        found.setdefault(data.rows[row].id, []).append(value)
    return {message: float(np.mean(each)) for message, each in found.items()}


def _change_check(
    change: _Change, data: LabelledSet, *, deviation: float, equal: float, resamples: int, seed: int
) -> Check:
    """The mean over messages of what their replies move on average, against what is expected.

    `deviation` is the scores' standard deviation, `equal` what is no change.
    """
    group, name, expected, in_most, _ = change
    moves, gate = np.array(list(_by_message(change.moves, data).values()), dtype=np.float64), in_most > 0
    if len(moves) < FEWEST:
        shown = f"fewer than {FEWEST} messages"
        return Check(group, name, expected, len(moves), shown, NOT_APPLICABLE, gate, {})
    table = np.stack([moves, np.ones(len(moves))], axis=1)
    [spread] = bootstrap(table, lambda sums: ratio(sums[..., :1], sums[..., 1:]), resamples=resamples, seed=seed)
    worse, better = float(np.mean(moves < -equal)), float(np.mean(moves > equal))
    mean, size, limit = float(moves.mean()), float(np.abs(moves).mean()), SAME_WITHIN * deviation
    if expected == SAME:
        good, shown = size <= limit, f"{size:.2f} on average, limit {limit:.2f}"
    else:
        good = spread.high < 0 and worse >= in_most
        shown = f"{Estimate(mean, spread.low, spread.high)}, worse {worse:.0%}, better {better:.0%}"
    numbers = {"mean_change": mean, "low": spread.low, "high": spread.high, "mean_absolute_change": size}
    numbers |= {"worse": worse, "better": better}
    return Check(group, name, expected, len(moves), shown, _verdict(good, gate), gate, numbers)


def _verdict(good: bool, gate: bool) -> str:
    return PASSES if good else FAILS if gate else LIMIT


def _label_checks(
    scores: Scores, ours: Agreements, sentinels: Mapping[str, Agreements], messages: int
) -> Iterator[Check]:
    """The metric against the sentinel that is best at each measure, on the same resamples of messages.

    A gate is what the metric claims: AUC, and the mechanisms of which it has a score.
    """
    for measure, found in ours.items():
        best = max(sentinels, key=lambda name: sentinels[name][measure].value)
        theirs, gate = sentinels[best][measure], measure == AUC or measure.removeprefix("tau ") in scores
        lead, p_value = found.against(theirs)
        shown = f"{found.value:.3f} vs {theirs.value:.3f} ({best}), p = {p_value:.3f}"
        numbers = {
            "value": found.value,
            "sentinel": best,
            "sentinel_value": theirs.value,
            "difference": lead.value,
            "low": lead.estimate.low,
            "high": lead.estimate.high,
            "p_value": p_value,
            "p_values": {name: found.against(each[measure])[1] for name, each in sentinels.items()},
            "tie_threshold": found.tie_threshold,
        }
        verdict = _verdict(lead.value > 0 and p_value < ALPHA, gate)
        yield Check("labels", measure, "wins", messages, shown, verdict, gate, numbers)
