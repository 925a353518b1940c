"""Fine-tuning: recipes, tuners, and one function that trains an adapter or goes on with one.

    from bnbench.finetune import finetune, finetune_request, plan

    request = finetune_request("t4", base="owner/name", data="conversations.csv", overrides={"epochs": "2"})
    print(plan(request))          # what it will take
    result = finetune(request)    # the same call goes on after an interruption

Importing this package imports no torch; `finetune` and `plan` do, when they are called.
"""

from bnbench.data.pairs import Pair, load_pairs
from bnbench.finetune.merge import Exported, export
from bnbench.finetune.plan import FinetuneRequest, Plan, finetune_request, plan, recipe_list, recipe_table
from bnbench.finetune.publish import Published, publish
from bnbench.finetune.recipes import Recipe, copy_recipe, get_tuner, list_recipes, load_recipe, recipe_text
from bnbench.finetune.session import FinetuneResult, finetune
from bnbench.finetune.tuners.adapter import adapt, count_parameters, load_base, save_adapter
from bnbench.finetune.tuners.base import Job, Outcome, Point, Tuner

__all__ = [
    "Exported", "FinetuneRequest", "FinetuneResult", "Job", "Outcome", "Pair", "Plan", "Point", "Published", "Recipe",
    "Tuner", "adapt", "copy_recipe", "count_parameters", "export", "finetune", "finetune_request", "get_tuner",
    "list_recipes", "load_base", "load_pairs", "load_recipe", "plan", "publish", "recipe_list", "recipe_table",
    "recipe_text", "save_adapter",
]  # fmt: skip
