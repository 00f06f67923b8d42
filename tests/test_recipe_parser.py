"""What a user of the training programs reads when the recipe or the command line is wrong."""

import runpy
from pathlib import Path

import pytest

from rlhf_ext.cli.settings import PROGRAMS

ROOT = Path(__file__).parent.parent
ON_CPU = "use_cpu: true\nbf16: false\n"


@pytest.fixture(params=["sft", "reward", "ppo"])
def program(request, monkeypatch, capsys, tmp_path):
    """A function that runs a program in an empty folder and gives its exit status and what it prints."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "trainers" / f"{request.param}.py"))["main"]

    # The least that a terminal has.
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [f"{request.param}.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out + captured.err

    return run


def test_help_begins_with_what_the_program_does_and_how_it_gets_its_recipe(program):
    code, printed = program("--help")
    assert code == 0
    usage, first, *_ = printed.split("\n\n")
    assert usage.startswith("usage: ") and usage.endswith(".py [--config RECIPE.yaml] [--SETTING VALUE ...]")
    assert first in (ROOT / "trainers" / usage.split()[1]).read_text()
    assert max(map(len, printed.splitlines())) <= 80
    assert "One of linear, cosine" in printed
    assert "  --learning_rate VALUE\n" in printed


@pytest.mark.parametrize(
    ("arguments", "recipe", "message"),
    [
        (["--config", "nowhere.yaml"], "", "there is no file 'nowhere.yaml' in "),
        (["--config"], "", "--config needs the path of a recipe"),
        (["recipe.yaml"], ON_CPU, "not a setting: recipe.yaml. A recipe is given with --config"),
        (["--config=recipe.yaml"], "learning_rat: 1", "unknown settings: learning_rat (did you mean learning_rate?)"),
        (["--config", "recipe.yaml"], "zzz: 1\nqqq: 2", "unknown settings: zzz, qqq. Correct or remove them"),
        (["--learning_rat", "1"], "", "unknown settings: learning_rat (did you mean learning_rate?)"),
        (["--config", "recipe.yaml"], "", "'recipe.yaml' is empty; a recipe has one setting a line"),
        (["--config", "recipe.yaml"], "- a: 1", "'recipe.yaml' holds a list and no settings; a recipe has"),
        (["--config", "recipe.yaml"], "on: 1", "'recipe.yaml': True (bool) is no name of a setting"),
        (["--config", "."], "", "'.' is a folder; give one of recipe.yaml"),
        (["--config", "recipe.yaml"], "a: [1", "'recipe.yaml' is not YAML: "),
        (["--config", "recipe.yaml"], "learning_rate: fast", "invalid float value: 'fast'"),
        (["--config", "recipe.yaml"], ON_CPU + "lr_scheduler_type: spiral", "spiral"),
        (["--config", "recipe.yaml"], ON_CPU, "model_name_or_path is not set"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_in_one_sentence(arguments, recipe, message, program):
    Path("recipe.yaml").write_text(recipe)
    code, printed = program(*arguments)
    assert code == 2
    assert message in printed
    # The list of all settings would push the sentence off the screen.
    assert len(printed) < 600


def test_a_setting_of_another_program_is_said_to_be_one(program):
    code, printed = program("--use_cpu", "1", "--packing", "1", "--reward_model", "x", "--report_card", "1")
    own = next(name for name in PROGRAMS if f"{name}.py: error: " in printed)
    of = {"packing": "sft", "reward_model": "ppo", "report_card": "reward; near it here: report_to"}
    expected = ", ".join(f"{name} (a setting of rlhf-ext {other})" for name, other in of.items() if own not in other)
    assert code == 2 and f"unknown settings: {expected}. Correct or remove them\n" in printed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_length", "sft, reward; near it here: vllm_max_model_length, max_completion_length"),
        ("reference_dataset_name", "reward; near it here: dataset_name"),
        ("assistant_only_loss", "sft"),
    ],
)
def test_a_setting_of_another_program_does_not_hide_the_nearest_of_this_one(name, message, capsys):
    from trl import ScriptArguments

    from rlhf_ext import PPOConfig, RecipeParser

    with pytest.raises(SystemExit):
        RecipeParser([ScriptArguments, PPOConfig]).parse_args_and_config(["--use_cpu", "1", f"--{name}", "1"])
    expected = f"unknown settings: {name} (a setting of rlhf-ext {message}). Correct"
    assert expected in capsys.readouterr().err


def test_a_misspelt_name_is_named_before_what_its_absence_causes(tmp_path, capsys):
    from rlhf_ext import PPOConfig, RecipeParser

    (tmp_path / "recipe.yaml").write_text(ON_CPU + "kl_target: 6.0\nkl_unti: sequence\n")
    with pytest.raises(SystemExit):
        RecipeParser([PPOConfig]).parse_args_and_config(["--config", str(tmp_path / "recipe.yaml")])
    assert "kl_unti (did you mean kl_unit?)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        RecipeParser([PPOConfig]).parse_args_and_config(["--use_cpu", "true", "--kl_target", "6.0"])
    assert "error: kl_target=6.0 needs kl_unit='sequence'" in capsys.readouterr().err


def test_the_command_line_overrides_the_recipe_which_may_follow_an_equals_sign(tmp_path):
    from rlhf_ext import PPOConfig, RecipeParser

    (tmp_path / "recipe.yaml").write_text(ON_CPU + "gamma: 0.5\nlam: 0.25\n")
    (args,) = RecipeParser([PPOConfig]).parse_args_and_config([f"--config={tmp_path}/recipe.yaml", "--gamma", "0.75"])
    assert (args.gamma, args.lam) == (0.75, 0.25)
