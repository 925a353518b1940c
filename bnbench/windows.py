"""Perplexity of any text: how well a model predicts a document, an article, a sentence, given nothing but itself.

A text longer than the context is read in windows, each a row of token ids and the place from which it is scored, which
is what `Backend.likelihood` takes. The model reads a text as it stands, without the blanks around it, and no end token
is scored; bytes and characters are those of the bn1-normalised text, as in an evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnbench import progress
from bnbench.data import files
from bnbench.errors import BnbenchError, CandidateError, CorpusError, UsageError
from bnbench.metrics.core import Result, Texts, paired_test
from bnbench.metrics.normalization import normalize
from bnbench.metrics.perplexity import Perplexity
from bnbench.metrics.significance import FEW, TOO_FEW
from bnbench.models.backend import Backend, BackendOptions, get_backend
from bnbench.models.candidates import Candidate
from bnbench.models.prompts import Prompter
from bnbench.reports.render import aligned
from bnbench.reports.values import counted, name, number, p_value

LONGEST = 4096  # tokens of a window, unless more are asked for
_DECIMALS = {"bits_per_character": 4, "bits_per_byte": 4, "token_perplexity": 2}
_DECIMALS |= dict.fromkeys(("tokens", "characters", "windows"), 0)
Window = tuple[int, tuple[int, ...], int]
"""The number of a text, ids of it, and the place in them from which they are scored."""


@dataclass(frozen=True)
class Perplexities:
    """The `Result` and number of windows of each candidate, and how the texts were read; `bos`: with one in front."""

    results: Mapping[str, Result]
    windows: Mapping[str, int]
    context: int
    stride: int
    bos: bool

    def summary(self) -> dict[str, Any]:
        """The same as plain values, for JSON; of several texts also intervals, and differences to the first one."""
        first, candidates = next(iter(self.results.values())), []
        for candidate, result in self.results.items():
            sums = zip(result.of.columns[1:], map(int, result.table[:, 1:].sum(axis=0)), strict=True)
            row = {"name": candidate, **result.scores, **dict(sums), "windows": self.windows[candidate]}
            if result.n > 1:
                row["interval"] = [result.interval.low, result.interval.high]
            if result.n > 1 and result is not first:
                found = paired_test(result, first)
                ends = [found.interval.low, found.interval.high]
                row["to_first"] = {"difference": found.difference, "interval": ends, "p": found.p_value}
            candidates.append(row)
        read = {"texts": first.n, "context": self.context, "stride": self.stride, "bos": self.bos}
        return {**read, "signature": first.signature, "candidates": candidates}

    def __str__(self) -> str:
        told, lines = self.summary(), list[str]()
        table = [["candidate", *(key.replace("_", " ") for key in _DECIMALS)]]
        for row in told["candidates"]:
            table.append([name(row["name"]), *(number(row[key], decimals) for key, decimals in _DECIMALS.items())])
            if "interval" in row:
                low, high = (number(end, 4) for end in row["interval"])
                lines.append(f"{table[-1][0]}: bits per character, 95 % [{low}, {high}]")
            if found := row.get("to_first"):
                change, low, high = (number(x, 4, sign=True) for x in (found["difference"], *found["interval"]))
                lines[-1] += f"; to {table[1][0]} {change} [{low}, {high}], p = {p_value(found['p'])}"
        bos = "BOS in front of each" if self.bos else "without BOS"
        read = f"in windows of {self.context:,} tokens, a new one every {self.stride:,}, {bos}; lower is better"
        few = [f"{told['texts']} texts: {TOO_FEW}"] if lines and told["texts"] < FEW else []
        return "\n".join([f"{counted(told['texts'], 'text')} {read}", aligned(table), *lines, *few, told["signature"]])


def perplexity(
    candidates: Sequence[Candidate], sources: Sequence[str], options: BackendOptions, *,
    columns: Mapping[str, str] | None = None, by_line: bool = False, context: int | None = None,
    stride: int | None = None, bos: bool = True, batch_size: int | None = None, quiet: bool = False,
) -> Perplexities:  # fmt: skip
    """Every candidate's perplexity of the texts in `sources` (see `read_texts`); texts without a visible
    character are left out.

    Args:
        context: tokens of a window, BOS included; by default what the model has room for, `LONGEST` at most.
        stride: tokens that each further window scores, the rest of it being what they are given; by default half.
        bos: whether BOS stands in front of every window, where the tokenizer has one. Without, the first token of a
            text has nothing before it: it is given, and its characters do not count.
        batch_size: windows that the backend is handed at a time; by default as many as it asks for.

    Raises UsageError for windows that the model has no room for, CorpusError for texts that cannot be read, and
    CandidateError where a backend has no tokenizer or no likelihoods.
    """
    plain = [(path := Path(source)).is_file() and files.kind_of(path) not in files.KINDS for source in sources]
    for is_idle, option in ((columns and all(plain), "--columns"), (by_line and not any(plain), "--lines")):
        if is_idle:
            what = "a file without columns" if any(plain) else "a table"
            raise UsageError(f"{option} would do nothing: each of the texts is {what}; leave it out")
    found = (text for source in sources for text in read_texts(source, columns or {}, by_line=by_line))
    texts = [text for text in found if normalize(text)]
    backend = get_backend(options.name)(candidates, options)
    context = context or min(LONGEST, backend.context or LONGEST)
    stride = stride or context // 2
    if backend.context and context > backend.context:
        raise UsageError(f"--context {context}: the model has room for {backend.context} tokens")
    if not 0 < stride < context:
        raise UsageError(f"--stride {stride}: it must be less than the {context} tokens of a window")
    prompters = backend.prompters  # candidates that are asked alike share one, and so their windows
    if any(p.tokenizer is None for p in prompters.values()) or type(backend).likelihood is Backend.likelihood:
        raise CandidateError(f"the backend {options.name} gives no tokenizer or no likelihoods; use another")
    with progress.quiet():  # transformers warns of a text that is longer than the context
        read = {id(p): _read(p, texts, context, stride, bos=bos) for p in prompters.values()}
    if not all(windows for windows, _ in read.values()):
        raise CorpusError(f"{', '.join(sources)}: there is nothing to score{'' if bos else ' without BOS'}")
    with progress.Stage("load", 1, quiet=quiet) as loading:
        backend.load()
        loading.advance(1)

    results, numbers, metric = dict[str, Result](), dict[str, int](), Perplexity()
    with progress.Stage("score", sum(len(read[id(p)][0]) for p in prompters.values()), quiet=quiet) as scoring:
        for candidate in candidates:
            windows, scored = read[id(prompters[candidate.name])]
            table, numbers[candidate.name] = np.zeros((len(texts), 4)), len(windows)
            sizes = backend.batch_sizes([len(ids) for _, ids, _ in windows], 0)
            for size in sizes if batch_size is None else [batch_size] * -(-len(windows) // batch_size):
                part, windows = windows[:size], windows[size:]
                for (at, ids, start), nll in zip(part, _likelihood(backend, candidate, part), strict=True):
                    table[at, :2] += nll, len(ids) - start
                scoring.advance(len(part), sum(len(ids) for _, ids, _ in part))
            results[candidate.name] = metric.result(Texts.of(texts, scored, likelihoods=table))
    with_bos = bos and all(p.tokenizer.bos_token_id is not None for p in prompters.values())
    return Perplexities(results, numbers, context, stride, with_bos)


def read_texts(source: str, columns: Mapping[str, str], *, by_line: bool = False) -> list[str]:
    """The column `text` (or that of `columns`) of a table or a hub data set; any other file is one text. `by_line`
    makes each line of such a file a text. Raises CorpusError for what cannot be read.
    """
    files.check_columns(columns, ["text"])
    path = Path(source)
    if path.is_file() and files.kind_of(path) not in files.KINDS:
        lines = list(files.iter_lines(path))
        return lines if by_line else ["\n".join(lines)]
    rows = files.read_records(source)
    column = files.match_columns(source, files.header_of(rows.values()), columns, {"text": ""}, ["text"])
    found = (files.texts_of(where, row, column)[0] for where, row in rows.items())
    # JSON that was cut inside an emoji holds half a character, which becomes U+FFFD.
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in found]


def cut(ids: Sequence[int], bos: int | None, context: int, stride: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Rows of `context` ids at most, and where in each those begin that no row before it scores.

    A further row ends `stride` ids after the one before, so that all it scores have `context - stride` ids before them.
    BOS stands in front of every row, since a model has hardly seen a text without; None: the first id is only given.
    """
    head = () if bos is None else (bos,)
    room, done = context - len(head), 1 - len(head)
    for end in range(room, max(room, len(ids)) + stride, stride):
        last = min(end, len(ids))
        if last > done:
            first = max(0, last - room)
            yield (*head, *ids[first:last]), len(head) + done - first
        done = last


def _read(
    prompter: Prompter, texts: Sequence[str], context: int, stride: int, *, bos: bool
) -> tuple[list[Window], list[str]]:
    """The windows of all texts, the longest first (they are padded least then), and what of each text they score."""
    windows, scored, begin = list[Window](), list[str](), prompter.tokenizer.bos_token_id if bos else None
    for at, text in enumerate(texts):
        *ids, _ = prompter.answer(text)  # its end token is no part of the text
        windows += [(at, *row) for row in cut(ids, begin, context, stride)]
        given = prompter.tokenizer.decode(ids[:1]).rstrip("\ufffd") if begin is None else ""
        scored.append(text.strip().removeprefix(given))  # a character of which only the first bytes are given counts
    return sorted(windows, key=lambda window: -len(window[1])), scored


def _likelihood(backend: Backend, candidate: Candidate, windows: Sequence[Window]) -> Sequence[float]:
    """The backend's, or a BnbenchError with its reason."""
    _, rows, starts = zip(*windows, strict=True)
    try:
        found = backend.likelihood(candidate, rows, starts)
    except (RuntimeError, OSError) as error:
        raise BnbenchError(f"{candidate.name}: {type(error).__name__}: {error}") from error
    if found is None:
        raise CandidateError(f"{candidate.name} gives no likelihoods here; use another backend")
    return found
