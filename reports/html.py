"""The pen for the page: report.html is whole by itself. No network, no fonts from outside, no scripts but our own.

The template draws what panels are made of, never a section: autoescape is on, and what comes from outside is text.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbench import __version__
from bnbench.reports.panels import Cell, Column, Name, Pen, headline_facts, panels
from bnbench.reports.ranking import Ranking
from bnbench.reports.render import visible
from bnbench.reports.values import FLAG, name, storable
from bnbench.reports.verdict import verdict

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def report_html(ranking: Ranking) -> str:
    """The whole page."""
    from markupsafe import Markup

    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            said=verdict(ranking),
            facts=headline_facts(ranking),
            runs=[run.record.name for run in ranking.runs],
            panels=_drawn(ranking),
            style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            version=__version__,
        )
    )
    return storable(page)


def fragment(ranking: Ranking) -> str:
    """Ranking and metrics for a notebook, which has a style of its own."""
    shown = [(p, blocks) for p, blocks in _drawn(ranking) if p.anchor in ("notes", "ranking", "combined", "metrics")]
    return storable(_environment().get_template("panels.html.j2").module.fragment(verdict(ranking), shown))  # type: ignore[attr-defined]


def _drawn(ranking: Ranking) -> list[tuple[Any, list[tuple[str, Any]]]]:
    """Panels with the blocks that the page draws, each with the name of its kind."""
    found = ((panel, panel.drawn_by(Pen.HTML)) for panel in panels(ranking))
    return [(p, [(type(b).__name__.lower(), b) for b in blocks]) for p, blocks in found if blocks]


def _cell(cell: Cell, column: Column) -> Markup:
    """What stands in a cell of a table, all but drawings."""
    from markupsafe import Markup, escape

    if isinstance(cell, Name):
        note = Markup("<small>{}</small>").format(cell.note) if cell.note else ""
        return _name(cell.text, 60) + note
    text = str(cell or "")
    if column.kind == "outcome":
        kind = {"▲": "better", "▼": "worse"}.get(text[:1], "open")
        return Markup('<span class="outcome {}">{}</span>').format(kind, text) if text else Markup("")
    if column.kind == "interval":
        return Markup("<small>{}</small>").format(text)
    if column.kind == "code":
        return Markup("<code>{}</code>").format(text)
    # An estimate's interval, and the flag of a label, stand out from what they belong to.
    value, sign, interval = text.partition(" [")
    if sign and column.kind == "number":
        return Markup("{} <small>[{}</small>").format(value, interval)
    if text.endswith(FLAG):
        return Markup('{}<span class="worse">{}</span>').format(text.removesuffix(FLAG), FLAG)
    return escape(text)


def _name(text: str, limit: int = 60) -> Markup:
    from markupsafe import Markup

    return Markup('<bdi title="{}">{}</bdi>').format(name(text, 400), name(text, limit))


def _whole_words(text: str) -> Markup:
    """The text with each word that has a hyphen in an element of its own, which breaks only where it must."""
    from markupsafe import Markup, escape

    words = (Markup('<span class="whole">{}</span>').format(w) if "-" in w else escape(w) for w in text.split(" "))
    return Markup(" ").join(words)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": _cell,
        "name": _name,
        "whole": _whole_words,
        "visible": lambda table: visible(table, Pen.HTML),
        "svg": Markup,
        "pc": lambda x: f"{x:.2f}%",
    }
    return environment
