"""A model behind OpenAI-compatible servers: many requests at once, in bounded time and memory, ends in plain words.

The key is read from BNBENCH_API_KEY, else OPENAI_API_KEY, at each use: it is kept nowhere, and goes to no other host,
because redirects are not followed.
"""

import asyncio
import contextlib
import difflib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bnbench.errors import CandidateError, EndpointError, UsageError, require

KEYS = ("BNBENCH_API_KEY", "OPENAI_API_KEY")
MOST_BYTES = 16 * 2**20  # of one answer: the log-probabilities of 4,096 tokens are 1 MB
MOST_AT_ONCE = 64  # requests a URL
DOWN_FOR = 30.0  # seconds, at least, that a server which failed gets nothing, while there are others

log = logging.getLogger("bnbench.models")
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, in seconds: to connect, for a whole answer, and before each of `attempts` again:
    `wait` and its doubles with jitter, and what the server asks for in Retry-After; each at most `most_wait`.
    """

    connect: float = 10.0
    total: float = 600.0
    attempts: int = 7
    wait: float = 1.0
    most_wait: float = 60.0


class AgainError(EndpointError):
    """A failure that may pass: `after` seconds, where the server says so. A time-out is tried once more only."""

    def __init__(self, message: str, status: int = 0, after: float | None = None, is_slow: bool = False) -> None:
        super().__init__(message, status)
        self.after, self.is_slow = after, is_slow


class _Server:
    """One URL, and how many requests it gets at once: more while that pays, half when it has too much."""

    def __init__(self, url: str) -> None:
        self.url, self.active, self.limit, self.down_until, self.shut_until, self.answered = url, 0, 8, 0.0, 0.0, 0.0
        self._rate, self._done, self._since, self._halved = 0.0, 0, time.monotonic(), 0.0

    def rest(self) -> None:
        """A pause that says nothing about its speed."""
        self._done, self._since = 0, time.monotonic()

    def succeeded(self) -> None:
        """As often as there are requests at once its rate is looked at: the limit goes up while the rate does."""
        self.down_until, self.answered = 0.0, time.monotonic()
        self._done += 2 * self.active > self.limit  # with less to do its rate says nothing
        if self._done >= self.limit:
            rate = self._done / max(time.monotonic() - self._since, 1e-6)
            if rate > 1.1 * self._rate:
                self._rate, self.limit = rate, min(MOST_AT_ONCE, self.limit + (1 if self._halved else self.limit))
            self.rest()

    def failed(self, error: AgainError, start: float, most_wait: float) -> None:
        """Halves the limit, once for all requests that were under way: they say the same."""
        if not self.down_until:
            log.warning("%s; trying again", error)
        now = time.monotonic()
        self.shut_until = max(self.shut_until, now + min(error.after or 0.0, most_wait))  # to every request
        # Whatever it was, the others do better: for as long as it took to fail, or as it asks for.
        self.down_until = now + max(DOWN_FOR, now - start, error.after or 0.0)
        if start > self._halved:
            self.limit, self._rate, self._halved = max(1, self.limit // 2), 0.0, now
            self.rest()


class Client:
    """Asks one model, wherever it is served: the servers at `urls` (with /v1) share its requests.

    Raises EndpointError where a server cannot be reached or refuses, MissingExtraError without httpx and tenacity, and
    UsageError for a key that no HTTP header can hold.
    """

    def __init__(self, urls: Sequence[str], model: str, patience: Patience | None = None) -> None:
        self._httpx, self._tenacity = (require(name, extra="endpoint") for name in ("httpx", "tenacity"))
        self.model, self.patience, self._servers = model, patience or Patience(), [_Server(url) for url in urls]
        self._key()

    def models(self) -> list[dict[str, str]]:
        """Each server's models, and who owns each; none without a list. One that is down or refuses the key raises."""

        async def ask() -> list[dict[str, str]]:
            found = []
            async with self._open() as http:
                for server in self._servers:
                    try:
                        page = await self._send(http, server, "models", None)
                        listed = None if page.get("has_more") else page.get("data")  # of a part nothing follows
                    except EndpointError as error:
                        if error.status in (0, 401, 403):
                            raise
                        listed = None
                    models = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
                    found.append({m["id"]: str(m.get("owned_by")) for m in models if isinstance(m.get("id"), str)})
            return found

        return _run(ask())

    def owner(self) -> str:
        """Whose server serves the model: the first question to it, without patience, as `models` asks. Raises
        CandidateError where one does not serve it, with what it serves, the nearest name first.
        """
        listed = self.models()
        for server, names in zip(self._servers, listed, strict=True):
            # `transformers serve FOLDER` lists what is in the hub cache, and not what it serves.
            if names and self.model not in names and not Path(self.model).is_dir():
                near = self.words(", ".join(difflib.get_close_matches(self.model, names, n=12, cutoff=0.0)))
                raise CandidateError(f"{server.url} serves no model {self.model!r}; it has {near}")
        return listed[0].get(self.model, "")

    def map(
        self, path: str, bodies: Sequence[dict[str, Any]], most: int = MOST_AT_ONCE,
        read: Callable[[dict[str, Any]], Any] = dict,
    ) -> list[Any]:  # fmt: skip
        """The answers to POST requests to `path` ("chat/completions"), in their order, as `read` makes them.

        The model's name is added. A server gets at most `most` at once. What may pass (429, 5xx, a lost connection,
        half an answer) is tried again, on another server where there is one; the first failure that stays ends the
        others, and has with it what was answered before (`EndpointError.before`). A message that a server's filter
        refuses is answered by an empty choice of the finish_reason "content_filter".
        """

        async def ask() -> list[Any]:
            room, waiting = asyncio.Event(), list[int]()
            for server in self._servers:
                server.rest()
            try:
                async with self._open() as http, asyncio.TaskGroup() as group:
                    asked = ({"model": self.model, **body} for body in bodies)
                    work = [self._insist(http, room, waiting, path, body, most, read) for body in asked]
                    tasks = [group.create_task(one) for one in work]
            except BaseExceptionGroup as failures:
                first = failures.exceptions[0]
                if not isinstance(first, EndpointError):
                    raise first from None
                came = [None if task.cancelled() or task.exception() else task.result() for task in tasks]
                raise EndpointError(str(first), first.status, came, first.said) from None
            return [task.result() for task in tasks]

        return _run(ask())

    async def _insist(
        self, http: Any, room: asyncio.Event, waiting: list[int], path: str, body: dict[str, Any], most: int,
        read: Callable[[dict[str, Any]], Any],
    ) -> Any:  # fmt: skip
        """One answer, over as many attempts as patience allows, each on the server that has most room.

        Of those that are `waiting` for room the one with most attempts goes first. Else, where every attempt takes
        long, all others would fail before the first could fail for good, which is hours.
        """
        patience, tenacity, tried, slow, since = self.patience, self._tenacity, 0, 0, float("inf")
        wait = tenacity.wait_exponential_jitter(patience.wait, patience.most_wait, jitter=patience.wait)
        async for attempt in tenacity.AsyncRetrying(retry=tenacity.retry_if_exception_type(AgainError), wait=wait):
            with attempt:
                n = attempt.retry_state.attempt_number
                waiting.append(n)
                while n < max(waiting) or not (ready := self._ready(most)):
                    room.clear()
                    left = [s.shut_until - time.monotonic() for s in self._servers]
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(min((pause for pause in left if pause > 0), default=None)):
                            await room.wait()
                waiting.remove(n)
                server = min(ready, key=lambda s: s.active / s.limit)
                server.active += 1
                room.set()  # now the next one is the first
                start = time.monotonic()
                try:
                    answer = await self._send(http, server, path, body)
                    server.succeeded()
                    return read(answer)
                except AgainError as error:
                    server.failed(error, start, patience.most_wait)
                    # 429 of a server that answered others since the attempt before is a queue, and no fault.
                    tried += error.status != 429 or server.answered < since
                    slow, since = slow + error.is_slow, start
                    if slow > 1 or tried >= patience.attempts:
                        raise EndpointError(str(error), error.status) from None
                    raise
                finally:
                    server.active -= 1
                    room.set()
        raise AssertionError("tenacity returns or raises")

    def _ready(self, most: int) -> list[_Server]:
        """The servers that have room; one that is down is asked where there is no other, one that is shut never."""
        now = time.monotonic()
        asked = [s for s in self._servers if s.shut_until <= now]
        return [s for s in [s for s in asked if s.down_until <= now] or asked if s.active < min(s.limit, most)]

    def _open(self) -> Any:
        """A connection pool. Compressed answers are not asked for: a small one can unpack to any size."""
        key, headers = self._key(), {"Accept-Encoding": "identity", "User-Agent": "bnbench"}
        timeout = self._httpx.Timeout(self.patience.total, connect=self.patience.connect, pool=None)
        limits = self._httpx.Limits(max_connections=None, max_keepalive_connections=MOST_AT_ONCE)
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        try:
            return self._httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, follow_redirects=False)
        except (ImportError, ValueError, OSError, self._httpx.InvalidURL) as error:
            what = "a proxy or certificate file that the environment names (HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE …)"
            raise UsageError(f"{what} cannot be used: {self.words(str(error))}") from None

    async def _send(self, http: Any, server: _Server, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """One attempt at one server: a JSON object, or EndpointError (`AgainError` for what may pass)."""
        url, data = f"{server.url}/{path}", bytearray()
        try:
            async with (
                asyncio.timeout(self.patience.total),
                http.stream("GET" if body is None else "POST", url, json=body) as answer,
            ):
                async for chunk in answer.aiter_raw(65536):
                    data += chunk
                    if len(data) > MOST_BYTES:
                        raise EndpointError(f"{url}: the answer is larger than {MOST_BYTES // 2**20} MiB")
        except (self._httpx.InvalidURL, UnicodeError) as error:
            raise EndpointError(f"{url}: no URL that can be asked ({self.words(str(error))})") from None
        except (self._httpx.ConnectError, self._httpx.ConnectTimeout) as error:
            raise AgainError(f"{url}: no server answers ({self.words(str(error) or 'time-out')})") from None
        except (TimeoutError, self._httpx.TimeoutException):
            raise AgainError(f"{url}: no whole answer within {self.patience.total:g} s", is_slow=True) from None
        except (self._httpx.TransportError, OSError) as error:
            why = self.words(str(error) or type(error).__name__)
            raise AgainError(f"{url}: the connection was lost ({why})") from None
        status, coding = int(answer.status_code), answer.headers.get("Content-Encoding", "").lower()
        if answer.is_success and coding not in ("", "identity"):
            raise EndpointError(f"{url}: the answer is compressed ({self.words(coding)}), which was not asked for")
        try:
            found, key = json.loads(data), self._key()
            letters = max(re.findall("[A-Za-z0-9]*", key), key=len).encode()  # which are spelt in one way
            # A shorter one ("EMPTY") stands for no key, and may be found in words that are none.
            found = self._without_key(found) if body and len(key) >= 8 and letters in data else found
        except (ValueError, RecursionError):
            found = None
        found = {"data": found} if body is None and isinstance(found, list) else found  # so Together lists its models
        if answer.is_success and not isinstance(found, dict):
            raise AgainError(f"{url}: the answer is no whole JSON object: {self.words(data)}")
        if answer.is_success and (found.get("choices") or not found.get("error")):
            return found
        match found:
            case {
                "error": {"code": "content_filter"}
                | {"innererror": {"code": "ResponsibleAIPolicyViolation"}}
                | {"code": 403, "metadata": {"reasons": [_, *_]}}
            }:  # Azure and OpenRouter: a refusal of what this message says, by their codes alone
                return {"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]}
            case {"error": {"code": code}} if answer.is_success and re.fullmatch("[45][0-9]{2}", str(code)):
                status = int(code)  # so OpenRouter passes on what a model's host says
        raise self._failure(url, answer, status, data)

    def _failure(self, url: str, answer: Any, status: int, data: bytearray) -> EndpointError:
        """What a server's status means; `status` is that of the error where the answer's own is 200."""
        said = self.words(data)
        if status == 500 and "validation error" in said:  # as llama-cpp-python tells a request that it cannot read
            status = 422
        if status < 300 or status in (408, 409, 425, 429) or status >= 500:
            after = answer.headers.get("Retry-After", "")  # or a date, which is not looked at
            seconds = float(after) if re.fullmatch(r"\d+(\.\d+)?", after) else None
            what = "an error with status 200" if answer.is_success else f"status {status}"
            return AgainError(f"{url}: {what}: {said}", status, seconds)
        if 300 <= status < 400:
            where = self.words(re.sub(r"//[^/]*@|\?.*", "//", answer.headers.get("Location", "")).rstrip("/"))
            return EndpointError(f"{url}: redirects to {where}, which is not followed; name that URL", status)
        name = next((name for name in KEYS if os.environ.get(name)), "")
        key = f"the key in {name} is not accepted" if name else f"it wants a key: set {KEYS[0]}"
        told = {401: key, 403: f"the model {self.model} is forbidden to {name or 'whoever has no key'}"}
        told[404] = f"there is no such path, or no model {self.model}; is this an OpenAI-compatible server?"
        refusal = f"{url}: {told.get(status, 'it refuses the request')} (status {status}: {said})"
        return EndpointError(refusal, status, said=data.decode(errors="replace"))

    def _key(self) -> str:
        key = next((value for name in KEYS if (value := os.environ.get(name, "").strip())), "")
        if not (key.isascii() and key.isprintable()):
            raise UsageError(f"{KEYS[0]} or {KEYS[1]} holds a sign that no HTTP header can carry; set it again")
        return key

    def _without_key(self, found: Any) -> Any:
        """The same without the key, however it is spelt: as in a URL (%2F) or in JSON (\\/, \\u002f)."""
        if isinstance(found, dict):
            return {name: self._without_key(value) for name, value in found.items()}
        if isinstance(found, list):
            return [self._without_key(value) for value in found]
        if not isinstance(found, str) or not (key := self._key()):
            return found
        signs = (rf"(?:\\?{re.escape(c)}|%{ord(c):02x}|\\u{ord(c):04x})" for c in key)
        return re.sub("".join(signs), "***", found, flags=re.IGNORECASE)

    def words(self, said: str | bytearray) -> str:
        """What a server says, fit for a terminal: short, on one line, without the key that it may repeat."""
        text = self._without_key(said if isinstance(said, str) else said.decode(errors="replace"))
        text = " ".join(text[:2000].split())
        return "".join(c if c.isprintable() else "\ufffd" for c in text[:300]) or "nothing"


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, also where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
