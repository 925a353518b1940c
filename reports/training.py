"""How the adapters were trained, where `bnbench finetune` trained them: recipe, length, and the loss curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bnbench.plot import loss_svg
from bnbench.records import Run
from bnbench.reports.panels import training_facts


@dataclass(frozen=True)
class TrainingView:
    """One adapter's training: `facts` are (label, text) pairs, `curve` is SVG of our own from numbers alone."""

    candidate: str
    facts: tuple[tuple[str, str], ...]
    curve: Markup


def training_views(runs: Sequence[Run]) -> list[TrainingView]:
    """Of every adapter that has a record, in the order of the runs."""
    trained = {c.name: c.training for run in runs for c in run.record.candidates if c.training}
    return [TrainingView(n, tuple(training_facts(t)), Markup(loss_svg(t.loss, n))) for n, t in trained.items()]
