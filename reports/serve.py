"""A report in the browser while one works on the run: a server for this machine alone, and a look at the files."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bnbench.errors import BnbenchError, UsageError
from bnbench.records import AUDITS, GENERATIONS, RATINGS

_LOG = logging.getLogger("bnbench")
_HOST = "127.0.0.1"
_MADE_OF = ("run.json", "examples.jsonl", GENERATIONS, RATINGS, AUDITS, "scores/**/*.parquet")


def show(page: Path, write: Callable[[], object], *, port: int | None, watch: bool, pause: float = 1.0) -> None:
    """Serves a page under http://127.0.0.1:`port`/ (None: it does not; 0: any port), until Ctrl-C ends it.

    With `watch`, `write` is called whenever a file changed of which the page is made. UsageError for a port in use.
    """
    with ExitStack() as ends, suppress(KeyboardInterrupt):
        if port is not None:
            try:
                server = ends.enter_context(ThreadingHTTPServer((_HOST, port), _of(page)))
            except OSError as error:
                raise UsageError(f"--port {port}: {error.strerror}; choose another, or 0 for any") from None
            threading.Thread(target=server.serve_forever, daemon=True).start()
            ends.callback(server.shutdown)
            _LOG.info("http://%s:%d/ shows %s; Ctrl-C ends it", _HOST, server.server_port, page)
        seen = before = _stamps(page.parent)
        said = ""
        while True:
            time.sleep(pause)
            now = _stamps(page.parent)
            # Only when the files rest: an evaluation at its end has yet to take the folder for its report.
            if watch and now == before != seen:
                try:
                    write()
                    seen, said = now, ""
                    _LOG.info("%s: made again", page)
                except BnbenchError as error:
                    if str(error) != said:  # such as of an evaluation that is still at work: again, until it has ended
                        said = str(error)
                        _LOG.warning("%s", said)
            before = now


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    found = dict[Path, tuple[int, int]]()
    for path in (path for pattern in _MADE_OF for path in folder.glob(pattern)):
        with suppress(FileNotFoundError):  # it may go while we look
            found[path] = path.stat().st_mtime_ns, path.stat().st_size
    return found


def _of(page: Path) -> type[BaseHTTPRequestHandler]:
    """The answer to every request: this one page, and nothing else of the disk."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site's page may reach this port under a name of its own, but not under this machine's.
            is_here = self.headers.get("Host", "").partition(":")[0] in (_HOST, "localhost")
            if self.path != "/" or not is_here:
                self.send_error(HTTPStatus.NOT_FOUND if is_here else HTTPStatus.MISDIRECTED_REQUEST)
                return
            try:
                body = page.read_bytes()
            except OSError:  # moved away
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with suppress(ConnectionError):  # whoever asked has gone
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    return Handler
