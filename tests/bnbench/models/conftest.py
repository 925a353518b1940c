"""A server that does what a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Act = Callable[["Handler", str, dict[str, Any]], Any]


class Handler(BaseHTTPRequestHandler):
    """One request: what the script returns goes out as JSON; None where it has written the answer itself."""

    protocol_version = "HTTP/1.1"
    server: Server

    def _do(self, body: dict[str, Any]) -> None:
        server = self.server
        with server.lock:
            server.seen.append((self.path, body))
            server.headers.append(dict(self.headers))
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            found = server.act(self, self.path, body)
            if found is not None:
                self.say(200, found)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.active -= 1

    def do_GET(self) -> None:
        self._do({})

    def do_POST(self) -> None:
        self._do(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def say(self, status: int, value: Any, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        for name, text in {"Content-Length": str(len(data)), **named}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, chunk: bytes, pause: float, times: int) -> None:
        """A body without an announced end."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        for _ in range(times):
            if self.server.closing:
                break
            self.wfile.write(chunk)
            self.wfile.flush()
            time.sleep(pause)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """`act(handler, path, body)` answers; `seen` and `headers` keep what was asked, in the order of arrival."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, act: Act, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.act, self.closing, self.lock = act, False, threading.Lock()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.most_active = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def posts(self) -> list[dict[str, Any]]:
        return [body for _, body in self.seen if body]

    def close(self) -> None:
        self.closing = True
        self.shutdown()
        self.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Starts a scripted server; no key is set."""
    for name in ("BNBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    servers: list[Server] = []

    def start(act: Act, port: int = 0) -> Server:
        servers.append(Server(act, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
