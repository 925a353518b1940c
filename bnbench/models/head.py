"""Likelihoods without the logits of whole rows: the head sees only supervised positions, some hundred at a time.

One row of 4,096 tokens over 128,256 entries would be 2.1 GB of logits in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bnbench.models.sampling import call

LOGITS = 2**26  # numbers in float32 that a chunk of logits may have: 256 MiB, 523 positions of Llama-3.1


@torch.inference_mode()
def negative_log_likelihoods(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], *, pad: int, whole_logits: bool = False
) -> list[float]:
    """The sum of -log p (nats) over each row's tokens from its start on, given all before them.

    Args:
        model: a transformers causal language model, its adapter set or disabled.
        rows: prompt and answer ids; each start is at least 1.
        starts: where each row's answer begins.
        pad: fills the right of shorter rows, masked and never scored.
        whole_logits: for a model whose head `matches` does not know: take all logits from the model itself, row by row.
    """
    if whole_logits and len(rows) > 1:
        pairs = zip(rows, starts, strict=True)
        return [negative_log_likelihoods(model, [r], [s], pad=pad, whole_logits=True)[0] for r, s in pairs]
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    where = [(i, at) for i, (row, start) in enumerate(zip(rows, starts, strict=True)) for at in range(start, len(row))]
    row_of, at = torch.tensor(where, device=model.device).T
    # What comes out at one position says how likely the token at the next is.
    if whole_logits:
        taken = call(model, input_ids=ids, attention_mask=mask, use_cache=False).logits[row_of, at - 1]
    else:
        taken = _hidden(model, ids, mask)[row_of, at - 1]
    targets = ids[row_of, at]
    size = max(1, LOGITS // model.get_output_embeddings().weight.shape[0])
    losses = []
    for part, target in zip(torch.split(taken, size), torch.split(targets, size), strict=True):
        logits = (part if whole_logits else head(model, part)).float()
        losses.append(logits.logsumexp(-1) - logits.gather(-1, target[:, None])[:, 0])
    lengths = [len(row) - start for row, start in zip(rows, starts, strict=True)]
    return [float(row.double().sum()) for row in torch.split(torch.cat(losses).cpu(), lengths)]


def head(model: Any, hidden: Tensor) -> Tensor:
    """Logits from last hidden states, as the model's own forward makes them: with its scaling and soft cap.

    `logits_scaling` is Granite's, `logit_scale` Cohere's, `final_logit_softcapping` Gemma 2's.
    """
    config = model.config.get_text_config()
    logits: Tensor = model.get_output_embeddings()(hidden)
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.inference_mode()
def matches(model: Any, ids: Tensor, logits: Tensor) -> bool:
    """Whether `head` on the hidden states gives the `logits` that the model itself gave for `ids` (1, length)."""
    mine = head(model, _hidden(model, ids, torch.ones_like(ids)))
    return mine.shape == logits.shape and torch.allclose(mine.float(), logits.float(), rtol=1e-3, atol=1e-3)


def _hidden(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states (rows, length, width), from the model without its head."""
    hidden: Tensor = call(model.base_model, input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden
