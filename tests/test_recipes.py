"""Every shipped recipe is read by the program that it names."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))


def program(name):
    spec = importlib.util.spec_from_file_location(f"program_{name}", ROOT / "trainers" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser_of(stage):
    from rlhf_ext import PPOConfig, RecipeParser, RewardConfig

    if stage == "ppo":
        return RecipeParser((program("ppo").PPOScriptArguments, PPOConfig, ModelConfig))
    if stage == "reward":
        return RecipeParser((program("reward").RewardScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig))
    return RecipeParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))


def test_there_are_recipes_for_every_stage():
    assert {path.stem.rsplit("-", 1)[1] for path in RECIPES} >= {"sft", "reward", "ppo"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_without_leftovers(path, tmp_path):
    stage = path.stem.rsplit("-", 1)[1]
    overrides = ["--use_cpu", "true", "--bf16", "false", "--output_dir", str(tmp_path)]
    parsed = parser_of(stage).parse_args_and_config(["--config", str(path), *overrides])
    wanted = yaml.safe_load(path.read_text())
    for name in set(wanted) - {"output_dir"}:
        holder = next(args for args in parsed if hasattr(args, name))
        found = getattr(holder, name)
        assert found == wanted[name] or found == [wanted[name]], name


def test_the_demos_recipe_has_the_settings_of_the_demo(tmp_path):
    from rlhf_ext.demo import stages
    from rlhf_ext.demo.settings import DemoSettings

    recipe = ROOT / "configs" / "recipes" / "smollm2-135m-demo-ppo.yaml"
    _, args, model_args = parser_of("ppo").parse_args_and_config(["--config", str(recipe)])
    demo = stages._ppo_config(tmp_path, DemoSettings(seed=args.seed))
    # Where they write, what they print and keep, and gold, which only the demo watches.
    own = {
        "output_dir",
        "run_name",
        "report_to",
        "disable_tqdm",
        "save_total_limit",
        "save_strategy",
        "reward_weights",
    }
    own |= {"per_device_eval_batch_size", "distributed_state"}
    mine, theirs = vars(args), vars(demo)
    assert {name for name in theirs if name not in own and mine[name] != theirs[name]} == set()
    assert (model_args.lora_r, model_args.lora_alpha, model_args.lora_target_modules) == (16, 32, "all-linear")
