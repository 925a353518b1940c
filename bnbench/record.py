"""run.json as an evaluation goes: when a session begins, after each batch, and at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from bnbench import __version__
from bnbench.errors import RunError
from bnbench.metrics.core import Metric
from bnbench.models.candidates import Candidate
from bnbench.records import (
    CandidateRecord,
    CorpusRecord,
    Generation,
    MetricRecord,
    RunRecord,
    TrainingSummary,
    describe_environment,
    read_record,
    read_training,
)
from bnbench.work import Work

log = logging.getLogger("bnbench")


def earlier(out: Path) -> RunRecord | None:
    """What the sessions before this one recorded in the run folder; None where it cannot be read."""
    try:
        return read_record(out)
    except RunError:
        return None


def started(work: Work, before: RunRecord | None) -> RunRecord:
    """The record as it stands when a session begins; `finished` is null, times and memory go on from `before`."""
    request = work.request
    seconds = {c.name: c.seconds for c in before.candidates} if before else {}
    return RunRecord(
        name=request.out.name,
        bnbench=__version__,
        command=request.command,
        created=before.created if before else _now(),
        finished=None,
        **describe_environment(),
        precision=dict(work.session.precision()),
        corpus=CorpusRecord(
            name=Path(work.corpus.source).name,
            source=work.corpus.source,
            fingerprint=work.corpus.fingerprint,
            split=request.split if work.corpus.is_split else "all",
            n=len(work.examples),
            limit=request.limit,
            steps=tuple(asdict(step) for step in work.corpus.steps),
        ),
        prompt=dict(work.session.prompt_format()),
        decoding=asdict(work.decoding),
        batch_size=request.batch_size,
        peak_memory_bytes=before.peak_memory_bytes if before else None,
        candidates=tuple(_candidate(work, c, seconds.get(c.name)) for c in request.candidates),
        primary_metric=request.primary,
        combined=dict(request.combine),
        metrics=(),
        seed=work.decoding.seed,
        notes=tuple(_contamination(work)),
    )


def with_batch(work: Work, record: RunRecord, candidate: Candidate, seconds: float) -> RunRecord:
    """The record after one more batch of a candidate: its time, summed over all sessions, and the most memory."""
    if candidate.kind == "predictions":
        return record
    peaks = [p for p in (record.peak_memory_bytes, work.session.peak_memory_bytes()) if p is not None]
    spent = tuple(
        replace(c, seconds=round((c.seconds or 0.0) + seconds, 3)) if c.name == candidate.name else c
        for c in record.candidates
    )
    return replace(record, candidates=spent, peak_memory_bytes=max(peaks, default=None))


def finished(work: Work, record: RunRecord, metrics: Sequence[Metric]) -> RunRecord:
    """The record with what is only known at the end."""
    generations = work.journal.read()
    return replace(
        record,
        finished=_now(),
        **describe_environment(),  # again: only now is the accelerator known
        candidates=tuple(
            _with_replies(c, [g for g in generations if g.candidate == c.name]) for c in record.candidates
        ),
        metrics=tuple(MetricRecord.of(m, len(work.examples)) for m in metrics),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _candidate(work: Work, candidate: Candidate, seconds: float | None) -> CandidateRecord:
    # Where files lie on this machine is nobody else's business; location, revision and hashes say what they are.
    return CandidateRecord(
        name=candidate.name,
        kind=candidate.kind,
        location=candidate.location,
        revision=candidate.revision,
        base=candidate.base,
        base_revision=candidate.base_revision,
        weights_sha256=candidate.weights_sha256,
        key_fields=dict(work.session.identity(candidate)),
        training=_training(candidate) if candidate.kind == "adapter" else None,
        seconds=seconds,
        tokens_per_second=None,
        hit_limit_share=None,
    )


def _training(candidate: Candidate) -> TrainingSummary | None:
    """How the adapter was trained; None where bnbench did not train it, or its record is damaged (with a warning)."""
    try:
        record = read_training(Path(candidate.folder))
    except RunError as error:
        log.warning("%s", error)
        return None
    return record.summary() if record else None


def _with_replies(record: CandidateRecord, generations: Sequence[Generation]) -> CandidateRecord:
    """Tokens a second, and the share of replies that were cut at the limit; None where that is not known."""
    known = [g.hit_limit for g in generations if g.hit_limit is not None]
    tokens, seconds = sum(g.tokens or 0 for g in generations), record.seconds
    return replace(
        record,
        tokens_per_second=round(tokens / seconds, 1) if seconds else None,
        hit_limit_share=sum(known) / len(known) if known else None,
    )


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
