"""Prompts: from an example to token ids, the same ones in training and evaluation, with exactly one BOS.

The model's own chat template, or plain Bengali where it has none. A template with Llama-3.1's headers is written as it
was before it named today's date. Templates are rendered once, with markers in place of the texts; special tokens come
from them alone, so a corpus that spells `<|eot_id|>` cannot end a turn.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from bnbench.data.corpus import Conversation, Example
from bnbench.errors import CandidateError, PromptError, RunError, require
from bnbench.metrics.exceptions import read_small
from bnbench.models.decoding import SENTENCES, Decoding
from bnbench.models.hub import TOKENIZERS, ModelFiles
from bnbench.models.loading import bounded, explained
from bnbench.records import read_training

SYSTEM = "আপনি একজন সহানুভূতিশীল বাংলা কথোপকথন সহকারী। বিষয়: {topic}"
PROBE = Example("probe", "মানসিক স্বাস্থ্য", "ঘুম আসে না", "আমার মন খারাপ, কিছুতেই ঘুম আসে না। কী করব?", "আপনার কষ্টটা বুঝতে পারছি।")
"""A short conversation by which models and templates are tried."""

# Private-use characters: no template writes or trims them.
_SYSTEM, _USER, _ANSWER = "\ue000system\ue001", "\ue000user\ue001", "\ue000answer\ue001"
_SLOTS = re.compile(f"({_SYSTEM}|{_USER})")
_LLAMA_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA_SYSTEM = f"{_LLAMA_HEADER.format('system')}{_SYSTEM}<|eot_id|>"
_LLAMA_TURNS = f"{_LLAMA_HEADER.format('user')}{_USER}<|eot_id|>{_LLAMA_HEADER.format('assistant')}"
_LLAMA = f"<|begin_of_text|>{_LLAMA_SYSTEM}{_LLAMA_TURNS}"
_PLAIN_TURN = f"প্রশ্ন: {_USER}\n\nউত্তর:\n"
_PLAIN = f"{_SYSTEM}\n\n{_PLAIN_TURN}"
TEMPLATES = ("auto", "llama-3.1", "chat", "plain")
"""What a format may be called, beside a file with a chat template in Jinja."""
_END_TOKENS = (
    "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|endoftext|>",
)  # fmt: skip
_PAD_TOKENS = (
    "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|fim_pad|>", "<|reserved_special_token_0|>", "<unused0>", "<unk>",
)  # fmt: skip
# A template that asks for the date would give other prompts tomorrow, and a run could not be resumed.
_FIXED_DATE = "26 Jul 2024"
TEMPLATE_FILE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
_NO_CLOCK = f"{{% macro strftime_now(format) %}}{_FIXED_DATE}{{% endmacro %}}"
_MOST_GROWTH = 1_000
# The same text with its nukta composed or apart.
_TOPIC_PART = re.compile("\\s*বিষ(?:\u09af\u09bc|\u09df):\\s*\\{topic\\}")


@dataclass(frozen=True)
class Prompt:
    """A prompt as text, special tokens spelt out, and as token ids (BOS first where the tokenizer has one). `system`
    and `user` are the texts that it is made of, for servers that write the rest themselves.
    """

    text: str
    ids: tuple[int, ...]
    system: str = ""
    user: str = ""


@dataclass(frozen=True)
class Prompter:
    """How one candidate is asked: its tokenizer, template and system text. Made by `of` or `load`.

    `kind` is "llama-3.1", "chat" or "plain"; `template` has markers for system and user text; `end` and `end_id` are
    the token that ends a turn; `next_turn` stands between that token and the next reply, and is empty where the
    template writes earlier turns otherwise than the last; `stop_ids` are all ids that end a reply; `stop_texts` end it
    as text (plain format); `special_names` finds the name of any special token. With `in_turns` a `Conversation` is
    written turn by turn, as an adapter was trained by the recipe key supervise = "all"; else what was said is one text.

    `Prompter(kind, system)` has no tokenizer, for servers that write prompts themselves and for recorded replies: its
    prompts are texts without ids, and it counts no tokens.
    """

    kind: str
    system: str = ""
    template: str = ""
    end: str = ""
    end_id: int = -1
    next_turn: str = ""
    stop_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    bos_id: int | None = None
    tokenizer: Any = field(default=None, repr=False, compare=False)
    in_turns: bool = False
    special_names: re.Pattern[str] = field(default=re.compile("(?!)"), repr=False, compare=False)

    @classmethod
    def of(cls, tokenizer: Any, generation_config: Any = None, system: str = SYSTEM, template: str = "auto") -> Self:
        """The one that fits a transformers tokenizer; the generation configuration's end ids are stop ids too.

        In `system`, `{topic}` is replaced; without a topic the part `বিষয়: {topic}` is left out; an empty one is no
        turn. `template` is one of TEMPLATES, or a file. Raises PromptError for two BOS in the template, no
        end token, or a template that does not take the user's text.
        """
        kind, template, tail, between = _template(tokenizer, template, bool(system))
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and list(tokenizer("ক")["input_ids"])[:1] == [bos]
        if adds_bos and not template.startswith(tokenizer.bos_token):
            template = tokenizer.bos_token + template
        added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        names = sorted((t for t in added | set(tokenizer.all_special_tokens) if t), key=lambda t: (-len(t), t))
        # The one group makes `split` give texts and names in turn.
        special_names = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        # The end of a turn is the first special token that the template writes after an answer.
        named = special_names.search(tail)
        end_id = _id_of(tokenizer, named[0]) if named else None
        end_id = tokenizer.eos_token_id if end_id is None else end_id
        if end_id is None:
            raise PromptError("the tokenizer names no end token: set eos_token in tokenizer_config.json")
        given = getattr(generation_config, "eos_token_id", None)
        ends = {*(given if isinstance(given, list | tuple) else [given]), tokenizer.eos_token_id, end_id}
        ends |= {_id_of(tokenizer, token) for token in _END_TOKENS}
        end = str(tokenizer.convert_ids_to_tokens(end_id))
        made = cls(
            kind, system, template, end=end, end_id=int(end_id),
            next_turn=between.removeprefix(end) if kind == "plain" or between.startswith(end) else "",
            stop_ids=tuple(sorted(int(i) for i in ends if i is not None)),
            # What a base model writes when it goes on past its answer in the plain format.
            stop_texts=("\nপ্রশ্ন:", "\nউত্তর:") if kind == "plain" else (),
            bos_id=bos if bos is not None and template.startswith(tokenizer.bos_token) else None,
            tokenizer=tokenizer, special_names=special_names,
        )  # fmt: skip
        made.prompt(Example("", "বিষয়", "", "প্রশ্ন", ""))  # a template with two BOS is refused now
        return made

    @classmethod
    def load(
        cls, files: ModelFiles, *, adapter: Path | None = None, system: str = SYSTEM, template: str = "auto",
        trust_remote_code: bool = False,
    ) -> Self:  # fmt: skip
        """The one of a model, or of an adapter on it, whose folder may bring a tokenizer or a chat template of its own.
        Raises PromptError as `of` does, and CandidateError where tokenizer or generation configuration are broken.
        """
        transformers, folder = require("transformers", extra="models"), files.folder
        own = adapter if adapter and any((adapter / name).is_file() for name in TOKENIZERS) else folder
        with explained(files.label, f"the tokenizer in {own} cannot be read"):
            # A normaliser that doubles a text forty times ends the process, as the library finds no memory for it.
            file = own / "tokenizer.json"
            parts, times = [json.loads(file.read_bytes()).get("normalizer")] if file.is_file() else [], 1
            while parts:
                part = parts.pop()
                parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
                if isinstance(part, dict) and part.get("type") == "Replace":
                    times *= max(1, len(part["content"]))
            if times > _MOST_GROWTH:
                raise ValueError(f"its normaliser can make a text over {_MOST_GROWTH:,} times as long")
            tokenizer = transformers.AutoTokenizer.from_pretrained(own, trust_remote_code=trust_remote_code)
        if adapter:
            with explained(f"adapter {adapter}", "its chat template cannot be read"):
                if (adapter / TEMPLATE_FILE).is_file():
                    tokenizer.chat_template = (adapter / TEMPLATE_FILE).read_text(encoding="utf-8")
                elif own == folder and (adapter / TOKENIZER_CONFIG).is_file():  # without a tokenizer
                    config = json.loads((adapter / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
                    tokenizer.chat_template = config.get("chat_template") or tokenizer.chat_template
        generation = None
        if (folder / "generation_config.json").is_file():
            with explained(files.label, f"{folder / 'generation_config.json'} cannot be read"):
                generation = transformers.GenerationConfig.from_pretrained(folder)
        made = cls.of(tokenizer, generation, system, template)
        with suppress(RunError):  # said where the record is read for itself
            if adapter and (trained := read_training(adapter)) and trained.recipe.get("supervise") == "all":
                return replace(made, in_turns=True)
        return made

    @property
    def template_sha(self) -> str:
        """Sha256 of everything but the tokenizer that decides what a prompt looks like; empty where nothing does."""
        if not (self.template or self.system):
            return ""
        parts = [self.kind, self.template, self.end, self.system, *self.stop_texts, *([self.in_turns] * self.in_turns)]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()

    @cached_property
    def tokenizer_sha(self) -> str:
        """Sha256 of the tokenizer: vocabulary, merges, normaliser and special tokens; empty without one."""
        if self.tokenizer is None:
            return ""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            text = json.dumps(sorted(self.tokenizer.get_vocab().items()), ensure_ascii=False)
        else:
            whole = str(backend.to_str())
            # Before the added tokens stand only truncation and padding, which change from call to call.
            text = whole[whole.index('"added_tokens"') :]
        return hashlib.sha256(text.encode()).hexdigest()

    def prompt(self, example: Example, *, goes_on: bool = False) -> Prompt:
        """The prompt up to where the reply begins; raises PromptError where it would not have exactly one BOS. With
        `goes_on` the conversation does: it is the part between a reply's end token and the next reply.
        """
        topic = example.topic.strip()
        system = self.system.replace("{topic}", topic).strip() if topic else without_topic(self.system)
        user = "\n\n".join(part for part in (example.title.strip(), example.question.strip()) if part)
        if self.tokenizer is None:
            return Prompt(user, (), system, user)
        if self.in_turns and isinstance(example, Conversation) and not goes_on:
            ids = sum(self.training(example, "all")[:-1], ())
            return Prompt(str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)), ids, system, user)
        template, fill = self.next_turn if goes_on else self.template, {_SYSTEM: system, _USER: user}
        text = _SLOTS.sub(lambda m: fill[m[0]], template)
        if not self.special_names.search(f"{system}\n{user}"):
            written = self._encode(text)
        else:
            # A text names a special token: the template's own become special, the text's stay characters.
            written = []
            for at, part in enumerate(self.special_names.split(template)):
                if at % 2:
                    written.append(int(self.tokenizer.convert_tokens_to_ids(part)))
                else:
                    written += self._encode(_SLOTS.sub(lambda m: fill[m[0]], part), special=False)
        if self.bos_id is not None and not goes_on:
            count = written.count(self.bos_id)
            # Where one token begins texts and ends turns, later ones are ends of turns.
            is_shared = self.bos_id == self.tokenizer.eos_token_id
            if written[:1] != [self.bos_id] or (written[1:2] == [self.bos_id] if is_shared else count != 1):
                what = f"the prompt has {count} BOS tokens ({self.tokenizer.bos_token!r}, id {self.bos_id})"
                how = "mend chat_template in the model's tokenizer_config.json or chat_template.jinja"
                raise PromptError(f"{what} where exactly one, at its start, is right: {how}")
        return Prompt(text, tuple(written), system, user)

    def _encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; `special=False` reads the names of special tokens as plain characters."""
        made = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special) if text else {}
        return list(made.get("input_ids", ()))

    def answer(self, text: str) -> tuple[int, ...]:
        """The ids of a reply and of the token that ends it; never empty."""
        return (*self._encode(text.strip(), special=False), self.end_id)

    def training(self, example: Example, supervise: str = "last") -> tuple[tuple[int, ...], ...]:
        """The ids of a training row in parts: those of `prompt`, those of `answer`, which are supervised; never cut.

        With "all" a `Conversation` is written turn by turn, and each answer in it is supervised: every second part.
        Raises PromptError for an empty reference, and where the template writes no conversation turn by turn.
        """
        if not example.reference.strip():  # it would teach the model to say nothing
            raise PromptError(f"example {example.id}: the reference is empty, nothing to train on; remove the row")
        if not isinstance(example, Conversation) or (supervise == "last" and not self.in_turns):
            return self.prompt(example).ids, self.answer(example.reference)
        if not self.next_turn:
            what = f"example {example.id} has several turns, and the chat template writes earlier turns otherwise"
            why = "so not every answer can be trained on as it is given"
            raise PromptError(f'{what} than the last one, {why}: set supervise = "last"')
        first, *others = example.turns
        parts = [self.prompt(Example(example.id, example.topic, example.title, first, "")).ids]
        for said, asked in zip(others[::2], others[1::2], strict=True):
            parts += [self.answer(said), self.prompt(replace(example, title="", question=asked), goes_on=True).ids]
        return (*parts, self.answer(example.reference))

    def count_tokens(self, examples: Sequence[Example]) -> list[int]:
        """The length of each example's training row in tokens (prompt, answer and end)."""
        return [len(self.prompt(e).ids) + len(self.answer(e.reference)) for e in examples]

    def limited(self, decoding: Decoding, references: Sequence[str] = ()) -> Decoding:
        """The decoding with its limit in tokens, by the fertility of this tokenizer; without one it stays in words.

        The fertility, at least 1, is tokens per word of the references, else of `SENTENCES`, punctuation included.
        """
        if self.tokenizer is None or decoding.max_new_tokens is not None:
            return decoding
        texts = [text for text in references if text.split()] or SENTENCES
        per_word = sum(len(self.answer(text)) - 1 for text in texts) / sum(len(text.split()) for text in texts)
        return replace(decoding, max_new_tokens=math.ceil(decoding.max_words * max(1.0, per_word)))

    def is_done(self, ids: list[int]) -> bool:
        """Whether a stop text has been said, near the end of a reply's ids so far."""
        tail = self.tokenizer.decode(ids[-16:])
        return any(stop in tail for stop in self.stop_texts)

    def decode(self, ids: Sequence[int], *, cut: bool = False) -> str:
        """A reply's text: without special tokens, cut at the first stop text, stripped; `cut`: the limit ended it."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        text = text[: min((at for stop in self.stop_texts if (at := text.find(stop)) >= 0), default=None)].strip()
        # The limit may split a character whose bytes are several tokens. What is left of it is ours, not the model's.
        return text.rstrip("\ufffd").rstrip() if cut else text

    def describe(self) -> dict[str, str]:
        """The `prompt` part of run.json."""
        return {name: getattr(self, name) for name in ("kind", "template_sha", "tokenizer_sha", "system")}

    def show(self, example: Example, supervise: str = "last") -> str:
        """What an example becomes, token by token; without a reference only the prompt is shown."""
        tokenizer = self.tokenizer
        parts = self.training(example, supervise) if example.reference.strip() else (self.prompt(example).ids,)
        ids, rows = sum(parts, ()), []
        answered = [at % 2 for at, part in enumerate(parts) for _ in part]
        for token, is_supervised in zip(ids, answered, strict=True):
            raw = str(tokenizer.convert_ids_to_tokens(token))
            text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
            # Part of a character is no text: it is shown as the vocabulary spells it.
            piece = repr((raw if "\ufffd" in text else text)[:24])[1:-1]
            marks = ("+" if is_supervised else " ") + ("*" if self.special_names.fullmatch(raw) else " ")
            rows.append(f"{marks}{token:>8}  {piece}")
        whole = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if len(parts) < 3:  # a tokenizer may decode to another spelling than it was given
            whole = self.prompt(example).text + (example.reference.strip() + self.end if len(parts) > 1 else "")
        head = (
            f"{whole}\n\nformat {self.kind} · template {self.template_sha[:12]}"
            f" · {len(rows) - sum(answered)} prompt tokens + {sum(answered)} supervised = {len(rows)}"
            f" · {ids.count(tokenizer.bos_token_id)} BOS"
            f" · stops on {', '.join(map(str, self.stop_ids))}\n"
        )
        return "\n".join([head, "(+ supervised in training, * special token)", *rows])

    def check_vocabulary(self, label: str, rows: int) -> None:
        """Every token that can occur has one of a model's embedding `rows`; CandidateError with the numbers otherwise.
        Special tokens beyond the embedding are let pass where no prompt uses them (Gemma 3 has one for images).
        """
        tokenizer = self.tokenizer
        if len(tokenizer) <= rows:
            return
        used = {*self.prompt(PROBE).ids, self.end_id}
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if beyond := {i: t for t, i in tokenizer.get_vocab().items() if i >= rows and (i in used or i not in special)}:
            i, name = min(beyond.items())
            what = f"the tokenizer has {len(tokenizer)} ids but the model embeds {rows}: {name!r} ({i}) is beyond"
            how = "use the tokenizer that belongs to the model (embeddings are never resized here)"
            raise CandidateError(f"{label}: {what}; {how}")


def without_topic(system: str) -> str:
    """The system text of a message that has no topic: without the part `বিষয়: {topic}`."""
    return _TOPIC_PART.sub("", system).replace("{topic}", "").strip()


def template_of(kind: str) -> str:
    """The template of a kind that is written out here, with {system} and {user}; empty for a model's own."""
    return {"llama-3.1": _LLAMA, "plain": _PLAIN}.get(kind, "").replace(_SYSTEM, "{system}").replace(_USER, "{user}")


def pad_id(tokenizer: Any, vocab_size: int, stop: Sequence[int]) -> int:
    """An id to pad with: inside the embedding and never an end id; PromptError where every id ends a reply."""
    first, *others = [_id_of(tokenizer, token) for token in _PAD_TOKENS]
    spare = vocab_size - 1 if len(tokenizer) < vocab_size else None  # the embedding has it, the tokenizer has not
    barred = {*stop, tokenizer.bos_token_id, tokenizer.eos_token_id}
    # Nothing reserved (as in GPT-2): an ordinary token does, because every batch of ours carries its mask.
    ordinary = next((i for i in range(vocab_size) if i not in barred), None)
    for candidate in (first, tokenizer.pad_token_id, *others, spare, ordinary):
        if candidate is not None and 0 <= candidate < vocab_size and candidate not in barred:
            return int(candidate)
    raise PromptError(f"the tokenizer has {vocab_size} ids and all of them end a reply: there is none to pad with")


def _template(tokenizer: Any, wanted: str, has_system: bool) -> tuple[str, str, str, str]:
    """Kind, template with markers, what the template writes after an answer, and from there to the next answer."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several, by name
        if "default" not in own and wanted in ("auto", "chat"):
            raise PromptError(f"the tokenizer has several chat templates ({', '.join(own)}), and none is the default")
        own = own.get("default")
    if wanted not in TEMPLATES:
        try:
            wanted, own = "chat", read_small(wanted).decode()
        except (OSError, ValueError) as error:
            why = f"it is none of {', '.join(TEMPLATES)}, and no file that can be read ({error})"
            raise PromptError(f"template {wanted}: {why}") from None
    has_headers = all(_id_of(tokenizer, token) is not None for token in _LLAMA_HEADERS)
    if wanted == "llama-3.1" and not has_headers:
        raise PromptError(f"template llama-3.1: the tokenizer lacks its tokens ({', '.join(_LLAMA_HEADERS)})")
    if wanted == "chat" and not own:
        raise PromptError("template chat: the tokenizer has no chat template; name a file with one")
    whole_llama = _LLAMA if has_system else _LLAMA.replace(_LLAMA_SYSTEM, "")
    llama = "llama-3.1", whole_llama, "<|eot_id|>", f"<|eot_id|>{_LLAMA_TURNS}"
    if wanted == "llama-3.1" or (wanted == "auto" and has_headers and not own):
        return llama
    if wanted == "plain" or not own:
        return "plain", _PLAIN if has_system else _PLAIN_TURN, "", f"\n\n{_PLAIN_TURN}"

    def render(messages: list[dict[str, str]], prompt: bool) -> str:
        asked = {"tokenize": False, "add_generation_prompt": prompt, "date_string": _FIXED_DATE}
        asked["enable_thinking"] = False  # the reply is what is measured, not the thoughts before it
        with bounded("the tokenizer", "its chat template"):
            return str(tokenizer.apply_chat_template(messages, chat_template=_NO_CLOCK + own, **asked))

    user = {"role": "user", "content": _USER}
    folded = {"role": "user", "content": f"{_SYSTEM}\n\n{_USER}"}  # for a template that knows no system role
    why = "it leaves out the user's text"
    for messages in ([{"role": "system", "content": _SYSTEM}, user], [folded]) if has_system else ([user],):
        # A template is a program: it may raise anything, and mostly does to say that it knows no system role.
        try:
            text = render(messages, True)
        except Exception as error:
            why = str(error)
            continue
        if text.count(_SYSTEM) != has_system or text.count(_USER) != 1:
            continue
        answered = [*messages, {"role": "assistant", "content": _ANSWER}]
        whole = going_on = ""
        with suppress(Exception):  # else the tokenizer's own end token ends the turn
            whole = render(answered, False)
        with suppress(Exception):
            going_on = render([*answered, user], True)
        before, _, tail = whole.partition(_ANSWER)
        if wanted == "auto" and has_headers and text.endswith(_LLAMA_TURNS):
            return llama
        # A template that knows no generation prompt ends after the user's turn: the answer shows how its own begins.
        begun = before if tail and before.startswith(text) else text
        earlier, _, between = going_on.partition(_ANSWER)
        between += begun.removeprefix(text)  # so in later turns too
        return "chat", begun, tail, between if earlier == begun and between.count(_USER) == 1 else ""
    raise PromptError(f"the model's chat template cannot be used ({why}); name another with --template")


def _id_of(tokenizer: Any, token: str) -> int | None:
    # An unknown token gives the unknown id or None, by tokenizer; asking back tells them apart.
    found = tokenizer.convert_tokens_to_ids(token)
    return int(found) if found is not None and tokenizer.convert_ids_to_tokens(found) == token else None
