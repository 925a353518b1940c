"""The run folder: what a run was, every reply, every statistic; enough to rank, report and compare without a model.

runs/<name>/
  run.json            what was run: ids and hashes, corpus, decoding, device, metrics (see SCHEMA_VERSION)
  examples.jsonl      the items, in the order of the corpus
  generations.jsonl   append-only, one line a reply, synced per batch; a torn last line is dropped on resume
  scores/*.parquet    one file a candidate, one row a reply: every metric's statistics
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnbench.errors import RunError
from bnbench.metrics.core import FloatArray

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Generation:
    """One reply, and the likelihood of the item's reference under the candidate (null for recorded replies).

    `nll` is in nats, summed over `nll_tokens`; `bytes` and `characters` measure the text that it scores.
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


def generation_key(**parts: Any) -> str:
    """The sha256 of everything a reply depends on, in canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def slug(name: str) -> str:
    """A candidate's name as a file name: readable, and with a hash where characters had to go."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: to a temporary file beside it, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON with Bengali spelt out."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


class Journal:
    """The append-only file of generations. Each batch is on the disk before the next one starts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Generation]:
        """All whole lines. A last line without its newline was torn by a crash and is left out.

        Raises:
            RunError: a damaged line before the last one (line number), which no crash of ours can have made.
        """
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        return [self._parse(number, line) for number, line in enumerate(lines, 1)]

    def _parse(self, number: int, line: bytes) -> Generation:
        try:
            return Generation(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{self.path}, line {number}: damaged ({error}); delete the line and all after it, or use another --out"
            ) from None

    def keep(self, generations: Sequence[Generation]) -> None:
        """Cuts the file back to its first lines, `generations`, which it must begin with."""
        if not self.path.exists():
            return
        size = sum(len(self._line(g)) for g in generations)
        if self.path.stat().st_size != size:
            os.truncate(self.path, size)

    def append(self, generations: Iterable[Generation]) -> None:
        """Writes one batch and waits until it is on the disk."""
        with self.path.open("ab") as file:
            file.write(b"".join(self._line(g) for g in generations))
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _line(generation: Generation) -> bytes:
        return json.dumps(asdict(generation), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


@dataclass(frozen=True)
class Run:
    """A finished run as it lies in its folder.

    `replies` has each candidate's generations in the order of `examples`; `tables` has candidate → metric name → n x k
    statistics in the same order.
    """

    path: Path
    meta: Mapping[str, Any]
    examples: tuple[Mapping[str, str], ...]
    replies: Mapping[str, tuple[Generation, ...]]
    tables: Mapping[str, Mapping[str, FloatArray]]

    @property
    def candidates(self) -> tuple[str, ...]:
        """The candidates' names, the base first."""
        return tuple(c["name"] for c in self.meta["candidates"])


def write_scores(
    folder: Path,
    candidate: str,
    ids: Sequence[str],
    tables: Mapping[str, FloatArray],
    columns: Mapping[str, Sequence[str]],
) -> None:
    """Writes one candidate's statistics as `scores/<candidate>.parquet`; column names are `<metric>/<column>`."""
    import pandas as pd

    data = {f"{m}/{c}": table[:, i] for m, table in tables.items() for i, c in enumerate(columns[m])}
    path = folder / "scores" / f"{slug(candidate)}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pd.DataFrame({"id": list(ids), **data}).to_parquet(temporary, index=False)
    temporary.replace(path)


def read_run(folder: str | Path) -> Run:
    """Reads a run folder.

    Raises:
        RunError: no run there, an unfinished run (with the command that goes on), another schema, a damaged file.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    if not meta.get("finished"):
        raise RunError(f"{folder}: this run is not finished; go on with: {meta.get('command', 'the same command')}")
    examples = tuple(_json_lines(folder / "examples.jsonl"))
    order = {e["id"]: i for i, e in enumerate(examples)}
    replies: dict[str, list[Generation]] = {c["name"]: [] for c in meta["candidates"]}
    for generation in Journal(folder / "generations.jsonl").read():
        replies[generation.candidate].append(generation)
    ordered = {c: tuple(sorted(g, key=lambda one: order[one.id])) for c, g in replies.items()}
    tables = {c: _read_scores(folder, c, meta["metrics"], [e["id"] for e in examples]) for c in replies}
    return Run(folder, meta, examples, ordered, tables)


def read_meta(folder: Path) -> dict[str, Any]:
    """run.json alone; RunError when there is none, or one of another schema."""
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"{folder}: not a run folder (no run.json); name one that `bnbench evaluate` wrote")
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error})") from None
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise RunError(f"{path}: schema {meta.get('schema_version')}, but this bnbench reads schema {SCHEMA_VERSION}")
    return meta


def _json_lines(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise RunError(f"{path}: missing; the run folder is not whole")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _read_scores(
    folder: Path, candidate: str, metrics: Sequence[Mapping[str, Any]], ids: Sequence[str]
) -> dict[str, FloatArray]:
    import pandas as pd

    path = folder / "scores" / f"{slug(candidate)}.parquet"
    if not path.is_file():
        raise RunError(f"{path}: missing; run the evaluation again, its replies are kept")
    frame = pd.read_parquet(path).set_index("id").loc[list(ids)]
    have = {column.split("/")[0] for column in frame.columns}
    # A combined score has no statistics of its own: its columns are those of its parts, by their names in the file.
    parts = {m["name"]: list(m.get("weights", [m["name"]])) for m in metrics}
    columns = {
        m["name"]: m["columns"] if "weights" in m else [f"{m['name']}/{c}" for c in m["columns"]] for m in metrics
    }
    return {
        name: np.ascontiguousarray(frame[columns[name]].to_numpy(dtype=np.float64))
        for name, needed in parts.items()
        if have.issuperset(needed)
    }
