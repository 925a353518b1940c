"""Perplexity: every backend and lm-eval's `hf`, on the same model, texts and card, in one call.

    python benchmarks/perplexity.py                                 the bundled model on the CPU, a minute: a check
    python benchmarks/perplexity.py --shape llama-3.1-8b --rows 100 --context 4096 --batches 1 2 4 \\
        --programs hf "hf nf4" vllm lm-eval "lm-eval nf4"

The texts are made of the bundled conversations and fill a window each, so that ours and lm-eval's
`loglikelihood_rolling` score the same tokens given the same ones. Ours is the command `bnbench perplexity` for base and
adapter, with no batch flag; lm-eval scores them with the base alone, at the best of `--batches`. A row says:

* tokens: how many went through the base, and per second of the backend's `likelihood` (lm-eval: of the whole call).
* bits per character of the base, by the same count of characters: the programs must agree.
* s after loading: the rest of the whole command, for base and adapter; for lm-eval the call, for the base.
* s to the first row: from the start of the process until the first row is asked for.
* peak GiB: of the card beyond what was in use before (vllm takes what it is told to), on the CPU of the processes.

`generation.py` says how lm-eval is installed. What is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
import time
from pathlib import Path

from engines import Found, add_options, best_batch, born, lm_eval, machine, measure_all, ours, prepare, table

PROGRAMS = {  # and the package that each needs
    "hf": "bnbench", "hf nf4": "bitsandbytes", "vllm": "vllm", "lm-eval": "lm_eval", "lm-eval nf4": "lm_eval",
}  # fmt: skip
COLUMNS = {
    "batch": "batch", "tokens": "tokens", "likelihood": "tokens/s", "bits": "bits per character",
    "after_loading": "s after loading", "first": "s to the first row", "peak": "peak GiB",
}  # fmt: skip


def texts(args: argparse.Namespace) -> list[str]:
    """Texts of nearly as many tokens as a window has, each from another place of the conversations."""
    from bnbench.data.corpus import load_corpus
    from bnbench.models.hub import find_model
    from bnbench.models.prompts import Prompter

    prompter = Prompter.load(find_model("base", str(args.model)))
    words = " ".join(f"{e.question} {e.reference}" for e in load_corpus(None).select("all")).split()
    made = []
    for row in range(args.rows):
        start, n = row * 997 % len(words), args.context
        # A word is a token or more; the number of words is brought down until all fit, BOS included.
        while len(prompter.answer(text := " ".join((words[start:] + words * 9)[:n]))) > args.context:
            n = min(n - 1, n * args.context // len(prompter.answer(text)))
        made.append(text)
    return made


def measured(args: argparse.Namespace, program: str) -> Found:
    """`bnbench perplexity` with a backend."""
    backend = program.split()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(args)), encoding="utf-8")
        words = ["perplexity", str(path), "--json", "-q", "--backend", backend, "--context", str(args.context)]
        words += ["--base", f"base={args.model}", "--adapter", f"adapter={args.adapter}"]
        words += ["--device", args.device] if backend == "hf" else []
        words += ["--4bit"] if program.endswith("nf4") else ["--no-4bit"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            found = ours(words, backend)
    return {**found, "bits": json.loads(printed.getvalue())["candidates"][0]["bits_per_character"]}


def lm_eval_rolls(args: argparse.Namespace, program: str) -> Found:
    """lm-eval's `loglikelihood_rolling`."""
    from lm_eval.api.instance import Instance

    from bnbench.metrics import normalize

    some = texts(args)
    lm = lm_eval(args, nf4=program.endswith("nf4"), max_length=args.context, add_bos_token=False)
    n, begun, bits = sum(len(lm.tok_encode(text)) + 1 for text in some), time.time(), [0.0]
    asked = [Instance("loglikelihood_rolling", {}, (text,), at) for at, text in enumerate(some)]

    def score(batch: int) -> int:
        lm.batch_size_per_gpu = batch
        nll = -sum(lm.loglikelihood_rolling(asked, disable_tqdm=True))
        bits[0] = nll / math.log(2) / sum(len(normalize(text)) for text in some)
        return n

    found = best_batch(args.batches, score)
    return {**found, "likelihood": found.pop("rate"), "first": begun - born(), "bits": bits[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, list(PROGRAMS))
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    args.batches = args.batches or [1, 4]
    if args.only:
        print(json.dumps((lm_eval_rolls if args.only.startswith("lm-eval") else measured)(args, args.only)))
        return
    prepare(args)
    if args.programs is None:
        args.programs = [name for name in PROGRAMS if args.device == "cuda" or not name.endswith("nf4")]
    found = measure_all(str(Path(__file__).resolve()), PROGRAMS, args)
    head = f"{args.model} on {machine(args.device)}; {args.rows} texts of up to {args.context} tokens"
    drawn = table(found, COLUMNS, "likelihood", {"× lm-eval": "lm-eval"})
    print(json.dumps(found) if args.json else f"{head}\n\n{drawn}")
    sys.exit(0 if all(found.values()) else 1)


if __name__ == "__main__":
    main()
