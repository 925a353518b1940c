"""What a model is given for one row: the prompt as text and ids, and which tokens training supervises."""

from __future__ import annotations

from collections.abc import Mapping

from bnbench.data.corpus import demo_corpus, load_corpus
from bnbench.errors import CorpusError
from bnbench.models.candidates import demo_base, find_base, parse_spec
from bnbench.models.prompts import Inspection, PromptFormat


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
    files = find_base(parse_spec(base or demo_base()), trust_remote_code=trust_remote_code)
    prompts = PromptFormat.load(files.folder, trust_remote_code=trust_remote_code)
    corpus = load_corpus(data, columns=columns) if data else demo_corpus()
    examples = corpus.select(split)
    if row >= len(examples):
        raise CorpusError(f"{corpus.source}: row {row} of {split} does not exist; there are {len(examples)}, from 0")
    return prompts.inspection(examples[row])
