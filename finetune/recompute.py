"""Which layers compute their activations twice: as few as the memory allows, row by row.

Checkpointing recomputes every layer in the backward pass, a third of the arithmetic, so that the longest row fits. A
shorter row leaves room to keep the activations of some layers. What they take is measured once, on the largest pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from bnbench.finetune.collate import Pass

FRAGMENTS = 0.03
"""Share of the allocated memory that the allocator reserves beyond it (2 % measured with expandable segments)."""


@dataclass(frozen=True)
class Room:
    """Bytes on the card: `fixed` at any time, `per_token` at the peak with every layer recomputed, `kept` per token
    and layer that is not, `budget` to stay below.
    """

    fixed: float
    per_token: float
    kept: float
    budget: float

    def layers(self, tokens: int, most: int) -> int:
        """How many layers of a pass of so many tokens need not be computed twice."""
        spare = self.budget - self.fixed - self.per_token * tokens
        return max(0, min(most, int(spare / (self.kept * tokens)))) if self.kept > 0 else 0


class Recomputation:
    """Switches checkpointing layer by layer; `room` is None until `measure`, and every layer recomputes till then."""

    def __init__(self, model: Any, budget: float) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self.budget = budget
        self.room: Room | None = None

    def set_for(self, one_pass: Pass) -> None:
        """The last layers are those kept: the backward pass frees them first."""
        kept = self.room.layers(one_pass.ids.numel(), len(self.layers)) if self.room else 0
        self._keep(kept)

    def measure(self, largest: Pass, forward: Callable[[], Any], step: Callable[[], Any]) -> None:
        """Runs `forward` twice and `step` once on the largest pass. A budget of 0 is what that pass itself needs."""
        tokens, cuda = largest.ids.numel(), torch.cuda
        alive = []
        for kept in (0, 1):
            self._keep(kept)
            loss = forward()
            alive.append(cuda.memory_allocated())
            del loss
        self._keep(0)
        cuda.empty_cache()  # what loading left behind
        cuda.reset_peak_memory_stats()
        fixed = cuda.memory_allocated()
        step()
        peak = cuda.max_memory_allocated()
        budget = self.budget * (1 - FRAGMENTS) or peak
        self.room = Room(fixed, (peak - fixed) / tokens, (alive[1] - alive[0]) / tokens, budget)

    def _keep(self, count: int) -> None:
        for i, layer in enumerate(self.layers):
            layer.gradient_checkpointing = i < len(self.layers) - count
