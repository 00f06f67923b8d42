"""What `rlhf-ext sft | reward | ppo` hands to accelerate's launcher, and how it ends."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from rlhf_ext.programs.ppo import PPOScriptArguments
from rlhf_ext.programs.reward import RewardScriptArguments
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

from rlhf_ext import PPOConfig, RecipeParser, RewardConfig
from rlhf_ext.cli import main
from rlhf_ext.cli.exits import errors_as_messages, messages_of
from rlhf_ext.cli.launch import SHARED, launch, split_arguments
from rlhf_ext.cli.settings import PROGRAMS
from rlhf_ext.cli.shipped import launch_names, launch_path, recipe_names, recipe_path

HERE = Path(__file__).parent
CLASSES = {
    "sft": (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig),
    "reward": (RewardScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig),
    "ppo": (PPOScriptArguments, PPOConfig, ModelConfig),
}


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """An empty folder, from which the failing program can be launched, without a launch configuration of the user's."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr("accelerate.commands.launch.default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.chdir(tmp_path)


# ---- Whose option is it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", CLASSES)
def test_options_that_launcher_and_program_share_are_known(program):
    names = {s.removeprefix("--") for a in launch_command_parser()._actions for s in a.option_strings}
    settings = {action.dest for action in RecipeParser(CLASSES[program])._actions}
    assert names & settings == SHARED


@pytest.mark.parametrize(
    ("arguments", "own", "rest"),
    [
        (["--beta", "1", "--num_processes", "2"], ["--num_processes", "2"], ["--beta", "1"]),
        (["--num-processes=2", "--beta=1"], ["--num-processes=2"], ["--beta=1"]),
        # A flag takes nothing after it.
        (["--multi_gpu", "--lora_target_modules", "a", "b"], ["--multi_gpu"], ["--lora_target_modules", "a", "b"]),
        (["--gradient_accumulation_steps", "4"], [], ["--gradient_accumulation_steps", "4"]),
        (["--debug", "underflow_overflow"], [], ["--debug", "underflow_overflow"]),
        (["--num_processes"], ["--num_processes"], []),
    ],
)
def test_options_go_where_they_belong(arguments, own, rest):
    assert split_arguments(arguments, launch_command_parser()) == (own, rest)


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "recipes/demo.yaml", "smollm2-135m-demo-ppo"])
def test_a_shipped_recipe_has_short_names(name):
    assert Path(recipe_path(name, "ppo")).name == "smollm2-135m-demo-ppo.yaml"


@pytest.mark.parametrize("name", ["zero3", "zero3.yaml", "accelerate/zero3.yaml"])
def test_a_shipped_launch_configuration_has_short_names(name):
    assert Path(launch_path(name)).read_text().count("zero_stage: 3") == 1


def test_every_shipped_name_is_a_file_and_a_file_of_the_users_comes_first(tmp_path):
    recipes = [(name, program) for program in PROGRAMS for name in recipe_names(program)]
    assert len(recipes) >= 8 and len(launch_names()) >= 10
    assert all(Path(recipe_path(*recipe)).is_file() for recipe in recipes)
    assert all(Path(launch_path(name)).is_file() for name in launch_names())
    (tmp_path / "demo").write_text("")
    assert recipe_path("demo", "ppo") == "demo"


@pytest.mark.parametrize("command", ["check", "plan", "ppo", "sft", "reward"])
def test_the_shipped_recipe_of_another_program_is_named_as_that(command, capsys):
    own = command if command in PROGRAMS else "ppo"
    for program in set(PROGRAMS) - {own}:
        name = f"qwen2.5-0.5b-{program}"
        with pytest.raises(SystemExit) as ended:
            main([command, "--config", name])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1
        assert f"'{name}' is a recipe of `rlhf-ext {program}`; here one of `rlhf-ext {own}` is wanted: a path" in error
        offered = error.split(": a path, or ")[1]
        assert offered == f"{', '.join(recipe_names(own))}.\n" and f"qwen2.5-0.5b-{own}" in offered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo"], "nothing to run: give a recipe with --config"),
        (["ppo", "--config", "lost.yaml"], "there is no file 'lost.yaml' in "),
        (["ppo", "--config", "."], "--config: '.' is a folder; give a YAML file."),
        (["ppo", "--config", "demo", "--accelerate_config", "."], "--accelerate_config: '.' is a folder; give a YAML"),
        (["check", "--config", "lost.yaml"], "Give a path, or one of demo, llama"),
        (["sft", "--beta", "1", "--accelerate_config", "zero9"], "--accelerate_config: there is no file 'zero9'"),
        (["ppo", "--beta", "1", "--num_processes", "two"], "for the launcher: argument --num_processes"),
        (["env", "--colour", "red"], "unknown option --colour"),
    ],
)
def test_wrong_input_is_a_sentence_and_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error and error.startswith(f"rlhf-ext {arguments[0]}: error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOENT, "check the path"),
        (errno.EACCES, "choose another place, or change its permissions"),
        (errno.ENOSPC, "make room, or choose another disk"),
    ],
)
def test_an_error_of_the_system_comes_with_a_remedy(number, remedy, capsys):
    with pytest.raises(SystemExit) as ended, errors_as_messages("rlhf-ext diagnose"):
        raise OSError(number, os.strerror(number), "page.html")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"rlhf-ext diagnose: error: {os.strerror(number)}: 'page.html'; {remedy}.\n"


def test_a_full_disk_has_its_remedy_where_the_error_names_no_file(capsys):
    with pytest.raises(SystemExit), errors_as_messages("rlhf-ext diagnose"), open("/dev/full", "w") as file:
        file.write("a page")
        file.flush()
    expected = f"rlhf-ext diagnose: error: {os.strerror(errno.ENOSPC)}; make room, or choose another disk.\n"
    assert capsys.readouterr().err == expected


def test_debug_lets_the_traceback_through():
    with pytest.raises(ValueError, match="there is no file"):
        main(["ppo", "--config", "lost.yaml", "--debug"])


def test_debug_with_a_value_is_the_setting_of_transformers(monkeypatch):
    seen = []
    monkeypatch.setattr("rlhf_ext.cli.launch.launch", lambda *arguments: seen.append(arguments))
    main(["--debug", "ppo", "--debug", "underflow_overflow", "--beta", "1", "--accelerate_config", "ddp"])
    ((module, arguments, config, command, debug),) = seen
    assert (module, command, debug) == ("rlhf_ext.programs.ppo", "rlhf-ext ppo", True)
    assert arguments == ["--debug", "underflow_overflow", "--beta", "1"]
    assert config == launch_path("ddp")


# ---- How it ends -------------------------------------------------------------------------------------------------------


def ended(capfd, *arguments, debug=False):
    """Exit status, and what was printed to stderr, of a launch of `failing.py`."""
    try:
        launch("failing", list(arguments), None, "rlhf-ext ppo", debug)
        status = 0
    except SystemExit as end:
        status = end.code
    return status, capfd.readouterr().err


def test_the_launcher_sets_up_the_program(capfd, tmp_path):
    before = dict(os.environ)
    status, error = ended(capfd, "write", "out.txt", "--mixed_precision", "no", "--beta", "1")
    assert (status, error) == (0, "")
    assert (tmp_path / "out.txt").read_text().split() == ["no", "--beta", "1"]
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["refuse", "1"], 2, "rlhf-ext ppo: error: batch_size=1 is too small. Raise it.\n(traceback: "),
        (["break"], 1, "rlhf-ext ppo: error: RuntimeError: no such tensor\n(traceback: "),
        (["exit", "143"], 143, ""),
        (["killed"], 137, "rlhf-ext ppo: error: a process was killed (SIGKILL). Most often the machine had no memory"),
    ],
)
def test_a_program_that_fails_is_reported_once(capfd, arguments, status, message):
    found, error = ended(capfd, *arguments)
    assert found == status
    assert error.startswith(message) and "Traceback" not in error and "CalledProcessError" not in error
    assert error.count("error") <= 1


def test_the_traceback_of_a_foreign_error_is_kept(capfd):
    _, error = ended(capfd, "break")
    kept = Path(error.split("(traceback: ")[1].split(")")[0])
    assert 'raise RuntimeError("no such tensor")' in kept.read_text()
    kept.unlink()


def test_debug_prints_the_programs_traceback_alone(capfd):
    status, error = ended(capfd, "break", debug=True)
    assert status == 1
    assert error.count("Traceback") == 1 and "no such tensor" in error and "CalledProcessError" not in error


def test_a_message_of_every_process_is_printed_once(tmp_path):
    for rank, text in ((0, "a: error: x"), (1, "a: error: x"), (10, "a: error: y")):
        (tmp_path / f"{rank}.json").write_text(json.dumps(text))
    assert messages_of(tmp_path) == ["[process 0, 1] a: error: x", "[process 10] a: error: y"]
    (tmp_path / "10.json").unlink()
    assert messages_of(tmp_path) == ["a: error: x"]


def test_sigterm_reaches_the_program_and_is_waited_for():
    code = "from rlhf_ext.cli.launch import launch; launch('failing', ['wait'], None, 'rlhf-ext ppo', False)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
