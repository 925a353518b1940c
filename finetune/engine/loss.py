"""The cross-entropy of supervised positions alone, a chunk of the vocabulary's logits at a time."""

from __future__ import annotations

from typing import Any

import torch

from bnbench.finetune.memory import chunk_positions


def summed_loss(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Sum in nats over (n, width) hidden states of -log p(target), float32; the head is frozen."""
    loss: torch.Tensor = _SummedLoss.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return loss


class _SummedLoss(torch.autograd.Function):
    """The gradient is taken while a chunk's logits are there, so that they are never computed twice nor kept."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden)
        size = chunk_positions(head.out_features)
        for h, t, g in zip(*(torch.split(x, size) for x in (hidden, targets, gradient)), strict=True):
            logits = head(h).float()
            logits -= logits.amax(-1, keepdim=True)
            chosen = logits.gather(-1, t[:, None])
            sums = logits.exp_().sum(-1, keepdim=True)
            total += (sums.log() - chosen).sum()
            logits /= sums
            logits.scatter_add_(-1, t[:, None], torch.full_like(chosen, -1.0))
            torch.mm(logits.to(h.dtype), head.weight, out=g)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.saved_tensors[0] * upstream[0].to(ctx.saved_tensors[0].dtype), None, None
