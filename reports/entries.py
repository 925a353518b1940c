"""The candidates of one run or several, each once, over the same items and under the same metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnbench.errors import RunError
from bnbench.metrics.combined import NAME as COMBINED
from bnbench.metrics.combined import weighted
from bnbench.metrics.core import FloatArray
from bnbench.records import CandidateRecord, Generation, Run, RunRecord


@dataclass(frozen=True)
class Entry:
    """One candidate of one run. `replies` and `tables` are in the order of the items.

    `own_base` is the name of the base that an adapter was evaluated on.
    """

    name: str
    record: CandidateRecord
    replies: tuple[Generation, ...]
    tables: Mapping[str, FloatArray]
    own_base: str | None = None

    @property
    def kind(self) -> str:
        """Base, adapter or predictions."""
        return self.record.kind

    @property
    def hit_limit_share(self) -> float | None:
        """Share of replies that were cut at the token limit; None where that is not known."""
        return self.record.hit_limit_share


def collect(runs: Sequence[Run]) -> list[Entry]:
    """The candidates of all runs, each once; a name that stands for two different candidates gets its run's name added.

    A candidate of a later run is the same when identity (`key_fields`) and decoding are.

    Raises:
        RunError: no runs, the runs are not over the same items, or a metric has another signature in one of them.
    """
    if not runs:
        raise RunError("nothing to report: name at least one run folder")
    signatures: dict[str, tuple[str, Run]] = {}
    entries: dict[str, Entry] = {}
    known: dict[str, str] = {}
    for run in runs:
        _same_items(run, runs[0])
        _same_signatures(run, signatures)
        known |= _enter(run, entries, known)
    return list(entries.values())


def _enter(run: Run, entries: dict[str, Entry], known: Mapping[str, str]) -> dict[str, str]:
    """Adds the run's candidates that no earlier run had; returns the name by which each identity of this run stands."""
    names: dict[str, str] = {}
    base: str | None = None  # a run has one at most, and it comes first
    for record in run.record.candidates:
        identity = json.dumps([record.key_fields, run.record.decoding], sort_keys=True)
        name = known.get(identity)
        if name is None:
            name = _free_name(record.name, run, entries)
            own = base if record.kind == "adapter" else None
            entries[name] = Entry(name, record, run.replies[record.name], run.tables[record.name], own)
        names[identity] = name
        base = name if record.kind == "base" else base
    return names


def _free_name(name: str, run: Run, taken: Mapping[str, Entry]) -> str:
    if name not in taken:
        return name
    name, number = f"{name} ({run.record.name})", 2
    while (f"{name} {number}" if number > 2 else name) in taken:
        number += 1
    return f"{name} {number}" if number > 2 else name


def _same_items(run: Run, first: Run) -> None:
    ours, theirs = ({e["id"]: e for e in r.examples} for r in (run, first))
    if list(ours) != list(theirs):
        only = [i for i in ours if i not in theirs] + [i for i in theirs if i not in ours]
        what = (
            f"item {only[0]} is in one of them only ({len(only)} such)" if only else "their items are in another order"
        )
        raise RunError(
            f"{run.path} ({len(ours)} items) and {first.path} ({len(theirs)} items) cannot be compared: {what}; "
            "evaluate both on the same data, --split and --limit"
        )
    changed = next(((i, f) for i, e in ours.items() for f in e if e[f] != theirs[i].get(f)), None)
    if changed:
        raise RunError(f"{run.path} and {first.path} cannot be compared: item {changed[0]} has another {changed[1]}")


def _same_signatures(run: Run, signatures: dict[str, tuple[str, Run]]) -> None:
    for metric in run.record.metrics:
        if metric.name == COMBINED:  # other weights leave it out (`same_weights`), and its parts are checked
            continue
        expected, other = signatures.setdefault(metric.name, (metric.signature, run))
        if metric.signature != expected:
            raise RunError(
                f"{run.path}: {metric.signature} cannot be ranked with {expected} of {other.path}; "
                "run both evaluations again with the same version (their replies are kept)"
            )


def same_weights(runs: Sequence[Run]) -> bool:
    """Whether all runs declared the same combined score, or none. RunError where not and it is what ranks."""
    same = all(_weights(run) == _weights(runs[0]) for run in runs)
    if not same and runs[0].record.primary_metric == COMBINED:
        raise RunError(
            f"{runs[0].path} ranks by a combined score that not all of {', '.join(str(run.path) for run in runs[1:])} "
            "declared; evaluate them with the same --combine, or name first a run with another primary metric"
        )
    return same


def _weights(run: Run) -> Mapping[str, float]:
    return run.record.combined


def differences_between(runs: Sequence[Run]) -> list[str]:
    """A note for each run that does not share more than its candidates with the first: decoding, precision, prompts."""
    first = runs[0]
    notes = []
    for run in runs[1:]:
        ours, theirs = _settings(run.record), _settings(first.record)
        different = [name for name, value in ours.items() if value and theirs[name] and value != theirs[name]]
        if different:
            notes.append(
                f"the runs {first.record.name} and {run.record.name} differ in {', '.join(different)}: "
                "differences between their candidates may come from there"
            )
        if _weights(run) != _weights(first):
            declared = " and ".join(f"{r.record.name} {weighted(_weights(r)) or 'none'}" for r in (first, run))
            notes.append(f"the combined score is left out: the runs declared different ones, {declared}")
        if run.record.primary_metric != first.record.primary_metric:
            notes.append(
                f"the run {run.record.name} declared {run.record.primary_metric} as its primary metric; "
                f"here {first.record.primary_metric} ranks, as {first.record.name} declared"
            )
    return notes


def _settings(record: RunRecord) -> dict[str, Any]:
    """What moves replies; each None where a run has recorded replies only, of which nothing is known."""
    # max_new_tokens follows from max_words and the tokenizer, so it differs between models that were decoded alike.
    decoding, precision, prompt = record.decoding, record.precision, record.prompt
    if all(candidate.kind == "predictions" for candidate in record.candidates):
        decoding = precision = prompt = {}
    decoding = {k: v for k, v in decoding.items() if k != "max_new_tokens" or not decoding.get("max_words")}
    return {
        "decoding": decoding,
        "dtype": precision.get("dtype"),
        "quantisation": precision.get("quantisation"),
        "prompt format": prompt.get("kind"),
        "system prompt": prompt.get("system"),
    }
