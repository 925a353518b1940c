"""Fine-tuning beside its peers at their best (`peers.py`): Llama-3.1-8B's shape with random weights, on a card or two.

    python benchmarks/finetune.py [--repeats 3] [--unsloth FOLDER_OF_ITS_PACKAGES --tokenizer FOLDER] [--variants ...]

Each variant is a process of its own and they take turns: a new process for each repetition, or with --together one
that trains in each (they all load at the same time, on a card that holds them all). The table gives medians and ratios
of this very run. The data are those of `peers.py`: 64 samples of 48–4,096 tokens (mean 660), all tokens supervised,
effective batch 4. Memory is what PyTorch reserved at most.

What it measured stands in `docs/training.md`. Estimates beside measurements: `finetune/memory.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
AT = ["--length", "4096", "--steps", "7"]
PEERS = ["original", "trl", "unsloth", "unsloth-padded"]
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "original": ("original", []),
    "original at 4096": ("original", ["4096"]),
    "trl": ("trl", []),
    "trl at 4096": ("trl", ["4096"]),
    "unsloth": ("unsloth", []),
    "unsloth padded": ("unsloth-padded", []),
    "unsloth at 4096": ("unsloth", ["4096"]),
    "t4": ("t4", []),
    "t4 at 4096": ("t4", AT),
    "t4-r16-all-linear": ("t4-r16-all-linear", []),
    "t4-r16-all-linear at 4096": ("t4-r16-all-linear", AT),
    "t4 without liger at 4096": ("t4", [*AT, "--no-liger"]),
    "t4 in 13 GiB": ("t4", ["--set", "memory_gib=13"]),
    "t4 in 40 GiB": ("t4", ["--set", "memory_gib=40"]),
    "t4 in 40 GiB at 4096": ("t4", [*AT, "--set", "memory_gib=40"]),
    "t4 on two cards": ("t4", ["--cards", "2"]),
    "t4 on two cards at 4096": ("t4", [*AT, "--cards", "2"]),
    "t4 shared by two cards": ("t4", ["--cards", "2", "--share"]),
    "t4 shared by two cards at 4096": ("t4", [*AT, "--cards", "2", "--share"]),
    "lora-16bit at 4096": ("lora-16bit", AT),
    "lora-16bit shared by two cards at 4096": ("lora-16bit", [*AT, "--cards", "2", "--share"]),
    "t4 in float32": ("t4", ["--length", "512", "--steps", "8", "--set", "precision=float32", "--set", "dropout=0"]),
    "t4 in float32 on two cards": (
        "t4",
        ["--length", "512", "--steps", "8", "--set", "precision=float32", "--set", "dropout=0", "--cards", "2"],
    ),
    "dpo at 2048": ("dpo", ["--length", "2048", "--steps", "7", "--set", "accumulate=2"]),
    "dpo on 16 bits at 1024": (
        "dpo",
        ["--length", "1024", "--steps", "7", "--set", "accumulate=2", "--set", "quantisation=none"],
    ),
    "t4 in float16": ("t4", ["--set", "precision=float16", "--set", "memory_gib=13", "--cap", "14.5"]),
}
DEFAULT = ["trl", "unsloth", "unsloth padded", "t4", "t4 in 40 GiB"]
DEFAULT += [f"{name} at 4096" for name in ("unsloth", "t4", "t4 in 40 GiB", "t4-r16-all-linear")]


MAKE = "import sys, peers; peers.make_checkpoint(sys.argv[1])"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=DEFAULT, metavar="VARIANT")
    parser.add_argument("--together", action="store_true", help="load all at once; each then trains --repeats times")
    parser.add_argument("--add", type=Path, metavar="FILE", help="JSON of results that these are added to")
    parser.add_argument("--unsloth", help="folder with Unsloth's packages; without it the variant is left out")
    parser.add_argument("--tokenizer", help="folder with Llama-3.1's tokenizer.json, which Unsloth asks for")
    parser.add_argument("--one", metavar="RECIPE", help="measure one recipe in this process and print JSON")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--length", type=int)
    parser.add_argument("--cards", type=int, default=1, help="so many processes, one a card, share each step")
    parser.add_argument("--share", action="store_true", help="they share the base's layers too (FSDP)")
    parser.add_argument("--cap", type=float, help="GiB of the card's memory that may be used")
    parser.add_argument("--no-liger", action="store_true", help="as if liger-kernel were not installed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--profile", type=Path, help="write where the last step's time goes")
    return parser.parse_args()


def make_job(args: argparse.Namespace, turns):
    """The job that `bnbench finetune` would make of the baseline's rows."""
    from peers import CHECKPOINT, ROUNDS, rows

    from bnbench.finetune.engine.collate import IGNORED, Row
    from bnbench.finetune.plan import recipe_precision
    from bnbench.finetune.recipes import load_recipe
    from bnbench.finetune.tuners.base import Job
    from bnbench.models.hub import Base
    from bnbench.models.loading import Device

    recipe = load_recipe(args.one, dict(item.split("=", 1) for item in args.set))
    data = [tuple(r.tolist()) for r in rows(args.steps * recipe.samples_per_step, args.length)]
    samples = [Row(str(i), ids, ids) for i, ids in enumerate(data)]
    if recipe.tuner == "dpo":  # a quarter of a row is the prompt of both replies; the second is the first backwards
        prompts = [ids[: len(ids) // 4] for ids in data]
        replies = [(ids[len(p) :], ids[: len(p) - 1 : -1]) for ids, p in zip(data, prompts, strict=True)]
        samples = [
            Row(f"{i}", p + reply, (IGNORED,) * len(p) + reply)
            for i, (p, pair) in enumerate(zip(prompts, replies, strict=True))
            for reply in pair
        ]

    def at_step_end() -> bool:
        turns.step()
        return False

    return Job(
        recipe=recipe,
        base=Base("base llama-8b", str(CHECKPOINT), "", CHECKPOINT, "llama-8b"),
        rows=tuple(samples),
        pad_id=128004,
        precision=recipe_precision(recipe, Device.of("cuda"), 8_030_261_248),
        device="cuda",
        steps=args.steps * ROUNDS + 1,  # nobody asks whether to stop after the last one, which does not count
        warmup_steps=1,
        output=Path(f"/tmp/bnbench-benchmark-{os.getpid()}"),
        should_stop=at_step_end,
    )


def measure(args: argparse.Namespace) -> None:
    sys.path.insert(0, str(HERE.parent))
    import torch
    from peers import Turns, make_checkpoint

    make_checkpoint(None)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.no_liger:
        sys.modules["liger_kernel"] = None  # type: ignore[assignment]
    if args.cap:
        torch.cuda.set_per_process_memory_fraction(args.cap * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    from bnbench.finetune.engine import processes
    from bnbench.finetune.recipes import get_tuner

    if args.share:
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    turns = Turns(args.steps, args.length)
    trains_in_turn(turns)
    job = make_job(args, turns)
    start = time.time()
    with processes.meet("cuda"):
        outcome = profiled(job, args.profile) if args.profile else get_tuner(job.recipe.tuner).train(job)
    expected = expectation(job)
    told = {
        "variant": args.one,
        "card": torch.cuda.get_device_name(0),
        "length": args.length,
        "dtype": job.precision.dtype_name,
        "samples": len(job.rows),
        "tokens": sum(len(r.ids) for r in job.rows),
        "wall_s": round(time.time() - start, 1),
        "median_step_s": turns.medians,
        "losses": [round(p.loss, 6) for p in outcome.curve[:: max(1, len(outcome.curve) // 8)]],
        "estimated_s": round(expected.seconds or 0, 1),
        "estimated_gib": round(expected.peak / 2**30, 2),
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
    }
    if processes.index() == 0:
        print(json.dumps(told))


def trains_in_turn(turns) -> None:
    from bnbench.finetune.engine.step import StepTrainer

    plain = StepTrainer.train

    def in_turn(self, *a, **k):
        turns.begin()
        return plain(self, *a, **k)

    StepTrainer.train = in_turn


def expectation(job):
    """What `bnbench finetune --dry-run` says of the job."""
    import torch
    from peers import CHECKPOINT
    from transformers import AutoConfig

    from bnbench.finetune.engine import processes
    from bnbench.finetune.memory import Shape, estimate
    from bnbench.finetune.tuners.adapter import count_parameters

    config = AutoConfig.from_pretrained(CHECKPOINT)
    trainable, total = count_parameters(config, job.recipe)
    shape = Shape.of(config, total - trainable)
    sharing = processes.count() if processes.share_base() else 1
    card = torch.cuda.get_device_name(0)
    return estimate(shape, job.recipe, job.rows, trainable, job.steps, gpu=card, sharing=sharing)


def profiled(job, path: Path):
    """Runs the job with the profiler on one of its last steps."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from bnbench.finetune.engine.step import StepTrainer
    from bnbench.finetune.tuners.adapter import AdapterTuner

    plain, count = StepTrainer.training_step, 0

    def step(self, *a, **k):
        nonlocal count
        count += 1
        if count != min(12, job.steps - 1):
            return plain(self, *a, **k)
        torch.cuda.synchronize()
        begin = time.time()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            result = plain(self, *a, **k)
            launched = time.time() - begin
            torch.cuda.synchronize()
        device = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(e.time_range.elapsed_us() for e in device) / 1e6
        text = f"kernels {len(device)}, busy {busy:.3f} s, launched in {launched:.3f} s (profiled)\n"
        average = found.key_averages()
        text += average.table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=70)
        text += average.table(sort_by="self_cpu_time_total", row_limit=60, max_name_column_width=70)
        path.write_text(text, encoding="utf-8")
        return result

    StepTrainer.training_step = step
    return AdapterTuner().train(job)


def start(name: str, args: argparse.Namespace, environment: dict[str, str]) -> subprocess.Popen:
    recipe, options = VARIANTS[name]
    command = [sys.executable, str(HERE / "peers.py"), recipe, *options]
    if recipe not in PEERS:
        together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *(together if "--cards" in options else []), __file__, "--one", recipe, *options]
    elif recipe.startswith("unsloth"):
        path = args.unsloth + os.pathsep + environment.get("PYTHONPATH", "")
        environment = {**environment, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(name: str, process: subprocess.Popen) -> list[dict]:
    out, err = process.communicate()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        print(f"{name} failed:\n{err[-3000:]}", file=sys.stderr, flush=True)
        return []
    told = [line for line in err.splitlines() if "offloaded" in line]
    print(f"{name}: {lines[-1]}", *told, sep="\n  ", file=sys.stderr, flush=True)
    return [json.loads(lines[-1])]


def repetition(names: list[str], args: argparse.Namespace) -> list[list[dict]]:
    if not args.together:
        return [result(name, start(name, args, dict(os.environ))) for name in names]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(names)) as pool:
        turns = {**os.environ, "BNBENCH_TURNS": folder, "BNBENCH_TURN_COUNT": str(len(names))}
        turns |= {"BNBENCH_TURN_ROUNDS": str(args.repeats)}
        processes = [start(name, args, turns) for name in names]
        return list(pool.map(result, names, processes))


def table(results: dict[str, list[dict]]) -> str:
    times = {n: [seconds for r in found for seconds in r["median_step_s"]] for n, found in results.items() if found}
    medians = {n: statistics.median(seconds) for n, seconds in times.items()}
    lines = [
        "| variant | runs | s a step, median (range) | × TRL | × Unsloth | reserved GiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        if not found:
            lines.append(f"| {name} | 0 | failed | | | |")
            continue
        seconds = times[name]
        at = " at 4096" if name.endswith("at 4096") else ""
        unsloth = [medians[p] for p in (f"unsloth{at}", f"unsloth padded{at}") if p in medians]  # its faster mode
        peers = [medians.get(f"trl{at}"), min(unsloth, default=None)]
        ratios = [f"{peer / medians[name]:.2f}" if peer else "" for peer in peers]
        spread = f"{medians[name]:.3f} ({min(seconds):.3f}–{max(seconds):.3f})"
        reserved = max(r["peak_reserved_gib"] for r in found)
        lines.append(f"| {name} | {len(seconds)} | {spread} | {' | '.join(ratios)} | {reserved} |")
    return "\n".join(lines)


def main() -> None:
    args = parse()
    if args.one:
        measure(args)
        return
    names = [n for n in args.variants if args.unsloth or not n.startswith("unsloth")]
    alone = [n for n in names if VARIANTS[n][0] == "dpo" or "--cards" in VARIANTS[n][1]]
    if args.together and alone:  # several processes, or TRL's trainer: the others would wait for turns that never end
        sys.exit(f"--together: {', '.join(alone)} takes no turns; measure it without")
    results: dict[str, list[dict]] = {n: [] for n in names}
    subprocess.run([sys.executable, "-c", MAKE, args.tokenizer or ""], cwd=HERE, check=True)
    if args.add and args.add.exists():
        results |= json.loads(args.add.read_text(encoding="utf-8"))
    for _ in range(1 if args.together else args.repeats):
        for name, found in zip(names, repetition(names, args), strict=True):
            results[name] += found
        if args.add:
            args.add.write_text(json.dumps(results), encoding="utf-8")
    cards = {r["card"] for found in results.values() for r in found}
    print(f"{', '.join(cards)}; effective batch 4\n\n{table(results)}")


if __name__ == "__main__":
    main()
