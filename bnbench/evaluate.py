"""Evaluation: every candidate answers every message once, and each reply becomes a row of statistics.

The work is planned as a whole before it starts: for each candidate length-sorted batches of the whole list of prompts.
The journal of replies is therefore always a prefix of the plan; a run that was killed is cut back to its last whole
batch and goes on from there, and ends with the bytes of a run that was never killed.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bnbench import __version__, records
from bnbench.data.corpus import FIELDS, Corpus, Example, SplitSizes, check_source, check_split, demo_corpus, load_corpus
from bnbench.data.files import check_columns
from bnbench.errors import CorpusError, PartialRunError, RunError, UsageError
from bnbench.metrics.combined import NAME as COMBINED
from bnbench.metrics.combined import CombinedScore, weighted
from bnbench.metrics.core import Metric, Texts
from bnbench.metrics.evaluation import statistics
from bnbench.metrics.registry import default_metrics, get_metric
from bnbench.models.backend import Backend, BackendOptions, get_backend
from bnbench.models.candidates import Candidate, missing
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompt, Prompter
from bnbench.progress import stage

PRIMARY = "chrF++"
EVERY_NEED = frozenset({"references", "messages", "likelihoods"})

log = logging.getLogger("bnbench")


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, on what, and how. `out` is the run folder; `command` what a user types to go on.

    `backend` answers for the models, `metrics` are names as `get_metric` takes them (none: the default set), `primary`
    ranks and may be any of them. `combine` has the weights of a combined score by metric, summing to 1
    (`parse_weights`); empty: there is none.
    """

    candidates: tuple[Candidate, ...]
    out: Path
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    sizes: SplitSizes = SplitSizes()  # noqa: RUF009 - frozen
    split: str = "test"
    limit: int | None = None
    decoding: Decoding = Decoding()  # noqa: RUF009 - frozen
    batch_size: int | None = None
    max_tokens: int = 4096
    quantise: bool | None = None
    device: str | None = None
    trust_remote_code: bool = False
    backend: str = "hf"
    metrics: tuple[str, ...] = ()
    primary: str = PRIMARY
    combine: Mapping[str, float] = field(default_factory=dict)
    overwrite: bool = False
    command: str = "bnbench evaluate"
    quiet: bool = False

    def backend_of(self, candidate: Candidate) -> str:
        """The name of the backend that answers for a candidate."""
        return "recorded" if candidate.kind == "predictions" else self.backend


@dataclass(frozen=True)
class Measures:
    """The metrics of a run, the name of the one that ranks, and the weights of its combined score (empty: none)."""

    metrics: tuple[Metric, ...]
    primary: str
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Entrant:
    """A candidate in a run: what answers for it, how it is asked, and what it is asked (in the order of the items)."""

    candidate: Candidate
    backend: Backend
    prompter: Prompter
    prompts: tuple[Prompt, ...]
    decoding: Decoding


@dataclass(frozen=True)
class Work:
    """An evaluation that is ready to start: everything is known but the replies, which go to the journal."""

    request: EvaluationRequest
    measures: Measures
    corpus: Corpus
    examples: tuple[Example, ...]
    entrants: tuple[Entrant, ...]
    journal: records.Journal


@dataclass(frozen=True)
class Batch:
    """One step of the plan: some items of one candidate, with the keys that their replies will carry."""

    entrant: Entrant
    items: tuple[int, ...]
    keys: tuple[str, ...]


def default_folder(candidates: Sequence[Candidate], data: str | None) -> Path:
    """runs/<candidates>[-<data>]: the same command finds the same folder again."""
    names = "-".join(records.slug(c.name) for c in candidates)
    return Path("runs") / (names if data is None else f"{names}-{records.slug(Path(data).stem)}")


def check_inputs(
    data: str | None, columns: Mapping[str, str], split: str, models: Sequence[str], predictions: Sequence[str]
) -> None:
    """What can be known at once: split, fields and data; where the data are missing, what else is. CorpusError."""
    check_split(split)
    check_columns(columns, FIELDS)
    try:
        if data is not None:
            check_source(data)
    except CorpusError as error:
        raise CorpusError("\nbnbench: ".join([str(error), *missing(models, predictions)])) from None


def choose_measures(primary: str, names: Sequence[str] = (), combine: Mapping[str, float] | None = None) -> Measures:
    """The metrics that are named, or the default ones, with the primary one and the parts of the combined score.

    Raises:
        UsageError: an unknown name (with the nearest), two metrics of one name, a combined score that ranks without
            weights or has a part of which lower is better.
    """
    chosen: dict[str, Metric] = {}

    def take(made: Metric, *, instead: bool = False) -> Metric:
        other = chosen.get(made.name)
        if other and not instead:
            raise UsageError(
                f"{other.spelling} and {made.spelling}: a run has one {made.name}; name one of them, and make another "
                "run for the other"
            )
        chosen[made.name] = made
        return made

    def find(name: str) -> Metric:
        """The chosen metric of this name, with or without its argument; where there is none, a new one."""
        known = (m for m in chosen.values() if name.casefold() in (m.name.casefold(), m.spelling.casefold()))
        return next(known, None) or take(get_metric(name), instead=not names)

    for metric in map(get_metric, names) if names else default_metrics(EVERY_NEED):
        take(metric)
    if combine:
        take(CombinedScore(combine, [find(name) for name in combine]))
    if primary.casefold() == COMBINED and COMBINED not in chosen:
        raise UsageError(f"--primary {primary}: declare its weights, --combine METRIC=WEIGHT,METRIC=WEIGHT")
    primary = find(primary).name
    # A combined score counts nothing itself: its parts are computed, and shown, beside it.
    for part in [part for metric in chosen.values() for part in metric.parts]:
        chosen.setdefault(part.name, part)
    combined = chosen.pop(COMBINED, None)
    weights = combined.weights if isinstance(combined, CombinedScore) else {}
    return Measures((*chosen.values(), *([combined] if combined else [])), primary, weights)


def _check_declared(request: EvaluationRequest, measures: Measures) -> None:
    """Raises UsageError where a metric that was asked for needs what no candidate can give; RunError where what was
    declared when the run began is not what is asked for now.
    """
    can = {"references", "messages"}
    if any(get_backend(request.backend_of(c)).likelihood is not Backend.likelihood for c in request.candidates):
        can.add("likelihoods")
    asked = {name.partition(":")[0].casefold() for name in (*request.metrics, measures.primary)}
    able = [m.name for m in measures.metrics if m.needs <= can]
    for metric in measures.metrics:
        if metric.name not in able and metric.name.casefold() in asked:
            raise UsageError(
                f"{metric.name} cannot be computed for these candidates: it needs "
                f"{', '.join(sorted(metric.needs - can))}, which none of them gives; choose from {', '.join(able)}"
            )
    if request.overwrite or not (request.out / "run.json").is_file():
        return
    began = records.read_record(request.out)
    parts = {*began.combined, *measures.weights}
    if began.primary_metric != measures.primary:
        before, now = (f"with {name} as the primary metric" for name in (began.primary_metric, measures.primary))
    elif any(abs(began.combined.get(name, 0) - measures.weights.get(name, 0)) > 1e-9 for name in parts):
        before, now = (
            f"with the combined score {weighted(w)}" if w else "without a combined score"
            for w in (began.combined, measures.weights)
        )
    else:
        return
    raise RunError(
        f"{request.out}: this run began {before} and cannot go on {now}; name another --out, or start anew with "
        "--overwrite"
    )


def evaluate(request: EvaluationRequest) -> Path:
    """Runs (or goes on with) an evaluation and returns its run folder, scored and ready to be reported.

    Raises:
        BnbenchError: its branches, before anything is loaded where that is possible.
        PartialRunError: failed midway; the replies so far are kept and the message has the command to go on.
    """
    measures = choose_measures(request.primary, request.metrics, request.combine)
    _check_declared(request, measures)
    if request.batch_size is not None and request.batch_size < 1:
        raise UsageError(f"batch size {request.batch_size}: at least 1 is needed")
    work = _prepare(request, measures)
    plan = _plan(work)
    start = _resume(work, plan)
    record = _begin(work, going_on=start > 0)
    records.write_json(request.out / "run.json", record)
    record = _generate(work, plan[start:], record)
    computed = _score(work)
    records.write_json(request.out / "run.json", _end(work, record, computed))
    return request.out


def _prepare(request: EvaluationRequest, measures: Measures) -> Work:
    """Opens the backends, reads the data and asks each candidate's prompter; no weights are read."""
    backends: dict[str, Backend] = {}
    for name in dict.fromkeys(map(request.backend_of, request.candidates)):
        own = [c for c in request.candidates if request.backend_of(c) == name]
        options = BackendOptions(name, request.device, request.quantise, request.trust_remote_code)
        backends[name] = get_backend(name)(own, options)
    answering = [(c, backends[request.backend_of(c)]) for c in request.candidates]
    prompters = {candidate.name: backend.prompter(candidate) for candidate, backend in answering}
    distinct = {id(p): p for p in prompters.values()}  # candidates that are asked alike share one, and its prompts

    # A row is too long if it is for any of the candidates that can tell.
    telling = [p for p in distinct.values() if p.tokenizer is not None]

    def longest(examples: Sequence[Example]) -> Sequence[int]:
        return [max(lengths) for lengths in zip(*(p.count_tokens(examples) for p in telling), strict=True)]

    limits: dict[str, Any] = {"max_tokens": request.max_tokens, "count_tokens": longest if telling else None}
    if request.data is None:
        corpus = demo_corpus(**limits)
    else:
        corpus = load_corpus(request.data, columns=request.columns, sizes=request.sizes, **limits)
        log.info("%s: %s", request.data, corpus.describe())
        if not corpus.is_split:
            log.warning("%s: not split: %s", request.data, corpus.unsplit)
    examples = corpus.select(request.split, request.limit)
    for backend in backends.values():
        backend.bind(examples, corpus)

    asked = {}
    for key, prompter in distinct.items():
        decoding = prompter.limited(request.decoding, [e.reference for e in examples])
        asked[key] = (prompter, tuple(map(prompter.prompt, examples)), decoding)
    entrants = tuple(Entrant(c, backend, *asked[id(prompters[c.name])]) for c, backend in answering)
    return Work(request, measures, corpus, examples, entrants, records.Journal(request.out / "generations.jsonl"))


def _plan(work: Work) -> list[Batch]:
    """Each candidate's batches, the longest prompts first, so that too little memory shows at once.

    A reply's key is a hash of everything that it and its likelihood depend on.
    """
    size, examples, plan = work.request.batch_size, work.examples, list[Batch]()
    for entrant in work.entrants:
        fixed = dict(entrant.backend.identity(entrant.candidate))
        fixed |= {"decoding": asdict(entrant.decoding), "batch_size": size}
        keys = [
            records.generation_key(**fixed, item=example.id, prompt=list(prompt.ids), reference=example.reference)
            for example, prompt in zip(examples, entrant.prompts, strict=True)
        ]
        order = sorted(range(len(examples)), key=lambda i: (-len(entrant.prompts[i].ids), examples[i].id))
        lengths = [len(entrant.prompts[i].ids) for i in order]
        sizes = entrant.backend.batch_sizes(lengths, entrant.decoding.max_new_tokens or 0)
        for n in sizes if size is None else [size] * math.ceil(len(order) / size):
            items, order = tuple(order[:n]), order[n:]
            plan.append(Batch(entrant, items, tuple(keys[i] for i in items)))
    return plan


def _resume(work: Work, plan: Sequence[Batch]) -> int:
    """Cuts the journal back to whole batches; returns how many batches of the plan it holds."""
    out, journal = work.request.out, work.journal
    out.mkdir(parents=True, exist_ok=True)
    if work.request.overwrite:
        journal.path.unlink(missing_ok=True)
    done = journal.read()
    keys = [(batch.entrant.candidate.name, key) for batch in plan for key in batch.keys]
    if [(g.candidate, g.key) for g in done] != keys[: len(done)]:
        try:
            command = f" ({records.read_record(out).command})"
        except RunError:
            command = ""
        raise RunError(f"{out} holds another run{command}; name another --out, or start anew with --overwrite")
    whole = start = 0
    while start < len(plan) and whole + len(plan[start].keys) <= len(done):
        whole += len(plan[start].keys)
        start += 1
    journal.keep(done[:whole])
    if start:
        log.info("%s: going on after %d of %d replies", out, whole, len(keys))
    lines = (json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in work.examples)
    records.write_text(out / "examples.jsonl", "".join(lines))
    return start


def _generate(work: Work, plan: Sequence[Batch], record: records.RunRecord) -> records.RunRecord:
    """Works the plan off. Gives `record` with the time that each candidate took, as run.json has it after each batch.

    Where only recorded replies are left nothing is loaded, timed or shown: copying them takes no time.
    """
    quiet, path = work.request.quiet, work.request.out / "run.json"
    models = {b.entrant.candidate.name: b.entrant for b in plan if b.entrant.candidate.kind != "predictions"}
    if models:
        with stage("load", 1, quiet=quiet) as loading:
            for backend in dict.fromkeys(entrant.backend for entrant in models.values()):
                backend.load()
            loading.advance(1)
    try:
        with stage("generate", sum(len(b.items) for b in plan), quiet=quiet or not models) as progress:
            for batch in plan:
                start, name = time.monotonic(), batch.entrant.candidate.name
                generations = _answer(work, batch)
                work.journal.append(generations)
                if name in models:
                    spent = time.monotonic() - start
                    took = [
                        replace(c, seconds=round((c.seconds or 0.0) + spent, 3)) if c.name == name else c
                        for c in record.candidates
                    ]
                    peaks = (record.peak_memory_bytes, batch.entrant.backend.peak_memory_bytes())
                    peak = max((peak for peak in peaks if peak is not None), default=None)
                    record = replace(record, candidates=tuple(took), peak_memory_bytes=peak)
                records.write_json(path, record)
                progress.advance(len(generations), sum(g.tokens or 0 for g in generations))
    except (RuntimeError, OSError) as error:
        kept = f"What was computed is kept in {work.request.out}; go on with: {work.request.command}"
        raise PartialRunError(f"{type(error).__name__}: {error}\n{kept}") from error
    return record


def _answer(work: Work, batch: Batch) -> list[records.Generation]:
    """The replies of one batch, and the likelihood of each item's reference."""
    entrant, candidate = batch.entrant, batch.entrant.candidate
    prompts, examples = [entrant.prompts[i] for i in batch.items], [work.examples[i] for i in batch.items]
    replies = entrant.backend.generate(candidate, prompts, [e.id for e in examples], entrant.decoding)
    if len(replies) != len(prompts):
        raise RuntimeError(f"{candidate.name} gave {len(replies)} replies to {len(prompts)} prompts")
    scored = entrant.backend.likelihood(candidate, prompts, [e.reference for e in examples])
    rows: list[Any] = [(None,) * 4] * len(prompts)
    if scored is not None:
        rows = [(nll, int(tokens), int(size), int(characters)) for nll, tokens, size, characters in scored.tolist()]
    return [
        records.Generation(key, candidate.name, example.id, reply.text, reply.tokens, reply.hit_limit, *row)
        for key, example, reply, row in zip(batch.keys, examples, replies, rows, strict=True)
    ]


def _score(work: Work) -> list[Metric]:
    """Writes every candidate's statistics; returns the metrics that were computed for any of them.

    A candidate goes without a metric that needs what it cannot give, such as recorded replies without perplexity.
    """
    ids = [e.id for e in work.examples]
    replies = {(g.candidate, g.id): g for g in work.journal.read()}
    own, used = [m for m in work.measures.metrics if not m.parts], set[str]()
    with stage("score", len(work.entrants) * len(ids), quiet=work.request.quiet) as progress:
        for name in (candidate.name for candidate in work.request.candidates):
            generations = [replies[name, i] for i in ids]
            numbers = [(g.nll, g.nll_tokens, g.bytes, g.characters) for g in generations]
            known = all(n is not None for row in numbers for n in row)
            cut = [g.hit_limit for g in generations]
            texts = Texts.of(
                [g.reply for g in generations],
                [e.reference for e in work.examples],
                [f"{e.title} {e.question}".strip() for e in work.examples],
                np.array(numbers, dtype=np.float64) if known else None,
                None if None in cut else [bool(limit) for limit in cut],
            )
            metrics = [m for m in own if m.needs <= (EVERY_NEED if known else EVERY_NEED - {"likelihoods"})]
            tables = {m.name: t for m, t in zip(metrics, statistics(texts, metrics), strict=True)}
            records.write_scores(work.request.out, name, ids, tables, {m.name: m.columns for m in metrics})
            used.update(tables)
            progress.advance(len(ids))
    computed = [m for m in work.measures.metrics if used.issuperset(p.name for p in m.parts or (m,))]
    if work.measures.primary not in (names := [m.name for m in computed]):
        shown = ", ".join(names)
        raise UsageError(
            f"{work.measures.primary} cannot be computed for these candidates; choose --primary from {shown}"
        )
    return computed


def _begin(work: Work, *, going_on: bool) -> records.RunRecord:
    """run.json as it stands when a session begins. Times and memory go on from the sessions before this one."""
    request, corpus = work.request, work.corpus
    before = None
    if going_on:
        try:
            before = records.read_record(request.out)
        except RunError:
            log.warning("%s: its run.json cannot be read, so times are counted anew", request.out)
    seconds = {c.name: c.seconds for c in before.candidates} if before else {}
    described = [_describe(work, entrant, seconds.get(entrant.candidate.name)) for entrant in work.entrants]
    first = work.entrants[0]  # the base where there is one; the others are asked and computed as it is
    return records.RunRecord(
        name=request.out.name,
        bnbench=__version__,
        command=request.command,
        created=before.created if before else _now(),
        finished=None,
        **records.describe_environment(),
        precision=dict(first.backend.precision),
        corpus=records.CorpusRecord(
            name=Path(corpus.source).name,
            source=corpus.source,
            fingerprint=corpus.fingerprint,
            split=request.split if corpus.is_split else "all",
            n=len(work.examples),
            limit=request.limit,
            steps=tuple(asdict(step) for step in corpus.steps),
        ),
        prompt=first.prompter.describe(),
        decoding=asdict(first.decoding),
        batch_size=request.batch_size,
        peak_memory_bytes=before.peak_memory_bytes if before else None,
        candidates=tuple(record for record, _ in described),
        primary_metric=work.measures.primary,
        combined=work.measures.weights,
        metrics=(),
        seed=request.decoding.seed,
        notes=tuple(note for _, note in described if note),
    )


def _describe(work: Work, entrant: Entrant, seconds: float | None) -> tuple[records.CandidateRecord, str]:
    """A candidate's record, and a note where an adapter was trained on rows that it is now tested on."""
    candidate, training, note = entrant.candidate, None, ""
    if candidate.kind == "adapter" and candidate.folder:
        try:
            training = records.read_training(Path(candidate.folder))
        except RunError as error:
            log.warning("%s", error)
        try:
            told = json.loads((Path(candidate.folder) / records.TRAINING).read_text(encoding="utf-8"))
            seen = len({e.id for e in work.examples}.intersection(map(str, told["examples"])))
        except (OSError, ValueError, KeyError, TypeError):
            seen = 0  # there is none, or another tool's, which names no items of ours
        if seen:
            note = (
                f"{candidate.name} was trained on {seen} of the {len(work.examples)} test rows: "
                "its scores here say nothing about new messages"
            )
            log.warning(note)
    # Where files lie on this machine is nobody else's business; location, revision and hashes say what they are.
    shown = {name: value for name, value in asdict(candidate).items() if name not in ("folder", "base_folder")}
    record = records.CandidateRecord(
        **shown,
        key_fields=dict(entrant.backend.identity(candidate)),
        training=training.summary() if training else None,
        seconds=seconds,
        tokens_per_second=None,
        hit_limit_share=None,
    )
    return record, note


def _end(work: Work, record: records.RunRecord, computed: Sequence[Metric]) -> records.RunRecord:
    """The record with what is only known at the end: speed, how many replies the limit cut, and the metrics."""
    generations, candidates = work.journal.read(), []
    for candidate in record.candidates:
        own = [g for g in generations if g.candidate == candidate.name]
        limits = [g.hit_limit for g in own if g.hit_limit is not None]
        speed = sum(g.tokens or 0 for g in own) / candidate.seconds if candidate.seconds else None
        candidates.append(
            replace(
                candidate,
                tokens_per_second=None if speed is None else round(speed, 1),
                hit_limit_share=sum(limits) / len(limits) if limits else None,
            )
        )
    return replace(
        record,
        finished=_now(),
        **records.describe_environment(),  # again: only now is the accelerator known
        candidates=tuple(candidates),
        metrics=tuple(records.MetricRecord.of(metric, len(work.examples)) for metric in computed),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
