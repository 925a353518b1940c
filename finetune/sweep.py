"""Several trainings that differ in a few settings of a recipe, ranked in one report.

`bnbench finetune --sweep lr=1e-4,2e-4 r=8,16` trains every combination, each in a folder of its own below --out, and
lets base and adapters answer the validation rows: the test rows stay unseen for who is chosen.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from bnbench.errors import PartialRunError, RecipeError
from bnbench.evaluate import evaluate, make_request
from bnbench.finetune.engine import processes
from bnbench.finetune.plan import finetune_request, parse_duration, plan
from bnbench.finetune.recipes import ALSO_CALLED
from bnbench.finetune.session import finetune
from bnbench.models.decoding import Decoding
from bnbench.records import OF_TRAINING, alone, slug

_log = logging.getLogger("bnbench.finetune")


def parse_grid(items: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of KEY=VALUE,VALUE items, the last key changing first. Raises RecipeError for another form."""
    grid: dict[str, list[str]] = {}
    for item in items:
        key, _, values = item.partition("=")
        key, found = ALSO_CALLED.get(key, key), [value.strip() for value in values.split(",")]
        if not (key and all(found)) or key in grid or len(set(found)) < len(found):
            raise RecipeError(f"--sweep {item}: write it as KEY=VALUE,VALUE, each key and value once")
        grid[key] = found
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def sweep(
    grid: Sequence[Mapping[str, str]], out: Path, *, recipe: str | None, base: str | None, data: str | None,
    overrides: Mapping[str, str], stop_after: str | None, split_sizes: str, command: str, quiet: bool, **given: Any,
) -> Path:  # fmt: skip
    """Trains an adapter for each of the settings, and gives the run folder in which they and the base are ranked.

    `given` is as for `finetune_request`. The same call goes on where it was ended. All are planned before one is
    trained: raises as `finetune` and `evaluate` do, RecipeError where no row is left to rank on, and PartialRunError
    where the time that `stop_after` gives to all together is up.
    """
    if processes.count() > 1:
        raise RecipeError("--sweep trains one after another in one process: start it without a launcher")
    if both := sorted(overrides.keys() & grid[0].keys()):
        raise RecipeError(f"--set and --sweep both have {', '.join(both)}: leave it to --sweep")
    end = time.monotonic() + parse_duration(stop_after) if stop_after else None
    names = [slug("-".join(f"{key}-{value}" for key, value in settings.items())) for settings in grid]
    common = {"split_sizes": split_sizes, "command": command, **given}
    with alone(out, ("evaluation", *(f"*/{name}" for name in OF_TRAINING)), dry=True):
        pass
    requests = [
        finetune_request(recipe, base, data, out / name, overrides={**overrides, **settings}, **common)
        for name, settings in zip(names, grid, strict=True)
    ]
    if not requests[0].validation:
        raise RecipeError("--sweep ranks on the split validation, and there is none: give more rows, or --split train")
    plans = [plan(request) for request in requests]
    for number, (name, request) in enumerate(zip(names, requests, strict=True), 1):
        _log.info("sweep: %s, %d of %d", name, number, len(requests))
        left = None if end is None else max(1.0, end - time.monotonic())
        if not finetune(replace(request, stop_after=left)).finished:
            raise PartialRunError(f"the time is up in {request.output}; the same command goes on\n  {command}")

    first = plans[0]
    found = evaluate(make_request(
        base, [f"{name}={request.output}" for name, request in zip(names, requests, strict=True)], (), (), data=data,
        columns=given.get("columns") or {}, split="validation", split_sizes=split_sizes, systems=(), templates=(),
        combine=None, judge=None, judge_language="bn", judge_pairs=False, metrics=(), out=out / "evaluation",
        limit=len(first.validation or requests[0].validation), primary="chrF++", decoding=Decoding(), backend="hf",
        max_tokens=first.recipe.max_tokens, device=None if given["device"] == "auto" else given["device"],
        trust_remote_code=given["trust_remote_code"], command=command, quiet=quiet,
    ))  # fmt: skip
    _log.info("ranked on validation rows: measure the one that you take with `bnbench evaluate --split test`")
    return found
