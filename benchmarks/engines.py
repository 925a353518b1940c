"""What `generation.py` and `perplexity.py` share: the models, one process a program with its peak memory, the table."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "bnbench" / "demo"
sys.path.insert(0, str(HERE.parent))
Found = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, programs: list[str]) -> None:
    """The model, the programs and where they run."""
    parser.add_argument("--model", type=Path, default=DEMO / "base", help="folder of a base; by default the bundled")
    parser.add_argument("--adapter", type=Path, help="folder of its adapter; without it a random one is made")
    parser.add_argument("--shape", choices=["llama-3.1-8b"], help="write a checkpoint of random weights, and take it")
    parser.add_argument("--tokenizer", type=Path, help="folder of the shape's tokenizer; by default the bundled one")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="by default the card where there is one")
    parser.add_argument("--programs", nargs="+", metavar="NAME", help=f"of {', '.join(programs)}")
    parser.add_argument("--batches", type=int, nargs="+", help="batches that the peers try; their best one counts")
    parser.add_argument("--limit-s", type=float, default=900, help="a program is ended after so many seconds")
    parser.add_argument("--json", action="store_true", help="print the measurements for a machine")
    parser.add_argument("--only", help=argparse.SUPPRESS)


def prepare(args: argparse.Namespace) -> None:
    """Settles device, base and adapter; a checkpoint is made in a process of its own, which then leaves the card."""
    if args.device is None:
        args.device = "cuda" if shutil.which("nvidia-smi") else "cpu"
    if args.shape:
        args.model = Path("/tmp/llama8b")
        make = "import sys, peers; peers.make_checkpoint(sys.argv[1])"
        subprocess.run([sys.executable, "-c", make, str(args.tokenizer or "")], cwd=HERE, check=True)
        if not (args.model / "tokenizer.json").exists():
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(DEMO / "base" / name, args.model)
    if args.adapter is None:
        args.adapter = DEMO / "adapter" if args.model == DEMO / "base" else make_adapter(args.model)


def make_adapter(base: Path) -> Path:
    """A LoRA adapter of random weights, r = 8 on q and v, without loading the base."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder = Path(tempfile.gettempdir()) / f"{base.name}-adapter"
    c = json.loads((base / "config.json").read_text(encoding="utf-8"))
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    heads = {"q_proj": c["num_attention_heads"], "v_proj": c["num_key_value_heads"]}
    torch.manual_seed(3)
    weights = {}
    for layer in range(c["num_hidden_layers"]):
        for name, n in heads.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(8, c["hidden_size"]) * 0.02
            weights[f"{key}.lora_B.weight"] = torch.randn(n * head, 8) * 0.02
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(heads), task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(base)
    config.save_pretrained(folder)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def ours(words: list[str], backend: str) -> Found:
    """Runs a command of `bnbench` in this process, with clocks around the backend's load, generate and likelihood.

    `generation` and `likelihood` are tokens/s of the first candidate, which is the base, `both` of all.
    """
    from bnbench.cli import main
    from bnbench.models.backend import Backend, get_backend

    cls: Any = get_backend(backend)
    seen: Found = {}
    calls: dict[str, list[tuple[str, int, float]]] = {"load": [], "generate": [], "likelihood": []}

    def clocked(name: str) -> None:
        plain = getattr(cls, name)

        def timed(self: Any, *a: Any, **k: Any) -> Any:
            begin = time.time()
            if name == "load":
                calls_before = {key: len(of) for key, of in calls.items()}
            else:
                seen.setdefault("first", begin)
            result = plain(self, *a, **k)
            end = time.time()
            if name == "load":  # what it tries each adapter with does not count
                seen["loaded"] = end
                seen.pop("first", None)
                for key, count in calls_before.items():
                    del calls[key][count:]
            else:
                n = sum(reply.tokens or 0 for reply in result) if name == "generate" else sum(map(len, a[1]))
                calls[name].append((a[0].name, n, end - begin))
            return result

        if plain is not getattr(Backend, name):
            setattr(cls, name, timed)

    for name in calls:
        clocked(name)
    if backend == "hf":
        first_token(seen)
    sys.argv = ["bnbench", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise

    def rate(name: str, *, first: bool) -> float | None:
        counted = [(n, seconds) for who, n, seconds in calls[name] if not first or who == calls[name][0][0]]
        return sum(n for n, _ in counted) / sum(seconds for _, seconds in counted) if counted else None

    made = calls["generate"] or calls["likelihood"]
    return {
        "batch": "own",
        "tokens": sum(n for who, n, _ in made if who == made[0][0]),
        "generation": rate("generate", first=True),
        "both": rate("generate", first=False),
        "likelihood": rate("likelihood", first=True),
        "after_loading": time.time() - seen.get("loaded", born()),
        "first": seen.get("token", seen["first"]) - born(),
    }


def first_token(seen: Found) -> None:
    """Notes when `hf` has chosen its first token; the other backends' first request is what can be seen of theirs."""
    import torch

    from bnbench.models import inference

    plain = inference.choose

    def choose(*a: Any, **k: Any) -> Any:
        chosen = plain(*a, **k)
        if "token" not in seen:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seen["token"] = time.time()
        return chosen

    inference.choose = choose  # type: ignore[assignment]


def born() -> float:
    """When this process started, in seconds since the epoch."""
    import psutil

    return float(psutil.Process().create_time())


def load_model(args: argparse.Namespace, nf4: bool) -> Any:
    """The base as transformers loads it, in the arithmetic that `hf` takes, for the peers."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: Found = {"dtype": torch.bfloat16 if args.device == "cuda" else torch.float32}
    if nf4:
        how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=options["dtype"], **how
        )
    return AutoModelForCausalLM.from_pretrained(args.model, device_map={"": args.device}, **options).eval()


def lm_eval(args: argparse.Namespace, nf4: bool, **options: Any) -> Any:
    """lm-eval's `hf` with the base; loaded beforehand, since 0.4.13 cannot ask transformers 5 for 4 bits."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    return HFLM(load_model(args, nf4), tokenizer=tokenizer, device=args.device, batch_size=1, **options)


def best_batch(batches: list[int], work: Callable[[int], int]) -> Found:
    """The fastest of some batches by tokens/s; `work` gives how many it made. One that has no room is left out."""
    import torch

    tried = []
    for batch in batches:
        begin = time.time()
        try:
            tokens = work(batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        tried.append((tokens / (time.time() - begin), batch, tokens, time.time() - begin))
    if not tried:
        sys.exit(f"no batch of {batches} has room")
    rate, batch, tokens, seconds = max(tried)
    return {"batch": batch, "tokens": tokens, "rate": rate, "after_loading": seconds}


@contextmanager
def peak_memory(process: subprocess.Popen[str], device: str) -> Iterator[list[float]]:
    """GiB at most, in a list of one: what the cards hold more than before, else what the processes have in memory."""
    import psutil

    def used() -> float:
        if device == "cuda":
            query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
            return sum(map(float, subprocess.run(query, capture_output=True, text=True).stdout.split())) / 1024
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            return sum(one.memory_info().rss for one in family) / 2**30
        except psutil.Error:
            return 0.0

    def watch() -> None:
        while not ended.wait(0.25):
            peak[0] = max(peak[0], used() - before)

    before, peak, ended = used() if device == "cuda" else 0.0, [0.0], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def in_its_own_process(script: str, program: str, args: argparse.Namespace) -> Found | None:
    """What the script prints about one program, with its peak memory; None, and why on stderr, where it fails."""
    given = ["--model", str(args.model), "--adapter", str(args.adapter), "--device", args.device, "--only", program]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, script, *sys.argv[1:], *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    with peak_memory(process, args.device) as peak:
        try:
            out, err = process.communicate(timeout=args.limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            err += f"\nended after {args.limit_s:.0f} s"
    lines = [line for line in out.splitlines() if line.startswith('{"batch"')]
    if process.returncode or not lines:
        print(f"{program} failed: {err[-2000:]}", file=sys.stderr, flush=True)
        return None
    found: Found = {**json.loads(lines[-1]), "peak": peak[0]}
    print(f"{program}: {found}", file=sys.stderr, flush=True)
    return found


def machine(device: str) -> str:
    """The card or the number of cores, and the versions of what was measured."""
    where = f"{os.cpu_count()} cores"
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        where = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().replace("\n", ", ")
    packages = [name for name in ("torch", "transformers", "vllm", "lm_eval") if importlib.util.find_spec(name)]
    return ", ".join([where, *(f"{name} {version(name)}" for name in packages)])


def measure_all(script: str, programs: dict[str, str], args: argparse.Namespace) -> dict[str, Found | None]:
    """Every program that is asked for, one after the other; `programs` names the package that each needs."""
    asked = args.programs or list(programs)
    if unknown := [name for name in asked if name not in programs]:
        sys.exit(f"no program {unknown[0]!r}; there are {', '.join(programs)}")
    found: dict[str, Found | None] = {}
    for name in asked:
        if importlib.util.find_spec(programs[name]) is None:
            print(f"{name}: {programs[name]} is not installed", file=sys.stderr, flush=True)
        else:
            found[name] = in_its_own_process(script, name, args)
    return found


def table(found: dict[str, Found | None], columns: dict[str, str], rate: str, peers: dict[str, str]) -> str:
    """Markdown: a line a program; `rate` is the key that is divided by that of each peer (title → program prefix).

    A program is compared with the peer of its own arithmetic: "hf nf4" with "lm-eval nf4".
    """
    lines = [f"| program | {' | '.join([*columns.values(), *peers])} |", f"|{'---|' * (1 + len(columns) + len(peers))}"]
    for name, made in found.items():
        if made is None:
            lines.append(f"| {name} | failed |{' |' * (len(columns) + len(peers) - 1)}")
            continue
        cells = [shown(made.get(key)) for key in columns]
        for peer in peers.values():
            other = found.get(f"{peer} nf4" if name.endswith(" nf4") else peer)
            both = other and other.get(rate) and made.get(rate)
            cells.append(f"{made[rate] / other[rate]:.2f}" if other and both else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A number in four digits or more; nothing for None."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
