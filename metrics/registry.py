"""Metrics by name: the built-in ones and those that other packages offer under the entry-point group `bnbench.metrics`.

A plug-in is an entry point whose name is the metric's name and whose object is a `Metric` subclass (or any callable
without arguments) that gives a `Metric`. A plug-in that cannot be loaded is named in the log and skipped: it never
stops a run.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from bnbench.metrics.core import Metric
from bnbench.metrics.errors import UsageError

GROUP = "bnbench.metrics"

_BUILT_IN = {
    "chrF++": "chrf:ChrFPlusPlus",
    "chrF": "chrf:ChrF",
    "BLEU": "bleu:BLEU",
    "ROUGE": "rouge:ROUGE",
    "keyword-empathy": "empathy.keyword:KeywordEmpathy",
    "semantic-empathy": "empathy.semantic:SemanticEmpathy",
    "perplexity": "perplexity:Perplexity",
    "degeneration": "degeneration:Degeneration",
    "diversity": "degeneration:Diversity",
    "BERTScore": "bertscore:BERTScore",
}
_DEFAULT = ("chrF++", "BLEU", "ROUGE", "keyword-empathy", "semantic-empathy", "perplexity", "degeneration")

_log = logging.getLogger(__name__)


def metric_names() -> tuple[str, ...]:
    """The names of all metrics, built-in ones first, then the plug-ins that load."""
    return (*_BUILT_IN, *(name for name in _plug_ins() if name not in _BUILT_IN))


def get_metric(name: str) -> Metric:
    """A new metric with its default settings; capitals do not matter. Raises `UsageError` naming the nearest name."""
    wanted = {known.casefold(): known for known in _BUILT_IN}.get(name.casefold())
    if wanted is not None:
        module, _, attribute = _BUILT_IN[wanted].partition(":")
        return _made(getattr(importlib.import_module(f"bnbench.metrics.{module}"), attribute))
    plug_ins = {known.casefold(): make for known, make in _plug_ins().items()}
    if name.casefold() in plug_ins:
        return _made(plug_ins[name.casefold()])
    raise UsageError(f"there is no metric {name!r}{_nearest(name)}; known: {', '.join(metric_names())}")


def default_metrics(needs_available: frozenset[str]) -> list[Metric]:
    """The metrics of a run, the primary one (chrF++) first, less those that need something that is not available.

    `needs_available` is any of "references", "messages", "likelihoods".
    """
    return [metric for metric in map(get_metric, _DEFAULT) if metric.needs <= needs_available]


def _plug_ins() -> dict[str, Callable[[], object]]:
    """The plug-ins that load, by name; of two with one name the first is taken."""
    found: dict[str, Callable[[], object]] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in _BUILT_IN or entry.name in found:
            _log.warning("metric plug-in %r (%s) is skipped: the name is taken", entry.name, entry.value)
        elif (make := _loaded(entry)) is not None:
            found[entry.name] = make
    return found


def _loaded(entry: EntryPoint) -> Callable[[], object] | None:
    try:
        _made(make := entry.load())
    except Exception as error:  # whatever a stranger's module raises, it is theirs and not the run's
        _log.warning("metric plug-in %r (%s) is skipped: %s: %s", entry.name, entry.value, type(error).__name__, error)
        return None
    loaded: Callable[[], object] = make
    return loaded


def _made(make: Callable[[], object]) -> Metric:
    metric = make()
    if not isinstance(metric, Metric):
        raise UsageError(f"{make!r} gives {type(metric).__name__}, not a bnbench.metrics.Metric")
    return metric


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.casefold(), [known.casefold() for known in _BUILT_IN], n=1)
    return f" (did you mean {next(k for k in _BUILT_IN if k.casefold() == close[0])!r}?)" if close else ""
