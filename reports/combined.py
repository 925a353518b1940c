"""The combined score beside its parts, and how much of its order hangs on the weights: rows and sentences to show."""

from __future__ import annotations

from bnbench.metrics.combined import NAME, weighted
from bnbench.reports import format as fmt
from bnbench.reports.ranking import Ranking, Standing
from bnbench.reports.values import Value, label, value_of

Rows = list[list[str]]


def combined_tables(ranking: Ranking) -> tuple[Rows, Rows]:
    """The scores with their intervals and differences, and the parts; the head first, one row a candidate. Both empty
    where there is no combined score.
    """
    if ranking.combined is None:
        return [], []
    value, by_name = value_of(ranking, NAME, NAME), {s.candidate: s for s in ranking.standings}
    parts = [value_of(ranking, name, ranking.values[name][0]) for name in ranking.combined.weights]
    several = len(ranking.combined.scores) > 1
    scores = [
        [
            "candidate",
            NAME,
            "95 %",
            *(["Δ", "95 %", "p", "outcome"] if several else []),
        ]
    ]
    scores += [_scores(by_name[who], value, several) for who in ranking.combined.scores]
    beside = [[label(part.metric, part.name) for part in parts]]
    beside += [
        [fmt.number(by_name[who].value(part.metric, part.name), part.decimals) for part in parts]
        for who in ranking.combined.scores
    ]
    return scores, beside


def _scores(standing: Standing, value: Value, several: bool) -> list[str]:
    score, c = standing.score(NAME, NAME), standing.versus(NAME, NAME)
    assert score is not None  # only candidates with every part are here
    row = [
        fmt.name(standing.candidate, 34),
        fmt.number(score.value, value.decimals),
        fmt.interval(score.low, score.high, value.decimals),
    ]
    if c is None:
        return row + [""] * (4 if several else 0)
    ends = fmt.interval(c.low, c.high, value.decimals, sign=True)
    p = fmt.p_value(c.p if c.p_holm is None else c.p_holm)
    return [*row, fmt.number(c.difference, value.decimals, sign=True), ends, p, value.mark(c)]


def combined_lines(ranking: Ranking) -> list[str]:
    """What the score is made of, and what other weights would do to the order; nothing where there is none."""
    if ranking.combined is None:
        return []
    made = f"{NAME} = {weighted(ranking.combined.weights)}, each on 0–100; the weights were declared before the run."
    made += " p is unadjusted." if ranking.pairs and ranking.primary != NAME else ""
    return [made, *ranking.combined.stability(lambda who: fmt.name(who, 34))]
