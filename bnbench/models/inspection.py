"""What a model is given for one row: the prompt as text and ids, and which tokens training supervises."""

from __future__ import annotations

from collections.abc import Mapping

from bnbench.data.corpus import Example, demo_corpus, load_corpus
from bnbench.errors import CorpusError
from bnbench.models.candidates import DEMO_BASE, parse_spec
from bnbench.models.hub import find_model
from bnbench.models.prompts import Prompter

MAX_PIECE = 24  # characters of a token that are shown


def show(prompter: Prompter, example: Example) -> str:
    """What an example becomes, token by token; without a reference only the prompt is shown."""
    tokenizer, prompt = prompter.tokenizer, prompter.prompt(example)
    answer = prompter.answer(example.reference) if example.reference.strip() else ()
    rows = []
    for at, token in enumerate(prompt.ids + answer):
        raw = str(tokenizer.convert_ids_to_tokens(token))
        text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        # Part of a character is no text: it is shown as the vocabulary spells it.
        piece = repr((raw if "\ufffd" in text else text)[:MAX_PIECE])[1:-1]
        marks = ("+" if at >= len(prompt.ids) else " ") + ("*" if prompter.special_names.fullmatch(raw) else " ")
        rows.append(f"{marks}{token:>8}  {piece}")
    said = example.reference.strip() + prompter.end if answer else ""
    bos = (prompt.ids + answer).count(tokenizer.bos_token_id)
    head = (
        f"{prompt.text}{said}\n\nformat {prompter.kind} · template {prompter.template_sha[:12]}"
        f" · {len(prompt.ids)} prompt tokens + {len(answer)} supervised = {len(rows)} · {bos} BOS"
        f" · stops on {', '.join(map(str, prompter.stop_ids))}\n"
    )
    return "\n".join([head, "(+ supervised in training, * special token)", *rows])


def inspect_prompt(
    base: str | None,
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    row: int = 0,
    *,
    trust_remote_code: bool = False,
) -> str:
    """Shows row `row` of a corpus's split for a base's tokenizer; without `base` and `data`, of the demo.

    Raises:
        CandidateError, CorpusError, PromptError: what is wrong with the base, the data or the template.
    """
    spec = parse_spec(base or DEMO_BASE)
    files = find_model(f"base {spec.given}", spec.location, spec.revision, trust_remote_code=trust_remote_code)
    prompter = Prompter.load(files, trust_remote_code=trust_remote_code)
    corpus = load_corpus(data, columns=columns) if data else demo_corpus()
    examples = corpus.select(split)
    if row >= len(examples):
        raise CorpusError(f"{corpus.source}: row {row} of {split} does not exist; there are {len(examples)}, from 0")
    return show(prompter, examples[row])
