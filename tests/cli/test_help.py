"""`--help`: true, short, and without torch; `env`, `completions` and `demo`."""

import json
import subprocess
import sys

import pytest
from rlhf_ext.programs.ppo import PPOScriptArguments
from rlhf_ext.programs.reward import RewardScriptArguments
from test_launch import CLASSES

from rlhf_ext import PPOConfig, RecipeParser, RewardConfig
from rlhf_ext.cli import main, make_parser
from rlhf_ext.cli.env import environment
from rlhf_ext.cli.parser import commands_of
from rlhf_ext.cli.settings import PROGRAMS

OWN = {
    "sft": set(),
    "reward": {*RewardConfig.__annotations__, *RewardScriptArguments.__annotations__},
    "ppo": {*PPOConfig.__annotations__, *PPOScriptArguments.__annotations__},
}


def commands():
    return commands_of(make_parser())


@pytest.mark.parametrize("program", CLASSES)
def test_the_help_names_settings_that_exist_and_all_that_are_our_own(program):
    named = PROGRAMS[program].names()
    assert len(named) == len(set(named))
    assert set(named) <= {action.dest for action in RecipeParser(CLASSES[program])._actions}
    assert OWN[program] <= set(named)


@pytest.mark.parametrize("columns", [80, 132])
@pytest.mark.parametrize("name", [None, *commands()])
def test_a_help_fits_a_screen(name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = (commands()[name] if name else make_parser()).format_help().splitlines()
    assert 5 <= len(lines) <= 40
    assert max(map(len, lines)) <= min(columns, 100)
    assert "xit status" in "\n".join(lines)
    assert "%%" not in "\n".join(lines)


@pytest.mark.parametrize("arguments", [[], ["--debug"]])
def test_the_command_alone_says_what_there_is(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert (end.value.code, printed.err) == (0, "") and "\n    diagnose " in printed.out


def test_no_help_loads_anything_heavy():
    code = (
        "import atexit, sys, contextlib, io\n"
        "from rlhf_ext.cli import main\n"
        f"for name in {list(commands())!r}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([name, '--help'])\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "trl", "accelerate", "datasets", "yaml"} & set(loaded)


def test_env_prints_versions_and_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    monkeypatch.setenv("HF_ENDPOINT", "http://me:word@hub.example")  # pragma: allowlist secret
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    facts = environment()
    printed = json.dumps(facts)
    assert not any(secret in printed for secret in ("hf_abcdefgh", "0123456789", "word@"))
    assert facts["HF_TOKEN"] == facts["WANDB_API_KEY"] == "set"
    assert facts["OMP_NUM_THREADS"] == "1"
    assert facts["trl"].startswith("1.16") and facts["vllm"] and facts["devices"]


def test_env_shows_the_users_launch_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert environment()["accelerate config"] == "none"
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("num_processes: 3\n")
    assert "    num_processes: 3" in environment()["accelerate config"]


def test_bash_completes_commands_settings_and_names(tmp_path):
    program = [sys.executable, "-m", "rlhf_ext.cli", "completions", "bash"]
    script = tmp_path / "rlhf-ext"
    script.write_text(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    def complete(*words):
        code = [
            f"source {script}",
            f"COMP_WORDS=({' '.join(words)})",
            f"COMP_CWORD={len(words) - 1}",
            "_shtab_rlhf_ext",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
        done = subprocess.run(["bash", "-c", "; ".join(code)], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert complete("rlhf-ext", "pp") == ["ppo"]
    assert complete("rlhf-ext", "ppo", "--kl_t") == ["--kl_target"]
    assert complete("rlhf-ext", "ppo", "--accelerate_config", "zero3") == ["zero3", "zero3_multinode", "zero3_offload"]
    assert complete("rlhf-ext", "check", "--config", "dem") == ["demo"]
    # Of each program its own recipes; and what --help leaves to --help-all.
    assert complete("rlhf-ext", "plan", "--config", "qwen2.5-0.5b") == ["qwen2.5-0.5b-ppo"]
    assert complete("rlhf-ext", "sft", "--config", "qwen2.5-0.5b") == ["qwen2.5-0.5b-sft"]
    assert complete("rlhf-ext", "ppo", "--skip_d") == ["--skip_damaged_checkpoints"]
