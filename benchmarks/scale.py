"""Time and memory against size: pairs scored by `bnbench score`, and generations stored, scored and reported by
`bnbench evaluate` (two candidates' recorded replies, so that no model hides what the rest takes).

    python benchmarks/scale.py            # pairs 250,000 to 1,000,000, generations 25,000 to 100,000
    python benchmarks/scale.py --quick    # pairs 20,000 to 100,000, generations 2,000 to 10,000
    python benchmarks/scale.py --pairs 1000 2000 --generations 100 200

Every size is a command of its own. CPU seconds are those of all its processes, as the clock measures what else the
machine does; peak memory is that of all of them together, looked at ten times a second (Linux). A straight line through
the sizes says what one more costs, and `off` how far a size is from that line: 15 % is the limit for time.

Measured on 2026-11-28 on two cores of an AMD EPYC (Python 3.11) that had other work to do, which alone moves CPU
seconds by a third.

| pairs | CPU s | off | peak MiB |
|---|---|---|---|
| 250,000 | 108.3 | -0.0% | 481 |
| 1,000,000 | 423.1 | -0.0% | 539 |

A further thousand pairs take 0.42 s and 0.08 MiB (all processes together).

| generations | CPU s | off | peak MiB |
|---|---|---|---|
| 8,000 | 116.7 | +0.1% | 752 |
| 24,000 | 370.1 | -3.5% | 1,058 |
| 25,000 | 416.6 | +4.0% | 1,034 |
| 100,000 | 1,345.9 | | 2,636 |

Measured on 2026-11-29 on the same machine, while up to ten processes waited for its two cores; the first two side by
side, and with a sampler of memory inside, the last in a run of its own, later and beside fewer others: `off` is of the
first three. A generation takes 14.6, 15.4, 16.7 and 13.5 ms, and stands for eight scored replies: of each item, beside
those of the two candidates, fourteen of yardsticks.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.metrics import descendants, make_pairs, resident, write_pairs  # noqa: E402
from bnbench.records import line_of  # noqa: E402

LIMIT = 0.15  # of a size's time, away from the straight line


def score(n: int, folder: Path) -> list[str]:
    """n pairs: replies as JSONL, references as Parquet."""
    replies, references = write_pairs(n, folder)
    return ["score", str(replies), "--references", str(references)]


def evaluate(n: int, folder: Path) -> list[str]:
    """n generations: half as many items, of whose messages cleaning drops none, and two candidates."""
    chance = random.Random(2)
    (messages, references), (first, second) = make_pairs(2000, 3, distinct=16_000), make_pairs(2000, 4, distinct=16_000)
    names = ["data.jsonl", "first.jsonl", "second.jsonl"]
    files = [(folder / name).open("wb") for name in names]
    for i in range(n // 2):
        row = chance.randrange(2000)
        # Ten words of another row make the message one that no cleaning takes for a duplicate; all are held out,
        # so that none is dropped for being near one.
        message = " ".join([*messages[row].split(), *chance.sample(messages[chance.randrange(2000)].split() * 10, 10)])
        told = {"id": f"item-{i}", "Topics": "বিষয়", "Question-Title": "", "Questions": f"{i} {message}",
                "split": "test"}  # fmt: skip
        rows = (told | {"Answers": references[row]}, {"id": told["id"], "reply": first[row]},
                {"id": told["id"], "reply": second[row]})  # fmt: skip
        for file, one in zip(files, rows, strict=True):
            file.write(line_of(one) + b"\n")
    for file in files:
        file.close()
    data, *replies = (str(folder / name) for name in names)
    given = [f"--predictions={Path(path).stem}={path}" for path in replies]
    all_rows = ["--split", "test", "--split-sizes", f"{n}/{n}/{n}"]
    return ["evaluate", *given, "--data", data, *all_rows, "--out", str(folder / "run")]


def measure(words: Sequence[str]) -> tuple[float, float, float]:
    """CPU seconds, seconds on the clock and peak MiB of a command of ours and what it starts."""
    clock, peak = time.perf_counter(), 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "bnbench", *words, "--quiet"]
        running = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=environment)
        while True:
            ended, status, used = os.wait4(running.pid, os.WNOHANG)
            if ended:
                break
            peak = max(peak, sum(map(resident, descendants(running.pid))))
            time.sleep(0.1)
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            said.seek(0)
            sys.exit(f"bnbench {words[0]} failed:\n{said.read().decode()}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - clock, peak / 2**20


def table(what: str, sizes: Sequence[int], make: Callable[[int, Path], list[str]]) -> list[str]:
    """Markdown: a row a size, and what one more costs by the straight line of least relative squares."""
    found = []
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(make(n, Path(folder))))
            journal = Path(folder) / "run" / "generations.jsonl"
            if journal.exists() and (there := journal.read_bytes().count(b"\n")) != n:
                sys.exit(f"{there:,} generations instead of {n:,}: cleaning dropped the others")
            print(f"{n:,} {what}: {found[-1][0]:.1f} s, {found[-1][2]:.0f} MiB", file=sys.stderr, flush=True)
    cpu, clock, peak = np.array(found).T
    x = np.array(sizes, dtype=float)
    lines = [f"| {what} | CPU s | off | clock s | peak MiB |", "|---|---|---|---|---|"]
    if len(sizes) < 2:
        return [*lines, f"| {sizes[0]:,} | {cpu[0]:.1f} | – | {clock[0]:.1f} | {peak[0]:.0f} |"]
    slope, start = np.polyfit(x, cpu, 1, w=1 / cpu)
    off = cpu / (slope * x + start) - 1
    more, still = np.polyfit(x, peak, 1)
    rows = zip(sizes, cpu, off, clock, peak, strict=True)
    lines.extend("| {:,} | {:.1f} | {:+.1%} | {:.1f} | {:.0f} |".format(*row) for row in rows)
    memory = f"{still:.0f} MiB and {1000 * more:.2f} MiB per 1,000"
    lines += ["", f"{start:.1f} s and {1000 * slope:.3f} s per 1,000; {memory}"]
    return [*lines, "linear within 15 %" if np.abs(off).max() <= LIMIT else "NOT linear within 15 %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    parser.add_argument("--pairs", type=int, nargs="*", metavar="N")
    parser.add_argument("--generations", type=int, nargs="*", metavar="N")
    asked = parser.parse_args()
    pairs, generations = ([20_000, 50_000, 100_000], [2_000, 5_000, 10_000]) if asked.quick else (
        [250_000, 500_000, 1_000_000], [25_000, 50_000, 100_000])  # fmt: skip
    if asked.pairs is not None or asked.generations is not None:
        pairs, generations = asked.pairs or [], asked.generations or []
    for what, sizes, make in (("pairs", pairs, score), ("generations", generations, evaluate)):
        if sizes:
            print("\n".join([*table(what, sizes, make), ""]), flush=True)


if __name__ == "__main__":
    main()
