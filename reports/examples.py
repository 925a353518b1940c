"""Replies side by side: the largest gains, the largest losses and the median item, by rule, and then all items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnbench.metrics.combined import NAME as COMBINED
from bnbench.metrics.combined import CombinedScore
from bnbench.metrics.core import FloatArray
from bnbench.metrics.registry import get_metric
from bnbench.reports.entries import Entry
from bnbench.reports.flags import reply_flags
from bnbench.reports.ranking import Ranking, Standing

LISTED = 500  # items on the page; all of them are in the run folder
_EXTREMES = 2  # gains, and losses, that are shown
_BESIDE = 2  # candidates beside the reference; the others are folded away


@dataclass(frozen=True)
class ReplyView:
    """One candidate's reply to one item; `score` is the primary value of this reply alone."""

    candidate: str
    text: str
    score: float
    tokens: int | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One message with all that was answered to it. `gain` is focus minus base, turned so that more is better."""

    number: int
    id: str
    topic: str
    title: str
    question: str
    reference: str
    replies: tuple[ReplyView, ...]
    folded: tuple[ReplyView, ...]
    gain: float | None

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags of all replies, for the filter."""
        return tuple(sorted({flag for reply in (*self.replies, *self.folded) for flag in reply.flags}))


@dataclass(frozen=True)
class Examples:
    """`chosen` pairs a heading with an item; gains and losses are of `focus` minus `base` (None: one candidate)."""

    focus: str | None
    base: str | None
    chosen: tuple[tuple[str, Item], ...]
    items: tuple[Item, ...]
    total: int


def examples(ranking: Ranking, entries: Sequence[Entry], messages: Sequence[Mapping[str, str]]) -> Examples:
    """The examples of a report. The focus is the best-ranked candidate that is compared with another."""
    focus = next((s for s in ranking.standings if s.compared_with), None)
    scores = per_item(ranking, entries)
    gains = _gains(ranking, focus, scores)
    views = _views(ranking, entries, focus, scores)
    items = [_item(i, message, views, gains) for i, message in enumerate(messages)]
    order = gains if gains is not None else scores[entries[0].name] * (1 if ranking.higher_is_better else -1)
    chosen = tuple((heading, items[i]) for heading, i in _choice(order, gains is not None))
    name, base = (focus.candidate, focus.compared_with) if focus else (None, None)
    return Examples(name, base, chosen, tuple(items[:LISTED]), len(items))


def per_item(ranking: Ranking, entries: Sequence[Entry]) -> dict[str, FloatArray]:
    """The primary value of every single reply, (n,) a candidate; what is not finite counts as 0."""
    made = ranking.combined if ranking.primary == COMBINED else None
    formula = (CombinedScore(made.weights) if made else get_metric(ranking.primary)).formula
    return {e.name: np.nan_to_num(formula(e.tables[ranking.primary])[:, 0], posinf=0.0, neginf=0.0) for e in entries}


def _gains(ranking: Ranking, focus: Standing | None, scores: Mapping[str, FloatArray]) -> FloatArray | None:
    if focus is None or focus.compared_with is None:
        return None
    difference: FloatArray = scores[focus.candidate] - scores[focus.compared_with]
    return difference if ranking.higher_is_better else -difference


def _choice(order: FloatArray, are_gains: bool) -> list[tuple[str, int]]:
    """Which items are shown: the two ends and the middle of `order`, no item twice."""
    ascending = [int(i) for i in np.argsort(order, kind="stable")]
    median = ascending[(len(ascending) - 1) // 2]
    top = [i for i in reversed(ascending) if i != median and (order[i] > 0 or not are_gains)][:_EXTREMES]
    bottom = [i for i in ascending if i != median and i not in top and (order[i] < 0 or not are_gains)][:_EXTREMES]
    names = (
        ("Largest gain", "Median item", "Largest loss")
        if are_gains
        else ("Highest score", "Median item", "Lowest score")
    )
    return [*((names[0], i) for i in top), (names[1], median), *((names[2], i) for i in reversed(bottom))]


def _views(
    ranking: Ranking, entries: Sequence[Entry], focus: Standing | None, scores: Mapping[str, FloatArray]
) -> list[list[ReplyView]]:
    """Replies by candidate: base and focus first, then in the order of the ranking."""
    by_name = {e.name: e for e in entries}
    first = [focus.compared_with, focus.candidate] if focus else []
    names = dict.fromkeys(n for n in [*first, *(s.candidate for s in ranking.standings)] if n is not None)
    flags = {name: reply_flags(by_name[name]) for name in names}
    return [
        [
            ReplyView(name, g.reply, float(scores[name][i]), g.tokens, flags[name][i])
            for i, g in enumerate(by_name[name].replies)
        ]
        for name in names
    ]


def _item(i: int, message: Mapping[str, str], views: Sequence[Sequence[ReplyView]], gains: FloatArray | None) -> Item:
    replies = tuple(view[i] for view in views)
    beside = _BESIDE if len(replies) > _BESIDE + 1 else len(replies)
    return Item(
        number=i + 1,
        id=message["id"],
        topic=message["topic"],
        title=message["title"],
        question=message["question"],
        reference=message["reference"],
        replies=replies[:beside],
        folded=replies[beside:],
        gain=None if gains is None else float(gains[i]),
    )
