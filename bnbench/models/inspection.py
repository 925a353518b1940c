"""What a model is given for one row: the prompt as text and ids, and which tokens training supervises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bnbench.data.corpus import Example, demo_corpus, load_corpus
from bnbench.errors import CorpusError
from bnbench.models.candidates import DEMO_BASE, parse_spec
from bnbench.models.hub import find_model
from bnbench.models.prompts import Prompter

MAX_PIECE = 24  # characters of a token that are shown


@dataclass(frozen=True)
class InspectedToken:
    """One token: a piece of text, or of a character's bytes as the vocabulary spells them."""

    id: int
    piece: str
    special: bool
    supervised: bool


@dataclass(frozen=True)
class Inspection:
    """Everything that `bnbench inspect-prompt` prints about one example; `str()` is that text."""

    kind: str
    text: str
    tokens: tuple[InspectedToken, ...]
    prompt_tokens: int
    bos: int
    stop_ids: tuple[int, ...]
    template_sha: str

    @classmethod
    def of(cls, prompter: Prompter, example: Example) -> Inspection:
        """What an example becomes, token by token; without a reference only the prompt is shown."""
        tokenizer, prompt = prompter.tokenizer, prompter.prompt(example)
        answer = prompter.answer(example.reference) if example.reference.strip() else ()
        tokens = []
        for at, token in enumerate(prompt.ids + answer):
            raw = str(tokenizer.convert_ids_to_tokens(token))
            text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
            # Part of a character is no text: it is shown as the vocabulary spells it.
            piece = repr((raw if "\ufffd" in text else text)[:MAX_PIECE])[1:-1]
            special = prompter.special_names.fullmatch(raw) is not None
            tokens.append(InspectedToken(token, piece, special, at >= len(prompt.ids)))
        return cls(
            prompter.kind,
            prompt.text + (example.reference.strip() + prompter.end if answer else ""),
            tuple(tokens),
            len(prompt.ids),
            sum(t.id == tokenizer.bos_token_id for t in tokens),
            prompter.stop_ids,
            prompter.template_sha,
        )

    def __str__(self) -> str:
        supervised = sum(t.supervised for t in self.tokens)
        head = (
            f"{self.text}\n\nformat {self.kind} · template {self.template_sha[:12]}"
            f" · {self.prompt_tokens} prompt tokens + {supervised} supervised = {len(self.tokens)} · {self.bos} BOS"
            f" · stops on {', '.join(map(str, self.stop_ids))}\n"
        )
        rows = [f"{'+' if t.supervised else ' '}{'*' if t.special else ' '}{t.id:>8}  {t.piece}" for t in self.tokens]
        return "\n".join([head, "(+ supervised in training, * special token)", *rows])


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
    spec = parse_spec(base or DEMO_BASE)
    files = find_model(f"base {spec.given}", spec.location, spec.revision, trust_remote_code=trust_remote_code)
    prompter = Prompter.load(files, trust_remote_code=trust_remote_code)
    corpus = load_corpus(data, columns=columns) if data else demo_corpus()
    examples = corpus.select(split)
    if row >= len(examples):
        raise CorpusError(f"{corpus.source}: row {row} of {split} does not exist; there are {len(examples)}, from 0")
    return Inspection.of(prompter, examples[row])
