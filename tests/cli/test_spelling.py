"""An option is taken with a dash and with an underscore, by our commands and by the recipe's parser alike."""

import pytest
from test_launch import CLASSES

from rlhf_ext import PPOConfig, RecipeParser
from rlhf_ext.cli import main, make_parser
from rlhf_ext.cli.light_check import preflight_of_text
from rlhf_ext.cli.parser import commands_of

RECIPE = ["--output_dir", "o", "--use_cpu", "1", "--bf16", "0", "--max_steps", "100"]


def options():
    return [
        (command, option)
        for command, parser in commands_of(make_parser()).items()
        for own in parser._actions
        for option in own.option_strings
        if "_" in option or "-" in option.removeprefix("--").removeprefix("-")
    ]


def both(option):
    words = option.removeprefix("--")
    return {f"--{words.replace('_', '-')}", f"--{words.replace('-', '_')}"}


def test_every_option_of_every_command_has_both_spellings():
    commands = commands_of(make_parser())
    assert len(options()) > 20
    for command, option in options():
        known = commands[command]._option_string_actions
        assert {known[spelling].dest for spelling in both(option)} == {known[option].dest}, (command, option)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["demo", "--kl_placement", "token"], "kl_placement", "token"),
        (["demo", "--kl-placement", "token"], "kl_placement", "token"),
        (["plan", "--num-gpus=4"], "num_gpus", 4),
        (["check", "--num-gpus", "4"], "num_gpus", 4),
        (["diagnose", "log", "--fail_on", "warn"], "fail_on", "warn"),
        (["diagnose", "log", "--kl-target", "6"], "kl_target", 6.0),
        (["ppo", "--accelerate-config", "ddp"], "accelerate_config", "ddp"),
        (["sft", "--help_all"], "help_all", True),
    ],
)
def test_both_spellings_give_the_same(arguments, name, value):
    known, rest = make_parser().parse_known_args(arguments)
    assert (getattr(known, name), rest) == (value, [])


@pytest.mark.parametrize("program", CLASSES)
def test_the_settings_of_the_programs_have_both_spellings(program):
    known = RecipeParser(CLASSES[program])._option_string_actions
    wrong = [name for name in known if name.startswith("--") and not both(name) <= set(known)]
    assert wrong == []


def test_the_check_without_trl_takes_both():
    findings = [preflight_of_text(None, [*RECIPE, name, "0"], 1)[0] for name in ("--max_grad_norm", "--max-grad-norm")]
    assert findings[0] == findings[1] and "gradient-not-clipped" in findings[0][0].title


@pytest.mark.parametrize("name", ["--kl_coef", "--kl-coef"])
def test_an_old_name_is_explained_in_both(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", *RECIPE, name, "1"])
    assert ended.value.code == 2 and "`kl_coef` is now beta" in capsys.readouterr().err


def test_an_abbreviation_is_no_option():
    assert make_parser().parse_known_args(["plan", "--num", "4"])[1] == ["--num", "4"]


@pytest.mark.parametrize("value", ["-1e-3", "-1E+2", "-.5e-1", "-0.5", "-2"])
def test_a_negative_number_is_a_value(value):
    # Python's own argparse takes -1e-3 for an option before 3.14.
    given = ["--reward_weights", "1", value]
    assert make_parser().parse_known_args(["check", *given])[1] == given
    (args,) = RecipeParser([PPOConfig]).parse_args_and_config(["--use_cpu", "1", "--bf16", "0", *given])
    assert args.reward_weights == [1.0, float(value)]
    assert preflight_of_text(None, [*RECIPE, *given], 1) == preflight_of_text(None, RECIPE, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", *RECIPE, "--beta", "-1e-3"], "beta must be a number and not negative, got -0.001"),
        (
            ["diagnose", "log.csv", "--kl_target", "-1e-3"],
            "argument --kl_target: must be a number above 0, got '-1e-3'",
        ),
    ],
)
def test_a_negative_number_is_judged_as_one(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err
