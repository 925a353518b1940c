"""What the backends share that run models on this machine: files opened, checked and told apart, before any weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from bnbench.errors import CandidateError, require
from bnbench.models.backend import Backend, BackendOptions
from bnbench.models.candidates import Candidate
from bnbench.models.hub import TOKENIZERS, ModelFiles, file_sha256
from bnbench.models.loading import load_config, trained_tokens
from bnbench.models.precision import Device, choose_precision
from bnbench.models.prompts import TEMPLATE_FILE, TOKENIZER_CONFIG, Prompter
from bnbench.records import TRAINING


class LocalModels(Backend):
    """A base and its adapters: their files, the base's configuration `text`, how they are asked, and the arithmetic."""

    needs_files: ClassVar[bool] = True

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        super().__init__(candidates, options)
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
            files, rows = self.adapter_files.get(c.name), self.text.vocab_size
            for shape in files.shapes().values() if files else ():
                if len(shape) == 2 and shape[1] == getattr(self.text, "hidden_size", 0):
                    rows = max(rows, shape[0])
            rows = max(rows, 1 + max(trained_tokens(files) if files else (), default=-1))
            telling = {
                *TOKENIZERS,
                TEMPLATE_FILE,
                TOKENIZER_CONFIG,
                TRAINING,
            }  # how it was trained says how it is asked
            own = files.folder if files and files.names() & telling else None
            system, template = options.format_of(c.name)
            if (key := (own, system, template)) not in made:
                how: dict[str, Any] = {
                    "adapter": own,
                    "system": system,
                    "template": template,
                    "trust_remote_code": trust,
                }
                made[key] = Prompter.load(self.files, **how)
            made[key].check_vocabulary(files.label if files else self.files.label, rows)
            self._prompters[c.name] = made[key]
        self._asked = self._prompters[first.name]

        device = Device.of(options.device or "auto")
        self.device = device.type if options.device in (None, "auto") else str(options.device)
        self.memory = device.memory if self.device.startswith("cuda") else None
        self.n_parameters = sum(math.prod(shape) for shape in self.files.shapes().values())
        self.n_cards = self.count_cards()
        together = replace(device, memory=device.memory and device.memory * self.n_cards)
        chosen = choose_precision(together, self.n_parameters, False if stored else options.quantise)
        reason = f"{chosen.reason}; the weights are stored quantised" if stored else chosen.reason
        self.precision = {"dtype": chosen.dtype_name, "quantisation": chosen.quantisation, "reason": reason}

    def count_cards(self) -> int:
        """How many cards share the weights."""
        return 1

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """Content rather than place: a folder that was moved is the same candidate."""
        adapter, prompter = candidate if candidate.kind == "adapter" else None, self.prompter(candidate)
        return {
            "base": self.files.location if self.files.commit else "",
            "base_revision": self.files.commit,
            "base_sha256": self._base_sha256,
            "adapter": adapter.location if adapter and adapter.revision else "",
            "adapter_revision": adapter.revision if adapter else "",
            "adapter_sha256": adapter.weights_sha256 if adapter else "",
            "adapter_config_sha256": file_sha256(Path(adapter.folder) / "adapter_config.json") if adapter else "",
            "dtype": self.precision["dtype"],
            "quantisation": self.precision["quantisation"],
            "template_sha": prompter.template_sha,
            "tokenizer_sha": prompter.tokenizer_sha,
            "stop_ids": list(prompter.stop_ids),
        }

    def check_answer(self, candidate: Candidate, *, is_finite: bool, is_base_s: bool) -> None:
        """Raises CandidateError for logits that are no numbers, and for an adapter whose logits are the base's."""
        why = ""
        if not is_finite:
            why = f"has logits in {self.precision['dtype']} that are not finite: its weights are damaged or too large"
        elif is_base_s:
            why = (
                f"({candidate.location}) does not change the logits of {self.files.location}: it is untrained (all its "
                "B matrices are zero), or the names of its layers are not the base's"
            )
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
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
