"""What a model is given for one row: the prompt as text and ids, and which tokens training supervises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bnbench.candidates import parse_candidates
from bnbench.corpus import demo_corpus, load_corpus
from bnbench.errors import CorpusError
from bnbench.extras import require
from bnbench.prompts import Inspection, PromptFormat


def inspect_prompt(
    base: str | None,
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    row: int = 0,
    *,
    trust_remote_code: bool = False,
) -> Inspection:
    """Renders row `row` of a corpus's split for a base's tokenizer; without `base` and `data`, of the demo.

    Raises:
        CandidateError, CorpusError, PromptError: what is wrong with the base, the data or the template.
    """
    folder = Path(parse_candidates(base, trust_remote_code=trust_remote_code)[0].folder)
    transformers = require("transformers", extra="models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    generation = None
    if (folder / "generation_config.json").is_file():
        generation = transformers.GenerationConfig.from_pretrained(folder)
    corpus = load_corpus(data, columns=columns) if data else demo_corpus()
    examples = corpus.select(split)
    if row >= len(examples):
        raise CorpusError(f"{corpus.source}: row {row} of {split} does not exist; there are {len(examples)}, from 0")
    return PromptFormat.of(tokenizer, generation).inspection(examples[row])
