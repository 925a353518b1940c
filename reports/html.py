"""report.html: one self-contained page. No network, no fonts from outside, autoescape on, no scripts but our own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbench import __version__
from bnbench.metrics.audit.findings import Estimate, short_name
from bnbench.plot import Bar, forest_bars, interval_plot
from bnbench.records import Run
from bnbench.reports import format as fmt
from bnbench.reports.combined import combined_lines, combined_tables
from bnbench.reports.entries import collect
from bnbench.reports.examples import examples
from bnbench.reports.methods import limits, methods_paragraph
from bnbench.reports.provenance import run_view
from bnbench.reports.ranking import Comparison, Ranking, Score, Standing
from bnbench.reports.training import training_views
from bnbench.reports.trust import Trust, sentence
from bnbench.reports.values import Value, flag_notes, label, shown_values, zeros
from bnbench.reports.verdict import outcome, verdict, warnings

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Row:
    """One value in the table of a candidate against its base."""

    value: Value
    score: Score | None
    base: Score | None
    comparison: Comparison | None
    bar: Bar | None


@dataclass(frozen=True)
class Group:
    """One candidate against what it is compared with, on every value."""

    candidate: str
    base: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Scorer:
    """One row of an audit's table: whether it scores here or is a sentinel, and its agreement with labels."""

    name: str
    own: bool
    sentinel: bool
    measures: tuple[Estimate, ...]


def report_html(ranking: Ranking, runs: Sequence[Run]) -> str:
    """The whole page."""
    from markupsafe import Markup

    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"script": Markup(script), "style": Markup(style), "script_hash": f"sha256-{digest}", "version": __version__}
    page = _environment().get_template("report.html.j2").render(own | _content(ranking, runs))
    return fmt.storable(page)


def _content(ranking: Ranking, runs: Sequence[Run]) -> dict[str, Any]:
    values = shown_values(ranking)
    bases = {s.compared_with for s in ranking.standings if s.compared_with}
    shown = examples(ranking, collect(runs), runs[0].examples)
    return {
        "ranking": ranking,
        "said": verdict(ranking),
        "facts": _facts(ranking, values[0]),
        "notes": warnings(ranking),
        "primary": values[0],
        "values": values,
        "zeros": zeros(ranking),
        "plot": interval_plot(ranking),
        "groups": _groups(ranking, values),
        "one_base": bases.pop() if len(bases) == 1 else None,
        "shown": shown,
        "flags": sorted({flag for item in shown.items for flag in item.flags}),
        "trained": training_views(runs),
        "runs": [run_view(run) for run in runs],
        "combined": _joined(*combined_tables(ranking)),
        "combined_lines": combined_lines(ranking),
        "trust": [(t, label(t.metric, t.metric), sentence(t)) for t in ranking.trust],
        "scorers": _scorers(ranking),
        "flag_notes": flag_notes(values),
        "methods": methods_paragraph(ranking),
        "limits": limits(ranking),
    }


def _joined(left: list[list[str]], right: list[list[str]]) -> list[list[str]]:
    return [[*a, *b] for a, b in zip(left, right, strict=True)]


def _scorers(ranking: Ranking) -> list[tuple[Trust, list[Scorer]]]:
    """For each set of labelled replies, how all scorers agree with the labels: first the metrics that score here."""
    found: dict[str, tuple[Trust, dict[str, Scorer]]] = {}
    for own in (True, False):
        for t in ranking.trust:
            _, rows = found.setdefault(f"{t.data} {t.data_sha256}", (t, {}))
            for one in t.scorers[:1] if own else t.scorers[1:]:
                rows.setdefault(one.name, Scorer(short_name(one.name), own, one.sentinel, tuple(one.measures.values())))
    return [(t, list(rows.values())) for t, rows in found.values() if t.audited]


def _facts(ranking: Ranking, primary: Value) -> list[tuple[str, str, str]]:
    """The strip under the verdict: label, number, and what belongs to it in small."""
    first = ranking.primary_score(ranking.standings[0])
    ends = fmt.interval(first.low, first.high, primary.decimals, form="{} to {}")
    facts = [
        ("Items", f"{ranking.n:,}", "answered by all"),
        ("Candidates", str(len(ranking.standings)), ""),
        (f"Best {primary.label}" if ranking.pairs else primary.label, fmt.number(first.value, primary.decimals), ends),
    ]
    versus = [c for s in ranking.standings if (c := s.versus(primary.metric, primary.name))]
    least = sorted(c.smallest_detectable for c in versus if c.smallest_detectable > 0)
    if least and ranking.n > 1:
        span = dict.fromkeys(fmt.number(x, primary.decimals) for x in (least[0], least[-1]))
        facts.append(("Detectable difference", "–".join(span), primary.label))
    return facts


def _groups(ranking: Ranking, values: Sequence[Value]) -> list[Group]:
    by_name = {s.candidate: s for s in ranking.standings}
    compared = [s for s in ranking.standings if s.compared_with is not None and s.versus_base]
    bars: dict[tuple[str, str, str], Bar | None] = {}
    for v in values:
        found = [s.versus(v.metric, v.name) for s in compared]
        for s, bar in zip(compared, forest_bars(found, v.higher_is_better), strict=True):
            bars[s.candidate, v.metric, v.name] = bar
    return [_group(s, by_name[s.compared_with or ""], values, bars) for s in compared]


def _group(
    standing: Standing, base: Standing, values: Sequence[Value], bars: Mapping[tuple[str, str, str], Bar | None]
) -> Group:
    rows = [
        Row(
            v,
            standing.score(v.metric, v.name),
            base.score(v.metric, v.name),
            standing.versus(v.metric, v.name),
            bars[standing.candidate, v.metric, v.name],
        )
        for v in values
    ]
    return Group(standing.candidate, base.candidate, tuple(r for r in rows if r.score or r.base))


def _whole_words(text: str) -> Markup:
    """The text with each word that has a hyphen in an element of its own, which breaks only where it must."""
    from markupsafe import Markup, escape

    words = (Markup('<span class="whole">{}</span>').format(w) if "-" in w else escape(w) for w in text.split(" "))
    return Markup(" ").join(words)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": fmt.name,
        "whole": _whole_words,
        "number": fmt.number,
        "percent": fmt.percent,
        "outcome": outcome,
        "num": lambda x, value: fmt.number(x, value.decimals),
        "signed": lambda x, value: fmt.number(x, value.decimals, sign=True),
        "p": lambda c: fmt.p_value(c.p if c.p_holm is None else c.p_holm),
        "ends": lambda x, value, sign=False: fmt.interval(x.low, x.high, value.decimals, sign=sign, form="{} to {}"),
        "places": lambda s: fmt.places(s.best_rank, s.worst_rank),
        "pc": lambda x: f"{x:.2f}%",
    }
    return environment
