"""Examples as token rows, and the checks that a row must pass before it is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bnbench.data.corpus import Example
from bnbench.errors import TrainingError
from bnbench.models.prompts import Prompter

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
    """Refuses what made such runs fail quietly. Raises TrainingError that counts the rows and names the first.

    No rows; rows longer than `max_tokens` (they would be cut, end-of-turn first); rows in which nothing is supervised
    or the last supervised token is no stop (the model would never learn to end); a pad that is a stop.
    """
    if not rows:
        raise TrainingError("there is no example to train on")
    if pad in stops:
        raise TrainingError(f"the pad token {pad} is an end token: a model trained so never learns to stop")
    faults: tuple[tuple[Callable[[Row], bool], str], ...] = (
        (
            lambda row: len(row.ids) > max_tokens,
            f"longer than max_tokens = {max_tokens} (the longest has {max(len(r.ids) for r in rows)}) and would be "
            "cut: drop them with the corpus option max_tokens, or raise max_tokens in the recipe",
        ),
        (lambda row: not row.supervised, "without a supervised token: is the reply empty?"),
        (
            lambda row: next(label for label in reversed(row.labels) if label != IGNORED) not in stops,
            f"whose last supervised token is no end token (end tokens: {', '.join(map(str, stops))}): "
            "the chat template does not close the reply; see `bnbench inspect-prompt`",
        ),
    )
    for has_fault, why in faults:
        if bad := [row for row in rows if has_fault(row)]:
            raise TrainingError(f"{len(bad)} of {len(rows)} rows (the first has the id {bad[0].id}): {why}")


def rows_sha256(rows: Sequence[Row]) -> str:
    """A hash of exactly what is trained on: ids of the rows, tokens and labels, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.ids, row.labels]).encode())
    return digest.hexdigest()
