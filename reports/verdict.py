"""The verdict in plain words: what the primary metric says about each candidate, and what it cannot say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bnbench.metrics.significance import FEW, TOO_FEW
from bnbench.records import SEEN
from bnbench.reports.ranking import Comparison, Ranking, Standing
from bnbench.reports.values import NOT_INFORMATIVE, counted, items_of, name, number, p_value, value_of

_IN_FULL = 3  # as many comparisons get a sentence each; more are listed by outcome
_LISTED = 6  # as many candidates' lengths are listed
_MANY, _MOST = 10, 50  # per cent of the replies: a fault is named; no "better" stands without it

Outcome = Literal["better", "worse", "open", "alone"]


@dataclass(frozen=True)
class Verdict:
    """One sentence to quote (`claim` and its `evidence`), the sentences that belong under it, and its colour."""

    claim: str
    evidence: str
    details: tuple[str, ...]
    outcome: Outcome
    but: str = ""

    @property
    def headline(self) -> str:
        """`X is better than its base Y by 2.1 chrF++ (95 % 1.0 to 3.2, p = 0.0002).`"""
        return f"{self.claim}{f' ({self.evidence})' if self.evidence else ''}{self.but}."


def outcome(comparison: Comparison) -> Outcome:
    """Better, worse, or open: the items cannot tell."""
    return "open" if comparison.better is None else "better" if comparison.better else "worse"


def verdict(ranking: Ranking) -> Verdict:
    """What the ranking says, for one candidate, for two, or for many, and what the yardsticks say to that."""
    compared = [(s, s.versus_base[0]) for s in ranking.standings if s.versus_base]
    if len(compared) <= 1:
        who = compared[0][0] if compared else ranking.standings[0]
        return held_against(ranking, who, verdict_on(ranking, who))
    first, n, value, details = ranking.standings[0], len(ranking.standings), value_of(ranking), []
    if len(compared) <= _IN_FULL:
        for standing, c in compared:
            said = verdict_on(ranking, standing)
            details.append(" ".join([said.headline, *(said.details if c.better is None else ())]))
    else:
        others = {c.other for _, c in compared}
        base = name(others.pop()) if len(others) == 1 else "what it is compared with"
        for kind, head in (("better", "Better than"), ("worse", "Worse than"), ("open", "Not to be told from")):
            these = [c for _, c in compared if outcome(c) == kind]
            gaps = [c.difference if kind == "open" else abs(c.difference) for c in these]
            shown = (value.number(gap, sign=kind == "open") for gap in gaps)
            told = [f"{name(c.candidate, 36)} ({gap})" for c, gap in zip(these, shown, strict=True)]
            details += [f"{head} {base}: {', '.join(told)}."] if told else []
        if doubted := [name(s.candidate, 36) for s in ranking.standings if caveat(ranking, s)]:
            details.append(f"Not above every yardstick, mostly broken, or trained on test rows: {', '.join(doubted)}.")
    best = [name(s.candidate, 36) for s in ranking.standings if s.best_rank == 1]
    seen = [name(s.candidate, 36) for s in ranking.standings if s.best_rank == 1 and trained_on_test(ranking, s)]
    but = _trained(seen)
    if first.worst_rank == 1:
        but = caveat(ranking, first)
        claim = f"{name(first.candidate)} is the best of the {n} candidates on {value.label}"
    elif len(best) == n:
        claim = f"The {counted(ranking.n, 'item')} cannot order the {n} candidates on {value.label}"
    elif len(best) > _IN_FULL:
        claim = f"{len(best)} of the {n} candidates may be the best on {value.label}; {best[0]} scored highest"
    else:
        claim = f"Any of {listed(best, 'or')} may be the best of the {n} candidates on {value.label}"
    said = Verdict(claim, "", tuple(details), "better" if first.worst_rank == 1 else "open", but)
    return held_against(ranking, subject(ranking), said)


def subject(ranking: Ranking) -> Standing:
    """Whom the verdict holds against yardsticks: the best-ranked of those compared with another, or the only one."""
    return next((s for s in ranking.standings if s.compared_with), ranking.standings[0])


def held_against(ranking: Ranking, standing: Standing, said: Verdict) -> Verdict:
    """A verdict with what the yardsticks say of one candidate, and which metrics can tell anything on these items."""
    if not ranking.yardsticks:
        return said
    who, labels, told = standing.candidate, {m: value_of(ranking, m).label for m in ranking.values}, list[str]()
    lost = {metric: ranking.unpassed(who, metric) for metric in labels}
    if sum(bool(s.versus_base) for s in ranking.standings) > 1 and standing is subject(ranking):
        told.append(f"Held against the yardsticks is {name(who)}, the best-ranked of those compared.")
    for better, way in ((False, "below"), (None, "not to be told from")):
        if these := [c.other for c in lost[ranking.primary] if c.better is better]:
            told.append(f"In {labels[ranking.primary]}, {name(who)} is {way} {listed(these)}.")
    groups: dict[str, list[str]] = {}
    for metric, label in labels.items():
        group, c = "Passing every yardstick", standing.versus(metric, ranking.values[metric][0])
        if not any(metric in y.floor_of for y in ranking.yardsticks):
            group, label = "Without a yardstick", f"{label} ({outcome(c)})" if c else label
        elif lost[metric]:
            group = f"Not informative here ({NOT_INFORMATIVE}), as a yardstick is not passed"
        elif any(metric in y.scores and metric not in y.floor_of for y in ranking.yardsticks[1:]):
            group = "Passing the yardsticks that the reference itself passes, which are not all"
        groups.setdefault(group, []).append(label)
    told += [f"{group}: {listed(these)}." for group, these in groups.items()]
    best = sorted((t for t in ranking.telling.values() if t.low > 0.5), key=lambda t: -t.value)
    by = listed([f"{labels[t.metric]} (AUC {number(t.value)})" for t in best] or ["none of the metrics"])
    told.append(f"A reply that belongs to its message is told from another item’s by {by}, on these items.")
    return replace(said, details=(*said.details, " ".join(told[:-1]), *(told[-1:] if ranking.telling else ())))


def caveat(ranking: Ranking, standing: Standing) -> str:
    """`, but below a stock reply and 67 % of its replies are broken`: no "better" stands without it. Where it was
    trained on test rows, that says all: what it scores on them is what it learned.
    """
    if any(note.endswith(SEEN) for note in ranking.notes) and trained_on_test(ranking, standing):
        return ", but it was trained on test rows"
    lost = sorted(ranking.unpassed(standing.candidate, ranking.primary), key=lambda c: c.better is None)
    told = [f"{'below' if c.better is False else 'not to be told from'} {c.other}" for c in lost[:1]]
    broken = standing.value("degeneration", "degenerate") or 0
    told += [f"{number(broken, 1).removesuffix('.0')} % of its replies are broken"] if broken >= _MOST else []
    return f", but {' and '.join(told)}" if told else ""


def verdict_on(ranking: Ranking, standing: Standing) -> Verdict:
    """What the ranking says about one candidate against what it is compared with, or alone."""
    value, items, score = value_of(ranking), items_of(ranking), standing.scores[0]
    if not standing.versus_base:
        claim = f"{name(standing.candidate)} scores {value.number(score.value)} {value.label} on {items}"
        evidence = f"95 % {value.number(score.low)} to {value.number(score.high)}" if ranking.dialogues > 1 else ""
        alone = "It was evaluated alone, so this says nothing about whether it is better than another model."
        return Verdict(claim, evidence, (alone,), "alone", caveat(ranking, standing))
    c = standing.versus_base[0]
    this, other = name(c.candidate), name(c.other)
    if standing.is_own_base:  # which is often called just that, by its folder
        other = "its base" if c.other == "base" else f"its base {other}"
    by, ends = f"{value.number(c.difference, sign=True)} {value.label}", [c.low, c.high]
    if c.better is not None:  # “worse by” has said the sign
        by, ends = f"{value.number(abs(c.difference))} {value.label}", sorted(map(abs, ends))
    p = p_value(c.p if c.p_holm is None else c.p_holm)
    p = (f"p < {p[1:]}" if p.startswith("<") else f"p = {p}") + (" by Holm" if len(ranking.pairs) > 1 else "")
    evidence = f"95 % {value.number(ends[0])} to {value.number(ends[1])}, {p}"
    if c.low == c.high == c.difference == 0:
        claim, evidence = f"{this} and {other} have the same {value.label}, whichever of the {items} are counted", ""
    elif c.better is not None:
        claim = f"{this} is {outcome(c)} than {other} by {by}"
    elif ranking.dialogues == 1:
        claim, evidence = f"One {'item' if ranking.n == 1 else 'dialogue'} cannot tell {this} from {other}: {by}", ""
    else:
        claim = f"The {items} cannot tell {this} from {other}: {by}"
    details = []
    if c.smallest_detectable > 0 and ranking.dialogues > 1:  # where items do not vary, nothing can be said
        least = f"{value.number(c.smallest_detectable)} {value.label}"
        details.append(f"With {items}, a true difference under {least} would often go undetected.")
    if standing.kind == "adapter" and standing.candidate not in [group.name for group in ranking.groups]:
        details.append("This is one training run: what another seed would give, only several of them can tell.")
    but = caveat(ranking, standing) if c.better else ""
    if not c.better and any(note.endswith(SEEN) for note in ranking.notes):
        both = [s for s in ranking.standings if s.candidate in (c.candidate, c.other)]
        but = _trained([name(s.candidate, 36) for s in both if trained_on_test(ranking, s)])
    return Verdict(claim, evidence, tuple(details), outcome(c), but)


def _trained(names: Sequence[str]) -> str:
    return f", but {listed(names)} {'was' if len(names) == 1 else 'were'} trained on test rows" if names else ""


def trained_on_test(ranking: Ranking, standing: Standing) -> str:
    """The note that a candidate, or a seed of a group, was trained on rows of the test; empty for any other."""
    record = next(e.record for e in ranking.entries if e.name == standing.candidate)
    members = next((group.members for group in ranking.groups if group.name == standing.candidate), ())
    own = [note for run in ranking.runs if members or record in run.record.candidates for note in run.record.notes]
    seen = (note for note in own if note.endswith(SEEN))
    return next((note for note in seen if note.rpartition(" was trained on ")[0] in (record.name, *members)), "")


def listed(texts: Sequence[str], word: str = "and") -> str:
    """`one, two and three`."""
    return f" {word} ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def warnings(ranking: Ranking) -> list[str]:
    """What a reader must know before the numbers: what undoes the verdict, too few items, broken replies, lengths …"""
    alone = "1 item" if ranking.n == 1 else "1 dialogue"
    one = f"{alone} gives neither an interval nor a p-value: nothing follows from it"
    told = [one if ranking.dialogues == 1 else f"{items_of(ranking)}: {TOO_FEW}"] if ranking.dialogues < FEW else []
    whole, partly = len(ranking.runs[0].examples), dict[int, list[str]]()
    for metric, items in ranking.items.items():
        if len(items) < whole:
            partly.setdefault(len(items), []).append(value_of(ranking, metric).label)
    for n, these in partly.items():
        few = f": {TOO_FEW}" if n < FEW and not (told and n == ranking.n) else ""
        told.append(f"{listed(these)}: on only {n} of the {whole} items, where every candidate has a value{few}")
    labels = ranking.metrics["degeneration"].labels if "degeneration" in ranking.metrics else {}
    broken = [kind for kind in labels if kind in ranking.metrics["degeneration"].shares]  # of replies, the sum first
    of_all = {s.candidate: {kind: s.value("degeneration", kind) or 0 for kind in labels} for s in ranking.standings}
    for who, shares in list(of_all.items())[:_LISTED]:
        wrong = sorted((k for k in broken if shares[k] >= _MANY), key=lambda k: -shares[k])
        named = {k: labels[k].removesuffix(", %").removesuffix(" replies") for k in wrong}
        kinds = ", ".join(f"{number(shares[k], 1).removesuffix('.0')} % {label}" for k, label in named.items())
        told += [f"{name(who)}, of its replies: {kinds}"] if kinds else []
    if labels and (rest := [shares["degenerate"] for shares in list(of_all.values())[_LISTED:]]):
        low, high = (number(share, 1).removesuffix(".0") for share in (min(rest), max(rest)))
        told.append(f"{len(rest)} more, of their replies: {low} to {high} % broken")
    means = {e.name: sum(len(g.reply.split()) for g in e.replies) / whole for e in ranking.entries}
    lengths = [f"{name(s.candidate, 36)} {means[s.candidate]:.0f}" for s in ranking.standings[:_LISTED]]
    if others := [means[s.candidate] for s in ranking.standings[_LISTED:]]:
        lengths.append(f"{len(others)} more {min(others):.0f} to {max(others):.0f}")
    of = sum(len(e["reference"].split()) for e in ranking.runs[0].examples) / whole
    told.append(f"words a reply, on average: {', '.join(lengths)}; the references {of:.0f}")
    primary = value_of(ranking)
    held = [(y.label, y.scores[primary.metric]) for y in ranking.yardsticks if primary.metric in y.scores]
    if marks := ", ".join(f"{label} {primary.number(score.value)}" for label, score in held):
        best, worst = (primary.number(ranking.standings[at].scores[0].value) for at in (0, -1))
        here = best if len(ranking.standings) == 1 else f"{best} to {worst}"
        told.append(f"the scale of {primary.label}: {marks}; here {here}")
    notes = [name(note, 2_000) for note in ranking.notes]
    return [*(n for n in notes if n.endswith(SEEN)), *told, *(n for n in notes if not n.endswith(SEEN))]
