"""The corpus: from a file or a hub id to fixed splits of clean examples, with every dropped row accounted for.

    load → repair → clean → filter by tokens → split(seed) → Example(id, topic, title, question, reference)

A row's side (train, validation or test) depends on the row and the seed alone, so rows that are reordered or appended
never move a row from one side to another.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bnbench.data.chat import plain_rows
from bnbench.data.files import (
    Row,
    as_text,
    check_table,
    find_column,
    header_of,
    iter_table,
    match_columns,
    plain_name,
    texts_of,
)
from bnbench.data.repair import LOST, repair
from bnbench.errors import CorpusError
from bnbench.metrics.exceptions import require
from bnbench.metrics.normalization import normalize

SPLITS = ("train", "validation", "test")
FIELDS = {"topic": "Topics", "title": "Question-Title", "question": "Questions", "reference": "Answers"}
"""The fields of an example, and what our own data call their columns; others are in `files.COLUMNS`."""
MIN_ROWS_TO_SPLIT = 100
NEAR_DUPLICATE = 0.7  # Jaccard similarity of character 5-grams

TokenCounter = Callable[[Sequence["Example"]], Sequence[int]]


@dataclass(frozen=True)
class Example:
    """One row: a message (topic, title, question) and the reference reply. `id` is a hash of the content."""

    id: str
    topic: str
    title: str
    question: str
    reference: str


def make_example(topic: str, title: str, question: str, reference: str) -> Example:
    """The example of these texts; its id is the same for all spellings of them."""
    texts = (topic, title, question, reference)
    digest = hashlib.sha256("\x1f".join(map(normalize, texts)).encode()).hexdigest()
    return Example(digest[:16], *texts)


@dataclass(frozen=True)
class SplitSizes:
    """The most rows that each side may hold. Their ratio is also the share of all rows that falls to each side."""

    train: int = 4000
    validation: int = 300
    test: int = 300

    @classmethod
    def parse(cls, text: str) -> SplitSizes:
        """Reads `4000/300/300`; raises CorpusError for anything else."""
        try:
            train, validation, test = (int(part) for part in text.split("/"))
        except ValueError:
            raise CorpusError(f"split sizes {text!r}: write train/validation/test, such as 4000/300/300") from None
        if min(train, validation, test) < 0 or train + validation + test == 0:
            raise CorpusError(f"split sizes {text!r}: no size may be negative, and one must be above 0")
        return cls(train, validation, test)


@dataclass(frozen=True)
class Step:
    """One step of the cleaning: how many rows it changed, how many it dropped, and why."""

    name: str
    why: str
    changed: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class SourceRow:
    """A row of a file, repaired. `side` is what the file itself says about its split, `own_id` what it calls the row.

    An `own_id` only joins recorded replies: no example, split or hash depends on it.
    """

    example: Example
    side: str = ""
    own_id: str = ""


@dataclass(frozen=True)
class Corpus:
    """Clean examples in fixed splits. `fingerprint` is a sha256 over the splits' ids: equal fingerprints, equal data.

    `splits` has the keys train, validation and test, or only "all" for a file too small to split (`MIN_ROWS_TO_SPLIT`).
    `rows` are all rows of the source in its order, before any was dropped.
    """

    source: str
    splits: Mapping[str, tuple[Example, ...]]
    steps: tuple[Step, ...]
    fingerprint: str
    rows: tuple[SourceRow, ...] = ()

    def orders(self, examples: Iterable[Example]) -> dict[str, list[str]]:
        """The orders that replies to these examples can only stand in, by name, as ids of examples (dropped ones too).

        That of examples.jsonl is one only where bnbench drew the split: one that the file states can be had from the
        file in another order, and so can the first rows of it.
        """
        found = {f"the order of {self.source}": [row.example.id for row in self.rows]}
        if self.is_split and not any(row.side for row in self.rows):
            asked = {e.id for e in examples}
            parts = {name: [e.id for e in part] for name, part in self.splits.items()}
            found |= {f"the order of examples.jsonl ({n})": ids for n, ids in parts.items() if asked <= set(ids)}
        return found

    def own_ids(self) -> dict[str, str]:
        """What the column 'id' of the source calls a row → the example's id, for each name that occurs once."""
        counts = Counter(whole_number(row.own_id) for row in self.rows)
        named = {whole_number(row.own_id): row.example.id for row in self.rows}
        return {name: item for name, item in named.items() if name and counts[name] == 1}

    def select(self, split: str, limit: int | None = None) -> tuple[Example, ...]:
        """The first `limit` examples of a split ("all" for every row). A file too small to split is taken whole."""
        check_split(split)
        chosen = self.splits.get(split)
        if chosen is None:
            chosen = tuple(e for part in self.splits.values() for e in part)
        if not chosen:
            raise CorpusError(f"{self.source}: no row of the split {split!r} is left; {self.describe()}")
        return chosen[:limit]

    @property
    def is_split(self) -> bool:
        """False for a file with too few rows to split, which is evaluated whole."""
        return "all" not in self.splits

    @property
    def unsplit(self) -> str:
        """Why a file that is not split is not, what follows from it, and what to do."""
        return (
            f"it has fewer than {MIN_ROWS_TO_SPLIT} usable rows, so evaluate and finetune each take all of them; "
            "to hold rows out, give more, or a column 'split' that says train, validation or test"
        )

    def describe(self) -> str:
        """One line: what was dropped by which step, and the sizes that are left."""
        dropped = ", ".join(f"{s.dropped} {s.name}" for s in self.steps if s.dropped) or "none"
        return f"dropped: {dropped}; left: " + ", ".join(f"{len(v)} {k}" for k, v in self.splits.items())

    def summary(self) -> dict[str, object]:
        """Source, steps, sizes and fingerprint, for JSON."""
        return {
            "source": self.source,
            "steps": [asdict(s) for s in self.steps],
            "splits": {name: len(part) for name, part in self.splits.items()},
            "fingerprint": self.fingerprint,
        }

    def table(self) -> str:
        """The same for people: one line a step, one for the splits."""
        steps = [f"{s.name:<15}{s.dropped:>7} dropped {s.changed:>7} repaired   {s.why}" for s in self.steps]
        sizes = " · ".join(f"{len(part)} {name}" for name, part in self.splits.items())
        whole = [] if self.is_split else [f"not split: {self.unsplit}"]
        return "\n".join([self.source, *steps, f"{sizes}   sha256 {self.fingerprint[:16]}", *whole])


def load_corpus(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    sizes: SplitSizes = SplitSizes(),
    seed: int = 42,
    min_words: int = 2,
    max_tokens: int | None = None,
    count_tokens: TokenCounter | None = None,
) -> Corpus:
    """Reads, repairs, cleans and splits a corpus.

    Args:
        source: a file (see `files.KINDS`), or the id of a data set on the hub (`owner/name[@revision]`), with a column
            for each field, or as chat data (see `chat`).
        columns: our name (topic, title, question, reference) → the file's, where they differ from `files.COLUMNS`.
        sizes: the most rows a side may hold; the ratio sets each side's share.
        seed: fixes which row falls to which side.
        min_words: rows whose answer has fewer words are dropped.
        max_tokens: rows longer than this *after the chat template* are dropped whole, never cut; needs `count_tokens`.
        count_tokens: gives the length in tokens of each example as it will be trained on.

    Raises:
        CorpusError: no such file, not UTF-8, a missing column, or no row left.
    """
    rows, changed = _read(source, columns or {})
    cleaned, steps = _clean(rows, changed, min_words)
    if max_tokens is not None and count_tokens is not None:
        lengths = count_tokens([example for example, _ in cleaned])
        kept = [pair for pair, length in zip(cleaned, lengths, strict=True) if length <= max_tokens]
        why = f"over {max_tokens} tokens after the template"
        steps.append(Step("too long", why, dropped=len(cleaned) - len(kept)))
        cleaned = kept
    if not cleaned:
        raise CorpusError(f"{source}: no usable row; " + ", ".join(f"{s.dropped} {s.name}" for s in steps if s.dropped))
    return replace(divide(str(source), cleaned, steps, sizes, seed), rows=rows)


def demo_corpus(max_tokens: int | None = None, count_tokens: TokenCounter | None = None) -> Corpus:
    """The bundled conversations (240 rows, 160/40/40), written for this project, CC0."""
    with resources.as_file(resources.files("bnbench.demo") / "conversations.csv") as path:
        corpus = load_corpus(path, max_tokens=max_tokens, count_tokens=count_tokens)
    return replace(corpus, source="bnbench demo")


def check_split(split: str) -> None:
    """Raises CorpusError, with the nearest name, for what is no split."""
    if split not in (names := (*SPLITS, "all")):
        near = difflib.get_close_matches(split, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f": choose one of {', '.join(SPLITS)} or all"
        raise CorpusError(f"there is no split {split!r}{hint}")


def check_source(source: str | Path) -> None:
    """Raises CorpusError when `source` is neither a file of a known kind nor looks like a hub id; reads nothing."""
    path = Path(source)
    if path.suffix or path.exists():
        check_table(path)
    elif "/" not in str(source):
        raise CorpusError(f"{source}: no such file, and not a hub id (owner/name)")


def read_records(source: str | Path) -> list[Row]:
    """All rows of a file or of a hub data set, at least one; what the hub calls a split is their column `split`.

    Raises CorpusError where the source cannot be read or has no rows.
    """
    check_source(source)
    path = Path(source)
    if path.suffix or path.exists():
        records = [row for _, row in iter_table(path)]
        if not records:
            raise CorpusError(f"{source}: the file has no rows")
        return records
    name, _, revision = str(source).partition("@")
    datasets = require("datasets", extra="models")
    try:
        parts = datasets.load_dataset(name, revision=revision or None)
    except Exception as error:
        # `datasets` raises whatever the hub, the network or a parser raised; the user needs one line with the id.
        raise CorpusError(f"{source}: the hub data set cannot be loaded ({type(error).__name__}: {error})") from error
    single = len(parts) == 1
    return [row | ({} if single else {"split": str(side)}) for side, rows in parts.items() for row in rows]


def side_of(record: Mapping[str, object]) -> str:
    """What a row's column `split` says; empty where there is none."""
    name = next((as_text(value).strip().lower() for column, value in record.items() if column.lower() == "split"), "")
    return {"dev": "validation", "val": "validation", "valid": "validation"}.get(name, name)


def whole_number(name: str) -> str:
    """An id as text: a column of whole numbers becomes one of floats where a table once had a gap in it."""
    return name.removesuffix(".0") if name.removesuffix(".0").isdecimal() else name


def _read(source: str | Path, columns: Mapping[str, str]) -> tuple[tuple[SourceRow, ...], int]:
    """All rows, repaired, and how many there was something to repair in."""
    records = plain_rows(source, read_records(source), columns)
    header = header_of(records)
    is_pairs = {"chosen", "rejected"} <= set(map(plain_name, header))
    hint = "; a file of preference pairs is for the recipe dpo" if is_pairs else ""
    places = match_columns(source, header, columns, FIELDS, ("question", "reference"), hint)
    own_id = find_column(source, header, "id") or ""
    rows, changed = [], 0
    for record in records:
        texts = texts_of(str(source), record, places)
        repaired = tuple(map(repair, texts))
        changed += texts != repaired
        rows.append(SourceRow(make_example(*repaired), side_of(record), as_text(record.get(own_id))))
    return tuple(rows), changed


def _clean(rows: Sequence[SourceRow], changed: int, min_words: int) -> tuple[list[tuple[Example, str]], list[Step]]:
    """The examples of the rows that can be used, each with its side, and what was done to the others."""
    steps = [
        Step("encoding", "BOM, mojibake, template remnants, stray marks and doubled signs repaired", changed=changed)
    ]
    tests: list[tuple[str, str, Callable[[Example], bool]]] = [
        ("lost text", "a letter was lost for good (U+FFFD)", lambda e: LOST in e.question + e.title + e.reference),
        ("empty", "no question or no answer", lambda e: not (e.question and e.reference)),
        ("too short", f"an answer of fewer than {min_words} words", lambda e: len(e.reference.split()) < min_words),
    ]
    kept = list(rows)
    for name, why, is_bad in tests:
        good = [row for row in kept if not is_bad(row.example)]
        steps.append(Step(name, why, dropped=len(kept) - len(good)))
        kept = good
    unique: dict[str, SourceRow] = {}
    for row in kept:
        # Of two spellings of one row the smaller stays, so that the order of the file does not matter.
        unique[row.example.id] = min(unique.get(row.example.id, row), row, key=astuple)
    steps.append(Step("duplicate", "the same row in the same or another spelling", dropped=len(kept) - len(unique)))
    return [(row.example, row.side) for row in unique.values()], steps


def divide(
    source: str, examples: Sequence[tuple[Example, str]], steps: Sequence[Step], sizes: SplitSizes, seed: int = 42
) -> Corpus:
    """The corpus of clean examples: split by message, or as the side that stands with an example says.

    What is nearly a held-out row is then dropped from train, and what is nearly a test row from validation. Raises
    CorpusError where one example has a side and another has none, or one that is no split.
    """
    sides = [side for _, side in examples]
    unknown = [side for side in sides if side not in SPLITS] if any(sides) else []
    if unknown:
        raise CorpusError(
            f"{source}: the column 'split' says {unknown[0]!r} in {len(unknown)} of {len(sides)} rows; it must say "
            f"{', '.join(SPLITS)} in each, or have another name"
        )

    def draw(*texts: str) -> float:
        """A number in [0, 1) that depends on the seed and the texts alone."""
        digest = hashlib.sha256("\x1f".join((str(seed), *texts)).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    order = sorted(examples, key=lambda pair: (draw("order", pair[0].id), pair[0].id))
    drawn: dict[str, list[Example]] = {side: [] for side in SPLITS}
    if not any(sides) and len(examples) < MIN_ROWS_TO_SPLIT:
        drawn = {"all": [example for example, _ in order]}
    elif any(sides):
        for example, side in order:
            drawn[side].append(example)
    else:
        total = sum(astuple(sizes))
        test, validation = sizes.test / total, sizes.validation / total
        for example, _ in order:
            # Drawn from the message alone: the same message with two answers stays on one side.
            at = draw("side", normalize(example.title), normalize(example.question))
            drawn["test" if at < test else "validation" if at < test + validation else "train"].append(example)
        drawn = {side: part[: getattr(sizes, side)] for side, part in drawn.items()}

    splits = {side: tuple(part) for side, part in drawn.items()}
    if "all" not in splits:
        splits["validation"] = _unlike(splits["validation"], splits["test"])
        splits["train"] = _unlike(splits["train"], (*splits["test"], *splits["validation"]))
    why = f"in train or validation but nearly a held-out row (Jaccard of 5-grams ≥ {NEAR_DUPLICATE})"
    dropped = sum(map(len, drawn.values())) - sum(map(len, splits.values()))
    names = sorted(f"{side} {example.id}" for side, part in splits.items() for example in part)
    fingerprint = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return Corpus(source, splits, (*steps, Step("near-duplicate", why, dropped=dropped)), fingerprint)


def _unlike(examples: Sequence[Example], held_out: Sequence[Example]) -> tuple[Example, ...]:
    """The examples that are no near-duplicate of a held-out one."""

    def shingles(example: Example) -> set[str]:
        text = normalize(f"{example.question} {example.reference}")
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    # An index of the held-out 5-grams: comparing each example with each held-out one would take hours on a large file.
    found: dict[str, list[int]] = {}
    sizes = np.zeros(len(held_out), dtype=np.int64)
    for i, example in enumerate(held_out):
        grams = shingles(example)
        sizes[i] = len(grams)
        for gram in grams:
            found.setdefault(gram, []).append(i)
    index: dict[str, npt.NDArray[np.int64]] = {gram: np.array(where) for gram, where in found.items()}
    kept = []
    for example in examples:
        mine = shingles(example)
        hits = [index[gram] for gram in mine if gram in index]
        if hits:
            common = np.bincount(np.concatenate(hits), minlength=len(sizes))
            if np.max(common / (sizes + len(mine) - common)) >= NEAR_DUPLICATE:
                continue
        kept.append(example)
    return tuple(kept)
