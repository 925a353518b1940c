"""Which layers compute their activations twice: as few as the memory allows, row by row.

Checkpointing recomputes every layer in the backward pass, a third of the arithmetic, so that the longest row fits. A
shorter row leaves room to keep the activations of some layers. What they take is measured once, on the largest pass.
With 13 GiB instead of 6.5 a step took 0.99 s instead of 1.28 (one H100, mixed lengths, before cuDNN's plans were gone).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from bnbench.finetune.engine.collate import Pass
from bnbench.finetune.memory import ALLOCATOR


@dataclass(frozen=True)
class Room:
    """Bytes on the GPU, measured with every layer recomputed.

    `fixed` are there at any time, `per_token` in the backward pass, `forward` per token at the forward pass's end, with
    the loss's `chunk` on top. A layer that is not recomputed adds `kept` per token. `budget` is to stay below.
    """

    fixed: float
    per_token: float
    forward: float
    chunk: float
    kept: float
    budget: float

    def layers(self, tokens: int, most: int) -> int:
        """How many layers of a pass of so many `tokens` need not be computed twice, at `most` all."""
        # The peak is in the backward pass, or before it, where all logits of a chunk lie on what the layers keep.
        spare = self.budget - self.fixed - max(self.per_token * tokens, self.forward * tokens + self.chunk)
        return max(0, min(most, int(spare / (self.kept * tokens)))) if self.kept > 0 else 0


class Recomputation:
    """Switches checkpointing layer by layer; `room` is None until `measure`, and every layer recomputes till then.

    A checkpointed layer keeps its input alone, and runs forward once more when the backward pass comes to it; one that
    is not keeps its activations from its forward pass to its backward pass.
    """

    def __init__(self, model: Any, budget: float) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self.budget = budget
        self.room: Room | None = None

    def set_for(self, one_pass: Pass) -> None:
        """The last layers are those kept: the backward pass frees them first."""
        kept = self.room.layers(one_pass.ids.numel(), len(self.layers)) if self.room else 0
        self._keep(kept)

    def measure(self, largest: Pass, forward: Callable[[], Any], step: Callable[[], Any]) -> None:
        """Runs `forward` twice and `step` once on the largest pass. A budget of 0 is what that pass itself needs.

        `forward` gives a loss whose graph holds what is kept; `step` is a forward and backward pass.
        """
        tokens, cuda = largest.ids.numel(), torch.cuda
        cuda.empty_cache()  # what loading left behind
        fixed = cuda.memory_allocated()

        def run(kept: int) -> tuple[int, int]:
            """Bytes alive after a forward pass with so many layers kept, and at most while it ran."""
            self._keep(kept)
            cuda.reset_peak_memory_stats()
            loss = forward()
            found = cuda.memory_allocated(), cuda.max_memory_allocated()
            del loss
            return found

        one, _ = run(1)
        none, at_most = run(0)
        cuda.reset_peak_memory_stats()
        step()
        peak = cuda.max_memory_allocated()
        budget = self.budget / (1 + ALLOCATOR) or peak
        self.room = Room(
            fixed=fixed,
            per_token=(peak - fixed) / tokens,
            forward=(none - fixed) / tokens,
            chunk=at_most - none,
            kept=(one - none) / tokens,  # what a single layer makes of difference, all layers being alike
            budget=budget,
        )

    def _keep(self, count: int) -> None:
        for i, layer in enumerate(self.layers):
            layer.gradient_checkpointing = i < len(self.layers) - count
