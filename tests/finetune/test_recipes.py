from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bnbench.errors import MissingExtraError, RecipeError
from bnbench.finetune import (
    FinetuneRequest,
    Job,
    Outcome,
    Recipe,
    Tuner,
    copy_recipe,
    list_recipes,
    load_recipe,
    plan,
    recipe_text,
)
from bnbench.finetune.recipes import TUNERS


def test_original_value_by_value() -> None:
    recipe = load_recipe("original-t4")
    assert (recipe.r, recipe.alpha, recipe.dropout, recipe.targets) == (8, 16, 0.05, ("q_proj", "v_proj"))
    assert (recipe.quantisation, recipe.double_quantisation, recipe.precision) == ("nf4", True, "bfloat16")
    assert (recipe.epochs, recipe.batch_size, recipe.accumulate, recipe.max_tokens) == (1, 1, 4, 4096)
    assert (recipe.learning_rate, recipe.warmup, recipe.schedule) == (2e-4, 0.03, "cosine")
    assert (recipe.optimizer, recipe.weight_decay) == ("paged_adamw_8bit", 0.01)
    assert (recipe.save_every, recipe.log_every, recipe.seed) == (250, 50, 42)
    assert (recipe.loss, recipe.checkpointing) == ("full-text", "reentrant")


def test_t4_mends_loss_dtype_and_step_alone() -> None:
    original, mended = load_recipe("original-t4"), load_recipe("t4")
    changed = {k: v for k, v in mended.influences().items() if v != original.influences()[k]}
    step = {"packing": True, "batch_size": 4, "accumulate": 1, "validate_every": 200}
    assert changed == {"loss": "completion", "precision": "auto", "checkpointing": "non-reentrant", **step}
    assert mended.samples_per_step == original.samples_per_step


def test_the_successors_of_t4() -> None:
    def changed(name: str, before: str) -> set[str]:
        one, other = load_recipe(name).influences(), load_recipe(before).influences()
        return {k for k in one if one[k] != other[k]}

    assert changed("t4-r16-all-linear", "t4") == {"r", "alpha", "targets"}
    assert changed("full-3-epochs", "t4-r16-all-linear") == {"epochs", "batch_size"}
    assert changed("lora-16bit", "t4-r16-all-linear") == {"tuner", "quantisation"}
    assert load_recipe("full-3-epochs").epochs == 3 and load_recipe("lora-16bit").quantisation == "none"


def test_every_shipped_recipe_loads_and_names_itself() -> None:
    assert set(list_recipes()) >= {"original-t4", "t4", "t4-r16-all-linear", "full-3-epochs", "lora-16bit", "demo"}
    for name in list_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.description and recipe.card


def test_defaults_are_those_of_t4() -> None:
    recipe = load_recipe("t4")
    assert Recipe("t4", recipe.description, recipe.card) == recipe


def test_copied_recipe_gives_the_same(tmp_path: Path) -> None:
    copy_recipe("t4", tmp_path / "mine.toml")
    assert load_recipe(tmp_path / "mine.toml") == load_recipe("t4")
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == recipe_text("t4")
    with pytest.raises(RecipeError, match="exists: name another file"):
        copy_recipe("demo", tmp_path / "mine.toml")
    with pytest.raises(RecipeError, match=r"mine is no \.toml file: name another"):
        copy_recipe("demo", tmp_path / "mine")


def test_file_may_leave_out_keys(tmp_path: Path) -> None:
    file = tmp_path / "আমার.toml"
    file.write_text("r = 32\n", encoding="utf-8")
    assert load_recipe(file) == Recipe("আমার", r=32)


def test_overrides_are_parsed_by_type() -> None:
    recipe = load_recipe(
        "t4",
        {
            "epochs": "2",
            "learning_rate": "1e-5",
            "targets": "q_proj, k_proj",
            "optimizer": "adamw_torch",
            "double_quantisation": "false",
        },
    )
    assert (recipe.epochs, recipe.learning_rate, recipe.targets) == (2.0, 1e-5, ("q_proj", "k_proj"))
    assert (recipe.optimizer, recipe.double_quantisation) == ("adamw_torch", False)
    assert load_recipe("t4", {"targets": '["q_proj"]'}).targets == ("q_proj",)
    assert load_recipe(recipe, {"seed": "7"}) == replace(recipe, seed=7)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learing_rate", "1", "unknown key 'learing_rate'; did you mean 'learning_rate'?"),
        ("lr", "1", "unknown key 'lr'; did you mean 'learning_rate'?"),
        ("num_train_epochs", "1", "did you mean 'epochs'?"),
        ("r", "0", "r is 0: it must be at least 1"),
        ("r", "eight", 'r is "eight", not a whole number'),
        ("seed", "true", "seed is true, not a whole number"),
        ("epochs", "nan", "epochs is nan"),
        ("epochs", '"2"', 'epochs is "2", not a number'),
        ("max_tokens", "0", "max_tokens is 0"),
        ("dropout", "1.5", "between 0 and 0.95"),
        ("keep_checkpoints", "1", "keep_checkpoints is 1: it must lie between 2"),
        ("optimizer", "paged_adam_8bit", "did you mean 'paged_adamw_8bit'?"),
        ("loss", "prompt", "one of completion, full-text"),
        ("targets", "", "targets is empty"),
        ("targets", "all-linear,q_proj", "already has them"),
        ("targets", "[1]", "targets[0] is 1, not text"),
        ("quantisation", "none", 'tuner "qlora" contradicts quantisation "none"'),
        ("tuner", "lora", 'tuner "lora" contradicts quantisation "nf4"'),
        ("warmup", "1.0", "never fall"),
    ],
)
def test_refusals(key: str, value: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("t4", {key: value})
    assert message in str(caught.value) and "recipe t4" in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 't4'"):
        load_recipe("t5")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("r = = 3", encoding="utf-8")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(broken)


def test_hash_follows_what_moves_the_result() -> None:
    recipe = load_recipe("t4")
    same = replace(recipe, name="other", description="", save_every=7, log_every=3, keep_checkpoints=5)
    assert same.sha256 == recipe.sha256
    assert replace(recipe, learning_rate=1e-4).sha256 != recipe.sha256


def test_steps() -> None:
    recipe = load_recipe("t4")
    assert (recipe.count_steps(4000), recipe.count_steps(4001)) == (1000, 1001)
    odd = load_recipe("t4", {"epochs": "2.5", "batch_size": "3", "accumulate": "4"})
    assert odd.count_steps(160) == 35  # 54 batches, 14 steps, ×2.5


def test_the_first_step_of_a_short_training_has_a_rate() -> None:
    recipe = load_recipe("t4")
    assert [recipe.count_warmup(steps) for steps in (1, 10, 33, 34, 1000, 1001)] == [0, 0, 0, 2, 30, 31]
    assert load_recipe("t4", {"warmup": "1", "schedule": "constant_with_warmup"}).count_warmup(1) == 0


def test_a_tuner_s_own_keys() -> None:
    recipe = load_recipe("dpo", {"beta": "0.3"})
    assert recipe.own == {"beta": 0.3} and recipe.to_dict()["beta"] == 0.3
    assert load_recipe(recipe) == recipe and recipe.sha256 != load_recipe("dpo").sha256
    with pytest.raises(RecipeError, match='beta is "much", not a number'):
        load_recipe("dpo", {"beta": "much"})
    with pytest.raises(RecipeError, match="the tuner \"lora\" has no key 'beta'"):
        replace(load_recipe("demo"), own={"beta": 0.1})


class Patient(Tuner):
    """A tuner of another package with a key of its own and one package."""

    keys: ClassVar[dict[str, Any]] = {"endurance": 3}
    packages: ClassVar[dict[str, str]] = {"no_such_package": "no-such-package"}

    def train(self, job: Job) -> Outcome:
        raise AssertionError("nothing is trained here")


def test_a_plug_in_brings_keys_and_packages(
    monkeypatch: pytest.MonkeyPatch, request_for: Callable[..., FinetuneRequest], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(TUNERS.built_in, "patient", f"{__name__}:Patient")
    recipe = load_recipe("t4", {"tuner": "patient", "endurance": "5"})
    assert recipe.own == {"endurance": 5} and load_recipe("t4", {"tuner": "patient"}).own == {"endurance": 3}
    with pytest.raises(RecipeError, match='endurance is 5, and only the tuner "patient" has one'):
        load_recipe("t4", {"endurance": "5"})
    with pytest.raises(RecipeError, match="unknown key 'endurance_'; did you mean 'endurance'"):
        load_recipe("t4", {"tuner": "patient", "endurance_": "5"})
    request = request_for(overrides={"tuner": "patient"})
    with pytest.raises(MissingExtraError, match=r"no_such_package is not installed: pip install no-such-package \(the"):
        plan(request)
    planned = plan(request, weights=False)
    assert "no_such_package is not installed" in caplog.text and planned.summary()["estimate"]["seconds"] is None
