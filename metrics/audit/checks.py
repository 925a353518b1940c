"""The audit: one pass of the metric over the replies and all that is made of them, then the checks.

Higher scores are better throughout: those of a metric that is better lower are turned round.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from bnbench.metrics.audit.agreement import MOST_ROWS, Agreement, auc, group_numbers, kendall
from bnbench.metrics.audit.findings import AUC, FAILS, LIMIT, NOT_APPLICABLE, PASSES, AuditReport, Check, Estimate
from bnbench.metrics.audit.findings import Standing as Scorer
from bnbench.metrics.audit.perturbations import IN_MOST, PERTURBATIONS, SAME, SPELLINGS, WORSE, perturbed
from bnbench.metrics.core import FloatArray, MeanMetric, Metric, Texts, ratio, statistics
from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.empathy.encoder import Encoder, load_encoder, words_only
from bnbench.metrics.empathy.keyword import KeywordEmpathy
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.labelled import EMPATHIC, LabelledSet, labelled_set, replies_to_audit
from bnbench.metrics.original import semantic_scores
from bnbench.metrics.registry import distinct, get_metric
from bnbench.metrics.significance import bootstrap, resampled_sums
from bnbench.metrics.tokenization import is_word, tokenize

ALPHA = 0.05
FEWEST = 5  # messages, without which an average says nothing
SAME_WITHIN = 0.1  # of the scores' standard deviation: what a reply in the other register may move by on average
EQUAL_WITHIN = 1e-6  # of the scores' range: what is no change
GATED_KINDS = {"stuffed": IN_MOST, "copy": IN_MOST, "negated": 0.8, "mismatched": 0.5}
"""Kinds that have to score below the empathic replies, and in which share of messages: what is hollow in nearly every
one, as its perturbations do; empathy that is refused or taken back in most; what answers somebody else in the half."""
_MAIN = ""  # the name of a metric's main scores among its scores
_COMMON_CHOICES = ("norm", "tok", "n", "bnbench")  # parts of signatures that do not tell one scorer from another

Scores = Mapping[str, FloatArray]
Agreements = Mapping[str, Agreement]
Variants = Mapping[int, str]  # by a row's number: another text of its reply
Moves = dict[int, float]  # by a row's number: how far its score moves


def audits(
    metrics: Sequence[str | Metric], data: str | Path | None = None, half: str | None = None, *, seed: int = 42,
    resamples: int = 2000,
) -> list[AuditReport]:  # fmt: skip
    """One audit for each metric, by name or as it is, on a labelled file or the shipped set.

    `half` is "development", "held-out" or, for all, None; of the shipped set None is the held-out half. Raises as
    `audit` and `read_labelled` do, before anything is scored.
    """
    chosen = distinct(get_metric(metric) if isinstance(metric, str) else metric for metric in metrics)
    labelled = replies_to_audit(data, half)
    for metric in chosen:
        check_auditable(metric, labelled)
    return [audit(metric, labelled, seed=seed, resamples=resamples) for metric in chosen]


def audit(
    metric: Metric, data: LabelledSet | None = None, *, seed: int = 42, resamples: int = 2000, perturb: bool = True
) -> AuditReport:
    """Audit a metric on labelled replies, by default the held-out half of the shipped set.

    The original project's keyword score, and its semantic score with the shipped encoder, are shown in the same table.
    Without `perturb` only the replies themselves are scored, for a metric of which each score costs. The same arguments
    give the same report. Raises `InputError` where the metric needs likelihoods, the set has no empathic reply or
    nothing else, fewer than 5 messages, more than 4,000 rows, or too few replies to give references.
    """
    data = labelled_set("held-out") if data is None else data
    check_auditable(metric, data)
    replies = data.replies if perturb else ()
    spelt = {name: {row: spell(reply) for row, reply in enumerate(replies)} for name, spell in SPELLINGS.items()}
    variants = {n: {row: text for row, text in of.items() if text != data.replies[row]} for n, of in spelt.items()}
    variants |= {each.name: perturbed(each, data, seed) if perturb else {} for each in PERTURBATIONS}
    scores, moves = _scored(metric, data, variants)
    # How all scorers agree with the labels: each under the same resamples of messages, so that they can be compared.
    groups = group_numbers(data.ids)
    weights = resampled_sums(np.eye(int(groups.max()) + 1), resamples=resamples, seed=seed)

    def agreements(scores: Scores) -> Agreements:
        """AUC by the main scores, and tau-b with each label by the scores of its name, or the main ones."""
        found = {AUC: auc(scores[_MAIN], data.empathic, groups, weights)}
        for name, levels in zip(MECHANISMS, data.levels.T.astype(np.float64), strict=True):
            found[f"tau {name}"] = kendall(scores.get(name, scores[_MAIN]), levels, groups, weights)
        return found

    ours = agreements(scores)
    found = {_label(metric): ours}
    for original in (KeywordEmpathy("original"), OriginalSemantic(words_only(load_encoder()))):
        if _label(original) not in found:
            found[_label(original)] = agreements(_scored(original, data, {})[0])
    # Sentinels know nothing of empathy. F1 of the words shared with the message: 1 for the message given back.
    words = ([Counter(filter(is_word, tokenize(text))) for text in some] for some in (data.replies, data.messages))
    pairs, sentinels = list(zip(*words, strict=True)), dict[str, Agreements]()
    for name, values in {
        "length": np.array([float(ours.total()) for ours, _ in pairs]),
        "constant": np.zeros(len(data)),
        "copy of the message": np.array([2 * (a & b).total() / max(1, a.total() + b.total()) for a, b in pairs]),
        "question mark": np.array([float("?" in reply) for reply in data.replies]),
    }.items():
        # In its better direction: where short replies are the warm ones, it is brevity that has to be beaten.
        ways = [agreements({_MAIN: turned}) for turned in (values, -values)]
        sentinels[name] = {key: max((way[key] for way in ways), key=lambda a: a.value) for key in ways[0]}
    standings = tuple(
        Scorer(name, is_sentinel, {key: each.estimate for key, each in measures.items()})
        for is_sentinel, scorers in ((False, found), (True, sentinels))
        for name, measures in scorers.items()
    )
    checks = [*_reply_checks(scores[_MAIN], moves, data, resamples, seed)]
    checks += _label_checks(scores, ours, sentinels, data)
    about = (metric.name, metric.signature(len(data)), data.source, data.sha256, len(data), len(set(data.ids)))
    return AuditReport(*about, seed, resamples, tuple(checks), standings)


def check_auditable(metric: Metric, data: LabelledSet) -> None:
    """Raises `InputError` as `audit` does, before anything is scored."""
    if unmet := sorted(metric.needs - {"references", "messages"}):
        raise InputError(f"{metric.name} cannot be audited: it needs {', '.join(unmet)}, which labelled replies lack")
    if not 0 < (empathic := int(data.empathic.sum())) < len(data):
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
    """For each reply the best-labelled empathic one among the others to its message; `InputError` where none is."""
    empathic = sorted((pair for pair in enumerate(data.rows) if pair[1].empathic), key=lambda p: -sum(p[1].levels))
    found = []
    for place, row in enumerate(data.rows):
        others = [other.reply for at, other in empathic if other.id == row.id and at != place]
        if not others:
            raise InputError(
                f"{data.source}: message {row.id!r} has no other empathic reply that could be the reference of one; "
                "a metric that needs references needs two for each message"
            )
        found.append(others[0])
    return found


def _scored(metric: Metric, data: LabelledSet, variants: Mapping[str, Variants]) -> tuple[Scores, dict[str, Moves]]:
    """The scores of the replies, main and of each mechanism of the metric; how far each variant moves the main one."""
    places = [*range(len(data)), *(place for texts in variants.values() for place in texts)]
    replies = [*data.replies, *(text for texts in variants.values() for text in texts.values())]
    references = references_of(data) if "references" in metric.needs else None
    messages = [data.messages[place] for place in places]
    texts = Texts.of(replies, references and [references[place] for place in places], messages)
    values = metric.formula(statistics(texts, [metric])[0]) * (1 if metric.higher_is_better else -1)
    if not np.isfinite(values).all():
        raise InputError(f"{metric.name}: not every reply has a finite score")
    main = values[: len(data), 0]
    named = {name: values[: len(data), place] for place, name in enumerate(metric.values) if name in MECHANISMS}
    changed = iter(values[len(data) :, 0])
    moves = {name: {row: float(next(changed) - main[row]) for row in of} for name, of in variants.items()}
    return {_MAIN: main, **named}, moves


def _label(metric: Metric) -> str:
    """The name and the choices of the signature that tell it from the same metric with other settings."""
    name, *parts = metric.signature(0).split("|")
    return " ".join([name, *(part for part in parts if part.partition(":")[0] not in _COMMON_CHOICES)])


def _reply_checks(
    scores: FloatArray, moves: Mapping[str, Moves], data: LabelledSet, resamples: int, seed: int
) -> Iterator[Check]:
    # No reply may score otherwise in another spelling.
    equal = EQUAL_WITHIN * float(np.ptp(scores))
    for name in SPELLINGS:
        sizes = [abs(move) for move in moves[name].values()]
        moved, largest = sum(size > equal for size in sizes), max(sizes, default=0.0)
        numbers = {"changed": moved, "share": moved / max(1, len(sizes)), "largest_change": largest}
        shown = f"{moved} change, by {largest:.2f} at most" if moved else "none changes" if sizes else ""
        verdict = FAILS if moved else PASSES if sizes else NOT_APPLICABLE
        yield Check("spelling", name, SAME, len(sizes), shown, verdict, True, numbers)
    # What each perturbation does to empathic replies, and how far each other kind lies from the mean of the empathic
    # replies to the same message, as means over messages.
    changes = [("change", each.name, each.expected, each.in_most, moves[each.name]) for each in PERTURBATIONS]
    empathic = _by_message({row: float(scores[row]) for row in map(int, np.flatnonzero(data.empathic))}, data)
    for kind in dict.fromkeys(row.kind for row in data.rows if not row.empathic):
        of_kind = [(place, row.id) for place, row in enumerate(data.rows) if row.kind == kind and row.id in empathic]
        distances = {place: float(scores[place] - empathic[message]) for place, message in of_kind}
        changes.append(("kind", kind, WORSE, GATED_KINDS.get(kind, 0.0), distances))
    for group, name, expected, in_most, moved_by in changes:
        means, gate = np.array(list(_by_message(moved_by, data).values()), dtype=np.float64), in_most > 0
        if len(means) < FEWEST:
            yield Check(group, name, expected, len(means), f"fewer than {FEWEST} messages", NOT_APPLICABLE, gate, {})
            continue
        table = np.stack([means, np.ones(len(means))], axis=1)
        [spread] = bootstrap(table, lambda sums: ratio(sums[..., :1], sums[..., 1:]), resamples=resamples, seed=seed)
        worse, better = float(np.mean(means < -equal)), float(np.mean(means > equal))
        mean, size = float(means.mean()), float(np.abs(means).mean())
        if expected == SAME:
            limit = SAME_WITHIN * float(scores.std())
            good, shown = size <= limit, f"{size:.2f} on average, limit {limit:.2f}"
        else:
            good = spread.high < 0 and worse >= in_most
            shown = f"{Estimate(mean, spread.low, spread.high)}, worse {worse:.0%}, better {better:.0%}"
        numbers = {"mean_change": mean, "low": spread.low, "high": spread.high, "mean_absolute_change": size}
        numbers |= {"worse": worse, "better": better}
        verdict = PASSES if good else FAILS if gate else LIMIT
        yield Check(group, name, expected, len(means), shown, verdict, gate, numbers)


def _by_message(values: Moves, data: LabelledSet) -> dict[str, float]:
    """The mean of each message's values."""
    found: dict[str, list[float]] = {}
    for row, value in values.items():
        found.setdefault(data.rows[row].id, []).append(value)
    return {message: float(np.mean(each)) for message, each in found.items()}


def _label_checks(
    scores: Scores, ours: Agreements, sentinels: Mapping[str, Agreements], data: LabelledSet
) -> Iterator[Check]:
    # The metric against the sentinel that is best at each measure, on the same resamples of messages. A gate is what it
    # claims: AUC, and the mechanisms of which it has a score.
    for measure, found in ours.items():
        best = max(sentinels, key=lambda name: sentinels[name][measure].value)
        theirs, gate = sentinels[best][measure], measure == AUC or measure.removeprefix("tau ") in scores
        lead, p_value = found.against(theirs)
        shown = f"{found.value:.3f} vs {theirs.value:.3f} ({best}), p = {p_value:.3f}"
        numbers = {"value": found.value, "sentinel": best, "sentinel_value": theirs.value, "difference": lead.value}
        numbers |= {"low": lead.estimate.low, "high": lead.estimate.high, "p_value": p_value}
        numbers["p_values"] = {name: found.against(each[measure])[1] for name, each in sentinels.items()}
        numbers["tie_threshold"] = found.tie_threshold
        verdict = PASSES if lead.value > 0 and p_value < ALPHA else FAILS if gate else LIMIT
        yield Check("labels", measure, "wins", len(set(data.ids)), shown, verdict, gate, numbers)


class OriginalSemantic(MeanMetric):
    """How many of 12 patterns have cosine > 0.7 with the reply, by any encoder; see `bnbench.metrics.original`."""

    name: ClassVar[str] = "original-semantic"
    description: ClassVar[str] = "the original project's semantic empathy, 0-100, higher is better"
    columns, values = ("semantic", "replies"), ("semantic",)

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self.choices = encoder, {"enc": encoder.id}

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 1: the score of each reply, 0-1."""
        return semantic_scores(texts.replies, self._encoder.encode)[:, None] / 100
