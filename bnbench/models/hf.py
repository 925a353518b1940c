"""transformers and PEFT: one load answers for a base and all its adapters, which are switched and never merged.

The base answers through `disable_adapter()`, which equals the plain base exactly. Embeddings are never resized.
"""

from __future__ import annotations

import gc
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from bnbench.errors import CandidateError, require
from bnbench.models.backend import Backend, BackendOptions, Reply
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.hub import ModelFiles, file_sha256
from bnbench.models.precision import Device, choose_precision, make_portable
from bnbench.models.prompts import PROBE, Prompt, Prompter, pad_id
from bnbench.progress import quiet

VERSION = 2  # raised when the same arguments would give other replies or likelihoods
ONE_THREAD_BELOW = 20_000_000  # parameters
MOST_ROWS = 256  # more of them make a token no faster
CPU_OUT_OF_MEMORY = "can't allocate memory"

log = logging.getLogger("bnbench.models")
T = TypeVar("T")


class TransformersBackend(Backend):
    """The backend `hf`: a base and its adapters on one device."""

    needs_files: ClassVar[bool] = True

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        super().__init__(candidates, options)
        self.adapters = {c.name: c for c in candidates if c.kind == "adapter"}
        for module in ("torch", *(["peft"] if self.adapters else [])):
            require(module, extra="models")
        first, trust = candidates[0], options.trust_remote_code
        location, commit = first.base or first.location, first.base_revision or first.revision
        self.files = ModelFiles(f"base {location}", location, commit, Path(first.base_folder or first.folder))
        self._base_sha256 = f"{self.files.weights_sha256()}:{file_sha256(self.files.folder / 'config.json')}"
        load = require("transformers", extra="models").AutoConfig.from_pretrained
        config = load(self.files.folder, trust_remote_code=trust)
        text, stored = config.get_text_config(), getattr(config, "quantization_config", None)
        # A base and its adapters are asked alike: with the base's tokenizer and template.
        self._asked = Prompter.load(self.files, system=options.system, trust_remote_code=trust)
        self._asked.check_vocabulary(self.files.label, text.vocab_size)
        self.context = getattr(text, "max_position_embeddings", None)
        self.pad = pad_id(self._asked.tokenizer, text.vocab_size, self._asked.stop_ids)

        device = Device.of(options.device or "auto")
        self.device = device.type if options.device in (None, "auto") else str(options.device)
        self.n_parameters = sum(math.prod(shape) for shape in self.files.shapes().values())
        chosen = choose_precision(device, self.n_parameters, False if stored else options.quantise)
        reason = f"{chosen.reason}; the weights are stored quantised" if stored else chosen.reason
        self.precision = {"dtype": chosen.dtype_name, "quantisation": chosen.quantisation, "reason": reason}

        self.memory = device.memory if self.device.startswith("cuda") else None
        self.token_bytes = None
        if heads := getattr(text, "num_attention_heads", None):  # a key and a value of 16 bits a layer
            keys = getattr(text, "num_key_value_heads", None) or heads
            width = getattr(text, "head_dim", None) or text.hidden_size // heads
            self.token_bytes = 4 * text.num_hidden_layers * keys * width

        self.model: Any = None
        self._whole_logits = False

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """Content rather than place: a folder that was moved is the same candidate."""
        adapter = candidate if candidate.kind == "adapter" else None
        return {
            "backend": "hf",
            "backend_version": VERSION,
            "transformers": version("transformers"),
            "base": self.files.location if self.files.commit else "",
            "base_revision": self.files.commit,
            "base_sha256": self._base_sha256,
            "adapter": adapter.location if adapter and adapter.revision else "",
            "adapter_revision": adapter.revision if adapter else "",
            "adapter_sha256": adapter.weights_sha256 if adapter else "",
            "adapter_config_sha256": file_sha256(Path(adapter.folder) / "adapter_config.json") if adapter else "",
            "dtype": self.precision["dtype"],
            "quantisation": self.precision["quantisation"],
            "template_sha": self._asked.template_sha,
            "tokenizer_sha": self._asked.tokenizer_sha,
            "stop_ids": list(self._asked.stop_ids),
        }

    def load(self) -> None:
        """Reads the weights once, and proves that every adapter changes the logits; raises CandidateError otherwise."""
        if self.model is not None:
            return
        import torch

        # Small matrices are multiplied sooner than a second thread wakes up: the bundled base answers no slower with
        # one thread on an idle machine, and many times faster on a busy one.
        if self.device == "cpu" and self.n_parameters < ONE_THREAD_BELOW:
            torch.set_num_threads(1)
        try:
            with quiet():
                self.model = self._load_base()
                for number, adapter in enumerate(self.adapters.values()):
                    # PEFT has no use_safetensors: it opens a pickle where this file is not there (any more).
                    if not (Path(adapter.folder) / "adapter_model.safetensors").is_file():
                        raise CandidateError(f"adapter {adapter.location}: there is no adapter_model.safetensors")
                    try:
                        if number:
                            self.model.load_adapter(adapter.folder, f"adapter_{number}")
                        else:
                            wrap = require("peft", extra="models").PeftModel.from_pretrained
                            self.model = wrap(self.model, adapter.folder, adapter_name="adapter_0")
                    except (RuntimeError, ValueError, TypeError, KeyError) as error:
                        # PEFT and torch name the tensors that do not fit, over many lines.
                        why = f"it cannot be put on {self.files.location}: {' '.join(str(error).split())[:300]}"
                        raise CandidateError(f"adapter {adapter.location}: {why}") from error
                self.model.eval()
                self._check_logits()
        except CandidateError:
            self.model = None
            raise
        log.info("%s on %s: %s", self.files.location, self.device, self.precision["reason"])

    def _load_base(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        from bnbench.models import inference

        dtype = getattr(torch, self.precision["dtype"])
        options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": self.options.trust_remote_code}
        if is_packed := self.precision["quantisation"] == "nf4":
            require("bitsandbytes", extra="models")
            require("accelerate", extra="models")
            how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
            options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **how)
            options["device_map"] = {"": self.device}
        model = AutoModelForCausalLM.from_pretrained(self.files.folder, use_safetensors=True, **options)
        if getattr(model, "_is_stateful", False):
            why = f"{type(model).__name__} keeps a state instead of a cache; not supported"
            raise CandidateError(f"{self.files.label}: {why}")
        # The configuration may promise more rows than the weights have.
        self._asked.check_vocabulary(self.files.label, model.get_input_embeddings().weight.shape[0])
        if self.device.startswith("cuda"):
            # cuDNN's attention makes a plan for every new length, and each token is one: 0.1 s a token.
            torch.backends.cuda.enable_cudnn_sdp(False)
            if model.config._attn_implementation == "sdpa":
                model.set_attn_implementation(inference.ATTENTION)
        return make_portable(model if is_packed else model.to(self.device))

    def _check_logits(self) -> None:
        """On one short prompt: finite logits, adapters that change them, a loss in chunks that is the model's own."""
        import torch

        from bnbench.models import inference

        ids = torch.tensor([self._asked.prompt(PROBE).ids], device=self.device)
        plain: Any = None
        for candidate in (Candidate("", "base", self.files.location), *self.adapters.values()):
            with torch.inference_mode(), self._active(candidate) as lm:
                logits = lm(input_ids=ids).logits
                if plain is None:
                    self._whole_logits = not inference.matches(lm, ids, logits)
            name, dtype, why = candidate.name or candidate.location, self.precision["dtype"], ""
            if not bool(logits.isfinite().all()):
                why = f"has logits in {dtype} that are not finite: its weights are damaged or too large"
            elif plain is not None and torch.equal(plain, logits):
                why = (
                    f"({candidate.location}) does not change the logits of {self.files.location}: it is untrained (all "
                    "its B matrices are zero), or the names of its layers are not the base's"
                )
            if why:
                raise CandidateError(f"{candidate.kind} {name} {why}")
            plain = logits if plain is None else plain
        if self._whole_logits:
            log.warning("%s: its head is not a known one, so likelihoods take more memory", self.files.location)

    @contextmanager
    def _active(self, candidate: Candidate) -> Iterator[Any]:
        """The causal language model itself; the candidate's adapter, and it alone, is on while the block runs."""
        if self.model is None:
            self.load()
        lm = self.model.get_base_model() if self.adapters else self.model
        if candidate.name in self.adapters:
            self.model.set_adapter(f"adapter_{list(self.adapters).index(candidate.name)}")
        is_off = self.adapters and candidate.name not in self.adapters
        with self.model.disable_adapter() if is_off else nullcontext():
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

    def generate(
        self, candidate: Candidate, prompts: Sequence[Prompt], items: Sequence[str], decoding: Decoding
    ) -> list[Reply]:
        """One reply a prompt. Where memory runs out the batch is halved, and the log says so."""
        from bnbench.models import inference

        asked, pad = self._asked, self.pad
        limited, stop = asked.limited(decoding), asked.stop_ids
        with self._active(candidate) as lm:

            def draw(part: slice) -> list[inference.Drawn]:
                ids = [prompt.ids for prompt in prompts[part]]
                return inference.generate(lm, ids, items[part], limited, stop=stop, pad=pad, is_done=asked.is_done)

            drawn = halving(draw, slice(0, len(prompts)))
        return [Reply(asked.decode(d.ids, cut=not d.finished), len(d.ids), not d.finished) for d in drawn]

    def likelihood(self, candidate: Candidate, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[float]:
        """As `Backend.likelihood`; in passes of a few rows. Where memory runs out they are halved."""
        from bnbench.models.inference import negative_log_likelihoods, passes

        with self._active(candidate) as lm:

            def score(part: slice) -> list[float]:
                whole = self._whole_logits
                return negative_log_likelihoods(lm, rows[part], starts[part], pad=self.pad, whole_logits=whole)

            return [n for part in passes(list(map(len, rows))) for n in halving(score, part)]

    def peak_memory_bytes(self) -> int | None:
        """Most memory that torch reserved on the GPU, or most that the process held on the CPU."""
        import torch

        if self.device.startswith("cuda"):
            return int(torch.cuda.max_memory_reserved(self.device))
        try:
            import resource
        except ImportError:  # Windows
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def halving(work: Callable[[slice], list[T]], rows: slice) -> list[T]:
    """Results of `work` over the rows: all at once, or halved as often as memory runs out; one row must fit.

    Not accelerate's `find_executable_batch_size`, which begins anew after each failure and hides the last error.
    """
    import torch

    done: list[T] = []
    size = rows.stop - rows.start
    while (start := rows.start + len(done)) < rows.stop:
        part = slice(start, min(start + size, rows.stop))
        try:
            done += work(part)
            continue
        except RuntimeError as error:
            is_memory = isinstance(error, torch.OutOfMemoryError) or CPU_OUT_OF_MEMORY in str(error)
            if size == 1 or not is_memory:
                raise
        # Outside the handler, where the traceback no longer holds the tensors of the failed attempt.
        size = math.ceil(size / 2)
        log.warning("out of memory: going on with batches of %d", size)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return done
