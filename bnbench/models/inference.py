"""What a causal language model is asked for: replies, drawn token by token, and likelihoods of given ones.

Replies: left-padded batches, one cache, rows that stop by themselves, noise that belongs to the item. Likelihoods: the
head sees supervised positions only, some hundred at a time; a row of 4,096 tokens is 2.1 GB of Llama-3.1's logits.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bnbench.models.decoding import Decoding, item_key, random_words

# Likeliest tokens that are looked at first; the whole vocabulary is sorted only where they do not suffice.
NUCLEUS = 1024
PASS_TOKENS = 16_384  # prompt tokens, padding included, that go through the model at once
PLACES = 256  # by which a cache grows
LOGITS = 2**26  # numbers in float32 that a chunk of logits may have: 256 MiB, 523 positions of Llama-3.1
DROP_BELOW = 0.75  # finished rows leave the batch when no more than this share of it goes on


@dataclass(frozen=True)
class Drawn:
    """A reply as ids, without the one that ended it; `finished` is False where the limit cut it."""

    ids: tuple[int, ...]
    finished: bool


@torch.inference_mode()
def generate(
    model: Any, prompts: Sequence[Sequence[int]], items: Sequence[str], decoding: Decoding, *, stop: Sequence[int],
    pad: int, is_done: Callable[[list[int]], bool] = lambda _: False,
) -> list[Drawn]:  # fmt: skip
    """Draws one reply a prompt, all prompts as one batch. `items` are the ids that each prompt's noise belongs to;
    `decoding` has `max_new_tokens` set; `stop` are ids that end a reply; `pad` fills the left of shorter prompts,
    masked; `is_done` may find a further ground to stop in a reply's ids so far.
    """
    batch = _Batch(model, prompts, items, decoding.seed, pad)
    replies: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    limit = decoding.max_new_tokens or 0
    for step in range(limit):
        chosen = choose(batch.logits, batch.seen, decoding, batch.keys, step)
        for row, token in zip(batch.rows, chosen.tolist(), strict=True):
            if not finished[row] and token in stop:
                finished[row] = True
            elif not finished[row]:
                replies[row].append(token)
                finished[row] = is_done(replies[row])
        if all(finished) or step + 1 == limit:
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
    return tokens.gather(1, (values.double() - torch.log(-torch.log(uniform))).argmax(-1, keepdim=True))[:, 0]


def likeliest(scores: Tensor, top_k: int, top_p: float, first: int = NUCLEUS) -> tuple[Tensor, Tensor]:
    """The tokens that top-k and top-p leave: scores (n, m), -inf where a row has fewer than m, and their ids (n, m).

    Equal scores stay or go together, however a device sorts them. First the `first` likeliest are looked at, then all.
    """
    size = scores.shape[-1]
    first = size if top_p >= 1 and not top_k else min(size, max(first, top_k + 1))
    values, tokens = scores.topk(first)
    if 0 < top_k < size:
        values = values.masked_fill(values < values[:, top_k - 1 : top_k], -torch.inf)
    mass = (values.double() - torch.logsumexp(values if 0 < top_k < size else scores, -1, keepdim=True).double()).exp()
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
        self.store = [x[indices] for x in self.store]
        self.keys, self.values = (x[:, :, : self.keys.shape[2]] for x in self.store)


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


ATTENTION = "bnbench_grouped"  # the `attn_implementation` under which transformers finds `attend`
AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _Batch:
    """The rows under way: their cache, and the `logits` (rows, vocabulary) in float32 that follow what has gone in."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], items: Sequence[str], seed: int, pad: int) -> None:
        """Reads the prompts, some at a time, each part as wide as its own longest: so neither the widest prompt nor the
        number of rows makes a pass larger than memory allows. A cache of sliding windows is filled in one pass.
        """
        self.model = model
        self.rows = list(range(len(prompts)))
        self.ids, self.mask = padded(prompts, pad, model.device, "left")
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.keys = torch.tensor([item_key(seed, item) for item in items], device=model.device)
        self.cache = DynamicCache(config=model.config)
        self.has_slots = bool(self.cache.layers) and all(type(layer) is DynamicLayer for layer in self.cache.layers)
        if self.has_slots:
            self.cache.layers = [Slots() for _ in self.cache.layers]
            logits = []
            for part in passes([len(prompt) for prompt in prompts]):
                own = DynamicCache(config=model.config)
                ids, mask = padded(prompts[part], pad, model.device, "left")
                logits.append(self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), own))
                for slots, layer in zip(self.cache.layers, own.layers, strict=True):
                    slots.put(part, layer, len(prompts), self.ids.shape[1])
                    layer.keys = layer.values = None  # a layer's copy goes before the next is made
            self.logits = torch.cat(logits)
        else:
            self.logits = self._forward(self.ids, self.mask, self.positions, self.cache)
        # A padded place counts as the row's own last token, which has been seen anyway.
        self.seen = torch.zeros(self.logits.shape, dtype=torch.bool, device=model.device)
        self.seen.scatter_(1, torch.where(self.mask.bool(), self.ids, self.ids[:, -1:]), True)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        last: Tensor = call(self.model, **given, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        return last

    def advance(self, chosen: Tensor, finished: Sequence[bool]) -> None:
        """Puts the chosen tokens in, and leaves out finished rows when that is worth copying the cache."""
        del self.logits  # not held while the next are made
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
        # One query sees all that its row has, so `attend` needs no mask that transformers makes anew at every token.
        config, mask = self.model.config, self.mask
        if config._attn_implementation == ATTENTION and self.has_slots and not getattr(config, "alibi", False):
            mask = mask[:, None, None].bool()
        self.logits = self._forward(self.ids, mask, self.positions, self.cache)


def passes(lengths: Sequence[int], tokens: int = PASS_TOKENS) -> Iterator[slice]:
    """Rows side by side for one pass: their number times the longest one's length is `tokens` at most, or it is one."""
    start, longest = 0, 0
    for at, length in enumerate(lengths):
        longest = max(longest, length)
        if at > start and (at + 1 - start) * longest > tokens:
            yield slice(start, at)
            start, longest = at, length
    yield slice(start, len(lengths))


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device, side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask (n, longest), shorter rows filled up on the `side` "left" or "right"."""
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], True, 0, side)
    return pad_sequence([torch.tensor(row) for row in rows], True, pad, side).to(device), mask.to(device)


def call(model: Any, **arguments: Any) -> Any:
    """Calls a model with what its forward takes: some know no position_ids, and call the cache `cache_params`."""
    known = inspect.signature(model.forward).parameters
    arguments["cache_params"] = arguments.get("past_key_values")
    return model(**{name: value for name, value in arguments.items() if name in known})


@torch.inference_mode()
def negative_log_likelihoods(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], *, pad: int, whole_logits: bool = False
) -> list[float]:
    """The sum of -log p (nats) over each row's tokens from its start on, given all before them.

    `starts` is where each row's answer begins, at least 1; `pad` fills the right of shorter rows, masked and never
    scored; `whole_logits`, for a model whose head `head` does not know, takes all logits from it, row by row.
    """
    if whole_logits and len(rows) > 1:
        pairs = zip(rows, starts, strict=True)
        return [negative_log_likelihoods(model, [r], [s], pad=pad, whole_logits=True)[0] for r, s in pairs]
    ids, mask = padded(rows, pad, model.device, "right")
    where = [(i, at) for i, (row, start) in enumerate(zip(rows, starts, strict=True)) for at in range(start, len(row))]
    row_of, at = torch.tensor(where, device=model.device).T
    # What comes out at one position says how likely the token at the next is.
    if whole_logits:
        taken = call(model, input_ids=ids, attention_mask=mask, use_cache=False).logits[row_of, at - 1]
    else:
        body = call(model.base_model, input_ids=ids, attention_mask=mask, use_cache=False)
        taken = body.last_hidden_state[row_of, at - 1]
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
