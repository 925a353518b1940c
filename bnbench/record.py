"""run.json: what was run, on what, with what, so that every number can be traced and the run repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bnbench import __version__
from bnbench.candidates import Candidate
from bnbench.environment import describe_environment
from bnbench.metrics.core import Metric
from bnbench.runs import SCHEMA_VERSION, Generation
from bnbench.work import Work

log = logging.getLogger("bnbench")


def started(work: Work) -> dict[str, Any]:
    """The record as it stands before the first reply; `finished` is null."""
    request = work.request
    return {
        "schema_version": SCHEMA_VERSION,
        "name": request.out.name,
        "bnbench": __version__,
        "command": request.command,
        "created": _now(),
        "finished": None,
        **describe_environment(),
        "precision": dict(work.session.precision()),
        "corpus": _corpus(work),
        "prompt": dict(work.session.prompt_format()),
        "decoding": asdict(work.decoding),
        "batch_size": request.batch_size,
        "candidates": [_candidate(work, c) for c in request.candidates],
        "primary_metric": request.primary,
        "metrics": [],
        "seed": work.decoding.seed,
        "notes": _contamination(work),
    }


def finished(work: Work, timings: Mapping[str, tuple[float, int]], metrics: Sequence[Metric]) -> dict[str, Any]:
    """What is only known at the end. `timings` has seconds and tokens by candidate, of the last session."""
    generations = work.journal.read()
    n = len(work.examples)
    return {
        "finished": _now(),
        # Again: only now is the accelerator known.
        **describe_environment(),
        "peak_memory_bytes": work.session.peak_memory_bytes(),
        "candidates": [
            _candidate(work, c)
            | _speed(timings.get(c.name))
            | {"hit_limit_share": _hit_limit([g for g in generations if g.candidate == c.name])}
            for c in work.request.candidates
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
    return told | {"key_fields": dict(work.session.identity(candidate))}


def _speed(timing: tuple[float, int] | None) -> dict[str, float | None]:
    if timing is None:
        return {"seconds": None, "tokens_per_second": None}
    seconds, tokens = timing
    return {"seconds": round(seconds, 2), "tokens_per_second": round(tokens / max(seconds, 1e-9), 1)}


def _hit_limit(generations: Sequence[Generation]) -> float | None:
    """The share of replies that were cut at the limit; None where that is not known."""
    known = [g.hit_limit for g in generations if g.hit_limit is not None]
    return sum(known) / len(known) if known else None


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
