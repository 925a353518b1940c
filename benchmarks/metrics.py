"""The metrics beside their peers: the same Bengali pairs, one process each, seconds per 1,000 pairs, ratio, and
equality of scores.

    python benchmarks/metrics.py [--pairs 2000] [--json] [--distinct 0 16000]
    python benchmarks/metrics.py --stream 1000000

Every program scores the same pairs of 10-120 words with the same normalisation and tokenisation (ours, also handed to
the peers). The pairs are made with a fixed seed from the bundled conversations, whose vocabulary is small, and again
from 16,000 made-up words, of which each costs once. A process imports its packages, scores once to
be warm where that is cheap, and reports the best of some runs in CPU seconds, so that a busy machine disturbs little;
`cold` is our first run. A peer that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

KINDS = ["rouge1", "rouge2", "rougeL"]
Scores = dict[str, list[float]]
Job = Callable[[], Scores]


def bundled_texts() -> list[str]:
    """The questions and answers of the bundled conversations."""
    with (ROOT / "bnbench" / "demo" / "conversations.csv").open(encoding="utf-8", newline="") as lines:
        return [row[column] for row in csv.DictReader(lines) for column in ("Questions", "Answers")]


def make_pairs(
    n: int, seed: int = 0, least: int = 10, most: int = 120, distinct: int = 0
) -> tuple[list[str], list[str]]:
    """(predictions, references) of `least`-`most` words; a prediction keeps about half of its reference, in pieces.

    The words are those of the bundled conversations, or so many `distinct` ones that are made up; one in ten ends a
    sentence.
    """
    chance, predictions, references = random.Random(seed), [], []
    pool = [word for text in bundled_texts() for word in text.split()] if not distinct else made_up(distinct, chance)
    for _ in range(n):
        start, length = chance.randrange(len(pool) - most), chance.randint(least, most)
        words = pool[start : start + length]
        changed = [word if chance.random() < 0.6 else chance.choice(pool) for word in words]
        cut = chance.randrange(len(changed))
        references.append(" ".join(words))
        predictions.append(" ".join(changed[cut:] + changed[: chance.randrange(len(changed) + 1)]))
    return predictions, references


def made_up(distinct: int, chance: random.Random) -> list[str]:
    """A running text with that many different words of two to five syllables."""
    letters, signs, words = (
        "কখগঘচছজটডতথদধনপফবভমরলশসহ",
        ["", "\u09be", "\u09bf", "\u09c1", "\u09c7", "\u09cb"],
        dict[str, None](),
    )
    while len(words) < distinct:
        words["".join(chance.choice(letters) + chance.choice(signs) for _ in range(chance.randint(2, 5)))] = None
    text = [*words, *chance.choices([*words], k=2 * distinct)]
    chance.shuffle(text)
    return [word + "।" * (chance.random() < 0.1) for word in text]


def ours(predictions: list[str], references: list[str], lexical: bool) -> Job:
    """Normalisation included. The whole set is ROUGE-1/2/L/Lsum, BLEU, chrF and chrF++."""
    from bnbench.metrics import BLEU, ROUGE, ChrF, ChrFPlusPlus, Texts, statistics

    metrics = [ROUGE(), BLEU(), ChrF(), ChrFPlusPlus()] if lexical else [ROUGE(types=KINDS)]

    def run() -> Scores:
        tables = statistics(Texts.of(predictions, references), metrics)
        scores: Scores = {}
        for metric, table in zip(metrics, tables, strict=True):
            singly = metric.formula(table)
            scores |= {name: singly[:, i].tolist() for i, name in enumerate(metric.values) if "_" not in name}
            if metric.name != "ROUGE":
                scores[f"corpus {metric.name}"] = metric.formula(table.sum(axis=0)).tolist()
        return scores

    return run


def rouge_score(predictions: list[str], references: list[str], lsum: bool) -> Job:
    """google-research's rouge-score with our tokeniser; for Lsum one sentence a line, as it wants."""
    from rouge_score.rouge_scorer import RougeScorer

    from bnbench.metrics import BengaliTokenizer

    tokenizer = BengaliTokenizer()

    def run() -> Scores:
        kinds = [*KINDS, "rougeLsum"] if lsum else KINDS
        scorer = RougeScorer(kinds, tokenizer=tokenizer)
        lined = (
            (tokenizer.sentences(predictions), tokenizer.sentences(references)) if lsum else (predictions, references)
        )
        found = [scorer.score(r, p) for p, r in zip(*lined, strict=True)]
        return {kind: [100 * score[kind].fmeasure for score in found] for kind in kinds}

    return run


def rouge_score_rs(predictions: list[str], references: list[str]) -> Job:
    """The Rust port of rouge-score, with our tokeniser."""
    import rouge_score_rs

    from bnbench.metrics import BengaliTokenizer

    tokenizer = BengaliTokenizer()

    def run() -> Scores:
        scorer = rouge_score_rs.RougeScorer(KINDS, tokenizer=tokenizer)
        found = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
        return {kind: [100 * score[kind].fmeasure for score in found] for kind in KINDS}

    return run


def sacre(predictions: list[str], references: list[str]) -> Job:
    """sacrebleu's corpus BLEU, chrF and chrF++ on our tokens."""
    import sacrebleu

    from bnbench.metrics import BengaliTokenizer

    tokenizer = BengaliTokenizer(punctuation=True)

    def run() -> Scores:
        made, against = list(map(tokenizer, predictions)), [list(map(tokenizer, references))]
        peers = {"BLEU": sacrebleu.BLEU(tokenize="none", force=True), "chrF": sacrebleu.CHRF()}
        peers["chrF++"] = sacrebleu.CHRF(word_order=2)
        return {f"corpus {name}": [peer.corpus_score(made, against).score] for name, peer in peers.items()}

    return run


def torchmetrics(predictions: list[str], references: list[str]) -> Job:
    """torchmetrics' ROUGE with our tokeniser (its own finds no Bengali at all)."""
    from torchmetrics.functional.text import rouge_score

    from bnbench.metrics import BengaliTokenizer

    tokenizer = BengaliTokenizer()

    def run() -> Scores:
        scores: Scores = {kind: [] for kind in KINDS}
        for prediction, reference in zip(predictions, references, strict=True):
            made = rouge_score(
                prediction,
                reference,
                tokenizer=tokenizer.tokenize,
                normalizer=lambda text: text,
                rouge_keys=tuple(KINDS),
            )
            for kind in KINDS:
                scores[kind].append(100 * float(made[f"{kind}_fmeasure"]))
        return scores

    return run


def significance(predictions: list[str], references: list[str]) -> Job:
    """10,000 paired resamples and as many sign flips of ROUGE, BLEU, chrF and chrF++ at once."""
    from bnbench.metrics import BLEU, ROUGE, ChrF, ChrFPlusPlus, Texts, paired_tests, statistics

    metrics = [ROUGE(), BLEU(), ChrF(), ChrFPlusPlus()]
    a = statistics(Texts.of(predictions, references), metrics)
    b = statistics(Texts.of([" ".join(p.split()[:-2]) for p in predictions], references), metrics)

    def run() -> Scores:
        found = paired_tests([(x, y, metric.formula) for x, y, metric in zip(a, b, metrics, strict=True)])
        return {"p": [value.p_value for values in found for value in values]}

    return run


RESAMPLING = "ours, 10,000 paired resamples"
PROGRAMS: dict[str, tuple[str, Callable[[list[str], list[str]], Job], int]] = {
    "ours, ROUGE-1/2/L": ("bnbench", lambda p, r: ours(p, r, lexical=False), 5),
    "rouge-score, ROUGE-1/2/L": ("rouge_score", lambda p, r: rouge_score(p, r, lsum=False), 2),
    "rouge-score-rs, ROUGE-1/2/L": ("rouge_score_rs", rouge_score_rs, 5),
    "torchmetrics, ROUGE-1/2/L": ("torchmetrics", torchmetrics, 1),
    "ours, all lexical": ("bnbench", lambda p, r: ours(p, r, lexical=True), 5),
    "rouge-score, with Lsum": ("rouge_score", lambda p, r: rouge_score(p, r, lsum=True), 1),
    "sacrebleu, BLEU chrF chrF++": ("sacrebleu", sacre, 1),
    RESAMPLING: ("bnbench", significance, 2),
}


def measure(program: str, n: int, distinct: int) -> dict[str, Any]:
    """Run one program in this process: CPU seconds of the first and of the best run, wall seconds of the best,
    scores.
    """
    _, prepare, times = PROGRAMS[program]
    job = prepare(*make_pairs(n, distinct=distinct))
    cpu, wall = [], []
    for _ in range(times):
        start, clock = time.process_time(), time.perf_counter()
        scores = job()
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
    return {"cold": cpu[0], "cpu": min(cpu), "wall": min(wall), "scores": scores}


def in_its_own_process(program: str, n: int, distinct: int) -> dict[str, Any] | None:
    """`measure` in a new interpreter; None where the package is not installed."""
    if importlib.util.find_spec(PROGRAMS[program][0]) is None:
        return None
    command = [sys.executable, str(Path(__file__).resolve()), "--only", program, "--pairs", str(n)]
    command += ["--distinct", str(distinct)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stderr}")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def furthest(a: Scores, b: Scores) -> float:
    """The greatest difference between two programs' scores of the same name."""
    shared = [name for name in a if name in b and len(a[name]) == len(b[name])]
    return max((float(np.abs(np.array(a[name]) - b[name]).max()) for name in shared), default=float("nan"))


def row(program: str, made: dict[str, Any], own: dict[str, Any], n: int) -> str:
    """One line of the table; `own` is the measurement of ours that does the same work."""
    best, cold = made["cpu"] * 1000 / n, made["cold"] * 1000 / n
    if program.startswith("ours"):
        return f"| {program} | {best:.4f} | {cold:.4f} | 1 | |"
    against = f"{made['cpu'] / own['cpu']:.1f}x (first runs {made['cold'] / own['cold']:.1f}x)"
    return f"| {program} | {best:.4f} | {cold:.4f} | {against} | {furthest(made['scores'], own['scores']):.1e} |"


def report(found: dict[str, dict[str, Any] | None], n: int, distinct: int) -> list[str]:
    """The table as lines of Markdown."""
    words = f"words, {distinct} distinct ones in all" if distinct else "words of the bundled conversations"
    lines = [f"{n} pairs of 10-120 {words}, seconds of CPU per 1,000 pairs", ""]
    lines += ["| program | best run | first run | against ours | largest difference |", "|---|---|---|---|---|"]
    for program, made in found.items():
        own = found["ours, all lexical" if "Lsum" in program or "sacrebleu" in program else "ours, ROUGE-1/2/L"]
        if made is None or own is None:
            lines.append(f"| {program} | not installed | | | |")
        elif program == RESAMPLING:
            lines.append(f"| {program} | {made['cpu']:.2f} s in all, {made['wall']:.2f} s on the clock | | | |")
        else:
            lines.append(row(program, made, own, n))
    peers = [found["rouge-score, with Lsum"], found["sacrebleu, BLEU chrF chrF++"], found["ours, all lexical"]]
    if all(peers):
        rouge, bleu, own_cpu = (made["cpu"] for made in peers if made)
        together = f"{(rouge + bleu) * 1000 / n:.4f} | | {(rouge + bleu) / own_cpu:.1f}x"
        cold = sum(made["cold"] for made in peers[:2] if made) / peers[2]["cold"] if peers[2] else 0
        lines.append(f"| rouge-score + sacrebleu | {together} (first runs {cold:.1f}x) | |")
    return [*lines, ""]


def stream(n: int) -> str:
    """`bnbench score` on n pairs, replies as JSONL, references as Parquet: time, and peak memory of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        replies, references = write_pairs(n, Path(folder))
        command = [sys.executable, "-m", "bnbench", "score", str(replies), "--references", str(references)]
        clock, peak, most = time.perf_counter(), 0, 0
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as scoring:
            while scoring.poll() is None:
                processes = descendants(scoring.pid)
                peak, most = max(peak, sum(map(resident, processes))), max(most, len(processes))
                time.sleep(0.1)
            printed = scoring.stdout.read() if scoring.stdout else ""
        seconds = time.perf_counter() - clock
    if scoring.returncode:
        sys.exit(f"bnbench score failed with exit code {scoring.returncode}")
    lines = [printed, f"{n} pairs in {seconds:.0f} s, {n / seconds:.0f} pairs/s"]
    return "\n".join([*lines, f"peak memory: {peak / 2**20:.0f} MiB in {most} processes together"])


def write_pairs(n: int, folder: Path) -> tuple[Path, Path]:
    """n pairs of 10-120 words with ids, written some at a time."""
    import pyarrow
    import pyarrow.parquet

    predictions, references = make_pairs(4000)
    chance, paths = random.Random(1), (folder / "replies.jsonl", folder / "references.parquet")
    schema = pyarrow.schema([("id", pyarrow.string()), ("reference", pyarrow.string())])
    with paths[0].open("w", encoding="utf-8") as lines, pyarrow.parquet.ParquetWriter(paths[1], schema) as table:
        for start in range(0, n, 50_000):
            ids = [str(i) for i in range(start, min(start + 50_000, n))]
            rows = chance.choices(range(4000), k=len(ids))
            found = [f"{i} {references[row]}" for i, row in zip(ids, rows, strict=True)]
            table.write_batch(pyarrow.record_batch([ids, found], schema=schema))
            for i, row in zip(ids, rows, strict=True):
                lines.write(json.dumps({"id": i, "reply": predictions[row]}, ensure_ascii=False) + "\n")
    return paths


def descendants(process: int) -> list[int]:
    """A process and those it started (Linux)."""
    try:
        tasks = [task / "children" for task in Path(f"/proc/{process}/task").iterdir()]
        started = [int(child) for children in tasks for child in children.read_text(encoding="ascii").split()]
    except OSError:
        return []
    return [process, *(one for child in started for one in descendants(child))]


def resident(process: int) -> int:
    """Bytes in memory; 0 when the process has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--distinct", type=int, nargs="+", default=[0, 16_000], help="different words; 0: ours")
    parser.add_argument("--json", action="store_true", help="print the measurements for a machine")
    parser.add_argument("--only", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--stream", type=int, metavar="N", help="time `bnbench score` on N pairs instead")
    asked = parser.parse_args(arguments)
    if asked.stream:
        print(stream(asked.stream))
        return
    if asked.only:
        print(json.dumps(measure(asked.only, asked.pairs, asked.distinct[0])))
        return
    for distinct in asked.distinct:
        found = {program: in_its_own_process(program, asked.pairs, distinct) for program in PROGRAMS}
        if asked.json:
            plain = {name: made and {k: v for k, v in made.items() if k != "scores"} for name, made in found.items()}
            print(json.dumps({"distinct": distinct, "programs": plain}))
        else:
            print("\n".join(report(found, asked.pairs, distinct)))


if __name__ == "__main__":
    main()
