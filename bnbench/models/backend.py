"""What answers a prompt. A backend is a class, as `hf` and `vllm` are; others join as plug-ins.

With `echo = "my_package:Echo"` among a package's entry points "bnbench.backends", `bnbench evaluate --backend echo
--base any-name` runs the class, in which only `generate` must be written.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bnbench.data.corpus import Corpus, Example, load_corpus
from bnbench.errors import CandidateError, CorpusError, UsageError, require
from bnbench.metrics.core import FloatArray
from bnbench.metrics.normalization import normalize
from bnbench.metrics.registry import Registry
from bnbench.models.candidates import DEMO_BASE, Candidate, by_name, parse_spec
from bnbench.models.decoding import Decoding
from bnbench.models.hub import TOKENIZERS, ModelFiles, file_sha256, find_model, locate
from bnbench.models.loading import Device, choose_precision, load_config, trained_tokens
from bnbench.models.prompts import SYSTEM, TEMPLATE_FILE, TOKENIZER_CONFIG, Prompt, Prompter
from bnbench.records import TRAINING

Prompts = Sequence[Prompt]
Rows = Sequence[Sequence[int]]  # of token ids
# Imported only when used: torch takes seconds.
BACKENDS = Registry(
    "bnbench.backends",
    "backend",
    {
        "hf": "bnbench.models.hf:TransformersBackend",  # a line each: CONTRIBUTING.md adds one
        "recorded": "bnbench.models.recorded:RecordedReplies",
        "vllm": "bnbench.models.vllm:VllmBackend",
        "endpoint": "bnbench.models.endpoint:EndpointBackend",
    },
)


@dataclass(frozen=True)
class Reply:
    """One reply. `tokens` counts what was generated, `hit_limit` is True when no end token came; None: not known.
    `refused` is True where what answers said that it will not: `text` is then what it said instead.
    """

    text: str
    tokens: int | None = None
    hit_limit: bool | None = None
    refused: bool = False


@dataclass(frozen=True)
class BackendOptions:
    """What a backend may be told: the `name` it was asked for by; `device` None is the first GPU, else the CPU;
    `quantise` None takes 4-bit weights where the GPU is too small; `trust_remote_code` lets code run that comes with a
    model; `system` and `template`, as `Prompter.of` takes them, are by the candidate's name, or for all of them by "".
    `tokenizer` is the folder or hub id of what makes the prompts, where the backend has no files of a model. `columns`
    are the user's names of the data's columns and of `reply`, by which a file of replies may have them, too. `began` is
    each candidate's `identity` in the run that is gone on with, where it is one.
    """

    name: str = "hf"
    device: str | None = None
    quantise: bool | None = None
    trust_remote_code: bool = False
    tokenizer: str | None = None
    system: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    began: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def format_of(self, candidate: str) -> tuple[str, str]:
        """The system text and the template for a candidate: what was given for its name, else for all, else ours."""
        system, template = (given.get(candidate, given.get("")) for given in (self.system, self.template))
        return "" if system == "none" else SYSTEM if system is None else system, template or "auto"


class Backend(ABC):
    """What answers for some candidates of a run, all of them together. Making one checks what can be checked and reads
    no weights: a run with nothing left to generate loads no model.
    """

    needs_files: ClassVar[bool] = False
    """True: `--base` and `--adapter` are folders or hub ids, found and checked here; False: names only it knows."""

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        self.candidates, self.options = tuple(candidates), options
        self.context: int | None = None  # most tokens of a row, where that is known
        self.at_once = 64  # prompts in a batch, where `batch_sizes` says nothing else
        # How each is asked. Without a tokenizer a prompt is its texts (`system`, `user`), and has no ids.
        self.prompters = {c.name: Prompter("messages", options.format_of(c.name)[0]) for c in candidates}
        # For run.json: in what was computed, and why.
        self.precision = {"dtype": "none", "quantisation": "none", "reason": f"chosen by the backend {options.name}"}

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """All that a reply depends on beside its prompt and decoding, as plain JSON: names, revisions, hashes."""
        return {
            "backend": self.options.name, "model": candidate.location, "revision": candidate.revision,
            "base": candidate.base or "", "template_sha": self.prompters[candidate.name].template_sha,
        }  # fmt: skip

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:  # noqa: B027 - a default
        """Tells all items of the run, and the corpus that they are from, before the first reply."""

    def load(self) -> None:  # noqa: B027 - a default
        """Reads weights, or opens a connection. Called once, before the first `generate`."""

    @abstractmethod
    def generate(self, candidate: Candidate, prompts: Prompts, items: Sequence[str], decoding: Decoding) -> list[Reply]:
        """One reply a prompt, as one batch; `items` are the example ids that the sampling noise belongs to."""

    def likelihood(self, candidate: Candidate, rows: Rows, starts: Sequence[int]) -> Sequence[float] | None:
        """The sum of -log p (nats) over each row's token ids from its start (at least 1) on, given all before them. Not
        written where it cannot be known; None where that shows only now, such as with a server.
        """
        return None

    def gives_likelihoods(self, candidate: Candidate) -> bool:
        """Whether `likelihood` will give numbers, as far as that is known now."""
        return type(self).likelihood is not Backend.likelihood and self.prompters[candidate.name].tokenizer is not None

    def score(self, candidate: Candidate, prompts: Prompts, references: Sequence[str]) -> FloatArray | None:
        """(n, 4): nll, tokens, bytes, characters of each reference given its prompt; None as for `likelihood`.

        The nll (nats) and `tokens` are of the reference as training saw it, with its end token: to stop in the right
        place is part of a reply. Bytes (UTF-8) and characters (code points) are of the bn1-normalised reference
        without any end, the same for all candidates and all spellings.
        """
        prompter = self.prompters[candidate.name]
        if not self.gives_likelihoods(candidate):
            return None
        answers = [prompter.answer(reference) for reference in references]
        rows = [(*p.ids, *a) for p, a in zip(prompts, answers, strict=True)]
        nll = self.likelihood(candidate, rows, [len(p.ids) for p in prompts])
        if nll is None:
            return None
        texts = [normalize(reference) for reference in references]
        table = [[n, len(a), len(t.encode()), len(t)] for n, a, t in zip(nll, answers, texts, strict=True)]
        return np.array(table, dtype=np.float64).reshape(-1, 4)

    def batch_sizes(self, lengths: Sequence[int], new_tokens: int) -> list[int]:
        """How many prompts to hand to `generate` at a time, by their `lengths` in tokens; replies have `new_tokens`.
        Replies are saved a batch at a time: what a killed run had begun is made again.
        """
        most = self.at_once
        return [min(most, len(lengths) - start) for start in range(0, len(lengths), most)]

    def peak_memory_bytes(self) -> int | None:
        """Peak memory of the accelerator (or of the process, on the CPU); None where it is not this machine's."""
        return None


class LocalModels(Backend):
    """What the backends share that run models on this machine: files opened, checked and told apart before any weights,
    the base's configuration `text`, how it and its adapters are asked, and the arithmetic.
    """

    needs_files: ClassVar[bool] = True
    n_cards: int = 1  # that share the weights

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        super().__init__(candidates, options)
        self.computed_by: Mapping[str, Any] = {}  # the part of `identity` that says which code, in which version
        self.adapters = {c.name: c for c in candidates if c.kind == "adapter"}
        require("torch", extra="models")
        first, trust = candidates[0], options.trust_remote_code
        location, commit = first.base or first.location, first.base_revision or first.revision
        self.files = ModelFiles(f"base {location}", location, commit, Path(first.base_folder or first.folder))
        self._base_sha256 = f"{self.files.weights_sha256()}:{file_sha256(self.files.folder / 'config.json')}"
        config = load_config(self.files, trust_remote_code=trust)
        self.text = config.get_text_config()
        self.context = getattr(self.text, "max_position_embeddings", None)
        stored = self.stored_quantisation = dict(getattr(config, "quantization_config", None) or {})
        self.adapter_files = {
            name: ModelFiles(f"adapter {c.location}", c.location, c.revision, Path(c.folder))
            for name, c in self.adapters.items()
        }
        # An adapter may have been trained with a tokenizer or a template of its own, and with tokens that it adds.
        made = dict[Any, Prompter]()
        for c in candidates:
            files, width = self.adapter_files.get(c.name), getattr(self.text, "hidden_size", 0)
            shapes, tokens = (files.shapes().values(), trained_tokens(files)) if files else ((), ())
            tables = [shape[0] for shape in shapes if shape[1:] == (width,)]
            rows = max([self.text.vocab_size, *tables, *(token + 1 for token in tokens)])
            telling = {*TOKENIZERS, TEMPLATE_FILE, TOKENIZER_CONFIG, TRAINING}  # the last says how it was asked
            own = files.folder if files and files.names() & telling else None
            system, template = options.format_of(c.name)
            if (key := (own, system, template)) not in made:
                how: dict[str, Any] = {"system": system, "template": template, "trust_remote_code": trust}
                made[key] = Prompter.load(self.files, adapter=own, **how)
            made[key].check_vocabulary(files.label if files else self.files.label, rows)
            self.prompters[c.name] = made[key]
        self._asked = self.prompters[first.name]

        device = Device.of(options.device or "auto")
        self.device = device.type if options.device in (None, "auto") else str(options.device)
        self.memory = device.memory if self.device.startswith("cuda") else None
        self.n_parameters = sum(math.prod(shape) for shape in self.files.shapes().values())
        together = replace(device, memory=device.memory and device.memory * self.n_cards)
        chosen = choose_precision(together, self.n_parameters, False if stored else options.quantise)
        reason = f"{chosen.reason}; the weights are stored quantised" if stored else chosen.reason
        self.precision = {"dtype": chosen.dtype_name, "quantisation": chosen.quantisation, "reason": reason}

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """Content rather than place: a folder that was moved is the same candidate."""
        adapter, prompter = candidate if candidate.kind == "adapter" else None, self.prompters[candidate.name]
        return {
            **self.computed_by,
            "base": self.files.location if self.files.commit else "", "base_revision": self.files.commit,
            "base_sha256": self._base_sha256, "adapter": adapter.location if adapter and adapter.revision else "",
            "adapter_revision": adapter.revision if adapter else "",
            "adapter_sha256": adapter.weights_sha256 if adapter else "",
            "adapter_config_sha256": file_sha256(Path(adapter.folder) / "adapter_config.json") if adapter else "",
            "dtype": self.precision["dtype"], "quantisation": self.precision["quantisation"],
            "template_sha": prompter.template_sha, "tokenizer_sha": prompter.tokenizer_sha,
            "stop_ids": list(prompter.stop_ids),
        }  # fmt: skip

    def check_answer(self, candidate: Candidate, *, is_finite: bool, is_base_s: bool) -> None:
        """Raises CandidateError for logits that are no numbers, and for an adapter whose logits are the base's."""
        why = ""
        if not is_finite:
            why = f"has logits in {self.precision['dtype']} that are not finite: its weights are damaged or too large"
        elif is_base_s:
            why = f"({candidate.location}) does not change the logits of {self.files.location}: it is untrained "
            why += "(all its B matrices are zero), or the names of its layers are not the base's"
        if why:
            raise CandidateError(f"{candidate.kind} {candidate.name or candidate.location} {why}")

    def peak_memory_bytes(self) -> int | None:
        """Most memory that torch reserved on the GPU, or most that the process held on the CPU."""
        import torch

        if self.device.startswith("cuda"):
            return int(torch.cuda.max_memory_reserved(self.device))
        try:
            import resource
        except ImportError:  # Windows
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def inspect_prompts(
    base: str | None, adapters: Sequence[str] = (), data: str | None = None,
    columns: Mapping[str, str] | None = None, split: str = "test", row: int = 0, *, systems: Sequence[str] = (),
    templates: Sequence[str] = (), trust_remote_code: bool = False,
) -> tuple[dict[str, Prompter], Example]:  # fmt: skip
    """How a base and adapters on it are asked, by name, and row `row` of a corpus's split; without these, the demo's.

    `systems` and `templates` are [NAME=]TEXT as for `evaluate`. Raises CandidateError, CorpusError or PromptError, for
    what is wrong with a model, the data or a template.
    """
    specs = [parse_spec(text) for text in adapters]
    own = [locate(f"adapter {spec.given}", spec.location, spec.revision) for spec in specs]
    if base is None and own:
        base = str(own[0].read_json("adapter_config.json").get("base_model_name_or_path"))
    spec = parse_spec(base or DEMO_BASE)
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    files = find_model(f"base {spec.given}", spec.location, spec.revision, weights=False, **trust)
    every, made = [spec, *specs], dict[str, Prompter]()
    options = BackendOptions(system=by_name(systems, every), template=by_name(templates, every))
    for one, adapter in zip(every, (None, *(found.folder for found in own)), strict=True):
        system, template = options.format_of(one.name)
        made[one.name] = Prompter.load(files, adapter=adapter, system=system, template=template, **trust)
    corpus = load_corpus(data, columns=columns)
    examples = corpus.select(split)
    if row >= len(examples):
        side = f"the split {split}" if corpus.is_split and split != "all" else "the whole file"
        raise CorpusError(f"{corpus.source}: there is no row {row} in {side}: its {len(examples)} are counted from 0")
    return made, examples[row]


def get_backend(name: str) -> type[Backend]:
    """The class of a backend; UsageError for an unknown name, or a plug-in that does not load or is no `Backend`."""
    found = BACKENDS.get(name)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise UsageError(f"the backend {name!r} is {found!r}, not a subclass of bnbench.models.Backend")
    return found
