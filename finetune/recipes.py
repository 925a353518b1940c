"""Recipes: every setting of a fine-tuning run in one TOML file, checked key by key before anything is loaded.

    recipe = load_recipe("t4", {"epochs": "2"})

A file may leave out any key but `name`: the defaults are those of the recipe `t4`. A tuner may have keys of its own
beside the common ones (`bnbench.finetune.tuners.base.Tuner.keys`); they stand in the file like any other.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bnbench.errors import RecipeError, nearest
from bnbench.metrics.exceptions import read_small
from bnbench.metrics.registry import Registry
from bnbench.models.loading import Quantisation
from bnbench.records import typed, write_text

ALL_LINEAR = "all-linear"
"""The value of `targets` that adapts every linear layer but the output head."""

_TUNERS = {
    "dpo": "bnbench.finetune.tuners.dpo:PreferenceTuner",
    "lora": "bnbench.finetune.tuners.adapter:AdapterTuner",
    "qlora": "bnbench.finetune.tuners.adapter:AdapterTuner",
    "unsloth": "bnbench.finetune.tuners.unsloth:UnslothTuner",
}
TUNERS = Registry("bnbench.finetuners", "tuner", _TUNERS, RecipeError)
_SHIPPED = resources.files("bnbench.finetune") / "recipes"
_COUNTS = ("r", "alpha", "batch_size", "accumulate", "max_tokens", "tokens_per_row", "save_every", "log_every")
_RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(_COUNTS, (1, math.inf)),
    "dropout": (0.0, 0.95), "lora_plus": (0.1, 1000.0), "neftune": (0.0, 1000.0),
    "warmup": (0.0, 1.0), "weight_decay": (0.0, 1.0), "learning_rate": (1e-9, 1.0),
    **dict.fromkeys(("validate_every", "validation_rows", "patience"), (0, math.inf)), "epochs": (1e-3, 1000.0),
    "max_grad_norm": (0.0, 1000.0), "memory_gib": (0.0, 10_000.0), "seed": (0, 2**32 - 1),
    "keep_checkpoints": (2, 10_000),  # one that a crash tears needs the one before
}  # fmt: skip
ALSO_CALLED: Mapping[str, str] = {
    "lr": "learning_rate", "rank": "r", "lora_r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout",
    "target_modules": "targets", "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate", "gradient_checkpointing": "checkpointing", "max_length": "max_tokens",
    "max_seq_length": "max_tokens", "optim": "optimizer", "lr_scheduler_type": "schedule", "warmup_ratio": "warmup",
    "save_steps": "save_every", "logging_steps": "log_every", "eval_steps": "validate_every",
    "early_stopping_patience": "patience", "use_rslora": "rslora", "use_dora": "dora",
    "neftune_noise_alpha": "neftune", "loraplus_lr_ratio": "lora_plus",
}  # fmt: skip
"""Other tools' names of keys: PEFT's, transformers', TRL's."""
_NO_INFLUENCE = ("name", "description", "card", "save_every", "log_every", "keep_checkpoints", "report_to")


def get_tuner(name: str) -> Any:
    """The `Tuner` of a name, capitals aside. Raises RecipeError where there is none, or its plug-in does not load."""
    kind = TUNERS.get(name)
    # The class is told by what it has: tuners read recipes, and recipes ask their tuner if it can do what they say.
    if not (isinstance(kind, type) and all(hasattr(kind, part) for part in ("train", "check", "packages", "keys"))):
        raise RecipeError(f"the tuner {name!r} is {kind!r}, which is no subclass of bnbench.finetune.Tuner")
    return kind()


@dataclass(frozen=True)
class Recipe:
    """All settings of one training run. Lengths are in tokens, `save_every` and `log_every` in optimiser steps.

    `card` is the GPU that it is made for, in words, and `own` has the keys that only its `tuner` has. `precision`
    "auto" is what the GPU is fast in. `loss` says which tokens count: the reply and its end-of-turn ("completion"), or
    all ("full-text"). `supervise` says which replies of a conversation do: the last, what was said before it being the
    message, or each ("all"), the turns as the chat template writes them. `warmup` is a share of all steps. One
    optimiser step sees `batch_size * accumulate` samples; `packing` puts those of a batch into rows of up to
    `tokens_per_row` tokens without padding, which changes memory and time but not the step. `memory_gib` is a peak:
    layers whose activations fit below it are not computed twice (0: only where a row is shorter than the longest); it
    makes no room, it uses what there is. With `packing_over` "epoch" the samples of an epoch fill the rows once, and a
    sample of a batch is such a row: steps see more samples, each about as many tokens.

    `rslora` scales the adapter by alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023); `dora` trains the length
    of each column of the weights apart from its direction (Liu et al. 2024), in PEFT's slower layers; `lora_plus` is
    how many times faster the matrices B learn than A (Hayou et al. 2024); `neftune` is the alpha of the noise on the
    embeddings, uniform within alpha / sqrt(tokens * width) of a sample (Jain et al. 2023; 0: none).

    Every `validate_every` steps (0: never) the first `validation_rows` rows (0:
    all) of the split validation are scored, and the best adapter is the one that is kept; after `patience` validations
    in a row that are no better the training ends (0: it does not). `report_to` is a tracker of the curves.

    Raises RecipeError for a value out of its range and for settings that contradict each other.
    """

    name: str
    description: str = ""
    card: str = ""
    tuner: str = "qlora"
    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rslora: bool = False
    dora: bool = False
    quantisation: Quantisation = "nf4"
    double_quantisation: bool = True
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    loss: Literal["completion", "full-text"] = "completion"
    supervise: Literal["last", "all"] = "last"
    checkpointing: Literal["non-reentrant", "reentrant", "none"] = "non-reentrant"
    memory_gib: float = 0.0
    max_tokens: int = 4096
    epochs: float = 1.0
    packing: bool = True
    tokens_per_row: int = 4096
    packing_over: Literal["step", "epoch"] = "step"
    batch_size: int = 4
    accumulate: int = 1
    optimizer: Literal["paged_adamw_8bit", "adamw_8bit", "adamw_torch"] = "paged_adamw_8bit"
    learning_rate: float = 2e-4
    lora_plus: float = 1.0
    neftune: float = 0.0
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    validate_every: int = 200
    validation_rows: int = 100
    patience: int = 2
    save_every: int = 250
    keep_checkpoints: int = 2
    log_every: int = 50
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    seed: int = 42
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        tuner = get_tuner(self.tuner)
        object.__setattr__(self, "own", {**tuner.keys, **self.own})
        if unknown := [key for key in self.own if key not in tuner.keys]:
            raise RecipeError(f'the tuner "{self.tuner}" has no key {unknown[0]!r}')
        for key, kind in get_type_hints(Recipe).items():
            value, choices = getattr(self, key), get_args(kind)
            if get_origin(kind) is Literal and value not in choices:
                raise RecipeError(f"{key} is {value!r}{nearest(value, choices)} (one of {', '.join(choices)})")
        for key, (low, high) in _RANGES.items():
            if not low <= getattr(self, key) <= high:  # no number lies there, nor does nan
                wanted = f"lie between {low:g} and {high:g}" if high < math.inf else f"be at least {low:g}"
                raise RecipeError(f"{key} is {getattr(self, key)}: it must {wanted}")
        if self.packing_over == "epoch" and not self.packing:
            raise RecipeError('packing_over is "epoch", and packing is false: set packing = true, or leave it "step"')
        if not self.targets or "" in self.targets:
            raise RecipeError(f'targets is empty: name modules such as "q_proj", or "{ALL_LINEAR}"')
        if ALL_LINEAR in self.targets and len(self.targets) > 1:
            raise RecipeError(f"targets names {ALL_LINEAR} and modules beside it: {ALL_LINEAR} already has them")
        if self.schedule != "constant_with_warmup" and self.warmup >= 1:
            raise RecipeError(f"warmup is {self.warmup:g}: the learning rate would rise for the whole run, never fall")
        tuner.check(self, None)

    @property
    def samples_per_step(self) -> int:
        """How many samples one optimiser step sees, on all GPUs together."""
        return self.batch_size * self.accumulate

    @property
    def pairs(self) -> bool:
        """Whether a sample is a pair of a chosen and a rejected reply, which are two rows."""
        return bool(get_tuner(self.tuner).data == "pairs")

    def count_steps(self, samples: int) -> int:
        """Optimiser steps of a run; the last step of each epoch may see fewer samples."""
        return math.ceil(self.epochs * math.ceil(samples / self.samples_per_step))

    def count_warmup(self, steps: int) -> int:
        """Steps of rising rate, as transformers counts them; the first has rate 0, so one alone would only be lost."""
        warmup = math.ceil(self.warmup * steps)
        return warmup if warmup > 1 else 0

    def shared(self, processes: int) -> Recipe:
        """As one of several processes sees it: its share of a step. Raises RecipeError where that is uneven."""
        share, rest = divmod(self.samples_per_step, processes)
        if rest:
            raise RecipeError(
                f"a step of {self.samples_per_step} rows (batch_size × accumulate) cannot be shared by {processes} "
                "processes: start a number of them that divides it, or change batch_size"
            )
        if processes > 1 and self.checkpointing == "reentrant":  # DDP would count its parameters twice
            raise RecipeError('checkpointing "reentrant" is for one process: --set checkpointing=non-reentrant')
        size = min(self.batch_size, share)
        return replace(self, batch_size=size, accumulate=math.ceil(share / size))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values, the tuner's own keys last: what its TOML holds."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "own"}
        return {**plain, "targets": list(self.targets), **self.own}

    def influences(self) -> dict[str, Any]:
        """The settings that move the result; those of saving and logging are left out."""
        return {k: v for k, v in self.to_dict().items() if k not in _NO_INFLUENCE}

    @property
    def sha256(self) -> str:
        """A hash of `influences()`: equal hashes train alike on the same data and base."""
        return hashlib.sha256(json.dumps(self.influences(), sort_keys=True).encode()).hexdigest()


def list_recipes() -> tuple[str, ...]:
    """The names of the shipped recipes, in alphabetical order."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in _SHIPPED.iterdir() if f.name.endswith(".toml")))


def recipe_text(name: str) -> str:
    """The TOML text of a shipped recipe, to be copied and edited. Raises RecipeError for an unknown name."""
    if name not in (known := list_recipes()):
        shipped = f"(shipped: {', '.join(known)}; or give the path of a .toml file)"
        raise RecipeError(f"there is no recipe {name!r}{nearest(name, known)} {shipped}")
    return (_SHIPPED / f"{name}.toml").read_text(encoding="utf-8")


def copy_recipe(name: str, path: Path) -> None:
    """Writes a shipped recipe to a file of the user's own; RecipeError when there is one already."""
    text = recipe_text(name)
    if path.exists() or path.suffix != ".toml":
        raise RecipeError(f"{path} {'exists' if path.exists() else 'is no .toml file'}: name another file")
    write_text(path, text)


def load_recipe(recipe: str | Path | Recipe, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A shipped recipe by name, a TOML file by path (ending in `.toml`), or one that is loaded already.

    `overrides` are settings as `--set key=value` gives them: a value is what TOML reads in it (`2`, `true`,
    `["q_proj"]`), anything else is a bare string. Raises RecipeError for a file that is missing or no TOML, an unknown
    key, a value of the wrong type or out of its range, and settings that contradict each other.
    """
    if isinstance(recipe, Recipe):
        where, settings = recipe.name, recipe.to_dict()
    else:
        where = str(recipe)
        try:
            settings = tomllib.loads(read_small(recipe).decode() if where.endswith(".toml") else recipe_text(where))
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"recipe {where}: not valid TOML: {error}") from None
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            raise RecipeError(f"recipe {where}: cannot be read: {error}") from None
        settings.setdefault("name", Path(recipe).stem)
    for key, value in (overrides or {}).items():
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            settings[key] = value
    hints, found = get_type_hints(Recipe), dict[str, Any]()
    kinds = {key: str if get_origin(kind) is Literal else kind for key, kind in hints.items() if key != "own"}
    try:
        name = str(settings.get("tuner", Recipe.tuner))
        tuner = get_tuner(name)
        kinds |= {key: type(value) for key, value in tuner.keys.items()}
        for key, value in settings.items():
            if key not in kinds:
                owners = [other for other in TUNERS.built_in if key in get_tuner(other).keys]
                if owners:
                    raise RecipeError(f'{key} is {value}, and only the tuner "{owners[0]}" has one (this is "{name}")')
                hint = nearest(ALSO_CALLED.get(key, key), kinds) or f"; known: {', '.join(kinds)}"
                raise RecipeError(f"unknown key {key!r}{hint}")
            is_listing = kinds[key] == tuple[str, ...] and isinstance(value, str)
            found[key] = typed(kinds[key], [p.strip() for p in value.split(",")] if is_listing else value, key)
        return Recipe(own={key: found.pop(key) for key in tuner.keys if key in found}, **found)
    except (RecipeError, ValueError) as error:
        raise RecipeError(f"recipe {where}: {error}") from None
