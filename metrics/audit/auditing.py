"""The audit itself: one pass of the metric over the replies and all that is made of them, then the checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnbench.metrics.audit.agreement import MOST_ROWS, Agreement, Groups, group_numbers
from bnbench.metrics.audit.checks import (
    FEWEST,
    MAIN,
    Changed,
    Labelled,
    Scores,
    agreements,
    change_check,
    estimates,
    in_its_better_direction,
    kind_changes,
    measure_of,
    perturbed_change,
    sentinel_check,
    spelling_check,
)
from bnbench.metrics.audit.original import OriginalSemantic
from bnbench.metrics.audit.perturbations import PERTURBATIONS, perturbed
from bnbench.metrics.audit.report import AUC, AuditReport, Check, Standing
from bnbench.metrics.audit.sentinels import sentinel_scores
from bnbench.metrics.audit.spelling import SPELLINGS, Spelling
from bnbench.metrics.core import FloatArray, Metric, Texts
from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.empathy.encoder import load_encoder, words_only
from bnbench.metrics.empathy.keyword import KeywordEmpathy
from bnbench.metrics.errors import InputError
from bnbench.metrics.evaluation import statistics
from bnbench.metrics.labelled import EMPATHIC, LabelledSet, labelled_set, read_labelled
from bnbench.metrics.registry import get_metric
from bnbench.metrics.significance import resampled_sums

_COMMON_CHOICES = ("norm", "tok", "n", "bnbench")


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
        _check(metric, labelled)
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
    _check(metric, data)
    setting = _Setting.of(data, seed, resamples)
    spelt = {name: _spelt(spelling, data) for name, spelling in SPELLINGS.items()}
    disturbed = {each.name: perturbed(each, data, seed) for each in PERTURBATIONS}
    scores, changed = _scores(metric, data, {**spelt, **disturbed})
    ours = setting.labelled(agreements(scores, data, setting.groups))
    sentinels = {
        name: setting.labelled(in_its_better_direction(each, data, setting.groups))
        for name, each in sentinel_scores(data).items()
    }
    metrics = {_label(metric): ours, **setting.measured(_beside(metric) if beside is None else beside)}
    return AuditReport(
        metric=metric.name,
        signature=metric.signature(len(data)),
        data=data.source,
        data_sha256=data.sha256,
        replies=len(data),
        messages=len(set(data.ids)),
        seed=seed,
        resamples=resamples,
        checks=(*_text_checks(scores, changed, setting), *_label_checks(scores, ours, sentinels, setting)),
        standings=(*_standings(metrics, sentinel=False), *_standings(sentinels, sentinel=True)),
    )


@dataclass(frozen=True)
class _Setting:
    """What every check needs beside scores: the replies, each one's group, and the resampled weights of the groups."""

    data: LabelledSet
    groups: Groups
    weights: FloatArray
    seed: int
    resamples: int

    @classmethod
    def of(cls, data: LabelledSet, seed: int, resamples: int) -> _Setting:
        groups = group_numbers(data.ids)
        weights = resampled_sums(np.eye(int(groups.max()) + 1), resamples=resamples, seed=seed)
        return cls(data, groups, weights, seed, resamples)

    def labelled(self, found: Mapping[str, Agreement]) -> Labelled:
        return {name: agreement.measured(self.weights) for name, agreement in found.items()}

    def measured(self, metrics: Sequence[Metric]) -> dict[str, Labelled]:
        scores = {_label(metric): _scores(metric, self.data, {})[0] for metric in metrics}
        return {name: self.labelled(agreements(each, self.data, self.groups)) for name, each in scores.items()}


def _standings(labelled: Mapping[str, Labelled], *, sentinel: bool) -> list[Standing]:
    return [Standing(name, sentinel, estimates(each)) for name, each in labelled.items()]


def _text_checks(scores: Scores, changed: Mapping[str, Changed], setting: _Setting) -> Iterator[Check]:
    main = scores[MAIN]
    for name in SPELLINGS:
        yield spelling_check(name, main, changed[name])
    changes = [perturbed_change(each, main, changed[each.name], setting.data) for each in PERTURBATIONS]
    for change in (*changes, *kind_changes(main, setting.data)):
        yield change_check(change, main, setting.resamples, setting.seed)


def _label_checks(
    scores: Scores, ours: Labelled, sentinels: Mapping[str, Labelled], setting: _Setting
) -> Iterator[Check]:
    messages = len(set(setting.data.ids))
    claimed = {AUC, *(measure_of(name) for name in MECHANISMS if name in scores)}
    for measure in ours:
        yield sentinel_check(measure, ours, sentinels, messages, gate=measure in claimed)


def _beside(metric: Metric) -> list[Metric]:
    """The original project's keyword and semantic scores (with our encoder), less the one that is audited."""
    originals = [KeywordEmpathy("original"), OriginalSemantic(words_only(load_encoder()))]
    return [original for original in originals if _label(original) != _label(metric)]


def _label(metric: Metric) -> str:
    """The name and the choices of the signature that tell it from the same metric with other settings."""
    name, *parts = metric.signature(0).split("|")
    choices = (part.partition(":") for part in parts)
    return " ".join([name, *(f"{key}:{value}" for key, _, value in choices if key not in _COMMON_CHOICES)])


def _spelt(spelling: Spelling, data: LabelledSet) -> dict[int, str]:
    spelt = {place: spelling(reply) for place, reply in enumerate(data.replies)}
    return {place: text for place, text in spelt.items() if text != data.replies[place]}


def _scores(
    metric: Metric, data: LabelledSet, variants: Mapping[str, Mapping[int, str]]
) -> tuple[Scores, dict[str, Changed]]:
    """The metric's scores of the replies (and of each mechanism that it names), and its main scores of all variants.

    Turned so that higher is better. Everything is scored in one pass.
    """
    places = [*range(len(data)), *(place for texts in variants.values() for place in texts)]
    replies = [*data.replies, *(text for texts in variants.values() for text in texts.values())]
    references = _references(data) if "references" in metric.needs else None
    texts = Texts.of(
        replies,
        None if references is None else [references[place] for place in places],
        [data.messages[place] for place in places],
    )
    values = metric.formula(statistics(texts, [metric])[0]) * (1 if metric.higher_is_better else -1)
    if not np.isfinite(values).all():
        raise InputError(f"{metric.name}: not every reply has a finite score")
    named = {name: values[: len(data), place] for place, name in enumerate(metric.values) if name in MECHANISMS}
    changed, done = {}, len(data)
    for name, texts_of in variants.items():
        rows = np.array(list(texts_of), dtype=np.int64)
        changed[name] = Changed(rows, values[done : done + len(rows), 0])
        done += len(rows)
    return {MAIN: values[: len(data), 0], **named}, changed


def _references(data: LabelledSet) -> list[str]:
    """For each reply the best-labelled empathic one among the other replies to its message, the first of equals."""
    by_message: dict[str, list[int]] = {}
    for place, row in enumerate(data.rows):
        if row.kind == EMPATHIC:
            by_message.setdefault(row.id, []).append(place)
    found = []
    for place, row in enumerate(data.rows):
        others = [other for other in by_message.get(row.id, ()) if other != place]
        if not others:
            raise InputError(
                f"{data.source}: message {row.id!r} has no other empathic reply that could be the reference of one; "
                "a metric that needs references needs two for each message"
            )
        found.append(data.rows[max(others, key=lambda other: sum(data.rows[other].levels))].reply)
    return found


def _check(metric: Metric, data: LabelledSet) -> None:
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
        _references(data)
