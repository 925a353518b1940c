"""transformers and PEFT: one load answers for a base and all its adapters, which are switched and never merged.

The base answers through `disable_adapter()`, which equals the plain base exactly. Embeddings are never resized.
"""

import gc
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any, TypeVar

from bnbench.errors import CandidateError, require
from bnbench.models.backend import BackendOptions, LocalModels, Prompts, Reply, Rows
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.loading import explained, load_base, make_portable, put_on, trained_tokens
from bnbench.models.prompts import PROBE, pad_id

VERSION = 2  # raised when the same arguments would give other replies or likelihoods
ONE_THREAD_BELOW = 20_000_000  # parameters
MOST_ROWS = 256  # more of them make a token no faster
CPU_OUT_OF_MEMORY = "can't allocate memory"

log = logging.getLogger("bnbench.models")
T = TypeVar("T")


class TransformersBackend(LocalModels):
    """The backend `hf`: a base and its adapters on one device."""

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        super().__init__(candidates, options)
        self.computed_by = {"backend": "hf", "backend_version": VERSION, "transformers": version("transformers")}
        if self.adapters:
            require("peft", extra="models")
        self.pad = pad_id(self._asked.tokenizer, self.text.vocab_size, self._asked.stop_ids)
        self.token_bytes = None
        if heads := getattr(self.text, "num_attention_heads", None):  # a key and a value of 16 bits a layer
            keys = getattr(self.text, "num_key_value_heads", None) or heads
            width = getattr(self.text, "head_dim", None) or self.text.hidden_size // heads
            self.token_bytes = 4 * self.text.num_hidden_layers * keys * width
        self.model: Any = None
        # PEFT's names for them, which may have no dots.
        self._keys = {name: f"adapter_{number}" for number, name in enumerate(self.adapters)}
        self._loaded: tuple[str, ...] = ()  # the adapters that are on the model now
        # Those that must be there alone: PEFT takes adapters of one kind beside each other.
        kinds = {name: of.read_json("adapter_config.json")["peft_type"] for name, of in self.adapter_files.items()}
        self._apart = [name for name, kind in kinds.items() if kind != next(iter(kinds.values()))]
        # An adapter of a few tokens changes nothing where these do not stand.
        tokens = set().union(*map(trained_tokens, self.adapter_files.values()))
        self._probe_ids = (*self._asked.prompt(PROBE).ids, *sorted(tokens.intersection(range(self.text.vocab_size))))
        self._whole_logits = False

    def load(self) -> None:
        """Reads the weights, and proves that every adapter changes the logits, and nothing else's. One that cannot be
        told from the base or from those beside it is loaded by itself: now, to see that it can be, and again when its
        turn comes. Raises CandidateError for weights that are not whole, damaged or untrained.
        """
        # Small matrices are multiplied sooner than a second thread wakes up: the bundled base answers no slower with
        # one thread on an idle machine, and many times faster on a busy one.
        if self.device == "cpu" and self.n_parameters < ONE_THREAD_BELOW:
            require("torch", extra="models").set_num_threads(1)
        if self.model is None:
            for name in self._apart:
                self._load([name])
            self._load([name for name in self.adapters if name not in self._apart])

    def _load(self, names: Sequence[str]) -> None:
        """The base with these adapters on it: those that can be loaded together, or one that is loaded by itself."""
        import torch

        from bnbench.models import inference

        self.model, self._loaded = None, ()
        gc.collect()
        torch.cuda.empty_cache()  # which does nothing where there is none
        dtype = getattr(torch, self.precision["dtype"])
        options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": self.options.trust_remote_code}
        if (is_packed := self.precision["quantisation"] == "nf4") or self.device.startswith("cuda"):
            require("accelerate", extra="models")
            options["device_map"] = {"": self.device}  # straight to the card, not by way of the host's memory
        if is_packed:
            require("bitsandbytes", extra="models")
            how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
            pack = require("transformers", extra="models").BitsAndBytesConfig
            options["quantization_config"] = pack(load_in_4bit=True, **how)
        model = load_base(self.files, **options)
        if not {"past_key_values", "cache_params"} & set(inspect.signature(model.forward).parameters):
            why = f"{type(model).__name__} takes no cache of transformers' kind; not supported"
            raise CandidateError(f"{self.files.label}: {why}")
        # The configuration may promise more rows than the weights have.
        self._asked.check_vocabulary(self.files.label, model.get_input_embeddings().weight.shape[0])
        if self.device.startswith("cuda"):
            # cuDNN's attention makes a plan for every new length, and each token is one: 0.1 s a token.
            torch.backends.cuda.enable_cudnn_sdp(False)
            if model.config._attn_implementation == "sdpa":
                model.set_attn_implementation(inference.ATTENTION)
        self.model = make_portable(model).eval() if is_packed else model.to(self.device).eval()
        base = Candidate("", "base", self.files.location)
        logits = {base: self._probe(base)}
        for name in names:
            candidate = self.adapters[name]
            try:
                self.model = put_on(self.model, self.adapter_files[name], self._keys[name])
            except CandidateError:
                if not self._loaded:
                    raise
                return self._set_apart(name, names)  # PEFT takes some only alone, such as the second with biases
            self._loaded = (*self._loaded, name)
            logits[candidate] = self._probe(candidate)
            self.check_answer(candidate, is_finite=True, is_base_s=torch.equal(logits[candidate], logits[base]))
            now = [self._probe(c) for c in logits] if name not in self._apart else []
            if not all(map(torch.equal, now, logits.values())):
                return self._set_apart(name, names)
        log.info("%s on %s: %s", self.files.location, self.device, self.precision["reason"])
        return None

    def _set_apart(self, name: str, names: Sequence[str]) -> None:
        why = "the base, or an adapter beside it, would not answer as it does alone"
        log.warning("adapter %s is loaded by itself: %s", self.adapters[name].location, why)
        self._apart.append(name)
        self._load([name])
        self._load([other for other in names if other != name])

    def _probe(self, candidate: Candidate) -> Any:
        """A candidate's logits (1, n, vocabulary) for one short prompt; CandidateError where they are not finite."""
        import torch

        from bnbench.models import inference

        ids = torch.tensor([self._probe_ids], device=self.device)
        label = f"{candidate.kind} {candidate.location}"
        with explained(label, "it cannot compute"), torch.inference_mode(), self._active(candidate) as lm:
            logits = lm(input_ids=ids).logits
            if candidate.kind == "base":
                # Whether `head` on the hidden states gives what the model itself gives.
                given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
                try:
                    mine = inference.head(lm, inference.call(lm.base_model, **given).last_hidden_state).float()
                    is_known = mine.shape == logits.shape and torch.allclose(mine, logits.float(), rtol=1e-3, atol=1e-3)
                except AttributeError:  # what it calls its base model has a head too, or it has no embedding for a head
                    is_known = False
                self._whole_logits = not is_known
                other = torch.cat([ids[:, :-1], ids[:, :1]], -1)
                # A model that sees what it is scored on changes what it said before when a later token is another.
                gap = (logits[:, :-1].float() - lm(input_ids=other).logits[:, :-1].float()).abs().max()
                if gap > 0.01 * logits.float().abs().max():
                    raise CandidateError(f"{self.files.label}: it sees the words after the one that it writes")
                if self._whole_logits:
                    log.warning("%s: its head is not a known one, so likelihoods take more memory", self.files.location)
        self.check_answer(candidate, is_finite=bool(logits.isfinite().all()), is_base_s=False)
        return logits

    @contextmanager
    def _active(self, candidate: Candidate) -> Iterator[Any]:
        """The causal language model itself; the candidate's adapter, and it alone, is on while the block runs."""
        is_on = candidate.name in self.adapters
        if self.model is None:
            self.load()
        if is_on and candidate.name not in self._loaded:
            self._load([candidate.name])
        elif not is_on and set(self._apart).intersection(self._loaded):
            self._load([name for name in self.adapters if name not in self._apart])
        lm = self.model.get_base_model() if self._loaded else self.model
        if is_on:
            self.model.set_adapter(self._keys[candidate.name])
        with nullcontext() if is_on or not self._loaded else self.model.disable_adapter():
            yield lm

    def batch_sizes(self, lengths: Sequence[int], new_tokens: int) -> list[int]:
        """On the CPU eight at a time. On a GPU as many as leave its memory half empty: keys and values of every token.
        The GPU's whole memory is counted, not what is free now, so that a run that goes on has the batches it had.
        """
        if self.memory is None or self.token_bytes is None:
            return [min(8, len(lengths) - start) for start in range(0, len(lengths), 8)]
        weights = self.n_parameters * (0.7 if self.precision["quantisation"] == "nf4" else 2)
        room = max(0.0, 0.9 * self.memory - weights) / 2
        sizes, at = [], 0
        while at < len(lengths):
            # The longest come first, and those beside them become as wide.
            fits = int(room / (self.token_bytes * (lengths[at] + new_tokens)))
            sizes.append(max(1, min(MOST_ROWS, fits, len(lengths) - at)))
            at += sizes[-1]
        return sizes

    def generate(self, candidate: Candidate, prompts: Prompts, items: Sequence[str], decoding: Decoding) -> list[Reply]:
        """One reply a prompt. Where memory runs out the batch is halved, and the log says so."""
        from bnbench.models import inference

        asked = self.prompters[candidate.name]
        limited = asked.limited(decoding)
        with self._active(candidate) as lm:
            how: dict[str, Any] = {"stop": asked.stop_ids, "pad": self.pad}
            how |= {"is_done": asked.is_done} if asked.stop_texts else {}
            ids = [prompt.ids for prompt in prompts]
            drawn = halving(lambda p: inference.generate(lm, ids[p], items[p], limited, **how), slice(0, len(ids)))
        return [Reply(asked.decode(d.ids, cut=not d.finished), len(d.ids), not d.finished) for d in drawn]

    def likelihood(self, candidate: Candidate, rows: Rows, starts: Sequence[int]) -> list[float]:
        """As `Backend.likelihood`; in passes of a few rows. Where memory runs out they are halved."""
        from bnbench.models.inference import negative_log_likelihoods, passes

        how: dict[str, Any] = {"pad": self.pad, "whole_logits": self._whole_logits}
        with self._active(candidate) as lm:
            parts = passes(list(map(len, rows)))
            done = (halving(lambda p: negative_log_likelihoods(lm, rows[p], starts[p], **how), part) for part in parts)
            return [n for part in done for n in part]


def halving(work: Callable[[slice], list[T]], rows: slice) -> list[T]:
    """Results of `work` over the rows: all at once, or halved as often as memory runs out; one row must fit. Not
    accelerate's `find_executable_batch_size`, which begins anew after each failure and hides the last error.
    """
    import torch

    done: list[T] = []
    size = rows.stop - rows.start
    while (start := rows.start + len(done)) < rows.stop:
        try:
            done += work(slice(start, min(start + size, rows.stop)))
            continue
        except RuntimeError as error:
            if size == 1 or not (isinstance(error, torch.OutOfMemoryError) or CPU_OUT_OF_MEMORY in str(error)):
                raise
        # Outside the handler, where the traceback no longer holds the tensors of the failed attempt.
        size = math.ceil(size / 2)
        log.warning("out of memory: going on with batches of %d", size)
        gc.collect()
        torch.cuda.empty_cache()
    return done
