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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bnbench.data.corpus import Corpus, Example, check_columns, check_source, check_split, demo_corpus, load_corpus
from bnbench.errors import CorpusError, PartialRunError, RunError, UsageError
from bnbench.metrics.combined import NAME as COMBINED
from bnbench.metrics.combined import CombinedScore, weighted
from bnbench.metrics.core import Metric, Texts
from bnbench.metrics.evaluation import statistics
from bnbench.metrics.registry import default_metrics, get_metric
from bnbench.models import Session, open_session
from bnbench.models.candidates import Candidate, missing
from bnbench.progress import stage
from bnbench.record import earlier, finished, started, with_batch
from bnbench.records import (
    Generation,
    RunRecord,
    generation_key,
    read_record,
    slug,
    write_json,
    write_scores,
    write_text,
)
from bnbench.work import EvaluationRequest, Work

log = logging.getLogger("bnbench")


@dataclass(frozen=True)
class Batch:
    """One step of the plan: some items of one candidate, with the keys that their replies will carry."""

    candidate: Candidate
    items: tuple[int, ...]
    keys: tuple[str, ...]


def default_folder(candidates: Sequence[Candidate], data: str | None) -> Path:
    """runs/<candidates>[-<data>]: the same command finds the same folder again."""
    names = "-".join(slug(c.name) for c in candidates)
    return Path("runs") / (names if data is None else f"{names}-{slug(Path(data).stem)}")


def evaluate(request: EvaluationRequest) -> Path:
    """Runs (or goes on with) an evaluation and returns its run folder, scored and ready to be reported.

    Raises:
        BnbenchError: its branches, before anything is loaded where that is possible.
        PartialRunError: failed midway; the replies so far are kept and the message has the command to go on.
    """
    check_measures(request.primary, request.combine)
    _check_declared(request)
    if request.batch_size < 1:
        raise UsageError(f"batch size {request.batch_size}: at least 1 is needed")
    work = _prepare(request)
    plan = _plan(work)
    start = _resume(work, plan)
    meta = started(work, earlier(request.out) if start else None)
    path = request.out / "run.json"
    write_json(path, meta)
    meta = _generate(work, plan[start:], meta, path)
    metrics = _score(work)
    if request.combine:
        metrics[COMBINED] = CombinedScore(request.combine)
    if request.primary not in metrics:
        names = ", ".join(metrics)
        raise UsageError(f"{request.primary} cannot be computed for these candidates; choose --primary from {names}")
    write_json(path, finished(work, meta, list(metrics.values())))
    return request.out


def check_inputs(
    data: str | None, columns: Mapping[str, str], split: str, models: Sequence[str], predictions: Sequence[str]
) -> None:
    """What can be known at once: split, fields and data; where the data are missing, what else is. CorpusError."""
    check_split(split)
    check_columns(columns)
    try:
        if data is not None:
            check_source(data)
    except CorpusError as error:
        raise CorpusError("\nbnbench: ".join([str(error), *missing(models, predictions)])) from None


def check_measures(primary: str, combine: Mapping[str, float]) -> None:
    """The primary metric, and the parts of the combined score, are ones that every run computes; else UsageError."""
    run = default_metrics(frozenset({"references", "messages", "likelihoods"}))
    known = [m.name for m in run]
    for part in CombinedScore(combine).parts if combine else ():
        if part.name not in known:
            fit = ", ".join(m.name for m in run if m.higher_is_better)
            raise UsageError(f"--combine {part.name}: a run does not compute it; choose from {fit}")
    if primary == COMBINED:
        if not combine:
            raise UsageError(f"--primary {primary}: declare its weights, --combine METRIC=WEIGHT,METRIC=WEIGHT")
    elif get_metric(primary).name not in known or primary not in known:
        raise UsageError(f"--primary {primary}: a run ranks by one of {', '.join(known)}")


def _check_declared(request: EvaluationRequest) -> None:
    """What was declared when the run began is what is asked for now; RunError where it is not."""
    if request.overwrite or not (request.out / "run.json").is_file():
        return
    earlier_record = read_record(request.out)
    declared, weights = earlier_record.primary_metric, earlier_record.combined
    if declared != request.primary:
        before, now = (f"with {name} as the primary metric" for name in (declared, request.primary))
    elif weights != request.combine:
        before, now = (
            f"with the combined score {weighted(w)}" if w else "without a combined score"
            for w in (weights, request.combine)
        )
    else:
        return
    raise RunError(
        f"{request.out}: this run began {before} and cannot go on {now}; name another --out, or start anew with "
        "--overwrite"
    )


def _prepare(request: EvaluationRequest) -> Work:
    session = open_session(
        request.candidates,
        quantise=request.quantise,
        device=request.device,
        trust_remote_code=request.trust_remote_code,
    )
    corpus = _corpus(request, session)
    examples = corpus.select(request.split, request.limit)
    session.bind(examples, corpus)
    decoding = session.resolve(request.decoding, [e.reference for e in examples])
    return Work(request, session, corpus, examples, tuple(session.prompt(e) for e in examples), decoding)


def _corpus(request: EvaluationRequest, session: Session) -> Corpus:
    count = session.count_tokens if session.counts_tokens else None
    if request.data is None:
        return demo_corpus(request.max_tokens, count)
    corpus = load_corpus(
        request.data,
        columns=request.columns,
        sizes=request.sizes,
        max_tokens=request.max_tokens,
        count_tokens=count,
    )
    log.info("%s: %s", request.data, corpus.describe())
    if not corpus.is_split:
        log.warning("%s: not split: %s", request.data, corpus.unsplit)
    return corpus


def _plan(work: Work) -> list[Batch]:
    """The same batches for every candidate: the longest prompts first, so that too little memory shows at once."""
    size, examples, prompts = work.request.batch_size, work.examples, work.prompts
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), examples[i].id))
    groups = [tuple(order[i : i + size]) for i in range(0, len(order), size)]
    return [
        Batch(candidate, group, tuple(keys[i] for i in group))
        for candidate in work.request.candidates
        for keys in [_keys(work, candidate)]
        for group in groups
    ]


def _keys(work: Work, candidate: Candidate) -> list[str]:
    """The key of each item's reply: a hash of everything that it and its likelihood depend on."""
    fixed = dict(work.session.identity(candidate))
    fixed |= {"decoding": asdict(work.decoding), "batch_size": work.request.batch_size}
    return [
        generation_key(**fixed, item=example.id, prompt=list(prompt.ids), reference=example.reference)
        for example, prompt in zip(work.examples, work.prompts, strict=True)
    ]


def _resume(work: Work, plan: Sequence[Batch]) -> int:
    """Cuts the journal back to whole batches; returns how many batches of the plan it holds."""
    out, journal = work.request.out, work.journal
    out.mkdir(parents=True, exist_ok=True)
    if work.request.overwrite:
        journal.path.unlink(missing_ok=True)
    done = journal.read()
    keys = [(batch.candidate.name, key) for batch in plan for key in batch.keys]
    if [(g.candidate, g.key) for g in done] != keys[: len(done)]:
        raise RunError(f"{out} holds another run{_command_of(out)}; name another --out, or start anew with --overwrite")
    whole = start = 0
    while start < len(plan) and whole + len(plan[start].keys) <= len(done):
        whole += len(plan[start].keys)
        start += 1
    journal.keep(done[:whole])
    if start:
        log.info("%s: going on after %d of %d replies", out, whole, len(keys))
    lines = (json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in work.examples)
    write_text(out / "examples.jsonl", "".join(lines))
    return start


def _command_of(out: Path) -> str:
    """The command that made the run in the folder, where it is known."""
    try:
        return f" ({read_record(out).command})"
    except RunError:
        return ""


def _generate(work: Work, plan: Sequence[Batch], meta: RunRecord, record: Path) -> RunRecord:
    """Works the plan off; returns `meta` with the time that each candidate took, which `record` has after each batch.

    Where only recorded replies are left nothing is loaded or shown: copying them takes no time.
    """
    quiet = work.request.quiet
    if any(batch.candidate.kind != "predictions" for batch in plan):
        with stage("load", 1, quiet=quiet) as loading:
            work.session.load()
            loading.advance(1)
    else:
        quiet = True
    try:
        with stage("generate", sum(len(batch.items) for batch in plan), quiet=quiet) as progress:
            for batch in plan:
                start = time.monotonic()
                generations = _answer(work, batch)
                work.journal.append(generations)
                meta = with_batch(work, meta, batch.candidate, time.monotonic() - start)
                write_json(record, meta)
                progress.advance(len(generations), sum(g.tokens or 0 for g in generations))
    except (RuntimeError, OSError) as error:
        kept = f"What was computed is kept in {work.request.out}; go on with: {work.request.command}"
        raise PartialRunError(f"{type(error).__name__}: {error}\n{kept}") from error
    return meta


def _answer(work: Work, batch: Batch) -> list[Generation]:
    name = batch.candidate.name
    prompts = [work.prompts[i] for i in batch.items]
    examples = [work.examples[i] for i in batch.items]
    replies = work.session.generate(batch.candidate, prompts, [e.id for e in examples], work.decoding)
    scored = work.session.likelihood(batch.candidate, prompts, [e.reference for e in examples])
    rows: list[list[float | None]] = [[None] * 4] * len(examples) if scored is None else scored.tolist()
    return [
        Generation(key, name, example.id, reply.text, reply.tokens, reply.hit_limit, row[0], *map(_whole, row[1:]))
        for key, example, reply, row in zip(batch.keys, examples, replies, rows, strict=True)
    ]


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _score(work: Work) -> dict[str, Metric]:
    """Writes every candidate's statistics; returns the metrics that were computed, by name."""
    ids = [e.id for e in work.examples]
    replies: dict[tuple[str, str], Generation] = {(g.candidate, g.id): g for g in work.journal.read()}
    used: dict[str, Metric] = {}
    with stage("score", len(work.request.candidates) * len(ids), quiet=work.request.quiet) as progress:
        for candidate in work.request.candidates:
            texts = candidate_texts([replies[candidate.name, i] for i in ids], work.examples)
            known = {"references", "messages"} | ({"likelihoods"} if texts.likelihoods is not None else set())
            metrics = default_metrics(frozenset(known))
            tables = {m.name: t for m, t in zip(metrics, statistics(texts, metrics), strict=True)}
            write_scores(work.request.out, candidate.name, ids, tables, {m.name: m.columns for m in metrics})
            used |= {m.name: m for m in metrics}
            progress.advance(len(ids))
    return used


def candidate_texts(generations: Sequence[Generation], examples: Sequence[Example]) -> Texts:
    """One candidate's replies with their references, messages and likelihoods, as the metrics want them."""
    numbers = [(g.nll, g.nll_tokens, g.bytes, g.characters) for g in generations]
    known = all(n is not None for row in numbers for n in row)
    limits = [g.hit_limit for g in generations]
    return Texts.of(
        [g.reply for g in generations],
        [e.reference for e in examples],
        [f"{e.title} {e.question}".strip() for e in examples],
        np.array(numbers, dtype=np.float64) if known else None,
        None if None in limits else [bool(limit) for limit in limits],
    )
