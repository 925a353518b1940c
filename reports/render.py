"""The pens for the terminal and for Markdown, the ranking for machines, and the report's files.

The terminal's text is at most 110 columns wide, and its warnings stand last, where a reader of a terminal looks first.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from bnbench.records import Run, write_text
from bnbench.reports.panels import (
    Block,
    Cell,
    Column,
    Facts,
    Name,
    Panel,
    Pen,
    Sentences,
    Table,
    evaluation_panel,
    panels,
)
from bnbench.reports.ranking import RESAMPLES, Ranking, rank
from bnbench.reports.values import ABSENT, name, number, storable
from bnbench.reports.verdict import outcome

WIDTH = 110
COLUMNS = (
    "rank_best", "rank_worst", "candidate", "kind", "metric", "value", "higher_is_better", "score", "low", "high",
    "compared_with", "difference", "difference_low", "difference_high", "p", "p_holm", "smallest_detectable", "outcome",
    "n", "signature",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What was written: the ranking as a dict for JSON, the text for the terminal, and where the page lies."""

    ranking: dict[str, Any]
    text: str
    html: Path


def write_report(
    runs: Sequence[Run], folder: Path, *, resamples: int = RESAMPLES, audits: Path | None = None
) -> Report:
    """Ranks the candidates of the runs and writes ranking.json, ranking.csv, report.md and report.html into `folder`.

    `audits` is a file of further audits.

    Raises:
        RunError: the runs are not over the same items or not scored alike.
        UsageError: the primary metric cannot be computed, or `audits` not be read.
    """
    from bnbench.reports.html import report_html

    ranking = rank(runs, resamples=resamples, audits=audits)
    files = {
        "ranking.json": ranking_json(ranking),
        "ranking.csv": ranking_csv(ranking),
        "report.md": report_md(ranking),
        "report.html": report_html(ranking),
    }
    for file, text in files.items():
        write_text(folder / file, storable(text))
    return Report(ranking.as_dict(), storable(terminal(ranking)), folder / "report.html")


def ranking_json(ranking: Ranking) -> str:
    """`Ranking.as_dict` as indented JSON; the same bytes for the same tables, wherever and whenever they are ranked."""
    return json.dumps(ranking.as_dict(), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def ranking_csv(ranking: Ranking) -> str:
    """One row a candidate and value, numbers in full; empty where there is nothing to say."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for s in ranking.standings:
        for score in s.scores:
            c = s.versus(score.metric, score.name)
            versus: tuple[object, ...] = (None,) * 8
            if c:
                versus = (c.other, c.difference, c.low, c.high, c.p, c.p_holm, c.smallest_detectable, outcome(c))
            cells = (
                s.best_rank, s.worst_rank, s.candidate, s.kind, score.metric, score.name,
                ranking.directions[score.metric], score.value, score.low, score.high, *versus, ranking.n,
                ranking.signatures[score.metric],
            )  # fmt: skip
            writer.writerow([_plain(cell) for cell in cells])
    return file.getvalue()


def _plain(value: object) -> str:
    if value is None or (isinstance(value, float) and number(value) == ABSENT):
        return ""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


# -------------------------------------------------------------------------------------------------------- the terminal


def terminal(ranking: Ranking) -> str:
    """The report for a terminal."""
    drawn = [(panel, panel.drawn_by(Pen.TEXT)) for panel in panels(ranking)]
    drawn.sort(key=lambda one: any(isinstance(b, Sentences) and b.kind == "note" for b in one[1]))
    texts = []
    for panel, blocks in drawn:
        # The verdict is one paragraph with what belongs under it; other titles are left to the tables' captions.
        head = [wrapped([panel.title])] if panel.level == 1 else []
        texts.append(
            "\n".join([*head, *filter(None, map(_text, blocks))])
            if head
            else "\n\n".join(filter(None, map(_text, blocks)))
        )
    return "\n\n".join(filter(None, texts))


def _text(block: Block) -> str:
    match block:
        case Sentences(texts, kind):
            before = "Note: " if kind == "note" else ""
            return wrapped([f"{before}{text}" for text in texts], {"note": "      ", "list": "  "}.get(kind, ""))
        case Table():
            columns, rows = visible(block, Pen.TEXT)
            if not rows:
                return ""
            cells = [[_named(c.head, 18) for c in columns], *([_named(cell, 34) for cell in row] for row in rows)]
            left = sum(c.kind in ("text", "name", "wide", "code") for c in columns)
            table = aligned(cells, left)
            if block.breaks_at and max(map(cell_len, table.splitlines())) > WIDTH:
                first, then = (
                    [row[: block.breaks_at] for row in cells],
                    [[row[0], *row[block.breaks_at :]] for row in cells],
                )
                table = f"{aligned(first, left)}\n\n{aligned(then, left)}"
            parts = (wrapped([block.caption]) if block.caption else "", table, wrapped(block.notes, "  "))
            return "\n".join(filter(None, parts))
        case Facts(pairs):
            return aligned([list(pair) for pair in pairs], 2)
    return ""


def _named(cell: Cell, limit: int) -> str:
    return name(cell.text, limit) if isinstance(cell, Name) else str(cell or "")


def visible(table: Table, pen: Pen) -> tuple[list[Column], list[list[Cell]]]:
    """The columns and rows that a pen draws: those that are its own, and what other tables say only on the page."""
    kept = [i for i, column in enumerate(table.columns) if pen in column.pens]
    rows = [row for i, row in enumerate(table.rows) if pen is Pen.HTML or i not in table.strong]
    return [table.columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows as columns two spaces apart, the first `left` of them flush left, the others right; as wide as they look."""
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        gaps = [" " * (w - cell_len(cell)) for w, cell in zip(widths, row, strict=True)]
        cells = [c + g if i < left else g + c for i, (c, g) in enumerate(zip(row, gaps, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def wrapped(paragraphs: Sequence[str], indent: str = "") -> str:
    """Paragraphs folded to the width of the terminal, their further lines indented."""
    return "\n".join(textwrap.fill(p, WIDTH, subsequent_indent=indent, break_on_hyphens=False) for p in paragraphs)


# ------------------------------------------------------------------------------------------------------------ Markdown


def report_md(ranking: Ranking) -> str:
    """The report as Markdown: what a README or an issue quotes."""
    return "\n\n".join(text for panel in panels(ranking) for text in markdown(panel)) + "\n"


def evaluation_md(ranking: Ranking, candidate: str) -> tuple[str, str]:
    """For a model card: the verdict on one candidate as plain text, and as Markdown every value beside its base.

    Raises KeyError where the candidate is not among the ranked ones.
    """
    panel = evaluation_panel(ranking, candidate)
    return panel.title, "\n\n".join(text for block in panel.blocks for text in _markdown(block))


def markdown(panel: Panel) -> Iterator[str]:
    """A panel's title and blocks; nothing where no block is for Markdown."""
    texts = [text for block in panel.drawn_by(Pen.MARKDOWN) for text in _markdown(block)]
    notes = all(text.startswith(">") for text in texts)  # they stand under the verdict, without a title of their own
    if panel.level == 1 or (texts and not notes):
        yield f"{'#' * panel.level} {escaped(panel.title)}"
    yield from texts


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case Sentences(texts, kind):
            lines = list(map(escaped, texts))
            if kind == "list" and lines:
                yield "\n".join(f"* {line}" for line in lines)
            else:
                yield from (f"> **Note:** {line}" if kind == "note" else line for line in lines)
        case Table():
            columns, rows = visible(block, Pen.MARKDOWN)
            if rows:
                cells = [[_named(c.head, 60) for c in columns], *([_named(cell, 60) for cell in row] for row in rows)]
                yield from [escaped(block.caption)] if block.caption else []
                yield table_md(cells)
                yield from ["\n".join(f"* {escaped(note)}" for note in block.notes)] if block.notes else []
        case Facts(pairs):
            yield table_md([["", ""], *map(list, pairs)])


def table_md(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table, the first of them its head; every cell is escaped."""
    head, *body = (f"| {' | '.join(map(escaped, row))} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *body])


def escaped(text: str) -> str:
    """Text that stays text in Markdown, whatever a candidate is called."""
    one_line = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))
    return one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
