"""Evaluation: every candidate answers every message once, and each reply becomes a row of statistics.

The work is planned as a whole before it starts, so the file of replies is always a prefix of the plan: a run that was
killed is cut back to its last whole batch, goes on from there, and ends with the bytes of one that was never killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnbench import __version__, records
from bnbench.data.chat import without_thoughts
from bnbench.data.corpus import OF_SPLITTING, READ, UNSPLIT, Corpus, Example, SplitSizes, check_split, load_corpus
from bnbench.data.files import check_columns, check_source
from bnbench.errors import HELP, CorpusError, EndpointError, PartialRunError, RunError, UsageError, refused
from bnbench.metrics.combined import NAME as COMBINED
from bnbench.metrics.combined import CombinedScore, parse_weights, weighted
from bnbench.metrics.core import FloatArray, Metric, Texts, statistics
from bnbench.metrics.evaluation import processes
from bnbench.metrics.registry import DEFAULT, distinct, get_metric
from bnbench.models.backend import Backend, BackendOptions, get_backend
from bnbench.models.candidates import Candidate, by_name, missing, parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompt, Prompter
from bnbench.models.yardsticks import write_yardsticks
from bnbench.progress import Stage

if TYPE_CHECKING:
    from bnbench.judge import Judge

ALONE = frozenset({"references", "messages"})
EVERY_NEED = ALONE | {"likelihoods", "rivals"}

log = logging.getLogger("bnbench")


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, on what, and how. `out` is the run folder; `command` what a user types to go on.

    Where `split` is None `_test_rows` says what is tested. `backend` answers for the models, asked with `system` texts
    and `template`s as `BackendOptions` has them; `tokenizer` makes the prompts of endpoints; `metrics` are names as
    `get_metric` takes them (none: the default set), `primary` ranks and may be any of them; `combine` has the weights
    of a combined score by metric, summing to 1 (none: empty); `groups` name candidates that differ in their training
    seed alone; `samples` replies are drawn for each item; `judge` rates the replies, too. Two `workers` or more count
    the default metrics in processes beside this one (a script needs `if __name__ == "__main__":`); None is one for
    four cores where models answer on a card, 4 at most.
    """

    candidates: tuple[Candidate, ...]
    out: Path
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    sizes: SplitSizes = SplitSizes()  # noqa: RUF009 - frozen
    split: str | None = None
    limit: int | None = None
    decoding: Decoding = Decoding()  # noqa: RUF009 - frozen
    batch_size: int | None = None
    max_tokens: int = 4096
    quantise: bool | None = None
    device: str | None = None
    trust_remote_code: bool = False
    backend: str = "hf"
    tokenizer: str | None = None
    system: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    primary: str = "chrF++"
    combine: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    samples: int = 1
    judge: Judge | None = None
    workers: int | None = 1
    overwrite: bool = False
    command: str = "bnbench evaluate"
    quiet: bool = False


@dataclass(frozen=True)
class Measures:
    """The metrics of a run, the name of the one that ranks, and the weights of its combined score (empty: none);
    `alone` are those that can be counted of one candidate's replies alone, without a likelihood or a call.
    """

    metrics: tuple[Metric, ...]
    primary: str
    weights: Mapping[str, float]
    alone: tuple[Metric, ...]


@dataclass(frozen=True)
class Entrant:
    """A candidate in a run: what answers for it, how it is asked, what it is asked (in the order of the items), and how
    many replies it gives to each item: recorded ones are as they are.
    """

    candidate: Candidate
    backend: Backend
    prompter: Prompter
    prompts: tuple[Prompt, ...]
    decoding: Decoding
    draws: int


@dataclass(frozen=True)
class Work:
    """An evaluation that is ready to start: all is known but the replies; the `silent` will have no likelihoods."""

    request: EvaluationRequest
    measures: Measures
    corpus: Corpus
    examples: tuple[Example, ...]
    entrants: tuple[Entrant, ...]
    silent: tuple[str, ...]


Waiting = Mapping[tuple[str, str], records.Generation]  # by candidate and key: what was answered and put aside


@dataclass(frozen=True)
class Batch:
    """One step of the plan: some (item, sample) of one candidate, with the keys that their replies will carry."""

    entrant: Entrant
    items: tuple[tuple[int, int], ...]
    keys: tuple[str, ...]


def make_request(
    base: str | None, adapters: Sequence[str], predictions: Sequence[str], endpoints: Sequence[str], *,
    data: str | None, columns: Mapping[str, str], split: str | None, split_sizes: str, systems: Sequence[str],
    templates: Sequence[str], combine: str | None, judge: str | None, judge_language: str, judge_pairs: bool,
    metrics: Sequence[str], out: Path | None, **options: Any,
) -> EvaluationRequest:  # fmt: skip
    """The request that a command line spells out; `options` are further fields of it, as they are. What is cheap to
    check is checked first: finding candidates may hash, or fetch, gigabytes.
    """
    sizes, weights = SplitSizes.parse(split_sizes), {} if combine is None else parse_weights(combine)
    quiet, backend, trust = options["quiet"], get_backend(options["backend"]), options["trust_remote_code"]
    rater = None
    if judge or judge_pairs:
        from bnbench.judge import Judge  # brings the audits

        rater = Judge(judge or "", judge_language, pairs=judge_pairs, quiet=quiet)
    models = [*([base] if base else []), *adapters] if backend.needs_files else []
    if out is not None:
        with records.alone(out, records.OF_RUN):  # can be written, and nobody else is at it
            pass
    check_split(split or "test")
    columns = check_columns(columns, (*READ, "reply") if predictions else READ)
    try:
        if data is not None:
            check_source(data)
    except CorpusError as error:  # and what else is not there
        raise CorpusError("\n".join([str(error), *missing(models, predictions)])) from None
    choose_measures(options["primary"], metrics, weights, rater)
    given = (base, adapters, predictions, endpoints)
    candidates = parse_candidates(*given, trust_remote_code=trust, needs_files=backend.needs_files)
    formats = {"system": systems, "template": templates}
    options |= {name: by_name(texts, candidates) for name, texts in formats.items() if texts}
    # By default runs/<candidates>[-<data>]: the same command finds the same folder again.
    named = [*(c.name for c in candidates), *([Path(data).stem] if data else [])]
    return EvaluationRequest(
        candidates, out or Path("runs") / "-".join(map(records.slug, named)), data, columns, sizes, split,
        metrics=tuple(metrics), combine=weights, judge=rater, workers=None, **options,
    )  # fmt: skip


def choose_measures(
    primary: str, names: Sequence[str] = (), combine: Mapping[str, float] | None = None, judge: Judge | None = None
) -> Measures:
    """The metrics that are named, or the default ones, those of the judge, the primary one, and the combined score's.

    Raises UsageError for an unknown name (with the nearest), two metrics as `distinct`, a judge's metric without it,
    and a combined score that ranks without weights or has a part of which lower is better.
    """
    asked = [get_metric(name) for name in names]
    usual = (*(asked or map(get_metric, DEFAULT)), *(judge.metrics if judge else ()))
    chosen, found = {metric.name: metric for metric in usual}, list[Metric]()
    ranks_by_combined = primary.casefold() == COMBINED
    for name in (*(combine or ()), *(() if ranks_by_combined else (primary,))):
        # The chosen metric of this name, with or without its argument; where there is none, a new one.
        known = (m for m in chosen.values() if name.casefold() in (m.name.casefold(), m.spelling.casefold()))
        if (metric := next(known, None)) is None:
            metric = get_metric(name)
            asked.append(metric)
            chosen[metric.name] = metric
        found.append(metric)
    if combine:
        asked.append(CombinedScore(combine, found[: len(combine)]))
        chosen[COMBINED] = asked[-1]
    if ranks_by_combined and COMBINED not in chosen:
        raise UsageError(f"--primary {primary}: declare its weights, --combine METRIC=WEIGHT,METRIC=WEIGHT")
    primary = COMBINED if ranks_by_combined else found[-1].name
    distinct(asked)
    for metric in chosen.values():
        if getattr(metric, "judge", judge) is not judge:
            raise UsageError(f"{metric.spelling}: name the judge of a run by --judge URL#MODEL; pairs by --judge-pairs")
        if strange := ", ".join(sorted(metric.needs - EVERY_NEED)):
            raise UsageError(f"{metric.spelling} needs {strange}, and a run has only {', '.join(sorted(EVERY_NEED))}")
    # A combined score counts nothing itself: its parts are computed, and shown, beside it.
    for part in [part for metric in chosen.values() for part in metric.parts]:
        chosen.setdefault(part.name, part)
    combined = chosen.pop(COMBINED, None)
    weights = combined.weights if isinstance(combined, CombinedScore) else {}
    alone = tuple(m for m in chosen.values() if not m.parts and m.needs <= ALONE and not hasattr(m, "judge"))
    return Measures((*chosen.values(), *([combined] if combined else [])), primary, weights, alone)


def _check_needs(request: EvaluationRequest, measures: Measures, silent: Sequence[str]) -> None:
    """UsageError for a metric that was asked for and that no candidate can have, or the primary one not every one."""
    asked = {name.partition(":")[0].casefold() for name in (*request.metrics, measures.primary)}
    n = len(request.candidates)
    for metric in measures.metrics:
        most = 0 if metric.name == measures.primary else n - 1
        if "likelihoods" in metric.needs and len(silent) > most and metric.name.casefold() in asked:
            who = f"{', '.join(silent)} cannot give" if len(silent) < n else "none of them gives"
            others = ", ".join(m.name for m in measures.metrics if "likelihoods" not in m.needs)
            what = f"it needs likelihoods, which {who}"
            raise UsageError(f"{metric.name} cannot be computed for these candidates: {what}; choose from {others}")


def _check_declared(request: EvaluationRequest, measures: Measures) -> None:
    """RunError where the run that lies in the folder began with another primary metric or combined score."""
    began = records.read_record(request.out)
    before, now = (f"with {name} as the primary metric" for name in (began.primary_metric, measures.primary))
    if before == now:
        both = (began.combined, measures.weights)
        if all(abs(both[0].get(name, 0) - both[1].get(name, 0)) <= 1e-9 for name in {*both[0], *both[1]}):
            return
        before, now = (f"with the combined score {weighted(w)}" if w else "without a combined score" for w in both)
    what = f"this run began {before} and cannot go on {now}"
    raise RunError(f"{request.out}: {what}; name another --out, or start anew with --overwrite")


def evaluate(request: EvaluationRequest) -> Path:
    """Runs (or goes on with) an evaluation and returns its run folder, scored and ready to be reported.

    Raises BnbenchErrors, before anything is loaded where that is possible; PartialRunError where it failed midway: the
    replies so far are kept and the message has the command to go on.
    """
    with records.alone(request.out, records.OF_RUN):
        measures = choose_measures(request.primary, request.metrics, request.combine, request.judge)
        path = request.out / "run.json"
        if path.is_file() and not request.overwrite:
            _check_declared(request, measures)
        if request.samples > 1 and request.decoding.greedy:
            raise UsageError(f"--samples {request.samples} with --greedy: without sampling an item has one reply")
        if request.batch_size is not None and request.batch_size < 1:
            raise UsageError(f"batch size {request.batch_size}: at least 1 is needed")
        if request.tokenizer and not any(c.urls for c in request.candidates):
            raise UsageError("--tokenizer is for --endpoint; other candidates have tokenizers of their own")
        for metric in measures.metrics:
            metric.signature(0)  # names the model that it scores with, which must be there before replies are
        if request.judge and request.judge.pairs and len(request.candidates) < 2:
            raise UsageError("--judge-pairs compares the replies of candidates, and there is only one: name another")
        work = _prepare(request, measures)
        plan = _plan(work)
        plan, kept, waiting = _resume(work, plan)
        record, e = _begin(work, going_on=bool(kept or waiting)), work.examples[0]
        # A metric that fails on any reply does so now, on one reference, before a model is loaded.
        statistics(Texts((e.reference,), ((e.reference,),), (e.question,)), measures.alone)
        records.write_json(path, record)
        if request.judge:
            _try(request.judge, work)
        tested = {e.id for e in work.examples}
        train = [e.reference for e in work.corpus.splits.get("train", ()) if e.id not in tested]
        # Yardsticks need the data alone, so they are scored while a model loads and answers; the one bar is then its.
        is_quiet = request.quiet or any(batch.entrant.candidate.kind != "predictions" for batch in plan)
        # A thread takes the interpreter from what feeds a card, a process takes cores from models on the CPU. Metrics
        # other than the default ones may have models of their own, which each process would load.
        on_card = any(getattr(entrant.backend, "memory", None) for entrant in work.entrants)
        workers = (min(4, (os.cpu_count() or 1) // 4) if on_card else 1) if request.workers is None else request.workers
        workers = max(1, workers) if {m.spelling for m in measures.alone} <= {*DEFAULT} else 1
        with processes(workers) if workers > 1 else ThreadPoolExecutor(1) as aside:
            given = (request.out, work.examples, train, measures.alone, request.decoding.seed, is_quiet)
            yardsticks = aside.submit(write_yardsticks, *given)
            try:
                record, ahead = _generate(work, plan, waiting, record, aside, workers, yardsticks)
            except BaseException:
                aside.shutdown(wait=False, cancel_futures=True)  # nobody waits for what has not begun
                raise
        generations = records.read_lines(records.Generation, request.out / records.GENERATIONS)
        texts = _texts(work, generations)
        if request.judge:  # scoring only looks its ratings up
            try:
                record = replace(record, notes=(*record.notes, *request.judge.rate(list(texts.values()))))
            except (EndpointError, OSError) as error:
                raise _partial(request, error) from error
        scoring, computed = time.monotonic(), _score(work, generations, texts, ahead)
        took = {"generate": sum(c.seconds or 0.0 for c in record.candidates), "score": time.monotonic() - scoring}
        stages = {**record.stages, **{stage: round(seconds, 3) for stage, seconds in took.items()}}
        record = replace(record, yardsticks=yardsticks.result(), stages=stages)
        records.write_json(path, _end(work, record, generations, computed))
        return request.out


def _try(judge: Judge, work: Work) -> None:
    """Has the judge rate labelled replies, before anything is loaded: one that cannot is known after these few."""
    out, n, k = work.request.out, len(work.examples), len(work.entrants)
    judge.keep(out / records.RATINGS)
    calls = n * sum(entrant.draws for entrant in work.entrants) * (k if judge.pairs else 1)
    log.info("%s is tried on %d labelled replies; up to %d calls for this run follow", judge.model, judge.tried, calls)
    try:
        records.write_json(out / records.AUDITS, [audit.as_dict() for audit in judge.audits()])
    except EndpointError as error:
        raise _partial(work.request, error) if (out / records.RATINGS).exists() else error from None


def _partial(request: EvaluationRequest, error: Exception) -> PartialRunError:
    files = [request.out / name for name in (records.GENERATIONS, records.ANSWERED)]
    kept, answered = ({(g.candidate, g.key) for g in records.read_lines(records.Generation, path)} for path in files)
    rated = ratings.read_bytes().count(b"\n") if (ratings := request.out / records.RATINGS).exists() else 0
    counts = {"replies": len(kept), f"waiting in {records.ANSWERED}": len(answered - kept), "ratings": rated}
    held = ", ".join(f"{what}: {n:,}" for what, n in counts.items() if n or what == "replies")
    told = f"{type(error).__name__}: {error}"
    told = refused(error, request.out) if isinstance(error, OSError) and error.errno in HELP else told
    told += f"\nWhat was computed is kept in {request.out} ({held})"
    return PartialRunError(f"{told}; go on with: {request.command}")


def _prepare(request: EvaluationRequest, measures: Measures) -> Work:
    """Opens the backends, reads the data and asks each candidate's prompter; no weights are read."""
    backends, kinds = dict[str, Backend](), {"predictions": "recorded", "endpoint": "endpoint"}
    files = (request.out / name for name in (records.GENERATIONS, records.ANSWERED) if not request.overwrite)
    kept = any(path.is_file() and path.stat().st_size for path in files) and (request.out / "run.json").is_file()
    began = {c.name: c.key_fields for c in records.read_record(request.out).candidates} if kept else {}
    names = {c.name: kinds.get(c.kind, request.backend) for c in request.candidates}
    classes = {name: get_backend(name) for name in dict.fromkeys(names.values())}
    _check_needs(request, measures, [c for c, of in names.items() if classes[of].likelihood is Backend.likelihood])
    for name, kind in classes.items():
        own = [c for c in request.candidates if names[c.name] == name]
        how = (request.tokenizer, request.system, request.template, request.columns, began)
        options = BackendOptions(name, request.device, request.quantise, request.trust_remote_code, *how)
        backends[name] = kind(own, options)
    answering = [(c, backends[names[c.name]]) for c in request.candidates]
    silent = tuple(c.name for c, backend in answering if not backend.gives_likelihoods(c))
    _check_needs(request, measures, silent)  # a server shows what it gives only when it is asked
    prompters = {candidate.name: backend.prompters[candidate.name] for candidate, backend in answering}
    distinct = {id(p): p for p in prompters.values()}  # candidates that are asked alike share one, and its prompts

    # A row is too long if it is for any of the candidates that can tell; where none can, none is.
    telling = [p for p in distinct.values() if p.tokenizer is not None]
    limits: dict[str, Any] = {"max_tokens": request.max_tokens}
    limits["count_tokens"] = lambda rows: [*map(max, zip(*(p.count_tokens(rows) for p in telling), strict=True))]
    named = {field: name for field, name in request.columns.items() if field != "reply"}  # of the recorded replies
    corpus = load_corpus(request.data, columns=named, sizes=request.sizes, **limits)
    if request.data is not None:
        corpus, request = _test_rows(corpus, request)
        log.info("%s: %s", request.data, corpus.describe())
    examples = corpus.select(request.split or "test", request.limit)
    for backend in backends.values():
        backend.bind(examples, corpus)

    asked = {}
    for key, prompter in distinct.items():
        decoding = prompter.limited(request.decoding, [e.reference for e in examples])
        asked[key] = (prompter, tuple(map(prompter.prompt, examples)), decoding)
    entrants = tuple(
        Entrant(c, backend, *asked[id(prompters[c.name])], 1 if c.kind == "predictions" else request.samples)
        for c, backend in answering
    )
    return Work(request, measures, corpus, examples, entrants, silent)


def _test_rows(corpus: Corpus, request: EvaluationRequest) -> tuple[Corpus, EvaluationRequest]:
    """The corpus and the split that is tested where none was named. That is the whole file, unless it has a column of
    splits or a candidate was trained by us on rows of it.
    """
    if request.split:
        if not corpus.is_split:
            log.warning("%s: not split: %s", request.data, UNSPLIT)
        return corpus, request
    why = "its column 'split' holds them out" if any(row.side for row in corpus.rows) else ""
    ids = {example.id for example in corpus.whole}
    for candidate in request.candidates if corpus.is_split and not why else ():
        with suppress(RunError):  # said when the run's record is made
            training = records.read_training(Path(candidate.folder)) if candidate.folder else None
            if training and (training.data.fingerprint == corpus.fingerprint or ids.issuperset(training.examples)):
                why = f"{candidate.name} was trained on others of this file"
    if why:
        log.info("%s: only its test rows are tested, as %s; --split decides", request.data, why)
        return corpus, replace(request, split="test")
    hint = "; --split test takes the rows that `bnbench finetune` would hold out" if corpus.is_split else ""
    log.info("%s: all rows are tested%s", request.data, hint)
    return corpus.unsplit(), replace(request, split="all")


def _plan(work: Work) -> list[Batch]:
    """Each candidate's batches, the longest prompts first, so that too little memory shows at once."""
    size, examples, plan = work.request.batch_size, work.examples, list[Batch]()
    for entrant in work.entrants:
        # A reply's key is a hash of everything that it and its likelihood depend on, in canonical JSON.
        identity, decoding = entrant.backend.identity(entrant.candidate), asdict(entrant.decoding)
        fixed = {**identity, "decoding": decoding, "batch_size": size}
        keys, draws = dict[tuple[int, int], str](), range(entrant.draws)
        for i, (example, prompt) in enumerate(zip(examples, entrant.prompts, strict=True)):
            for sample in draws:
                parts = {**fixed, "item": example.id, "prompt": list(prompt.ids), "reference": example.reference}
                text = json.dumps(parts | ({"sample": sample} if sample else {}), sort_keys=True, ensure_ascii=False)
                keys[i, sample] = hashlib.sha256(text.encode()).hexdigest()
        order = sorted(keys, key=lambda at: (-len(entrant.prompts[at[0]].ids), examples[at[0]].id, at[1]))
        lengths = [len(entrant.prompts[i].ids) for i, _ in order]
        sizes = entrant.backend.batch_sizes(lengths, entrant.decoding.max_new_tokens or 0)
        for n in sizes if size is None else [size] * math.ceil(len(order) / size):
            items, order = tuple(order[:n]), order[n:]
            plan.append(Batch(entrant, items, tuple(keys[i] for i in items)))
    return plan


def _resume(work: Work, plan: Sequence[Batch]) -> tuple[list[Batch], int, Waiting]:
    """Cuts the file of replies back to whole batches, where that matters; returns what is left of the plan, how many
    replies the file holds, and those that were put aside.
    """
    out = work.request.out
    path, aside = (out / name for name in (records.GENERATIONS, records.ANSWERED))
    out.mkdir(parents=True, exist_ok=True)
    if work.request.overwrite:
        aside.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if (ratings := out / records.RATINGS).exists():  # people's work is kept: it has the hashes of what they read
            people = [r for r in records.read_lines(records.Rating, ratings) if r.rater.startswith(records.PERSON)]
            ratings.unlink()
            records.append_lines(ratings, people)
    held = [records.read_lines(records.Generation, one) for one in (path, aside)]
    done, put = ([(g.candidate, g.key, g.id, g.sample) for g in found] for found in held)
    steps = [(b.entrant.candidate.name, *step) for b in plan for step in zip(b.keys, b.items, strict=True)]
    keys = [(name, key, work.examples[i].id, sample) for name, key, (i, sample) in steps]
    strange = sorted(map(put.index, {*put} - {*keys}))
    if done != keys[: len(done)] or strange:
        at = next((i for i, (was, is_now) in enumerate(zip(done, keys, strict=False)) if was != is_now), len(keys))
        if done[at:] and done[at] in done[:at]:
            more = f" and {n} more that repeat others" if (n := len(done) - len(set(done)) - 1) else ""
            what = f"{path}, line {at + 1}: it repeats line {done.index(done[at]) + 1}"
            raise RunError(f"{what}; remove it{more}, and run the same command again")
        gone_on = "the same command goes on where it and all after it are removed"
        where = f"{path}, line {at + 1}" if done != keys[: len(done)] else f"{aside}, line {strange[0] + 1}"
        other = [f"{where}: this reply is not of this plan ({gone_on})"]
        with suppress(RunError):  # a record that cannot be read
            other = records.differences(records.read_record(out), _begin(work, going_on=False)) or other
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        what = f"{out} holds another run: {'; '.join(other[:3])}{more}"
        raise RunError(f"{what}. Name another --out, or start anew with --overwrite")
    ends = [0, *accumulate(len(batch.keys) for batch in plan)]
    start = sum(end <= len(done) for end in ends) - 1
    left, whole = list(plan[start:]), ends[start]
    if len(done) > whole and left[0].entrant.candidate.urls:  # behind a server a reply is its own, not its batch's
        begun, whole = len(done) - whole, len(done)
        left[0] = replace(left[0], items=left[0].items[begun:], keys=left[0].keys[begun:])
    content = path.read_bytes() if path.exists() else b""
    if (size := sum(len(line) + 1 for line in content.split(b"\n")[:whole])) < len(content):
        os.truncate(path, size)
    if whole:
        log.info("%s: going on after %d of %d replies", out, whole, len(keys))
    records.write_text(out / "examples.jsonl", b"".join(records.line_of(e) + b"\n" for e in work.examples))
    return left, whole, {(g.candidate, g.key): g for g in held[1]}


def _generate(
    work: Work, plan: Sequence[Batch], waiting: Waiting, record: records.RunRecord, aside: Executor, workers: int,
    yardsticks: Future[Any],
) -> tuple[records.RunRecord, dict[str, list[Future[list[FloatArray]]]]]:  # fmt: skip
    """Works the plan off; where only recorded replies are left nothing is loaded, timed or shown. Gives `record` with
    each candidate's time, as run.json has it after each batch, and the tables, counted aside (a part by each of the
    `workers`), of candidates who answered all here; what fails aside, such as the `yardsticks`, ends it at once.
    """
    ahead = defaultdict[str, list[Future[list[FloatArray]]]](list)
    own = defaultdict[str, list[records.Generation]](list)
    quiet, out = work.request.quiet, work.request.out
    models = {b.entrant.candidate.name: b.entrant for b in plan if b.entrant.candidate.kind != "predictions"}
    if models:
        with Stage("load", 1, quiet=quiet) as loading:
            for backend in dict.fromkeys(entrant.backend for entrant in models.values()):
                backend.load()
            loading.advance(1)
            took = record.stages.get("load", 0.0) + time.monotonic() - loading.start
        record = replace(record, stages={**record.stages, "load": round(took, 3)})
    seconds = {c.name: c.seconds for c in record.candidates}
    try:
        with Stage("generate", sum(len(b.items) for b in plan), quiet=quiet or not models) as progress:
            for batch in plan:
                for ended in filter(Future.done, (yardsticks, *chain(*ahead.values()))):
                    ended.result()
                start, entrant, name = time.monotonic(), batch.entrant, batch.entrant.candidate.name
                generations, failure = _ask(work, batch, waiting)
                own[name] += generations
                if len(own[name]) == len(work.examples) * entrant.draws:
                    # Most metrics ask for no likelihood: they need not wait for it, or for the other candidates.
                    texts = _texts(work, own.pop(name))[name]
                    for part in texts.parts(math.ceil(len(texts) / workers)):
                        ahead[name].append(aside.submit(statistics, part, work.measures.alone))
                # An item's reference once; a server that failed could not give its likelihood.
                if first := {at: i for at, (i, sample) in enumerate(batch.items) if not (sample or failure)}:
                    references = [work.examples[i].reference for i in first.values()]
                    prompts = [entrant.prompts[i] for i in first.values()]
                    try:
                        scored = entrant.backend.score(entrant.candidate, prompts, references)
                    except EndpointError as error:
                        generations, failure, scored = [], error, None
                    for at, (nll, *counts) in zip(first, () if scored is None else scored.tolist(), strict=False):
                        sizes: Any = zip(("nll_tokens", "bytes", "characters"), map(int, counts), strict=True)
                        generations[at] = replace(generations[at], nll=nll, **dict(sizes))
                if generations:
                    records.append_lines(out / records.GENERATIONS, generations)
                if name in models:
                    seconds[name] = round((seconds[name] or 0.0) + time.monotonic() - start, 3)
                    timed = tuple(replace(c, seconds=seconds[c.name]) for c in record.candidates)
                    seen = [n for n in (record.peak_memory_bytes, entrant.backend.peak_memory_bytes()) if n is not None]
                    record = replace(record, candidates=timed, peak_memory_bytes=max(seen, default=None))
                records.write_json(out / "run.json", record)
                progress.advance(len(generations), sum(g.tokens or 0 for g in generations))
                if failure:
                    raise failure
        (out / records.ANSWERED).unlink(missing_ok=True)
    except (RuntimeError, OSError) as error:
        raise _partial(work.request, error) from error
    return record, ahead


def _ask(work: Work, batch: Batch, known: Waiting) -> tuple[list[records.Generation], EndpointError | None]:
    """What is answered to a batch, beside what is `known`; where a server fails what it answered before its first gap,
    and why. What waits for a likelihood, or for a reply before it, is put aside: it is paid for.
    """
    entrant, name, failure = batch.entrant, batch.entrant.candidate.name, None
    own = {key: known[name, key] for key in batch.keys if (name, key) in known}
    left = [(k, work.examples[i], i, s) for k, (i, s) in zip(batch.keys, batch.items, strict=True) if k not in own]
    # Sampling noise belongs to the item, and to which of its replies it is.
    named = [f"{e.id}#{sample}" if sample else e.id for _, e, _, sample in left]
    prompts = [entrant.prompts[i] for _, _, i, _ in left]
    try:
        replies = entrant.backend.generate(entrant.candidate, prompts, named, entrant.decoding) if left else []
    except EndpointError as error:
        replies, failure = error.before, error
    if failure is None and len(replies) != len(prompts):
        raise RuntimeError(f"{name} gave {len(replies)} replies to {len(prompts)} prompts")
    unknown: Any = (None,) * 4  # of a likelihood: nll, nll_tokens, bytes, characters
    new = [
        records.Generation(key, name, e.id, r.text, r.tokens, r.hit_limit, *(*unknown, r.refused, sample))
        for (key, e, _, sample), r in zip(left, replies, strict=failure is None)
        if r is not None
    ]
    own |= {g.key: g for g in new}
    n = next((at for at, key in enumerate(batch.keys) if key not in own), len(batch.keys))
    n = 0 if failure and name not in work.silent else n  # of which each has its likelihood
    to_score, behind = bool(entrant.candidate.urls) and name not in work.silent, {*batch.keys[n:]}
    if waiting := [g for g in new if to_score or g.key in behind]:
        records.append_lines(work.request.out / records.ANSWERED, waiting)
    return [own[key] for key in batch.keys[:n]], failure


def _texts(work: Work, generations: Sequence[records.Generation]) -> dict[str, Texts]:
    """What is scored of each candidate here, in the order of the items, all replies to an item together."""
    replies, here = {(g.candidate, g.id, g.sample): g for g in generations}, {g.candidate for g in generations}
    draws, found = {e.candidate.name: e.draws for e in work.entrants if e.candidate.name in here}, {}
    for name, k in draws.items():
        items = [(e, sample) for e in work.examples for sample in range(k)]
        own = [replies[name, e.id, sample] for e, sample in items]
        numbers = [(g.nll, g.nll_tokens, g.bytes, g.characters) for g in (replies[name, e.id, 0] for e, _ in items)]
        known = all(n is not None for row in numbers for n in row)
        cut, others = [g.hit_limit for g in own], {n: m for n, m in draws.items() if n != name}
        theirs = ([replies[n, e.id, sample % m].reply for n, m in others.items()] for e, sample in items)
        rivals = tuple(tuple(map(without_thoughts, said)) for said in theirs)
        found[name] = Texts(
            tuple(without_thoughts(g.reply) for g in own), tuple((e.reference,) for e, _ in items),
            tuple(f"{e.title} {e.question}".strip() for e, _ in items),
            np.array(numbers, dtype=np.float64) if known else None,
            None if None in cut else tuple(map(bool, cut)), rivals if others else None,
        )  # fmt: skip
    return found


def _score(
    work: Work, generations: Sequence[records.Generation], texts: Mapping[str, Texts],
    ahead: Mapping[str, list[Future[list[FloatArray]]]],
) -> list[Metric]:  # fmt: skip
    """Writes every candidate's statistics, some counted `ahead`; returns the metrics that were computed for any.
    A candidate goes without a metric that needs what it cannot give, such as recorded replies without perplexity.
    """
    ids, used = [e.id for e in work.examples], set[str]()
    with Stage("score", len(texts) * len(ids), quiet=work.request.quiet) as progress:
        for name, own in texts.items():
            can = {need for need in EVERY_NEED if getattr(own, need) is not None}
            metrics = [m for m in work.measures.metrics if not m.parts and m.needs <= can]
            counted = zip(*(part.result() for part in ahead.get(name, ())), strict=True)
            tables = {m.name: np.vstack(t) for m, t in zip(work.measures.alone, counted, strict=False)}
            rest = [m for m in metrics if m.name not in tables]
            tables |= {m.name: t for m, t in zip(rest, statistics(own, rest), strict=True)}
            tables = {m.name: tables[m.name] for m in metrics}
            rows = [one for one in ids for _ in range(len(own) // len(ids))]
            said, columns = [g for g in generations if g.candidate == name], {m.name: m.columns for m in metrics}
            records.write_scores(work.request.out, name, rows, tables, columns, replies=said)
            used.update(tables)
            progress.advance(len(ids))
    computed = [m for m in work.measures.metrics if used.issuperset(p.name for p in m.parts or (m,))]
    names, primary = [m.name for m in computed], work.measures.primary
    if primary not in names:
        raise UsageError(f"{primary} cannot be computed for these candidates; choose --primary from {', '.join(names)}")
    return computed


def _begin(work: Work, *, going_on: bool) -> records.RunRecord:
    """run.json as it stands when a session begins. Times and memory go on from the sessions before this one."""
    request, corpus, before = work.request, work.corpus, None
    if going_on:
        try:
            before = records.read_record(request.out)
        except RunError:
            log.warning("%s: its run.json cannot be read, so times are counted anew", request.out)
    seconds, home = {c.name: c.seconds for c in before.candidates} if before else {}, f"{Path.home()}/"
    candidates = list[records.CandidateRecord]()
    notes = request.judge.kin(request.candidates) if request.judge else []
    left = (s for s in corpus.steps if s.dropped and (request.split == "all" or s.name not in OF_SPLITTING))
    if told := ", ".join(f"{step.dropped:,} {step.name}" for step in left):
        rows = f"{len(work.examples):,} of {len(corpus.rows):,} rows of {Path(corpus.source).name}"
        notes.append(f"the scores are of {rows}; left out in cleaning: {told}")
    first = work.entrants[0]  # the base where there is one; the others are asked and computed as it is
    for entrant in work.entrants:
        candidate, trained = entrant.candidate, list[records.TrainingRecord | None]()  # a base may be an export, too
        for folder in ("" if candidate.kind == "predictions" else candidate.folder, candidate.base_folder):
            try:
                trained.append(records.read_training(Path(folder)) if folder else None)
            except RunError as error:
                trained.append(None)
                log.warning("%s", error)
        rows_of = {row for training in trained if training for row in training.examples}
        if seen := rows_of.intersection(e.id for e in work.examples):
            rows = f"{len(seen)} of the {len(work.examples)} test rows"
            notes.append(f"{candidate.name} was trained on {rows}: {records.SEEN}")
            log.warning(notes[-1])
        asked, other = entrant.prompter, first.prompter
        if candidate.kind == "adapter" and asked.template_sha != other.template_sha:
            own = f"a format of its own ({asked.kind}, template {asked.template_sha[:12]}"
            theirs = f"{first.candidate.name} in {other.kind}, {other.template_sha[:12]})"
            notes.append(f"{candidate.name} is asked in {own}; {theirs}: some of what differs may be the format's")
            log.warning(notes[-1])
        # Where files and servers are is nobody else's business; location, revision and hashes say what they are.
        hidden = ("folder", "base_folder", "urls")
        given = {name: value for name, value in asdict(candidate).items() if name not in hidden}
        shown = {name: value.replace(home, "~/") if isinstance(value, str) else value for name, value in given.items()}
        candidates.append(records.CandidateRecord(
            **shown, key_fields=dict(entrant.backend.identity(candidate)), seconds=seconds.get(candidate.name),
            prompt=None if asked.describe() == other.describe() else asked.describe(),
            training=trained[0].summary() if trained[0] else None, tokens_per_second=None, hit_limit_share=None,
        ))  # fmt: skip
    if silent := ", ".join(c.name for c in request.candidates if c.name in work.silent and c.kind != "predictions"):
        notes.append(f"likelihoods are not available: {silent}; so perplexity and bits per character are not")
    return records.RunRecord(
        name=request.out.name, bnbench=__version__, command=request.command,
        created=before.created if before else datetime.now(UTC).isoformat(timespec="seconds"), finished=None,
        **records.describe_environment(), precision=dict(first.backend.precision),
        corpus=records.CorpusRecord(
            name=Path(corpus.source).name, source=corpus.source.replace(home, "~/"), fingerprint=corpus.fingerprint,
            split=(request.split or "test") if corpus.is_split else "all", n=len(work.examples), limit=request.limit,
            steps=corpus.steps,
        ),
        prompt=first.prompter.describe(), decoding=asdict(first.decoding), batch_size=request.batch_size,
        peak_memory_bytes=before.peak_memory_bytes if before else None, stages=before.stages if before else {},
        primary_metric=work.measures.primary, combined=work.measures.weights, metrics=(), seed=request.decoding.seed,
        candidates=tuple(candidates), notes=tuple(notes), groups=request.groups or None, samples=request.samples,
    )  # fmt: skip


def _end(
    work: Work, record: records.RunRecord, generations: Sequence[records.Generation], computed: Sequence[Metric]
) -> records.RunRecord:
    """The record with what is only known at the end: speed, how many replies the limit cut, and the metrics."""
    candidates, notes = [], list[str]()
    for candidate in record.candidates:
        own = [g for g in generations if g.candidate == candidate.name]
        limits = [g.hit_limit for g in own if g.hit_limit is not None]
        speed = round(sum(g.tokens or 0 for g in own) / candidate.seconds, 1) if candidate.seconds else None
        share = sum(limits) / len(limits) if limits else None
        candidates.append(replace(candidate, tokens_per_second=speed, hit_limit_share=share))
        if thought := sum(without_thoughts(g.reply) != g.reply for g in own):
            said = f"{candidate.name} thinks aloud in {thought} of {len(own)} replies"
            notes.append(f"{said}; <think>…</think> is not scored")
        if refused := sum(g.refused for g in own):
            notes.append(f"{candidate.name} refused {refused} of {len(own)} messages; what it said instead is scored")
    return replace(
        record, notes=(*record.notes, *notes), finished=datetime.now(UTC).isoformat(timespec="seconds"),
        **records.describe_environment(),  # again: only now is the accelerator known
        candidates=tuple(candidates), metrics=tuple(records.MetricRecord.of(m, len(work.examples)) for m in computed),
    )  # fmt: skip
