"""Every command of the README and of the pages runs, or is read by the parser that it would meet."""

import os
import re

import pytest
from doc_commands import PARSED_ONLY, Shell
from doc_context import make_log_files
from doc_pages import PAGES, ROOT, Command, commands

RECIPE = """\
model_name_or_path: {policy}
reward_model: {reward}
dataset_name: prompts.jsonl
output_dir: out
kl_target: 6.0
kl_unit: sequence
use_cpu: true
bf16: false
"""
SCRIPT = "from trl import PPOConfig, PPOTrainer\nconfig = PPOConfig(kl_coef=0.05, cliprange=0.2)\n"


@pytest.fixture
def shell(tmp_path, monkeypatch, tiny_policy_path, tiny_reward_path):
    """In a folder that looks like the root of the project to relative paths, with a reader's own files."""
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(policy=tiny_policy_path, reward=tiny_reward_path))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Say a."}\n' * 8)
    (tmp_path / "script.py").write_text(SCRIPT)
    make_log_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    return Shell(tiny_policy_path, tiny_reward_path, monkeypatch)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_a_page(page, shell):
    for command in commands(page):
        try:
            shell.check(command)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and "--help" in command.words and not error.code:
                continue
            raise AssertionError(f"{command}: {type(error).__name__}: {error}") from error


def test_what_is_only_parsed_is_all_needed():
    """An entry whose command no page has any longer would let a new one through unseen."""
    words = [" ".join(command.words) for page in PAGES for command in commands(page)]
    for kind in PARSED_ONLY.keys() - {"rlhf-ext sft", "rlhf-ext reward", "rlhf-ext ppo", "rlhf-ext demo", "torchrun"}:
        assert any(each.startswith(kind) for each in words), kind


@pytest.mark.parametrize(
    "words",
    [
        "rlhf-ext check --no_such_setting 1 --config recipe.yaml",
        "rlhf-ext diagnose outputs/my-run --no-such-option",
        "rlhf-ext nothing",
        "accelerate nothing --help",
        "accelerate launch trainers/nothing.py --config recipe.yaml",
        "accelerate launch --config_file configs/accelerate/nothing.yaml trainers/ppo.py --config recipe.yaml",
        "accelerate launch trainers/ppo.py --config recipe.yaml --no_such_setting 1",
        "accelerate launch trainers/ppo.py --config nothing.yaml",
        "python -m benchmarks.failures nothing",
        "python -m benchmarks.nothing",
        "python benchmarks/kl_plants.py --nothing",
        "make nothing",
        "make demo NOTHING=1",
        "pip install .[nothing]",
        "pip install --constraint nothing.txt .",
        "pip install --nothing .",
        "pytest tests/nothing",
        "pytest tests/docs -k nothing_of_that_name",
    ],
)
def test_a_wrong_command_is_seen(words, shell):
    with pytest.raises((Exception, SystemExit)):
        shell.check(Command(ROOT / "README.md", 1, tuple(words.split())))


def test_every_target_of_make_is_called_or_written_down():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = " ".join(re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)).split()
    texts = [path.read_text(encoding="utf-8") for path in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run")]
    called = {word for text in texts for line in re.findall(r"\bmake ([^\n`]+)", text) for word in line.split()}
    needed = set(" ".join(re.findall(r"^[a-z-]+:(.*)$", makefile, re.MULTILINE)).split())
    listed = set(makefile.split("\n", 1)[0].split())
    assert len(targets) > 10
    assert [target for target in targets if target not in called | needed | listed] == []
