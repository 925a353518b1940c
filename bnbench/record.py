"""run.json: what was run, on what, with what, so that every number can be traced and the run repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bnbench import __version__
from bnbench.environment import describe_environment
from bnbench.errors import RunError
from bnbench.metrics.combined import CombinedScore
from bnbench.metrics.core import Metric
from bnbench.models.candidates import Candidate
from bnbench.records import SCHEMA_VERSION, Generation, read_meta
from bnbench.training import training_summary
from bnbench.work import Work

log = logging.getLogger("bnbench")


def earlier(out: Path) -> dict[str, Any]:
    """What the sessions before this one recorded in the run folder; empty where it cannot be read."""
    try:
        return read_meta(out)
    except RunError:
        return {}


def started(work: Work, before: Mapping[str, Any]) -> dict[str, Any]:
    """The record as it stands when a session begins; `finished` is null, times and memory go on from `before`."""
    request = work.request
    seconds = {c["name"]: c.get("seconds") for c in before.get("candidates", ())}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": request.out.name,
        "bnbench": __version__,
        "command": request.command,
        "created": before.get("created") or _now(),
        "finished": None,
        **describe_environment(),
        "precision": dict(work.session.precision()),
        "corpus": _corpus(work),
        "prompt": dict(work.session.prompt_format()),
        "decoding": asdict(work.decoding),
        "batch_size": request.batch_size,
        "peak_memory_bytes": before.get("peak_memory_bytes"),
        "candidates": [_candidate(work, c) | {"seconds": seconds.get(c.name)} for c in request.candidates],
        "primary_metric": request.primary,
        "combined": dict(request.combine),
        "metrics": [],
        "seed": work.decoding.seed,
        "notes": _contamination(work),
    }


def with_batch(work: Work, meta: Mapping[str, Any], candidate: Candidate, seconds: float) -> dict[str, Any]:
    """The record after one more batch of a candidate: its time, summed over all sessions, and the most memory."""
    if candidate.kind == "predictions":
        return dict(meta)
    peaks = [p for p in (meta["peak_memory_bytes"], work.session.peak_memory_bytes()) if p is not None]
    spent = [
        c | ({"seconds": round((c["seconds"] or 0.0) + seconds, 3)} if c["name"] == candidate.name else {})
        for c in meta["candidates"]
    ]
    return {**meta, "candidates": spent, "peak_memory_bytes": max(peaks, default=None)}


def finished(work: Work, meta: Mapping[str, Any], metrics: Sequence[Metric]) -> dict[str, Any]:
    """What is only known at the end, beside what `meta` has."""
    generations = work.journal.read()
    n = len(work.examples)
    return {
        "finished": _now(),
        # Again: only now is the accelerator known.
        **describe_environment(),
        "candidates": [
            c | _of_replies(c["seconds"], [g for g in generations if g.candidate == c["name"]])
            for c in meta["candidates"]
        ],
        "metrics": [
            {
                "name": m.name,
                "signature": m.signature(n),
                "columns": list(m.columns),
                "values": list(m.values),
                "higher_is_better": m.higher_is_better,
                "description": m.description,
            }
            | ({"weights": m.weights} if isinstance(m, CombinedScore) else {})
            for m in metrics
        ],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _corpus(work: Work) -> dict[str, Any]:
    return {
        "name": Path(work.corpus.source).name,
        "source": work.corpus.source,
        "fingerprint": work.corpus.fingerprint,
        "split": work.request.split if work.corpus.is_split else "all",
        "n": len(work.examples),
        "limit": work.request.limit,
        "steps": [asdict(step) for step in work.corpus.steps],
    }


def _candidate(work: Work, candidate: Candidate) -> dict[str, Any]:
    # Where files lie on this machine is nobody else's business; location, revision and hashes say what they are.
    told = {k: v for k, v in asdict(candidate).items() if k not in ("folder", "base_folder")}
    trained = training_summary(Path(candidate.folder)) if candidate.kind == "adapter" else None
    return told | {"key_fields": dict(work.session.identity(candidate)), **({"training": trained} if trained else {})}


def _of_replies(seconds: float | None, generations: Sequence[Generation]) -> dict[str, float | None]:
    """Tokens a second, and the share of replies that were cut at the limit; None where that is not known."""
    known = [g.hit_limit for g in generations if g.hit_limit is not None]
    return {
        "tokens_per_second": round(sum(g.tokens or 0 for g in generations) / seconds, 1) if seconds else None,
        "hit_limit_share": sum(known) / len(known) if known else None,
    }


def _contamination(work: Work) -> list[str]:
    """A note for each adapter that was trained on rows it is now tested on (`bnbench finetune` records their ids)."""
    tested = {e.id for e in work.examples}
    notes = []
    for candidate in work.request.candidates:
        seen = len(tested & work.session.trained_on(candidate))
        if seen:
            notes.append(
                f"{candidate.name} was trained on {seen} of the {len(tested)} test rows: "
                "its scores here say nothing about new messages"
            )
            log.warning(notes[-1])
    return notes
