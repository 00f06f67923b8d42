"""What the check of the settings (X17) says of each recipe before it runs."""

import tempfile

from transformers import LlamaConfig

from rlhf_ext.diagnostics import Severity
from rlhf_ext.trainer.preflight import preflight_of

from .faults import DROPOUT
from .recipes import RECIPES, Recipe, recipes_of
from .world import make_config


def warned_of(recipe: Recipe) -> set[str]:
    """Names of what is warned of, of the settings that the recipe runs with."""
    with tempfile.TemporaryDirectory() as folder:
        args = make_config(recipe, folder, seed=0)
    dropout = DROPOUT if recipe.fault == "dropout" else 0.0
    found = preflight_of(args, model_config=LlamaConfig(attention_dropout=dropout))
    return {finding.causes[0].name for finding in found if finding.severity >= Severity.WARN}


def lint_table() -> str:
    """Of the recipes of the small world whose settings are wrong, and of the others, what was warned of."""
    recipes = {name: RECIPES[name] for name in recipes_of("small")}
    said = {name: warned_of(recipe) for name, recipe in recipes.items()}
    wrong = [name for name, recipe in recipes.items() if recipe.lint]
    sound = [name for name, recipe in recipes.items() if recipe.intent in ("healthy", "hard-negative")]
    rest = [name for name in recipes if name not in wrong and name not in sound]
    named = sum(set(recipes[name].lint) == said[name] for name in wrong)
    lines = [
        "| X17, before the run | recipes | |",
        "|---|---|---|",
        f"| settings that are wrong by themselves | {len(wrong)} | {named} named, and nothing else |",
        f"| healthy and hard negatives | {len(sound)} | {sum(bool(said[name]) for name in sound)} warned of |",
        f"| wrong only for what comes of them, or not by settings | {len(rest)} | "
        f"{sum(bool(said[name]) for name in rest)} warned of |",
    ]
    return "\n".join(lines)
