"""Rows of one forward pass as tensors. Packing several rows into one is another collator with the same call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bnbench.finetune.rows import IGNORED


@dataclass(frozen=True)
class Padded:
    """Pads on the right with `pad_id`, to the longest row:

    input_ids, attention_mask and labels, each (rows, longest).
    """

    pad_id: int

    def __call__(self, samples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """`samples` have input_ids and labels."""
        ids = [torch.as_tensor(s["input_ids"]) for s in samples]
        return {
            "input_ids": _pad(ids, self.pad_id),
            "attention_mask": _pad([torch.ones_like(i) for i in ids], 0),
            "labels": _pad([torch.as_tensor(s["labels"]) for s in samples], IGNORED),
        }


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
