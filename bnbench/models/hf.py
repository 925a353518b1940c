"""transformers and PEFT: one load answers for a base and all its adapters, which are switched and never merged.

The base answers through `disable_adapter()`, which equals the plain base exactly. Embeddings are never resized.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bnbench.data.corpus import Corpus, Example
from bnbench.errors import CandidateError
from bnbench.extras import require
from bnbench.metrics.core import FloatArray
from bnbench.models.backend import Reply, SessionOptions
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding, fertility
from bnbench.models.files import ModelFiles, file_sha256
from bnbench.models.precision import Device, Precision, choose_precision
from bnbench.models.prompts import Prompt, PromptFormat, pad_id
from bnbench.quiet import quiet

VERSION = 2  # raised when the same arguments would give other replies or likelihoods
PROBE = Example("probe", "মানসিক স্বাস্থ্য", "ঘুম আসে না", "আমার মন খারাপ, কিছুতেই ঘুম আসে না। কী করব?", "আপনার কষ্টটা বুঝতে পারছি।")
ONE_THREAD_BELOW = 20_000_000  # parameters
CPU_OUT_OF_MEMORY = "can't allocate memory"

log = logging.getLogger("bnbench.models")
T = TypeVar("T")


def open_session(candidates: Sequence[Candidate], options: SessionOptions) -> ModelSession:
    """The backend's factory: reads configuration and tokenizer, no weights."""
    for module in ("torch", "transformers", *(["peft"] if any(c.kind == "adapter" for c in candidates) else [])):
        require(module, extra="models")
    return ModelSession(candidates, options)


class ModelSession:
    """A base and its adapters on one device; see `bnbench.models.backend.Session` for what each method promises."""

    counts_tokens = True

    def __init__(self, candidates: Sequence[Candidate], options: SessionOptions) -> None:
        from transformers import AutoConfig

        first = candidates[0]
        folder = first.base_folder or first.folder
        label = f"base {first.base or first.location}"
        self._files = ModelFiles(
            label, first.base or first.location, first.base_revision or first.revision, Path(folder)
        )
        self._trust = options.trust_remote_code
        self._adapters = {c.name: c for c in candidates if c.kind == "adapter"}
        self._slots = {name: f"adapter_{i}" for i, name in enumerate(self._adapters)}
        self._config = AutoConfig.from_pretrained(folder, trust_remote_code=self._trust)
        self.format = PromptFormat.load(Path(folder), system=options.system, trust_remote_code=self._trust)
        self._vocabulary = int(self._config.get_text_config().vocab_size)
        check_vocabulary(label, self.format, self._vocabulary)
        self._pad = pad_id(self.format.tokenizer, self._vocabulary, self.format.stop_ids)
        self._device = Device.of(options.device or "auto")
        self._torch_device = self._device.type if options.device in (None, "auto") else options.device
        self._precision = self._choose_precision(options.quantise)
        self._model: Any = None
        self._whole_logits = False

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:
        """Nothing to do: every reply depends on its own item alone."""

    def load(self) -> None:
        """Reads the weights once, and proves that every adapter changes the logits; raises CandidateError otherwise."""
        if self._model is not None:
            return
        self._limit_threads()
        try:
            with quiet():
                self._model = self._load_base()
                for name, adapter in self._adapters.items():
                    self._add_adapter(self._slots[name], adapter)
                self._model.eval()
                self._check_logits()
        except CandidateError:
            self._model = None
            raise
        log.info("%s on %s: %s", self._files.location, self._torch_device, self._precision.reason)

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """Content rather than place: a folder that was moved is the same candidate."""
        from importlib.metadata import version

        adapter = candidate if candidate.kind == "adapter" else None
        return {
            "backend": "hf",
            "backend_version": VERSION,
            "transformers": version("transformers"),
            "base": self._files.location if self._files.revision else "",
            "base_revision": self._files.revision,
            "base_sha256": self._base_sha256,
            "adapter": adapter.location if adapter and adapter.revision else "",
            "adapter_revision": adapter.revision if adapter else "",
            "adapter_sha256": adapter.weights_sha256 if adapter else "",
            "adapter_config_sha256": file_sha256(Path(adapter.folder) / "adapter_config.json") if adapter else "",
            "dtype": self._precision.dtype_name,
            "quantisation": self._precision.quantisation,
            "template_sha": self.format.template_sha,
            "tokenizer_sha": self.format.tokenizer_sha,
            "stop_ids": list(self.format.stop_ids),
        }

    def resolve(self, decoding: Decoding, references: Sequence[str]) -> Decoding:
        """The limit in tokens by the fertility on `references`, or on sentences of ours where there are none."""
        return decoding.with_limit(fertility(lambda text: len(self.format.answer(text)) - 1, references))

    def prompt(self, example: Example) -> Prompt:
        """See `PromptFormat.prompt`."""
        return self.format.prompt(example)

    def count_tokens(self, examples: Sequence[Example]) -> Sequence[int]:
        """See `PromptFormat.count_tokens`."""
        return self.format.count_tokens(examples)

    def generate(
        self, candidate: Candidate, prompts: Sequence[Prompt], items: Sequence[str], decoding: Decoding
    ) -> list[Reply]:
        """One reply a prompt. Where memory runs out the batch is halved, and the log says so."""
        from bnbench.models import sampling

        limited = self.resolve(decoding, ())
        stops = self.format.stop_texts

        def work(part: slice) -> list[sampling.Drawn]:
            return sampling.generate(
                self._lm,
                [p.ids for p in prompts[part]],
                items[part],
                limited,
                stop=self.format.stop_ids,
                pad=self._pad,
                is_done=self._said_stop if stops else lambda _: False,
            )

        with self._active(candidate):
            drawn = halving(work, len(prompts))
        return [self._reply(d) for d in drawn]

    def likelihood(
        self, candidate: Candidate, prompts: Sequence[Prompt], references: Sequence[str]
    ) -> FloatArray | None:
        """(n, 4): nll, tokens, bytes, characters of each reference given its prompt.

        The nll (nats) is of the reference as it stands, which is what training saw, and of the end token: to stop in
        the right place is part of a reply. `tokens` counts that end token. Bytes (UTF-8) and characters (code points)
        are of the bn1-normalised reference without any end, the same for all candidates and all spellings.
        """
        from bnbench.metrics import normalize

        answers = [self.format.answer(reference) for reference in references]
        rows = [(*p.ids, *a) for p, a in zip(prompts, answers, strict=True)]
        starts = [len(p.ids) for p in prompts]
        with self._active(candidate):
            nll = halving(lambda part: self._nll(rows[part], starts[part]), len(rows))
        texts = [normalize(reference) for reference in references]
        return np.array(
            [[n, len(a), len(t.encode()), len(t)] for n, a, t in zip(nll, answers, texts, strict=True)],
            dtype=np.float64,
        ).reshape(-1, 4)

    def precision(self) -> Mapping[str, Any]:
        """dtype, quantisation, reason."""
        return {
            "dtype": self._precision.dtype_name,
            "quantisation": self._precision.quantisation,
            "reason": self._precision.reason,
        }

    def prompt_format(self) -> Mapping[str, Any]:
        """See `PromptFormat.describe`."""
        return self.format.describe()

    def trained_on(self, candidate: Candidate) -> frozenset[str]:
        """The ids under `examples` in the adapter's training.json, which `bnbench finetune` writes."""
        path = Path(candidate.folder) / "training.json"
        if candidate.kind != "adapter" or not path.is_file():
            return frozenset()
        try:
            return frozenset(str(i) for i in json.loads(path.read_text(encoding="utf-8"))["examples"])
        except (OSError, ValueError, KeyError, TypeError):
            # Another tool's training.json: it records no items of ours.
            return frozenset()

    def peak_memory_bytes(self) -> int | None:
        """Most memory that torch reserved on the card, or most that the process held on the CPU."""
        import torch

        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_reserved(self._torch_device))
        try:
            import resource
        except ImportError:  # Windows
            return None
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    @cached_property
    def _base_sha256(self) -> str:
        config = file_sha256(self._files.folder / "config.json")
        return f"{self._files.weights_sha256()}:{config}"

    @property
    def _lm(self) -> Any:
        """The causal language model itself, the adapters' layers inside."""
        if self._model is None:
            self.load()
        return self._model.get_base_model() if self._adapters else self._model

    @cached_property
    def _parameters(self) -> int:
        return sum(math.prod(shape) for shape in self._files.shapes().values())

    def _limit_threads(self) -> None:
        """One thread for a model whose matrices are multiplied sooner than a second thread wakes up.

        The bundled base answers no slower with one on an idle machine, and many times faster on a busy one.
        """
        import torch

        if self._device.type == "cpu" and self._parameters < ONE_THREAD_BELOW:
            torch.set_num_threads(1)

    def _choose_precision(self, quantise: bool | None) -> Precision:
        stored = getattr(self._config, "quantization_config", None)
        chosen = choose_precision(self._device, self._parameters, False if stored else quantise)
        return replace(chosen, reason=f"{chosen.reason}; the weights are stored quantised") if stored else chosen

    def _load_base(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        from bnbench.models.four_bits import make_portable

        dtype = getattr(torch, self._precision.dtype_name)
        extra: dict[str, Any] = {}
        if self._precision.quantisation == "nf4":
            require("bitsandbytes", extra="models")
            require("accelerate", extra="models")
            quantised = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
            extra = {"quantization_config": quantised, "device_map": {"": self._torch_device}}
        model = AutoModelForCausalLM.from_pretrained(
            self._files.folder, dtype=dtype, use_safetensors=True, trust_remote_code=self._trust, **extra
        )
        if getattr(model, "_is_stateful", False):
            raise CandidateError(
                f"{self._files.label}: {type(model).__name__} keeps a state instead of a cache; not supported"
            )
        rows = model.get_input_embeddings().weight.shape[0]
        check_vocabulary(self._files.label, self.format, rows)
        return make_portable(model if extra else model.to(self._torch_device))

    def _add_adapter(self, slot: str, adapter: Candidate) -> None:
        from peft import PeftModel

        # PEFT has no use_safetensors: it opens a pickle where this file is not there (any more).
        if not (Path(adapter.folder) / "adapter_model.safetensors").is_file():
            raise CandidateError(f"adapter {adapter.location}: there is no adapter_model.safetensors")
        try:
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(adapter.folder, slot)
            else:
                self._model = PeftModel.from_pretrained(self._model, adapter.folder, adapter_name=slot)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            # PEFT and torch name the tensors that do not fit, over many lines.
            reason = " ".join(str(error).split())[:300]
            raise CandidateError(
                f"adapter {adapter.location}: it cannot be put on {self._files.location}: {reason}"
            ) from error

    @contextmanager
    def _active(self, candidate: Candidate) -> Iterator[None]:
        """The candidate's adapter, and it alone, is on while the block runs."""
        if self._model is None:
            self.load()
        if not self._adapters:
            yield
        elif candidate.name in self._slots:
            self._model.set_adapter(self._slots[candidate.name])
            yield
        else:
            with self._model.disable_adapter():
                yield

    def _check_logits(self) -> None:
        """On one short prompt: finite logits, adapters that change them, a loss in chunks that is the model's own."""
        import torch

        from bnbench.models import head as scoring

        ids = torch.tensor([self.format.prompt(PROBE).ids], device=self._torch_device)
        base = Candidate("", "base", self._files.location)
        with torch.inference_mode(), self._active(base):
            plain = self._lm(input_ids=ids).logits
            self._whole_logits = not scoring.matches(self._lm, ids, plain)
        if self._whole_logits:
            log.warning("%s: its head is not a known one, so likelihoods take more memory", self._files.location)
        self._check_finite(f"base {self._files.location}", plain)
        for name, adapter in self._adapters.items():
            with torch.inference_mode(), self._active(adapter):
                changed = self._lm(input_ids=ids).logits
            self._check_finite(f"adapter {name}", changed)
            if torch.equal(plain, changed):
                raise CandidateError(
                    f"adapter {name} ({adapter.location}) does not change the logits of {self._files.location}: it is "
                    "untrained (all its B matrices are zero), or the names of its layers are not the base's"
                )

    def _check_finite(self, label: str, logits: Any) -> None:
        if not bool(logits.isfinite().all()):
            raise CandidateError(
                f"{label}: logits in {self._precision.dtype_name} are not finite; its weights are damaged, or too large"
            )

    def _nll(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[float]:
        from bnbench.models import head as scoring

        return scoring.negative_log_likelihoods(self._lm, rows, starts, pad=self._pad, whole_logits=self._whole_logits)

    def _said_stop(self, ids: list[int]) -> bool:
        tail = self.format.tokenizer.decode(ids[-16:])
        return any(stop in tail for stop in self.format.stop_texts)

    def _reply(self, drawn: Any) -> Reply:
        text = self.format.decode(drawn.ids)
        if not drawn.finished:
            # The limit may cut a character whose bytes are several tokens; what is left of it is ours, not the model's.
            text = text.rstrip("\ufffd").rstrip()
        return Reply(text, len(drawn.ids), not drawn.finished)


def check_vocabulary(label: str, prompts: PromptFormat, rows: int) -> None:
    """Every token that can occur has an embedding; CandidateError with the numbers otherwise.

    Special tokens beyond the embedding are let pass where no prompt uses them (Gemma 3 has one for images).
    """
    tokenizer = prompts.tokenizer
    if len(tokenizer) <= rows:
        return
    used = {*prompts.prompt(PROBE).ids, prompts.end_id}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= rows and (i in used or i not in special)}
    if beyond:
        first = min(beyond)
        raise CandidateError(
            f"{label}: the tokenizer has {len(tokenizer)} ids but the model embeds {rows}: {beyond[first]!r} ({first}) "
            "is beyond; use the tokenizer that belongs to the model (embeddings are never resized here)"
        )


def halving(work: Callable[[slice], list[T]], n: int) -> list[T]:
    """Results of `work` over slices of n rows: all at once, or halved as often as memory runs out; one row must fit."""
    done: list[T] = []
    size = n
    while len(done) < n:
        part = slice(len(done), min(len(done) + size, n))
        try:
            done += work(part)
            continue
        except RuntimeError as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
        # Outside the handler, where the traceback no longer holds the tensors of the failed attempt.
        size = math.ceil(size / 2)
        log.warning("out of memory: going on with batches of %d", size)
        _free_memory()
    return done


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or CPU_OUT_OF_MEMORY in str(error)


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
