"""The decoding loop: left-padded batches, one cache, rows that stop by themselves, noise that belongs to the item."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnbench.models.decoding import Decoding, item_key, random_words

# Likeliest tokens that are looked at first; the whole vocabulary is sorted only where they do not suffice.
NUCLEUS = 1024
DROP_BELOW = 0.75  # finished rows leave the batch when no more than this share of it goes on


@dataclass(frozen=True)
class Drawn:
    """A reply as ids, without the one that ended it; `finished` is False where the limit cut it."""

    ids: tuple[int, ...]
    finished: bool


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    items: Sequence[str],
    decoding: Decoding,
    *,
    stop: Sequence[int],
    pad: int,
    is_done: Callable[[list[int]], bool] = lambda _: False,
) -> list[Drawn]:
    """Draws one reply a prompt.

    Args:
        model: a transformers causal language model, its adapter set or disabled.
        prompts: token ids, as one batch.
        items: the id that each prompt's noise belongs to.
        decoding: with `max_new_tokens` set.
        stop: ids that end a reply.
        pad: fills the left of shorter prompts, masked.
        is_done: further ground to stop, asked after each token about a reply's ids so far.
    """
    batch = _Batch(model, prompts, items, decoding.seed, pad)
    replies: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    for step in range(decoding.max_new_tokens or 0):
        chosen = choose(batch.logits(), batch.seen, decoding, batch.keys, step)
        for row, token in zip(batch.rows, chosen.tolist(), strict=True):
            if not finished[row] and token in stop:
                finished[row] = True
            elif not finished[row]:
                replies[row].append(token)
                finished[row] = is_done(replies[row])
        if all(finished):
            break
        batch.advance(chosen, finished)
    return [Drawn(tuple(ids), done) for ids, done in zip(replies, finished, strict=True)]


def choose(logits: Tensor, seen: Tensor, decoding: Decoding, keys: Tensor, step: int) -> Tensor:
    """The next token of each row (n,), from logits (n, vocabulary) in float32.

    In the order of transformers' own warpers: repetition penalty on the tokens in `seen` (n, vocabulary, bool),
    temperature, top-k, top-p; then the noise of `keys` (n, 4) and the argmax (the Gumbel-max trick).
    """
    penalty = decoding.repetition_penalty
    if penalty != 1:
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if decoding.greedy:
        return logits.argmax(-1)
    values, tokens = likeliest(logits / decoding.temperature, decoding.top_k, decoding.top_p)
    uniform = (random_words(keys, step, tokens).double() + 0.5) / 2.0**32
    drawn = (values.double() - torch.log(-torch.log(uniform))).argmax(-1, keepdim=True)
    return tokens.gather(1, drawn)[:, 0]


def likeliest(scores: Tensor, top_k: int, top_p: float, first: int = NUCLEUS) -> tuple[Tensor, Tensor]:
    """The tokens that top-k and top-p leave: scores (n, m), -inf where a row has fewer than m, and their ids (n, m).

    Equal scores stay or go together, so the set does not depend on how a device sorts them. The `first` likeliest are
    looked at, then all where these do not suffice.
    """
    size = scores.shape[-1]
    first = size if top_p >= 1 and not top_k else min(size, max(first, top_k + 1))
    values, tokens = scores.topk(first)
    if 0 < top_k < size:
        values = values.masked_fill(values < values[:, top_k - 1 : top_k], -torch.inf)
    whole = torch.logsumexp(values if 0 < top_k < size else scores, -1, keepdim=True).double()
    mass = (values.double() - whole).exp()
    kept = (mass.cumsum(-1) - mass < top_p) & (values > -torch.inf)
    kept = values >= values.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
    if first < size and bool(kept[:, -1].any()):
        return likeliest(scores, top_k, top_p, size)
    widest = int(kept.sum(-1).max())
    return values.masked_fill(~kept, -torch.inf)[:, :widest], tokens[:, :widest]


class _Batch:
    """The rows under way: their cache, and the tokens that go in next."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], items: Sequence[str], seed: int, pad: int) -> None:
        from transformers import DynamicCache

        self.model = model
        self.rows = list(range(len(prompts)))
        self.ids, self.mask = left_padded(prompts, pad, model.device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.keys = torch.tensor([item_key(seed, item) for item in items], device=model.device)
        self.cache = DynamicCache(config=model.config)
        self.seen = torch.zeros(0, dtype=torch.bool)

    def logits(self) -> Tensor:
        """The logits (rows, vocabulary) that follow what has gone in, in float32."""
        out = call(
            self.model,
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last: Tensor = out.logits[:, -1].float()
        if not self.seen.numel():
            self.seen = torch.zeros(last.shape, dtype=torch.bool, device=last.device)
            # A padded place counts as the row's own last token, which has been seen anyway.
            self.seen.scatter_(1, torch.where(self.mask.bool(), self.ids, self.ids[:, -1:]), True)
        return last

    def advance(self, chosen: Tensor, finished: Sequence[bool]) -> None:
        """Puts the chosen tokens in, and leaves out finished rows when that is worth copying the cache."""
        self.seen.scatter_(1, chosen[:, None], True)
        self.ids = chosen[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], -1)
        self.positions = self.positions[:, -1:] + 1
        alive = [at for at, row in enumerate(self.rows) if not finished[row]]
        if len(alive) <= DROP_BELOW * len(self.rows):
            index = torch.tensor(alive, device=self.ids.device)
            self.cache.batch_select_indices(index)
            self.rows = [self.rows[at] for at in alive]
            self.ids, self.mask, self.positions = self.ids[index], self.mask[index], self.positions[index]
            self.seen, self.keys = self.seen[index], self.keys[index]


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (n, longest), the rows at the right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def call(model: Any, **arguments: Any) -> Any:
    """Calls a model with those of the arguments that its forward takes (some know no position_ids)."""
    known = inspect.signature(model.forward).parameters
    return model(**{name: value for name, value in arguments.items() if name in known})
