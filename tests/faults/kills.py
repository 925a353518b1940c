"""SIGKILL at random moments of every command that writes: what it began, the same command ends, with the same bytes.

    python tests/faults/kills.py [--kills 200] [--seed 1] [--only evaluate,report]
    python tests/faults/kills.py --only endpoint --kills 6 --endpoint http://127.0.0.1:8123#base     a real server

Each command runs in a process that is forked from this one, which has imported all that is needed. It is killed after
a random time, or in the middle of its n-th write; a third of the killed are killed again on their way.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ARROW_NUM_THREADS": "1",
}
REPLY = "আমি শুনছি, আপনার মনের কষ্টটা বুঝি।"


@dataclass(frozen=True)
class Scene:
    """A command (`{out}` is its folder), what it finds there, and the files that must be the same at the end."""

    words: tuple[str, ...]
    before: Callable[[Path], None]
    files: tuple[str, ...]


def fork(words: Sequence[str], write: int = 0) -> int:
    """Runs a command in a child; in its `write`-th write it kills itself. Its output goes to the file `said`."""
    if child := os.fork():
        return child
    os.setsid()
    said = os.open("said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(said, number)
    left = [write]

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return call

    os.fsync = counted(os.fsync)  # type: ignore[assignment]
    os.truncate = counted(os.truncate)  # type: ignore[assignment]
    Path.replace = counted(Path.replace)  # type: ignore[assignment, method-assign]
    sys.argv = ["bnbench", *words]
    code = 1
    try:
        from bnbench.cli import main

        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(out: Path, files: Sequence[str]) -> dict[str, str]:
    found = sorted(path for pattern in files for path in out.glob(pattern) if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def orphans(session: int) -> list[int]:
    """Processes of a session that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose reply is a hash of what it was asked, in words."""

    def do_GET(self) -> None:
        self.say({"data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(asked)
        words = REPLY.split()
        digest = hashlib.sha256(json.dumps(body.get("messages", body.get("prompt"))).encode()).digest()
        text = " ".join(words[byte % len(words)] for byte in digest[:8])
        time.sleep(0.02)
        choice = {"index": 0, "finish_reason": "stop", "text": text, "message": {"role": "assistant", "content": text}}
        self.say({"model": "m", "choices": [choice], "usage": {"completion_tokens": 8, "prompt_tokens": 9}})

    def say(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def serve() -> str:
    """The address of a server that lives in a process of its own."""
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.close(ready)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
        parent = os.getppid()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.write(tell, str(server.server_port).encode())
        os.close(tell)
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(0)
    os.close(tell)
    with os.fdopen(ready) as file:
        return f"http://127.0.0.1:{file.read()}#m"


def scenes(place: Path, endpoints: Sequence[str]) -> dict[str, Scene]:
    """The commands, made ready in `place`; without `endpoints` a server of ours is asked."""
    from bnbench import demo

    for name, tail in (("a", ""), ("b", " পাশে আছি।")):
        (place / f"{name}.txt").write_text(f"{REPLY}{tail}\n" * 240, encoding="utf-8")
    (place / "long.txt").write_text(f"{REPLY}\n" * 9000, encoding="utf-8")
    done = place / "done"
    recorded = ("--predictions", f"{place}/a.txt", "--predictions", f"{place}/b.txt", "--limit", "4", "-q")
    assert wait(fork(("evaluate", *recorded, "--out", str(done)))) == 0, Path("said").read_text(encoding="utf-8")
    assert wait(fork(("human", "sheet", str(done), "--raters", "1", "--items", "4"))) == 0
    sheet = place / "sheet.csv"
    rows = list(csv.DictReader((done / "human" / "rater-1.csv").open(encoding="utf-8-sig")))
    for row in rows:
        row |= {"rater": "রিমা", "empathy": "3", "relevance": "4", "fluency": "5", "overall": "4"}
    with sheet.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)

    def nothing(_: Path) -> None:
        pass

    def finished(out: Path) -> None:
        shutil.copytree(done, out)

    run = ("generations.jsonl", "examples.jsonl", "ranking.json", "ranking.csv", "report.md", "scores/**/*.parquet")
    ask = ("--adapter", "bnbench-demo/adapter", "--limit", "6", "--batch-size", "2", "--max-new-tokens", "6", "-q")
    tune = ("--recipe", "demo", "--limit", "8", "--set", "epochs=2", "--set", "save_every=1", "-q")
    # A strict editable install links file by file, and what is published must be no link.
    bundled = Path(demo.__file__).parent
    own = (bundled / "adapter" / "adapter_config.json").resolve().parent
    asked = [word for url in endpoints or [serve()] for word in ("--endpoint", url)]
    asked += ["--tokenizer", str(bundled / "base"), "--greedy"] if endpoints else []
    dry = ("--dry-run", "--base-id", "a/b")
    adapter = ("adapter_model.safetensors", "adapter_config.json", "loss.csv")
    return {
        "evaluate": Scene(("evaluate", *ask, "--out", "{out}"), nothing, run),
        "endpoint": Scene(("evaluate", *asked, "--limit", "40", "-q", "--out", "{out}"), nothing, run),
        "recorded": Scene(("evaluate", *recorded, "--out", "{out}"), nothing, run),
        "finetune": Scene(("finetune", *tune, "--out", "{out}"), nothing, adapter),
        "report": Scene(("report", "{out}"), finished, run),
        "import": Scene(("human", "import", "{out}", str(sheet)), finished, ("ratings.jsonl", "human-ratings.csv")),
        "publish": Scene(("publish", str(own), *dry, "--out", "{out}"), nothing, ("**/*",)),
        "score": Scene(("score", f"{place}/long.txt", "--workers", "2", "--metric", "degeneration"), nothing, ()),
    }


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", default="")
    options.add_argument("--endpoint", action="append", default=[], help="URL#model of the bundled base or adapter")
    asked = options.parse_args()
    import jinja2  # noqa: F401
    import pandas as pd  # noqa: F401
    import pyarrow.parquet as pq  # noqa: F401

    import bnbench.evaluate  # noqa: F401
    import bnbench.reports.human  # noqa: F401
    from bnbench.data.corpus import load_corpus
    from bnbench.metrics import default_metrics
    from bnbench.reports.render import templates

    templates().get_template("report.html.j2")
    load_corpus(None)  # the texts of the bundled rows are cleaned once
    for metric in default_metrics(frozenset({"references", "messages"})):  # and lexicons and the encoder read
        metric.score([REPLY], [REPLY], messages=[REPLY])
    if not {"evaluate", "finetune"}.isdisjoint(asked.only.split(",")) or not asked.only:
        import peft  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        import bnbench.finetune.session  # noqa: F401
    rng, faults, total = random.Random(asked.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        place = Path(folder)
        every = {n: s for n, s in scenes(place, asked.endpoint).items() if not asked.only or n in asked.only.split(",")}
        for number, (name, scene) in enumerate(every.items()):
            out, start = place / "out", time.monotonic()
            words = [word.format(out=out) for word in scene.words]
            shutil.rmtree(out, ignore_errors=True)
            scene.before(out)
            assert wait(fork(words)) == 0, Path("said").read_text(encoding="utf-8")
            seconds, calm = time.monotonic() - start, fingerprint(out, scene.files)
            assert calm or not scene.files
            quota, kills, ends, wrong = asked.kills * (number + 1) // len(every) - total, 0, 0, list[str]()
            while kills < quota:
                shutil.rmtree(out, ignore_errors=True)
                scene.before(out)
                again = True
                while again and kills < quota:
                    child = fork(words, rng.randrange(1, 25) if rng.random() < 0.5 else 0)
                    timer = threading.Timer(rng.random() * seconds, os.kill, (child, signal.SIGKILL))
                    timer.start()
                    code = wait(child)
                    timer.cancel()
                    timer.join()
                    kills += code == -signal.SIGKILL
                    again = code == -signal.SIGKILL and rng.random() < 1 / 3
                    if name == "score":
                        end = time.monotonic() + 5
                        while (left := orphans(child)) and time.monotonic() < end:
                            time.sleep(0.05)
                        wrong += [f"workers left: {left}"] if left else []
                code = wait(fork(words))
                ends += 1
                if code or fingerprint(out, scene.files) != calm:
                    wrong.append(f"exit code {code}: {Path('said').read_text(encoding='utf-8')[-300:]}")
            total += kills
            faults += len(wrong)
            print(f"{name:<10} {kills:>4} kills, {ends:>4} ended, {len(wrong)} otherwise than undisturbed", flush=True)
            for one in dict.fromkeys(wrong):
                print(f"    {one}", flush=True)
        os.chdir("/")
    print(f"{total} kills, {faults} faults, seed {asked.seed}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
