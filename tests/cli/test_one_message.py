"""A wrong input of each command, in a process of its own: one message, no traceback, the exit status of docs/cli.md."""

import os
import subprocess
import sys

import pytest

REFUSED_BEFORE_TORCH = [
    (["trian"], "rlhf-ext: error: argument COMMAND: invalid choice: 'trian'"),
    (["sft"], "rlhf-ext sft: error: nothing to run: give a recipe with --config"),
    (["reward", "--config", "lost.yaml"], "rlhf-ext reward: error: --config: there is no file 'lost.yaml'"),
    (
        ["ppo", "--config", "demo", "--accelerate_config", "zero9"],
        "rlhf-ext ppo: error: --accelerate_config: there is",
    ),
    (["ppo", "--config"], "rlhf-ext ppo: error: argument --config: expected one argument; `rlhf-ext ppo --help`"),
    (
        ["demo", "--rollouts", "many"],
        "rlhf-ext demo: error: argument --rollouts: must be a whole number of at least 1,",
    ),
    (
        ["demo", "--rollouts", "0"],
        "rlhf-ext demo: error: argument --rollouts: must be a whole number of at least 1, got",
    ),
    (
        ["demo", "--seed", "-1"],
        "rlhf-ext demo: error: argument --seed: must be a whole number from 0 to 4294967295, got",
    ),
    (
        ["demo", "--output", "broken.py/run"],
        "rlhf-ext demo: error: --output broken.py/run cannot be made (Not a direc",
    ),
    (
        ["demo", "old"],
        "rlhf-ext demo: error: 'old' is one argument too many: rlhf-ext demo takes options alone; `rlhf",
    ),
    (["demo", "--kl_placement", "end"], "rlhf-ext demo: error: argument --kl-placement: invalid choice: 'end'"),
    (["plan", "--zero_stage", "9"], "rlhf-ext plan: error: argument --zero_stage: invalid choice: 9"),
    (
        ["plan", "--num_gpus", "0"],
        "rlhf-ext plan: error: argument --num_gpus: must be a whole number of at least 1, got",
    ),
    (
        ["check", "--num-gpus", "two"],
        "rlhf-ext check: error: argument --num_gpus: must be a whole number of at least 1,",
    ),
    (
        ["check", "--config", "qwen2.5-0.5b-sft"],
        "rlhf-ext check: error: --config: 'qwen2.5-0.5b-sft' is a recipe of `",
    ),
    (["check", "--config", "."], "rlhf-ext check: error: --config: '.' is a folder; give a YAML file."),
    (["check"], "rlhf-ext check: error: nothing to check: give a recipe with --config"),
    (["diagnose"], "rlhf-ext diagnose: error: the following arguments are required: PATH"),
    (["diagnose", "lost.csv"], "rlhf-ext diagnose: error: "),
    (["diagnose", "log.csv", "--kl_target", "6"], "rlhf-ext diagnose: error: --kl_target 6 needs --kl_unit sequence"),
    (
        ["diagnose", "log.csv", "--kl_target", "-6"],
        "rlhf-ext diagnose: error: argument --kl_target: must be a number abo",
    ),
    (
        ["diagnose", "log.csv", "--kl_unit", "nats"],
        "rlhf-ext diagnose: error: argument --kl_unit: invalid choice: 'nats'",
    ),
    (
        ["diagnose", "log.csv", "--html", "no/page.html"],
        "rlhf-ext diagnose: error: --html: there is no folder 'no' for",
    ),
    (
        ["diagnose", "a.csv", "b.csv"],
        "rlhf-ext diagnose: error: 'b.csv' is one argument too many: rlhf-ext diagnose ta",
    ),
    (
        ["env", "--colour", "red"],
        "rlhf-ext env: error: unknown option --colour; `rlhf-ext env --help` lists what it tak",
    ),
    (
        ["env", "--jsn"],
        "rlhf-ext env: error: unknown option --jsn (did you mean --json?); `rlhf-ext env --help` lists",
    ),
    (["migrate", "lost.py"], "rlhf-ext migrate: error: there is no file 'lost.py' in "),
    (["migrate", "broken.py"], "rlhf-ext migrate: error: 'broken.py' is not Python 3: line 1"),
    (["completions", "tcsh"], "rlhf-ext completions: error: argument shell: invalid choice: 'tcsh'"),
]


def run(arguments, folder):
    command = [sys.executable, "-m", "rlhf_ext.cli", *arguments]
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)


def assert_refused(done, message):
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(("arguments", "message"), REFUSED_BEFORE_TORCH, ids=lambda value: " ".join(value)[:40])
def test_it_is_said_once(arguments, message, tmp_path):
    (tmp_path / "broken.py").write_text("print 'x'\n")
    assert_refused(run(arguments, tmp_path), message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("plan", "rlhf-ext plan: error: unknown settings: learning_rat (did you mean learning_rate?)"),
        ("check", "rlhf-ext check: error: unknown settings: learning_rat (did you mean learning_rate?)"),
        ("sft", "rlhf-ext sft: error: unknown settings: learning_rat (did you mean learning_rate?)"),
        ("reward", "rlhf-ext reward: error: unknown settings: learning_rat (did you mean learning_rate?)"),
    ],
)
def test_a_setting_that_the_libraries_judge_is_said_once(command, message, tmp_path):
    (tmp_path / "recipe.yaml").write_text("output_dir: out\nuse_cpu: true\nbf16: false\nlearning_rat: 1\n")
    assert_refused(run([command, "--config", "recipe.yaml"], tmp_path), message)
