"""What a paper must say about these numbers, and what the numbers do not say."""

from __future__ import annotations

from bnbench.reports.format import p_value
from bnbench.reports.ranking import ALPHA, Ranking
from bnbench.reports.values import label


def methods_paragraph(ranking: Ranking) -> str:
    """A paragraph to copy: what was scored, how, with which signatures, and how it was compared."""
    several = len(ranking.standings) > 1
    scored = (
        f"{len(ranking.standings)} candidate{'s' if several else ''} answered the same {ranking.n:,} message{_s(ranking.n)}. "
        f"The primary metric, declared before the run, was {label(ranking.primary, ranking.primary_value)} "
        f"({ranking.signatures[ranking.primary]}). "
        f"Intervals are 95 % percentile bootstrap intervals over items ({ranking.resamples:,} resamples, seed {ranking.seed})."
    )
    compared = (
        " Candidates were compared in pairs on the same items with a paired bootstrap interval of the difference and a two-sided "
        f"paired approximate randomisation test ({ranking.resamples:,} exchanges)"
        + (f", Holm-adjusted over all {len(ranking.pairs)} pairs of candidates on the primary metric" if len(ranking.pairs) > 1 else "")
        + f". A difference counts when its interval excludes 0 and p < {ALPHA:g}; p-values of secondary metrics are unadjusted."
    )
    others = [s for name, s in ranking.signatures.items() if name != ranking.primary]
    signatures = f" Secondary metrics: {'; '.join(others)}." if others else ""
    return scored + (compared if several else "") + signatures


def limits(ranking: Ranking) -> list[str]:
    """What these numbers do not cover."""
    floor = p_value(1 / (ranking.resamples + 1))
    said = [
        "Training-seed variance is not covered: the intervals say how much the scores would move with other items, not with "
        "another training run of the same recipe.",
        f"{ranking.n:,} item{_s(ranking.n)}: the result holds for messages like these.",
        f"{label(ranking.primary, ranking.primary_value)} was declared as the primary metric before the run and alone decides "
        "the ranking. p-values of the other metrics are unadjusted: of twenty, one falls under 0.05 by chance.",
        "Every metric here compares with one reference or counts surface features. None replaces people who read the replies.",
    ]
    if len(ranking.standings) > 1:
        said.append(
            f"p cannot fall below {floor} with {ranking.resamples:,} exchanges. The smallest detectable difference is the true "
            f"difference that {ranking.n:,} such items would show in 80 % of cases at α = {ALPHA:g}."
        )
    return said


def _s(n: int) -> str:
    return "" if n == 1 else "s"
