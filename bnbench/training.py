"""What `bnbench finetune` recorded beside an adapter, as far as a report or a model card shows it, and its loss curve.

The drawing is SVG of our own: it names no font, library or address, and follows light and dark.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RECORD = "training.json"
SCHEMA_VERSION = 1
_MOST = 240  # points of a curve; more are narrower than a pixel
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

Points = Sequence[tuple[int, float]]


def read_record(folder: Path) -> dict[str, Any] | None:
    """training.json of an adapter's folder; None where there is none, or one that bnbench did not write."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and record.get("schema_version") == SCHEMA_VERSION
    return record if ours and {"recipe", "base", "data", "steps", "loss"} <= record.keys() else None


def training_summary(folder: Path) -> dict[str, Any] | None:
    """The part of an adapter's record that run.json keeps: plain JSON, the curve with at most 240 points.

    None where bnbench did not train the adapter, or the record is damaged: it may come from anywhere.
    """
    record = read_record(folder)
    if record is None:
        return None
    try:
        points = [(int(step), float(loss)) for step, loss, _ in record["loss"]]
        return {
            "recipe": dict(record["recipe"]),
            "rows": int(record["data"]["rows"]),
            "steps": int(record["steps"]),
            "seconds": float(record["seconds"]),
            "precision": dict(record["precision"]),
            "peak_memory_bytes": record["peak_memory_bytes"],
            "device": (record.get("machine") or {}).get("accelerator") or record["device"],
            "gain": record.get("gain"),
            **ends(points),
            "loss": [[step, round(loss, 4)] for step, loss in thinned(points)],
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def training_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Labels and texts for a table, of what `training_summary` gives."""
    recipe, memory = summary["recipe"], summary["peak_memory_bytes"]
    shown = {
        "Recipe": f"{recipe.get('name')}: {recipe.get('description')}",
        "Adapter": f"{recipe.get('tuner')}, r {recipe.get('r')}, α {recipe.get('alpha')}, "
        f"dropout {recipe.get('dropout')}, on {', '.join(recipe.get('targets') or [])}",
        "Precision": f"weights {summary['precision'].get('quantisation')}, {summary['precision'].get('reason')}",
        "Schedule": f"learning rate {recipe.get('learning_rate')}, {recipe.get('schedule')}, "
        f"warm-up {recipe.get('warmup')}, {recipe.get('optimizer')}, seed {recipe.get('seed')}",
        "Length": f"{summary['rows']:,} rows, epochs {recipe.get('epochs')}, {summary['steps']:,} steps, "
        f"{summary['seconds'] / 60:,.1f} min on {summary['device']}",
        "Loss": f"{summary['loss_at_start']:.3f} → {summary['loss_at_end']:.3f} "
        "(means of the first and last tenth of the steps)",
        "Preferences": _gained(summary["gain"]),
        "Peak memory": "" if memory is None else f"{memory / 2**30:.2f} GiB",
    }
    return [(label, text) for label, text in shown.items() if text]


def _gained(gain: Mapping[str, Any] | None) -> str:
    """What a preference training did to pairs that it never saw."""
    if not gain:
        return ""
    ends = f"{gain['margin']:+.2f} nats (95 % {gain['low']:+.2f} to {gain['high']:+.2f})".replace("-", "\N{MINUS SIGN}")
    return f"the chosen reply gained {ends} on the rejected one, mean over {gain['pairs']} held-out pairs"


def ends(points: Points) -> dict[str, float]:
    """The mean losses over the first and the last tenth of the steps, of which there is at least one."""
    tenth = max(1, len(points) // 10)
    return {"loss_at_start": mean_loss(points[:tenth]), "loss_at_end": mean_loss(points[-tenth:])}


def mean_loss(points: Points) -> float:
    """Of some steps of a curve."""
    return sum(loss for _, loss in points) / len(points)


def thinned(points: Points, most: int = _MOST) -> list[tuple[int, float]]:
    """At most `most` points: each the mean loss of as many steps, at the last of them."""
    size = max(1, math.ceil(len(points) / most))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], mean_loss(part)) for part in parts]


def loss_svg(points: Points, name: str = "") -> str:
    """The curve of (optimiser step, loss) points as one <svg>: every point thin, the mean of a twelfth of them thick.

    `name` goes into its title for screen readers. Fit for a file and for a page. Points that are not finite are left
    out; without any the axes are empty.
    """
    kept = thinned([(step, loss) for step, loss in points if math.isfinite(loss)])
    xs, ys = _Axis.over([s for s, _ in kept], _LEFT, _RIGHT), _Axis.over([y for _, y in kept], _BOTTOM, _TOP)
    ends = f", from {kept[0][1]:.3f} to {kept[-1][1]:.3f} in {kept[-1][0]} steps" if kept else ""
    title = html.escape(f"Training loss{f' of {name}' if name else ''}{ends}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="loss-curve" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}"><title>{title}</title><style>{_STYLE}</style>'
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>{_marks(xs, ys)}{_curve(kept, xs, ys)}</svg>'
    )


class _Axis:
    """Values to places: `low` lies at `start`, `high` at `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values, default=0.0), max(values, default=1.0)
        room = 0.0 if high > low else max(abs(low) * 0.1, 1.0)
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers, some five of them."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _marks(xs: _Axis, ys: _Axis) -> str:
    lines = [
        f'<path class="axis" d="M{_LEFT} {ys.at(y):.1f}H{_RIGHT}"/>'
        f'<text x="{_LEFT - 8}" y="{ys.at(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in (round(y, 10) for y in ys.ticks())
    ]
    whole = [x for x in xs.ticks() if x == int(x) and x >= 0]
    lines += [f'<text x="{xs.at(x):.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{int(x)}</text>' for x in whole]
    middle = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    return (
        f'{"".join(lines)}<text x="{middle[0]}" y="{_HEIGHT - 10}" text-anchor="middle">optimiser step</text>'
        f'<text transform="translate(16 {middle[1]}) rotate(-90)" text-anchor="middle">loss</text>'
    )


def _curve(points: Points, xs: _Axis, ys: _Axis) -> str:
    if len(points) == 1:
        return f'<circle cx="{xs.at(points[0][0]):.1f}" cy="{ys.at(points[0][1]):.1f}" r="4"/>'
    half = len(points) // 24
    smooth = [(s, mean_loss(points[max(0, i - half) : i + half + 1])) for i, (s, _) in enumerate(points)]
    places = [" ".join(f"{xs.at(s):.1f},{ys.at(y):.1f}" for s, y in line) for line in (points, smooth)]
    if not points:
        return ""
    thin = f'<path d="M{places[0]}" stroke-width="1" opacity=".4"/>' if half else ""
    return f'{thin}<path d="M{places[1]}" stroke-width="2.5"/>'
