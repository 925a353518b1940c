"""The verdict in plain words: what the primary metric says about each candidate, and what it cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bnbench.reports.ranking import Comparison, Ranking, Standing
from bnbench.reports.values import counted, name, p_phrase, primary_value

FEW_ITEMS = 30
_IN_FULL = 3  # as many comparisons get a sentence each; more are listed by outcome

Outcome = Literal["better", "worse", "open", "alone"]


@dataclass(frozen=True)
class Verdict:
    """One sentence to quote (`claim` and its `evidence`), the sentences that belong under it, and its colour."""

    claim: str
    evidence: str
    details: tuple[str, ...]
    outcome: Outcome

    @property
    def headline(self) -> str:
        """`X is better than its base Y by +2.1 chrF++ (95 % 1.0 to 3.2, p = 0.0002).`"""
        return f"{self.claim} ({self.evidence})." if self.evidence else f"{self.claim}."


def outcome(comparison: Comparison) -> Outcome:
    """Better, worse, or open: the items cannot tell."""
    return "open" if comparison.better is None else "better" if comparison.better else "worse"


def verdict(ranking: Ranking) -> Verdict:
    """What the ranking says, for one candidate, for two, or for many."""
    compared = [(s, c) for s in ranking.standings if (c := s.versus(ranking.primary, ranking.primary_value))]
    if len(ranking.standings) == 1 or not compared:
        return verdict_on(ranking, ranking.standings[0])
    if len(compared) == 1:
        return verdict_on(ranking, compared[0][0])
    if len(compared) <= _IN_FULL:
        details = []
        for standing, c in compared:
            said = verdict_on(ranking, standing)
            details.append(" ".join([said.headline, *(said.details if c.better is None else ())]))
    else:
        details = _by_outcome(ranking, [c for _, c in compared])
    first, n, unit = ranking.standings[0], len(ranking.standings), primary_value(ranking).label
    open_ = [name(s.candidate, 36) for s in ranking.standings if s.best_rank == 1]
    if first.worst_rank == 1:
        claim = f"{name(first.candidate)} is the best of the {n} candidates on {unit}"
    elif len(open_) == n:
        claim = f"The {counted(ranking.n, 'item')} cannot order the {n} candidates on {unit}"
    elif len(open_) > _IN_FULL:
        claim = f"{len(open_)} of the {n} candidates may be the best on {unit}; {open_[0]} scored highest"
    else:
        either = f"{', '.join(open_[:-1])} or {open_[-1]}"
        claim = f"Any of {either} may be the best of the {n} candidates on {unit}"
    return Verdict(claim, "", tuple(details), "better" if first.worst_rank == 1 else "open")


def verdict_on(ranking: Ranking, standing: Standing) -> Verdict:
    """What the ranking says about one candidate against what it is compared with, or alone."""
    value, items = primary_value(ranking), counted(ranking.n, "item")
    score, c = ranking.primary_score(standing), standing.versus(ranking.primary, ranking.primary_value)
    if c is None:
        return Verdict(
            f"{name(standing.candidate)} scores {value.number(score.value)} {value.label} on {items}",
            f"95 % {value.number(score.low)} to {value.number(score.high)}" if ranking.n > 1 else "",
            ("It was evaluated alone, so this says nothing about whether it is better than another model.",),
            "alone",
        )
    this, other = name(c.candidate), f"{'its base ' if standing.is_own_base else ''}{name(c.other)}"
    by = f"{value.number(c.difference, sign=True)} {value.label}"
    p = p_phrase(c.p if c.p_holm is None else c.p_holm) + (" by Holm" if len(ranking.pairs) > 1 else "")
    evidence = f"95 % {value.number(c.low)} to {value.number(c.high)}, {p}"
    if c.low == c.high == c.difference == 0:
        claim = f"{this} and {other} have the same {value.label}, whichever of the {items} are counted"
        evidence = ""
    elif c.better is not None:
        claim = f"{this} is {outcome(c)} than {other} by {by}"
    elif ranking.n == 1:
        claim, evidence = f"One item cannot tell {this} from {other}: {by}", ""
    else:
        claim = f"The {items} cannot tell {this} from {other}: {by}"
    least = (
        f"With {items}, a true difference under {value.number(c.smallest_detectable)} {value.label} would often go "
        "undetected."
    )
    known = c.smallest_detectable > 0 and ranking.n > 1  # where items do not vary, nothing can be said
    return Verdict(claim, evidence, (least,) if known else (), outcome(c))


def warnings(ranking: Ranking) -> list[str]:
    """What a reader must know before the numbers: too few items, then the run's own notes."""
    if ranking.n == 1:
        return ["1 item gives neither an interval nor a p-value: nothing follows from it", *ranking.notes]
    few = f"{ranking.n:,} items: too few for the bootstrap to be trusted; take the intervals as a rough guide only"
    return [*([few] if ranking.n < FEW_ITEMS else []), *ranking.notes]


def _by_outcome(ranking: Ranking, comparisons: Sequence[Comparison]) -> list[str]:
    value, others = primary_value(ranking), {c.other for c in comparisons}
    base = name(others.pop()) if len(others) == 1 else "what it is compared with"
    lines = []
    for kind, head in (("better", "Better than"), ("worse", "Worse than"), ("open", "Not to be told from")):
        of = [
            f"{name(c.candidate, 36)} ({value.number(c.difference, sign=True)})"
            for c in comparisons
            if outcome(c) == kind
        ]
        lines += [f"{head} {base}: {', '.join(of)}."] if of else []
    return lines
