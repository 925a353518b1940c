"""Generation: every backend, plain transformers and lm-eval's `hf`, on the same model, prompts and card, in one call.

    python benchmarks/generation.py                                 the bundled model on the CPU, two minutes: a check
    python benchmarks/generation.py --shape llama-3.1-8b --items 200 --new-tokens 128 --batches 64 200 \\
        --programs hf "hf nf4" vllm transformers "transformers nf4" lm-eval
    python benchmarks/generation.py --endpoint http://127.0.0.1:8123#base --endpoint http://127.0.0.1:8123#adapter

Ours is the command `bnbench evaluate`, greedy, for base and adapter, with no batch flag; the peers answer the same
prompts with the base alone, longest first, at the best of `--batches`, after a short warm-up that ours does not get.
All run with the repetition penalty 1.1. A row says:

* tokens: how many the base made (equal where the replies are), and its tokens/s: these over the seconds in `generate`.
  Ratios are of this rate; beside it the rate of base and adapter together.
* s after loading: the rest of the whole command from then on, with likelihoods, scores and files for ours, base and
  adapter; generation alone, by the base, for the peers.
* s to the first token: from the start of the process (vllm, endpoint: to the first request; lm-eval: to its first
  batch).
* tokens/s of likelihood: prompt and reference through the base, for ours.
* peak GiB: of the card beyond what was in use before (vllm takes what it is told to), on the CPU of the processes.

lm-eval is found through PYTHONPATH: `pip install --target FOLDER --no-deps lm-eval evaluate sqlitedict word2number
pytablewriter DataProperty mbstrdecoder pathvalidate tabledata tcolorpy typepy more_itertools`. What is not installed is
named and left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engines import (
    Found,
    add_options,
    best_batch,
    born,
    lm_eval,
    load_model,
    machine,
    measure_all,
    ours,
    prepare,
    table,
)

PROGRAMS = {  # and the package that each needs
    "hf": "bnbench", "hf nf4": "bitsandbytes", "vllm": "vllm", "endpoint": "bnbench", "transformers": "transformers",
    "transformers nf4": "bitsandbytes", "lm-eval": "lm_eval", "lm-eval nf4": "lm_eval",
}  # fmt: skip
COLUMNS = {
    "batch": "batch", "tokens": "tokens", "generation": "tokens/s", "both": "tokens/s, both",
    "after_loading": "s after loading", "first": "s to the first token", "likelihood": "tokens/s of likelihood",
    "peak": "peak GiB",
}  # fmt: skip
PEERS = {"× transformers": "transformers", "× lm-eval": "lm-eval"}
PENALTY = 1.1


def evaluate(args: argparse.Namespace, program: str) -> Found:
    """`bnbench evaluate` with a backend."""
    backend = program.split()[0]
    with tempfile.TemporaryDirectory() as folder:
        words = ["evaluate", "--greedy", "--split", "all", "--limit", str(args.items), "--out", f"{folder}/run", "-q"]
        words += ["--max-new-tokens", str(args.new_tokens), "--repetition-penalty", str(PENALTY)]
        if backend == "endpoint":
            words += [word for url in args.endpoint for word in ("--endpoint", url)]
            words += ["--tokenizer", str(args.tokenizer or args.model)]
        else:
            words += ["--backend", backend, "--base", f"base={args.model}", "--adapter", f"adapter={args.adapter}"]
            words += ["--device", args.device] if backend == "hf" else []
            words += ["--4bit"] if program.endswith("nf4") else ["--no-4bit"]
        found = ours(words, backend)
        run = json.loads(Path(folder, "run", "run.json").read_text(encoding="utf-8"))
        return {**found, "stages": run["stages"]}


def prompts(args: argparse.Namespace) -> list[Any]:
    """The prompts of the same rows, longest first."""
    from bnbench.data.corpus import load_corpus
    from bnbench.models.hub import find_model
    from bnbench.models.prompts import Prompter

    prompter = Prompter.load(find_model("base", str(args.model)))
    corpus = load_corpus(None, max_tokens=4096, count_tokens=prompter.count_tokens)
    return sorted(map(prompter.prompt, corpus.select("all", args.items)), key=lambda prompt: -len(prompt.ids))


def transformers(args: argparse.Namespace, program: str) -> Found:
    """Plain `generate`, left-padded batches."""
    import torch
    from transformers import LogitsProcessorList

    asked, model = prompts(args), load_model(args, nf4=program.endswith("nf4"))
    first: list[float] = []

    def note(_: Any, scores: Any) -> Any:
        if not first:
            first.append(float(scores[0, 0]) * 0 + time.time())  # the card has made it
        return scores

    def generate(batch: int, new_tokens: int, some: list[Any]) -> int:
        made = 0
        ends = torch.tensor(model.generation_config.eos_token_id or -1, device=args.device)
        for at in range(0, len(some), batch):
            rows = [prompt.ids for prompt in some[at : at + batch]]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=args.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=args.device)
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0,
                repetition_penalty=PENALTY, logits_processor=LogitsProcessorList([note]),
            )[:, width:]  # fmt: skip
            # Up to the token that ends a row, which ours does not count either.
            made += int((~torch.isin(out, ends)).cumprod(1).sum())
        return made

    with torch.inference_mode():
        generate(2, 4, asked[:2])
        found = best_batch(args.batches, lambda batch: generate(batch, args.new_tokens, asked))
    return {**found, "generation": found.pop("rate"), "first": first[0] - born()}


def lm_eval_generates(args: argparse.Namespace, program: str) -> Found:
    """lm-eval's `generate_until`."""
    import torch
    from lm_eval.api.instance import Instance

    asked, lm = prompts(args), lm_eval(args, nf4=program.endswith("nf4"))
    made, plain, begun = [0], lm._model_generate, [time.time()]

    def counted(context: Any, *a: Any, **k: Any) -> Any:
        out = plain(context, *a, **k)
        ends = torch.tensor(lm.model.generation_config.eos_token_id or -1, device=out.device)
        made[0] += int((~torch.isin(out[:, context.shape[1] :], ends)).cumprod(1).sum())
        return out

    lm._model_generate = counted

    def generate(batch: int, new_tokens: int, some: list[Any]) -> int:
        lm.batch_size_per_gpu, made[0] = batch, 0
        settings = {"until": [], "max_gen_toks": new_tokens, "do_sample": False, "repetition_penalty": PENALTY}
        lm.generate_until(
            [Instance("generate_until", {}, (prompt.text, settings), at) for at, prompt in enumerate(some)],
            disable_tqdm=True,
        )
        return made[0]

    generate(2, 4, asked[:2])
    found = best_batch(args.batches, lambda batch: generate(batch, args.new_tokens, asked))
    return {**found, "generation": found.pop("rate"), "first": begun[0] - born()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, list(PROGRAMS))
    parser.add_argument("--endpoint", action="append", default=[], help="URL#model of a server; the base first")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=32)
    args = parser.parse_args()
    args.batches = args.batches or [8, 24]
    if args.only:
        kinds = {"transformers": transformers, "lm-eval": lm_eval_generates}
        print(json.dumps(kinds.get(args.only.split()[0], evaluate)(args, args.only)))
        return
    prepare(args)
    if args.programs is None:
        left_out = {name for name in PROGRAMS if args.device == "cpu" and name.endswith("nf4")}
        left_out |= set() if args.endpoint else {"endpoint"}
        args.programs = [name for name in PROGRAMS if name not in left_out]
    found = measure_all(str(Path(__file__).resolve()), PROGRAMS, args)
    head = f"{args.model} on {machine(args.device)}; {args.items} messages, {args.new_tokens} new tokens, greedy"
    print(json.dumps(found) if args.json else f"{head}\n\n{table(found, COLUMNS, 'generation', PEERS)}")
    sys.exit(0 if all(found.values()) else 1)


if __name__ == "__main__":
    main()
