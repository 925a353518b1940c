"""The corpus: from a file or a hub id to fixed splits of clean examples, with every dropped row accounted for.

load → repair → clean → filter by tokens → split(seed) → Example(id, topic, title, question, reference)
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Self

import ftfy
import numpy as np
import regex

from bnbench.data import files
from bnbench.data.chat import TURNS, plain_rows, without_thoughts
from bnbench.errors import CorpusError, nearest
from bnbench.metrics.normalization import normalize

SPLITS = ("train", "validation", "test")
FIELDS = {"topic": "Topics", "title": "Question-Title", "question": "Questions", "reference": "Answers"}
"""The texts of an example, and what our own data call their columns; others are in `files.COLUMNS`."""
READ = {**FIELDS, "dialogue": ""}  # what a column of a corpus may hold
LOST = "\ufffd"
MIN_ROWS_TO_SPLIT = 100
MIN_WORDS = 2  # of an answer
UNSPLIT = (
    f"it has fewer than {MIN_ROWS_TO_SPLIT} usable rows, so evaluate and finetune each take all of them; "
    "to hold rows out, give more, or a column 'split' that says train, validation or test"
)
"""Why a file that is not split is not, what follows from it, and what to do."""
OF_SPLITTING = ("near-duplicate", "surplus")  # steps that clean no row: they keep the sides apart, or small
NEAR_DUPLICATE = 0.7  # Jaccard similarity of character 5-grams

_CP1252 = "sloppy-windows-1252"  # of ftfy: the five bytes that cp1252 does not define are C1 control characters
_MOJIBAKE_RUN = regex.compile(f"[{regex.escape(bytes(range(0x80, 0x100)).decode(_CP1252))}]+")
# The first two bytes of every Bengali letter and of the danda, read as cp1252 once or twice.
_MOJIBAKE_SIGN = regex.compile("à[¥¦§]|Ã\\u00a0Â[¥¦§]")
_MARKS_FOR_WORDS = regex.compile(r"(?<!\S)\?{2,}(?:\s+\?{2,}){2}")  # what a table without Unicode leaves of a text
_BLANK_IN_SIGN = regex.compile("(?<=Ã) (?=Â[¥¦§])")  # a no-break space that became a blank
_TEMPLATE = regex.compile(r"(\b(system|user|assistant)\s*)?<\|[a-z0-9_]+\|>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>")
_STRAY_A = regex.compile(r"Â(?=[\s\u00a0]|$)|(?<=[\s\u00a0\p{Bengali}])Â")  # half of a non-breaking space
_STRAY = ">@"  # at the beginning or the end, from mails and mentions
_DOUBLED_SIGN = regex.compile(r"([\u0981-\u0983\u09bc\u09be-\u09cd\u09d7])\1+")
_SPACES = regex.compile(r"[ \t\u00a0]+")
_HALF_A_CHARACTER = regex.compile(r"\p{Cs}")  # a lone surrogate, from JSON that was cut inside an emoji

TokenCounter = Callable[[Sequence["Example"]], Sequence[int]]


@dataclass(frozen=True)
class Example:
    """One row: a message (topic, title, question) and the reference reply. `id` is a hash of the content."""

    id: str
    topic: str
    title: str
    question: str
    reference: str
    dialogue: str = ""  # rows of one are not independent; empty where a row is by itself


@dataclass(frozen=True)
class Conversation(Example):
    """One row of chat data with several exchanges, which `question` has as one text."""

    turns: tuple[str, ...] = ()  # what user and assistant said before the reference, the user first and last


def make_example(topic: str, title: str, question: str, reference: str) -> Example:
    """The example of these texts; its id is the same for all spellings of them."""
    texts = (topic, title, question, reference)
    return Example(hashlib.sha256("\x1f".join(map(normalize, texts)).encode()).hexdigest()[:16], *texts)


def is_lost(text: str) -> bool:
    """Whether letters of a repaired text are lost for good: U+FFFD, words of question marks, mojibake that stayed."""
    return LOST in text or bool(_MOJIBAKE_SIGN.search(text) or _MARKS_FOR_WORDS.search(text))


def repair(text: str) -> str:
    """The text without mojibake, BOM, template remnants, stray marks, doubled vowel signs and runs of spaces. Only
    damage that has one certain undoing is undone. The spelling is the scorer's business (`bnbench.metrics`).
    """

    def decoded(run: regex.Match[str]) -> str:
        try:
            return run.group().encode(_CP1252).decode("utf-8")
        except UnicodeDecodeError:
            return run.group()

    text = _BLANK_IN_SIGN.sub("\u00a0", _HALF_A_CHARACTER.sub(LOST, text.replace("\ufeff", "")))
    for _ in range(3):  # UTF-8 that was read as cp1252, maybe more than once: `à¦•à¦¿` → কি
        if _MOJIBAKE_SIGN.search(text):
            text = _MOJIBAKE_RUN.sub(decoded, text)
    # Other encodings, and what lost a byte that can be told. Never `fix_text`, which changes sound Bengali.
    text = ftfy.fix_encoding(text)
    text = _STRAY_A.sub("", _TEMPLATE.sub(" ", text)).strip()
    if (after := text.lstrip(_STRAY))[:1].isspace():
        text = after
    text = _DOUBLED_SIGN.sub(r"\1", text.rstrip(_STRAY))  # the blanks before go below
    lines = (_SPACES.sub(" ", line).strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return "\n".join(lines).strip()


@dataclass(frozen=True)
class SplitSizes:
    """The most rows that each side may hold. Their ratio is also the share of all rows that falls to each side."""

    train: int = 4000
    validation: int = 300
    test: int = 300

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `4000/300/300`; raises CorpusError for anything else."""
        sizes = [int(part) for part in text.split("/") if part.strip().isdecimal()]
        if text.count("/") != 2 or len(sizes) != 3 or not sum(sizes):
            raise CorpusError(f"split sizes {text!r}: write train/validation/test, such as 4000/300/300, not all zero")
        return cls(*sizes)


@dataclass(frozen=True)
class Step:
    """One step of the cleaning: how many rows it changed, how many it dropped, and why."""

    name: str
    why: str
    changed: int = field(default_factory=int)  # of a factory, as run.json and --json have it, 0 or not
    dropped: int = field(default_factory=int)


@dataclass(frozen=True)
class SourceRow:
    """A row of a file, repaired."""

    example: Example
    side: str = ""  # that the file gives it
    own_id: str = ""  # its name in the file, which only joins replies
    where: str = ""  # its place in the file
    raw: tuple[str, ...] = ()  # its texts as they stand there, empty where nothing was repaired


@dataclass(frozen=True)
class Corpus:
    """Clean examples in fixed splits."""

    source: str
    splits: Mapping[str, tuple[Example, ...]]  # train, validation and test, or only "all" of a file that is not split
    steps: tuple[Step, ...]
    fingerprint: str  # a sha256 over the splits' ids: equal fingerprints, equal data
    rows: tuple[SourceRow, ...] = ()  # all of the source in its order, before any was dropped
    fell: Mapping[str, str] = field(default_factory=dict)  # the step at which a row was dropped, by its place or id
    whole: tuple[Example, ...] = ()  # the clean examples before the split

    def unsplit(self) -> Self:
        """All clean examples as one side, also those that a split leaves out to keep its sides apart or small."""
        steps = tuple(step for step in self.steps if step.name not in OF_SPLITTING)
        splits = {"all": self.whole}
        return replace(self, splits=splits, steps=steps, fingerprint=_fingerprint(splits))

    def orders(self, examples: Iterable[Example]) -> dict[str, list[str]]:
        """The orders that replies to these examples can only stand in: name → the ids of all rows, dropped ones too."""
        found = {f"the order of {self.source}": [row.example.id for row in self.rows]}
        # A split that the file states, and its first rows, can be had from the file in another order than ours.
        if self.is_split and not any(row.side for row in self.rows):
            asked = {e.id for e in examples}
            parts = {name: [e.id for e in part] for name, part in self.splits.items()}
            found |= {f"the order of examples.jsonl ({n})": ids for n, ids in parts.items() if asked <= set(ids)}
        return found

    def own_ids(self) -> dict[str, str]:
        """What the column 'id' of the source calls a row → the example's id, for each name that occurs once."""
        counts = Counter(row.own_id for row in self.rows)
        return {row.own_id: row.example.id for row in self.rows if row.own_id and counts[row.own_id] == 1}

    def select(self, split: str, limit: int | None = None) -> tuple[Example, ...]:
        """The first `limit` examples of a split ("all" for every row). A file too small to split is taken whole."""
        check_split(split)
        chosen = self.splits.get(split, tuple(e for part in self.splits.values() for e in part))
        if not chosen:
            raise CorpusError(f"{self.source}: no row of the split {split!r} is left; {self.describe()}")
        return chosen[:limit]

    @property
    def is_split(self) -> bool:
        """False for a file with too few rows to split, which is evaluated whole."""
        return "all" not in self.splits

    def describe(self) -> str:
        """One line: what was dropped by which step, and the sizes that are left."""
        dropped = ", ".join(f"{s.dropped} {s.name}" for s in self.steps if s.dropped) or "none"
        return f"dropped: {dropped}; left: " + ", ".join(f"{len(v)} {k}" for k, v in self.splits.items())

    def summary(self) -> dict[str, object]:
        """Source, steps, sizes and fingerprint, for JSON."""
        kept = {"source": self.source, "steps": [asdict(s) for s in self.steps]}
        return kept | {"splits": {n: len(part) for n, part in self.splits.items()}, "fingerprint": self.fingerprint}

    def table(self) -> str:
        """The same for people: one line a step, one for the splits."""
        steps = [f"{s.name:<15}{s.dropped:>7} dropped {s.changed:>7} repaired   {s.why}" for s in self.steps]
        sizes = " · ".join(f"{len(part)} {name}" for name, part in self.splits.items())
        whole = [] if self.is_split else [f"not split: {UNSPLIT}"]
        return "\n".join([self.source, *steps, f"{sizes}   sha256 {self.fingerprint[:16]}", *whole])


def load_corpus(
    source: str | Path | None, *, columns: Mapping[str, str] | None = None, sizes: SplitSizes = SplitSizes(),
    seed: int = 42, max_tokens: int | None = None, count_tokens: TokenCounter | None = None,
) -> Corpus:  # fmt: skip
    """Reads, repairs, cleans and splits a corpus: each row falls to the side that it and `seed` alone draw.

    Args:
        source: a file or hub id (`owner/name[@revision]`) of a table or chat data (`files.KINDS`, `chat`); None: ours.
        columns: our name (of `READ`) → the file's, where they differ from `files.COLUMNS`.
        max_tokens: rows longer than this by `count_tokens`, after the chat template, are dropped whole, never cut.

    Raises CorpusError where the source cannot be read, lacks a column, or has no row left.
    """
    if source is None and columns:
        raise CorpusError("--columns says what the columns of --data are called: give --data too")
    kept_as, told = ("bnbench demo", "the bundled conversations") if source is None else (str(source), str(source))
    source = source or Path(str(resources.files("bnbench.demo"))) / "conversations.csv"
    columns = files.check_columns(columns or {}, READ)
    records = plain_rows(source, files.read_records(source), columns)
    header = files.header_of(records.values())
    is_pairs = all(files.find_column(header, reply) for reply in ("chosen", "rejected"))
    hint = "; a file of preference pairs is for the recipe dpo" if is_pairs else ""
    places = files.match_columns(source, header, columns, READ, ("question", "reference"), hint)
    own_id = files.find_column(header, "id") or ""
    rows = []
    for where, record in records.items():
        *texts, within = files.texts_of(where, record, places)
        repaired = list(map(repair, (*texts[:3], without_thoughts(texts[3]))))
        named = (files.side_of(record), files.whole_number(files.as_text(record.get(own_id))), where)
        example = replace(make_example(*repaired), dialogue=within)
        turns = tuple(map(repair, record.get(TURNS) or ()))
        if turns and all(turns):  # nobody is to learn to say nothing
            example = Conversation(**vars(example), turns=turns)
        rows.append(SourceRow(example, *named, tuple(texts) if texts != repaired else ()))

    # Clean: what cannot be used falls, and at which step is kept of each row.
    why = "BOM, mojibake, template remnants, stray marks and doubled signs repaired"
    steps = [Step("encoding", why, changed=sum(bool(row.raw) for row in rows))]
    tests: list[tuple[str, str, Callable[[Example], bool]]] = [
        ("lost text", "a letter was lost for good", lambda e: any(map(is_lost, (e.question, e.title, e.reference)))),
        ("empty", "no question or no answer", lambda e: not (e.question and e.reference)),
        ("too short", f"an answer of fewer than {MIN_WORDS} words", lambda e: len(e.reference.split()) < MIN_WORDS),
    ]
    kept, fell = list(rows), dict[str, str]()
    for name, why, is_bad in tests:
        fell |= (bad := {row.where: name for row in kept if is_bad(row.example)})
        steps.append(Step(name, why, dropped=len(bad)))
        kept = [row for row in kept if row.where not in bad]
    unique: dict[str, SourceRow] = {}
    for row in kept:
        # Of two spellings of one row the smaller stays, so that the order of the file does not matter.
        unique[row.example.id] = min(unique.get(row.example.id, row), row, key=astuple)
    steps.append(Step("duplicate", "the same row in the same or another spelling", dropped=len(kept) - len(unique)))
    fell |= {row.where: "duplicate" for row in kept if row is not unique[row.example.id]}
    cleaned = [(row.example, row.side) for row in unique.values()]
    lengths = count_tokens([example for example, _ in cleaned]) if count_tokens else ()
    corpus = divide(told, cleaned, steps, sizes, seed, lengths, max_tokens)
    return replace(corpus, source=kept_as, rows=tuple(rows), fell={**corpus.fell, **fell})


def check_split(split: str) -> None:
    """Raises CorpusError, with the nearest name, for what is no split."""
    if split not in (names := (*SPLITS, "all")):
        hint = nearest(split, names) or f": choose one of {', '.join(SPLITS)} or all"
        raise CorpusError(f"there is no split {split!r}{hint}")


def write_dropped(corpus: Corpus, path: Path) -> None:
    """Writes the rows that fell or were repaired, and why; CorpusError for no .csv, FileExistsError if it is there."""
    if path.suffix != ".csv":
        raise CorpusError(f"{path}: dropped rows are written as .csv")
    why = {step.name: step.why for step in corpus.steps}
    lines: list[Sequence[str]] = [("row", "what", "why", *FIELDS, *(f"{name} repaired" for name in FIELDS))]
    for row in corpus.rows:
        step = corpus.fell.get(row.where) or corpus.fell.get(row.example.id)
        if step or row.raw:
            what = (row.where, "dropped" if step else "repaired", why[step or "encoding"])
            texts = tuple(getattr(row.example, name) for name in FIELDS)
            lines.append((*what, *(row.raw or texts), *(texts if row.raw else ())))
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(files.csv_text(lines, "\r\n"))


def divide(
    source: str, examples: Sequence[tuple[Example, str]], steps: Sequence[Step], sizes: SplitSizes, seed: int = 42,
    lengths: Sequence[int] = (), max_tokens: int | None = None,
) -> Corpus:  # fmt: skip
    """The corpus of clean examples: split by message, or as the side that stands with an example says.

    Those longer than `max_tokens` are left out, then what is over `sizes`, then what is nearly a held-out row of train,
    or a test row of validation. Raises CorpusError where none is left, or a side is no split, or missing beside others.
    """
    fell: dict[str, str] = {}
    if lengths and max_tokens is not None:
        fell = {e.id: "too long" for (e, _), length in zip(examples, lengths, strict=True) if length > max_tokens}
        examples = [pair for pair in examples if pair[0].id not in fell]
        steps = [*steps, Step("too long", f"over {max_tokens} tokens after the template", dropped=len(fell))]
    if not examples:
        told = ", ".join(f"{s.dropped} {s.name}" for s in steps if s.dropped)
        how = f"; raise --max-tokens {max_tokens} (finetune: --set max_tokens)" if fell else ""
        raise CorpusError(f"{source}: no usable row; {told}{how}")
    sides = [side for _, side in examples]
    if any(sides) and (unknown := [side for side in sides if side not in SPLITS]):
        what = f"the column 'split' says {unknown[0]!r} in {len(unknown)} of {len(sides)} rows"
        raise CorpusError(f"{source}: {what}; it must say {', '.join(SPLITS)} in each, or have another name")

    order = sorted(examples, key=lambda pair: (_draw(seed, "order", pair[0].id), pair[0].id))
    if any(sides):
        drawn = {name: [example for example, side in order if side == name] for name in SPLITS}
    elif len(examples) < MIN_ROWS_TO_SPLIT:
        drawn = {"all": [example for example, _ in order]}
    else:
        drawn = {name: [] for name in SPLITS}
        test, validation = (size / sum(astuple(sizes)) for size in (sizes.test, sizes.validation))
        for example, _ in order:
            # Drawn from the message alone: the same message with two answers stays on one side, and so does a dialogue.
            message = (normalize(example.title), normalize(example.question))
            at = _draw(seed, "side", *((example.dialogue,) if example.dialogue else message))
            drawn["test" if at < test else "validation" if at < test + validation else "train"].append(example)
        surplus = {e.id: "surplus" for side, part in drawn.items() for e in part[getattr(sizes, side) :]}
        steps = [*steps, *([Step("surplus", "more than --split-sizes takes", dropped=len(surplus))] if surplus else [])]
        fell |= surplus
        drawn = {side: part[: getattr(sizes, side)] for side, part in drawn.items()}

    splits = {side: tuple(part) for side, part in drawn.items()}
    if "all" not in splits:
        splits["validation"] = _unlike(splits["validation"], splits["test"])
        splits["train"] = _unlike(splits["train"], (*splits["test"], *splits["validation"]))
    why = f"in train or validation but nearly a held-out row (Jaccard of 5-grams ≥ {NEAR_DUPLICATE})"
    left = {example.id for part in splits.values() for example in part}
    near = {e.id: "near-duplicate" for part in drawn.values() for e in part if e.id not in left}
    steps = (*steps, Step("near-duplicate", why, dropped=len(near)))
    return Corpus(source, splits, steps, _fingerprint(splits), fell=fell | near, whole=tuple(e for e, _ in order))


def _fingerprint(splits: Mapping[str, Sequence[Example]]) -> str:
    names = sorted(f"{side} {example.id}" for side, part in splits.items() for example in part)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _draw(seed: int, *texts: str) -> float:
    """A number in [0, 1) that depends on the seed and the texts alone."""
    return int.from_bytes(hashlib.sha256("\x1f".join((str(seed), *texts)).encode()).digest()[:8], "big") / 2**64


def _unlike(examples: Sequence[Example], held_out: Sequence[Example]) -> tuple[Example, ...]:
    """The examples that are no near-duplicate of a held-out one.

    Sets with a Jaccard similarity of t share t of the larger one at least. So of the rarest 1 - t of each, and m more,
    they share m: only held-out texts that do are compared whole (a prefix filter, which is exact: Xiao et al. 2008,
    Wang, Li & Feng 2012). Comparing each with each would take hours on a large file.
    """
    if not (examples and held_out):
        return tuple(examples)
    texts = [normalize(f"{e.question} {e.reference}") for e in (*held_out, *examples)]
    # A 5-gram is a number whose digits are places in the alphabet of these texts: of over 7,000 signs it is a hash.
    signs = np.array(sorted(map(ord, set().union(*texts))), dtype=np.uint32)
    powers = np.array([(len(signs) + 1 | 1) ** i % 2**64 for i in range(5)], dtype=np.uint64)

    # The set of each text, made when it is asked for: all of them at once would not fit into memory.
    codes = (np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in texts)
    digits = ((np.searchsorted(signs, own) + 1).astype(np.uint64) for own in codes)
    padded = (np.pad(own, (0, max(0, 5 - len(own)))) for own in digits)
    grams = (np.unique(np.lib.stride_tricks.sliding_window_view(own, 5) @ powers) for own in padded)
    # By the size of a set: how many of its rarest are looked at.
    rarest = [n - int(NEAR_DUPLICATE * n) + n // 10 + 1 for n in range(max(map(len, texts)) + 2)]

    # From here on a 5-gram is its place in the order of how many held-out texts have it, the rarest first.
    found = list(islice(grams, len(held_out)))
    sizes = np.array([len(own) for own in found])
    known, places, counts = np.unique(np.concatenate(found), return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(counts, kind="stable"))
    rows = [np.sort(own) for own in np.split(rank[places], np.cumsum(sizes)[:-1])]
    heads = [own[: rarest[len(own)]] for own in rows]
    order = np.argsort(np.concatenate(heads), kind="stable")
    having = np.repeat(np.arange(len(rows)), [len(head) for head in heads])[order]
    starts = np.searchsorted(np.concatenate(heads)[order], np.arange(len(known) + 1))
    is_mine, kept = np.zeros(len(known), dtype=bool), []
    for example, own in zip(examples, grams, strict=True):
        at = np.minimum(np.searchsorted(known, own), len(known) - 1)
        mine = np.sort(rank[at[known[at] == own]])
        # Those that no held-out text has are rarer still.
        head = mine[: max(0, rarest[len(own)] - (len(own) - len(mine)))]
        many = starts[head + 1] - starts[head]
        hits = having[np.repeat(starts[head] - np.cumsum(many) + many, many) + np.arange(many.sum())]
        near, common = np.unique(hits, return_counts=True)
        less, more = np.minimum(sizes[near], len(own)), np.maximum(sizes[near], len(own))
        near = near[(common > less // 10) & (less >= NEAR_DUPLICATE * more - 1e-6)]
        if len(near):
            is_mine[mine] = True
            edges = np.cumsum([0, *sizes[near][:-1]])
            common = np.add.reduceat(is_mine[np.concatenate([rows[i] for i in near])], edges, dtype=np.int64)
            is_mine[mine] = False
            if np.max(common / (sizes[near] + len(own) - common)) >= NEAR_DUPLICATE:
                continue
        kept.append(example)
    return tuple(kept)
