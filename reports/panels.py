"""The sections of a report: each is a function from the ranking to panels, which the pens of `render` draw.

A panel is a title and blocks (tables, sentences …). To add one, write one function and name it in `PANELS`.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bnbench.metrics.address import address_of
from bnbench.metrics.audit.findings import Estimate, Trust, read_audits, sentence, short_name
from bnbench.metrics.combined import weighted
from bnbench.plot import Axis, Span, loss_svg
from bnbench.records import Generation, TrainingSummary
from bnbench.reports import values
from bnbench.reports.people import CRITERIA, Agreement, agreement
from bnbench.reports.ranking import ALPHA, Comparison, Ranking, Score, Standing, alike, compare
from bnbench.reports.values import ABSENT, FLAG, NOT_INFORMATIVE, Value, counted, name, number, p_value, value_of
from bnbench.reports.verdict import Outcome, listed, outcome, subject, verdict, warnings

TEMPLATES = Path(__file__).parent / "templates"
_FACTS = cache(lambda: tomllib.loads((TEMPLATES / "facts.toml.j2").read_text(encoding="utf-8")))
_DETAILED = 3  # as many candidates get a table of their own in the terminal; more share a compact one
_EXTREMES = 2  # gains, and losses, that are shown
_SLICED = 6  # candidates that have a column in the table of slices
_FEWEST = 8  # items that a slice has at least
_BESIDE = 2  # candidates beside the reference; the others are folded away
_MARKS = {True: "▲ better", False: "▼ worse", None: "· open"}  # a sign and a word: neither colour nor sign is needed
_FLAGS = ("empty", "cut", "replacement", "template", "loop", "wrong_script", "copy")


class Pen(Flag):
    """Who draws: the terminal, Markdown (report.md and model cards), the page."""

    TEXT = auto()
    MARKDOWN = auto()
    HTML = auto()
    WRITTEN = MARKDOWN | HTML
    ALL = TEXT | MARKDOWN | HTML


@dataclass(frozen=True)
class Name:
    """A candidate's name, which each pen fits into its own space."""

    text: str
    note: str = ""  # in small under it, on the page
    is_ours: bool = False  # that of a yardstick or a sentinel, which another language has a word for


@dataclass(frozen=True)
class Bar:
    """An interval to be drawn, in per cent of the width, before a guide and the best yardstick (`floor`); in words."""

    span: Span
    guide: float | None
    outcome: Outcome
    told: str
    hollow: bool = False
    floor: float | None = None


Cell = str | Name | Bar | None


@dataclass(frozen=True)
class Column:
    """A column of a table. Its kind says how its cells lie and look."""

    head: str | Name
    kind: Literal["number", "interval", "outcome", "bar", "text", "wide", "name", "code"] = "number"
    pens: Pen = Pen.ALL


_WHO = Column("candidate", "name")
_ENDS, _OUTCOME = Column("95 %", "interval"), Column("", "outcome")


@dataclass(frozen=True)
class Table:
    """A table and the notes under it."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    aside: str = ""  # the caption's short form
    notes: tuple[str, ...] = ()
    strong: tuple[int, ...] = ()  # rows that repeat another table: the page marks them, the other pens leave them out
    breaks_at: int = 0  # columns from here on stand in a table below where a line has no room
    is_open: bool | None = None  # the page folds a table unless this is None
    pens: Pen = Pen.ALL


@dataclass(frozen=True)
class Sentences:
    """Paragraphs, a list, small print (lead), warnings (note), our heading, the user's name, or something to copy."""

    texts: Sequence[str]
    kind: Literal["plain", "list", "lead", "note", "copy", "code", "heading", "name"] = "plain"
    pens: Pen = Pen.ALL


@dataclass(frozen=True)
class Facts:
    """Labels and what is to be said of each."""

    pairs: Sequence[tuple[str, str]]
    pens: Pen = Pen.HTML


@dataclass(frozen=True)
class Intervals:
    """Intervals over one axis, the best first: who and rank, score, interval, drawing; `ticks` are places and texts."""

    bars: tuple[tuple[Name, str, str, Bar | None], ...]
    ticks: tuple[tuple[float, str], ...]
    caption: str
    pens: Pen = Pen.HTML


@dataclass(frozen=True)
class Drawing:
    """SVG of our own, from numbers alone."""

    svg: str
    caption: str
    pens: Pen = Pen.HTML


@dataclass(frozen=True)
class Item:
    """One message with all that was answered to it."""

    number: int
    message: Mapping[str, str]
    replies: Sequence[tuple[str, Generation, str, Sequence[str]]]  # who, what, its own primary value, its flags
    flags: Sequence[str]  # of any reply
    gain: float | None  # focus minus base, turned so that more is better
    shown_gain: str


@dataclass(frozen=True)
class Replies:
    """Messages with all replies to each, some of which are shown first."""

    chosen: Sequence[tuple[str, Item]]  # a heading, and one of the items
    items: Sequence[Item]
    unit: str  # of their scores
    beside: int  # so many replies stand beside each other; the others are folded away
    pens: Pen = Pen.HTML


Block = Table | Sentences | Facts | Intervals | Drawing | Replies


@dataclass(frozen=True)
class Panel:
    """One section. `anchor` is its name on the page and `link` its word in the page's list of sections."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    link: str = ""
    level: int = 2


def panels(ranking: Ranking, pen: Pen) -> list[tuple[Panel, list[Block]]]:
    """All panels of a report, in order, with the blocks that this pen draws; none where it leaves the panel out."""
    every = (panel for section in PANELS for panel in section(ranking))
    return [(panel, [block for block in panel.blocks if pen in block.pens]) for panel in every]


def verdict_panel(ranking: Ranking) -> Iterator[Panel]:
    """What the primary metric says, which the page has in its head, and warnings."""
    said = verdict(ranking)
    yield Panel("verdict", said.headline, (Sentences(said.details, pens=Pen.TEXT | Pen.MARKDOWN),), level=1)
    if notes := warnings(ranking):
        yield Panel("notes", "⚠ Read this first", (Sentences(notes, "note"),))


def ranking_panel(ranking: Ranking) -> Iterator[Panel]:
    """Places, scores, and differences to the base on the primary value."""
    primary, several, pairs = value_of(ranking), len(ranking.standings) > 1, len(ranking.pairs)
    bases = {s.compared_with for s in ranking.standings if s.compared_with}
    has_base = len(bases) > 1 or any(s.kind == "base" for s in ranking.standings)
    over = f"{values.items_of(ranking)}, {'95 % bootstrap intervals' if ranking.dialogues > 1 else 'no interval'}"
    way = "higher" if primary.higher_is_better else "lower"
    lost = all(ranking.unpassed(s.candidate, primary.metric) for s in ranking.standings)
    label = f"{primary.flagged} {NOT_INFORMATIVE}" if lost else primary.flagged
    columns = [Column("rank", "text"), _WHO, Column(label), _ENDS]
    if several:
        columns += _of_difference(f"Δ to {'base' if has_base else name(ranking.base, 20)}", pairs > 1)
        columns += [Column("compared with", "name", Pen.WRITTEN)] if len(bases) > 1 else []
    columns.append(Column("Cut at the limit", pens=Pen.HTML))
    rows: list[list[Cell]] = []
    for s in ranking.standings:
        score, c = s.scores[0], s.versus(primary.metric, primary.name)
        row: list[Cell] = ["–".join(dict.fromkeys(map(str, (s.best_rank, s.worst_rank)))), Name(s.candidate, s.kind)]
        row += [primary.number(score.value), primary.interval(score), *(_difference(c, primary) if several else ())]
        row += [Name(s.compared_with) if s.compared_with else ""] if len(bases) > 1 else []
        rows.append([*row, ABSENT if s.hit_limit_share is None else f"{100 * s.hit_limit_share:.1f} %"])
    least = f"after Holm’s correction over all {pairs} pairs is 0.05 or more" if pairs > 1 else "is 0.05 or more"
    [(_, how)] = facts("ranks", these="one item" if ranking.n == 1 else f"these {ranking.n} items", least=least)
    about = f"The primary metric, {ranking.declared}: {ranking.descriptions[primary.metric]}."
    table = Table(columns, rows, f"{primary.label}, the primary metric ({way} is better), {over}", "Ranking")
    first, last = (Sentences(texts, "lead", Pen.HTML) for texts in ((about,), (how,) if several else ()))
    # What yardsticks score, and whom the verdict speaks of against them.
    who, made_by = subject(ranking).candidate, "replies that no candidate gave, without a rank (p unadjusted)"
    columns = [Column("yardstick", "name"), Column(primary.label), _ENDS, *_of_difference(f"Δ of {name(who, 12)}")]
    rows = []
    for y in (y for y in ranking.yardsticks if primary.metric in y.scores):
        score, versus = y.scores[primary.metric], _difference(y.versus[who].get(primary.metric), primary)
        rows.append([Name(y.label, is_ours=True), primary.number(score.value), primary.interval(score), *versus])
    below = [Table(columns, rows, f"Yardsticks on {primary.label}: {made_by}", "Yardsticks")] if rows else []
    blocks: list[Block] = [first, _intervals(ranking, primary), table, *below, last]
    yield Panel("ranking", f"Ranking on {primary.label}", blocks, "Ranking")


def _intervals(ranking: Ranking, primary: Value) -> Intervals:
    several = len(ranking.standings) > 1
    rows: list[tuple[str, str, Score, Outcome, bool]] = []
    for s in ranking.standings:
        c, is_base = s.versus(primary.metric, primary.name), s.compared_with is None and several
        role = (" · base" if s.kind == "base" else " · compared with") if is_base else ""
        note = f"rank {'–'.join(dict.fromkeys(map(str, (s.best_rank, s.worst_rank))))}{role}"
        rows.append((s.candidate, note, s.scores[0], outcome(c) if c else "open", is_base))
    # Beside the reference nobody could be told from another: it is not drawn.
    floors = [y for y in ranking.yardsticks if primary.metric in y.floor_of]
    rows += [(y.label, "yardstick", y.scores[primary.metric], "open", True) for y in floors]
    # All over one axis, in per cent of its width, so that one drawing fits a phone and a wall. Ends that are not finite
    # fall on the point, as of one item; a point that is not finite is not drawn.
    spans = [(x.low, x.value, x.high) for _, _, x, _, _ in rows]
    spans = [span if all(map(math.isfinite, span)) else (span[1], span[1], span[1]) for span in spans]
    axis = Axis.over((x for span in spans if math.isfinite(span[1]) for x in span), 3.0, 97.0, room=0.04)
    marks, decimals = axis.ticks(4, (1, 2, 2.5, 5, 10))
    drawn = [(axis.at(a), axis.at(b), axis.at(c)) if math.isfinite(b) else None for a, b, c in spans]
    at_base = [b[1] for s, b in zip(ranking.standings, drawn, strict=False) if s.candidate == ranking.base and b]
    guide = at_base[0] if at_base and several else None
    best = max if primary.higher_is_better else min
    floor, bars = best((b[1] for b in drawn[len(ranking.standings) :] if b), default=None), []
    for (who, note, score, kind, is_hollow), span in zip(rows, drawn, strict=True):
        shown, ends = primary.number(score.value), primary.interval(score)
        told = f"{name(who)}: {primary.label} {shown}, 95 % {ends}, {note.partition(' ·')[0]}"
        bar = Bar(span, guide, kind, told, is_hollow, floor) if span else None
        bars.append((Name(who, note, note == "yardstick"), shown, ends, bar))
    caption = (
        f"{primary.label}, {'higher' if primary.higher_is_better else 'lower'} is better. Dots are the scores over all "
        "items, lines their 95 % intervals"
    )
    if guide is not None:
        caption += (
            f"; the dashed line is the score of {name(ranking.base)}. Intervals of two candidates may overlap where "
            "their difference is clear, because differences are taken item by item: read the Δ below"
        )
    caption += "; the dotted line is the best yardstick, below which a score says nothing" if floor is not None else ""
    return Intervals(tuple(bars), tuple((axis.at(x), number(x, decimals)) for x in marks), f"{caption}.")


def yardsticks_panel(ranking: Ranking) -> Iterator[Panel]:
    """What yardsticks score on every metric, and whether that tells a reply to the message from one to another."""
    if not ranking.yardsticks:
        return
    rows: list[list[Cell]] = []
    notes = [f"{y.name}: {y.label}{f' – {name(y.text, 600)}' if y.text else ''}" for y in ranking.yardsticks]
    for v in (value_of(ranking, metric) for metric in ranking.values):
        scores, t = [y.scores.get(v.metric) for y in ranking.yardsticks], ranking.telling.get(v.metric)
        told = [ABSENT, "", ""]
        if t:
            of = "halves" if "references" in ranking.metrics[v.metric].needs else "replies"
            told = [_estimate(t), of, "▲ tells" if t.low > 0.5 else "▼ misleads" if t.high < 0.5 else "· cannot tell"]
        rows.append([v.flagged, v.arrow, *(v.number(x.value if x else None) for x in scores), *told])
        level = [y.label for y in ranking.yardsticks[1:] if v.metric in y.scores and v.metric not in y.floor_of]
        notes += [f"{v.label}: the reference itself is not certainly better than {listed(level)}"] if level else []
    columns = [Column("", "text"), Column("", "text"), *(Column(y.name) for y in ranking.yardsticks)]
    columns += [Column("AUC"), Column("of", "interval"), _OUTCOME]
    [(_, lead)] = facts("yardsticks")
    caption = "What the metrics can tell here: yardsticks, and whether a reply that belongs is told from another item’s"
    table = Table(columns, rows, caption, "Yardsticks on every metric")
    blocks = (Sentences((lead,), "lead", Pen.WRITTEN), table, Sentences(notes, "list", Pen.WRITTEN))
    yield Panel("yardsticks", "What the scores can tell here", blocks, "Yardsticks")


def _of_difference(head: str, is_adjusted: bool = False) -> list[Column]:
    """The columns of what `_difference` gives."""
    return [Column(head), _ENDS, Column("p (Holm)" if is_adjusted else "p"), _OUTCOME]


def _difference(c: Comparison | None, value: Value) -> list[Cell]:
    """Difference, interval, p (adjusted where it is) and outcome."""
    if c is None:
        return ["", "", "", ""]
    p = p_value(c.p if c.p_holm is None else c.p_holm)
    return [value.number(c.difference, sign=True), value.interval(c), p, _MARKS[c.better]]


def combined_panel(ranking: Ranking) -> Iterator[Panel]:
    """The combined score beside its parts, and how much of its order hangs on the weights."""
    if (made := ranking.combined) is None:
        return
    of = next(m.name for m in ranking.metrics.values() if m.parts)
    value, several = value_of(ranking, of), len(made.scores) > 1
    parts, columns = [value_of(ranking, part) for part in made.weights], [_WHO, Column(of), _ENDS]
    columns += [*_of_difference("Δ")[:-1], Column("outcome", "outcome")] if several else []
    rows: list[list[Cell]] = []
    for s in map({s.candidate: s for s in ranking.standings}.__getitem__, made.scores):
        score, c = s.score(of, of), s.versus(of, of)
        assert score is not None  # only candidates with every part are here
        row: list[Cell] = [Name(s.candidate), value.number(score.value), value.interval(score)]
        row += _difference(c, value) if several else []
        rows.append([*row, *(part.number(s.value(part.metric, part.name)) for part in parts)])
    told = f"{of} = {weighted(made.weights)}, each on 0–100; the weights were declared before the run."
    told += " p is unadjusted." if ranking.pairs and ranking.primary != of else ""
    notes, own = (told, *made.stability(lambda who: name(who, 34))), len(columns)
    columns += [Column(part.label) for part in parts]
    table = Table(columns, rows, "Combined score (higher is better)", notes=notes, breaks_at=own)
    lead = Sentences(("It hides what its parts show: read them beside it.",), "lead", Pen.HTML)
    yield Panel("combined", "Combined score", (lead, table), "Combined score")


def metrics_panel(ranking: Ranking) -> Iterator[Panel]:
    """Every candidate on every value, item by item against its base; one alone only has its scores."""
    every, many = values.shown_values(ranking), len(ranking.standings) > _DETAILED
    compared, lead = [s for s in ranking.standings if s.versus_base], "↑ higher is better, ↓ lower is better."
    if compared:
        is_declared = ranking.declared.startswith("declared")
        only = "Only the primary metric was declared beforehand" if is_declared else "The primary metric alone ranks"
        lead = (
            "Differences are paired: both answered the same items. In the drawings right is always better; each metric "
            f"has its own scale. {lead} {only}"
            f"{' (its p is Holm-adjusted)' if len(ranking.pairs) > 1 else ''}; p of the others is unadjusted."
        )
    blocks: list[Block] = [Sentences((lead,), "lead", Pen.HTML)]
    pens = Pen.WRITTEN if many or not compared else Pen.ALL
    for place, s in enumerate(compared or ranking.standings):
        blocks.append(metrics_table(ranking, s, every, pens, place < 2 if len(compared) > 1 else None))
    # The terminal shows many candidates five at a time, values down; what has a panel of its own is not repeated.
    below = [v for v in every if not v.has_own_panel]
    marks = "; ▲ better, ▼ worse than its base, p < 0.05 unadjusted" if len(ranking.standings) > 1 else ""
    for start in range(0, len(ranking.standings) if below and (many or not compared) else 0, 5):
        standings = ranking.standings[start : start + 5]
        rows: list[list[Cell]] = []
        for v in below:
            cells = []
            for s in standings:
                c = s.versus(v.metric, v.name)
                sign = " " if c is None or c.better is None else _MARKS[c.better][0]
                mark = NOT_INFORMATIVE if ranking.unpassed(s.candidate, v.metric, v.name) else " "
                cells.append(f"{v.number(s.value(v.metric, v.name))} {sign}{mark}")
            rows.append([v.flagged, v.arrow, *cells])
        columns = (Column("", "text"), Column("", "text"), *(Column(Name(s.candidate)) for s in standings))
        blocks.append(Table(columns, rows, f"Secondary metrics (↑ higher, ↓ lower is better{marks})", pens=Pen.TEXT))
    flags, zeros = values.legend(ranking, every)
    blocks += [Sentences(flags, "list"), Sentences(zeros)]
    title = "All metrics, item by item against the base" if compared else "All metrics"
    yield Panel("metrics", title, blocks, "All metrics")


def metrics_table(
    ranking: Ranking, standing: Standing, values: Sequence[Value], pens: Pen = Pen.ALL, is_open: bool | None = None
) -> Table:
    """One candidate on every value, beside what it is compared with."""
    base = next((s for s in ranking.standings if s.candidate == standing.compared_with), None)
    values = [v for v in values if any(s and s.score(v.metric, v.name) for s in (standing, base))]
    rows: list[list[Cell]] = []
    for v in values:
        score, c = standing.score(v.metric, v.name), standing.versus(v.metric, v.name)
        own = [v.number(score.value), v.interval(score)] if score else [ABSENT, ""]
        lost = ranking.unpassed(standing.candidate, v.metric, v.name)
        rows.append([v.flagged, f"{v.arrow} {NOT_INFORMATIVE}" if lost else v.arrow, *own])
        if base is None:
            continue
        # All candidates' differences of one value share a scale around zero, turned so that right is better.
        versus = [other for s in ranking.standings if (other := s.versus(v.metric, v.name))]
        spans = [span for o in versus if all(map(math.isfinite, span := (o.low, o.difference, o.high)))]
        reach = max((abs(x) for span in spans for x in span), default=0.0) or 1.0
        axis = Axis(-reach, reach, *((3.0, 97.0) if v.higher_is_better else (97.0, 3.0)))
        difference, interval, p, mark = _difference(c, v)
        bar = None
        if c and (span := (c.low, c.difference, c.high)) in spans:
            low, at, high = map(axis.at, span if v.higher_is_better else span[::-1])
            bar = Bar((low, at, high), 50.0, outcome(c), f"{v.label}: difference {difference}, 95 % {interval}")
        rows[-1] += [v.number(base.value(v.metric, v.name)), difference, interval, bar, p, mark]
    strong = tuple(i for i, v in enumerate(values) if v.has_own_panel)
    interval_of_own = Column("95 %", "interval", Pen.MARKDOWN if base else Pen.ALL)
    columns = [Column("", "text"), Column("", "text"), Column(Name(standing.candidate)), interval_of_own]
    if base is None:
        return Table(columns, rows, aside="All metrics", strong=strong, pens=pens)
    gap, ends, *rest = _of_difference("Δ")
    columns += [Column(Name(base.candidate)), gap, ends, Column("", "bar", Pen.HTML), *rest]
    both = f"{name(standing.candidate, 34)} against {name(base.candidate, 34)}"
    caption = f"Secondary metrics, {both} (p unadjusted; ↑ higher, ↓ lower is better)"
    return Table(columns, rows, caption, both, strong=strong, is_open=is_open, pens=pens)


def people_panel(ranking: Ranking) -> Iterator[Panel]:
    """How far people who rated the run agree with each other, what they gave, and how far metrics agree with them."""
    if "human-overall" not in ranking.metrics:
        return
    found = agreement_on(ranking)
    over = f"{counted(found.raters, 'rater')}, {counted(found.items, 'item')}, {found.texts} replies"
    rows: list[list[Cell]] = [["Krippendorff’s α, ordinal", *map(_estimate, found.alpha.values())]]
    rows += [[f"severity of {name(who, 20)}", *map(_estimate, of.values())] for who, of in found.severity.items()]
    notes = ("Severity: how many points lower than the others someone rates the same replies.",)
    columns = [Column("agreement", "text"), *map(Column, found.alpha)]
    tables = [Table(columns, rows, f"Agreement of people ({over})", notes=notes, breaks_at=3)]
    shown = [m for m in (f"human-{of}" for of in (*CRITERIA, "wins")) if m in ranking.metrics]
    rows = [[Name(who), *(_estimate(of[m]) if m in of else ABSENT for m in shown)] for who, of in found.means.items()]
    columns = [_WHO, *(Column(metric.removeprefix("human-")) for metric in shown)]
    told = "Wins: of all comparisons with another candidate’s reply the share that was won, a tie half. "
    asked = "A rater was shown two replies and said which is better."
    told += asked if found.by_pairs else "A reply wins where the same rater gave it the higher overall rating."
    tables.append(Table(columns, rows, "What people gave: means, 1–5, and wins, %", notes=(told,), breaks_at=4))
    rows = [[value_of(ranking, m).label, _estimate(of), number(whole)] for m, (of, whole) in found.metrics.items()]
    columns = [Column("metric", "text"), Column("τ over replies"), Column("τ over candidates")]
    has_none = any(of.value != of.value for of, _ in found.metrics.values())
    why = ["–: the metric or people make no difference between the replies."] if has_none else []
    caption = "Metrics against people: Kendall’s τ with human overall, 1 is agreement"
    tables.append(Table(columns, rows, caption, notes=tuple(why)))
    # The page has no captions over its tables.
    blocks = [block for table in tables for block in (Sentences((table.caption,), "heading", Pen.HTML), table)]
    yield Panel("people", "What people say", blocks, "People")


def agreement_on(ranking: Ranking) -> Agreement:
    """How far people agree on the run that is ranked, with the means that the ranking has; UsageError if unrated."""
    means = {
        s.candidate: {x.metric: Estimate(x.value, x.low, x.high) for x in s.scores if x.metric.startswith("human-")}
        for s in ranking.standings
    }
    return agreement(ranking.runs[0], ranking.metrics, means, seed=ranking.seed)


def _estimate(of: Estimate | Score) -> str:
    return f"{number(of.value)} [{number(of.low)}, {number(of.high)}]" if of.value == of.value else ABSENT


def trust_panel(ranking: Ranking) -> Iterator[Panel]:
    """What audits say of the metrics that scored here."""
    if not ranking.trust:
        return
    told = [(t, f"{t.metric}: {sentence(t)}") for t in ranking.trust]
    unknown = [(t.metric, text) for t, text in told if not t.scorers]
    doubted = [f"{FLAG} {text}" if t.beaten or not t.scorers else text for t, text in told]
    # The terminal leaves out the audits that ship with bnbench, which are the same in every run.
    shipped = {audit.metric for audit in read_audits()}
    here = [text for (t, _), text in zip(told, doubted, strict=True) if t.scorers and t.metric not in shipped]
    blocks: list[Block] = [Sentences(doubted, "list", Pen.WRITTEN)]
    blocks.append(Sentences([*(text for _, text in unknown), *here], "list", Pen.TEXT))
    blocks += [Sentences((f"bnbench audit {metric} --json > audit.json",), "code", Pen.HTML) for metric, _ in unknown]
    by_labels: dict[str, list[Trust]] = {}
    for t in (t for t in ranking.trust if t.scorers):
        by_labels.setdefault(f"{t.data} {t.data_sha256}", []).append(t)
    for about, *others in by_labels.values():
        [(_, lead)] = facts("trust", t=about)
        # Each scorer once; those that scored here come first.
        scorers = {t.scorers[0].name: t.scorers[0] for t in (about, *others)}
        strong = tuple(range(len(scorers)))
        for one in (one for t in (about, *others) for one in t.scorers[1:]):
            scorers.setdefault(one.name, one)
        measures = [m.replace("tau ", "τ ").replace("_", " ") for m in about.scorers[0].measures]
        cells: list[list[Cell]] = []
        for one in scorers.values():
            # Without an order (a constant) tau is 0 / 0.
            alike = {m for m, x in one.measures.items() if m.startswith("tau") and x.low == x.high == x.value == 0}
            found = (ABSENT if m in alike else _estimate(x) for m, x in one.measures.items())
            cells.append([Name(short_name(one.name), "sentinel" if one.sentinel else "", True), *found])
        columns = (Column("scorer", "name"), *map(Column, measures))
        blocks.append(Sentences((lead,), "lead", Pen.HTML))
        blocks.append(Table(columns, cells, aside="Agreement with labelled replies", strong=strong, pens=Pen.HTML))
    yield Panel("trust", "Can these metrics be trusted?", blocks, "Trust")


def pairs_panel(ranking: Ranking) -> Iterator[Panel]:
    """Every pair on the primary value."""
    pairs, primary = len(ranking.pairs), value_of(ranking)
    if pairs < 2:
        return
    [(_, lead)] = facts("pairs", pairs=pairs)
    columns = (_WHO, Column("against", "name"), *_of_difference("Δ", True), Column("Detectable"))
    rows: list[list[Cell]] = [
        [Name(c.candidate), Name(c.other), *_difference(c, primary), primary.number(c.smallest_detectable)]
        for c in ranking.pairs
    ]
    table = Table(columns, rows, aside=f"{pairs} pairs", is_open=pairs <= 6, pens=Pen.HTML)
    # The matrix: who stands in the row less who stands in the column, in the order of the ranking.
    of = {(c.candidate, c.other): (c.difference, c.better) for c in ranking.pairs}
    of |= {(b, a): (-gap, None if better is None else not better) for (a, b), (gap, better) in of.items()}
    names = [s.candidate for s in ranking.standings]
    matrix: list[list[Cell]] = []
    for place, s in enumerate(ranking.standings, 1):
        cells: list[Cell] = [str(place), Name(s.candidate)]
        for other in names:
            gap, better = of.get((s.candidate, other), (math.nan, None))
            mark = _MARKS[better].partition(" ")[0]
            cells.append(f"{primary.number(gap, sign=True)} {mark}" if math.isfinite(gap) else ABSENT)
        matrix.append([*cells, ABSENT if s.first_share is None else f"{100 * s.first_share:.0f} %"])
    heads = [Column("#", "text"), Column("less", "name"), *(Column(str(place)) for place in range(1, len(names) + 1))]
    groups = [f"{{{', '.join(name(one, 24) for one in those)}}}" for those in alike(ranking) if len(those) > 1]
    told = (
        f"▲ ▼ certain after Holm’s correction. Not to be told from each other: {'; '.join(groups) or 'none'}.",
        "First: in how many of 100 resamples nobody scored better; no test, and not the chance of being the best.",
    )
    square = Table([*heads, Column("first")], matrix, f"All pairs on {primary.label}: row less column", notes=told)
    blocks = (square, Sentences((lead,), "lead", Pen.HTML), table)
    yield Panel("pairs", f"Every pair on {primary.label}", blocks, "All pairs")


def slices_panel(ranking: Ranking) -> Iterator[Panel]:
    """The primary value on parts of the items: topics, lengths of message and reference, and its form of address."""
    examples, primary, metric = ranking.runs[0].examples, value_of(ranking), ranking.metrics[ranking.primary]
    topics, references = ([e[field] for e in examples] for field in ("topic", "reference"))
    parts = {f"topic {one}": [topic == one for topic in topics] for one in sorted(set(topics))}
    for what, some in {"message": [f"{e['title']} {e['question']}" for e in examples], "reference": references}.items():
        words = [len(text.split()) for text in some]
        low, high = map(int, np.quantile(words, [1 / 3, 2 / 3]))
        spans = (f"up to {low}", f"{low + 1} to {high}", f"over {high}")
        third = np.digitize(words, [low, high], True)
        parts |= {f"{what} of {span} words": (third == at).tolist() for at, span in enumerate(spans)}
    forms = list(map(address_of, references))
    parts |= {f"reference says {one}": [form == one for form in forms] for one in sorted(set(forms))}
    focus, entries = subject(ranking), {e.name: e for e in ranking.entries}
    shown = ranking.standings[:_SLICED]
    columns = [Column("items", "text"), Column("n"), *(Column(Name(s.candidate)) for s in shown)]
    columns += _of_difference(f"Δ of {name(focus.candidate, 12)}")[:2] if focus.compared_with else []
    rows: list[list[Cell]] = []
    for label, kept in parts.items():
        at = np.intersect1d(np.flatnonzero(kept), ranking.items[ranking.primary])
        if not _FEWEST <= (n := len(at)) < ranking.n:
            continue
        scores = (metric.formula(entries[s.candidate].tables[metric.name][at].sum(axis=0))[0] for s in shown)
        row: list[Cell] = [name(label), str(n), *(primary.number(float(score)) for score in scores)]
        if focus.compared_with:
            c = compare(ranking, focus.candidate, focus.compared_with, metric.name, primary.name, at)
            row += [primary.number(c.difference, sign=True), primary.interval(c)] if c else ["", ""]
        rows.append(row)
    if rows:
        [(_, told)] = facts("slices", fewest=_FEWEST)
        caption = f"{primary.label} on parts of the items"
        table = Table(columns, rows, caption, caption, notes=(told,), is_open=False, pens=Pen.WRITTEN)
        yield Panel("slices", "Where they differ", (table,), "Slices")


def seeds_panel(ranking: Ranking) -> Iterator[Panel]:
    """What training seeds and what drawings of a reply contribute to the scores, where there are several of either."""
    value, blocks = value_of(ranking), list[Block]()
    for group in ranking.groups:
        columns: Sequence[Column] = (_WHO, Column("training seed"), Column(value.label))
        each = zip(group.members, group.seeds, group.values, strict=True)
        rows = [(Name(who), ABSENT if seed is None else str(seed), value.number(x)) for who, seed, x in each]
        spread, gap = float(np.std(group.values, ddof=1)), max(group.values) - min(group.values)
        [(_, told)] = facts("seeds", spread=value.number(spread), gap=value.number(gap), share=group.share)
        blocks.append(Table(columns, rows, f"{name(group.name)}: one recipe, {len(rows)} seeds", notes=(told,)))
    dice: list[list[Cell]] = []
    for run in (run for run in ranking.runs if run.record.samples > 1):
        for candidate, tables in run.drawn.items():
            drawn = tables[ranking.primary][ranking.items[ranking.primary]]
            of_each = ranking.metrics[ranking.primary].formula(drawn)[..., 0]  # n x K
            k = of_each.shape[1]
            if k > 1:
                # One-way analysis of variance: items, and drawings within them.
                within, between = of_each.var(axis=1, ddof=1).mean(), k * of_each.mean(axis=1).var(ddof=1)
                share = within / (within + max(between - within, 0.0) / k) if within else 0.0
                of_score = min(1.0, within / between) if between else 0.0
                dice.append([Name(candidate), str(k), *(f"{100 * x:.0f} %" for x in (share, of_score))])
    if dice:
        [(_, told)] = facts("dice", value=value.label)
        columns = (_WHO, *map(Column, ("replies an item", "the dice’s of a reply", "the dice’s of the score")))
        blocks.append(Table(columns, dice, "Drawings of a reply", notes=(told,)))
    if blocks:
        yield Panel("seeds", "Seeds", blocks, "Seeds")


def examples_panel(ranking: Ranking) -> Iterator[Panel]:
    """Replies side by side: by rule the extremes and the median item on the primary value of a reply, then all."""
    primary, messages = value_of(ranking), ranking.runs[0].examples
    focus = next((s for s in ranking.standings if s.compared_with), None)  # whose gains are shown
    entries = {e.name: e for e in ranking.entries}
    turn, counting = 1 if ranking.higher_is_better else -1, ranking.items[ranking.primary]
    scores, formula = {who: np.full(len(messages), np.nan) for who in entries}, ranking.metrics[ranking.primary].formula
    for who, x in scores.items():  # what is not finite for a single reply (the perplexity of no text) counts as 0
        of_replies = formula(entries[who].of_replies[ranking.primary][counting])[:, 0]
        x[counting] = np.nan_to_num(of_replies, posinf=0.0, neginf=0.0)
    first = [str(focus.compared_with), focus.candidate] if focus else []
    names = list(dict.fromkeys([*first, *(s.candidate for s in ranking.standings)]))
    order = turn * (scores[first[1]] - scores[first[0]] if first else scores[ranking.entries[0].name])
    decimals = 1 if primary.decimals < 3 else primary.decimals
    # What a reader should know of each reply before reading it: cut at the limit, empty, repeating itself …
    flags, degeneration = list[list[tuple[str, ...]]](), ranking.metrics.get("degeneration")
    for entry in map(entries.__getitem__, names):
        flags.append([])
        for i, reply in enumerate(entry.replies):
            marks = {"empty": not reply.reply.strip(), "cut at the limit": bool(reply.hit_limit)}
            if degeneration and degeneration.name in entry.of_replies:
                row = dict(zip(degeneration.columns, entry.of_replies[degeneration.name][i], strict=True))
                marks |= {degeneration.labels[value].removesuffix(", %"): row[value] > 0 for value in _FLAGS}
            flags[-1].append(tuple(flag for flag, is_so in marks.items() if is_so))
    items = []
    for i, (message, *own) in enumerate(zip(messages, *flags, strict=True)):
        shown = [number(float(scores[who][i]), decimals) for who in names]
        replies = list(zip(names, (entries[who].replies[i] for who in names), shown, own, strict=True))
        gain = float(order[i]) if focus and math.isfinite(order[i]) else None
        told = number(gain, decimals, sign=True) if focus else ""
        items.append(Item(i + 1, message, replies, sorted({flag for each in own for flag in each}), gain, told))
    first_shown = choose(order[counting].tolist(), are_gains=focus is not None)
    chosen = [(heading, items[counting[i]]) for heading, i in first_shown]
    which, of = "with the highest and lowest", f"{primary.label} of the single reply"
    if focus:
        which = f"where {name(first[1])} gains most and loses most against {name(first[0])} in"
    lead = Sentences((f"Chosen by rule, not by eye: the items {which} {of}, and the median item.",), "lead", Pen.HTML)
    shown_items = Replies(chosen, items, primary.label, _BESIDE if len(names) > _BESIDE + 1 else len(names))
    yield Panel("examples", "Replies side by side", (lead, shown_items), "Examples")


def choose(order: Sequence[float], *, are_gains: bool) -> list[tuple[str, int]]:
    """Which items are shown, with a heading: the two ends and the middle of `order`, no item twice."""
    ascending = sorted(range(len(order)), key=lambda i: order[i])
    median = ascending[(len(ascending) - 1) // 2]
    top = [i for i in reversed(ascending) if i != median and (order[i] > 0 or not are_gains)][:_EXTREMES]
    bottom = [i for i in ascending if i != median and i not in top and (order[i] < 0 or not are_gains)][:_EXTREMES]
    best, worst = ("Largest gain", "Largest loss") if are_gains else ("Highest score", "Lowest score")
    return [*((best, i) for i in top), ("Median item", median), *((worst, i) for i in reversed(bottom))]


def training_panel(ranking: Ranking) -> Iterator[Panel]:
    """How `bnbench finetune` trained the adapters: recipe, length, loss; of several what each took, how they differ."""
    trained = {c.name: c.training for run in ranking.runs for c in run.record.candidates if c.training}
    names = ("name", "description", "card")
    recipes = [{k: v for k, v in t.recipe.items() if k not in names} for t in trained.values()]
    # A setting that an older record does not have makes no difference between the recipes.
    every = dict.fromkeys(chain.from_iterable(recipes))
    keys = [key for key in every if len({str(r[key]) for r in recipes if key in r}) > 1]
    rows, each = list[list[Cell]](), list[Block]()
    for (who, training), recipe in zip(trained.items(), recipes, strict=True):
        best = training.validation.best if training.validation else None
        memory = training.peak_memory_bytes
        rows.append([
            Name(who), *(ABSENT if (own := recipe.get(key)) is None else str(own) for key in keys),
            f"{training.steps:,}", f"{training.seconds / 60:,.1f}",
            ABSENT if memory is None else f"{memory / 2**30:.2f}", f"{training.loss_at_end:.3f}",
            ABSENT if best is None else f"{best[1]:.3f}",
        ])  # fmt: skip
        about = "Loss of each optimiser step (thin) and its running mean (thick)."
        about += " Dashed: loss in validation, a ring around the adapter that was kept." if best else ""
        curve = Drawing(loss_svg(training.loss, who, training.validation), about)
        each += [Sentences((name(who),), "name", Pen.HTML), curve, Facts(training_facts(training))]
    heads = (*(key.replace("_", " ") for key in keys), "steps", "minutes", "GiB", "loss", "validation bits")
    caption = "What the adapters’ trainings took, and the settings in which they differ"
    told = [at for at in range(len(heads) + 1) if any(row[at] != ABSENT for row in rows)]
    columns = [[_WHO, *map(Column, heads)][at] for at in told]
    costs = Table(columns, [[row[at] for at in told] for row in rows], caption, "Costs", breaks_at=1 + len(keys))
    if trained:
        yield Panel("training", "Training", [costs, *each] if len(trained) > 1 else each, "Training")


def runs_panel(ranking: Ranking) -> Iterator[Panel]:
    """What was run, from run.json: everything that a reader needs to run it again."""
    blocks: list[Block] = []
    for record in (run.record for run in ranking.runs):
        blocks += [Sentences((name(record.name),), "name", Pen.HTML)] if len(ranking.runs) > 1 else []
        codes = (Column(head, "code") for head in ("read from", "base", "weights sha256"))
        columns = (_WHO, Column("kind", "text"), *codes, Column("Time"), Column("Speed"))
        rows: list[list[Cell]] = []
        for c in record.candidates:
            weights, place = c.weights_sha256 or c.key_fields.get("weights_sha256"), c.location
            place = name(f"{place}@{c.revision}" if c.revision else place, 200)
            base, sha = name(c.base, 200) if c.base else ABSENT, str(weights)[:12] if weights else ABSENT
            time = ABSENT if c.seconds is None else f"{c.seconds:,.1f} s"
            speed = ABSENT if c.tokens_per_second is None else f"{c.tokens_per_second:,.0f} tokens/s"
            rows.append([Name(c.name), c.kind, place, base, sha, time, speed])
        asked: dict[str, Any] = {}  # how the first was, and whoever was asked otherwise
        prompts = {"": record.prompt, **{f" of {c.name}": c.prompt for c in record.candidates if c.prompt}}
        for of, how_asked in prompts.items():
            hashes = {"template": how_asked.get("template_sha"), "tokenizer": how_asked.get("tokenizer_sha")}
            known = [how_asked.get("kind"), *(f"{k} sha256 {str(v)[:12]}" for k, v in hashes.items() if v)]
            asked |= {f"Prompt{of}": ", ".join(filter(None, known)), f"System prompt{of}": how_asked.get("system")}
        told = [*facts("data", r=record), *((label, str(text)) for label, text in asked.items() if text)]
        blocks += [Table(columns, rows, aside="Models", pens=Pen.HTML), Facts([*told, *facts("run", r=record)])]
        if record.corpus.steps:
            about = (Column("step", "text"), Column("Changed"), Column("Dropped"), Column("why", "wide"))
            steps = [[s.name, str(s.changed or ABSENT), str(s.dropped), s.why] for s in record.corpus.steps]
            table = Table(about, steps, aside="Cleaning steps", pens=Pen.HTML)
            blocks += [Sentences(("Cleaning of the corpus",), "heading", Pen.HTML), table]
        if record.command:
            blocks += [Sentences(("Command",), "heading", Pen.HTML), Sentences((record.command,), "code", Pen.HTML)]
    yield Panel("run", "What was run", blocks, "What was run")


def methods_panel(ranking: Ranking) -> Iterator[Panel]:
    """A paragraph to copy: what was scored and compared, how, and with which signatures; and what it does not cover."""
    from jinja2 import Template

    told = {"counted": counted, "listed": listed, "number": "{:,}".format, "p_value": p_value, "alpha": f"{ALPHA:g}"}
    told |= {"r": ranking, "value": value_of(ranking).label, "groups": [name(group.name) for group in ranking.groups]}
    told["is_rated"] = any(metric.startswith("human-") for metric in ranking.metrics)
    text = (TEMPLATES / "methods.txt.j2").read_text(encoding="utf-8")
    # The first paragraph is to be copied, the others are the limits; lines of one are folded.
    whole = Template(text, trim_blocks=True, lstrip_blocks=True).render(told)
    said, *limits = (paragraph.strip().replace("\n", " ") for paragraph in whole.split("\n\n"))
    columns = (Column("metric", "text"), Column("signature", "code"), Column("what it is", "wide"))
    rows = [[metric, s, ranking.descriptions[metric]] for metric, s in ranking.signatures.items()]
    only = Sentences(("Scores may be compared only where the signatures are equal.",), "lead", Pen.HTML)
    blocks = (Sentences((said,), "copy", Pen.WRITTEN), only, Table(columns, rows, aside="Signatures", pens=Pen.HTML))
    yield Panel("methods", "How it was measured", blocks, "Methods")
    yield Panel("limits", "Limits", (Sentences(limits, "list", Pen.WRITTEN),), "Limits")


PANELS = (  # a line each
    verdict_panel,
    ranking_panel,
    combined_panel,
    metrics_panel,
    yardsticks_panel,
    people_panel,
    trust_panel,
    pairs_panel,
    slices_panel,
    seeds_panel,
    examples_panel,
    training_panel,
    runs_panel,
    methods_panel,
)


def training_facts(training: TrainingSummary) -> list[tuple[str, str]]:
    """How an adapter was trained, as labels and texts; what was not measured is left out."""
    shown = "name description tuner r alpha dropout targets learning_rate schedule warmup optimizer seed epochs"
    known = {key: value for key, value in training.recipe.items() if value is not None}
    return facts("training", t=training, recipe={**dict.fromkeys(shown.split(), ABSENT), **known})  # an older record's


def facts(kind: str, **of: object) -> list[tuple[str, str]]:
    """Labels and texts, by those of templates/facts.toml.j2 of that kind; what comes out empty is left out."""
    from jinja2 import Environment

    made, texts = Environment(), _FACTS()[kind]
    told = {label: made.from_string(text).render(of, number=number, counted=counted) for label, text in texts.items()}
    return [(label, text) for label, text in told.items() if text]
