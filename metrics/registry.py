"""Things by name, ours and those of other packages: one registry for metrics, backends and tuners.

A plug-in is an entry point under the group of its kind whose object is what a built-in name stands for: for metrics a
`Metric` subclass, or any callable that gives a `Metric`.
"""

import inspect
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from bnbench.metrics.core import Metric
from bnbench.metrics.exceptions import BnbenchError, InputError, UsageError, nearest

_log = logging.getLogger("bnbench")


@dataclass(frozen=True)
class Registry:
    """The things of one kind by name; capitals do not matter.

    `group` is the plug-ins' entry-point group, `kind` what a message calls one ("metric"), `built_in` maps our own
    names to "package.module:attribute", imported when asked for, `error` is what `get` raises. Built-in names win. A
    plug-in that does not load is named in the log and skipped: it never stops who did not ask for it.
    """

    group: str
    kind: str
    built_in: dict[str, str]
    error: type[BnbenchError] = UsageError

    def names(self) -> tuple[str, ...]:
        """The names that `get` knows: the built-in ones in their order, then those of the plug-ins that load."""
        names = list(self.built_in)
        for point in metadata.entry_points(group=self.group):
            if point.name.casefold() in map(str.casefold, names):
                _log.warning("%s plug-in %r (%s) is skipped: the name is taken", self.kind, point.name, point.value)
            elif not isinstance(self._load(point), Exception):
                names.append(point.name)
        return tuple(names)

    def get(self, name: str) -> Any:
        """The object of that name; raises `error` where there is none, or its plug-in does not load (and why)."""
        wanted = name.casefold()
        for known, target in self.built_in.items():
            if known.casefold() == wanted:
                return metadata.EntryPoint(known, target, self.group).load()
        reasons = []
        for point in metadata.entry_points(group=self.group):
            if point.name.casefold() == wanted:
                found = self._load(point)
                if not isinstance(found, Exception):
                    return found  # of two with one name the first that works
                reasons.append(f"the plug-in {point.value} does not load: {type(found).__name__}: {found}")
        if reasons:
            raise self.error(f"there is no usable {self.kind} {name!r}: {'; '.join(reasons)}")
        hint = nearest(name, names := self.names()) or ";"
        raise self.error(f"there is no {self.kind} {name!r}{hint} known: {', '.join(names)}")

    def _load(self, point: metadata.EntryPoint) -> Any:
        try:
            return point.load()
        except Exception as error:  # whatever a stranger's module raises, it is theirs and must not end us
            skipped = self.kind, point.name, point.value, type(error).__name__, error
            _log.warning("%s plug-in %r (%s) is skipped: %s: %s", *skipped)
            return error


_RATED = ("Overall", "Empathy", "Relevance", "Fluency", "Wins")
_BUILT_IN = {
    "chrF++": "bnbench.metrics.chrf:ChrFPlusPlus",
    "chrF": "bnbench.metrics.chrf:ChrF",
    "BLEU": "bnbench.metrics.bleu:BLEU",
    "ROUGE": "bnbench.metrics.rouge:ROUGE",
    "ROUGE-csebuetnlp": "bnbench.metrics.rouge:CSEBUETNLP",
    "keyword-empathy": "bnbench.metrics.empathy.keyword:KeywordEmpathy",
    "semantic-empathy": "bnbench.metrics.empathy.semantic:SemanticEmpathy",
    "perplexity": "bnbench.metrics.perplexity:Perplexity",
    "degeneration": "bnbench.metrics.degeneration:Degeneration",
    "diversity": "bnbench.metrics.degeneration:Diversity",
    "address": "bnbench.metrics.address:Address",
    "relevance": "bnbench.metrics.relevance:Relevance",
    "BERTScore": "bnbench.metrics.bertscore:BERTScore",
    "combined": "bnbench.metrics.combined:CombinedScore",
    **{f"judge-{x.lower()}": f"bnbench.judge:{x}" for x in _RATED},
    **{f"human-{x.lower()}": f"bnbench.reports.people:{x}" for x in _RATED},
}
METRICS = Registry("bnbench.metrics", "metric", _BUILT_IN)
DEFAULT = ("chrF++", "BLEU", "ROUGE", "keyword-empathy", "semantic-empathy", "perplexity", "degeneration")
"""The metrics of a run that asks for none, the primary one first."""


def metric_names() -> tuple[str, ...]:
    """All metrics' names, but those that are none without weights, a judge (`judge-overall:URL#MODEL`), ratings."""
    return tuple(name for name in METRICS.names() if name != "combined" and not name.startswith(("judge-", "human-")))


def get_metric(name: str) -> Metric:
    """A new metric: `ROUGE`, or `name:argument` for one that is made with a folder, a file, a model's id or a choice.

    Capitals do not matter. The argument is the first of the metric's constructor: `BERTScore:google/muril-base-cased`,
    `keyword-empathy:mine.toml`, `chrF++:none`. Raises `UsageError` for an unknown name or a wrong argument.
    """
    name, _, argument = name.partition(":")
    make, given = METRICS.get(name), (argument,) if argument else ()
    try:
        inspect.signature(make).bind(*given)
    except TypeError:
        takes = "takes no argument" if argument else "needs an argument"
        raise UsageError(f"the metric {name} {takes}: write {name}{'' if argument else ':ARGUMENT'}") from None
    metric = make(*given)
    if not isinstance(metric, Metric):
        raise UsageError(f"{make!r} gives {type(metric).__name__}, not a bnbench.metrics.Metric")
    metric.argument = metric.argument or argument
    return metric


def distinct(metrics: Iterable[Metric]) -> list[Metric]:
    """The metrics, each once; `InputError` for two of one name whose signatures differ: names tell results apart."""
    found = dict[str, Metric]()
    for metric in metrics:
        other = found.setdefault(metric.name, metric)
        if other is not metric and other.signature(0) != metric.signature(0):
            advice = "name one of them, and make another run for the other"
            raise InputError(f"{other.spelling} and {metric.spelling}: a run has one {metric.name}; {advice}")
    return list(found.values())


def default_metrics(needs_available: frozenset[str]) -> list[Metric]:
    """The metrics of a run, the primary one (chrF++) first, less those that need something that is not available."""
    return [metric for metric in map(get_metric, DEFAULT) if metric.needs <= needs_available]
