"""What an evaluation is asked to do, and all that is known before its first reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bnbench.data.corpus import Corpus, Example, SplitSizes
from bnbench.models import Session
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompt
from bnbench.records import Journal

PRIMARY = "chrF++"


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, on what, and how. `out` is the run folder; `command` what a user types to go on.

    `combine` has the weights of a combined score by metric, summing to 1 (`parse_weights`); empty: there is none.
    """

    candidates: tuple[Candidate, ...]
    out: Path
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    sizes: SplitSizes = SplitSizes()  # noqa: RUF009 - frozen
    split: str = "test"
    limit: int | None = None
    decoding: Decoding = Decoding()  # noqa: RUF009 - frozen
    batch_size: int = 8
    max_tokens: int = 4096
    quantise: bool | None = None
    device: str | None = None
    trust_remote_code: bool = False
    primary: str = PRIMARY
    combine: Mapping[str, float] = field(default_factory=dict)
    overwrite: bool = False
    command: str = "bnbench evaluate"
    quiet: bool = False


@dataclass(frozen=True)
class Work:
    """An evaluation that is ready to start: everything is known but the replies."""

    request: EvaluationRequest
    session: Session
    corpus: Corpus
    examples: tuple[Example, ...]
    prompts: tuple[Prompt, ...]
    decoding: Decoding

    @property
    def journal(self) -> Journal:
        """The file that the replies go to."""
        return Journal(self.request.out / "generations.jsonl")
