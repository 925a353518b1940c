"""From what a user names (a recipe, a base, a data file) to a request that `finetune` can carry out."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnbench.data.corpus import Corpus, SplitSizes, TokenCounter, demo_corpus, load_corpus
from bnbench.data.pairs import load_pairs
from bnbench.errors import RecipeError
from bnbench.finetune.memory import SAMPLES, duration, outlook
from bnbench.finetune.plan import FinetuneRequest
from bnbench.finetune.recipes import Recipe, list_recipes, load_recipe, recipe_text
from bnbench.models.files import BUNDLED, load_generation_config, load_tokenizer, resolve_base
from bnbench.models.prompts import Prompter
from bnbench.records import slug, write_text

_log = logging.getLogger("bnbench.finetune")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def finetune_request(
    recipe: str,
    base: str | None,
    data: str | None = None,
    out: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    split_sizes: str = "4000/300/300",
    split: str = "train",
    limit: int | None = None,
    overrides: Mapping[str, str] | None = None,
    stop_after: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    command: str = "",
    weights: bool = True,
) -> FinetuneRequest:
    """Reads the corpus as `bnbench evaluate` splits it, so that a test row is never trained on, and names the folder.

    `base` is a folder or hub id with an optional @revision; None is the bundled base. Rows that the recipe's
    `max_tokens` would cut are dropped whole. `out` is adapters/RECIPE-BASE by default. Without `weights` those of the
    base need not be there: a dry run reads none.

    Raises:
        CorpusError, CandidateError, PromptError, RecipeError: what is wrong with the data, the base or the recipe.
    """
    if split not in ("train", "all"):
        raise RecipeError(f"--split {split}: train on train, or on all; the other rows are for testing")
    if columns and not data:
        raise RecipeError("--columns says what the columns of --data are called: give --data too")
    overrides = dict(overrides or {})
    seconds = parse_duration(stop_after) if stop_after else None
    location, revision = _base(base)
    loaded = load_recipe(recipe, overrides)
    count = _counter((location, revision), trust_remote_code, weights)
    read = {
        "columns": columns or {},
        "sizes": SplitSizes.parse(split_sizes),
        "max_tokens": loaded.max_tokens,
        "count_tokens": count,
    }
    chosen = _pairs(data, read, split, limit) if loaded.pairs else _examples(data, read, split, limit)
    return FinetuneRequest(
        base=location,
        revision=revision,
        recipe=recipe,
        **chosen,
        output=out or Path("adapters") / slug(f"{Path(recipe).stem}-{Path(location).name if base else 'demo'}"),
        overrides=overrides,
        stop_after=seconds,
        device=device,
        trust_remote_code=trust_remote_code,
        command=command,
    )


def parse_duration(text: str) -> float:
    """`11h30m`, `45m` or `90s` in seconds; RecipeError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise RecipeError(f"{text!r} is no length of time: write it as 11h30m, 45m or 90s")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def recipe_table() -> str:
    """The shipped recipes: name, what it is, the card it is for, and what it asks of that card."""
    recipes = [load_recipe(name) for name in list_recipes()]
    width = max(len(r.name) for r in recipes)
    return "\n".join(
        f"{r.name:<{width}}  {r.description}\n{'':<{width}}  card: {r.card}{_outlook(r, width)}" for r in recipes
    )


def recipe_list() -> list[dict[str, Any]]:
    """The same as plain JSON values; `estimate` is for Llama-3.1-8B and 4,000 samples, null where no card is needed."""
    recipes = [load_recipe(name) for name in list_recipes()]
    return [{**r.to_dict(), "estimate": e.summary() if (e := outlook(r)) else None} for r in recipes]


def _outlook(recipe: Recipe, indent: int) -> str:
    expected = outlook(recipe)
    if expected is None:
        return ""
    time = "" if expected.seconds is None else f", {SAMPLES:,} samples in about {duration(expected.seconds)}"
    peak = f"{expected.peak / 2**30:.1f} GiB at {recipe.max_tokens:,} tokens"
    return f"\n{'':<{indent}}  estimated for Llama-3.1-8B on {expected.card}: {peak}{time}"


def copy_recipe(name: str, path: Path) -> None:
    """Writes a shipped recipe to a file of the user's own; RecipeError when there is one already."""
    text = recipe_text(name)
    if path.exists():
        raise RecipeError(f"{path} exists: name another file")
    write_text(path, text)


def _base(base: str | None) -> tuple[str, str | None]:
    """Name and revision, as the adapter's configuration will state them."""
    if base is None:
        return f"{BUNDLED}base", None
    if Path(base).exists():
        # Absolute: the adapter's record of its base must hold wherever `evaluate` is started.
        return str(Path(base).resolve()), None
    location, _, revision = base.partition("@")
    return location, revision or None


def _counter(base: tuple[str, str | None], trust_remote_code: bool, weights: bool) -> TokenCounter:
    files = resolve_base(*base, trust_remote_code=trust_remote_code, weights=weights)
    tokenizer = load_tokenizer(files, trust_remote_code=trust_remote_code)
    return Prompter.of(tokenizer, load_generation_config(files)).count_tokens


def _examples(data: str | None, read: Mapping[str, Any], split: str, limit: int | None) -> dict[str, Any]:
    """What a request has of a corpus; `read` is how to read it."""
    corpus = load_corpus(data, **read) if data else demo_corpus(read["max_tokens"], read["count_tokens"])
    _warn_unsplit(corpus)
    return {"examples": corpus.select(split, limit), "fingerprint": corpus.fingerprint}


def _pairs(data: str | None, read: Mapping[str, Any], split: str, limit: int | None) -> dict[str, Any]:
    """What a request has of preference pairs."""
    found = load_pairs(data, **read)
    _warn_unsplit(found.corpus)
    return {
        "examples": (),
        "pairs": found.select(split, limit),
        "held_out": found.held_out(split),
        "fingerprint": found.corpus.fingerprint,
    }


def _warn_unsplit(corpus: Corpus) -> None:
    if not corpus.is_split:
        _log.warning("%s: too few rows to split, so all are trained on; test on others", corpus.source)
