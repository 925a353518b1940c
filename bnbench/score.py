"""Scoring files: replies beside references and messages, streamed through the metrics on all cores."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bnbench.data.chat import without_thoughts
from bnbench.data.files import check_columns
from bnbench.data.join import FIELDS, ReplyRow, TextFile, join
from bnbench.errors import CorpusError, InputError, UsageError
from bnbench.metrics.combined import CombinedScore
from bnbench.metrics.core import PART, Metric, Result, Texts
from bnbench.metrics.evaluation import evaluate_stream
from bnbench.metrics.original import OriginalScores, original_scores
from bnbench.metrics.registry import default_metrics, get_metric
from bnbench.metrics.significance import FEW, TOO_FEW, counting
from bnbench.progress import Stage

PROFILES = ("bnbench", "original")
_PART_CHARACTERS = 4_000_000  # of the texts that are scored at once
_PARALLEL_FROM = 4 * PART  # replies; with fewer, starting processes costs more than they save

Paths = Sequence[str | Path]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """How many replies were scored, and each metric's `Result` (value, interval, signature) by the metric's name."""

    n: int
    results: Mapping[str, Result]
    hint: str = ""
    """What files that were not given would add."""

    def summary(self) -> dict[str, Any]:
        """The same as plain values, for JSON; one reply has no interval."""
        metrics = {}
        for name, result in self.results.items():
            intervals = {key: [ends.low, ends.high] if result.n > 1 else None for key, ends in result.intervals.items()}
            main = {"value": result.value, "interval": intervals[result.of.values[0]], "signature": result.signature}
            main |= {"higher_is_better": result.of.higher_is_better}
            metrics[name] = main | {"scores": dict(result.scores), "intervals": intervals}
        return {"n": self.n, "metrics": metrics}

    def __str__(self) -> str:
        several = "95 % bootstrap intervals" if self.n > 1 else "one gives no interval"
        scale = "0–100, " if all(result.of.is_percent for result in self.results.values()) else ""
        head = f"{self.n:,} {'reply' if self.n == 1 else 'replies'}, {several}; {scale}↑ higher is better, ↓ lower"
        lines = [f"{'↑' if r.of.higher_is_better else '↓'} {r}" for r in self.results.values()]
        few = [f"{self.n} replies: {TOO_FEW}"] if 1 < self.n < FEW else []
        for name, n in ((name, int(counting(r.table).sum())) for name, r in self.results.items() if r.items is None):
            only = f"{name}: on only {n} of the {self.n} replies, where it has a value"
            few += [only + (f": {TOO_FEW}" if n < FEW else "")] if n < self.n else []
        return "\n".join([head, *lines, *few, *filter(None, [self.hint])])


def score(
    predictions: str | Path, references: Paths = (), *, profile: str = "bnbench", **options: Any
) -> Scores | OriginalScores:
    """The command `bnbench score`: `score_files` with its options, or the original project's figures for the files.
    Raises UsageError for another profile, or options that it has not; InputError where the original lacks a reference.
    """
    if profile not in PROFILES:
        raise UsageError(f"there is no profile {profile!r}; there are {', '.join(PROFILES)}")
    if profile == "bnbench":
        return score_files(predictions, references, **options)
    if idle := [name for name in ("metrics", "combine", "workers") if options.get(name)]:
        raise UsageError(f"the profile 'original' has its own figures, in one process: leave out {', '.join(idle)}")
    files = _files(predictions, references, options.get("messages"), options.get("columns"))
    with join(*files) as rows:
        replies, found, asked = zip(*rows, strict=True)
    for number, row in enumerate(found, 1):
        if (n := len(row or ())) != 1:
            raise InputError(f"reply {number} has {n} references: the profile 'original' needs exactly one")
    answered = list(asked) if files[2] else None
    return original_scores(list(map(without_thoughts, replies)), [row[0] for row in found], messages=answered)


def score_files(
    predictions: str | Path, references: Paths = (), *, metrics: Sequence[str | Metric] | None = None,
    combine: Mapping[str, float] | None = None, messages: str | Path | None = None,
    columns: Mapping[str, str] | None = None, workers: int | None = 1, resamples: int = 10_000, seed: int = 42,
    quiet: bool = False,
) -> Scores:  # fmt: skip
    """Scores a file of replies; the results equal `evaluate_pairs` on the same texts.

    Args:
        predictions: a table (see `files.KINDS`), or plain lines (any other ending), one reply each.
        references: files, and lists in JSON and Parquet, give several references; blank ones do not count.
        metrics: names or `Metric`s; by default all that the files allow, chrF++ first.
        combine: weights of a combined score by metric; its parts are scored too, and it is shown beside them.
        messages: a file with what the replies answer. Without it, and without references, those are taken that stand
            beside the replies in their own file.
        columns: field (reply, reference, message, title, id) → the files' name for it, where it is another.
        workers: processes beside this one (a script needs `if __name__ == "__main__":`); 1 is none, None one a core
            where the file is long enough.

    Raises CorpusError for a file that cannot be read or joined, InputError where no file gives what a metric needs.
    """
    files = _files(predictions, references, messages, columns)
    given = frozenset(need for need, there in (("references", files[1]), ("messages", files[2])) if there)
    whole = CombinedScore(combine) if combine else None
    if isinstance(metrics, str):
        raise InputError(f"metrics is one string; give a list: [{metrics!r}]")
    asked = default_metrics(given) if metrics is None else metrics
    chosen = [get_metric(name) if isinstance(name, str) else name for name in asked]
    if whole:  # it is computed from the tables of its parts, which are counted once
        chosen += [part for part in whole.parts if part.name not in [metric.name for metric in chosen]]
        chosen.append(whole)
    for metric in chosen:
        for need in sorted(metric.needs - given):
            is_file = need in ("references", "messages")
            how = f"give a file of them (--{need} FILE)" if is_file else "no file gives them, an evaluation does"
            raise InputError(f"{metric.name} needs {need}: {how}")
    n = files[0].checked[0]
    with join(*files) as rows, Stage("score", n, quiet=quiet) as progress:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers, thoughts = workers or (cores if n >= _PARALLEL_FROM else 1), {"replies": 0, "references": 0}
        results = evaluate_stream(
            _parts(rows, thoughts), chosen, workers=workers, resamples=resamples, seed=seed, progress=progress.advance
        )
    hints = [f"{k} of {n} {what} think aloud: <think>…</think> is not scored" for what, k in thoughts.items() if k]
    for need in ("messages", "references") if metrics is None else ():
        added = [m.name for m in default_metrics(given | {need}) if m.name not in results]
        hints += [f"with --{need} FILE also: {', '.join(added)}"] if added else []
    return Scores(n, results, "\n".join(hints))


def _files(
    predictions: str | Path, references: Paths, messages: str | Path | None, columns: Mapping[str, str] | None
) -> tuple[TextFile, list[TextFile], TextFile | None]:
    if isinstance(references, (str, Path)):
        raise InputError(f"references is one path; give a list: [{str(references)!r}]")
    names, found, faults = check_columns(columns or {}, FIELDS), list[TextFile](), list[str]()
    given = {"reply": [predictions], "reference": list(references), "message": [] if messages is None else [messages]}
    for field, paths in given.items():
        having: Paths = [file.path for file in found if names.get(field) in file.first][:1]  # of what is named
        for path in paths or ((having or [predictions, *references]) if field in names else ()):
            try:
                found.append(TextFile.of(Path(path), field, names))
            except CorpusError as error:
                faults.append(str(error))
    there = dict.fromkeys(name for file in found for name in file.first)
    lacking = [name for name in names.values() if name not in there]
    faults = faults or [f"no file has a column {name!r}; there are {', '.join(there) or 'none'}" for name in lacking]
    if faults:
        raise CorpusError("; ".join(dict.fromkeys(faults)))
    replies, fields = found[0], {file.field for file in found}
    _log.info("%s", replies)
    found += filter(None, (TextFile.beside(replies, field, names) for field in given if field not in fields))
    return replies, [f for f in found if f.field == "reference"], next((f for f in found if f.field == "message"), None)


def _parts(rows: Iterator[ReplyRow], thoughts: dict[str, int]) -> Iterator[Texts]:
    """The rows, `PART` at a time, or fewer where texts are long; those that think aloud are counted in `thoughts`."""
    part: list[ReplyRow] = []
    characters = 0
    for row in chain(rows, [None]):
        if part and (row is None or len(part) == PART or characters > _PART_CHARACTERS):
            replies, *others = zip(*part, strict=True)
            yield Texts.of(replies, *(None if column[0] is None else column for column in others))
            part, characters = [], 0
        if row is not None:
            reply, references, message = row
            said, meant = without_thoughts(reply), references and tuple(map(without_thoughts, references))
            thoughts["replies"] += said != reply
            thoughts["references"] += meant != references
            part.append((said, meant, message))
            characters += len(row[0]) + sum(map(len, row[1] or ()))
