"""The peak memory of a training on a GPU and the time it takes, from shapes alone: no weights, no GPU.

    peak = weights + adapter + gradients + optimizer + activations kept + max(one layer, loss chunk) + allocator

The terms hold for decoders of Llama's plan. Measured on one H200 with Llama-3.1-8B's shape, GiB reserved, estimate in
brackets: t4 at rows of 4,096 tokens 6.38 (6.37), mixed 6.45 (6.37); t4-r16-all-linear 6.82 (7.01); t4 with memory_gib =
40 31.4 (31.5), with 13, before, in bfloat16 and in float16, 13.2 (13.0); dpo on pairs of 2,048 tokens 7.96 (8.59), on
16 bits at 1,024 16.6 (17.4); on one H100, before, lora-16bit 16.8 (17.2). No T4 was at hand: its time is arithmetic.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self

from bnbench.errors import RecipeError
from bnbench.finetune.engine.collate import Row, count_samples, count_tokens, largest_rows
from bnbench.finetune.recipes import ALL_LINEAR, Recipe, get_tuner

CONTEXT = 0.6 * 2**30  # what the CUDA context and its libraries take beside PyTorch's allocator, in bytes
ALLOCATOR = 0.05
"""Share that the allocator reserves beyond what is allocated; 2–9 % measured with expandable segments."""
PEAK_RATE: Mapping[str, float] = {
    "T4": 65e12, "V100": 125e12, "A10": 125e12, "L4": 121e12, "A100": 312e12, "H100": 989e12, "H200": 989e12,
    "RTX 3090": 71e12, "RTX 4090": 165e12,
}  # fmt: skip
"""Makers' dense 16-bit multiplications and additions a second."""
CARDS: Mapping[str, float] = {
    "16 GB (T4)": 14.6, "24 GB (L4, RTX 4090)": 22.0, "32 GB (RTX 5090)": 31.4, "40 GB (A100)": 39.4,
    "48 GB (A40, L40S)": 44.4, "80 GB (A100, H100)": 79.1, "141 GB (H200)": 139.8, "192 GB (B200)": 178.4,
}  # fmt: skip
"""GiB that a card of so many GB gives to programs."""
MOST_CARDS = 16
"""How many that share a base are looked at: two machines of eight."""
EMULATED_RATE: Mapping[str, float] = {"T4": 8.1e12, "V100": 15.7e12}
"""The same in float32 and, below compute capability 8, in bfloat16, which these GPUs only emulate."""
REACHED, REACHED_PLAIN = 0.58, 0.35
"""Share of that rate which a step reaches (H200, rows of 4,096 tokens: 1.25 s for four of them, attention offloaded),
and which it does without kernels of our own: under TRL's trainer, and below compute capability 8."""
CHUNK_BYTES = 2**28
"""Of one chunk's float32 logits: 512 positions at 128,256 entries. Beside them lies a copy in the model's dtype."""
HOST, HOST_PLAIN = 0.007, 0.0095
"""Seconds that a layer's kernels take to launch, forward and backward (the H200 machine's CPU: 0.23 s a step), and
those that are not our own."""
SAMPLES, MEAN_TOKENS = 4000, 660
"""The original project's training set, which `outlook` is for."""

_ADVICE: Mapping[str, str] = {
    "weights": 'Set tuner = "qlora" and quantisation = "nf4" in the recipe, or take a smaller base',
    "adapter": "Lower r, or name fewer targets",
    "gradients": "Lower r, or name fewer targets",
    "optimizer": 'Set optimizer = "paged_adamw_8bit"',
    "activations kept": 'Set checkpointing = "non-reentrant", or lower tokens_per_row, batch_size or max_tokens',
    "one layer or loss chunk": "Lower tokens_per_row, batch_size or max_tokens",
}


@dataclass(frozen=True)
class Shape:
    """Widths of a decoder, in elements; `block` and `other` are parameters inside and outside the layers.

    Of those inside, `linear` are weights of linear layers, all that NF4 packs: experts in one tensor stay in 16 bits.
    """

    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool
    block: int
    other: int
    linear: int

    @classmethod
    def of(cls, config: Any, total: int, linear: int | None = None) -> Self:
        """Of a transformers configuration and the base's number of parameters; `linear` is all but norms by default."""
        text, tied = config.get_text_config(), bool(config.tie_word_embeddings)
        hidden, heads = text.hidden_size, getattr(text, "num_attention_heads", None) or 1  # Mamba has none
        head = getattr(text, "head_dim", None) or hidden // heads
        keys = getattr(text, "num_key_value_heads", None) or heads
        other = text.vocab_size * hidden * (1 if tied else 2)
        names = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")  # GPT-2's and BLOOM's is four times
        inner = next((width for name in names if (width := getattr(text, name, None))), 4 * hidden)
        widths = text.num_hidden_layers, hidden, inner, heads * head, keys * head, text.vocab_size
        norms = (2 * text.num_hidden_layers + 1) * hidden
        return cls(*widths, tied, total - other, other, total - other - norms if linear is None else linear)


LLAMA_8B = Shape(32, 4096, 14336, 4096, 1024, 128256, False, 6_979_588_096, 2 * 128256 * 4096, 6_979_321_856)
"""Llama-3.1-8B, what the shipped recipes are made for."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by term, and seconds of the whole training, None where the rate of GPU or tuner is not known.

    `shared` says how many of each of `CARDS` hold the base, sharing its layers (0: not even many do; 1: one does), and
    the GiB on each, `whole` being those of one.
    """

    terms: Mapping[str, float]
    largest_pass: int
    seconds: float | None
    gpu: str
    shared: Mapping[str, tuple[int, float]]
    whole: float

    @property
    def peak(self) -> float:
        """What PyTorch reserves at most, in bytes: the number that `peak_memory_bytes` of the record is."""
        return sum(v for term, v in self.terms.items() if term != "CUDA context")

    @property
    def cards(self) -> str:
        """The smallest card that holds it whole, and how many of which size do where they share the base's layers."""
        several = [f"{n} of {name} ({gib:.1f} GiB on each)" for name, (n, gib) in self.shared.items() if n > 1]
        fits = [name for name, (n, _) in self.shared.items() if n == 1]
        if fits and not several:
            return f"one card of {fits[0]} holds it; several share the rows of a step, each with a whole base"
        one = f"{f'one card of {fits[0]}' if fits else 'no card'} holds it whole ({self.whole:.1f} GiB)"
        how = "sharing the base's layers (accelerate launch --use_fsdp; their number must divide the rows of a step)"
        return f"{one}; {how}: {', '.join(several) or 'none'}"

    def summary(self) -> dict[str, Any]:
        """Plain JSON values, in GiB."""
        return {
            "cards": self.cards, "peak_gib": round(self.peak / 2**30, 2),
            "terms_gib": {k: round(v / 2**30, 2) for k, v in self.terms.items()},
            "largest_pass_tokens": self.largest_pass, "seconds": None if self.seconds is None else round(self.seconds),
            "card": self.gpu,
        }  # fmt: skip

    def __str__(self) -> str:
        shown = {k: v for k, v in self.terms.items() if v >= 0.005 * 2**30}
        beside = f"; beside it the CUDA context, {shown.pop('CUDA context') / 2**30:.2f}"
        terms = ", ".join(f"{k} {v / 2**30:.2f}" for k, v in shown.items()) + beside
        time = "" if self.seconds is None else f"; about {duration(self.seconds)} on {self.gpu}"
        peak = f"{self.peak / 2**30:.1f} GiB at {self.largest_pass} tokens"
        return f"estimated peak on {self.gpu}: {peak} ({terms}){time}\n{self.cards}"

    def check_fits(self, memory: int, name: str) -> None:
        """Raises RecipeError that names the largest term when it cannot fit in `memory` bytes of the GPU `name`."""
        needed = sum(self.terms.values())
        if needed <= memory:
            return
        largest = max(self.terms, key=lambda term: self.terms[term])
        raise RecipeError(
            f"this training needs about {needed / 2**30:.1f} GiB and {name} has {memory / 2**30:.1f}; the largest "
            f"part: {largest}, {self.terms[largest] / 2**30:.1f} GiB. {_ADVICE.get(largest, 'Take a smaller base')}; "
            f"{self.cards}"
        )


def estimate(
    shape: Shape, recipe: Recipe, rows: Sequence[Row], trainable: int, steps: int, *,
    gpu: str = "T4", fused: bool | None = None, validation: Sequence[Row] = (), adapters: int = 1, sharing: int = 1,
) -> Estimate:  # fmt: skip
    """Of a training of `rows` in so many optimiser steps, with so many trainable parameters.

    `gpu` is the one that the time is for; `fused` says whether Liger's kernels are used (None: if installed); rows of
    `validation` are gone through now and then; of `adapters` one is trained; `sharing` processes share base and step.
    """
    size = 4 if recipe.precision == "float32" else 2
    budget = recipe.tokens_per_row if recipe.packing else None
    most = len(rows) if budget and recipe.packing_over == "epoch" else recipe.batch_size * (1 + recipe.pairs)
    largest = largest_rows(rows, most, budget)
    tokens = count_tokens(largest) if recipe.packing else len(largest) * len(largest[0].ids)
    fused = find_spec("liger_kernel") is not None if fused is None else fused
    saved = _saved(shape, recipe, size, fused and not recipe.pairs, gpu)  # TRL's trainer takes the layers as they are

    # NF4 is half a byte, and a scale for 64 weights: one byte and a float32 for 256 such scales where they are
    # quantised too, else a float32 (Dettmers et al. 2023, QLoRA, section 3). Embeddings and norms stay as they are.
    per_weight = float(size)
    if recipe.quantisation == "nf4":
        per_weight = 0.5 + ((1 + 4 / 256) / 64 if recipe.double_quantisation else 4 / 64)
    # Untied input embeddings stay in the CPU's memory, but under TRL's trainer.
    on_gpu = shape.other if shape.tied or recipe.pairs else shape.other / 2

    # With checkpointing every layer's input waits for the backward pass, and what a layer saves is there for one layer
    # at a time (Chen et al. 2016); without, all of it waits.
    kept: float = (shape.layers + 1) * shape.hidden * size
    if recipe.checkpointing == "none":
        kept, saved = kept + shape.layers * saved, 0.0

    terms = {
        "weights": on_gpu * size,
        # The adapter is trained in float32; Adam has two moments for each parameter, of four bytes or of one.
        "adapter": 4.0 * trainable * adapters,
        "gradients": 4.0 * trainable,
        "optimizer": trainable * (8.0 if recipe.optimizer == "adamw_torch" else 2.0),
        "activations kept": kept * tokens,
        "one layer or loss chunk": _at_once(shape, recipe, saved, tokens, size),
    }
    base = shape.linear * per_weight + (shape.block - shape.linear) * size

    def shared(count: int) -> dict[str, float]:
        # Each has its layers, and room for those of others: the one at work and the next.
        layers = math.ceil(shape.layers / count) + min(count - 1, 2)
        found = {**terms, "weights": terms["weights"] + base * layers / shape.layers}
        found["allocator"] = ALLOCATOR * sum(found.values())
        spare = recipe.memory_gib * 2**30 - sum(found.values())
        if recipe.checkpointing == "non-reentrant" and spare > 0:
            # Below memory_gib layers keep what they can, and then their weights unpacked, where they have them.
            whole = shape.linear * size * (recipe.quantisation == "nf4" and not recipe.pairs and count == 1)
            found["activations kept"] += min(spare, (1 + ALLOCATOR) * shape.layers * saved * tokens + whole)
        return {**found, "CUDA context": CONTEXT}

    most = MOST_CARDS if get_tuner(recipe.tuner).shares_steps and not recipe.dora else 1
    sizes = [(n, sum(shared(n).values()) / 2**30) for n in range(1, most + 1)]
    counts = {name: next((s for s in sizes if s[1] <= gib), (0, 0.0)) for name, gib in CARDS.items()}
    # How long layers travel between the cards is not known.
    seconds = _seconds(shape, recipe, rows, steps, gpu, validation) if sharing == 1 else None
    return Estimate(shared(sharing), tokens, seconds, gpu, counts, sizes[0][1])


def _at_once(shape: Shape, recipe: Recipe, saved: float, tokens: int, size: int) -> float:
    """Bytes of what comes and goes in a pass of so many tokens: one layer's backward pass, or a chunk of the loss."""
    # What the layer saved, the widest gradients, and one weight unpacked from 4 bits. The loss is gone by then: a
    # chunk's logits, in float32 and in the model's dtype, and three copies of the hidden states.
    widest = shape.inner * (2 if _adapted(recipe, "down_proj") else 1) + 3 * shape.hidden
    unpacked = shape.inner * shape.hidden * size if recipe.quantisation == "nf4" else 0
    if recipe.targets == (ALL_LINEAR,):  # experts in one tensor are adapted by a whole one of the same size
        unpacked += 2 * max(0, shape.block - shape.linear) // shape.layers * size
    if recipe.dora:  # B A whole, and the weight with it, whose columns are measured
        unpacked += 2 * shape.inner * shape.hidden * size
    layer = (saved + widest * size) * tokens + unpacked
    positions = min(tokens, chunk_positions(shape.vocabulary))
    return max(layer, positions * shape.vocabulary * (4 + size) + 3.0 * tokens * shape.hidden * size)


def _adapted(recipe: Recipe, *names: str) -> int:
    return len(names) if recipe.targets == (ALL_LINEAR,) else len(set(names) & set(recipe.targets))


def _saved(shape: Shape, recipe: Recipe, size: int, fused: bool, gpu: str) -> float:
    """Bytes a token of what one layer keeps for its backward pass when it is not recomputed, its input left out.

    Counted as in Korthikanti et al. (2022, section 4.1), for a frozen layer: a linear map without an adapter needs its
    input for nothing, since its weight has no gradient.
    """
    attention, gates = _adapted(recipe, "q_proj", "k_proj", "v_proj"), _adapted(recipe, "gate_proj", "up_proj")
    output, down = _adapted(recipe, "o_proj"), _adapted(recipe, "down_proj")
    # Queries and attention's output, keys and values, the residual stream, both halves of the gate; then the inputs of
    # the adapted maps, which those of one group share.
    elements = 2 * shape.queries + 2 * shape.keys + shape.hidden + 2 * shape.inner
    elements += shape.hidden * (bool(attention) + bool(gates)) + shape.inner * down
    masks = shape.hidden * (attention + gates) + shape.queries * output + shape.inner * down
    if recipe.pairs or recipe.dora:  # PEFT's own forward: every adapted module has a copy of its input
        elements += masks
    eager = 0 if fused else 8 * shape.hidden + size * shape.inner  # norms in float32, the gate's activation
    # A dropout's mask is a byte an element, where none of our kernels makes it again.
    has_masks = recipe.dropout and (recipe.dora or gpu_of(gpu) in EMULATED_RATE)
    return size * elements + eager + (masks if has_masks else 0)


def _seconds(
    shape: Shape, recipe: Recipe, rows: Sequence[Row], steps: int, gpu: str, validation: Sequence[Row]
) -> float | None:
    """Multiplications at the rate that was reached, and never less than launching the kernels takes."""
    known = gpu_of(gpu)
    if known is None or not get_tuner(recipe.tuner).timed:
        return None
    rate, is_plain = PEAK_RATE[known], recipe.pairs or known in EMULATED_RATE
    reached = REACHED_PLAIN if is_plain else REACHED
    if recipe.precision in ("bfloat16", "float32"):
        rate = EMULATED_RATE.get(known, rate)
    # A pass is two operations a weight and token (Kaplan et al. 2020, section 2.1): one forward, one backward to the
    # activations (frozen weights have no gradients), one forward again where layers are recomputed, and one of the base
    # alone, the reference that pairs are measured against. The head works for supervised tokens only.
    reference = 1 if recipe.pairs else 0
    passes = 2 + (recipe.checkpointing != "none") + reference
    tokens = count_tokens(rows) / count_samples(rows, recipe) * recipe.samples_per_step * steps
    share = sum(row.supervised for row in rows) / count_tokens(rows)
    head = (4.0 + 2.0 * reference) * shape.vocabulary * shape.hidden * share
    arithmetic = tokens * (2.0 * passes * shape.block + head) / (reached * rate)
    per_step = max(1.0, tokens / steps / recipe.tokens_per_row) if recipe.packing else recipe.accumulate
    host = HOST_PLAIN if is_plain else HOST
    training = max(arithmetic, steps * per_step * shape.layers * host * (1 + reference / 3))
    if not validation:
        return training
    # Before the first step, then and when, and after the last: one forward pass each.
    times = 1 + math.ceil(steps / recipe.validate_every)
    return training + times * count_tokens(validation) * 2.0 * shape.block / (reached * rate)


def chunk_positions(vocabulary: int) -> int:
    """How many positions' logits the loss keeps alive at once: whole tiles of 128, where there are so many."""
    count = CHUNK_BYTES // (4 * vocabulary)
    return max(16, count - count % 128 if count > 128 else count)


def gpu_of(text: str) -> str | None:
    """The first GPU of `PEAK_RATE` that a text names, such as a recipe's `card` or what CUDA calls one."""
    named = [(text.index(name), -len(name), name) for name in PEAK_RATE if name in text]
    return min(named)[2] if named else None


def lora_parameters(shape: Shape, recipe: Recipe) -> int:
    """LoRA's parameters: of each adapted layer, `r` times its inputs and outputs (Hu et al. 2021, section 4.1)."""
    hidden, inner = shape.hidden, shape.inner
    sizes = {
        "q_proj": hidden + shape.queries, "k_proj": hidden + shape.keys, "v_proj": hidden + shape.keys,
        "o_proj": shape.queries + hidden, "gate_proj": hidden + inner, "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }  # fmt: skip
    return shape.layers * recipe.r * sum(size for name, size in sizes.items() if _adapted(recipe, name))


def outlook(recipe: Recipe) -> Estimate | None:
    """What a recipe asks of its GPU (None: it needs none) for Llama-3.1-8B and the original's 4,000 samples.

    They have 660 tokens in the mean, some as many as `max_tokens`, every one supervised.
    """
    gpu, longest = gpu_of(recipe.card), min(recipe.batch_size * (1 + recipe.pairs), SAMPLES)
    if gpu is None:
        return None
    rest = max(1, (SAMPLES * MEAN_TOKENS - longest * recipe.max_tokens) // max(1, SAMPLES - longest))
    long, usual = (Row("", (0,) * n, (0,) * n) for n in (recipe.max_tokens, rest))
    rows = [long] * longest + [usual] * (SAMPLES - longest)
    trainable, steps = lora_parameters(LLAMA_8B, recipe), recipe.count_steps(SAMPLES)
    validation = [usual] * recipe.validation_rows if recipe.validate_every else []
    return estimate(LLAMA_8B, recipe, rows, trainable, steps, gpu=gpu, validation=validation)


def duration(seconds: float) -> str:
    """`45 min` or `3.2 h`, rounded up to minutes."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
