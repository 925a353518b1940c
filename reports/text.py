"""The report for a terminal: plain text, aligned, at most 110 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from bnbench.metrics.combined import NAME as COMBINED
from bnbench.reports import format as fmt
from bnbench.reports.combined import combined_lines, combined_tables
from bnbench.reports.ranking import Comparison, Ranking, Standing
from bnbench.reports.trust import sentence
from bnbench.reports.values import Value, flag_notes, shown_values, zeros
from bnbench.reports.verdict import verdict, warnings

WIDTH = 110
_NAME = 34
_DETAILED = 3  # as many candidates get a table of their own; more share a compact one


def terminal(ranking: Ranking) -> str:
    """Verdict, ranking, combined score, secondary metrics, notes."""
    said = verdict(ranking)
    primary, *others = shown_values(ranking)
    unaudited = [t for t in ranking.trust if not t.audited]
    blocks = [
        _wrapped([said.headline, *said.details]),
        _ranking(ranking, primary),
        _combined(ranking),
        *_secondary(ranking, [v for v in others if v.metric != COMBINED]),
        _wrapped([*flag_notes([primary, *others]), *(f"{t.metric}: {sentence(t)}" for t in unaudited)], "  "),
        _wrapped([zeros(ranking)]),
        _wrapped([f"Note: {note}" for note in warnings(ranking)], "      "),
    ]
    return "\n\n".join(block for block in blocks if block)


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows as columns two spaces apart, the first `left` of them flush left, the others right; as wide as they look."""
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        gaps = [" " * (w - cell_len(cell)) for w, cell in zip(widths, row, strict=True)]
        cells = [c + g if i < left else g + c for i, (c, g) in enumerate(zip(row, gaps, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _wrapped(paragraphs: Sequence[str], indent: str = "") -> str:
    return "\n".join(textwrap.fill(p, WIDTH, subsequent_indent=indent, break_on_hyphens=False) for p in paragraphs)


def _ranking(ranking: Ranking, primary: Value) -> str:
    several = len(ranking.standings) > 1
    way = "higher" if primary.higher_is_better else "lower"
    over = f"{fmt.counted(ranking.n, 'item')}, 95 % bootstrap intervals" if ranking.n > 1 else "1 item, no interval"
    title = f"{primary.label}, the primary metric ({way} is better), {over}"
    p = "p (Holm)" if len(ranking.pairs) > 1 else "p"
    head = [
        "rank",
        "candidate",
        primary.flagged,
        "95 %",
        *([f"Δ to {_base(ranking)}", "95 %", p, ""] if several else []),
    ]
    rows = [head, *(_place(ranking, s, primary, several) for s in ranking.standings)]
    return f"{title}\n{aligned(rows, left=2)}"


def _combined(ranking: Ranking) -> str:
    """The combined score with its parts beside it, or below where they do not fit."""
    scores, parts = combined_tables(ranking)
    if not scores:
        return ""
    table = aligned([[*left, *right] for left, right in zip(scores, parts, strict=True)])
    if max(map(cell_len, table.splitlines())) > WIDTH:
        named = [[row[0], *part] for row, part in zip(scores, parts, strict=True)]
        table = f"{aligned(scores)}\n\n{aligned(named)}"
    return f"Combined score (higher is better)\n{table}\n{_wrapped(combined_lines(ranking), '  ')}"


def _base(ranking: Ranking) -> str:
    others = {s.compared_with for s in ranking.standings if s.compared_with}
    return "base" if len(others) > 1 or any(s.kind == "base" for s in ranking.standings) else fmt.name(ranking.base, 20)


def _place(ranking: Ranking, standing: Standing, primary: Value, several: bool) -> list[str]:
    score, d = ranking.primary_score(standing), primary.decimals
    row = [
        fmt.places(standing.best_rank, standing.worst_rank),
        fmt.name(standing.candidate, _NAME),
        fmt.number(score.value, d),
        fmt.interval(score.low, score.high, d),
    ]
    return row + (_difference(standing.versus(primary.metric, primary.name), primary) if several else [])


def _difference(c: Comparison | None, value: Value) -> list[str]:
    if c is None:
        return ["", "", "", ""]
    return [
        fmt.number(c.difference, value.decimals, sign=True),
        fmt.interval(c.low, c.high, value.decimals, sign=True),
        fmt.p_value(c.p if c.p_holm is None else c.p_holm),
        value.mark(c),
    ]


def _secondary(ranking: Ranking, values: Sequence[Value]) -> list[str]:
    compared = [s for s in ranking.standings if s.versus_base]
    if not values:
        return []
    if compared and len(ranking.standings) <= _DETAILED:
        return [_detailed(ranking, s, values) for s in compared]
    return list(_compact(ranking, values))


def _detailed(ranking: Ranking, standing: Standing, values: Sequence[Value]) -> str:
    base = next(s for s in ranking.standings if s.candidate == standing.compared_with)
    this, other = fmt.name(standing.candidate, _NAME), fmt.name(base.candidate, _NAME)
    rows = [["", "", *(fmt.name(x.candidate, 18) for x in (standing, base)), "Δ", "95 %", "p", ""]]
    for v in values:
        pair = [standing.value(v.metric, v.name), base.value(v.metric, v.name)]
        if pair != [None, None]:
            scores = [fmt.number(x, v.decimals) for x in pair]
            rows.append([v.flagged, v.arrow, *scores, *_difference(standing.versus(v.metric, v.name), v)])
    title = f"Secondary metrics, {this} against {other} (p unadjusted; ↑ higher, ↓ lower is better)"
    return f"{_wrapped([title])}\n{aligned(rows, left=2)}"


def _compact(ranking: Ranking, values: Sequence[Value]) -> Iterator[str]:
    """Values down, candidates across, some at a time; ▲ ▼ where the difference to the base is clear."""
    step = 5
    for start in range(0, len(ranking.standings), step):
        standings = ranking.standings[start : start + step]
        rows = [["", "", *(fmt.name(s.candidate, 15) for s in standings)]]
        rows += [[v.flagged, v.arrow, *(_marked(s, v) for s in standings)] for v in values]
        marks = "; ▲ better, ▼ worse than its base, p < 0.05 unadjusted" if len(ranking.standings) > 1 else ""
        yield f"Secondary metrics (↑ higher, ↓ lower is better{marks})\n{aligned(rows, left=2)}"


def _marked(standing: Standing, value: Value) -> str:
    comparison = standing.versus(value.metric, value.name)
    mark = " ▲" if comparison and comparison.better else " ▼" if comparison and comparison.better is False else "  "
    return fmt.number(standing.value(value.metric, value.name), value.decimals) + mark
