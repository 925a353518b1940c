"""Examples as token rows, and the rows of a batch as passes: what goes through the model at once, padded or packed.

Packing changes memory and time, never the step: attention (`layers.attend`) is cut at the samples' ends, positions
begin at 0 in each, and no sample's last token predicts the next one's first. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bnbench.data.corpus import Example
from bnbench.errors import CorpusError, PromptError
from bnbench.models.prompts import Prompter

if TYPE_CHECKING:
    import torch

    from bnbench.finetune.recipes import Recipe

IGNORED = -100
"""The label of a token that the loss leaves out (torch's `ignore_index`)."""


@dataclass(frozen=True)
class Row:
    """One training sample: `ids` go in, `labels` (same length) say what each must be, `IGNORED` where none counts."""

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @cached_property
    def supervised(self) -> int:
        """How many tokens the loss counts. The first token has nothing before it to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


def make_rows(examples: Sequence[Example], prompts: Prompter, loss: str, supervise: str = "last") -> tuple[Row, ...]:
    """One Row an example; `loss` and `supervise` are the recipe's: "completion" supervises the reply, or all replies of
    a conversation, "full-text" every token.
    """
    rows = []
    for example in examples:
        ids, labels = list[int](), list[int]()
        for at, part in enumerate(prompts.training(example, supervise)):
            ids += part
            labels += part if at % 2 or loss != "completion" else (IGNORED,) * len(part)
        rows.append(Row(example.id, tuple(ids), tuple(labels)))
    return tuple(rows)


def check_rows(rows: Sequence[Row], *, max_tokens: int, stops: Sequence[int], pad: int) -> None:
    """Raises CorpusError for rows that make a training fail quietly, with their number and the first one's id.

    A row too long would be cut, end-of-turn first; one whose last supervised token is no stop never teaches to end.
    """
    if not rows:
        raise CorpusError("there is no example to train on")
    if pad in stops:
        raise PromptError(f"the pad token {pad} is an end token: a model trained so never learns to stop")
    longest = max(len(row.ids) for row in rows)
    lasts = [(row, [label for label in row.labels[1:] if label != IGNORED][-1:]) for row in rows]
    unended = [row for row, last in lasts if last and last[0] not in stops]
    faults = {
        f"longer than max_tokens = {max_tokens} (the longest has {longest}) and would be cut: drop them with the "
        "corpus option max_tokens, or raise max_tokens in the recipe": [r for r in rows if len(r.ids) > max_tokens],
        "without a supervised token: is the reply empty?": [row for row, last in lasts if not last],
        f"whose last supervised token is no end token (end tokens: {', '.join(map(str, stops))}): "
        "the chat template does not close the reply; see `bnbench inspect-prompt`": unended,
    }
    for why, bad in faults.items():
        if bad:
            raise CorpusError(f"{len(bad)} of {len(rows)} rows (the first has the id {bad[0].id}): {why}")


def rows_sha256(rows: Sequence[Row]) -> str:
    """A hash of exactly what is trained on: ids of the rows, tokens and labels, in order."""
    return hashlib.sha256(b"".join(json.dumps([row.id, row.ids, row.labels]).encode() for row in rows)).hexdigest()


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward and backward of (rows, tokens): `index` (n,) are flat positions whose next tokens `targets` count.

    `lengths` are the samples one after another in a packed row; empty when every row is one sample.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    targets: torch.Tensor
    lengths: tuple[int, ...] = ()

    @property
    def supervised(self) -> int:
        """How many tokens the loss counts."""
        return len(self.targets)


@dataclass(frozen=True)
class Collate:
    """Rows as passes: packed, whole samples up to `tokens` in all, a longer one in a pass of its own; `tokens` None is
    all in one pass, padded on the right: attention is causal, so no sample sees the pads, without a mask.
    """

    tokens: int | None
    pad_id: int = 0

    def __call__(self, rows: Sequence[Row]) -> list[Pass]:
        """Passes (1, tokens), the largest first, first-fit on the longest samples first; or one (rows, longest)."""
        if self.tokens is None:
            return [make_pass(rows, self.pad_id)]
        return [make_pass(b) for b in sorted(pack(rows, self.tokens), key=count_tokens, reverse=True)]

    def largest(self, rows: Sequence[Row], count: int) -> Pass:
        """A pass as large as any of `count` rows can be."""
        return make_pass(largest_rows(rows, count, self.tokens), None if self.tokens else self.pad_id)


def pack(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Rows together up to so many tokens, none cut, the longest first and each where it first fits."""
    bins, room = list[list[Row]](), list[int]()
    for row in _longest(rows):
        at = next((i for i, left in enumerate(room) if len(row.ids) <= left), len(bins))
        if at == len(bins):
            bins.append([])
            room.append(tokens)
        bins[at].append(row)
        room[at] -= len(row.ids)
    return bins


def count_samples(rows: Sequence[Row], recipe: Recipe) -> int:
    """How many samples a recipe makes of so many rows: the rows, pairs of them, or those that they fill together."""
    if recipe.packing and recipe.packing_over == "epoch":
        return len(pack(rows, recipe.tokens_per_row))
    return len(rows) // (1 + recipe.pairs)


def largest_rows(rows: Sequence[Row], count: int, tokens: int | None) -> list[Row]:
    """The `count` longest rows as the pass that needs most memory has them: packed ones are cut where `tokens` end."""
    first, *others = _longest(rows)[:count]
    if tokens is None:
        return [first, *others]
    filled = [first]
    for row in others:
        if (room := tokens - count_tokens(filled)) > 1:
            filled.append(Row(row.id, row.ids[:room], row.ids[:room]))
    return filled


def share(batches: Sequence[Sequence[Row]], size: int, index: int, count: int) -> list[list[Row]]:
    """One process's rows of a step, dealt by length, again in as many batches of up to `size`; the first may be []."""
    if count == 1:
        return [list(batch) for batch in batches]
    rows = _longest([row for batch in batches for row in batch])
    # Of two processes the first has rows 0, 3, 4, 7 …, the second 1, 2, 5, 6 …
    mine = [row for i, row in enumerate(rows) if i % (2 * count) in (index, 2 * count - 1 - index)]
    parts = [mine[i : i + size] for i in range(0, len(mine), size)]
    return [[] for _ in range(len(batches) - len(parts))] + parts


def make_pass(rows: Sequence[Row], pad_id: int | None = None) -> Pass:
    """The rows in one, each from position 0 as if it stood alone; with a `pad_id` one below another, padded alike."""
    import torch

    # By numpy, in one thread: torch takes ten times as long for numbers of Python's, and the card waits meanwhile.
    lengths = [len(row.ids) for row in rows]
    shape = (1, sum(lengths)) if pad_id is None else (len(rows), max(lengths))
    ids, positions, wanted = np.full(shape, pad_id or 0), np.zeros(shape, np.int64), np.full(shape, IGNORED)
    at = 0
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        place = (0, slice(at, at + n)) if pad_id is None else (i, slice(n))
        ids[place], positions[place], at = row.ids, np.arange(n), at + n
        # What stands at i predicts the label at i + 1, which is moved there.
        wanted[place] = (*row.labels[1:], IGNORED)
    if pad_id is not None:
        positions[:] = np.arange(shape[1])
    index = np.flatnonzero(wanted != IGNORED)
    inputs, places, chosen, targets = map(torch.from_numpy, (ids, positions, index, wanted.ravel()[index]))
    return Pass(inputs, places, chosen, targets, tuple(lengths) if pad_id is None else ())


def count_tokens(rows: Sequence[Row]) -> int:
    """Tokens of the rows, without padding."""
    return sum(len(row.ids) for row in rows)


def _longest(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -len(row.ids))
