"""What answers a prompt. A backend is a class, as `hf` and `vllm` are; others join as plug-ins.

With `echo = "my_package:Echo"` among a package's entry points "bnbench.backends", `bnbench evaluate --backend echo
--base any-name` runs the class, in which only `generate` must be written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bnbench.data.corpus import Corpus, Example
from bnbench.errors import UsageError
from bnbench.metrics.core import FloatArray
from bnbench.metrics.normalization import normalize
from bnbench.metrics.registry import Registry
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import SYSTEM, Prompt, Prompter

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
    """What a backend may be told.

    `name` is the one it was asked for by; `device` None is the first GPU, else the CPU; `quantise` None takes 4-bit
    weights where the GPU is too small; `trust_remote_code` lets code run that comes with a model; `system` and
    `template`, as `Prompter.of` takes them, are by the candidate's name, or for all of them by "". `tokenizer` is the
    folder or hub id of what makes the prompts, where the backend has no files of a model.
    """

    name: str = "hf"
    device: str | None = None
    quantise: bool | None = None
    trust_remote_code: bool = False
    tokenizer: str | None = None
    system: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, str] = field(default_factory=dict)

    def format_of(self, candidate: str) -> tuple[str, str]:
        """The system text and the template for a candidate: what was given for its name, else for all, else ours."""
        system, template = (given.get(candidate, given.get("")) for given in (self.system, self.template))
        return "" if system == "none" else SYSTEM if system is None else system, template or "auto"


class Backend(ABC):
    """What answers for some candidates of a run, all of them together.

    Making one checks what can be checked and reads no weights: a run with nothing left to generate loads no model.
    """

    needs_files: ClassVar[bool] = False
    """True: `--base` and `--adapter` are folders or hub ids, found and checked here; False: names only it knows."""

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        self.candidates, self.options = tuple(candidates), options
        self.context: int | None = None  # most tokens of a row, where that is known
        self._prompters = {c.name: Prompter("messages", options.format_of(c.name)[0]) for c in candidates}
        # For run.json: in what was computed, and why.
        reason = f"chosen by the backend {options.name}"
        self.precision = {"dtype": "none", "quantisation": "none", "reason": reason}

    def prompter(self, candidate: Candidate) -> Prompter:
        """How a candidate is asked. Without a tokenizer a prompt is its texts (`system`, `user`), and has no ids."""
        return self._prompters[candidate.name]

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """All that a reply depends on beside its prompt and decoding, as plain JSON: names, revisions, hashes."""
        return {
            "backend": self.options.name,
            "model": candidate.location,
            "revision": candidate.revision,
            "base": candidate.base or "",
            "template_sha": self.prompter(candidate).template_sha,
        }

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:  # noqa: B027 - a default
        """Tells all items of the run, and the corpus that they are from, before the first reply."""

    def load(self) -> None:  # noqa: B027 - a default
        """Reads weights, or opens a connection. Called once, before the first `generate`."""

    @abstractmethod
    def generate(
        self, candidate: Candidate, prompts: Sequence[Prompt], items: Sequence[str], decoding: Decoding
    ) -> list[Reply]:
        """One reply a prompt, as one batch; `items` are the example ids that the sampling noise belongs to."""

    def likelihood(
        self, candidate: Candidate, rows: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Sequence[float] | None:
        """The sum of -log p (nats) over each row's token ids from its start (at least 1) on, given all before them.

        Not written where it cannot be known; None where that shows only now, such as with a server.
        """
        return None

    def gives_likelihoods(self, candidate: Candidate) -> bool:
        """Whether `likelihood` will give numbers, as far as that is known now."""
        return type(self).likelihood is not Backend.likelihood and self.prompter(candidate).tokenizer is not None

    def score(self, candidate: Candidate, prompts: Sequence[Prompt], references: Sequence[str]) -> FloatArray | None:
        """(n, 4): nll, tokens, bytes, characters of each reference given its prompt; None as for `likelihood`.

        The nll (nats) and `tokens` are of the reference as training saw it, with its end token: to stop in the right
        place is part of a reply. Bytes (UTF-8) and characters (code points) are of the bn1-normalised reference
        without any end, the same for all candidates and all spellings.
        """
        prompter = self.prompter(candidate)
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
        return [min(64, len(lengths) - start) for start in range(0, len(lengths), 64)]

    def peak_memory_bytes(self) -> int | None:
        """Peak memory of the accelerator (or of the process, on the CPU); None where it is not this machine's."""
        return None


def get_backend(name: str) -> type[Backend]:
    """The class of a backend; UsageError for an unknown name, or a plug-in that does not load or is no `Backend`."""
    found = BACKENDS.get(name)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise UsageError(f"the backend {name!r} is {found!r}, not a subclass of bnbench.models.Backend")
    return found
