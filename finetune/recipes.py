"""Recipes: every setting of a fine-tuning run in one TOML file, checked key by key before anything is loaded.

    recipe = load_recipe("t4", {"epochs": "2"})

Shipped recipes are listed by `list_recipes()`; a path to a file of one's own works in the same places. A file may leave
out any key but `name`: the defaults are those of the recipe `t4`.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from rapidfuzz import fuzz, process

from bnbench.errors import RecipeError

ALL_LINEAR = "all-linear"
"""The value of `targets` that adapts every linear layer but the output head."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "quantisation": ("nf4", "none"),
    "precision": ("auto", "float32", "float16", "bfloat16"),
    "loss": ("completion", "full-text"),
    "checkpointing": ("non-reentrant", "reentrant", "none"),
    "schedule": ("cosine", "linear", "constant_with_warmup"),
    "optimizer": ("paged_adamw_8bit", "adamw_8bit", "adamw_torch"),
}
_AT_LEAST_ONE = ("r", "alpha", "batch_size", "accumulate", "max_tokens", "tokens_per_row", "save_every", "log_every")
_RANGES: Mapping[str, tuple[float, float]] = {
    "dropout": (0.0, 0.95),
    "warmup": (0.0, 1.0),
    "weight_decay": (0.0, 1.0),
    "learning_rate": (1e-9, 1.0),
    "epochs": (1e-3, 1000.0),
    "max_grad_norm": (0.0, 1000.0),
    "beta": (0.0, 100.0),
    "memory_gib": (0.0, 10_000.0),
    "seed": (0, 2**32 - 1),
    "keep_checkpoints": (2, 10_000),  # one that a crash tears needs the one before
}
_ALSO_CALLED: Mapping[str, str] = {
    "lr": "learning_rate",
    "rank": "r",
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "checkpointing",
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "optim": "optimizer",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "save_steps": "save_every",
    "logging_steps": "log_every",
    "dpo_beta": "beta",
}
_NO_INFLUENCE = frozenset({"name", "description", "card", "save_every", "log_every", "keep_checkpoints"})


@dataclass(frozen=True)
class Recipe:
    """All settings of one training run. Lengths are in tokens, `save_every` and `log_every` in optimiser steps.

    `tuner` names an entry of the registry (`bnbench.finetune.tuners.base`). `precision = "auto"` takes the
    arithmetic that the card is fast in. `loss` says which tokens count: the reply and its end-of-turn
    ("completion"), or all ("full-text"). `warmup` is a share of all steps. One optimiser step sees `batch_size *
    accumulate` samples; `packing` puts the samples of a batch into rows of up to `tokens_per_row` tokens without
    padding, which changes memory and time but not the step. `memory_gib` is a peak to stay under: layers whose
    activations fit below it are not computed twice (0: none but where a row is shorter than the longest); it never
    makes room, it uses what there is. `beta` is the tuner dpo's alone, whose samples are pairs: the larger, the
    closer the adapter stays to the base.
    """

    name: str
    description: str = ""
    card: str = ""
    tuner: str = "qlora"
    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    quantisation: str = "nf4"
    double_quantisation: bool = True
    precision: str = "auto"
    loss: str = "completion"
    beta: float = 0.0
    checkpointing: str = "non-reentrant"
    memory_gib: float = 0.0
    max_tokens: int = 4096
    epochs: float = 1.0
    packing: bool = True
    tokens_per_row: int = 4096
    batch_size: int = 4
    accumulate: int = 1
    optimizer: str = "paged_adamw_8bit"
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    save_every: int = 250
    keep_checkpoints: int = 2
    log_every: int = 50
    seed: int = 42

    def __post_init__(self) -> None:
        _check(self)

    @property
    def samples_per_step(self) -> int:
        """How many samples one optimiser step sees, on all cards together."""
        return self.batch_size * self.accumulate

    @property
    def pairs(self) -> bool:
        """Whether a sample is a pair of a chosen and a rejected reply, as for the tuner dpo."""
        return self.tuner == "dpo"

    @property
    def rows_per_sample(self) -> int:
        """2 where samples are pairs, else 1."""
        return 2 if self.pairs else 1

    def shared(self, processes: int) -> Recipe:
        """The recipe as one of several processes sees it: its share of a step, in batches no larger.

        Raises RecipeError where a step cannot be shared evenly.
        """
        share, rest = divmod(self.samples_per_step, processes)
        if rest:
            raise RecipeError(
                f"a step of {self.samples_per_step} rows (batch_size × accumulate) cannot be shared by {processes} "
                f"processes: start a number of them that divides it, or change batch_size"
            )
        size = min(self.batch_size, share)
        return replace(self, batch_size=size, accumulate=math.ceil(share / size))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return {**asdict(self), "targets": list(self.targets)}

    def influences(self) -> dict[str, Any]:
        """The settings that move the result; those of saving and logging are left out."""
        return {k: v for k, v in self.to_dict().items() if k not in _NO_INFLUENCE}

    @property
    def sha256(self) -> str:
        """A hash of `influences()`: equal hashes train alike on the same data and base."""
        return hashlib.sha256(json.dumps(self.influences(), sort_keys=True).encode()).hexdigest()


def list_recipes() -> tuple[str, ...]:
    """The names of the shipped recipes, in alphabetical order."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in _shipped().iterdir() if f.name.endswith(".toml")))


def recipe_text(name: str) -> str:
    """The TOML text of a shipped recipe, to be copied and edited. Raises RecipeError for an unknown name."""
    if name not in list_recipes():
        raise RecipeError(
            f"there is no recipe {name!r}{nearest(name, list_recipes())} "
            f"(shipped: {', '.join(list_recipes())}; or give the path of a .toml file)"
        )
    return str((_shipped() / f"{name}.toml").read_text(encoding="utf-8"))


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A shipped recipe by name, or a TOML file by path (ending in `.toml`), with `overrides` as `--set key=value` gives
    them.

    Raises RecipeError for a file that is missing or no TOML, an unknown key (with the nearest one), a value of the
    wrong type or out of its range, and settings that contradict each other.
    """
    given = str(name_or_path)
    text = _read(Path(given)) if given.endswith(".toml") else recipe_text(given)
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {given}: not valid TOML: {error}") from None
    settings.setdefault("name", Path(given).stem)
    return parse_recipe({**settings, **_parse_overrides(overrides or {})}, given)


def override(recipe: Recipe, overrides: Mapping[str, str]) -> Recipe:
    """The recipe with some settings changed, given as `--set key=value` gives them. Raises RecipeError."""
    return parse_recipe({**recipe.to_dict(), **_parse_overrides(overrides)}, recipe.name)


def parse_recipe(settings: Mapping[str, Any], where: str) -> Recipe:
    """A Recipe of plain values; `where` names their source in messages. Raises RecipeError as `load_recipe` does."""
    known = {field.name: str(field.type) for field in fields(Recipe)}
    for key in settings:
        if key not in known:
            raise RecipeError(f"recipe {where}: unknown key {key!r}{nearest(key, tuple(known))}")
    values = {key: _typed(key, value, known[key], where) for key, value in settings.items()}
    try:
        return Recipe(**values)
    except RecipeError as error:
        raise RecipeError(f"recipe {where}: {error}") from None


def _shipped() -> Any:
    return resources.files("bnbench.finetune") / "recipes"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error}") from None


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'epochs'?`, the end of a message about a word that is not among the known ones."""
    synonym = _ALSO_CALLED.get(word)
    best = synonym if synonym in known else process.extractOne(word, known, scorer=fuzz.ratio)[0]
    return f"; did you mean {best!r}?"


def _parse_overrides(overrides: Mapping[str, str]) -> dict[str, Any]:
    return {key: _parse_override(value) for key, value in overrides.items()}


def _parse_override(text: str) -> Any:
    """A value as TOML spells it (`2`, `true`, `["q_proj"]`); anything else is a bare string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _typed(key: str, value: Any, kind: str, where: str) -> Any:
    if kind.startswith("tuple"):
        parts = [p.strip() for p in value.split(",")] if isinstance(value, str) else value
        if isinstance(parts, list) and all(isinstance(p, str) for p in parts):
            return tuple(parts)
    elif kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value).__name__ == kind:
        return value
    wanted = (
        "a list of strings" if kind.startswith("tuple") else {"int": "a whole number", "float": "a number"}.get(kind)
    )
    raise RecipeError(f"recipe {where}: {key} must be {wanted or kind}, not {value!r}")


def _check(recipe: Recipe) -> None:
    for key, choices in _CHOICES.items():
        if (value := getattr(recipe, key)) not in choices:
            raise RecipeError(f"{key} is {value!r}{nearest(value, choices)} (one of {', '.join(choices)})")
    for key in _AT_LEAST_ONE:
        if getattr(recipe, key) < 1:
            raise RecipeError(f"{key} is {getattr(recipe, key)}: it must be at least 1")
    for key, (low, high) in _RANGES.items():
        if not low <= getattr(recipe, key) <= high:
            raise RecipeError(f"{key} is {getattr(recipe, key)}: it must lie between {low:g} and {high:g}")
    _check_together(recipe)


def _check_together(recipe: Recipe) -> None:
    if not recipe.targets or "" in recipe.targets:
        raise RecipeError(f'targets is empty: name modules such as "q_proj", or "{ALL_LINEAR}"')
    if ALL_LINEAR in recipe.targets and len(recipe.targets) > 1:
        raise RecipeError(f"targets names {ALL_LINEAR} and modules beside it: {ALL_LINEAR} already has them")
    if recipe.tuner == "qlora" and recipe.quantisation == "none":
        raise RecipeError('tuner "qlora" contradicts quantisation "none": set tuner = "lora", or quantisation = "nf4"')
    if recipe.tuner == "lora" and recipe.quantisation != "none":
        raise RecipeError(
            f'tuner "lora" contradicts quantisation "{recipe.quantisation}": '
            'set tuner = "qlora", or quantisation = "none"'
        )
    _check_preference(recipe)
    if recipe.tuner == "unsloth":
        _check_unsloth(recipe)
    if recipe.schedule != "constant_with_warmup" and recipe.warmup >= 1:
        raise RecipeError(f"warmup is {recipe.warmup:g}: the learning rate would rise for the whole run and never fall")


def _check_unsloth(recipe: Recipe) -> None:
    """What Unsloth does in one way only."""
    wanted: dict[str, tuple[Any, ...]] = {
        "packing": (False,),
        "double_quantisation": (True,),
        "memory_gib": (0.0,),
        "checkpointing": ("non-reentrant", "none"),
        "precision": ("auto", "float16", "bfloat16"),
    }
    wrong = [f"{k} = {str(v[0]).lower()}" for k, v in wanted.items() if getattr(recipe, k) not in v]
    if wrong:
        raise RecipeError(f'the tuner "unsloth" needs {", ".join(wrong)}; see the recipe unsloth')


def _check_preference(recipe: Recipe) -> None:
    """What dpo needs and what has no meaning there; `beta` has none elsewhere."""
    if not recipe.pairs:
        if recipe.beta:
            raise RecipeError(f'beta is {recipe.beta:g}, and only the tuner "dpo" has one (this is "{recipe.tuner}")')
        return
    wanted = {"packing": False, "loss": "completion", "dropout": 0.0, "memory_gib": 0.0}
    wrong = [f"{k} = {str(v).lower()}" for k, v in wanted.items() if getattr(recipe, k) != v]
    if not recipe.beta:
        wrong.append("beta above 0, such as 0.1")
    if wrong:
        raise RecipeError(f'the tuner "dpo" needs {", ".join(wrong)}')
