"""What a paper must say about these numbers, and what the numbers do not say."""

from __future__ import annotations

from bnbench.reports.format import counted, p_value
from bnbench.reports.ranking import ALPHA, Ranking
from bnbench.reports.values import label


def methods_paragraph(ranking: Ranking) -> str:
    """A paragraph to copy: what was scored, how, with which signatures, and how it was compared."""
    several = len(ranking.standings) > 1
    scored = (
        f"{counted(len(ranking.standings), 'candidate')} answered the same {counted(ranking.n, 'message')}. "
        f"The primary metric, declared before the run, was {label(ranking.primary, ranking.primary_value)} "
        f"({ranking.signatures[ranking.primary]}). Intervals are 95 % percentile bootstrap intervals over items "
        f"({ranking.resamples:,} resamples, seed {ranking.seed})."
    )
    others = [s for name, s in ranking.signatures.items() if name != ranking.primary]
    signatures = f" Secondary metrics: {'; '.join(others)}." if others else ""
    return scored + (_comparisons(ranking) if several else "") + signatures


def _comparisons(ranking: Ranking) -> str:
    pairs = len(ranking.pairs)
    holm = f", Holm-adjusted over all {pairs} pairs of candidates on the primary metric" if pairs > 1 else ""
    return (
        " Candidates were compared in pairs on the same items with a paired bootstrap interval of the difference and a "
        f"two-sided paired approximate randomisation test ({ranking.resamples:,} exchanges){holm}. "
        f"A difference counts when its interval excludes 0 and p < {ALPHA:g}; "
        "p-values of secondary metrics are unadjusted."
    )


def limits(ranking: Ranking) -> list[str]:
    """What these numbers do not cover."""
    said = [
        "Training-seed variance is not covered: the intervals say how much the scores would move with other items, not "
        "with another training run of the same recipe.",
        f"{counted(ranking.n, 'item')}: the result holds for messages like these.",
        f"{label(ranking.primary, ranking.primary_value)} was declared as the primary metric before the run and alone "
        "ranks. p-values of the other metrics are unadjusted: where nothing differs, one in twenty is under 0.05.",
        "The metrics compare with a reference, count words, or measure likelihood. "
        "They do not replace people who read the replies.",
    ]
    if len(ranking.standings) > 1:
        floor = p_value(1 / (ranking.resamples + 1))
        said.append(
            f"p cannot fall below {floor} with {ranking.resamples:,} exchanges. The smallest detectable difference is "
            f"the true difference that {counted(ranking.n, 'such item')} would show in 80 % of cases at α = {ALPHA:g}."
        )
    return said
