"""The HTTP client against a server that fails in every way we could think of."""

from __future__ import annotations

import asyncio
import logging
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bnbench.errors import EndpointError, UsageError
from bnbench.models import client as module
from bnbench.models.client import Client, Patience

Serve = Callable[..., Any]
QUICK = Patience(connect=5.0, total=10.0, attempts=3, wait=0.01, most_wait=0.3)


def ask(server: Any, *, n: int = 1, patience: Patience = QUICK) -> list[dict[str, Any]]:
    return Client([server.url], "base", patience).map("completions", [{"n": i} for i in range(n)])


def echo(handler: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"n": body["n"], "model": body["model"], "path": path}


def test_answers_stand_in_the_order_of_the_requests(serve: Serve) -> None:
    def later_ones_first(handler: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.002 * (40 - body["n"]) / 4)
        return echo(handler, path, body)

    server = serve(later_ones_first)
    assert [a["n"] for a in ask(server, n=40)] == list(range(40))
    assert {(path, body["model"]) for path, body in server.seen} == {("/v1/completions", "base")}
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(("room", "limit"), [(1000, 64), (15, 32), (6, 16)])
def test_it_asks_more_at_once_while_that_pays(monkeypatch: pytest.MonkeyPatch, room: int, limit: int) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    server = module._Server("http://127.0.0.1/v1")
    for _ in range(12):
        clock[0] += max(1.0, server.limit / room)  # seconds that so many at once take
        server.active = server.limit
        for _ in range(server.limit):
            server.succeeded()
    assert server.limit == limit
    server.active, clock[0] = 1, clock[0] + 0.001
    for _ in range(2 * limit):  # faster than ever, but one at a time
        server.succeeded()
    assert server.limit == limit
    server.failed(module.AgainError("", 429), start=clock[0], most_wait=60.0)
    assert server.limit == limit // 2
    clock[0] += 1
    server.failed(module.AgainError("", 429), start=clock[0] - 2, most_wait=60.0)  # was under way with the one before
    assert server.limit == limit // 2


def test_429_waits_as_long_as_it_is_told_and_asks_less_at_once(serve: Serve) -> None:
    refused: list[float] = []

    def busy(handler: Any, path: str, body: dict[str, Any]) -> Any:
        with handler.server.lock:
            is_first = len(refused) < 8
            if is_first:
                refused.append(time.monotonic())
        return handler.say(429, {"error": "slow down"}, Retry_After="0.2") if is_first else echo(handler, path, body)

    server = serve(busy)
    client = Client([server.url], "base", QUICK)
    assert [a["n"] for a in client.map("completions", [{"n": i} for i in range(8)])] == list(range(8))
    assert time.monotonic() - refused[0] >= 0.2
    assert len(server.seen) == 16
    assert client._servers[0].limit <= 5  # halved once for all that were under way, and what it has earned since


def test_until_its_retry_after_is_over_a_server_gets_nothing(serve: Serve) -> None:
    came: list[float] = []

    def shut_at_first(handler: Any, path: str, body: dict[str, Any]) -> Any:
        came.append(time.monotonic())
        return handler.say(429, {}, Retry_After="0.25") if len(came) == 1 else echo(handler, path, body)

    server = serve(shut_at_first)
    bodies = [{"n": i} for i in range(6)]
    assert [a["n"] for a in Client([server.url], "base", QUICK).map("completions", bodies, most=1)] == list(range(6))
    assert len(came) == 7 and min(came[1:]) - came[0] >= 0.25  # the other five wait too, though there was room


@pytest.mark.parametrize("says", ["all", "too little", "nothing"])
def test_a_server_that_takes_few_requests_a_second_answers_all(serve: Serve, says: str) -> None:
    opens, period = [0.0], 0.05

    def limited(handler: Any, path: str, body: dict[str, Any]) -> Any:
        with handler.server.lock:
            left = opens[0] - time.monotonic()
            if left <= 0:
                opens[0] = time.monotonic() + period
                return echo(handler, path, body)
        return handler.say(429, {}, Retry_After={"all": f"{left:.3f}", "too little": "0", "nothing": ""}[says])

    server = serve(limited)
    patience = replace(QUICK, attempts=4, wait=0.03)
    assert [a["n"] for a in ask(server, n=12, patience=patience)] == list(range(12))
    assert says != "all" or len(server.seen) <= 4 * 12


def test_a_server_that_takes_nothing_more_ends_in_bounded_time(serve: Serve) -> None:
    def spent(handler: Any, path: str, body: dict[str, Any]) -> Any:
        with handler.server.lock:
            is_spent = len(handler.server.seen) > 5
        return handler.say(429, {"error": "quota"}, Retry_After="0.1") if is_spent else echo(handler, path, body)

    server, start = serve(spent), time.monotonic()
    with pytest.raises(EndpointError, match=r"status 429: .*quota"):
        ask(server, n=40)
    assert time.monotonic() - start < 2
    assert len(server.seen) < 40


def test_retry_after_nothing_is_waited_for_as_without_it(serve: Serve) -> None:
    start, server = time.monotonic(), serve(lambda handler, path, body: handler.say(429, {}, Retry_After="0"))
    with pytest.raises(EndpointError, match="status 429"):
        ask(server, patience=replace(QUICK, wait=0.1))
    assert time.monotonic() - start >= 0.1 + 0.2


@pytest.mark.parametrize("after", ["86400", "soon"])
def test_retry_after_is_a_number_and_bounded(serve: Serve, after: str) -> None:
    start, server = time.monotonic(), serve(lambda handler, path, body: handler.say(429, {}, Retry_After=after))
    with pytest.raises(EndpointError, match="status 429"):
        ask(server)
    assert time.monotonic() - start < 2
    assert len(server.seen) == QUICK.attempts


def test_what_passes_is_tried_again(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    faults = iter(
        [lambda handler: handler.say(500, {"error": "it broke"}), lambda handler: handler.say(200, b'{"n": 0, "mod')]
    )

    def act(handler: Any, path: str, body: dict[str, Any]) -> Any:
        fault = next(faults, None)
        return fault(handler) if fault else echo(handler, path, body)

    with caplog.at_level(logging.WARNING):
        assert ask(serve(act))[0]["n"] == 0
    assert len(caplog.messages) == 1
    assert 'status 500: {"error": "it broke"}; trying again' in caplog.text


def failing(*faults: str) -> Any:
    """One fault after the other, "500" or "stall", and then answers."""
    left = iter(faults)

    def act(handler: Any, path: str, body: dict[str, Any]) -> Any:
        fault = next(left, "")
        if fault == "stall":
            time.sleep(0.4)
        return handler.say(500, {}) if fault == "500" else echo(handler, path, body)

    return act


@pytest.mark.parametrize("faults", [("500", "stall"), ("stall", "500"), ("500", "stall", "500")])
def test_a_time_out_is_tried_once_more_whatever_failed_before(serve: Serve, faults: tuple[str, ...]) -> None:
    server = serve(failing(*faults))
    assert ask(server, patience=replace(QUICK, total=0.25, attempts=4))[0]["n"] == 0
    assert len(server.seen) == len(faults) + 1


def test_the_second_time_out_is_the_last(serve: Serve) -> None:
    server = serve(failing("stall", "500", "stall"))
    with pytest.raises(EndpointError, match=r"no whole answer within 0\.25 s"):
        ask(server, patience=replace(QUICK, total=0.25, attempts=7))
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("error", "status", "words", "times"),
    [
        ({"code": 429}, 429, "an error with status 200: ", 3),
        ({"code": "502", "message": "bad gateway"}, 502, "an error with status 200: .*bad gateway", 3),
        ("overloaded", 200, "an error with status 200: .*overloaded", 3),
        ({"code": 402, "message": "no credits"}, 402, r"refuses the request \(status 402: .*no credits", 1),
        ({"code": 401, "message": "no key"}, 401, r"it wants a key: set BNBENCH_API_KEY \(status 401: ", 1),
    ],
)
@pytest.mark.parametrize("choices", [{}, {"choices": None}, {"choices": []}])
def test_an_error_in_an_answer_of_status_200_is_that_error(
    serve: Serve, choices: dict[str, Any], error: Any, status: int, words: str, times: int
) -> None:
    server = serve(lambda handler, path, body: {**choices, "error": error})
    with pytest.raises(EndpointError, match=words) as told:
        ask(server)
    assert (told.value.status, len(server.seen)) == (status, times)


def test_an_answer_with_a_choice_is_one_whatever_error_stands_beside(serve: Serve) -> None:
    said = {"choices": [{"message": {"content": "আচ্ছা"}}], "error": {"code": 502}}
    assert ask(serve(lambda handler, path, body: said)) == [said]


MODERATED = {"code": 403, "message": "flagged", "metadata": {"reasons": ["self-harm"], "flagged_input": "…"}}


@pytest.mark.parametrize(
    ("status", "error", "is_filtered"),
    [
        (400, {"code": "content_filter", "message": "The response was filtered due to the prompt"}, True),
        (400, {"code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}, True),
        (403, MODERATED, True),
        (200, MODERATED, True),
        (200, {"code": "content_filter"}, True),
        (403, {"code": 403, "metadata": {"reasons": []}}, False),
        (403, {"code": 403, "message": "this key is under moderation: content_filter"}, False),
        (400, {"code": "invalid", "message": "content_filter is no parameter", "innererror": "content_filter"}, False),
        (400, "content_filter", False),
    ],
)
def test_a_message_that_a_filter_refuses_is_answered_so_by_codes_alone(
    serve: Serve, status: int, error: Any, is_filtered: bool
) -> None:
    server = serve(lambda handler, path, body: handler.say(status, {"error": error}))
    if is_filtered:
        (answer,) = ask(server)
        assert answer["choices"] == [{"finish_reason": "content_filter", "message": {"content": ""}}]
    else:
        with pytest.raises(EndpointError, match=f"status {status}"):
            ask(server)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("act", "words", "most_asked"),
    [
        (lambda h: h.say(500, {"error": "it broke"}), 'completions: status 500: {"error": "it broke"}', 3),
        (lambda h: h.say(503, b""), "status 503: nothing", 3),
        (lambda h: h.say(200, b'{"choices": [{"te'), 'is no whole JSON object: {"choices": \\[{"te', 3),
        (lambda h: h.say(200, [1]), "is no whole JSON object", 3),
        (lambda h: h.say(200, b"[" * 10**6), "is no whole JSON object", 3),
        (lambda h: h.stream(b"{", 0, 1), "is no whole JSON object: {", 3),
        (lambda h: h.say(200, b"{}", Content_Length="99", Connection="close"), "the connection was lost", 3),
        (lambda h: h.connection.shutdown(2), "the connection was lost", 3),
        (lambda h: h.stream(b" ", 0.02, 10**6), "no whole answer within 0.25 s", 2),
        (lambda h: time.sleep(0.6), "no whole answer within 0.25 s", 2),
        (lambda h: h.say(408, {}), "status 408: {}", 3),
        (lambda h: h.say(200, {"error": {"code": 502}}), 'an error with status 200: {"error": {"code": 502}}', 3),
        (lambda h: h.say(200, b"{}", Content_Encoding="gzip"), r"is compressed \(gzip\), which was not asked for", 1),
        (lambda h: h.say(204, b""), "is no whole JSON object: nothing", 3),
        (lambda h: h.say(401, {}), r"it wants a key: set BNBENCH_API_KEY \(status 401: {}\)", 1),
        (lambda h: h.say(403, {}), "the model base is forbidden to whoever has no key", 1),
        (lambda h: h.say(404, {}), "there is no such path, or no model base; is this an OpenAI", 1),
        (lambda h: h.say(400, b"\x1b[2Jno \x07 good"), "refuses the request .status 400: \ufffd.2Jno \ufffd good", 1),
        (lambda h: h.say(307, {}, Location="http://u:p@else.de:9/v1?k=v"), "redirects to http://else.de:9/v1,", 1),
    ],
)  # fmt: skip
def test_every_fault_ends_in_bounded_time_with_its_own_words(
    serve: Serve, act: Callable[[Any], Any], words: str, most_asked: int
) -> None:
    server, start = serve(lambda handler, path, body: act(handler)), time.monotonic()
    with pytest.raises(EndpointError, match=words):
        ask(server, patience=replace(QUICK, total=0.25) if "within" in words else QUICK)
    assert time.monotonic() - start < 5
    assert len(server.seen) == most_asked


def test_a_gigabyte_is_not_read(serve: Serve) -> None:
    server = serve(lambda handler, path, body: handler.stream(b" " * 2**20, 0, 1024))
    tracemalloc.start()
    with pytest.raises(EndpointError, match="the answer is larger than 16 MiB"):
        ask(server, patience=Patience())
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()
    assert len(server.seen) == 1


def test_the_first_failure_that_stays_ends_the_others(serve: Serve) -> None:
    def act(handler: Any, path: str, body: dict[str, Any]) -> Any:
        time.sleep(0.01)
        return handler.say(400, {}) if body["n"] == 5 else echo(handler, path, body)

    server = serve(act)
    with pytest.raises(EndpointError, match="status 400"):
        ask(server, n=200)
    assert len(server.seen) < 40


def test_no_server_at_all(serve: Serve) -> None:
    server = serve(echo)
    server.close()
    with pytest.raises(EndpointError, match="/v1/models: no server answers") as told:
        Client([server.url], "base", QUICK).models()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("host", ["xn--a", "127.0.0.1:1/\udcff", "a\u00ad.\u200d"])
def test_a_url_that_no_request_can_go_to(serve: Serve, host: str) -> None:
    with pytest.raises(EndpointError, match=f"http://{host}/v1/completions: no URL that can be asked"):
        Client([f"http://{host}/v1"], "base", QUICK).map("completions", [{}])


def test_two_servers_share_the_work_and_one_takes_over(serve: Serve) -> None:
    def slow(handler: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.01)
        return echo(handler, path, body)

    pair = [serve(slow), serve(slow)]
    client = Client([server.url for server in pair], "base", Patience(wait=0.01))
    bodies = [{"n": i} for i in range(60)]
    assert [a["n"] for a in client.map("completions", bodies)] == list(range(60))
    assert 18 <= len(pair[0].seen) <= 42
    pair[0].close()
    assert [a["n"] for a in client.map("completions", bodies)] == list(range(60))


@pytest.mark.parametrize("n", [1, 64])
def test_a_server_that_stalls_is_known_before_every_request_has_stalled(serve: Serve, n: int) -> None:
    server, start = serve(lambda handler, path, body: handler.stream(b" ", 0.05, 10**6)), time.monotonic()
    with pytest.raises(EndpointError, match=r"no whole answer within 0\.3 s"):
        ask(server, n=n, patience=replace(QUICK, total=0.3, wait=0.001))
    assert time.monotonic() - start < 5 * 0.3 + 0.5  # 8 at once, 4 others meanwhile, and the first ones again
    assert len(server.seen) <= 20


@pytest.mark.parametrize(
    "fail",
    [
        lambda h: h.stream(b" ", 0.05, 10**6),
        lambda h: h.say(502, b""),
        lambda h: h.say(429, {}, Retry_After="3600"),
        lambda h: h.say(429, {}),
        lambda h: h.connection.shutdown(2),
    ],
)
def test_a_server_that_fails_beside_a_good_one_ends_nothing(serve: Serve, fail: Callable[[Any], Any]) -> None:
    def slow(handler: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.01)
        return echo(handler, path, body)

    bad, good = serve(lambda handler, path, body: fail(handler)), serve(slow)
    client = Client([bad.url, good.url], "base", replace(QUICK, total=2))
    assert [a["n"] for a in client.map("completions", [{"n": i} for i in range(64)])] == list(range(64))
    assert len(bad.seen) <= 16


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ([{"id": "base"}, {"id": "big"}], ["base", "big"]),  # not in an object
        ({"data": [{"id": "base"}], "has_more": True}, []),  # a part, which says nothing of the others
        ({"data": [7, "base", None, {"id": None}, {"id": "base"}]}, ["base"]),
        ({"data": {"id": "base"}}, []),
        ({"models": []}, []),
    ],
)
def test_lists_of_models(serve: Serve, said: Any, names: list[str]) -> None:
    client = Client([serve(lambda handler, path, body: handler.say(200, said)).url], "base")
    assert client.models() == [dict.fromkeys(names, "None")]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "'socksio' package is not installed"),
        ("HTTP_PROXY", "ftp://127.0.0.1", "Unknown scheme for proxy URL"),
        ("SSL_CERT_FILE", "/no/such/file", "No such file"),
    ],
)
def test_an_environment_that_no_client_can_be_made_in(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"SSL_CERT_FILE …\) cannot be used: .*{words}") as told:
        ask(serve(echo))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("spelt", ["sk-a+/=B", "sk-a%2B%2f%3DB", r"sk-a+\/=B", r"sk-a\u002b\u002F=B"])
def test_the_key_is_known_however_it_is_spelt(serve: Serve, monkeypatch: pytest.MonkeyPatch, spelt: str) -> None:
    server = serve(lambda handler, path, body: handler.say(302, b"", Location=f"http://else.de/{spelt}/x"))
    monkeypatch.setenv("BNBENCH_API_KEY", "sk-a+/=B")
    with pytest.raises(EndpointError, match=r"redirects to http://else.de/\*\*\*/x, which"):
        ask(server)


@pytest.mark.parametrize("spelt", ["sk-a+/=B", "sk-a%2B%2f%3DB", r"sk-a+\/=B", r"sk-a\u002b\u002F=B"])
def test_a_reply_that_repeats_the_key_is_handed_on_without_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, spelt: str
) -> None:
    said = (
        rb'{"choices": [{"message": {"content": "C:\\' + spelt.encode() + rb'\n"}, "logprobs": [null, -0.5]}], "n": 7}'
    )
    monkeypatch.setenv("BNBENCH_API_KEY", "sk-a+/=B")
    (answer,) = ask(serve(lambda handler, path, body: handler.say(200, said)))
    assert answer == {"choices": [{"message": {"content": "C:***\n"}, "logprobs": [None, -0.5]}], "n": 7}


def test_a_word_that_stands_for_no_key_is_no_secret(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNBENCH_API_KEY", "ollama")
    said = {"choices": [{"message": {"content": "আচ্ছা"}}], "system_fingerprint": "fp_ollama"}
    assert ask(serve(lambda handler, path, body: said)) == [said]


def test_the_key_goes_to_the_server_and_nowhere_else(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("BNBENCH_API_KEY", "sk-secret\n")
    stranger = serve(echo)

    def act(handler: Any, path: str, body: dict[str, Any]) -> Any:
        if body["n"] == 1:
            return handler.say(308, b"", Location=f"{stranger.url}/completions")
        return handler.say(401, {"error": f"wrong key {handler.headers['Authorization']}"})

    server = serve(act)
    with caplog.at_level(logging.DEBUG):
        client = Client([server.url], "base", QUICK)
        with pytest.raises(EndpointError, match="the key in BNBENCH_API_KEY is not accepted") as told:
            client.map("completions", [{"n": 0}])
        with pytest.raises(EndpointError, match="redirects to"):
            client.map("completions", [{"n": 1}])
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-" not in str(told.value) + caplog.text + repr(vars(client))
    assert not stranger.seen
    monkeypatch.setenv("BNBENCH_API_KEY", "sk-\u09b8")
    with pytest.raises(UsageError, match="BNBENCH_API_KEY or OPENAI_API_KEY holds a sign") as wrong:
        Client([server.url], "base")
    assert "sk-" not in str(wrong.value)


def test_it_works_inside_a_loop_that_runs(serve: Serve) -> None:
    server = serve(echo)

    async def notebook() -> int:
        return int(ask(server, n=3)[2]["n"])

    assert asyncio.run(notebook()) == 2
