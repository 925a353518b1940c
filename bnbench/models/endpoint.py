"""Models behind OpenAI-compatible servers: vLLM, SGLang, TGI, llama.cpp, `transformers serve`, or a service.

With a tokenizer, and where the server takes token ids, prompts are the same as with every other backend. Otherwise the
server writes them, with its own template. Which it is, and what a server does not take, is found out once by requests
for one token, and is part of the run's identity; where a server runs is not, so that it may move between two sessions.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnbench.errors import EndpointError, UsageError
from bnbench.models.backend import Backend, BackendOptions, Prompts, Reply, Rows
from bnbench.models.candidates import Candidate, parse_spec
from bnbench.models.client import MOST_AT_ONCE, AgainError, Client
from bnbench.models.decoding import SENTENCES, Decoding, item_key
from bnbench.models.hub import locate
from bnbench.models.prompts import PROBE, Prompt, Prompter

VERSION = 1  # raised when the same arguments would give other replies or likelihoods
TOKENS_PER_WORD = 7.0  # where a server does not say how long a prompt is: Llama-3.1's tokenizer spends 6.8
COMPLETIONS, CHAT = "completions", "chat/completions"
_NOT_KNOWN = {200, 400, 404, 405, 422, 500, 501}  # answers to a request that a server does not know (200: in words)
_LLAMA_CPP = ("llamacpp", "me")  # who owns the models of its own server, and of llama-cpp-python's
_OPTIONAL = {"return_token_ids", "chat_template_kwargs", "min_p"}  # without which the replies are as usual

log = logging.getLogger("bnbench.models")


@dataclass(frozen=True)
class Served:
    """How one model is asked. `path` is COMPLETIONS for token ids, else CHAT; `unsupported` are parameters that the
    server does not take; `likelihoods` by "prompt_logprobs", "echo" or not at all (""); `folds`: no system role;
    `owner`: whose server it is by its list of models.
    """

    client: Client
    prompter: Prompter
    path: str
    unsupported: tuple[str, ...]
    tokens_per_word: float
    likelihoods: str = ""
    folds: bool = False
    owner: str = ""

    def body(self, prompt: Prompt, decoding: Decoding, item: str) -> dict[str, Any]:
        """A request for one reply. What is left out would be the server's choice, so everything is said that it takes:
        servers read defaults from the model's generation_config.json.
        """
        limit = decoding.max_new_tokens or math.ceil(decoding.max_words * self.tokens_per_word)
        body: dict[str, Any] = {"max_tokens": limit, "temperature": 0.0 if decoding.greedy else decoding.temperature}
        extras: dict[str, Any] = {
            "top_p": 1.0 if decoding.greedy else decoding.top_p,
            "top_k": -1 if decoding.greedy else decoding.top_k or -1,
            "min_p": 0.0, "repetition_penalty": decoding.repetition_penalty,
        }  # fmt: skip
        if self.owner in _LLAMA_CPP:  # which ignore in silence what they do not know, and penalise 64 tokens alone
            extras |= {"repeat_penalty": extras.pop("repetition_penalty"), "repeat_last_n": 2**17}
            extras["top_k"] = max(0, extras["top_k"])
        if not decoding.greedy:
            extras["seed"] = item_key(decoding.seed, item)[0] >> 1
        if self.path == COMPLETIONS:
            body["prompt"] = list(prompt.ids)
            extras |= {"stop_token_ids": list(self.prompter.stop_ids), "return_token_ids": True}
            extras |= {"stop": list(self.prompter.stop_texts)} if self.prompter.stop_texts else {}
        else:
            texts = [text for text in (prompt.system, prompt.user) if text]
            texts = ["\n\n".join(texts)] if self.folds else texts
            roles = ["system", "user"][-len(texts) :]
            body["messages"] = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
            extras["chat_template_kwargs"] = {"enable_thinking": False}  # as in our own prompts
        return body | {name: value for name, value in extras.items() if name not in self.unsupported}

    def choice(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Its first choice. Raises EndpointError without one or, so that it is asked again, where it was broken off."""
        choices = answer.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise EndpointError(f"{self.client.model}: an answer without choices: {self.client.words(str(answer))}")
        if choices[0].get("finish_reason") in ("error", "abort"):  # OpenRouter of what failed behind it; vLLM, SGLang
            said = self.client.words(str(choices[0].get("error") or choices[0]))
            raise AgainError(f"{self.client.model}: its server broke an answer off: {said}")
        return choices[0]

    def reply(self, answer: Mapping[str, Any]) -> Reply:
        """What was said: by its token ids where they are given, so that it reads as every other backend's."""
        choice = self.choice(answer)
        message, finish = choice.get("message") or {}, choice.get("finish_reason")
        text = message.get("content") or choice.get("text") or "" if isinstance(message, dict) else None
        ids, cut = choice.get("token_ids"), finish == "length"
        if refusal := _object(message).get("refusal"):
            return Reply(str(refusal).strip(), None, cut, refused=True)
        tokens = _object(answer.get("usage")).get("completion_tokens")
        if self.path == COMPLETIONS and isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**32 for i in ids):
            ids = ids[:-1] if not cut and ids and ids[-1] in self.prompter.stop_ids else ids
            text, tokens = self.prompter.decode(ids, cut=cut), len(ids)
        if not isinstance(text := text_of(text), str):
            raise EndpointError(f"{self.client.model}: an answer without text: {self.client.words(str(answer))}")
        text = text.strip().rstrip("\ufffd").rstrip() if cut else text.strip()
        tokens = tokens if type(tokens) is int and 0 <= tokens < 2**31 else None
        return Reply(text, tokens, cut, refused=finish == "content_filter")


class EndpointBackend(Backend):
    """The backend `endpoint`: the models that `--endpoint` names, each behind one URL or several."""

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        super().__init__(candidates, options)
        if other := [c for c in candidates if not c.urls]:
            raise UsageError(f"{other[0].location}: the backend endpoint takes --endpoint [name=]URL#MODEL")
        self.at_once = MOST_AT_ONCE * max(len(c.urls) for c in candidates)  # saved before the next are asked
        told = dict[str, Prompter]()
        if options.tokenizer:
            spec, trust = parse_spec(options.tokenizer), options.trust_remote_code
            files = locate(f"tokenizer {spec.given}", spec.location, spec.revision)
            for name in (c.name for c in candidates):
                system, template = options.format_of(name)
                told[name] = Prompter.load(files, system=system, template=template, trust_remote_code=trust)
        clients = {c.name: Client(c.urls, c.location) for c in candidates}
        owners = {name: client.owner() for name, client in clients.items()}
        self._served = {name: self._find_out(name, clients[name], told.get(name), own) for name, own in owners.items()}
        for c in candidates:  # where a server counts otherwise now, the limit of a run that it goes on with stands
            began = options.began.get(c.name, {})
            n = began.get("tokens_per_word")
            if isinstance(n, float) and 1 <= n < 1000 and began == {**self.identity(c), "tokens_per_word": n}:
                self._served[c.name] = replace(self._served[c.name], tokens_per_word=n)
        asked = list[str]()  # in words, for the record
        for name, one in self._served.items():
            self.prompters[name] = one.prompter
            how = "with token ids" if one.path == COMPLETIONS else "by chat, with the server's own template"
            how += f", likelihoods by {one.likelihoods}" if one.likelihoods else ", without likelihoods"
            how += f", not taking {', '.join(one.unsupported)}" if one.unsupported else ""
            asked.append(f"{name} asked {how}")
            if missing := [p for p in one.unsupported if p not in _OPTIONAL]:
                log.warning("%s: its server does not take %s: its own values hold", name, ", ".join(missing))
        self.precision["reason"] = f"as served: {'; '.join(asked)}"

    def _find_out(self, name: str, client: Client, told: Prompter | None, owner: str) -> Served:
        """How the model may be asked: by token ids if there is a tokenizer and the server takes them, else by chat."""
        plain, per_word = self.prompters[name], TOKENS_PER_WORD
        if told:
            ids, per_word = told.prompt(PROBE).ids, (told.limited(Decoding(max_words=1000)).max_new_tokens or 0) / 1000
            try:
                served, answer = _negotiate(Served(client, told, COMPLETIONS, (), per_word, owner=owner))
                if _object(answer.get("usage")).get("prompt_tokens") == len(ids):
                    return _with_likelihoods(served, ids)
            except EndpointError as error:
                if error.status not in _NOT_KNOWN:
                    raise
            log.warning("%s: its server does not take token ids, so it writes the prompts itself", client.model)
        elif self.options.format_of(name)[1] != "auto":
            log.warning("%s: its server writes the prompts, so --template does nothing; give its --tokenizer", name)
        served, _ = _negotiate(Served(client, plain, CHAT, (), per_word, owner=owner))
        if told:
            return served
        # The server's own count of a long and a short prompt says how many tokens it spends on a Bengali word.
        long = replace(PROBE, question=" ".join((PROBE.question, *SENTENCES)))
        bodies = [served.body(plain.prompt(e), Decoding(greedy=True, max_new_tokens=1), "") for e in (PROBE, long)]
        counts = [_object(answer.get("usage")).get("prompt_tokens") for answer in client.map(CHAT, bodies)]
        short, longer = (n if isinstance(n, int) else 0 for n in counts)
        spent = (longer - short) / len(" ".join(SENTENCES).split())
        return replace(served, tokens_per_word=round(max(1.0, spent), 3)) if short < longer else served

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """The model's name, and how it is asked; where it is served may change from session to session."""
        served = self._served[candidate.name]
        return {
            "backend": "endpoint", "backend_version": VERSION, "model": candidate.location,
            "api": f"/v1/{served.path}", "unsupported": list(served.unsupported), "folds_system": served.folds,
            "tokens_per_word": served.tokens_per_word, "likelihoods": served.likelihoods,
            "template_sha": served.prompter.template_sha, "tokenizer_sha": served.prompter.tokenizer_sha,
            "stop_ids": list(served.prompter.stop_ids),
        }  # fmt: skip

    def gives_likelihoods(self, candidate: Candidate) -> bool:
        """Whether the server gave some when it was asked."""
        return bool(self._served[candidate.name].likelihoods)

    def generate(self, candidate: Candidate, prompts: Prompts, items: Sequence[str], decoding: Decoding) -> list[Reply]:
        """One reply a prompt; empty, cut and refused ones too, each marked as what it is."""
        served = self._served[candidate.name]
        bodies = [served.body(prompt, decoding, item) for prompt, item in zip(prompts, items, strict=True)]
        return served.client.map(served.path, bodies, read=served.reply)

    def likelihood(self, candidate: Candidate, rows: Rows, starts: Sequence[int]) -> list[float] | None:
        """As `Backend.likelihood`, from the log-probabilities that the server gives of a prompt."""
        served = self._served[candidate.name]
        if not served.likelihoods:
            return None
        # One at a time: a row alone keeps a card busy, and vLLM with adapters on the CPU dies of two at once.
        bodies = [_scoring(served.likelihoods, row) for row in rows]
        choices = served.client.map(COMPLETIONS, bodies, most=1, read=served.choice)
        found = [_log_probabilities(choice, row) for choice, row in zip(choices, rows, strict=True)]
        if not all(found):
            raise EndpointError(f"{candidate.location}: its server gave log-probabilities, and gives none any more")
        return [-sum(row[start:]) for row, start in zip(found, starts, strict=True)]


def _negotiate(served: Served) -> tuple[Served, dict[str, Any]]:
    """Asks for one token, leaving out what the server says it does not know: the parameter that it names first, as it
    may go on to those that it does know; all that may be left out where it names none; then the system role. All
    parameters of a run are tried; with temperature 0, as one server dies of a seed for which it has a use.
    """
    prompt, needed = served.prompter.prompt(PROBE), {"prompt", "messages", "max_tokens", "temperature"}
    while True:
        body = served.body(prompt, Decoding(max_new_tokens=1), "") | {"temperature": 0.0}
        try:
            [answer] = served.client.map(served.path, [body])
            if answer.get("system_fingerprint") == "fp_ollama":  # it takes every name and reads OpenAI's alone
                ignored = tuple(name for name in body if name not in needed | {"top_p", "seed", "stop"})
                served = replace(served, unsupported=(*served.unsupported, *ignored))
            return served, answer
        except EndpointError as error:
            extras, is_refused = [name for name in body if name not in needed], error.status in (400, 422)
            is_of_roles = error.status == 500 and re.search(r"(?i)\b(role|template|jinja)", str(error))
            if is_refused and extras:
                name, said = f"({'|'.join(extras)})", error.said  # in JSON, so that an escape may stand before a name
                found = re.search(rf'"param": *"{name}"', said) or re.search(rf"(?:\b|\\[nrt]|\\u....){name}\b", said)
                served = replace(served, unsupported=(*served.unsupported, *([found[1]] if found else extras)))
            elif served.path == CHAT and not served.folds and (is_refused or is_of_roles):
                log.warning("%s: asked without a system role: its text opens the user's message", served.client.model)
                served = replace(served, unsupported=(), folds=True)
            else:
                raise


def _with_likelihoods(served: Served, ids: Sequence[int]) -> Served:
    """The same, with the way in which the server gives the log-probabilities of a prompt, if it does."""
    for way in ("prompt_logprobs", "echo"):
        try:
            [choice] = served.client.map(COMPLETIONS, [_scoring(way, ids)], read=served.choice)
            if _log_probabilities(choice, ids):
                return replace(served, likelihoods=way)
        except EndpointError as error:
            if error.status not in _NOT_KNOWN:
                raise
    return served


def _scoring(way: str, ids: Sequence[int]) -> dict[str, Any]:
    asked = {"prompt_logprobs": 0} if way == "prompt_logprobs" else {"echo": True, "logprobs": 1}
    return {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0, **asked}


def _log_probabilities(choice: Mapping[str, Any], ids: Sequence[int]) -> list[float]:
    """log p of each id given those before it, 0 for the first; empty where they are not given for all of them."""
    given = choice.get("prompt_logprobs")
    if isinstance(given, list):  # of each position: token id -> its log-probability
        found = [_object(_object(entry).get(str(i))).get("logprob") for entry, i in zip(given, ids, strict=False)]
    else:
        given = _object(choice.get("logprobs")).get("token_logprobs")
        found = given[: len(ids)] if isinstance(given, list) else []
    # Rounding may leave one a little above 0; more, or none that float16 could give, is no log-probability.
    values = [min(float(n), 0.0) for n in found[1:] if isinstance(n, int | float) and -1e5 < n < 1e-3]
    return [0.0, *values] if len(found) == len(ids) == 1 + len(values) else []


def text_of(content: Any) -> Any:
    """A message's content, joined where it comes in parts, as Mistral's models that think answer."""
    return "".join(str(_object(part).get("text") or "") for part in content) if isinstance(content, list) else content


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
