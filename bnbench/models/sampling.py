"""The decoding loop: left-padded batches, one cache, rows that stop by themselves, noise that belongs to the item."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bnbench.models.decoding import Decoding, item_key, random_words

# Likeliest tokens that are looked at first; the whole vocabulary is sorted only where they do not suffice.
NUCLEUS = 1024
PASS_TOKENS = 16_384  # prompt tokens, padding included, that go through the model at once
PLACES = 256  # by which a cache grows
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


class Slots(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """A cache layer whose places are written one by one; transformers' own copies the whole cache at every token.

    `keys` and `values` (rows, heads, places, width) are views of the places that are taken so far.
    """

    def put(self, rows: slice, of: DynamicLayer, n: int, width: int) -> None:
        """Takes over what a pass over some of n prompts has left in `of`, flush right in `width` places."""
        keys, values = of.keys, of.values
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.store = [x.new_zeros(n, x.shape[1], width + PLACES, x.shape[3]) for x in (keys, values)]
            self.keys, self.values = (x[:, :, :width] for x in self.store)
        self.keys[rows, :, width - keys.shape[2] :] = keys
        self.values[rows, :, width - values.shape[2] :] = values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes the next place of each row; gives all that are taken."""
        n = self.keys.shape[2]
        if n == self.store[0].shape[2]:
            self.store = [torch.cat([x, torch.zeros_like(x[:, :, :PLACES])], 2) for x in self.store]
        for store, states in zip(self.store, (key_states, value_states), strict=True):
            store[:, :, n : n + 1] = states
        self.keys, self.values = (x[:, :, : n + 1] for x in self.store)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some of the rows."""
        n = self.keys.shape[2]
        self.store = [x[indices] for x in self.store]
        self.keys, self.values = (x[:, :, :n] for x in self.store)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' "sdpa", but that a single query's heads share their keys instead of each getting a copy of them.

    The heads of a group, which look at the same keys, stand as the queries of one head: (rows, heads, 1, d) as (rows,
    key heads, heads / key heads, d). transformers does so itself since 5.20.
    """
    rows, heads, queries, d = query.shape
    groups = heads // key.shape[1]
    if queries != 1 or groups == 1 or options.get("softcap") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    if attention_mask is not None:
        attention_mask = attention_mask.expand(rows, -1, groups, -1)
    grouped = query.view(rows, key.shape[1], groups, d)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=options.get("scaling"))
    return out.reshape(rows, 1, heads, d), None


ATTENTION = "bnbench_grouped"
"""The `attn_implementation` under which transformers finds `attend`."""
AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _Batch:
    """The rows under way: their cache, and the tokens that go in next."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], items: Sequence[str], seed: int, pad: int) -> None:
        self.model = model
        self.rows = list(range(len(prompts)))
        self.ids, self.mask = left_padded(prompts, pad, model.device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.keys = torch.tensor([item_key(seed, item) for item in items], device=model.device)
        self.cache = DynamicCache(config=model.config)
        self.first: Tensor | None = self._read(prompts, pad)
        # A padded place counts as the row's own last token, which has been seen anyway.
        self.seen = torch.zeros(self.first.shape, dtype=torch.bool, device=model.device)
        self.seen.scatter_(1, torch.where(self.mask.bool(), self.ids, self.ids[:, -1:]), True)

    def _read(self, prompts: Sequence[Sequence[int]], pad: int) -> Tensor:
        """Fills the cache; the logits (rows, vocabulary) that follow the prompts.

        Prompts go in some at a time, each part as wide as its own longest, so that neither the widest prompt nor the
        number of rows makes a pass larger than memory allows. A cache of sliding windows is filled in one pass.
        """
        self.has_slots = bool(self.cache.layers) and all(type(layer) is DynamicLayer for layer in self.cache.layers)
        if not self.has_slots:
            return self._forward(self.ids, self.mask, self.positions, self.cache)
        filled, width = DynamicCache(config=self.model.config), self.ids.shape[1]
        filled.layers = [Slots() for _ in self.cache.layers]
        logits = []
        for part in passes([len(prompt) for prompt in prompts]):
            own = DynamicCache(config=self.model.config)
            ids, mask = left_padded(prompts[part], pad, self.model.device)
            logits.append(self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), own))
            for slots, layer in zip(filled.layers, own.layers, strict=True):
                slots.put(part, layer, len(prompts), width)
                layer.keys = layer.values = None  # a layer's copy goes before the next is made
        self.cache = filled
        return torch.cat(logits)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        out = call(
            self.model,
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last: Tensor = out.logits[:, -1].float()
        return last

    def logits(self) -> Tensor:
        """The logits (rows, vocabulary) that follow what has gone in, in float32."""
        if self.first is not None:
            first, self.first = self.first, None
            return first
        # One query sees all that its row has, so `attend` needs no mask that transformers makes anew at every token.
        config, mask = self.model.config, self.mask
        if config._attn_implementation == ATTENTION and self.has_slots and not getattr(config, "alibi", False):
            mask = mask[:, None, None].bool()
        return self._forward(self.ids, mask, self.positions, self.cache)

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


def passes(lengths: Sequence[int], tokens: int = PASS_TOKENS) -> Iterator[slice]:
    """Rows side by side, as many as one pass may see: their number times the longest one's length is `tokens` at most.

    A single row may be longer than that.
    """
    start, longest = 0, 0
    for at, length in enumerate(lengths):
        longest = max(longest, length)
        if at > start and (at + 1 - start) * longest > tokens:
            yield slice(start, at)
            start, longest = at, length
    yield slice(start, len(lengths))


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
