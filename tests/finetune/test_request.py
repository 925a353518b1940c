from __future__ import annotations

from pathlib import Path

import pytest

from bnbench.errors import RecipeError
from bnbench.finetune import (
    copy_recipe,
    finetune_request,
    list_recipes,
    load_recipe,
    parse_duration,
    plan,
    recipe_list,
    recipe_table,
)


def test_durations() -> None:
    assert [parse_duration(t) for t in ("11h30m", "45m", "90s", "1h1m1s")] == [41400.0, 2700.0, 90.0, 3661.0]
    for wrong in ("", "12", "1.5h", "30m11h"):
        with pytest.raises(RecipeError, match="write it as 11h30m"):
            parse_duration(wrong)


def test_columns_of_no_file() -> None:
    with pytest.raises(RecipeError, match="--columns says what the columns of --data are called"):
        finetune_request("dpo", None, columns={"chosen": "better"})


def test_recipe_table_and_copy(tmp_path: Path) -> None:
    table = recipe_table()
    assert all(name in table and load_recipe(name).card in table for name in list_recipes())
    estimates = {r["name"]: r["estimate"] for r in recipe_list()}
    assert estimates["demo"] is None and "on T4: 6.8 GiB at 4,096 tokens, 4,000 samples in about" in table
    assert estimates["original-t4"]["seconds"] == pytest.approx(9.7 * 3600, rel=0.2)  # as long as it did take
    assert estimates["lora-16bit"]["card"] == "L4" and estimates["t4"]["peak_gib"] < 7.2
    copy_recipe("demo", tmp_path / "mine.toml")
    assert load_recipe(tmp_path / "mine.toml") == load_recipe("demo")
    with pytest.raises(RecipeError, match="exists: name another file"):
        copy_recipe("demo", tmp_path / "mine.toml")


def test_request_from_a_file(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "তথ্য.csv"
    rows = "\n".join(f"ঘুম,রাত জাগা {i},রাতে ঘুম আসে না {i} দিন ধরে,আজ রাতে {i} মিনিট হাঁটুন; আমরা পাশে আছি।" for i in range(12))
    file.write_text(f"Topics,Question-Title,Questions,Answers\n{rows}\n", encoding="utf-8")
    request = finetune_request("demo", str(tiny_base), str(file), limit=5, overrides={"epochs": "2"}, stop_after="90s")
    assert (request.output, request.stop_after, len(request.examples)) == (Path("adapters/demo-base"), 90.0, 5)
    assert request.base == str(tiny_base.resolve()) and request.base_folder is None
    assert plan(request).recipe.epochs == 2


def test_rows_that_do_not_fit_are_dropped_whole(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    long = "অনেক কথা জমে আছে। বলার মতো কেউ নেই। " * 60
    file.write_text(
        f"Questions,Answers\nঘুম আসে না কেন?,আজ একটু হাঁটুন। পাশে আছি।\n{long},শুনছি। সব বলুন আমাকে।\n", encoding="utf-8"
    )
    request = finetune_request("demo", str(tiny_base), str(file))
    assert len(request.examples) == 1
    assert plan(request).longest <= load_recipe("demo").max_tokens
