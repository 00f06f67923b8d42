"""`rlhf-ext check` without TRL finds what it finds with it."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from rlhf_ext.programs.ppo import PPOScriptArguments
from trl import ModelConfig

from rlhf_ext import PPOConfig, RecipeParser
from rlhf_ext.cli import main
from rlhf_ext.cli.light_check import DEFAULTS, NAMES, preflight_of_text
from rlhf_ext.trainer.recipe_check import preflight_of_recipe

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*-ppo.yaml"))
BASE = {
    "output_dir": "out", "use_cpu": True, "bf16": False, "per_device_train_batch_size": 8, "steps_per_generation": 8,
    "max_steps": 3200, "max_completion_length": 64, "kl_target": 6.0, "kl_unit": "sequence", "missing_eos_penalty": 1.0,
}  # fmt: skip
CHANGES = [
    {},
    {"kl_target": 60.0},
    {"kl_target": 1.0, "kl_unit": "token"},
    {"beta": 0.0, "kl_target": None, "kl_unit": None},
    {"kl_controller": "ziegler"},
    {"top_k": 50, "allow_mismatched_sampling": True},
    {"generation_kwargs": {"top_k": 7}, "allow_mismatched_sampling": True},
    {"dtype": "float16"},
    {"max_grad_norm": 0.0},
    {"critic_learning_rate": 1e-3},
    {"num_iterations": 16, "max_steps": 12800},
    {"critic_warmup_rollouts": 60},
    {"per_device_train_batch_size": 1},
    {"missing_eos_penalty": None},
    {"steps_per_generation": None, "generation_batch_size": 64},
    {"steps_per_generation": None, "gradient_accumulation_steps": 4, "max_steps": 80},
]


SWITCHES = ["no_disable_dropout", "no_normalize_scores"]


def titles(findings):
    return [(finding.title, finding.severity, finding.summary) for finding in findings]


def test_the_defaults_are_those_of_the_settings_class():
    here = {field.name: field.default for field in fields(PPOConfig) if field.default is not MISSING}
    parsed = RecipeParser((PPOScriptArguments, PPOConfig, ModelConfig)).parse_args_and_config(["--use_cpu", "true"])[1]
    for name, default in DEFAULTS.items():
        # bf16 is on where nothing is said, which the class decides when it is made.
        assert default == (parsed.bf16 if name == "bf16" else here[name]), name


def test_the_names_are_those_of_the_settings_classes():
    parser = RecipeParser((PPOScriptArguments, PPOConfig, ModelConfig))
    # transformers 5.18 has no activation checkpointing.
    newer = {"activation_checkpointing", "activation_checkpointing_kwargs"}
    assert NAMES - newer == {action.dest for action in parser._actions} - newer - {"help"}
    assert set(DEFAULTS) | {name.removeprefix("no_") for name in SWITCHES} <= NAMES
    assert set(SWITCHES) <= {option.removeprefix("--") for option in parser._option_string_actions}


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("num_gpus", [1, 4])
def test_it_finds_what_the_whole_check_finds(change, num_gpus, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(BASE | change))
    expected, _ = preflight_of_recipe(PPOScriptArguments, ["--config", str(recipe)], num_gpus)
    found, _ = preflight_of_text(str(recipe), [], num_gpus)
    assert titles(found) == titles(expected)


def test_the_changes_are_found_at_all(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(BASE))
    assert titles(preflight_of_text(str(recipe), [], 1)[0]) == []
    assert "kl-target-far" in preflight_of_text(str(recipe), ["--kl_target=60"], 1)[0][0].title
    assert "kl-target-near" in preflight_of_text(str(recipe), ["--kl_target", "0.1"], 1)[0][0].title


@pytest.mark.parametrize(
    "overrides",
    [
        ["--critic_learning_rate", "1e-3"],  # which YAML takes for a text
        ["--critic_learning_rate=1e-3", "--disable_dropout", "--kl_target", "60"],
        ["--reward_model", "a", "b", "--kl_target", "60"],
        ["--fp16", "false", "--kl_target=60"],
    ],
    ids=" ".join,
)
def test_the_command_line_is_read_as_by_the_whole_check(overrides, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(BASE))
    expected, _ = preflight_of_recipe(PPOScriptArguments, ["--config", str(recipe), *overrides], 1)
    assert titles(preflight_of_text(str(recipe), overrides, 1)[0]) == titles(expected) != []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_command_takes_it_where_trl_is_missing(path, monkeypatch, capsys):
    monkeypatch.setattr("rlhf_ext.cli.check.find_spec", lambda name: None)
    main(["check", "--config", path.stem])
    printed = capsys.readouterr().out
    assert "WARN" not in printed and "Note: trl is not installed here" in printed


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("- a", [], "recipe.yaml' holds a list and no settings; a recipe has one setting a line"),
        ("a: [1", [], "is not YAML"),
        ("", [], "recipe.yaml' is empty; a recipe has one setting a line"),
        ("kl_coef: 1", [], "`kl_coef` is now beta"),
        ("kl_target: 1", [], "kl_target=1 needs kl_unit="),
        ("seed: 1", ["--kl_target"], "--kl_target needs a value"),
        ("seed: 1", ["recipe.yaml"], "not a setting: recipe.yaml"),
        ("learning_rat: 1", [], r"unknown settings: learning_rat \(did you mean learning_rate\?\). Correct"),
        ("seed: 1", ["--learning-rat", "1e-5"], r"unknown settings: learning_rat \(did you mean learning_rate\?\)"),
        ("zzz: 1", ["--packing=1"], r"unknown settings: zzz, packing \(a setting of rlhf-ext sft"),
        ("no_disable_dropout: true", [], "unknown settings: no_disable_dropout"),
        (
            "kl_coef: 1",
            ["--learning_rat", "1"],
            r"learning_rat \(did you mean .* them\. Names of TRL's old PPO: `kl_coef`",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(recipe, arguments, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        preflight_of_text(str(path), arguments, 1)


@pytest.mark.parametrize("name", SWITCHES)
def test_what_only_the_program_knows_is_no_mistake(name, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(BASE | {"env": {"A": "1"}, "vllm_mode": "colocate", "use_dora": True}))
    assert preflight_of_text(str(recipe), [f"--{name}", "--dataloader-num-workers", "2"], 1)[0] == []


def test_a_misspelt_name_ends_as_it_does_in_the_whole_check(monkeypatch, capsys):
    printed = set()
    for trl in (None, "there"):
        monkeypatch.setattr("rlhf_ext.cli.check.find_spec", lambda name, found=trl: found)
        with pytest.raises(SystemExit) as ended:
            main(["check", "--learning_rat", "1e-5", "--use_cpu", "1"])
        printed.add((ended.value.code, capsys.readouterr().err))
    (same,) = printed
    assert same[0] == 2 and "unknown settings: learning_rat (did you mean learning_rate?)" in same[1]
