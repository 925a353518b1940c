"""The verdict in plain words: what the primary metric says about each candidate, and what it cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bnbench.reports import format as fmt
from bnbench.reports.ranking import Comparison, Ranking, Standing
from bnbench.reports.values import label

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
    versus = [(s, c) for s in ranking.standings if (c := s.versus(ranking.primary, ranking.primary_value))]
    if not versus:
        return _alone(ranking)
    if len(versus) == 1:
        claim, evidence = _sentence(ranking, *versus[0])
        least = detectable(ranking, versus[0][1])
        return Verdict(claim, evidence, (least,) if least else (), outcome(versus[0][1]))
    details = [_in_full(ranking, s, c) for s, c in versus] if len(versus) <= _IN_FULL else _summary(ranking, versus)
    return Verdict(
        _first_place(ranking), "", tuple(details), "better" if ranking.standings[0].worst_rank == 1 else "open"
    )


def warnings(ranking: Ranking) -> list[str]:
    """What a reader must know before the numbers: too few items, then the run's own notes."""
    if ranking.n == 1:
        return ["1 item gives neither an interval nor a p-value: nothing follows from it", *ranking.notes]
    few = f"{_items(ranking.n)}: too few for the bootstrap to be trusted; take the intervals as a rough guide only"
    return [*([few] if ranking.n < FEW_ITEMS else []), *ranking.notes]


def detectable(ranking: Ranking, comparison: Comparison) -> str | None:
    """The smallest difference that these items would show, in words; None where the items do not vary."""
    if not comparison.smallest_detectable > 0 or ranking.n < 2:
        return None
    return (
        f"With {_items(ranking.n)}, a true difference under {_number(ranking, comparison.smallest_detectable)} "
        f"{_unit(ranking)} would often go undetected."
    )


def _alone(ranking: Ranking) -> Verdict:
    only = ranking.standings[0]
    score = ranking.primary_score(only)
    return Verdict(
        f"{fmt.name(only.candidate)} scores {_number(ranking, score.value)} {_unit(ranking)} on {_items(ranking.n)}",
        f"95 % {_number(ranking, score.low)} to {_number(ranking, score.high)}" if ranking.n > 1 else "",
        ("It was evaluated alone, so this says nothing about whether it is better than another model.",),
        "alone",
    )


def _in_full(ranking: Ranking, standing: Standing, c: Comparison) -> str:
    claim, evidence = _sentence(ranking, standing, c)
    least = detectable(ranking, c) if c.better is None else None
    return " ".join([f"{claim} ({evidence})." if evidence else f"{claim}.", *([least] if least else [])])


def _sentence(ranking: Ranking, standing: Standing, c: Comparison) -> tuple[str, str]:
    """The claim about one candidate, and its evidence."""
    this, other = fmt.name(c.candidate), f"{'its base ' if standing.is_own_base else ''}{fmt.name(c.other)}"
    if c.low == c.high == c.difference == 0:
        return (
            f"{this} and {other} have the same {_unit(ranking)}, whichever of the {_items(ranking.n)} are counted",
            "",
        )
    p = fmt.p_phrase(c.p if c.p_holm is None else c.p_holm) + (" by Holm" if len(ranking.pairs) > 1 else "")
    evidence = f"95 % {_number(ranking, c.low)} to {_number(ranking, c.high)}, {p}"
    by = f"{_number(ranking, c.difference, sign=True)} {_unit(ranking)}"
    if c.better is not None:
        return f"{this} is {outcome(c)} than {other} by {by}", evidence
    if ranking.n == 1:
        return f"One item cannot tell {this} from {other}: {by}", ""
    return f"The {_items(ranking.n)} cannot tell {this} from {other}: {by}", evidence


def _first_place(ranking: Ranking) -> str:
    first, n = ranking.standings[0], len(ranking.standings)
    if first.worst_rank == 1:
        return f"{fmt.name(first.candidate)} is the best of the {n} candidates on {_unit(ranking)}"
    open_ = [fmt.name(s.candidate, 36) for s in ranking.standings if s.best_rank == 1]
    if len(open_) == n:
        return f"The {_items(ranking.n)} cannot order the {n} candidates on {_unit(ranking)}"
    if len(open_) > _IN_FULL:
        return f"{len(open_)} of the {n} candidates may be the best on {_unit(ranking)}; {open_[0]} scored highest"
    return f"Any of {_listed(open_, 'or')} may be the best of the {n} candidates on {_unit(ranking)}"


def _summary(ranking: Ranking, versus: Sequence[tuple[Standing, Comparison]]) -> list[str]:
    others = {c.other for _, c in versus}
    base = fmt.name(others.pop()) if len(others) == 1 else "what it is compared with"
    heads = {"better": f"Better than {base}", "worse": f"Worse than {base}", "open": f"Not to be told from {base}"}
    lines = []
    for kind, head in heads.items():
        of = [
            f"{fmt.name(c.candidate, 36)} ({_number(ranking, c.difference, sign=True)})"
            for _, c in versus
            if outcome(c) == kind
        ]
        lines += [f"{head}: {', '.join(of)}."] if of else []
    return lines


def _listed(names: Sequence[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _items(n: int) -> str:
    return fmt.counted(n, "item")


def _unit(ranking: Ranking) -> str:
    return label(ranking.primary, ranking.primary_value)


def _number(ranking: Ranking, value: float, *, sign: bool = False) -> str:
    return fmt.number(value, fmt.decimals(ranking, ranking.primary, ranking.primary_value), sign=sign)
