"""A report that is served and made again: to this machine alone, one page, until Ctrl-C."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bnbench.errors import RunError, UsageError
from bnbench.reports.serve import show
from tests.reports.conftest import PAIR


def test_one_page_is_served_and_made_again_until_ctrl_c(make_run: Callable[..., Path]) -> None:
    folder = make_run(PAIR, n=3, metrics=("chrF++",))
    words = ["report", str(folder), "--serve", "--watch", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "bnbench", *words], text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
    ) as process:  # fmt: skip
        assert process.stderr
        told = process.stderr.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/ shows .*report\.html; Ctrl-C ends it$", told)
        assert found, told

        def get(path: str, host: str = "localhost") -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
            connection.request("GET", path, headers={"Host": f"{host}:{found[1]}"})
            answer = connection.getresponse()
            return answer.status, answer.read()

        assert get("/") == (200, (folder / "report.html").read_bytes())
        assert [get("/", "evil.example")[0], get("/run.json")[0], get("/../run.json")[0]] == [421, 404, 404]
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        for notes, finished in (["পরে যোগ করা টীকা"], None), (["পরে যোগ করা টীকা"], record["finished"]):
            (folder / "run.json").write_text(json.dumps(record | {"notes": notes, "finished": finished}))
            said = process.stderr.readline()
            assert ("made again" if finished else "not finished") in said
        assert "পরে যোগ করা টীকা" in get("/")[1].decode()
        # A reader who goes in the middle, and a page that was moved away, are no errors of ours.
        (folder / "report.html").write_bytes(b"x" * 30_000_000)
        with socket.create_connection(("127.0.0.1", int(found[1]))) as gone:
            gone.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.recv(10)
        (folder / "report.html").unlink()
        assert get("/")[0] == 404
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""


def test_a_folder_in_which_another_works_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = list[int]()

    def write() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise RunError("another bnbench works in this folder")
        (tmp_path / "report.html").write_text("new", encoding="utf-8")

    def change_and_interrupt(seconds: float) -> None:
        if not (tmp_path / "run.json").exists():
            (tmp_path / "run.json").write_text("{}", encoding="utf-8")
        elif len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO", "bnbench"):
        patch.setattr("bnbench.reports.serve.time.sleep", change_and_interrupt)
        show(tmp_path / "report.html", write, port=None, watch=True)
    assert [r.message.rpartition(": ")[2] for r in caplog.records] == [
        "another bnbench works in this folder", "made again",
    ]  # fmt: skip


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: .*choose another, or 0 for any"):
            show(tmp_path / "report.html", lambda: None, port=port, watch=False)
