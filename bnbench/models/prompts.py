"""Prompts: from an example to token ids, the same ones in training and evaluation, with exactly one BOS.

Three kinds, chosen by what the tokenizer has: the original Llama-3.1 format written out here (the stock template would
add today's date), else the model's own chat template, else plain Bengali. The template is rendered once with markers in
place of the texts; special tokens come from the template alone, so a corpus that spells `<|eot_id|>` cannot end a turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bnbench.data.corpus import Example
from bnbench.errors import PromptError
from bnbench.extras import require

SYSTEM = "আপনি একজন সহানুভূতিশীল বাংলা কথোপকথন সহকারী। বিষয়: {topic}"
MAX_PIECE = 24  # characters of a token that an inspection shows

Kind = Literal["llama-3.1", "chat", "plain"]

# Private-use characters: no template writes or trims them.
_SYSTEM, _USER, _ANSWER = "\ue000system\ue001", "\ue000user\ue001", "\ue000answer\ue001"
_SLOTS = re.compile(f"({_SYSTEM}|{_USER})")
_LLAMA_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA = (
    f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{_SYSTEM}<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{_USER}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
_PLAIN = f"{_SYSTEM}\n\nপ্রশ্ন: {_USER}\n\nউত্তর:\n"
# What a base model writes when it goes on past its answer in the plain format.
_PLAIN_STOPS = ("\nপ্রশ্ন:", "\nউত্তর:")
_END_TOKENS = (
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|endoftext|>",
)
_PAD_TOKENS = (
    "<|finetune_right_pad_id|>",
    "<|vision_pad|>",
    "<|fim_pad|>",
    "<|reserved_special_token_0|>",
    "<unused0>",
    "<unk>",
)
# A template that asks for the date would give other prompts tomorrow, and a run could not be resumed.
_FIXED_DATE = "26 Jul 2024"
_NO_CLOCK = f"{{% macro strftime_now(format) %}}{_FIXED_DATE}{{% endmacro %}}"
# The same text with its nukta composed or apart.
_TOPIC_PART = re.compile("\\s*বিষ(?:\u09af\u09bc|\u09df):\\s*\\{topic\\}")


@dataclass(frozen=True)
class Prompt:
    """A prompt as text, special tokens spelt out, and as token ids (BOS first where the tokenizer has one)."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TrainingRow:
    """Prompt, answer and end-of-turn as ids; `supervised` is True on the answer and its end token alone."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]


@dataclass(frozen=True)
class InspectedToken:
    """One token of an inspection: a piece of text, or of a character's bytes as the vocabulary spells them."""

    id: int
    piece: str
    special: bool
    supervised: bool


@dataclass(frozen=True)
class Inspection:
    """Everything that `bnbench inspect-prompt` prints about one example; `str()` is that text."""

    kind: Kind
    text: str
    tokens: tuple[InspectedToken, ...]
    prompt_tokens: int
    bos: int
    stop_ids: tuple[int, ...]
    template_sha: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        supervised = sum(t.supervised for t in self.tokens)
        head = (
            f"{self.text}\n\nformat {self.kind} · template {self.template_sha[:12]}"
            f" · {self.prompt_tokens} prompt tokens + {supervised} supervised = {len(self.tokens)} · {self.bos} BOS"
            f" · stops on {', '.join(map(str, self.stop_ids))}\n"
        )
        rows = [f"{'+' if t.supervised else ' '}{'*' if t.special else ' '}{t.id:>8}  {t.piece}" for t in self.tokens]
        return "\n".join([head, "(+ supervised in training, * special token)", *rows])


@dataclass(frozen=True)
class PromptFormat:
    """How one tokenizer's prompts are written. Make it with `PromptFormat.of`.

    `template` has markers for system and user text; `end` and `end_id` are the token that ends a turn; `stop_ids` are
    all ids that end a reply; `stop_texts` end it as text (plain format only).
    """

    kind: Kind
    template: str
    end: str
    end_id: int
    system: str
    stop_ids: tuple[int, ...]
    stop_texts: tuple[str, ...]
    bos_id: int | None
    tokenizer: Any = field(repr=False, compare=False)

    @classmethod
    def of(cls, tokenizer: Any, generation_config: Any = None, system: str = SYSTEM) -> PromptFormat:
        """The format that fits a transformers tokenizer.

        Args:
            tokenizer: any `PreTrainedTokenizerBase`.
            generation_config: the model's; its end ids are stop ids too.
            system: the system prompt; `{topic}` is replaced; without a topic the part `বিষয়: {topic}` is left out.

        Raises:
            PromptError: two BOS in the template, no end token, or a template that does not take the user's text.
        """
        kind, template, tail = _template(tokenizer)
        bos = tokenizer.bos_token_id
        if bos is not None and _adds_bos(tokenizer) and not template.startswith(tokenizer.bos_token):
            template = tokenizer.bos_token + template
        end_id = _end_id(tokenizer, tail)
        stops = tuple(sorted({*stop_ids(tokenizer, generation_config), end_id}))
        begins = bos is not None and template.startswith(tokenizer.bos_token)
        end = str(tokenizer.convert_ids_to_tokens(end_id))
        stop_texts = _PLAIN_STOPS if kind == "plain" else ()
        made = cls(kind, template, end, end_id, system, stops, stop_texts, bos if begins else None, tokenizer)
        made.prompt(Example("", "বিষয়", "", "প্রশ্ন", ""))
        return made

    @classmethod
    def load(cls, folder: Path, *, system: str = SYSTEM, trust_remote_code: bool = False) -> PromptFormat:
        """The format of the model in a folder, from its tokenizer and generation configuration; reads no weights.

        Raises:
            MissingExtraError: transformers is not installed.
            PromptError: see `of`; or the tokenizer's files are broken.
        """
        transformers = require("transformers", extra="models")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PromptError(
                f"{folder}: the tokenizer cannot be read ({' '.join(str(error).split())[:200]})"
            ) from error
        generation = None
        if (folder / "generation_config.json").is_file():
            generation = transformers.GenerationConfig.from_pretrained(folder)
        return cls.of(tokenizer, generation, system)

    @property
    def template_sha(self) -> str:
        """Sha256 of everything but the tokenizer that decides what a prompt looks like."""
        parts = [self.kind, self.template, self.end, self.system, *self.stop_texts]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()

    @cached_property
    def tokenizer_sha(self) -> str:
        """Sha256 of the tokenizer: vocabulary, merges, normaliser and special tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            text = json.dumps(sorted(self.tokenizer.get_vocab().items()), ensure_ascii=False)
        else:
            whole = str(backend.to_str())
            # Before the added tokens stand only truncation and padding, which change from call to call.
            text = whole[whole.index('"added_tokens"') :]
        return hashlib.sha256(text.encode()).hexdigest()

    def prompt(self, example: Example) -> Prompt:
        """The prompt up to where the reply begins; raises PromptError where it would not have exactly one BOS."""
        fill = {_SYSTEM: _system_text(self.system, example.topic), _USER: _user_text(example)}
        text = _SLOTS.sub(lambda m: fill[m[0]], self.template)
        named = self._special_names.search("\n".join(fill.values()))
        ids = self._encode_apart(fill) if named else _encode(self.tokenizer, text)
        check_bos(ids, self.bos_id, self.tokenizer)
        return Prompt(text, tuple(ids))

    def answer(self, text: str) -> tuple[int, ...]:
        """The ids of a reply and of the token that ends it; never empty."""
        return (*_encode(self.tokenizer, text.strip(), special=False), self.end_id)

    def training(self, example: Example) -> TrainingRow:
        """The example as a training row: exactly the ids of `prompt`, then the answer with its end token, never cut.

        Raises:
            PromptError: an empty reference, which would teach the model to say nothing.
        """
        if not example.reference.strip():
            raise PromptError(f"example {example.id}: the reference is empty, nothing to train on; remove the row")
        prompt, answer = self.prompt(example).ids, self.answer(example.reference)
        return TrainingRow(prompt + answer, (False,) * len(prompt) + (True,) * len(answer))

    def count_tokens(self, examples: Sequence[Example]) -> list[int]:
        """The length of each example's training row in tokens (prompt, answer and end)."""
        return [len(self.prompt(e).ids) + len(self.answer(e.reference)) for e in examples]

    def decode(self, ids: Sequence[int]) -> str:
        """A reply's text: without special tokens, cut at the first stop text, stripped."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        cuts = [at for stop in self.stop_texts if (at := text.find(stop)) >= 0]
        return text[: min(cuts)].strip() if cuts else text.strip()

    def describe(self) -> dict[str, str]:
        """The `prompt` part of run.json."""
        return {
            "kind": self.kind,
            "template_sha": self.template_sha,
            "tokenizer_sha": self.tokenizer_sha,
            "system": self.system,
        }

    def inspection(self, example: Example) -> Inspection:
        """What an example becomes, token by token; without a reference only the prompt is shown."""
        prompt = self.prompt(example)
        answer = self.answer(example.reference) if example.reference.strip() else ()
        text = prompt.text + (example.reference.strip() + self.end if answer else "")
        tokens = tuple(self._inspected(i, at >= len(prompt.ids)) for at, i in enumerate(prompt.ids + answer))
        bos = sum(t.id == self.tokenizer.bos_token_id for t in tokens)
        return Inspection(self.kind, text, tokens, len(prompt.ids), bos, self.stop_ids, self.template_sha)

    def _inspected(self, token_id: int, supervised: bool) -> InspectedToken:
        raw = str(self.tokenizer.convert_ids_to_tokens(token_id))
        text = str(self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        piece = raw if "\ufffd" in text else text
        special = self._special_names.fullmatch(raw) is not None
        return InspectedToken(token_id, repr(piece[:MAX_PIECE])[1:-1], special, supervised)

    def _encode_apart(self, fill: dict[str, str]) -> list[int]:
        """Ids where a text names a special token: the template's own become special, the text's stay characters."""
        ids: list[int] = []
        for at, part in enumerate(self._special_names.split(self.template)):
            if at % 2:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(part)))
            else:
                ids += _encode(self.tokenizer, _SLOTS.sub(lambda m: fill[m[0]], part), special=False)
        return ids

    @cached_property
    def _special_names(self) -> re.Pattern[str]:
        return _special_pattern(self.tokenizer)


def template_of(kind: str) -> str:
    """The template of a kind that is written out here, with {system} and {user}; empty for a model's own."""
    written = {"llama-3.1": _LLAMA, "plain": _PLAIN}.get(kind, "")
    return written.replace(_SYSTEM, "{system}").replace(_USER, "{user}")


def stop_ids(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """Every id that ends a reply, sorted: the `generation_config`'s, the tokenizer's, known end-of-turn tokens."""
    given = getattr(generation_config, "eos_token_id", None)
    ids = set(given if isinstance(given, (list, tuple)) else [given])
    ids.add(tokenizer.eos_token_id)
    ids |= {_id_of(tokenizer, token) for token in _END_TOKENS}
    return tuple(sorted(int(i) for i in ids if i is not None))


def pad_id(tokenizer: Any, vocab_size: int, stop: Sequence[int]) -> int:
    """An id to pad with: inside the embedding and never an end id.

    In this order: `<|finetune_right_pad_id|>`, the tokenizer's own pad, a reserved or unknown token, an id that the
    embedding has and the tokenizer lacks, an ordinary token. Raises PromptError where every id ends a reply.
    """
    first, *others = [_id_of(tokenizer, token) for token in _PAD_TOKENS]
    spare = vocab_size - 1 if len(tokenizer) < vocab_size else None
    barred = {*stop, tokenizer.bos_token_id, tokenizer.eos_token_id}
    for candidate in (first, tokenizer.pad_token_id, *others, spare):
        if candidate is not None and 0 <= candidate < vocab_size and candidate not in barred:
            return int(candidate)
    # Nothing reserved (as in GPT-2): an ordinary token does, because every batch of ours carries its mask.
    ordinary = next((i for i in range(vocab_size) if i not in barred), None)
    if ordinary is None:
        raise PromptError(f"the tokenizer has {vocab_size} ids and all of them end a reply: there is none to pad with")
    return ordinary


def check_bos(ids: Sequence[int], bos_id: int | None, tokenizer: Any) -> None:
    """Proves that `ids` begin with the only `bos_id` among them (None: a tokenizer that puts none), or PromptError."""
    if bos_id is None:
        return
    count = sum(i == bos_id for i in ids)
    # Where one token begins texts and ends turns, later ones are ends of turns.
    shared = bos_id == tokenizer.eos_token_id
    if not ids or ids[0] != bos_id or (bos_id in ids[1:2] if shared else count != 1):
        raise PromptError(
            f"the prompt has {count} BOS tokens ({tokenizer.bos_token!r}, id {bos_id}) where exactly one, at its start,"
            " is right: mend chat_template in the model's tokenizer_config.json or chat_template.jinja"
        )


def _template(tokenizer: Any) -> tuple[Kind, str, str]:
    """Kind, template with markers, and what the template writes after an answer."""
    if all(_id_of(tokenizer, token) is not None for token in _LLAMA_HEADERS):
        return "llama-3.1", _LLAMA, "<|eot_id|>"
    if not getattr(tokenizer, "chat_template", None):
        return "plain", _PLAIN, ""
    system, user = {"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}
    folded = [{"role": "user", "content": f"{_SYSTEM}\n\n{_USER}"}]
    text, error = "", "it leaves out the user's text"
    messages = folded
    for messages in ([system, user], folded):
        try:
            text = _render(tokenizer, messages, True)
        except Exception as raised:
            # A template is a program: it may raise anything, and mostly does to say that it knows no system role.
            text, error = "", str(raised)
        if text.count(_SYSTEM) == 1 and text.count(_USER) == 1:
            return "chat", text, _tail(tokenizer, messages)
    raise PromptError(f"the model's chat template cannot be used: {error}")


def _tail(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        whole = _render(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}], False)
    except Exception:  # as above: then the tokenizer's own end token ends the turn
        return ""
    return whole.partition(_ANSWER)[2]


def _render(tokenizer: Any, messages: list[dict[str, str]], prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            messages,
            chat_template=_NO_CLOCK + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=prompt,
            date_string=_FIXED_DATE,
            enable_thinking=False,  # the reply is what is measured, not the thoughts before it
        )
    )


def _end_id(tokenizer: Any, tail: str) -> int:
    """The first special token that follows an answer, else the tokenizer's end token."""
    found = _special_pattern(tokenizer).search(tail)
    end = _id_of(tokenizer, found[0]) if found else None
    if end is None:
        end = tokenizer.eos_token_id
    if end is None:
        raise PromptError("the tokenizer names no end token: set eos_token in tokenizer_config.json")
    return int(end)


def _system_text(system: str, topic: str) -> str:
    topic = topic.strip()
    return (system if topic else _TOPIC_PART.sub("", system)).replace("{topic}", topic).strip()


def _user_text(example: Example) -> str:
    return "\n\n".join(part for part in (example.title.strip(), example.question.strip()) if part)


def _encode(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Ids of a text; `special=False` reads the names of special tokens as plain characters."""
    if not text:
        return []
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"])


def _adds_bos(tokenizer: Any) -> bool:
    return list(tokenizer("ক")["input_ids"])[:1] == [tokenizer.bos_token_id]


def _id_of(tokenizer: Any, token: str) -> int | None:
    # An unknown token gives the unknown id or None, by tokenizer; asking back tells them apart.
    found = tokenizer.convert_tokens_to_ids(token)
    return int(found) if found is not None and tokenizer.convert_ids_to_tokens(found) == token else None


def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the name of any special token; its one group makes `split` give texts and names in turn."""
    added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    names = sorted((t for t in added | set(tokenizer.all_special_tokens) if t), key=lambda t: (-len(t), t))
    return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
