"""What is installed here, what computes, and what an evaluation of a model would need. Nothing is loaded or changed."""

import math
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnbench import __version__
from bnbench.data.corpus import load_corpus
from bnbench.errors import require
from bnbench.models.candidates import parse_spec
from bnbench.models.decoding import Decoding
from bnbench.models.hf import MOST_ROWS, ONE_THREAD_BELOW
from bnbench.models.hub import find_model, is_offline
from bnbench.models.loading import Device, choose_precision, load_config, outline
from bnbench.models.prompts import Prompter
from bnbench.records import describe_environment

GIB = 2**30
A_REPLY = 6000
"""Bytes of a run folder for each reply, of 40 words in the bundled run: journal, statistics and pages."""
LAUNCH: Mapping[str, float] = {"cuda": 1.4e-3, "cpu": 2e-3}
"""Seconds that a layer takes a step beside its products: an H200 (8B, 200 rows), the bundled pair on two cores."""


@dataclass(frozen=True)
class Need:
    """What `items` replies each of a base and one adapter take: GiB, seconds at most, and of how many rows a batch.
    `memory_gib` is of the card, or of the machine where the CPU computes; `free_gib` is on the disk of `runs`.
    """

    base: str
    items: int
    parameters: int
    dtype: str
    quantisation: str
    reason: str
    weights_gib: float
    fetched: bool
    memory_gib: float
    memory_there_gib: float
    batch: int
    new_tokens: int
    run_folder_gib: float
    free_gib: float
    seconds: float

    def __str__(self) -> str:
        from bnbench.finetune.memory import duration

        fits = "fits" if self.memory_gib <= self.memory_there_gib else "does NOT fit: take a smaller base, or --4bit"
        where = "are here" if self.fetched else "are still to be fetched"
        return (
            f"\n{self.items} items, {self.base} and one adapter\n"
            f"  parameters  {self.parameters / 1e9:.3g} billion, {self.dtype}, 4 bits: {self.quantisation}\n"
            f"  why         {self.reason}\n"
            f"  memory      {self.memory_gib:.2f} of {self.memory_there_gib:.1f} GiB at a batch of "
            f"{self.batch}: {fits}\n"
            f"  disk        {self.weights_gib:.2f} GiB of weights, which {where}; {self.run_folder_gib:.3f} GiB in the "
            f"run folder; {self.free_gib:.1f} GiB are free\n"
            f"  time        about {duration(self.seconds)} at most, if every reply takes its {self.new_tokens} tokens; "
            "a rough figure, with the machine as busy as it is now"
        )


@dataclass(frozen=True)
class Health:
    """This installation. `extras` are the packages that each lacks, or has in a version outside its bounds."""

    bnbench: str
    packages: Mapping[str, str]
    device: Mapping[str, Any]
    precision: str
    extras: Mapping[str, tuple[str, ...]]
    caches: Mapping[str, Any]
    need: Need | None = None

    def __str__(self) -> str:
        how = 'lacks {}: pip install ".[{}]" in a clone'
        extras = {name: how.format(", ".join(of), name) if of else "ok" for name, of in self.extras.items()}
        parts = {f"bnbench {self.bnbench}": self.packages, "\ncomputes on": {**self.device, "dtype": self.precision}}
        parts |= {"\nextras": extras, "\ncaches": self.caches}
        lines = [
            row for head, of in parts.items() for row in (head, *(f"  {k:<14}{v or 'none'}" for k, v in of.items()))
        ]
        return "\n".join([*lines, *([str(self.need)] if self.need else [])])


def examine(
    base: str | None = None, items: int = 300, device: str | None = None, quantise: bool | None = None, *,
    trust_remote_code: bool = False,
) -> Health:  # fmt: skip
    """Looks at this machine and, for a base that is named, at what `items` messages would take. Raises CandidateError
    for a base that cannot be had; of one on the hub only configuration and tokenizer are fetched.
    """
    found, card, why = describe_environment("accelerate", "vllm", "httpx"), None, "unknown without torch"
    if find_spec("torch"):
        card = Device.of(device or "auto")
        why = choose_precision(card, 0, quantise).reason
        if card.memory:
            found["device"] |= {"accelerator": card.name, "memory": f"{card.memory / GIB:.1f} GiB"}
    caches = dict[str, Any]()
    if find_spec("huggingface_hub"):
        hub, constants = (require(f"huggingface_hub{part}", extra="models") for part in ("", ".constants"))
        place = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)
        size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file() and not p.is_symlink())
        caches["hub"] = f"{place}: {size / GIB:.1f} GiB{', offline' if is_offline() else ''}"
        caches["HF_TOKEN"] = "is set" if hub.get_token() else "is not set: gated and private models cannot be had"
    caches["hashes"] = os.environ.get("BNBENCH_CACHE") or str(Path.home() / ".cache" / "bnbench")
    need = estimate_need(base, items, card or Device.of("auto"), quantise, trust_remote_code) if base else None
    return Health(__version__, found["packages"], found["device"], why, extras(), caches, need)


def extras() -> dict[str, tuple[str, ...]]:
    """What each extra of ours lacks here, those that it includes counted in; that of developers is left out."""
    wanted = defaultdict[str, list[str]](list)
    for text in metadata.requires("bnbench") or ():
        rule, _, extra = text.partition("; extra == ")
        wanted[extra.strip("\"'")].append(rule)

    def lacks(extra: str) -> Iterator[str]:
        for rule in wanted[extra]:
            name, included = re.match(r"([\w.-]+)(?:\[(.+)\])?", rule).groups()  # type: ignore[union-attr]
            if name == "bnbench":
                yield from (one for other in included.split(",") for one in lacks(other))
                continue
            try:
                here = tuple(map(int, re.findall(r"\d+", metadata.version(name))[:3]))
                for sign, bound in re.findall(r"(>=|<)([\d.]+)", rule):
                    if (here < tuple(map(int, bound.split(".")))) == (sign == ">="):
                        yield f"{name} {sign} {bound} (here {metadata.version(name)})"
            except metadata.PackageNotFoundError:
                yield name

    return {extra: tuple(dict.fromkeys(lacks(extra))) for extra in list(wanted) if extra not in ("", "dev")}


def estimate_need(base: str, items: int, card: Device, quantise: bool | None, trust_remote_code: bool) -> Need:
    """Disk, memory and time of `items` replies by a base and by an adapter on it, with the default decoding.

    The time is that of the matrix products of a step, measured on this machine with one matrix of the model's size,
    and of launching the layers. Keys and values are counted as `TransformersBackend.batch_sizes` does.
    """
    from bnbench.finetune.memory import Shape

    spec, trust = parse_spec(base), trust_remote_code
    files = find_model(f"base {base}", spec.location, spec.revision, weights=False, trust_remote_code=trust)
    config, weights = load_config(files, trust_remote_code=trust), files.weights()
    count = sum(p.numel() for p in outline(files, trust_remote_code=trust).parameters())
    shape, stored = Shape.of(config, count), getattr(config, "quantization_config", None)
    chosen = choose_precision(card, count, False if stored else quantise)
    size = 4 if chosen.dtype_name == "float32" else 2
    held = count * (0.7 if chosen.quantisation == "nf4" or stored else size)

    # A batch: as many rows as leave half of what the weights leave.
    prompter = Prompter.load(files, trust_remote_code=trust)
    rows = [prompter.prompt(example) for example in load_corpus(None).splits["test"]]
    longest, new = max(len(row.ids) for row in rows), prompter.limited(Decoding()).max_new_tokens or 0
    a_row = 2 * size * shape.layers * shape.keys * (longest + new)
    there = card.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fits = 8 if card.memory is None else min(MOST_ROWS, int(max(0.0, 0.9 * there - held) / 2 / a_row))
    batch = max(1, min(fits, items))
    memory = held + batch * (a_row + 8.0 * shape.vocabulary)  # and two copies of the logits, in float32

    if card.type == "cpu" and count < ONE_THREAD_BELOW:  # as `TransformersBackend.load` does, for its reason
        require("torch", extra="models").set_num_threads(1)
    products = (shape.block + shape.vocabulary * shape.hidden) / (shape.hidden * shape.inner)
    step = products * _product(card.type, chosen.dtype_name, batch, shape.hidden, shape.inner)
    step += shape.layers * LAUNCH.get(card.type, LAUNCH["cuda"])
    disk = sum(path.stat().st_size for path in weights) if weights else 2.0 * count
    runs = Path("runs") if Path("runs").is_dir() else Path()
    return Need(
        base, items, count, chosen.dtype_name, chosen.quantisation, chosen.reason, disk / GIB, bool(weights),
        memory / GIB, there / GIB, batch, new, 2.0 * items * A_REPLY / GIB, shutil.disk_usage(runs).free / GIB,
        2.0 * math.ceil(items / batch) * new * step,
    )  # fmt: skip


def _product(device: str, dtype: str, rows: int, width: int, out: int) -> float:
    """Seconds of one product of `rows` with a matrix of the model's, mean of half a second, as shared as a run."""
    torch = require("torch", extra="models")
    left, right = (torch.ones(n, width, dtype=getattr(torch, dtype), device=device) for n in (rows, out))
    done, start = -1, time.perf_counter()
    while done < 1 or time.perf_counter() - start < 0.5:
        (left @ right.T).sum().item()  # waits for a card to be done
        done += 1
        start = start if done else time.perf_counter()  # the first one, which prepares, counts for nothing
    return (time.perf_counter() - start) / done
