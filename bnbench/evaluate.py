"""Evaluation: every candidate answers every message once, and each reply becomes a row of statistics.

The work is planned as a whole before it starts: for each candidate the same length-sorted batches of the whole list of
prompts. The journal of replies is therefore always a prefix of the plan; a run that was killed is cut back to its last
whole batch and goes on from there, and ends with the bytes of a run that was never killed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bnbench import __version__
from bnbench.backends import Session, open_session
from bnbench.candidates import Candidate
from bnbench.corpus import Corpus, Example, SplitSizes, demo_corpus, load_corpus
from bnbench.decoding import Decoding
from bnbench.environment import describe_environment
from bnbench.errors import PartialRunError, RunError, UsageError
from bnbench.metrics.core import Metric, Texts
from bnbench.metrics.registry import default_metrics, get_metric
from bnbench.progress import stage
from bnbench.prompts import Prompt
from bnbench.runs import SCHEMA_VERSION, Generation, Journal, generation_key, read_meta, slug, write_json, write_scores, write_text

log = logging.getLogger("bnbench")

PRIMARY = "chrF++"


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, on what, and how. `out` is the run folder; `command` what a user types to go on."""

    candidates: tuple[Candidate, ...]
    out: Path
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    sizes: SplitSizes = SplitSizes()  # noqa: RUF009 - frozen
    split: str = "test"
    limit: int | None = None
    decoding: Decoding = Decoding()  # noqa: RUF009 - frozen
    batch_size: int = 8
    max_tokens: int = 4096
    quantise: bool | None = None
    device: str | None = None
    trust_remote_code: bool = False
    primary: str = PRIMARY
    overwrite: bool = False
    command: str = "bnbench evaluate"
    quiet: bool = False


def default_folder(candidates: Sequence[Candidate], data: str | None) -> Path:
    """runs/<candidates>[-<data>]: the same command finds the same folder again."""
    names = "-".join(slug(c.name) for c in candidates)
    return Path("runs") / (names if data is None else f"{names}-{slug(Path(data).stem)}")


@dataclass(frozen=True)
class _Batch:
    """One step of the plan: some items of one candidate, with the keys that their replies will carry."""

    candidate: Candidate
    items: tuple[int, ...]
    keys: tuple[str, ...]


def evaluate(request: EvaluationRequest) -> Path:
    """Runs (or goes on with) an evaluation and returns its run folder, scored and ready to be reported.

    Raises:
        BnbenchError: its branches, before anything is loaded where that is possible.
        PartialRunError: interrupted or failed midway; the replies so far are kept and the message has the command to go on.
    """
    get_metric(request.primary)
    if request.batch_size < 1:
        raise UsageError(f"--batch-size {request.batch_size}: at least 1 is needed")
    session = open_session(request.candidates, quantise=request.quantise, device=request.device, trust_remote_code=request.trust_remote_code)
    corpus = _corpus(request, session)
    examples = corpus.select(request.split, request.limit)
    session.bind(examples)
    decoding = session.resolve(request.decoding, [e.reference for e in examples])
    prompts = [session.prompt(example) for example in examples]
    plan = _plan(request, session, prompts, examples, decoding)
    journal, start = _open_folder(request, plan, examples)
    meta = _describe(request, session, corpus, examples, decoding)
    write_json(request.out / "run.json", meta)
    timings = _generate(request, session, plan[start:], prompts, examples, decoding, journal)
    tables = _score(request, journal, examples)
    write_json(request.out / "run.json", meta | _finish(request, session, journal, examples, timings, tables))
    return request.out


def _corpus(request: EvaluationRequest, session: Session) -> Corpus:
    count = session.count_tokens if session.counts_tokens else None
    if request.data is None:
        return demo_corpus(request.max_tokens, count)
    corpus = load_corpus(request.data, columns=request.columns, sizes=request.sizes, max_tokens=request.max_tokens, count_tokens=count)
    log.info("%s: %s", request.data, corpus.describe())
    if not corpus.is_split:
        log.warning("%s: too few rows to split, so all of them are evaluated", request.data)
    return corpus


def _plan(
    request: EvaluationRequest, session: Session, prompts: Sequence[Prompt], examples: Sequence[Example], decoding: Decoding
) -> list[_Batch]:
    """The same batches for every candidate: the longest prompts first, so that too little memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), examples[i].id))
    groups = [tuple(order[i : i + request.batch_size]) for i in range(0, len(order), request.batch_size)]
    plan = []
    for candidate in request.candidates:
        identity = dict(session.identity(candidate)) | {"decoding": asdict(decoding), "batch_size": request.batch_size}
        for group in groups:
            keys = tuple(generation_key(**identity, prompt=list(prompts[i].ids), item=examples[i].id, reference=examples[i].reference) for i in group)
            plan.append(_Batch(candidate, group, keys))
    return plan


def _open_folder(request: EvaluationRequest, plan: Sequence[_Batch], examples: Sequence[Example]) -> tuple[Journal, int]:
    """The journal, cut back to whole batches, and how many batches of the plan it already holds."""
    request.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(request.out / "generations.jsonl")
    if request.overwrite:
        journal.path.unlink(missing_ok=True)
    done = journal.read()
    keys = [key for batch in plan for key in batch.keys]
    if [g.key for g in done] != keys[: len(done)]:
        raise RunError(
            f"{request.out} holds a run with {_difference(request)}; name another folder with --out, or start anew with --overwrite"
        )
    whole = start = 0
    while start < len(plan) and whole + len(plan[start].keys) <= len(done):
        whole += len(plan[start].keys)
        start += 1
    journal.keep(done[:whole])
    if start:
        log.info("%s: going on after %d of %d replies", request.out, whole, len(keys))
    write_text(request.out / "examples.jsonl", "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in examples))
    return journal, start


def _difference(request: EvaluationRequest) -> str:
    """What the run that lies in the folder was, in the user's own words where they are known."""
    try:
        command = read_meta(request.out).get("command")
    except RunError:
        command = None
    return f"other arguments ({command})" if command else "other arguments"


def _generate(
    request: EvaluationRequest,
    session: Session,
    plan: Sequence[_Batch],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    decoding: Decoding,
    journal: Journal,
) -> dict[str, dict[str, float]]:
    """Works the plan off; returns seconds and tokens by candidate, of this session."""
    timings: dict[str, dict[str, float]] = {}
    total = sum(len(batch.items) for batch in plan)
    if not total:
        return timings
    with stage("load", 1, quiet=request.quiet) as loading:
        session.load()
        loading.advance(1)
    try:
        with stage("generate", total, quiet=request.quiet) as progress:
            for batch in plan:
                start = time.monotonic()
                generations = _answer(session, batch, prompts, examples, decoding)
                journal.append(generations)
                tokens = sum(g.tokens or 0 for g in generations)
                timing = timings.setdefault(batch.candidate.name, {"seconds": 0.0, "tokens": 0.0})
                timing["seconds"] += time.monotonic() - start
                timing["tokens"] += tokens
                progress.advance(len(generations), tokens)
    except (RuntimeError, OSError) as error:
        raise PartialRunError(f"{type(error).__name__}: {error}\nWhat was computed is kept in {request.out}; go on with: {request.command}") from error
    return timings


def _answer(session: Session, batch: _Batch, prompts: Sequence[Prompt], examples: Sequence[Example], decoding: Decoding) -> list[Generation]:
    chosen = [prompts[i] for i in batch.items]
    items = [examples[i].id for i in batch.items]
    replies = session.generate(batch.candidate, chosen, items, decoding)
    scored = session.likelihood(batch.candidate, chosen, [examples[i].reference for i in batch.items])
    rows: list[list[float | None]] = [[None] * 4] * len(items) if scored is None else scored.tolist()
    return [
        Generation(key, batch.candidate.name, item, reply.text, reply.tokens, reply.hit_limit, row[0], *map(_whole, row[1:]))
        for key, item, reply, row in zip(batch.keys, items, replies, rows, strict=True)
    ]


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _score(request: EvaluationRequest, journal: Journal, examples: Sequence[Example]) -> dict[str, list[Metric]]:
    """Writes every candidate's statistics; returns the metrics each one could be given."""
    by_candidate: dict[str, dict[str, Generation]] = {c.name: {} for c in request.candidates}
    for generation in journal.read():
        by_candidate[generation.candidate][generation.id] = generation
    used: dict[str, list[Metric]] = {}
    with stage("score", len(by_candidate) * len(examples), quiet=request.quiet) as progress:
        for name, replies in by_candidate.items():
            texts = candidate_texts([replies[e.id] for e in examples], examples)
            used[name] = default_metrics(_available(texts))
            tables = {metric.name: metric.statistics(texts) for metric in used[name]}
            write_scores(request.out, name, [e.id for e in examples], tables, {m.name: m.columns for m in used[name]})
            progress.advance(len(examples))
    return used


def _available(texts: Texts) -> frozenset[str]:
    return frozenset({"references", "messages"} | ({"likelihoods"} if texts.likelihoods is not None else set()))


def candidate_texts(generations: Sequence[Generation], examples: Sequence[Example]) -> Texts:
    """One candidate's replies with their references, messages and likelihoods, as the metrics want them."""
    numbers = [(g.nll, g.nll_tokens, g.bytes, g.characters) for g in generations]
    known = all(n is not None for row in numbers for n in row)
    return Texts.of(
        [g.reply for g in generations],
        [e.reference for e in examples],
        [f"{e.title} {e.question}".strip() for e in examples],
        np.array(numbers, dtype=np.float64) if known else None,
        [bool(g.hit_limit) for g in generations],
    )


def _describe(request: EvaluationRequest, session: Session, corpus: Corpus, examples: Sequence[Example], decoding: Decoding) -> dict[str, Any]:
    """run.json as it stands before the first reply."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": request.out.name,
        "bnbench": __version__,
        "command": request.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        **describe_environment(),
        "precision": session.precision(),
        "corpus": {
            "name": Path(corpus.source).name,
            "source": corpus.source,
            "fingerprint": corpus.fingerprint,
            "split": request.split if corpus.is_split else "all",
            "n": len(examples),
            "limit": request.limit,
            "steps": [asdict(s) for s in corpus.steps],
        },
        "prompt": session.prompt_format(),
        "decoding": asdict(decoding),
        "batch_size": request.batch_size,
        "candidates": [asdict(c) | {"key_fields": dict(session.identity(c))} for c in request.candidates],
        "primary_metric": request.primary,
        "metrics": [],
        "seed": decoding.seed,
        "notes": _contamination(session, request.candidates, examples),
    }


def _contamination(session: Session, candidates: Sequence[Candidate], examples: Sequence[Example]) -> list[str]:
    """A note for each adapter that was trained on rows it is now tested on (bnbench finetune records their ids)."""
    tested = {e.id for e in examples}
    notes = []
    for candidate in candidates:
        seen = tested & session.trained_on(candidate)
        if seen:
            notes.append(f"{candidate.name} was trained on {len(seen)} of the {len(tested)} test rows: its scores here say nothing about new messages")
    for note in notes:
        log.warning(note)
    return notes


def _finish(
    request: EvaluationRequest,
    session: Session,
    journal: Journal,
    examples: Sequence[Example],
    timings: Mapping[str, Mapping[str, float]],
    used: Mapping[str, Sequence[Metric]],
) -> dict[str, Any]:
    generations = journal.read()
    candidates = []
    for candidate in request.candidates:
        mine = [g for g in generations if g.candidate == candidate.name]
        timing = timings.get(candidate.name)
        limited = [g.hit_limit for g in mine if g.hit_limit is not None]
        candidates.append(
            asdict(candidate)
            | {
                "key_fields": dict(session.identity(candidate)),
                "seconds": timing and round(timing["seconds"], 2),
                "tokens_per_second": timing and round(timing["tokens"] / max(timing["seconds"], 1e-9), 1),
                "hit_limit_share": sum(limited) / len(limited) if limited else None,
            }
        )
    metrics = {m.name: m for group in used.values() for m in group}
    if request.primary not in metrics:
        raise UsageError(f"--primary {request.primary}: it cannot be computed for these candidates; choose one of {', '.join(metrics)}")
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "candidates": candidates,
        "peak_memory_bytes": session.peak_memory_bytes(),
        "metrics": [
            {
                "name": m.name,
                "signature": m.signature(len(examples)),
                "columns": list(m.columns),
                "values": list(m.values),
                "higher_is_better": m.higher_is_better,
                "description": m.description,
            }
            for m in metrics.values()
        ],
    }
