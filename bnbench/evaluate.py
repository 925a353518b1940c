"""Evaluation: every candidate answers every message once, and each reply becomes a row of statistics.

The work is planned as a whole before it starts: for each candidate length-sorted batches of the whole list of prompts.
The journal of replies is therefore always a prefix of the plan; a run that was killed is cut back to its last whole
batch and goes on from there, and ends with the bytes of a run that was never killed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bnbench import __version__
from bnbench.data.corpus import (
    Corpus,
    Example,
    SplitSizes,
    check_columns,
    check_source,
    check_split,
    demo_corpus,
    load_corpus,
)
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
from bnbench.records import (
    TRAINING,
    CandidateRecord,
    CorpusRecord,
    Generation,
    Journal,
    MetricRecord,
    RunRecord,
    describe_environment,
    generation_key,
    read_record,
    read_training,
    slug,
    write_json,
    write_scores,
    write_text,
)

PRIMARY = "chrF++"
_EVERY_NEED = frozenset({"references", "messages", "likelihoods"})

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
    batch_size: int = 8
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
    """The metrics of a run, the combined one last, and the name of the one that ranks."""

    metrics: tuple[Metric, ...]
    primary: str


@dataclass(frozen=True)
class Work:
    """An evaluation that is ready to start: everything is known but the replies.

    `backends`, `prompters`, `prompts` (in the order of `examples`) and `decoding` are by the candidate's name.
    """

    request: EvaluationRequest
    measures: Measures
    backends: Mapping[str, Backend]
    prompters: Mapping[str, Prompter]
    corpus: Corpus
    examples: tuple[Example, ...]
    prompts: Mapping[str, tuple[Prompt, ...]]
    decoding: Mapping[str, Decoding]

    @property
    def journal(self) -> Journal:
        """The file that the replies go to."""
        return Journal(self.request.out / "generations.jsonl")


@dataclass(frozen=True)
class Batch:
    """One step of the plan: some items of one candidate, with the keys that their replies will carry."""

    candidate: Candidate
    items: tuple[int, ...]
    keys: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ before anything loads


def default_folder(candidates: Sequence[Candidate], data: str | None) -> Path:
    """runs/<candidates>[-<data>]: the same command finds the same folder again."""
    names = "-".join(slug(c.name) for c in candidates)
    return Path("runs") / (names if data is None else f"{names}-{slug(Path(data).stem)}")


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


def choose_measures(primary: str, names: Sequence[str] = (), combine: Mapping[str, float] | None = None) -> Measures:
    """The metrics that are named, or the default ones, with the primary one and the parts of the combined score.

    Raises:
        UsageError: an unknown name (with the nearest), two metrics of one name, a combined score that ranks without
            weights or has a part of which lower is better.
    """
    given = [get_metric(name) for name in names] if names else default_metrics(_EVERY_NEED)
    chosen: dict[str, Metric] = {}
    for metric in given:
        if metric.name in chosen:
            raise UsageError(
                f"--metric {metric.spelling}: {chosen[metric.name].spelling} is named too, and one run has one metric "
                f"of the name {metric.name}; make two runs"
            )
        chosen[metric.name] = metric

    def find(name: str) -> Metric:
        """The chosen metric of this name, with or without its argument; a new one where there is none."""
        for metric in chosen.values():
            if name.casefold() in (metric.name.casefold(), metric.spelling.casefold()):
                return metric
        made = get_metric(name)
        if names and made.name in chosen:
            raise UsageError(f"--primary {name}: the run computes {chosen[made.name].spelling}; name one of the two")
        chosen[made.name] = made
        return made

    if primary.casefold() != COMBINED:
        primary = find(primary).name
    elif not combine:
        raise UsageError(f"--primary {primary}: declare its weights, --combine METRIC=WEIGHT,METRIC=WEIGHT")
    else:
        primary = COMBINED
    if combine:
        chosen[COMBINED] = CombinedScore(combine, [find(name) for name in combine])
    return Measures(tuple(chosen.values()), primary)


def _check_needs(request: EvaluationRequest, measures: Measures) -> None:
    """Raises UsageError where a metric that was asked for by name needs what no candidate can give."""
    can = {"references", "messages"}
    if any(get_backend(request.backend_of(c)).has_likelihoods() for c in request.candidates):
        can.add("likelihoods")
    asked = {name.partition(":")[0].casefold() for name in (*request.metrics, *request.combine, measures.primary)}
    able = [m.name for m in measures.metrics if m.needs <= can]
    for metric in measures.metrics:
        if metric.name not in able and metric.name.casefold() in asked:
            lacking = ", ".join(sorted(metric.needs - can))
            raise UsageError(
                f"{metric.name} cannot be computed for these candidates: it needs {lacking}, which none of them gives; "
                f"choose from {', '.join(able)}"
            )


def _check_declared(request: EvaluationRequest, primary: str) -> None:
    """What was declared when the run began is what is asked for now; RunError where it is not."""
    if request.overwrite or not (request.out / "run.json").is_file():
        return
    began = read_record(request.out)
    if began.primary_metric != primary:
        before, now = (f"with {name} as the primary metric" for name in (began.primary_metric, primary))
    elif began.combined != request.combine:
        before, now = (
            f"with the combined score {weighted(w)}" if w else "without a combined score"
            for w in (began.combined, request.combine)
        )
    else:
        return
    raise RunError(
        f"{request.out}: this run began {before} and cannot go on {now}; name another --out, or start anew with "
        "--overwrite"
    )


# ----------------------------------------------------------------------------------------------------------------- run


def evaluate(request: EvaluationRequest) -> Path:
    """Runs (or goes on with) an evaluation and returns its run folder, scored and ready to be reported.

    Raises:
        BnbenchError: its branches, before anything is loaded where that is possible.
        PartialRunError: failed midway; the replies so far are kept and the message has the command to go on.
    """
    measures = choose_measures(request.primary, request.metrics, request.combine)
    _check_needs(request, measures)
    _check_declared(request, measures.primary)
    if request.batch_size < 1:
        raise UsageError(f"batch size {request.batch_size}: at least 1 is needed")
    work = _prepare(request, measures)
    plan = _plan(work)
    start = _resume(work, plan)
    record = _begin(work, going_on=start > 0)
    write_json(request.out / "run.json", record)
    record = _generate(work, plan[start:], record)
    computed = _score(work)
    write_json(request.out / "run.json", _end(work, record, computed))
    return request.out


def _prepare(request: EvaluationRequest, measures: Measures) -> Work:
    """Opens the backends, reads the data and asks each candidate's prompter; no weights are read."""
    candidates = request.candidates
    backends: dict[str, Backend] = {}
    for name in dict.fromkeys(map(request.backend_of, candidates)):
        own = [c for c in candidates if request.backend_of(c) == name]
        options = BackendOptions(name, request.device, request.quantise, request.trust_remote_code)
        backends |= dict.fromkeys([c.name for c in own], get_backend(name)(own, options))
    prompters = {c.name: backends[c.name].prompter(c) for c in candidates}
    distinct = {id(p): p for p in prompters.values()}  # candidates that are asked alike share one, and its prompts

    # A row is too long if it is for any of the candidates that can tell.
    telling = [p for p in distinct.values() if p.tokenizer is not None]

    def count(examples: Sequence[Example]) -> Sequence[int]:
        return [max(lengths) for lengths in zip(*(p.count_tokens(examples) for p in telling), strict=True)]

    if request.data is None:
        corpus = demo_corpus(request.max_tokens, count if telling else None)
    else:
        corpus = load_corpus(
            request.data,
            columns=request.columns,
            sizes=request.sizes,
            max_tokens=request.max_tokens,
            count_tokens=count if telling else None,
        )
        log.info("%s: %s", request.data, corpus.describe())
        if not corpus.is_split:
            log.warning("%s: not split: %s", request.data, corpus.unsplit)
    examples = corpus.select(request.split, request.limit)
    for backend in {id(b): b for b in backends.values()}.values():
        backend.bind(examples, corpus)

    references = [e.reference for e in examples]
    asked = {
        key: (tuple(map(p.prompt, examples)), p.limited(request.decoding, references)) for key, p in distinct.items()
    }
    prompts = {name: asked[id(p)][0] for name, p in prompters.items()}
    decoding = {name: asked[id(p)][1] for name, p in prompters.items()}
    return Work(request, measures, backends, prompters, corpus, examples, prompts, decoding)


def _plan(work: Work) -> list[Batch]:
    """Each candidate's batches, the longest prompts first, so that too little memory shows at once.

    A reply's key is a hash of everything that it and its likelihood depend on.
    """
    size, examples, plan = work.request.batch_size, work.examples, []
    for candidate in work.request.candidates:
        prompts = work.prompts[candidate.name]
        fixed = dict(work.backends[candidate.name].identity(candidate))
        fixed |= {"decoding": asdict(work.decoding[candidate.name]), "batch_size": size}
        keys = [
            generation_key(**fixed, item=example.id, prompt=list(prompt.ids), reference=example.reference)
            for example, prompt in zip(examples, prompts, strict=True)
        ]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), examples[i].id))
        for start in range(0, len(order), size):
            items = tuple(order[start : start + size])
            plan.append(Batch(candidate, items, tuple(keys[i] for i in items)))
    return plan


def _resume(work: Work, plan: Sequence[Batch]) -> int:
    """Cuts the journal back to whole batches; returns how many batches of the plan it holds."""
    out, journal = work.request.out, work.journal
    out.mkdir(parents=True, exist_ok=True)
    if work.request.overwrite:
        journal.path.unlink(missing_ok=True)
    done = journal.read()
    keys = [(batch.candidate.name, key) for batch in plan for key in batch.keys]
    if [(g.candidate, g.key) for g in done] != keys[: len(done)]:
        try:
            command = f" ({read_record(out).command})"
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
    write_text(out / "examples.jsonl", "".join(lines))
    return start


def _generate(work: Work, plan: Sequence[Batch], record: RunRecord) -> RunRecord:
    """Works the plan off. Gives `record` with the time that each candidate took, as run.json has it after each batch.

    Where only recorded replies are left nothing is loaded or shown: copying them takes no time.
    """
    quiet, path = work.request.quiet, work.request.out / "run.json"
    models = [batch.candidate for batch in plan if batch.candidate.kind != "predictions"]
    if models:
        with stage("load", 1, quiet=quiet) as loading:
            for backend in {id(b): b for b in (work.backends[c.name] for c in models)}.values():
                backend.load()
            loading.advance(1)
    try:
        with stage("generate", sum(len(b.items) for b in plan), quiet=quiet or not models) as progress:
            for batch in plan:
                start = time.monotonic()
                generations = _answer(work, batch)
                work.journal.append(generations)
                if batch.candidate in models:
                    spent = time.monotonic() - start
                    peaks = (record.peak_memory_bytes, work.backends[batch.candidate.name].peak_memory_bytes())
                    record = replace(
                        record,
                        candidates=tuple(
                            replace(c, seconds=round((c.seconds or 0.0) + spent, 3))
                            if c.name == batch.candidate.name
                            else c
                            for c in record.candidates
                        ),
                        peak_memory_bytes=max((peak for peak in peaks if peak is not None), default=None),
                    )
                write_json(path, record)
                progress.advance(len(generations), sum(g.tokens or 0 for g in generations))
    except (RuntimeError, OSError) as error:
        kept = f"What was computed is kept in {work.request.out}; go on with: {work.request.command}"
        raise PartialRunError(f"{type(error).__name__}: {error}\n{kept}") from error
    return record


def _answer(work: Work, batch: Batch) -> list[Generation]:
    """The replies of one batch, and the likelihood of each item's reference."""
    candidate = batch.candidate
    backend = work.backends[candidate.name]
    prompts = [work.prompts[candidate.name][i] for i in batch.items]
    examples = [work.examples[i] for i in batch.items]
    replies = backend.generate(candidate, prompts, [e.id for e in examples], work.decoding[candidate.name])
    if len(replies) != len(prompts):
        raise RuntimeError(f"{candidate.name} gave {len(replies)} replies to {len(prompts)} prompts")
    scored = backend.likelihood(candidate, prompts, [e.reference for e in examples])
    made = []
    for i, (key, example, reply) in enumerate(zip(batch.keys, examples, replies, strict=True)):
        nll, *sizes = [None] * 4 if scored is None else scored[i].tolist()
        tokens, size, characters = (None if number is None else int(number) for number in sizes)
        made.append(
            Generation(
                key,
                candidate.name,
                example.id,
                reply.text,
                reply.tokens,
                reply.hit_limit,
                nll,
                tokens,
                size,
                characters,
            )
        )
    return made


def _score(work: Work) -> list[Metric]:
    """Writes every candidate's statistics; returns the metrics that were computed for any of them.

    A candidate goes without a metric that needs what it cannot give, such as recorded replies without perplexity.
    """
    ids = [e.id for e in work.examples]
    replies = {(g.candidate, g.id): g for g in work.journal.read()}
    own = [m for m in work.measures.metrics if not isinstance(m, CombinedScore)]
    used: set[str] = set()
    with stage("score", len(work.request.candidates) * len(ids), quiet=work.request.quiet) as progress:
        for candidate in work.request.candidates:
            texts = candidate_texts([replies[candidate.name, i] for i in ids], work.examples)
            can = _EVERY_NEED if texts.likelihoods is not None else _EVERY_NEED - {"likelihoods"}
            metrics = [m for m in own if m.needs <= can]
            tables = {m.name: t for m, t in zip(metrics, statistics(texts, metrics), strict=True)}
            write_scores(work.request.out, candidate.name, ids, tables, {m.name: m.columns for m in metrics})
            used.update(tables)
            progress.advance(len(ids))
    computed = [m for m in work.measures.metrics if m.name in used or isinstance(m, CombinedScore)]
    if work.measures.primary not in (names := [m.name for m in computed]):
        raise UsageError(
            f"{work.measures.primary} cannot be computed for these candidates; choose --primary from {', '.join(names)}"
        )
    return computed


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


# ----------------------------------------------------------------------------------------------------- what is recorded


def _begin(work: Work, *, going_on: bool) -> RunRecord:
    """run.json as it stands when a session begins. Times and memory go on from the sessions before this one."""
    request = work.request
    before = None
    if going_on:
        try:
            before = read_record(request.out)
        except RunError:
            log.warning("%s: its run.json cannot be read, so times are counted anew", request.out)
    seconds = {c.name: c.seconds for c in before.candidates} if before else {}
    candidates, notes = [], []
    for candidate in request.candidates:
        training = None
        if candidate.kind == "adapter" and candidate.folder:
            folder = Path(candidate.folder)
            try:
                training = read_training(folder)
            except RunError as error:
                log.warning("%s", error)
            if seen := len(_trained_on(folder) & {e.id for e in work.examples}):
                notes.append(
                    f"{candidate.name} was trained on {seen} of the {len(work.examples)} test rows: "
                    "its scores here say nothing about new messages"
                )
                log.warning(notes[-1])
        candidates.append(
            # Where files lie on this machine is nobody else's business; location, revision and hashes say what they are.
            CandidateRecord(
                name=candidate.name,
                kind=candidate.kind,
                location=candidate.location,
                revision=candidate.revision,
                base=candidate.base,
                base_revision=candidate.base_revision,
                weights_sha256=candidate.weights_sha256,
                key_fields=dict(work.backends[candidate.name].identity(candidate)),
                training=training.summary() if training else None,
                seconds=seconds.get(candidate.name),
                tokens_per_second=None,
                hit_limit_share=None,
            )
        )
    # The first candidate is the base where there is one; the others are asked and computed as it is.
    first = request.candidates[0].name
    return RunRecord(
        name=request.out.name,
        bnbench=__version__,
        command=request.command,
        created=before.created if before else _now(),
        finished=None,
        **describe_environment(),
        precision=dict(work.backends[first].precision()),
        corpus=CorpusRecord(
            name=Path(work.corpus.source).name,
            source=work.corpus.source,
            fingerprint=work.corpus.fingerprint,
            split=request.split if work.corpus.is_split else "all",
            n=len(work.examples),
            limit=request.limit,
            steps=tuple(asdict(step) for step in work.corpus.steps),
        ),
        prompt=work.prompters[first].describe(),
        decoding=asdict(work.decoding[first]),
        batch_size=request.batch_size,
        peak_memory_bytes=before.peak_memory_bytes if before else None,
        candidates=tuple(candidates),
        primary_metric=work.measures.primary,
        combined=dict(request.combine),
        metrics=(),
        seed=request.decoding.seed,
        notes=tuple(notes),
    )


def _end(work: Work, record: RunRecord, computed: Sequence[Metric]) -> RunRecord:
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
        **describe_environment(),  # again: only now is the accelerator known
        candidates=tuple(candidates),
        metrics=tuple(
            replace(MetricRecord.of(m, len(work.examples)), spelling=f"{m.name}:{m.argument}" if m.argument else "")
            for m in computed
        ),
    )


def _trained_on(adapter: Path) -> frozenset[str]:
    """Ids of the examples that an adapter was trained on, empty where its training.json is not there or not ours."""
    try:
        return frozenset(str(i) for i in json.loads((adapter / TRAINING).read_text(encoding="utf-8"))["examples"])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
