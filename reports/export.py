"""The ranking as files for machines and for other documents: ranking.json, ranking.csv, report.md."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence

from bnbench.reports import format as fmt
from bnbench.reports.combined import combined_lines, combined_tables
from bnbench.reports.methods import limits, methods_paragraph
from bnbench.reports.ranking import Comparison, Ranking, Score, Standing
from bnbench.reports.trust import sentence
from bnbench.reports.values import Value, flag_notes, shown_values, zeros
from bnbench.reports.verdict import outcome, verdict, warnings

COLUMNS = (
    "rank_best", "rank_worst", "candidate", "kind", "metric", "value", "higher_is_better", "score", "low", "high",
    "compared_with", "difference", "difference_low", "difference_high", "p", "p_holm", "smallest_detectable", "outcome",
    "n", "signature",
)  # fmt: skip


def ranking_json(ranking: Ranking) -> str:
    """`Ranking.as_dict` as indented JSON; the same bytes for the same tables, wherever and whenever they are ranked."""
    return json.dumps(ranking.as_dict(), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def ranking_csv(ranking: Ranking) -> str:
    """One row a candidate and value, numbers in full; empty where there is nothing to say."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(ranking, standing, score) for standing in ranking.standings for score in standing.scores)
    return file.getvalue()


def _row(ranking: Ranking, standing: Standing, score: Score) -> list[str]:
    c = standing.versus(score.metric, score.name)
    compared = (
        (c.other, c.difference, c.low, c.high, c.p, c.p_holm, c.smallest_detectable, outcome(c)) if c else (None,) * 8
    )
    cells = (
        standing.best_rank, standing.worst_rank, standing.candidate, standing.kind, score.metric, score.name,
        ranking.directions[score.metric], score.value, score.low, score.high, *compared, ranking.n,
        ranking.signatures[score.metric],
    )  # fmt: skip
    return [_cell(cell) for cell in cells]


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and fmt.number(value) == fmt.ABSENT):
        return ""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def report_md(ranking: Ranking) -> str:
    """The report as Markdown: what a README, an issue or a model card quotes."""
    said = verdict(ranking)
    primary, *others = shown_values(ranking)
    parts = [
        f"# {_escaped(said.headline)}",
        *map(_escaped, said.details),
        *(f"> **Note:** {_escaped(note)}" for note in warnings(ranking)),
        f"## Ranking on {_escaped(primary.label)} ({fmt.counted(ranking.n, 'item')}, 95 % intervals)",
        _table(_ranking_rows(ranking, primary)),
        *_combined(ranking),
        *_secondary(ranking, others),
        *(_escaped(note) for note in flag_notes([primary, *others])),
        *([_escaped(zeros(ranking))] if zeros(ranking) else []),
        *_trust(ranking),
        "## How it was measured",
        _escaped(methods_paragraph(ranking)),
        "\n".join(f"* {_escaped(limit)}" for limit in limits(ranking)),
    ]
    return "\n\n".join(parts) + "\n"


def _ranking_rows(ranking: Ranking, primary: Value) -> Iterator[list[str]]:
    yield ["rank", "candidate", f"{primary.flagged} {primary.arrow}", "95 %", "Δ", "95 %", "p", "compared with", ""]
    for s in ranking.standings:
        score = ranking.primary_score(s)
        shown = [fmt.number(score.value, primary.decimals), fmt.interval(score.low, score.high, primary.decimals)]
        place = [fmt.places(s.best_rank, s.worst_rank), fmt.name(s.candidate)]
        yield [*place, *shown, *_difference(s.versus(primary.metric, primary.name), primary)]


def _difference(c: Comparison | None, value: Value) -> list[str]:
    if c is None:
        return [""] * 5
    p = fmt.p_value(c.p if c.p_holm is None else c.p_holm)
    ends = fmt.interval(c.low, c.high, value.decimals, sign=True)
    return [fmt.number(c.difference, value.decimals, sign=True), ends, p, fmt.name(c.other), value.mark(c)]


def _combined(ranking: Ranking) -> Iterator[str]:
    scores, parts = combined_tables(ranking)
    if scores:
        yield "## Combined score"
        yield _table([*left, *right] for left, right in zip(scores, parts, strict=True))
        yield "\n".join(f"* {_escaped(line)}" for line in combined_lines(ranking))


def _trust(ranking: Ranking) -> Iterator[str]:
    if ranking.trust:
        yield "## Can these metrics be trusted?"
        yield "\n".join(f"* {_escaped(f'{t.metric}: {sentence(t)}')}" for t in ranking.trust)


def _secondary(ranking: Ranking, values: Sequence[Value]) -> Iterator[str]:
    if values:
        yield "## Secondary metrics (p unadjusted)"
        yield _table(_secondary_rows(ranking, values))


def _secondary_rows(ranking: Ranking, values: Sequence[Value]) -> Iterator[list[str]]:
    yield ["metric", "candidate", "score", "95 %", "Δ", "95 %", "p", "compared with", ""]
    for v in values:
        for s in ranking.standings:
            score = s.score(v.metric, v.name)
            if score:
                ends = fmt.interval(score.low, score.high, v.decimals)
                first = [f"{v.flagged} {v.arrow}", fmt.name(s.candidate), fmt.number(score.value, v.decimals), ends]
                yield [*first, *_difference(s.versus(v.metric, v.name), v)]


def _table(rows: Iterator[list[str]]) -> str:
    head, *body = ([_escaped(cell) for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def _escaped(text: str) -> str:
    """Text that stays text in Markdown, whatever a candidate is called."""
    one_line = " ".join(text.split())
    return (
        re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", one_line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
