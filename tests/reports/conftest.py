"""A builder of real run folders: Bengali conversations, replies of known quality, real statistics."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import bnbench
from bnbench import records
from bnbench.data.corpus import Example
from bnbench.metrics.combined import CombinedScore, parse_weights
from bnbench.metrics.core import Metric, Progress, Texts, statistics
from bnbench.metrics.registry import get_metric
from bnbench.models import yardsticks
from bnbench.models.yardsticks import write_yardsticks
from bnbench.records import Generation, MetricRecord, as_json, write_json, write_scores, write_text

CONVERSATIONS = Path(bnbench.__file__).parent / "demo" / "conversations.csv"
METRICS = ("chrF++", "BLEU", "ROUGE", "keyword-empathy", "perplexity", "degeneration")
BASE, ADAPTER = "demo-base", "demo-adapter"


@dataclass(frozen=True)
class Spec:
    """A candidate to be made: `quality` is the share of the reference's sentences that its replies hold."""

    name: str
    quality: float
    kind: str = "adapter"
    likelihoods: bool = True
    lacks: tuple[str, ...] = ()
    replies: Mapping[int, str] = field(default_factory=dict)
    key_fields: Mapping[str, Any] | None = None
    location: str | None = None
    base: str | None = None

    def where(self) -> str:
        return self.location or f"models/{hashlib.sha256(self.name.encode(errors='replace')).hexdigest()[:6]}"


PAIR = (
    Spec(BASE, 0.15, "base", location="bnbench/demo/base"),
    Spec(ADAPTER, 0.4, location="bnbench/demo/adapter", base="bnbench/demo/base"),
)
PREDICTIONS = tuple(Spec(s.name, s.quality, "predictions", likelihoods=False) for s in PAIR)


def conversations(n: int) -> list[dict[str, str]]:
    with CONVERSATIONS.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["split"] != "test")[:n]
    return [
        {"id": hashlib.sha256(r["Questions"].encode()).hexdigest()[:12], "topic": r["Topics"],
         "title": r["Question-Title"], "question": r["Questions"],
         "reference": r["Answers"]}
        for r in rows
    ]  # fmt: skip


def _reply(examples: Sequence[Mapping[str, str]], i: int, spec: Spec, rng: np.random.Generator) -> tuple[str, bool]:
    """The reply and whether it was cut: sentences of the reference or of others, now and then cut, looping, empty."""
    others = [s for j in (1, 2, 3) for s in _sentences(examples[(i + j) % len(examples)]["reference"])]
    own = _sentences(examples[i]["reference"])
    said = [s if rng.random() < spec.quality else others[rng.integers(len(others))] for s in own]
    fate = rng.random()
    if fate < 0.03:
        return "", False
    if fate < 0.09:
        return " ".join([said[0]] * 7), True
    text = " ".join(said)
    return (text[: len(text) * 2 // 3], True) if fate < 0.18 else (text, False)


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[।?!])\s+", text) if s]


def _likelihood(reference: str, spec: Spec, item: float, rng: np.random.Generator) -> tuple[float, int, int, int]:
    characters = len(reference)
    bits = 2.1 - 0.5 * spec.quality + 0.25 * item + 0.03 * rng.standard_normal()
    return characters * bits * math.log(2), math.ceil(characters / 1.3), len(reference.encode()), characters


def _generations(examples: Sequence[Mapping[str, str]], spec: Spec) -> list[Generation]:
    rng = np.random.default_rng([7, int(spec.quality * 1000)])
    items = np.random.default_rng(1).standard_normal(len(examples))
    made = []
    for i, example in enumerate(examples):
        text, cut = _reply(examples, i, spec, rng)
        likelihood = _likelihood(example["reference"], spec, items[i], rng)
        text = spec.replies.get(i, text)
        key = hashlib.sha256(f"{spec.name}/{example['id']}".encode(errors="replace")).hexdigest()
        known = likelihood if spec.likelihoods else (None,) * 4
        tokens, limit = (math.ceil(len(text) / 1.3), cut) if spec.kind != "predictions" else (None, None)
        made.append(Generation(key, spec.name, example["id"], text, tokens, limit, *known))
    return made


def _tables(
    examples: Sequence[Mapping[str, str]], made: Sequence[Generation], spec: Spec, names: Sequence[str]
) -> dict[str, Any]:
    likelihoods = tuple((g.nll, g.nll_tokens, g.bytes, g.characters) for g in made) if spec.likelihoods else None
    texts = (
        tuple(g.reply for g in made),
        tuple((e["reference"],) for e in examples),
        tuple(e["question"] for e in examples),
        likelihoods,
        tuple(bool(g.hit_limit) for g in made) if spec.kind != "predictions" else None,
    )
    metrics = [get_metric(n) for n in names if n not in spec.lacks]
    known = [m for m in metrics if spec.likelihoods or "likelihoods" not in m.needs]
    return {m.name: _statistics(type(m), m.spelling, *texts) for m in known}


@functools.cache
def _statistics(kind: type, spelling: str, *texts: Any) -> npt.NDArray[np.float64]:
    """The table of a metric; most runs hold the same candidates, whose replies are scored once."""
    replies, references, messages, likelihoods, cut = texts
    known = None if likelihoods is None else np.array(likelihoods, dtype=np.float64)
    table = get_metric(spelling).statistics(Texts(replies, references, messages, known, cut))
    table.setflags(write=False)
    return table


def write_run(
    folder: Path,
    specs: Sequence[Spec] = PAIR,
    *,
    n: int = 40,
    metrics: Sequence[str] = METRICS,
    combine: str = "",
    yardsticks: bool = False,
    training: Sequence[str] = (),
    **meta: Any,
) -> Path:
    """Writes a finished run; `combine` declares a combined score, `meta` overrides keys of run.json. Runs of before
    there were yardsticks have none.
    """
    examples = conversations(n)
    replies = {spec.name: _generations(examples, spec) for spec in specs}
    tables = {spec.name: _tables(examples, replies[spec.name], spec, metrics) for spec in specs}
    write_text(folder / "examples.jsonl", "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in examples))
    lines = [json.dumps(asdict(g)) + "\n" for group in replies.values() for g in group]
    write_text(folder / "generations.jsonl", "".join(lines))
    used = {m for table in tables.values() for m in table}
    described = [get_metric(m) for m in metrics if m in used]
    for name, table in tables.items():
        write_scores(folder, name, [e["id"] for e in examples], table, {m.name: m.columns for m in described})
    weights = parse_weights(combine) if combine else {}
    added = [CombinedScore(weights)] if weights else []
    metrics_of = {"metrics": [as_json(MetricRecord.of(m, n)) for m in [*described, *added]], "combined": weights}
    if yardsticks:
        made = write_yardsticks(folder, [Example(**e) for e in examples], training, described, 42, True)
        metrics_of["yardsticks"] = as_json(made)
    write_json(folder / "run.json", _meta(folder, specs, replies, n) | metrics_of | meta)
    return folder


def _candidate(spec: Spec, made: Sequence[Generation]) -> dict[str, Any]:
    identity = {
        "location": spec.where(),
        "weights_sha256": hashlib.sha256(spec.where().encode()).hexdigest(),
        "dtype": "float32",
    }
    limited = [g.hit_limit for g in made if g.hit_limit is not None]
    is_model = spec.kind != "predictions"
    return {
        "name": spec.name, "kind": spec.kind, "location": spec.where(), "revision": None, "base": spec.base,
        "key_fields": dict(spec.key_fields or identity),
        "seconds": 11.37 if is_model else None, "tokens_per_second": 412.5 if is_model else None,
        "hit_limit_share": sum(limited) / len(limited) if limited else None,
    }  # fmt: skip


def _meta(folder: Path, specs: Sequence[Spec], replies: Mapping[str, Sequence[Generation]], n: int) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": folder.name,
        "command": "bnbench evaluate --base bnbench/demo/base --adapter bnbench/demo/adapter --out runs/demo",
        "created": "2026-11-24T10:02:11+00:00",
        "finished": "2026-11-24T10:03:02+00:00",
        "bnbench": "0.1.0",
        "packages": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0"},
        "device": {"machine": "x86_64", "system": "Linux", "cpus": 2, "accelerator": None},
        "precision": {"dtype": "float32", "quantisation": "none", "reason": "the CPU computes float32 fastest"},
        "corpus": {
            "name": "conversations.csv", "source": "bnbench demo", "fingerprint": "3f" * 32, "split": "test", "n": n,
            "limit": None,
            "steps": [
                {"name": "repair", "why": "encoding damage: BOM, mojibake, stray marks", "changed": 3, "dropped": 0},
                {"name": "duplicates", "why": "the same question was asked before", "changed": 0, "dropped": 2},
            ],
        },
        "prompt": {
            "kind": "llama-3.1", "template_sha": "ab" * 32, "tokenizer_sha": "cd" * 32,
            "system": "আপনি একজন সহানুভূতিশীল বাংলা কথোপকথন সহকারী। বিষয়: {topic}",
        },
        "decoding": {
            "greedy": False, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.1, "max_words": 120,
            "max_new_tokens": 384, "seed": 42,
        },
        "candidates": [_candidate(spec, replies[spec.name]) for spec in specs],
        "peak_memory_bytes": 612_368_384,
        "primary_metric": "chrF++",
        "seed": 42,
        "notes": [],
    }  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def each_yardstick_once() -> Iterator[None]:
    """The yardsticks of most runs are of the same references, and so are their tables."""
    known = dict[Any, npt.NDArray[np.float64]]()

    def count(texts: Texts, metrics: Sequence[Metric], progress: Progress = None) -> list[npt.NDArray[np.float64]]:
        given = (texts.replies, texts.references, texts.messages)
        keys = [(type(m), m.spelling, given) for m in metrics]
        left = {key: m for key, m in zip(keys, metrics, strict=True) if key not in known}
        known.update(zip(left, statistics(texts, list(left.values()), progress), strict=True))
        return [known[key].copy() for key in keys]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(yardsticks, "statistics", count)
        yield


@pytest.fixture(scope="session", autouse=True)
def each_line_once() -> Iterator[None]:
    """The lines of a run and of its copies are the same bytes; what is read of them cannot be changed."""
    read, known = records.read_lines, dict[Any, list[Any]]()

    def lines(kind: type, path: Path) -> list[Any]:
        key = (kind, hashlib.sha256(path.read_bytes()).digest()) if path.is_file() else None
        if key not in known:
            known[key] = read(kind, path)
        return list(known[key] if key else known.pop(key))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(records, "read_lines", lines)
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run folders, each written once: to be copied."""
    folders = dict[str, Path]()

    def once(name: str, specs: Sequence[Spec], options: Mapping[str, Any]) -> Path:
        key = repr((name, specs, options))
        if key not in folders:
            folders[key] = write_run(tmp_path_factory.mktemp("made") / name, specs, **options)
        return folders[key]

    return once


@pytest.fixture
def make_run(tmp_path: Path, made: Callable[..., Path]) -> Callable[..., Path]:
    """`make_run(specs, name=..., n=..., ...)` writes a run folder under the test's own folder."""

    def make(specs: Sequence[Spec] = PAIR, *, name: str = "demo", **options: Any) -> Path:
        return Path(shutil.copytree(made(name, specs, options), tmp_path / name, dirs_exist_ok=True))

    return make
