"""Drawings of numbers: the marks of the report's interval plots, and the loss curve of a training."""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Self

from bnbench.errors import require
from bnbench.records import Points, Validation, thinned

_WIDTH, _HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 704, 14, 232
_STYLE = (
    ".loss-curve{--paper:#fff;--ink:#575d66;--line:#dedbd3;--curve:#0b5a8a;font:12px system-ui,sans-serif;"
    "max-width:100%;height:auto}"
    "@media screen and (prefers-color-scheme:dark){"
    ".loss-curve{--paper:#1b1f24;--ink:#a9afb8;--line:#343a42;--curve:#7cc0ee}}"
    ".loss-curve .paper{fill:var(--paper)}.loss-curve text{fill:var(--ink)}.loss-curve .axis{stroke:var(--line)}"
    ".loss-curve path{fill:none;stroke:var(--curve);stroke-linejoin:round}.loss-curve circle{fill:var(--curve)}"
)
_CHECKS = (  # only where there is a validation: other drawings stay as they were
    ".loss-curve .check{stroke:#a8480d;fill:none}.loss-curve text.check{stroke:none;fill:#a8480d}"
    "@media screen and (prefers-color-scheme:dark){"
    ".loss-curve .check{stroke:#f0a26b}.loss-curve text.check{fill:#f0a26b}}"
)

Span = tuple[float, float, float]  # low end, point and high end: of an interval, or of its drawing


@dataclass(frozen=True)
class Axis:
    """Values to places: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, room: float = 0.0) -> Self:
        """The axis that shows all values, with a share of their range left free beyond each end."""
        found = list(values) or [0.0, 1.0]
        low, high = min(found), max(found)
        free = (high - low) * room if high > low else max(abs(low) * 0.1, 1.0)
        return cls(low - free, high + free, start, end)

    def at(self, value: float) -> float:
        """Where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int, steps: Sequence[float] = (1, 2, 5, 10)) -> tuple[list[float], int]:
        """Round numbers, some `about` of them, and the decimals that they need."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        factor = next(m for m in steps if power * m >= rough)
        step = power * factor
        decimals = max(0, (1 if factor == 2.5 else 0) - math.floor(math.log10(step)))
        whole = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [round(i * step, 10) for i in whole], decimals


def forest_svg(rows: Sequence[tuple[str, Span, str]], label: str, mark: float | None = None) -> str:
    """A forest plot for a paper as one <svg>, black on white: a line for each name, with its interval and its text.

    `label` stands under the axis, `mark` is where the dashed line is. An interval that is not finite is only its point.
    The fonts are the reader's own, Noto Sans where it is there.
    """
    spans = [span if all(map(math.isfinite, span)) else (span[1],) * 3 for _, span, _ in rows]
    left = 40 + 7.5 * max((len(name) for name, _, _ in rows), default=0)
    right, bottom = left + 360, 24 + 26 * len(rows)
    known = [x for span in spans for x in span if math.isfinite(x)] + ([] if mark is None else [mark])
    axis = Axis.over(known, left, right, room=0.05)
    ticks, decimals = axis.ticks(5, (1, 2, 2.5, 5, 10))
    marks = [f'<path d="M{left:.1f} {bottom}H{right:.1f}" stroke="#000"/>']

    def font(text: str) -> str:  # each script by a font of its own: what a fallback takes may be bold
        return ' font-family="Noto Sans Bengali, sans-serif"' if re.search("[\u0980-\u09ff]", text) else ""

    for x in ticks:
        shown = f"{x:.{decimals}f}".replace("-", "\N{MINUS SIGN}")
        marks.append(f'<path d="M{axis.at(x):.1f} {bottom}v5" stroke="#000"/>')
        marks.append(f'<text x="{axis.at(x):.1f}" y="{bottom + 20}" text-anchor="middle">{shown}</text>')
    if mark is not None:
        marks.append(f'<path d="M{axis.at(mark):.1f} 8V{bottom}" stroke="#777" stroke-dasharray="4 3"/>')
    for i, ((name, _, text), (low, value, high)) in enumerate(zip(rows, spans, strict=True)):
        y = 20 + 26 * i
        marks.append(f'<text x="{left - 14:.1f}" y="{y + 4}" text-anchor="end"{font(name)}>{html.escape(name)}</text>')
        marks.append(f'<text x="{right + 14:.1f}" y="{y + 4}">{html.escape(text)}</text>')
        if math.isfinite(value):
            marks.append(f'<path d="M{axis.at(low):.1f} {y}H{axis.at(high):.1f}" stroke="#000" stroke-width="1.5"/>')
            marks.append(f'<circle cx="{axis.at(value):.1f}" cy="{y}" r="4"/>')
    under = f'y="{bottom + 42}" text-anchor="middle"{font(label)}>{html.escape(label)}'
    width, height = right + 30 + 7.5 * max((len(text) for _, _, text in rows), default=0), bottom + 54
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" font-family="Noto Sans, Arial, sans-serif" font-size="13">'
        f'<title>{html.escape(label)}</title><rect width="100%" height="100%" fill="#fff"/>'
        f'{"".join(marks)}<text x="{(left + right) / 2:.1f}" {under}</text></svg>'
    )


def png_of(svg: str) -> bytes:
    """A drawing as PNG, four pixels a unit (about 300 dots an inch); MissingPackageError without the extra `plot`."""
    return bytes(require("resvg_py", extra="plot").svg_to_bytes(svg_string=svg, zoom=4))


def loss_svg(points: Points, name: str = "", validation: Validation | None = None) -> str:
    """The curve of (optimiser step, loss) points as one <svg>: every point thin, the mean of a twelfth of them thick.

    The loss in validation, in nats a token too, is a dashed line of dots, a ring around the best. `name` is for screen
    readers. Points that are not finite are left out. It names no font, library or address, and follows light and dark.
    """
    kept = thinned([(step, loss) for step, loss, *_ in points if math.isfinite(loss)])
    checks = [(s, y) for s, _, y in validation.curve if math.isfinite(y)] if validation else []
    xs = Axis.over([s for s, _ in kept + checks], _LEFT, _RIGHT)
    ys = Axis.over([y for _, y in kept + checks], _BOTTOM, _TOP)
    ends = f", from {kept[0][1]:.3f} to {kept[-1][1]:.3f} in {kept[-1][0]} steps" if kept else ""
    title = html.escape(f"Training loss{f' of {name}' if name else ''}{ends}")
    marks = [
        f'<path class="axis" d="M{_LEFT} {ys.at(y):.1f}H{_RIGHT}"/>'
        f'<text x="{_LEFT - 8}" y="{ys.at(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in ys.ticks(5)[0]
    ]
    whole = [x for x in xs.ticks(5)[0] if x == int(x) and x >= 0]
    marks += [f'<text x="{xs.at(x):.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{int(x)}</text>' for x in whole]
    marks.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">optimiser step</text>')
    marks.append(f'<text transform="translate(16 {(_TOP + _BOTTOM) / 2}) rotate(-90)" text-anchor="middle">loss</text>')
    half = len(kept) // 24
    smooth = [(s, fmean(y for _, y in kept[max(0, i - half) : i + half + 1])) for i, (s, _) in enumerate(kept)]
    thin, thick, dashed = (" ".join(f"{xs.at(s):.1f},{ys.at(y):.1f}" for s, y in of) for of in (kept, smooth, checks))
    if len(kept) == 1:
        marks.append(f'<circle cx="{xs.at(kept[0][0]):.1f}" cy="{ys.at(kept[0][1]):.1f}" r="4"/>')
    elif kept:
        marks += [f'<path d="M{thin}" stroke-width="1" opacity=".4"/>'] if half else []
        marks.append(f'<path d="M{thick}" stroke-width="2.5"/>')
    if validation and checks:
        marks.append(f'<path class="check" d="M{dashed}" stroke-width="1.5" stroke-dasharray="5 4"/>')
        for s, y in checks:
            ring = 6 if s == validation.best[0] else 3
            marks.append(f'<circle class="check" cx="{xs.at(s):.1f}" cy="{ys.at(y):.1f}" r="{ring}"/>')
        marks.append(f'<text class="check" x="{_RIGHT}" y="{_TOP + 10}" text-anchor="end">dashed: validation</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="loss-curve" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}"><title>{title}</title><style>{_STYLE}{_CHECKS if checks else ""}</style>'
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>{"".join(marks)}</svg>'
    )
