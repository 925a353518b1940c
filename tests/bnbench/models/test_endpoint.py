"""Endpoints: a scripted server that answers as vLLM does, or as others do, and a real `transformers serve`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.errors import CandidateError, EndpointError, UsageError
from bnbench.models import BackendOptions, Decoding, Prompter, client, parse_candidates
from bnbench.models.decoding import item_key
from bnbench.models.endpoint import CHAT, TOKENS_PER_WORD, EndpointBackend
from bnbench.models.hub import locate
from bnbench.models.prompts import PROBE

Serve = Callable[..., Any]
DEMO = "bnbench-demo/base"
REPLIES = ("আপনার কষ্টটা বুঝতে পারছি।", "আজ রাতে একটু হাঁটুন।", "আপনি একা নন, আমরা পাশে আছি।")
QUICK = client.Patience(connect=1.0, total=5.0, attempts=3, wait=0.01, most_wait=0.1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.Client.__init__, "__defaults__", (QUICK,))


@pytest.fixture(scope="session")
def demo() -> Prompter:
    return Prompter.load(locate("demo", DEMO))


class Model:
    """Answers as vLLM does: token ids in and out, log-probabilities of prompts, chat. `change` spoils an answer."""

    def __init__(self, prompter: Prompter, names: tuple[str, ...] = ("base", "adapter")) -> None:
        self.prompter, self.names = prompter, names
        self.refuses: tuple[str, ...] = ()
        self.owner = "vllm"
        self.change: Callable[[Any, dict[str, Any], dict[str, Any]], Any] = lambda handler, body, answer: answer

    def __call__(self, handler: Any, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": name, "owned_by": self.owner} for name in self.names]}
        if body["model"] not in self.names:
            return handler.say(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        if refused := [name for name in self.refuses if name in body]:
            return handler.say(400, {"error": {"message": f"Unsupported parameter: {refused[0]}"}})
        if path == f"/v1/{CHAT}":
            n, asked = sum(len(m["content"]) for m in body["messages"]), body["messages"][-1]["content"]
        else:
            asked, n = body["prompt"], len(body["prompt"])
        # The same message gets the same reply, and each model has its own.
        text = REPLIES[(len(asked) + self.names.index(body["model"])) % len(REPLIES)]
        ids = [*self.prompter.answer(text)][: body["max_tokens"]]
        finish = "stop" if ids[-1] == self.prompter.end_id else "length"
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if path == f"/v1/{CHAT}":
            choice["message"] = {"role": "assistant", "content": self.prompter.decode(ids), "refusal": None}
        else:
            choice |= {"text": self.prompter.decode(ids), "token_ids": ids if body.get("return_token_ids") else None}
            if "prompt_logprobs" in body:
                given = [{str(i): {"logprob": -0.5 - i / 1000}} for i in asked[1:]]
                choice["prompt_logprobs"] = [None, *given]
            if body.get("echo"):
                choice["logprobs"] = {"token_logprobs": [None, *(-0.5 - i / 1000 for i in asked[1:]), -1.0]}
        usage = {"prompt_tokens": n, "completion_tokens": len(ids)}
        return self.change(handler, body, {"choices": [choice], "usage": usage})


@pytest.fixture
def model(demo: Prompter) -> Model:
    return Model(demo)


def backend(server: Any, *names: str, tokenizer: str | None = DEMO) -> EndpointBackend:
    texts = [f"{server.url}#{name}" for name in names or ("base",)]
    return EndpointBackend(parse_candidates(endpoints=texts), BackendOptions("endpoint", tokenizer=tokenizer))


def evaluate(*arguments: str) -> Any:
    words = ["evaluate", *arguments, "--limit", "6", "-q", "--metric", "chrF++", "--metric", "perplexity"]
    return CliRunner().invoke(app, words if "--metric" not in arguments else ["evaluate", *arguments, "-q"])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


# ----------------------------------------------------------------------------------------------------------- candidates


def test_urls_of_one_model_are_one_candidate() -> None:
    texts = ["http://a:1#org/base", "ft=https://b/v1/#x", "http://c:2/openai/v1#org/base", "http://a:1/v1#org/base"]
    found = [(c.name, c.kind, c.location, c.urls) for c in parse_candidates(endpoints=texts)]
    assert found == [
        ("base", "endpoint", "org/base", ("http://a:1/v1", "http://c:2/openai/v1")),
        ("ft", "endpoint", "x", ("https://b/v1",)),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://h:8123", "write --endpoint .name=.URL#MODEL"),
        ("h:8123#base", "write --endpoint"),
        ("http://#base", "write --endpoint"),
        ("http://h:99999#base", "Port out of range"),
        ("http://h/v1?key=abc#base", "write --endpoint"),
    ],
)
def test_an_endpoint_that_is_none(text: str, words: str) -> None:
    with pytest.raises(CandidateError, match=words):
        parse_candidates(endpoints=[text])


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(CandidateError, match="no password in a URL, please: set BNBENCH_API_KEY") as told:
        parse_candidates(endpoints=["http://me:hunter2@h:1/v1#base"])
    assert "hunter2" not in str(told.value)
    with pytest.raises(CandidateError, match="two candidates are called 'x'"):
        parse_candidates(endpoints=["x=http://a#1", "x=http://a#2"])
    with pytest.raises(UsageError, match=r"base: the backend endpoint takes --endpoint \[name=\]URL#MODEL"):
        EndpointBackend(parse_candidates("base", needs_files=False), BackendOptions("endpoint"))


# ------------------------------------------------------------------------------------------------------ what is asked


def test_with_a_tokenizer_prompts_are_token_ids(serve: Serve, model: Model, demo: Prompter) -> None:
    server = serve(model)
    made = backend(server)
    (candidate,), prompt = made.candidates, demo.prompt(PROBE)
    assert made.prompters[candidate.name].prompt(PROBE) == prompt
    seen = len(server.seen)
    (reply,) = made.generate(candidate, [prompt], ["item"], Decoding(greedy=True, max_new_tokens=40))
    (asked,) = server.posts()[seen - 1 :]
    assert asked == {
        "model": "base", "prompt": list(prompt.ids), "max_tokens": 40, "temperature": 0.0, "top_p": 1.0, "top_k": -1,
        "min_p": 0.0, "repetition_penalty": 1.1, "stop_token_ids": list(demo.stop_ids), "return_token_ids": True,
    }  # fmt: skip
    assert reply.text in REPLIES
    assert (reply.tokens, reply.hit_limit, reply.refused) == (len(demo.answer(reply.text)) - 1, False, False)

    made.generate(candidate, [prompt], ["item"], Decoding(temperature=0.6, top_p=0.8, top_k=7, max_new_tokens=4))
    asked = server.posts()[-1]
    assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (0.6, 0.8, 7)
    assert asked["seed"] == item_key(42, "item")[0] >> 1 < 2**31
    identity = made.identity(candidate)
    assert (identity["api"], identity["model"], identity["likelihoods"]) == (
        "/v1/completions",
        "base",
        "prompt_logprobs",
    )
    assert str(server.server_port) not in json.dumps(identity)


def test_without_a_tokenizer_the_server_writes_the_prompt(serve: Serve, model: Model) -> None:
    server = serve(model)
    made = backend(server, tokenizer=None)
    (candidate,) = made.candidates
    prompt = made.prompters[candidate.name].prompt(PROBE)
    (reply,) = made.generate(candidate, [prompt], ["item"], Decoding(greedy=True, max_words=10))
    asked = server.posts()[-1]
    assert [(m["role"], m["content"]) for m in asked["messages"]] == [("system", prompt.system), ("user", prompt.user)]
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert reply.text in REPLIES
    assert made.likelihood(candidate, [[1, 2]], [1]) is None
    # The scripted server counts a character as a token; a Bengali word and its blank have six of them.
    assert 5 < made.identity(candidate)["tokens_per_word"] < 7
    assert asked["max_tokens"] == pytest.approx(10 * made.identity(candidate)["tokens_per_word"], abs=1)
    assert "asked by chat, with the server's own template, without likelihoods" in made.precision["reason"]


def test_a_server_that_counts_no_tokens(serve: Serve, model: Model) -> None:
    model.change = lambda handler, body, answer: {"choices": answer["choices"]}
    made = backend(serve(model), tokenizer=None)
    assert made.identity(made.candidates[0])["tokens_per_word"] == TOKENS_PER_WORD


def test_a_server_that_takes_no_token_ids(
    serve: Serve, model: Model, demo: Prompter, caplog: pytest.LogCaptureFixture
) -> None:
    model.refuses = ("prompt",)
    made = backend(serve(model))
    assert made.identity(made.candidates[0])["api"] == "/v1/chat/completions"
    limit = demo.limited(Decoding(max_words=1000)).max_new_tokens or 0
    assert made.identity(made.candidates[0])["tokens_per_word"] == limit / 1000
    assert "its server does not take token ids, so it writes the prompts itself" in caplog.text


def test_a_template_without_a_system_role(serve: Serve, model: Model) -> None:
    def only_users(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> Any:
        is_folded = [m["role"] for m in body["messages"]] == ["user"]
        return answer if is_folded else handler.say(400, {"error": "System role not supported"})

    model.change = only_users
    server = serve(model)
    made = backend(server, tokenizer=None)
    prompt = made.prompters[made.candidates[0].name].prompt(PROBE)
    made.generate(made.candidates[0], [prompt], ["item"], Decoding(greedy=True, max_new_tokens=8))
    assert server.posts()[-1]["messages"] == [{"role": "user", "content": f"{prompt.system}\n\n{prompt.user}"}]
    assert made.identity(made.candidates[0])["folds_system"] is True


@pytest.mark.parametrize(("said", "folds"), [("CUDA out of memory", False), ("TemplateError: শুধু ব্যবহারকারী", True)])
def test_a_server_that_fails_at_the_start_keeps_the_system_role(
    serve: Serve, model: Model, caplog: pytest.LogCaptureFixture, said: str, folds: bool
) -> None:
    """It may know it well: only what speaks of roles or templates is such a template, and that is said."""
    model.change = lambda handler, body, answer: (
        answer if len(body["messages"]) == 1 else handler.say(500, {"error": {"message": said}})
    )
    server = serve(model)
    if folds:
        made = backend(server, tokenizer=None)
        assert made.identity(made.candidates[0])["folds_system"] is True
        assert "base: asked without a system role: its text opens the user's message" in caplog.text
    else:
        with pytest.raises(EndpointError, match=r"status 500: .*CUDA out of memory"):
            backend(server, tokenizer=None)
        assert {len(body["messages"]) for body in server.posts()} == {2}


@pytest.mark.parametrize(
    ("told", "unsupported"),
    [
        ({"message": "property '{}' is unsupported, did you mean 'top_p'?"}, ["top_k"]),
        ({"message": "Unsupported parameter: {}. Supported: top_p, stop, seed"}, ["top_k", "min_p"]),
        ({"message": "Of top_p, seed and others one is wrong", "param": "{}"}, ["min_p"]),
        ({"message": "আপনার অনুরোধ ঠিক নয়। " * 40 + "unknown field:\n{}"}, ["min_p"]),
        ({"message": "unknown field \u201c{}\u201d, not top_p"}, ["top_k"]),
    ],
)
def test_only_the_parameter_that_a_server_names_is_left_out(
    serve: Serve, model: Model, caplog: pytest.LogCaptureFixture, told: Any, unsupported: list[str]
) -> None:
    """Others may stand beside it, as those that the server takes; and it may stand far back in what the server says."""

    def change(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> Any:
        if wrong := [name for name in unsupported if name in body]:
            return handler.say(400, {"error": {key: text.format(wrong[0]) for key, text in told.items()}})
        return answer

    model.change = change
    made = backend(serve(model), tokenizer=None)
    assert made.identity(made.candidates[0])["unsupported"] == unsupported
    warned = [r.getMessage() for r in caplog.records if "does not take" in r.getMessage()]
    assert warned == ["base: its server does not take top_k: its own values hold"] * ("top_k" in unsupported)


def test_what_a_server_refuses_is_left_out_and_on_record(
    serve: Serve, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    model.refuses = ("top_k", "repetition_penalty", "return_token_ids")
    server = serve(model)
    made = backend(server)
    (candidate,) = made.candidates
    (reply,) = made.generate(
        candidate, [made.prompters[candidate.name].prompt(PROBE)], ["a"], Decoding(max_new_tokens=40)
    )
    assert not {"top_k", "repetition_penalty", "return_token_ids"} & server.posts()[-1].keys()
    assert server.posts()[-1]["seed"] >= 0
    assert reply.text in REPLIES  # from the text, as no ids come back
    assert made.identity(candidate)["unsupported"] == ["top_k", "repetition_penalty", "return_token_ids"]
    assert "base: its server does not take top_k, repetition_penalty: its own values hold" in caplog.text
    assert "not taking top_k, repetition_penalty, return_token_ids" in made.precision["reason"]


@pytest.mark.parametrize("owner", ["llamacpp", "me"])
def test_llama_cpp_is_asked_in_its_own_words(serve: Serve, model: Model, owner: str) -> None:
    # It takes every name and reads its own alone: greedy replies would go without the penalty, and loop.
    model.owner = owner
    server = serve(model)
    made = backend(server)
    made.generate(*made.candidates, [made.prompters[made.candidates[0].name].prompt(PROBE)], ["a"], Decoding())
    asked = server.posts()[-1]
    assert (asked["repeat_penalty"], asked["repeat_last_n"], asked["min_p"]) == (1.1, 2**17, 0.0)
    assert asked["top_k"] == 0
    assert "repetition_penalty" not in asked


def test_what_ollama_ignores_in_silence_is_said(
    serve: Serve, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its /v1 has no penalty for repetition: greedy replies loop there and not elsewhere, which a reader must know."""
    model.change = lambda handler, body, answer: answer | {"system_fingerprint": "fp_ollama"}
    server = serve(model)
    with caplog.at_level("WARNING", "bnbench"):
        done = evaluate("--endpoint", f"{server.url}#base", "--out", str(tmp_path / "run"), "--metric", "chrF++")
    assert done.exit_code == 0, done.output
    assert "base: its server does not take top_k, repetition_penalty: its own values hold" in caplog.text
    asked = server.posts()[-1]
    assert asked["top_p"] == 0.9 and not {"top_k", "min_p", "repetition_penalty", "chat_template_kwargs"} & {*asked}
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert "not taking top_k, min_p, repetition_penalty" in record["precision"]["reason"]
    assert "repetition_penalty" in record["candidates"][0]["key_fields"]["unsupported"]
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "not taking top_k, min_p, repetition_penalty" in report


def test_truncated_empty_and_refused_replies_are_marked(serve: Serve, model: Model, demo: Prompter) -> None:
    made = backend(serve(model), tokenizer=None)
    (candidate,) = made.candidates
    spoilt = iter(
        [
            {"finish_reason": "length", "message": {"content": " আপনি একা ন\ufffd "}},
            {"finish_reason": "stop", "message": {"content": None}},
            {"finish_reason": "stop", "message": {"content": None, "refusal": "এ বিষয়ে বলতে পারব না।"}},
            {"finish_reason": "content_filter", "message": {"content": "আপনার"}},
        ]
    )
    model.change = lambda handler, body, answer: {"choices": [next(spoilt)]}
    replies = []
    for item in "abcd":
        replies += made.generate(
            candidate, [made.prompters[candidate.name].prompt(PROBE)], [item], Decoding(max_new_tokens=9)
        )
    assert [(r.text, r.hit_limit, r.refused) for r in replies] == [
        ("আপনি একা ন", True, False),
        ("", False, False),
        ("এ বিষয়ে বলতে পারব না।", False, True),
        ("আপনার", False, True),
    ]
    # What no server should say ends in words of ours, or in what can be read of it.
    model.change = lambda handler, body, answer: {"choices": [{"text": "", "token_ids": 5}], "usage": [1]}
    (reply,) = made.generate(
        candidate, [made.prompters[candidate.name].prompt(PROBE)], ["e"], Decoding(max_new_tokens=9)
    )
    assert (reply.text, reply.tokens) == ("", None)
    model.change = lambda handler, body, answer: {"choices": []}
    with pytest.raises(EndpointError, match=r"base: an answer without choices: {'choices': \[\]}"):
        made.generate(candidate, [made.prompters[candidate.name].prompt(PROBE)], ["e"], Decoding(max_new_tokens=9))
    # An answer in parts, of which one is what a model thought.
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "আপনি "},
        {"type": "text", "text": "একা নন।"},
    ]
    model.change = lambda handler, body, answer: {"choices": [{"message": {"content": parts}}]}
    (reply,) = made.generate(
        candidate, [made.prompters[candidate.name].prompt(PROBE)], ["e"], Decoding(max_new_tokens=9)
    )
    assert reply.text == "আপনি একা নন।"


@pytest.mark.parametrize("finish", ["error", "abort"])
def test_half_a_reply_is_asked_for_again(serve: Serve, model: Model, finish: str) -> None:
    """So OpenRouter tells what failed behind it, and vLLM and SGLang what they gave up."""
    whole, asked = "আপনার কষ্টটা বুঝতে পারছি।", list[int]()
    broken = {"finish_reason": finish, "message": {"content": "আপনার"}}
    broken |= {"error": {"code": 502, "message": "সরবরাহকারী নেই"}} if finish == "error" else {}

    def change(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        asked.append(body["max_tokens"])
        return {"choices": [broken if len(asked) < 3 else {"message": {"content": whole}, "finish_reason": "stop"}]}

    made = backend(serve(model), tokenizer=None)
    model.change, prompt = change, made.prompters[made.candidates[0].name].prompt(PROBE)
    (reply,) = made.generate(made.candidates[0], [prompt], ["e"], Decoding(max_new_tokens=9))
    assert (reply.text, len(asked)) == (whole, 3)
    model.change = lambda handler, body, answer: {"choices": [broken]}
    told = "সরবরাহকারী নেই" if finish == "error" else "আপনার"
    with pytest.raises(EndpointError, match=f"base: its server broke an answer off: .*{told}"):
        made.generate(made.candidates[0], [prompt], ["e"], Decoding(max_new_tokens=9))


def test_half_a_scored_prompt_is_asked_for_again(serve: Serve, model: Model) -> None:
    made, asked = backend(serve(model)), list[str]()

    def change(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        asked.append("")
        return answer if len(asked) > 1 else {"choices": [{"finish_reason": "abort", "text": ""}]}

    model.change = change
    assert made.likelihood(made.candidates[0], [[7, 8]], [1]) == [pytest.approx(0.508)]
    assert len(asked) == 2


@pytest.mark.parametrize("ids", [[-1], [2**40], [2**70], [True], ["5"], "5", None])
@pytest.mark.parametrize("count", [-1, True, 2.5, "3", None, 10**19])
def test_counts_and_token_ids_that_cannot_be(serve: Serve, model: Model, ids: Any, count: Any) -> None:
    made = backend(serve(model))
    model.change = lambda handler, body, answer: {
        "choices": [{"text": "আপনি একা নন।", "token_ids": ids}], "usage": {"completion_tokens": count}
    }  # fmt: skip
    prompt = made.prompters[made.candidates[0].name].prompt(PROBE)
    (reply,) = made.generate(made.candidates[0], [prompt], ["e"], Decoding(max_new_tokens=9))
    assert (reply.text, reply.tokens) == ("আপনি একা নন।", None)


@pytest.mark.parametrize("message", [{"content": {"a": 1}}, {"content": 7}, ["আপনি একা নন।"]])
def test_what_is_no_text_is_no_reply(serve: Serve, model: Model, message: Any) -> None:
    made = backend(serve(model), tokenizer=None)
    model.change = lambda handler, body, answer: {"choices": [{"message": message}]}
    prompt = made.prompters[made.candidates[0].name].prompt(PROBE)
    with pytest.raises(EndpointError, match="an answer without text"):
        made.generate(made.candidates[0], [prompt], ["e"], Decoding(max_new_tokens=9))


@pytest.mark.parametrize("value", [0.5, -(10**400), -1e308, float("nan"), float("-inf"), True, "-1", None])
def test_log_probabilities_that_cannot_be_are_none(serve: Serve, model: Model, value: Any) -> None:
    def change(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        for entry in answer["choices"][0].get("prompt_logprobs", ())[-1:]:
            entry.update({key: {"logprob": value} for key in entry})
        return answer

    model.refuses = ("echo",)
    server = serve(model)
    made, row = backend(server), [5, 6, 7]
    model.change = change
    with pytest.raises(EndpointError, match="gave log-probabilities, and gives none any more"):
        made.likelihood(made.candidates[0], [row], [1])
    assert not backend(server).gives_likelihoods(made.candidates[0])


def test_a_template_that_nobody_would_use_is_told(serve: Serve, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    options = BackendOptions("endpoint", template={"": "llama-3.1"})
    EndpointBackend(parse_candidates(endpoints=[f"{serve(model).url}#base"]), options)
    assert "base: its server writes the prompts, so --template does nothing; give its --tokenizer" in caplog.text


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo", ""])
def test_likelihoods_by_what_the_server_gives(serve: Serve, model: Model, way: str) -> None:
    def without(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        for name, key in (("prompt_logprobs", "prompt_logprobs"), ("echo", "logprobs")):
            if name != way:
                answer["choices"][0].pop(key, None)
        return answer

    model.change = without
    server = serve(model)
    made = backend(server)
    (candidate,) = made.candidates
    assert made.gives_likelihoods(candidate) is bool(way)
    found = made.likelihood(candidate, [[1, 20, 300], [7, 8]], [1, 1])
    assert found == (pytest.approx([0.52 + 0.8, 0.508]) if way else None)
    assert not way or server.posts()[-1] == {
        "model": "base", "prompt": [7, 8], "max_tokens": 1, "temperature": 0.0,
        **({"prompt_logprobs": 0} if way == "prompt_logprobs" else {"echo": True, "logprobs": 1}),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- whole commands


def test_an_unknown_model_and_a_server_that_is_not_there(serve: Serve, model: Model, tmp_path: Path) -> None:
    server = serve(model)
    done = evaluate("--endpoint", f"{server.url}#adaptr", "--out", str(tmp_path / "run"))
    assert done.exit_code == 2
    assert done.output == f"bnbench: {server.url} serves no model 'adaptr'; it has adapter, base\n"
    server.close()
    done = evaluate("--endpoint", f"{server.url}#base", "--out", str(tmp_path / "run"))
    assert done.exit_code == 1
    assert done.output.startswith(f"bnbench: {server.url}/models: no server answers (")
    assert done.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_is_served_without_being_listed(serve: Serve, model: Model, tmp_path: Path) -> None:
    def lists_others(handler: Any, path: str, body: dict[str, Any]) -> Any:
        return {"data": [{"id": "other"}]} if path == "/v1/models" else model(handler, path, body)

    model.names = (str(tmp_path),)
    made = backend(serve(lists_others), str(tmp_path))
    assert made.identity(made.candidates[0])["api"] == "/v1/completions"


def test_a_run_ranks_and_says_what_is_not_available(serve: Serve, model: Model, tmp_path: Path) -> None:
    server = serve(model)
    two = ("--endpoint", f"{server.url}#base", "--endpoint", f"ft={server.url}#adapter")
    done = evaluate(*two, "--tokenizer", DEMO, "--greedy", "--out", str(tmp_path / "ids"))
    assert done.exit_code == 0, done.output
    assert "ft" in done.output
    assert "Δ to base" in done.output
    assert "bits per character" in done.output
    record = json.loads((tmp_path / "ids" / "run.json").read_text(encoding="utf-8"))
    assert [(c["name"], c["kind"], c["location"]) for c in record["candidates"]] == [
        ("base", "endpoint", "base"),
        ("ft", "endpoint", "adapter"),
    ]
    assert "urls" not in record["candidates"][0]

    recorded = tmp_path / "mine.jsonl"
    own = [{"id": g["id"], "reply": g["reply"]} for g in lines(tmp_path / "ids") if g["candidate"] == "ft"]
    recorded.write_text("".join(f"{json.dumps(one)}\n" for one in own), encoding="utf-8")
    beside = ("--predictions", str(recorded), "--greedy", "--out", str(tmp_path / "chat"))
    done = evaluate(*two, *beside, "--limit", "6", "--metric", "chrF++")
    assert done.exit_code == 0, done.output
    assert "mine" in done.output
    assert "likelihoods are not available: base, ft; so" in done.output
    done = evaluate(*two, "--primary", "perplexity", "--out", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert (
        "perplexity cannot be computed for these candidates: it needs likelihoods, which none of them gives"
        in done.output
    )
    assert not (tmp_path / "none").exists()
    done = evaluate("--predictions", str(recorded), "--tokenizer", DEMO, "--metric", "chrF++")
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "--tokenizer is for --endpoint" in done.output


def test_refusals_are_counted(serve: Serve, model: Model, tmp_path: Path) -> None:
    def sometimes(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        if body["max_tokens"] > 1 and "ঘুম" in body["messages"][-1]["content"]:
            answer["choices"][0]["message"] = {"content": None, "refusal": "এ বিষয়ে বলতে পারব না।"}
        return answer

    model.change = sometimes
    out = tmp_path / "run"
    done = evaluate("--endpoint", f"{serve(model).url}#base", "--out", str(out), "--metric", "chrF++", "--limit", "40")
    assert done.exit_code == 0, done.output
    refused = [g for g in lines(out) if g.get("refused")]
    assert 0 < len(refused) < 40
    assert {g["reply"] for g in refused} == {"এ বিষয়ে বলতে পারব না।"}
    assert f"base refused {len(refused)} of 40 messages; what it said instead is scored" in done.output


def test_messages_that_a_filter_refuses_end_nothing(serve: Serve, model: Model, tmp_path: Path) -> None:
    def azure(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> Any:
        if body["max_tokens"] > 1 and "ঘুম" in body["messages"][-1]["content"]:
            return handler.say(400, {"error": {"code": "content_filter", "message": "The response was filtered"}})
        return answer

    model.change = azure
    server, out = serve(model), tmp_path / "run"
    done = evaluate("--endpoint", f"{server.url}#base", "--out", str(out), "--metric", "chrF++", "--limit", "40")
    assert done.exit_code == 0, done.output
    refused = [g for g in lines(out) if g.get("refused")]
    assert 0 < len(refused) < len(lines(out)) == 40
    assert {g["reply"] for g in refused} == {""}
    assert f"base refused {len(refused)} of 40 messages" in done.output


def test_a_server_that_dies_three_times_is_gone_on_with(serve: Serve, model: Model, tmp_path: Path) -> None:
    out, count, lives = tmp_path / "run", iter(range(0)), 0

    def mortal(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> Any:
        is_asked = "prompt" in body and body["max_tokens"] > 1
        return handler.connection.shutdown(socket.SHUT_RDWR) if is_asked and next(count) >= lives else answer

    model.change = mortal

    def command(folder: Path) -> tuple[Any, Any]:
        server = serve(model)  # each on a port of its own: a run is not of a place
        two = ("--endpoint", f"{server.url}#base", "--endpoint", f"{server.url}#adapter", "--tokenizer", DEMO)
        return server, evaluate(*two, "--greedy", "--out", str(folder), "--batch-size", "4")

    # Six items of two candidates, four and two at a time, with likelihoods: what is no whole batch waits.
    for lives, kept, waits in ((3, 0, 3), (2, 4, 1), (4, 6, 3)):  # noqa: B007 - `mortal` reads it
        count = iter(range(10**6))
        server, done = command(out)
        assert done.exit_code == 3, done.output
        assert f"EndpointError: {server.url}/completions: the connection was lost" in done.output
        counts = f"(replies: {kept}, waiting in answered.jsonl: {waits})"
        assert f"What was computed is kept in {out} {counts}; go on with: " in done.output
        assert len(lines(out)) == kept if kept else not (out / "generations.jsonl").exists()
    count, lives = iter(range(10**6)), 3  # of twelve: none is asked for again
    assert command(out)[1].exit_code == 0
    assert not (out / "answered.jsonl").exists()
    lives = 10**6
    assert command(tmp_path / "whole")[1].exit_code == 0
    assert len(lines(out)) == 12
    assert (out / "generations.jsonl").read_bytes() == (tmp_path / "whole" / "generations.jsonl").read_bytes()


@pytest.mark.parametrize(("ends", "first", "n"), [("403", 4, 2), ("no choices", 2, 1), ("500", 0, 1)])
def test_what_was_answered_before_a_server_failed_is_kept(
    serve: Serve, model: Model, tmp_path: Path, ends: str, first: int, n: int
) -> None:
    """One batch holds all six: only those that failed are asked, and paid for, again, wherever they stand."""
    whole, out, asked, last = tmp_path / "whole", tmp_path / "run", list[str](), set[str]()

    def tired(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> Any:
        message = body["messages"][-1]["content"]
        if body["max_tokens"] > 1:
            asked.append(message)
        if not any(question in message for question in last):
            return answer
        time.sleep(1)  # until the others have come in
        return {"choices": []} if ends == "no choices" else handler.say(int(ends), {"error": "কোটা শেষ"})

    model.change = tired
    words = ("--endpoint", f"{serve(model).url}#base", "--greedy", "--metric", "chrF++", "--limit", "6", "--out")
    assert evaluate(*words, str(whole)).exit_code == 0
    examples = map(json.loads, (whole / "examples.jsonl").read_text(encoding="utf-8").splitlines())
    questions = {example["id"]: example["question"] for example in examples}
    last |= {questions[line["id"]] for line in lines(whole)[first : first + n]}
    done = evaluate(*words, str(out))
    waiting = f", waiting in answered.jsonl: {6 - n - first}" if 6 - n - first else ""
    assert done.exit_code == 3 and f"kept in {out} (replies: {first}{waiting})" in done.output, done.output
    told = set(last)
    last.clear()
    asked.clear()
    assert evaluate(*words, str(out)).exit_code == 0
    assert len(asked) == n and all(any(question in message for message in asked) for question in told)
    assert (out / "generations.jsonl").read_bytes() == (whole / "generations.jsonl").read_bytes()


def test_replies_outlive_a_server_that_dies_of_their_likelihoods(serve: Serve, model: Model, tmp_path: Path) -> None:
    out, is_ill, asked = tmp_path / "run", False, list[str]()

    def change(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> Any:
        asked.append("likelihood" if body["max_tokens"] == 1 else "reply")
        is_probe = body["prompt"][: len(probe)] == probe
        return handler.say(503, {}) if is_ill and asked[-1] == "likelihood" and not is_probe else answer

    probe, model.change = [*model.prompter.prompt(PROBE).ids], change
    words = ("--endpoint", f"{serve(model).url}#base", "--tokenizer", DEMO, "--greedy", "--out")
    assert evaluate(*words, str(tmp_path / "whole")).exit_code == 0
    is_ill = True
    done = evaluate(*words, str(out))
    assert done.exit_code == 3 and "(replies: 0, waiting in answered.jsonl: 6)" in done.output, done.output
    is_ill = False
    asked.clear()
    assert evaluate(*words, str(out)).exit_code == 0 and "reply" not in asked
    assert (out / "generations.jsonl").read_bytes() == (tmp_path / "whole" / "generations.jsonl").read_bytes()
    # A run that was stopped before it could remove the file removes it now; of another command nothing is dropped.
    (out / "answered.jsonl").write_bytes((out / "generations.jsonl").read_bytes())
    done = evaluate(*words, str(out), "--max-words", "9")
    assert done.exit_code == 2 and "holds another run" in done.output, done.output
    assert evaluate(*words, str(out)).exit_code == 0 and not (out / "answered.jsonl").exists()
    # Started anew, nothing of before is taken.
    is_ill = True
    assert evaluate(*words, str(out), "--overwrite").exit_code == 3
    done = evaluate(*words, str(out), "--max-words", "9")
    assert done.exit_code == 2 and "holds another run" in done.output, done.output
    is_ill = False
    asked.clear()
    assert evaluate(*words, str(out), "--overwrite").exit_code == 0 and asked.count("reply") == 6


def test_replies_that_wait_outlive_a_second_failure(
    serve: Serve, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of four by two URLs, then of two by one: what waits is no longer of the first batch alone."""
    monkeypatch.setattr("bnbench.models.endpoint.MOST_AT_ONCE", 2)
    whole, out, asked, ill = tmp_path / "whole", tmp_path / "run", list[str](), set[str]()

    def change(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> Any:
        question = body["messages"][-1]["content"]
        if any(one in question for one in ill):
            time.sleep(1)  # until the others have come in
            return handler.say(403, {"error": "কোটা শেষ"})
        asked.extend([question] * (body["max_tokens"] > 1))
        return answer

    model.change = change
    one, other = (("--endpoint", f"x={serve(model).url}#base") for _ in range(2))
    words = ("--greedy", "--metric", "chrF++", "--limit", "6", "--max-words", "30", "--out")
    assert evaluate(*one, *words, str(whole)).exit_code == 0
    asked.clear()
    examples = map(json.loads, (whole / "examples.jsonl").read_text(encoding="utf-8").splitlines())
    questions = {example["id"]: example["question"] for example in examples}
    plan = [questions[line["id"]] for line in lines(whole)]
    first = "replies: 0, waiting in answered.jsonl: 2"
    for failing, urls, told in (((0, 3), one + other, first), ((3,), one, "replies: 3")):
        ill = {plan[i] for i in failing}
        done = evaluate(*urls, *words, str(out))
        assert done.exit_code == 3 and f"({told})" in done.output, done.output
    ill = set()
    assert evaluate(*other, *words, str(out)).exit_code == 0
    assert len(asked) == 6 and (out / "generations.jsonl").read_bytes() == (whole / "generations.jsonl").read_bytes()


def test_a_server_that_counts_otherwise_is_gone_on_with(serve: Serve, model: Model, tmp_path: Path) -> None:
    """As one behind a router does; how many tokens a word is given is the run's."""
    out, times, limits, asked = tmp_path / "run", 1, set[int](), list[str]()

    def change(handler: Any, body: dict[str, Any], answer: dict[str, Any]) -> Any:
        if body["max_tokens"] == 1:
            return answer | {"usage": {"prompt_tokens": times * answer["usage"]["prompt_tokens"]}}
        limits.add(body["max_tokens"])
        asked.append(body["messages"][-1]["content"])
        return answer if times > 1 or len(asked) < 4 else handler.say(400, {"error": {"message": "কোটা শেষ"}})

    model.change = change
    words = ("--endpoint", f"{serve(model).url}#base", "--greedy", "--metric", "chrF++", "--limit", "6", "--out")
    assert evaluate(*words, str(out)).exit_code == 3
    times = 3
    done = evaluate(*words, str(out))
    assert done.exit_code == 0 and len(limits) == 1, (done.output, limits)
    # Where no reply is kept nothing is gone on with.
    (out / "generations.jsonl").write_bytes(b"")
    assert evaluate(*words, str(out)).exit_code == 0 and len(limits) == 2


# --------------------------------------------------------------------------------------------------- transformers serve


@pytest.fixture(scope="module")
def transformers_serve(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server, with a cache of its own that is empty."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(tiny_base), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    command = [sys.executable, "-m", "transformers.cli.transformers", *words]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert server.poll() is None, server.stderr and server.stderr.read()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_transformers_serve(transformers_serve: str, tiny_base: Path, tmp_path: Path) -> None:
    endpoint = ("--endpoint", f"tiny={transformers_serve}#{tiny_base}", "--tokenizer", str(tiny_base), "--greedy")
    common = ("--limit", "3", "--max-new-tokens", "12", "--metric", "chrF++", "--repetition-penalty", "1.0")
    done = evaluate(*endpoint, *common, "--out", str(tmp_path / "served"))
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "served" / "run.json").read_text(encoding="utf-8"))
    key_fields = record["candidates"][0]["key_fields"]
    assert key_fields["api"] == "/v1/chat/completions"  # it takes no token ids
    assert {"top_k", "repetition_penalty"} <= set(key_fields["unsupported"])
    assert [g["tokens"] for g in lines(tmp_path / "served")] == [12, 12, 12]
