"""The three pens (the terminal's text, Markdown, the page), the ranking for machines, and the report's files.

The page is whole: font, data and our own script lie inside, and it asks for nothing. What comes from outside is text.
"""

import base64
import hashlib
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from rich.cells import cell_len

from bnbench import __version__
from bnbench.data.files import csv_text
from bnbench.errors import RunError, UsageError, require
from bnbench.plot import forest_svg, png_of
from bnbench.progress import storable
from bnbench.records import Run, alone, packed, read_run, write_text
from bnbench.reports import panels
from bnbench.reports.gates import Gate, parse_gates
from bnbench.reports.language import Catalogue, language, spoken
from bnbench.reports.panels import TEMPLATES, Block, Cell, Column, Name, Pen, Replies, Sentences, Table
from bnbench.reports.people import Agreement
from bnbench.reports.ranking import RESAMPLES, Ranking, rank
from bnbench.reports.values import ABSENT, FLAG, items_of, legend, name, shown_values, value_of
from bnbench.reports.verdict import held_against, outcome, verdict, verdict_on, warnings

if TYPE_CHECKING:
    from jinja2 import Environment

WIDTH = 110
Say = Callable[[str], str]  # says a text of the report in its language: a catalogue, or `str` for English


@dataclass(frozen=True)
class Report:
    """A ranking as people read it: printed, shown by a notebook, or as a page (`html`, once files were written)."""

    ranking: Ranking
    html: Path | None = None
    say: Say = str
    gates: tuple[Gate, ...] = ()

    def __str__(self) -> str:
        """For a terminal; warnings stand last, where its reader looks first."""
        texts, notes, say = list[str](), list[str](), self.say
        told = panels.panels(self.ranking, Pen.TEXT)
        for panel, blocks in spoken(told, say) if isinstance(say, Catalogue) else told:
            shown = list(filter(None, (_text(block, say("Note:")) for block in blocks)))
            # The verdict is one paragraph with what belongs under it; other titles are left to the tables' captions.
            text = "\n".join([wrapped([panel.title]), *shown]) if panel.level == 1 else "\n\n".join(shown)
            (notes if any(isinstance(b, Sentences) and b.kind == "note" for b in blocks) else texts).append(text)
        return storable("\n\n".join(filter(None, [*texts, *notes])))

    def _repr_html_(self) -> str:
        return report_html(self.ranking, self.say, is_fragment=True)


def write_report(
    runs: Sequence[Run], folder: Path, *, resamples: int = RESAMPLES, audits: Path | None = None,
    primary: str | None = None, groups: Mapping[str, Sequence[str]] | None = None, fail_if: Sequence[str] = (),
    lang: str = "en", overwrite: bool = False, also: Callable[[Report], object] | None = None,
) -> Report:  # fmt: skip
    """Ranks the candidates of the runs and writes ranking.json, ranking.csv, report.md and report.html into `folder`.

    The same tables give the same bytes of ranking.json. `audits` is a file of further audits, `primary` ranks instead
    of the declared metric, `groups` are those of `rank`, `fail_if` the texts of gates; `lang` is what people read it
    in, en or bn. A folder that is none of the runs' gets runs.json, which says whose report it has: one with a run, or
    a report on other runs, is refused by a RunError unless `overwrite`. `also` writes more while the folder is locked.
    Raises as `rank`, `parse_gates` and `language` do, and that after them, before anything is written.
    """
    say = str if lang == "en" else language(lang)
    with alone(folder):
        ranking = rank(runs, resamples=resamples, audits=audits, primary=primary, groups=groups)
        kinds = {e.name: e.record.kind for e in ranking.entries}
        gates = parse_gates(fail_if, ranking.values, kinds) if fail_if else ()
        held = json.dumps(sorted((run.record.created, run.record.name) for run in runs), ensure_ascii=False) + "\n"
        is_own, path = [run.path for run in runs] == [folder], folder / "runs.json"
        taken = [name for name in ("run.json", "ranking.json", "report.html") if (folder / name).exists()]
        if taken and not (is_own or overwrite or (path.is_file() and path.read_text(encoding="utf-8") == held)):
            what = "a run" if taken[0] == "run.json" else "a report on other runs"
            raise RunError(f"{folder} holds {what}. Name another --out, or start anew with --overwrite")
        if not (is_own or taken):
            with alone(folder, ("runs.json",), dry=True):
                pass
        files = {
            **({} if is_own else {"runs.json": held}),  # first: a command that is killed here can be given again
            "ranking.json": json.dumps(ranking.as_dict(), ensure_ascii=False, indent=2, allow_nan=False) + "\n",
            "ranking.csv": ranking_csv(ranking),
            "report.md": report_md(ranking, say),
            "report.html": report_html(ranking, say),
        }
        for file, text in files.items():
            write_text(folder / file, storable(text))
        report = Report(ranking, folder / "report.html", say, gates)
        if also:
            also(report)
    return report


def check_forest(path: Path) -> None:
    """UsageError for a forest plot that is neither .svg nor .png, or a PNG that nothing here can make."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--forest {path}: name a file that ends in .svg or .png")
    if path.suffix == ".png":
        require("resvg_py", extra="plot")


def write_forest(ranking: Ranking, path: Path, say: Say = str) -> None:
    """Writes the ranking on the primary value as a forest plot, .svg or .png; raises as `check_forest`."""
    check_forest(path)
    value, rows = value_of(ranking), []
    for s in ranking.standings:
        score = s.scores[0]
        text = f"{value.number(score.value)} {value.interval(score)}"
        rows.append((name(s.candidate, 40), (score.low, score.value, score.high), text))
    base = next((s.scores[0].value for s in ranking.standings if s.candidate == ranking.base), None)
    way = "higher" if value.higher_is_better else "lower"
    label = say(f"{value.label} ({way} is better), 95 % intervals, n = {ranking.n}")
    svg = storable(forest_svg(rows, label, base if rows[1:] else None))
    write_text(path, png_of(svg) if path.suffix == ".png" else svg + "\n")


def ranking_csv(ranking: Ranking) -> str:
    """One row a candidate and value, numbers in full; empty where there is nothing to say."""
    rows = list[dict[str, object]]()
    for s in ranking.standings:
        for score in s.scores:
            metric, c = score.metric, s.versus(score.metric, score.name)
            rows.append({
                "rank_best": s.best_rank, "rank_worst": s.worst_rank, "candidate": s.candidate, "kind": s.kind,
                "metric": metric, "value": score.name, "higher_is_better": str(ranking.directions[metric]).lower(),
                "score": score.value, "low": score.low, "high": score.high, "compared_with": c and c.other,
                "difference": c and c.difference, "difference_low": c and c.low, "difference_high": c and c.high,
                "p": c and c.p, "p_holm": c and c.p_holm, "smallest_detectable": c and c.smallest_detectable,
                "outcome": c and outcome(c), "n": len(ranking.items[metric]), "signature": ranking.signatures[metric],
            })  # fmt: skip
    kept = ([None if isinstance(x, float) and not math.isfinite(x) else x for x in row.values()] for row in rows)
    return csv_text([[*rows[0]], *kept])


def people_report(folder: Path, *, resamples: int = RESAMPLES) -> tuple[Agreement, str]:
    """How far people agree on a run, what they gave, which metrics agree, and that as a text; UsageError if unrated."""
    ranking = rank([read_run(folder)], resamples=resamples)
    blocks = [block for panel in panels.people_panel(ranking) for block in panel.blocks if Pen.TEXT in block.pens]
    return panels.agreement_on(ranking), storable("\n\n".join(map(_text, blocks)))


def visible(table: Table, pen: Pen) -> tuple[list[Column], list[list[Cell]]]:
    """The columns and rows that a pen draws: those that are its own, and what other tables say only on the page."""
    kept = [i for i, column in enumerate(table.columns) if pen in column.pens]
    rows = [row for i, row in enumerate(table.rows) if pen is Pen.HTML or i not in table.strong]
    return [table.columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _cells(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], limits: tuple[int, int]) -> list[list[str]]:
    """Heads and cells as text, names of candidates fitted into these limits."""
    lines = [([c.head for c in columns], limits[0]), *((row, limits[1]) for row in rows)]
    return [[name(x.text, limit) if isinstance(x, Name) else str(x or "") for x in line] for line, limit in lines]


def _text(block: Block, note: str = "Note:") -> str:
    match block:
        case Sentences(texts, kind):
            before = f"{note} " if kind == "note" else ""
            return wrapped([f"{before}{text}" for text in texts], {"note": "      ", "list": "  "}.get(kind, ""))
        case Table():
            columns, rows = visible(block, Pen.TEXT)
            if rows:
                cells, at = _cells(columns, rows, (15, 34)), block.breaks_at
                left = sum(c.kind in ("text", "name", "wide", "code") for c in columns)
                table = aligned(cells, left)
                if at and max(map(cell_len, table.splitlines())) > WIDTH:
                    below = aligned([[row[0], *row[at:]] for row in cells], left)
                    table = f"{aligned([row[:at] for row in cells], left)}\n\n{below}"
                return "\n".join(filter(None, (wrapped([block.caption]), table, wrapped(block.notes, "  "))))
    return ""


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows as columns two spaces apart, the first `left` of them flush left, the others right; as wide as they look."""
    widths, lines = [max(map(cell_len, column)) for column in zip(*rows, strict=True)], []
    for row in rows:
        gaps = [" " * (w - cell_len(cell)) for w, cell in zip(widths, row, strict=True)]
        cells = [c + g if i < left else g + c for i, (c, g) in enumerate(zip(row, gaps, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def wrapped(paragraphs: Sequence[str], indent: str = "") -> str:
    """Paragraphs folded to the width of the terminal, further lines indented; never between a number and its %."""
    whole = (p.replace(" %", "\xa0%") for p in paragraphs)
    lines = "\n".join(textwrap.fill(p, WIDTH, subsequent_indent=indent, break_on_hyphens=False) for p in whole)
    return lines.replace("\xa0", " ")


def report_md(ranking: Ranking, say: Say = str) -> str:
    """The report as Markdown: what a README or an issue quotes."""
    found, told = list[str](), panels.panels(ranking, Pen.MARKDOWN)
    for panel, blocks in spoken(told, say) if isinstance(say, Catalogue) else told:
        texts = [text for block in blocks for text in _markdown(block, say("Note:"))]
        # Notes stand under the verdict without a title.
        if panel.level == 1 or any(not text.startswith(">") for text in texts):
            found.append(f"{'#' * panel.level} {escaped(panel.title)}")
        found += texts
    return "\n\n".join(found) + "\n"


def evaluation_md(ranking: Ranking, candidate: str) -> tuple[str, str]:
    """For a model card: the verdict on one candidate (KeyError of another), as Markdown every value beside its base."""
    standing, values = {s.candidate: s for s in ranking.standings}[candidate], shown_values(ranking)
    said = held_against(ranking, standing, verdict_on(ranking, standing))
    table, (flags, zeros) = panels.metrics_table(ranking, standing, values), legend(ranking, values)
    # No other table here has the primary value: every row stands.
    blocks: list[Block] = [Sentences(said.details), Sentences(warnings(ranking), "note")]
    blocks += [Table(table.columns, table.rows), Sentences([*flags, *zeros])]
    return said.headline, "\n\n".join(text for block in blocks for text in _markdown(block))


def _markdown(block: Block, note: str = "Note:") -> Iterator[str]:
    match block:
        case Sentences(texts, kind):
            lines = [{"list": "* ", "note": f"> **{note}** "}.get(kind, "") + escaped(text) for text in texts]
            yield from ["\n".join(lines)] if kind == "list" and lines else lines
        case Table():
            columns, rows = visible(block, Pen.MARKDOWN)
            if rows:
                yield from [escaped(block.caption)] if block.caption else []
                yield table_md(_cells(columns, rows, (60, 60)))
                yield from ["\n".join(f"* {escaped(note)}" for note in block.notes)] if block.notes else []


def table_md(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table, the first of them its head; every cell is escaped."""
    head, *body = (f"| {' | '.join(map(escaped, row))} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *body])


def escaped(text: str) -> str:
    """Text that stays text in Markdown, whatever a candidate is called."""
    one_line = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))
    return one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def report_html(ranking: Ranking, say: Say = str, *, is_fragment: bool = False) -> str:
    """The whole page; or its ranking and metrics, for a notebook, which has a style of its own."""
    told, said, lang = panels.panels(ranking, Pen.HTML), verdict(ranking), "en"
    if isinstance(say, Catalogue):
        told, said, lang = spoken(told, say), spoken(said, say), say.code
    # The numbers that matter most: label, number, and what belongs to it in small.
    primary, first = value_of(ranking), ranking.standings[0].scores[0]
    ends = f"{primary.number(first.low)} to {primary.number(first.high)}" if ranking.dialogues > 1 else ABSENT
    facts = [
        ("Items", f"{ranking.n:,}", items_of(ranking).partition(" in ")[2] or "answered by all"),
        ("Candidates", str(len(ranking.standings)), ""),
        (f"Best {primary.label}" if ranking.pairs else primary.label, primary.number(first.value), ends),
    ]
    versus = [c for s in ranking.standings if (c := s.versus(primary.metric, primary.name))]
    least = sorted(c.smallest_detectable for c in versus if c.smallest_detectable > 0)
    if least and ranking.dialogues > 1:
        span = dict.fromkeys(primary.number(x) for x in (least[0], least[-1]))
        facts.append(("Detectable difference", "–".join(span), primary.label))
    drawn = [(p, [(type(b).__name__.lower(), b) for b in blocks]) for p, blocks in told if blocks]
    listed = next((block for _, blocks in drawn for _, block in blocks if isinstance(block, Replies)), None)
    data = ""
    if listed and not is_fragment:
        # What the script lists, beside the files of the runs: of each candidate its run and what it is called there, of
        # each item its id, gain, and each reply's score and flags in this order.
        of = {entry.name: entry.replies for entry in ranking.entries}
        found = {id(r): (at, c) for at, run in enumerate(ranking.runs) for c, r in run.replies.items()}
        items = [
            [x.message["id"], x.gain, x.shown_gain, [s for _, _, s, _ in x.replies], [f for *_, f in x.replies]]
            for x in listed.items
        ]
        places = [[name(who), *found[id(of[who])]] for who, *_ in listed.items[0].replies]
        data = packed(ranking.runs, {"unit": listed.unit, "names": places, "items": items})
    return page(
        "report", is_fragment=is_fragment, data=data, said=said, lang=lang, say=say,
        facts=facts, runs=[run.record.name for run in ranking.runs], panels=drawn,
        visible=lambda table: visible(table, Pen.HTML), version=__version__,
    )  # fmt: skip


def page(template: str, **parts: Any) -> str:
    """A page from a template with the style and the script of its name; text in `parts` stays text, whatever it is."""
    style, script = ((TEMPLATES / f"{template}.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    for font in set(re.findall(r"url\((\S+\.woff2)\)", style)):
        inside = base64.b64encode((TEMPLATES / font).read_bytes()).decode()
        style = style.replace(font, f"data:font/woff2;base64,{inside}")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made = templates().get_template(f"{template}.html.j2")
    return storable(made.render(**parts, style=Markup(style), script=Markup(script), script_hash=digest))


@cache
def templates() -> "Environment":
    """The files of templates/, which escape whatever is put into them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    how: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), **how)
    environment.filters |= {"cell": _cell, "name": _name, "svg": Markup, "pc": "{:.2f}%".format}
    return environment


def _cell(cell: Cell, column: Column) -> Markup:
    """What stands in a cell of a table, all but drawings."""
    if isinstance(cell, Name):
        return _name(cell.text) + (Markup("<small>{}</small>").format(cell.note) if cell.note else "")
    text = str(cell or "")
    if column.kind == "outcome" and text:
        kind = {"▲": "better", "▼": "worse"}.get(text[0], "open")
        return Markup('<span class="outcome {}">{}</span>').format(kind, text)
    if column.kind in ("interval", "code"):
        return Markup("<{0}>{1}</{0}>").format("small" if column.kind == "interval" else "code", text)
    # An estimate's interval, and the flag of a label, stand out from what they belong to.
    value, sign, interval = text.partition(" [")
    if sign and column.kind == "number":
        return Markup("{} <small>[{}</small>").format(value, interval)
    if text.endswith(FLAG):
        return Markup('{}<span class="worse">{}</span>').format(text.removesuffix(FLAG), FLAG)
    return escape(text)


def _name(text: str, limit: int = 60) -> Markup:
    return Markup('<bdi title="{}">{}</bdi>').format(name(text, 400), name(text, limit))
