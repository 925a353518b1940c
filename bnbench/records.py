"""What lies in a run folder and beside an adapter, typed: enough to rank, report and compare without a model.

runs/<name>/
  run.json            `RunRecord`: ids and hashes, corpus, decoding, device, metrics
  examples.jsonl      the items, in the order of the corpus
  generations.jsonl   append-only, one `Generation` a line, synced per batch; a torn last line is dropped on resume
                      each line of a JSONL file ends with a hash of itself, so that one that was edited is known
  ratings.jsonl       append-only, one `Rating` a line; audits.json: how far the judge agrees with labelled replies
  scores/*.parquet    one file a candidate, one row a reply: every metric's statistics; yardsticks/*.parquet alike
adapters/<name>/
  training.json       `TrainingRecord`: what `bnbench finetune` did

The dataclasses are the files, fields in the order of the keys. A key may be missing where its field has a default or
may be None, and is not written while it has a plain default; keys that no field names are passed over.
"""

import base64
import hashlib
import json
import logging
import math
import os
import platform
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from statistics import fmean
from types import UnionType
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from bnbench.data.corpus import Example, Step
from bnbench.data.files import MOST_BYTES
from bnbench.errors import FULL, RunError
from bnbench.metrics.combined import CombinedScore
from bnbench.metrics.core import FloatArray, Metric

SCHEMA_VERSION = 1
TRAINING = "training.json"
GENERATIONS = "generations.jsonl"
ANSWERED = "answered.jsonl"  # by a server, and waiting for a likelihood, or for a reply before them in the plan
RATINGS = "ratings.jsonl"
AUDITS = "audits.json"
SEEN = "its scores here say nothing about new messages"  # ends the note on a candidate trained on test rows
PERSON = "human:"
OF_RUN, OF_TRAINING = ("run.json", "examples.jsonl", GENERATIONS), (TRAINING, "checkpoints")
"""What a folder has from the first write of an evaluation, or a training, on."""
_KINDS = {"run.json": "a run", "adapter_config.json": "an adapter", "config.json": "a model", "runs.json": "a report"}
_HELD = ("run.json", AUDITS, "examples.jsonl", GENERATIONS)
_HELD_TABLE = re.compile(r"scores/(yardsticks/)?[^/\\]+\.parquet")
_HELD_IN = re.compile(r'<script type="application/gzip" id="data">([A-Za-z0-9+/=]*)</script>')
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "tokenizers", "sacrebleu", "numpy", "pandas")
_SHA = b', "sha256": "'
_hints = cache(get_type_hints)
log = logging.getLogger("bnbench")

Record = TypeVar("Record")
Columns = Mapping[str, Sequence[str]]  # of each metric's table
Points = Sequence[tuple[int, float, *tuple[float, ...]]]  # a loss curve: optimiser steps, their losses, and more


# ---------------------------------------------------------------------------------------------------- what is recorded


@dataclass(frozen=True)
class Generation:
    """One reply, and the likelihood of the item's reference, where it is known: `nll` in nats over `nll_tokens`, of a
    text of so many `bytes` and `characters`. `refused`: it said that it will not answer, and `reply` is what it said.
    `sample` counts the replies to one item.
    """

    key: str
    candidate: str
    id: str
    reply: str
    tokens: int | None
    hit_limit: bool | None
    nll: float | None
    nll_tokens: int | None
    bytes: int | None
    characters: int | None
    refused: bool = False
    sample: int = 0


@dataclass(frozen=True)
class Rating:
    """What one rater gave one text by one criterion; `key` is a hash of all that the rating depends on. `PERSON` stands
    before a person's name, and before no model's; `code` is where on the person's form it was given.
    """

    key: str
    rater: str
    criterion: str
    value: float
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """The data of a run: `n` items of a split, after the cleaning `steps`; the `fingerprint` is the whole corpus's."""

    name: str
    source: str
    fingerprint: str
    split: str
    n: int
    limit: int | None
    steps: tuple[Step, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Gain:
    """What held-out pairs gained by a training on other pairs, mean over pairs, whole messages resampled.

    `margin` is DPO's implicit reward margin (Rafailov et al. 2023, section 4): beta times what
    log p(chosen) − log p(rejected) is above the base's, `low` and `high` its 95 % bootstrap interval, `p_value` of the
    paired randomisation. `chosen` and `rejected` are changes of log p in nats, `won` the share of margins above 0.
    """

    pairs: int
    messages: int
    beta: float
    margin: float
    low: float
    high: float
    p_value: float
    won: float
    chosen: float
    rejected: float

    def __str__(self) -> str:
        return (
            f"{self.pairs} held-out pairs of {self.messages} messages: reward margin 0 → {self.margin:+.3f} "
            f"(95 % {self.low:+.3f} to {self.high:+.3f}, p = {self.p_value:.4f}); the chosen reply gained on the "
            f"rejected one in {100 * self.won:.0f} % (log p {self.chosen:+.1f} and {self.rejected:+.1f} nats)"
        )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validation of a training on rows that it did not see: `curve` has (step, bits per character, nats a token).

    Bits per character are those of the replies with their end tokens, as in an evaluation, over `characters` of the
    normalised replies; step 0 is the base. `stopped`: the training ended early, since no step was better for long.
    """

    rows: int
    characters: int
    curve: tuple[tuple[int, float, float], ...]
    stopped: bool = False

    @property
    def best(self) -> tuple[int, float]:
        """The step after which it was lowest, whose adapter is kept, and its bits per character."""
        known = [(bits if math.isfinite(bits) else math.inf, step) for step, bits, _ in self.curve if step]
        bits, step = min(known, default=(math.inf, 0))
        return step, bits

    def said(self, loss: Points) -> str:
        """What that means, in a sentence or two, beside the curve of the training's own loss."""
        (best, bits), (last, after, _), base = self.best, self.curve[-1], self.curve[0][1]
        said = f"{base:.3f} → {bits:.3f} bits per character on {self.rows} held-out replies, lowest at step {best}"
        since = [y for step, y, *_ in loss if step > best]
        before = [y for step, y, *_ in loss if step <= best][-len(since) :]
        if after >= 1.01 * bits and since and before:
            falls = fmean(since) < fmean(before)
            why = "it learns its rows by heart (overfitting)" if falls else "the training loss rose too"
            said += f"; by step {last} it was {after:.3f}, since {why}. The adapter of step {best} is kept"
        elif best != last:
            said += f", no better at step {last} ({after:.3f}). The adapter of step {best} is kept"
        if self.stopped:
            said += f"; stopped early, at step {last}"
        return said + (". No step was better than the base: lower learning_rate" if bits >= base else "")


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What run.json keeps of an adapter's `TrainingRecord`: `loss` has at most 240 points of its curve."""

    recipe: Mapping[str, Any]
    rows: int
    steps: int
    seconds: float
    precision: Mapping[str, Any]
    peak_memory_bytes: int | None
    device: str
    gain: Gain | None
    loss_at_start: float
    loss_at_end: float
    loss: tuple[tuple[int, float], ...]
    validation: Validation | None = None


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """One candidate: where it was read from, `key_fields` (all that a reply depends on beside prompt and decoding), and
    how it went. `prompt` says how it was asked where that is not as the first one was; `seconds` are summed over all
    sessions, None for recorded replies.
    """

    name: str
    kind: str
    location: str
    revision: str | None
    base: str | None
    base_revision: str | None
    weights_sha256: str | None
    key_fields: Mapping[str, Any]
    prompt: Mapping[str, str] | None = None
    training: TrainingSummary | None = None
    seconds: float | None
    tokens_per_second: float | None
    hit_limit_share: float | None


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """One metric as it scored: all that its table needs to be read again. `weights` are a combined score's, `spelling`
    what `get_metric` takes to make it again where its name does not do.
    """

    name: str
    signature: str
    columns: tuple[str, ...]
    values: tuple[str, ...]
    higher_is_better: bool
    description: str
    weights: Mapping[str, float] | None = None
    spelling: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    details: tuple[str, ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, metric: Metric, n: int) -> Self:
        """The record of a metric that scored `n` replies."""
        return cls(
            name=metric.name, signature=metric.signature(n), columns=tuple(metric.columns), values=tuple(metric.values),
            higher_is_better=metric.higher_is_better, description=metric.description, labels=dict(metric.labels),
            details=tuple(v for v in metric.values if v in metric.details),
            spelling=metric.spelling if metric.argument else "",
            weights=metric.weights if isinstance(metric, CombinedScore) else None,
        )  # fmt: skip


@dataclass(frozen=True)
class YardstickRecord:
    """A yardstick: its name, which its file has, what a reader's table calls it, and the text where it is one reply."""

    name: str
    label: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """run.json: what was run, on what, with what. `finished` is null until the scores are written; times are UTC.
    `stages` are the seconds that loading, generating and scoring took, in all sessions together.
    """

    schema_version: int = field(default_factory=lambda: SCHEMA_VERSION)
    name: str
    bnbench: str
    command: str
    created: str
    finished: str | None
    packages: Mapping[str, str]
    device: Mapping[str, Any]
    precision: Mapping[str, Any]
    corpus: CorpusRecord
    prompt: Mapping[str, str]
    decoding: Mapping[str, Any]
    batch_size: int | None
    peak_memory_bytes: int | None
    stages: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[CandidateRecord, ...]
    primary_metric: str
    combined: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] | None = None
    samples: int = 1
    metrics: tuple[MetricRecord, ...]
    yardsticks: tuple[YardstickRecord, ...] = field(default_factory=tuple)
    seed: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A finished run. In the order of `examples`: each candidate's `replies` (the base's first), one an item, and
    `tables` (metric name → n x k statistics), and those of each yardstick (n x m x k, of m replies to an item). Where
    several replies to an item were drawn, `replies` are the first, `tables` the mean of all, and `drawn` has all.
    """

    path: Path
    record: RunRecord
    examples: tuple[Mapping[str, str], ...]
    replies: Mapping[str, tuple[Generation, ...]]
    tables: Mapping[str, Mapping[str, FloatArray]]
    yardsticks: Mapping[str, Mapping[str, FloatArray]]
    drawn: Mapping[str, Mapping[str, FloatArray]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """The model that an adapter was trained on: id or folder, revision as it was asked for, commit, and hashes."""

    name: str
    revision: str | None
    commit: str
    weights_sha256: str
    config_sha256: str


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The rows of a training, by hash."""

    fingerprint: str
    rows: int
    rows_sha256: str


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters that were trained, of all that the base with its adapter has."""

    trainable: int
    total: int


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """training.json: `loss` has (step, loss, learning rate) of every optimiser step, `examples` the ids of the rows
    that were trained on, `start` the adapter that it went on with, `identity` what a resumed training must share.
    """

    schema_version: int = field(default_factory=lambda: SCHEMA_VERSION)
    bnbench: str
    finished: str
    command: str = ""
    recipe: Mapping[str, Any]
    recipe_sha256: str
    base: BaseRecord
    data: TrainingData
    prompt: Mapping[str, str]
    precision: Mapping[str, Any]
    device: str
    machine: Mapping[str, Any] | None = None
    processes: int | None = None
    seed: int
    parameters: ParameterCount
    steps: int
    resumed_from: int
    seconds: float
    peak_memory_bytes: int | None
    packages: Mapping[str, str]
    loss: tuple[tuple[int, float, float], ...]
    gain: Gain | None = None
    validation: Validation | None = None
    start: str | None = None
    examples: tuple[str, ...]
    identity: Mapping[str, Any]

    def summary(self) -> TrainingSummary:
        """The part that run.json keeps."""
        same = ("recipe", "steps", "seconds", "precision", "peak_memory_bytes", "gain", "validation")
        kept: dict[str, Any] = {name: getattr(self, name) for name in same} | ends(self.loss)
        kept["device"] = (self.machine or {}).get("accelerator") or self.device
        kept["loss"] = tuple((step, round(loss, 4)) for step, loss in thinned(self.loss))
        return TrainingSummary(rows=self.data.rows, **kept)


def ends(points: Points) -> dict[str, float]:
    """The mean losses over the first and the last tenth of the steps, of which there is at least one."""
    tenth, losses = max(1, len(points) // 10), [loss for _, loss, *_ in points]
    return {"loss_at_start": fmean(losses[:tenth]), "loss_at_end": fmean(losses[-tenth:])}


def thinned(points: Points) -> list[tuple[int, float]]:
    """At most 240 points (more are narrower than a pixel): each the mean loss of as many steps, at the last of them."""
    size = max(1, math.ceil(len(points) / 240))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], fmean(loss for _, loss, *_ in part)) for part in parts]


def describe_environment(*more: str) -> dict[str, Any]:
    """The `packages`, `more` among them, and `device` of a run; an accelerator is known where that has loaded torch."""
    versions = {"python": platform.python_version()}
    for package in (*_PACKAGES, *more):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    torch = sys.modules.get("torch")
    device: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()}
    device["accelerator"] = str(torch.cuda.get_device_name(0)) if torch and torch.cuda.is_available() else None
    return {"packages": versions, "device": device}


def slug(name: str) -> str:
    """A name as a file name: readable, and with a hash where characters had to go."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return plain if plain == name else f"{plain}-{digest[:8]}"


# ------------------------------------------------------------------------------------------------------------- reading


def typed(kind: Any, value: Any, where: str = "") -> Any:
    """JSON as what `kind` declares: a dataclass by its annotations, a tuple, a mapping or a plain value.
    A whole number is a float too. ValueError where a key lacks or holds something else; `where` leads to it (`a[0].b`).
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # every union here is `X | None`
        return None if value is None else typed(inner[0], value, where)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
        found = {}
        for one in fields(kind):
            key, declared = f"{where}.{one.name}".lstrip("."), _hints(kind)[one.name]
            if one.name in value:
                found[one.name] = typed(declared, value[one.name], key)
                if isinstance(found[one.name], int) and found[one.name] < 0:  # all that records have count, or seed
                    raise ValueError(f"{key} is {found[one.name]}, and cannot be negative")
            elif one.default is MISSING and one.default_factory is MISSING:
                if type(None) not in get_args(declared):
                    raise ValueError(f"{key} is missing")
                found[one.name] = None
        return kind(**found)
    if origin is Mapping and isinstance(value, Mapping):
        return {k: typed(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is tuple and isinstance(value, list) and (inner[-1] is ... or len(value) == len(inner)):
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return tuple(typed(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError(f"{where or 'the file'} is a number out of every range")
    if kind is Any or type(value) is kind or (kind is float and type(value) is int):
        return float(value) if kind is float else value
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list"}
    what = f"{where or 'the file'} is {json.dumps(value, ensure_ascii=False)[:60]}"
    raise ValueError(f"{what}, not {plain.get(origin or kind, 'an object')}")


def _read(kind: type[Record], path: Path, advice: str) -> Record | int | None:
    """A JSON file as a record; where it is of another schema, which (None: it says none)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        schema: int | None = found.get("schema_version") if isinstance(found, dict) else None
        return typed(kind, found) if schema == SCHEMA_VERSION else schema
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({error}); {advice}") from None


def read_record(folder: Path) -> RunRecord:
    """run.json alone; RunError where there is none, it is of another schema, or damaged (which key)."""
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"{folder}: not a run folder (no run.json); name one that `bnbench evaluate` wrote")
    advice = "remove it and run the same `bnbench evaluate` command again: what else is whole is kept"
    found = _read(RunRecord, path, advice)
    if not isinstance(found, RunRecord):
        other = f"schema {json.dumps(found, ensure_ascii=False)[:60]}, but this bnbench reads schema {SCHEMA_VERSION}"
        raise RunError(f"{path}: {f'damaged (schema_version is missing); {advice}' if found is None else other}")
    return found


def differences(before: RunRecord, now: RunRecord) -> list[str]:
    """What the replies of both depend on and is another in the second: `temperature was 0.7 and is 0.5 now`."""
    both = {c.name for c in before.candidates} & {c.name for c in now.candidates}

    def settings(run: RunRecord) -> dict[str, Any]:
        corpus, candidates = run.corpus, run.candidates
        data = {"data": corpus.name, "split": corpus.split, "limit": corpus.limit, "fingerprint": corpus.fingerprint}
        found = {"candidates": ", ".join(c.name for c in candidates), **data, **run.decoding}
        found |= {"system": run.prompt.get("system"), "samples": run.samples, "batch_size": run.batch_size}
        keys = [(c, key, value) for c in candidates if c.name in both for key, value in c.key_fields.items()]
        return found | {f"{key} of {c.name}": value for c, key, value in keys}

    then = settings(before)
    pairs = {key: (then.get(key), value) for key, value in settings(now).items() if then.get(key) != value}
    said = {key: [f"{value:.32}" if value else "none" for value in map(str, pair)] for key, pair in pairs.items()}
    return [f"{key} was {old} and is {new} now" for key, (old, new) in said.items()]


def read_training(folder: Path) -> TrainingRecord | None:
    """training.json of an adapter's folder, or of an export's; None where there is none, or one of another tool or
    schema. Raises RunError where it is ours and damaged (which key).
    """
    path = folder / TRAINING
    advice = "put back what `bnbench finetune` wrote, or remove it: then nothing is said of the training"
    found = _read(TrainingRecord, path, advice) if path.is_file() else None
    if isinstance(found, TrainingRecord) and not found.loss:
        raise RunError(f"{path}: damaged (loss has no step); {advice}")
    return found if isinstance(found, TrainingRecord) else None


def read_lines(kind: type[Record], path: Path) -> list[Record]:
    """All whole lines of a JSONL file that may not be there. A last line without its newline was torn by a crash and is
    left out; RunError (line number) for one that is damaged, or that was changed since `line_of` made it.
    """
    found: list[Record] = []
    if path.exists() and not path.is_file():
        raise RunError(f"{path}: not a file that can be read")  # a device or a pipe may have no end
    for number, line in enumerate(_whole_lines(path) if path.exists() else (), 1):
        try:
            value = json.loads(line)
            if isinstance(value, dict) and "sha256" in value and line != _with_sha(line.rpartition(_SHA)[0]):
                why = "it was edited since it was written"
                if line.startswith(b"\xef\xbb\xbf"):
                    why = "an editor put a byte order mark before it"
                elif line.endswith(b"\r"):
                    why = "an editor made its line end CR LF, which was LF"
                raise ValueError(why)
            found.append(typed(kind, value))
        except (ValueError, RecursionError) as error:
            further = " and all after it, and run the same command again" if kind is Generation else ""
            advice = f"nothing was changed; put the file back as it was, or delete the line{further}"
            raise RunError(f"{path}, line {number}: damaged ({error}); {advice}") from None
    return found


def _whole_lines(path: Path) -> list[bytes]:
    *lines, last = path.read_bytes().split(b"\n")
    is_whole = last == _with_sha(last.rpartition(_SHA)[0])  # an editor took its newline, and no more
    return [*lines, last] if is_whole else lines


def _with_sha(text: bytes) -> bytes:
    """A line with its hash behind `text`; of one as it was written, what stands before `_SHA` makes it again."""
    return text + _SHA + hashlib.sha256(text).hexdigest()[:16].encode() + b'"}'


def read_run(folder: str | Path) -> Run:
    """Reads a run folder; RunError: no run, an unfinished one (with what goes on), another schema, a damaged file."""
    folder = Path(folder)
    record = read_record(folder)
    if not record.finished:
        raise RunError(f"{folder}: this run is not finished; go on with: {record.command}")
    path, again = folder / "examples.jsonl", f"run the same command again, what is whole is kept: {record.command}"
    examples = tuple(asdict(example) for example in read_lines(Example, path))
    if len(examples) != record.corpus.n:  # else its neighbour would be blamed, whose replies are to no known item
        what = f"has {len(examples)} of the run's {record.corpus.n} items" if path.exists() else "missing"
        raise RunError(f"{path}: {what}; {again}")
    # Replies come in the order of the batches; everything from here on is in the order of the items.
    ids = [example["id"] for example in examples]
    replies: dict[str, dict[tuple[str, int], Generation]] = {c.name: {} for c in record.candidates}
    known, path = set(ids), folder / GENERATIONS
    for generation in read_lines(Generation, path):
        if generation.candidate not in replies or generation.id not in known:
            raise RunError(f"{path}: {generation.candidate}, {generation.id}: no such candidate or item")
        replies[generation.candidate][generation.id, generation.sample] = generation
    for name, found in replies.items():
        if lost := [one for one in ids if (one, 0) not in found]:
            what = f"{name} has no reply to item {lost[0]} ({len(lost)} such)" if path.exists() else "missing"
            raise RunError(f"{path}: {what}; {again}")
    ordered = {name: tuple(found[one, 0] for one in ids) for name, found in replies.items()}

    scores = {name: _read_scores(folder, name, ids, record.metrics, again, of.values()) for name, of in replies.items()}
    tables = {name: {metric: table.mean(axis=1) for metric, table in own.items()} for name, own in scores.items()}
    names = [y.name for y in record.yardsticks]
    yardsticks = {name: _read_scores(folder, name, ids, record.metrics, again, kind="yardsticks") for name in names}
    return Run(folder, record, examples, ordered, tables, yardsticks, scores if record.samples > 1 else {})


def _read_scores(
    folder: Path, name: str, ids: list[str], used: Sequence[MetricRecord], again: str,
    replies: Iterable[Generation] = (), kind: str = "",
) -> dict[str, FloatArray]:  # fmt: skip
    """The table of each metric that a file of scores has, n x m x k, of m replies to each item in the order of ids."""
    import pandas as pd

    path = folder / "scores" / kind / f"{slug(name)}.parquet"
    if not path.is_file():
        raise RunError(f"{path}: missing; {again}")
    sha = hashlib.sha256(b"".join(sorted(map(line_of, replies)))).hexdigest()
    tables, mark = {}, {"kind": kind, "name": name, "replies": sha}
    try:
        frame = pd.read_parquet(path)
        if other := {key: value for key, value in frame.attrs.items() if value != mark.get(str(key))}:  # older: none
            raise ValueError(f"it has the scores of {other.get('name', 'other replies')}")
        frame = frame.set_index("id").loc[ids]
        if list(frame.index) != [one for one in ids for _ in range(len(frame) // len(ids))]:
            raise ValueError("some items have more rows than others")
        have = {column.split("/")[0] for column in frame.columns}
        for metric in used:
            # A combined score has no statistics of its own: its columns are its parts', by their names in the file.
            columns = [c if c in frame.columns else f"{metric.name}/{c}" for c in metric.columns]
            if have.issuperset(column.split("/")[0] for column in columns):
                table = np.ascontiguousarray(frame[columns].to_numpy(dtype=np.float64))
                tables[metric.name] = table.reshape(len(ids), -1, len(columns))
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise RunError(f"{path}: damaged ({' '.join(str(error).split())[:200]}); {again}") from None
    return tables


# ------------------------------------------------------------------------------------------------------------- writing


def as_json(record: Any) -> Any:
    """A record as plain JSON values, keys in the order of its fields; plain defaults are left out."""
    if is_dataclass(record):
        kept = ((one, getattr(record, one.name)) for one in fields(record))
        return {one.name: as_json(v) for one, v in kept if one.default is MISSING or v != one.default}
    if isinstance(record, Mapping):
        return {key: as_json(value) for key, value in record.items()}
    return [as_json(value) for value in record] if isinstance(record, list | tuple) else record


def write_text(path: Path, text: str | bytes) -> None:
    """Writes a file whole or not at all: a temporary one beside it takes its place when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # or it may be a link to another file
    with temporary.open("xb") as file:
        file.write(text.encode("utf-8", "replace") if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes a record or other JSON values, indented, with Bengali spelt out, whole or not at all."""
    write_text(path, json.dumps(as_json(value), ensure_ascii=False, indent=2, default=str) + "\n")


def write_scores(
    folder: Path, name: str, ids: Sequence[str], tables: Mapping[str, FloatArray], columns: Columns, kind: str = "",
    replies: Sequence[Generation] = (),
) -> None:  # fmt: skip
    """Writes one candidate's statistics as `scores/[<kind>/]<name>.parquet`, columns called `<metric>/<column>`; whose
    they are, and a hash of the `replies`, stand in it, since a file is easily copied over another.
    """
    import pandas as pd

    data = {f"{m}/{c}": table[:, i] for m, table in tables.items() for i, c in enumerate(columns[m])}
    frame = pd.DataFrame({"id": list(ids), **data})
    frame.attrs = {"kind": kind, "name": name}
    if replies:
        frame.attrs["replies"] = hashlib.sha256(b"".join(sorted(map(line_of, replies)))).hexdigest()
    write_text(folder / "scores" / kind / f"{slug(name)}.parquet", frame.to_parquet(index=False))


def line_of(record: Any) -> bytes:
    """A record as one line of JSON, whose last key "sha256" has 16 digits of the hash of all that stands before it."""
    # A reply may hold half a character, which JSON can carry and UTF-8 cannot.
    return _with_sha(json.dumps(as_json(record), ensure_ascii=False)[:-1].encode("utf-8", "surrogatepass"))


def append_lines(path: Path, rows: Sequence[Any]) -> None:
    """Appends records, one a line, and waits until they are on the disk: nothing goes on before they are safe. A torn
    last line is cut off first, or it would swallow the next.
    """
    if path.is_symlink():
        raise RunError(f"{path} is a link, through which nothing is written; put the file itself there")
    with path.open("a+b") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read() != b"\n":
                size = sum(len(line) + 1 for line in _whole_lines(path))  # with the newline that the last may lack
                file.truncate(min(size, end))
                file.write(b"\n" * (size > end))
        file.write(b"".join(line_of(row) + b"\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def _tell(stopped: BaseException, folder: Path, own: Sequence[str]) -> None:
    """Adds what whoever catches it cannot know: where a disk was full, or whether replies are kept."""
    if isinstance(stopped, OSError) and stopped.errno in FULL:
        stopped.filename = stopped.filename or str(folder)  # an open file says no path
    elif isinstance(stopped, KeyboardInterrupt):
        kept = any(path.is_file() and path.stat().st_size for path in (folder / GENERATIONS, folder / ANSWERED))
        stopped.args = ("what was computed is kept" if kept else "no reply is kept yet",) * (own == OF_RUN)


@contextmanager
def alone(folder: Path, own: Sequence[str] = (), *, dry: bool = False) -> Iterator[None]:
    """Keeps other processes of bnbench out of a folder, which is made where it is not there, while the block runs.
    The lock is the system's and ends with the process, however that ends. Raises RunError where another process has it,
    OSError where nothing can be written. With `own`, patterns of what is gone on with, RunError also where no folder
    can be, or one holds something and none of them (but names that begin with a dot); `dry` looks for that alone.
    """
    if own and (file_there := next((path for path in (folder, *folder.parents) if path.is_file()), None)):
        raise RunError(f"{file_there}: a file, not a folder; name another --out")
    found = sorted(path.name for path in folder.glob("[!.]*")) if own else []
    other: RunError | None = None
    if found and not any(path for pattern in own for path in folder.glob(pattern)):
        kind = next((kind for name, kind in _KINDS.items() if name in found), "other files")
        named = f"{', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        other = RunError(f"{folder} holds {kind} ({named}), and nothing to go on with: name another --out")
    if dry:
        if other:
            raise other
        yield
        return
    if str(folder) != str(folder).encode("utf-8", "replace").decode():
        raise RunError(f"{folder}: this name is not UTF-8, which not every library can open; choose another")
    is_new, path = not folder.exists(), folder / ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever was here before may just have removed the file that was opened.
            is_ours = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except (BlockingIOError, PermissionError):  # the second is Windows's
            is_ours = False
        except OSError as error:
            log.warning("%s: this file system has no locks (%s): start no second command on it", folder, error)
            is_ours = True
        if not is_ours:
            busy = RunError(f"{folder}: another bnbench works in this folder; wait for its end, or name another")
            busy.exit_code = 1  # later the same command is right
            raise busy
        try:
            if other:
                raise other
            yield
        except (KeyboardInterrupt, OSError) as stopped:
            _tell(stopped, folder, own)
            raise
        finally:
            with suppress(OSError):
                if sys.platform == "win32":
                    file.close()  # it removes no open file
                path.unlink()
                if is_new:
                    folder.rmdir()  # where nothing was written


# ------------------------------------------------------------------------------------------------------- inside a page


def packed(runs: Sequence[Run], more: Mapping[str, Any]) -> str:
    """What is read of the folders of `runs`, and `more`, as JSON under gzip in base64; the same files give the same.
    Ratings stay outside: they have the names of people.
    """
    press = zlib.compressobj(6, wbits=31)
    # Half a character, which JSON can carry and UTF-8 cannot, is written as read_run reads it.
    parts = [press.compress(piece.encode("utf-8", "surrogatepass")) for piece in _pieces(runs, more)]
    return base64.b64encode(b"".join([*parts, press.flush()])).decode()


def _pieces(runs: Sequence[Run], more: Mapping[str, Any]) -> Iterator[str]:
    """The JSON of `packed` a line or a column at a time: as one object it would take twenty times what it has."""
    import pandas as pd

    dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))
    yield '{"schema_version":1,"runs":['
    for number, run in enumerate(runs):
        yield ",{" if number else "{"
        held = [path for name in _HELD if (path := run.path / name).is_file()]
        tables = sorted(path for of in ("*.parquet", "yardsticks/*.parquet") for path in (run.path / "scores").glob(of))
        for at, path in enumerate((*held, *tables)):
            yield f"{',' if at else ''}{dumps(path.relative_to(run.path).as_posix())}:"
            if path.suffix == ".json":
                yield dumps(json.loads(path.read_bytes()))
            elif path.suffix == ".jsonl":
                yield "["
                for line, row in enumerate(map(json.loads, _whole_lines(path))):
                    row.pop("sha256", None)  # of the line as it stood there
                    row |= {"key": str(line)} if path.name == GENERATIONS else {}  # hashes do not compress
                    yield f"{',' if line else ''}{dumps(row)}"
                yield "]"
            else:
                frame = pd.read_parquet(path)
                for place, column in enumerate(frame):
                    of = frame[column].tolist()
                    # Whole numbers are written as such: most statistics are counts.
                    whole = [None if x != x else int(x) if isinstance(x, float) and x.is_integer() else x for x in of]
                    yield f"{',' if place else '{'}{dumps(str(column))}:{dumps(whole)}"
                yield "}"
        yield "}"
    yield f"],{dumps(more)[1:]}"


def unpack(page: Path, folder: Path) -> list[Path]:
    """Writes the runs that a page holds as run folders under `folder`. Raises RunError where it holds none of ours."""
    import pandas as pd

    advice = "name a report.html that this bnbench wrote, or the run's folder"
    found = _HELD_IN.search(page.read_text(encoding="utf-8", errors="replace"))
    if not found:
        raise RunError(f"{page}: a page without the data of a run; {advice}")
    try:
        stored, unfolding = base64.b64decode(found[1]), zlib.decompressobj(wbits=31)
        unfolded = unfolding.decompress(stored, max(MOST_BYTES, 50 * len(stored)))
        if unfolding.unconsumed_tail:
            raise ValueError(f"they have more than {len(unfolded) >> 20} MiB, much more than the page")
        held = json.loads(unfolded)
        runs: list[dict[str, Any]] = held["runs"] if held["schema_version"] == 1 else []
        paths = []
        for at, files in enumerate(runs):
            place = folder / str(at)
            for name, value in files.items():
                if name not in _HELD and not _HELD_TABLE.fullmatch(name):
                    raise ValueError(f"a file called {name[:60]}")
                if name.endswith(".parquet"):
                    content: str | bytes = pd.DataFrame(value).to_parquet(index=False)
                else:
                    lines = value if name.endswith(".jsonl") else [value]
                    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                    content = text.encode("utf-8", "surrogatepass")
                write_text(place / name, content)
            paths.append(place)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{page}: its data are damaged ({' '.join(str(error).split())[:200]}); {advice}") from None
    if not paths:
        raise RunError(f"{page}: its data are of another schema; {advice}")
    return paths
