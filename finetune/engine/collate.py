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

from bnbench.data.corpus import Example
from bnbench.errors import TrainingError
from bnbench.models.prompts import Prompter

if TYPE_CHECKING:
    import torch

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


def make_rows(examples: Sequence[Example], prompts: Prompter, loss: str) -> tuple[Row, ...]:
    """One Row an example; `loss` is the recipe's: "completion" supervises the reply, "full-text" every token."""
    rows = []
    for example in examples:
        prompt, answer = prompts.training(example)
        labels = prompt if loss != "completion" else (IGNORED,) * len(prompt)
        rows.append(Row(example.id, prompt + answer, labels + answer))
    return tuple(rows)


def check_rows(rows: Sequence[Row], *, max_tokens: int, stops: Sequence[int], pad: int) -> None:
    """Raises TrainingError for rows that make a training fail quietly, with their number and the first one's id.

    A row too long would be cut, end-of-turn first; one whose last supervised token is no stop never teaches to end.
    """
    if not rows:
        raise TrainingError("there is no example to train on")
    if pad in stops:
        raise TrainingError(f"the pad token {pad} is an end token: a model trained so never learns to stop")
    longest = max(len(row.ids) for row in rows)

    def last(row: Row) -> int:
        return next(label for label in reversed(row.labels) if label != IGNORED)

    for bad, why in (
        (
            [row for row in rows if len(row.ids) > max_tokens],
            f"longer than max_tokens = {max_tokens} (the longest has {longest}) and would be cut: "
            "drop them with the corpus option max_tokens, or raise max_tokens in the recipe",
        ),
        ([row for row in rows if not row.supervised], "without a supervised token: is the reply empty?"),
        (
            [row for row in rows if row.supervised and last(row) not in stops],
            f"whose last supervised token is no end token (end tokens: {', '.join(map(str, stops))}): "
            "the chat template does not close the reply; see `bnbench inspect-prompt`",
        ),
    ):
        if bad:
            raise TrainingError(f"{len(bad)} of {len(rows)} rows (the first has the id {bad[0].id}): {why}")


def rows_sha256(rows: Sequence[Row]) -> str:
    """A hash of exactly what is trained on: ids of the rows, tokens and labels, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.ids, row.labels]).encode())
    return digest.hexdigest()


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
class Padded:
    """All rows in one pass, padded on the right: attention is causal, so no sample sees the pads, without a mask."""

    pad_id: int

    def __call__(self, rows: Sequence[Row]) -> list[Pass]:
        """One pass (rows, longest)."""
        import torch

        given = [torch.tensor(row.ids) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(given, batch_first=True, padding_value=self.pad_id)
        longest = ids.shape[1]
        positions = torch.arange(longest).expand(len(rows), -1)
        return [Pass(ids, positions, *_supervised(rows, [i * longest for i in range(len(rows))]))]

    def largest(self, rows: Sequence[Row], count: int) -> Pass:
        """The pass that needs most memory: the `count` longest rows."""
        return self(_longest(rows)[:count])[0]


@dataclass(frozen=True)
class Packed:
    """Rows without padding, each of whole samples up to `tokens` in all; a longer sample gets a pass of its own."""

    tokens: int

    def __call__(self, rows: Sequence[Row]) -> list[Pass]:
        """Passes (1, tokens), by the first-fit rule on the longest samples first, so that the largest is the first."""
        bins: list[list[Row]] = []
        for row in _longest(rows):
            fits = (b for b in bins if sum(len(r.ids) for r in b) + len(row.ids) <= self.tokens)
            if (chosen := next(fits, None)) is None:
                bins.append(chosen := [])
            chosen.append(row)
        return [pack(b) for b in sorted(bins, key=lambda b: -sum(len(r.ids) for r in b))]

    def largest(self, rows: Sequence[Row], count: int) -> Pass:
        """A pass as large as any of `count` rows can be: the longest ones, cut where the budget ends."""
        longest = _longest(rows)[:count]
        filled, room = [longest[0]], self.tokens - len(longest[0].ids)
        for row in longest[1:]:
            if room > 1:
                filled.append(Row(row.id, row.ids[:room], row.ids[:room]))
                room -= len(filled[-1].ids)
        return pack(filled)


def share(batches: Sequence[Sequence[Row]], size: int, index: int, count: int) -> list[list[Row]]:
    """One process's rows of a step, dealt by length, again in as many batches of up to `size`; the first may be []."""
    if count == 1:
        return [list(batch) for batch in batches]
    rows = _longest([row for batch in batches for row in batch])
    # Of two processes the first has rows 0, 3, 4, 7 …, the second 1, 2, 5, 6 …
    mine = [row for i, row in enumerate(rows) if i % (2 * count) in (index, 2 * count - 1 - index)]
    parts = [mine[i : i + size] for i in range(0, len(mine), size)]
    return [[] for _ in range(len(batches) - len(parts))] + parts


def pack(rows: Sequence[Row]) -> Pass:
    """The rows one after another in one, each with positions from 0, as if it stood alone."""
    import torch

    lengths = tuple(len(row.ids) for row in rows)
    starts = [sum(lengths[:i]) for i in range(len(rows))]
    ids = torch.tensor([[i for row in rows for i in row.ids]])
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return Pass(ids, positions, *_supervised(rows, starts), lengths=lengths)


def _supervised(rows: Sequence[Row], starts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat positions whose next token is supervised, and that token: what stands at i predicts the label at i + 1."""
    import torch

    index, targets = [], []
    for row, start in zip(rows, starts, strict=True):
        for i, label in enumerate(row.labels[1:]):
            if label != IGNORED:
                index.append(start + i)
                targets.append(label)
    return torch.tensor(index), torch.tensor(targets)


def _longest(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -len(row.ids))
