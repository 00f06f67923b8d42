"""`rlhf-ext migrate`: what is found in scripts, and where."""

import json
import textwrap

import pytest

from rlhf_ext.cli import main
from rlhf_ext.migration import STEP_LOOP, TRAIN, read_script

LOOP = """\
    import torch
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
    from trl.core import LengthSampler

    config = PPOConfig(model_name="gpt2", learning_rate=1.41e-5, batch_size=16,
                       mini_batch_size=4, init_kl_coef=0.2)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
    trainer = PPOTrainer(config, model, None, tokenizer, dataset=dataset)
    steps = 3
    for batch in trainer.dataloader:
        answers = trainer.generate(batch["input_ids"], max_new_tokens=8)
        stats = trainer.step(batch["input_ids"], answers, score(batch["query"], answers))
        print(stats["objective/kl"], steps)
"""
NEW = """\
    import trl.experimental.ppo as ppo
    from transformers import HfArgumentParser

    class Mine(ppo.PPOTrainer):
        pass

    if __name__ == "__main__":
        parser = HfArgumentParser((Script, ppo.PPOConfig))
        script, args = parser.parse_args_into_dataclasses()
        args.target = 3
        script.target = 3
        self.trainer = Mine(
            args=args,
            policy=policy,
            **models,
        )
        self.trainer.generate_completions()
"""


def found(source):
    return {(finding.line, finding.name) for finding in read_script(textwrap.dedent(source)).findings}


def test_every_name_of_a_step_loop_is_found_with_its_line():
    assert read_script(textwrap.dedent(LOOP)).era == STEP_LOOP
    assert found(LOOP) == {
        (2, "AutoModelForCausalLMWithValueHead"),
        (2, "PPOConfig"),
        (2, "PPOTrainer"),
        (3, "LengthSampler"),
        (5, "model_name"),
        (5, "batch_size"),
        (6, "mini_batch_size"),
        (6, "init_kl_coef"),
        (7, ".model_name"),
        (8, "argument config"),
        (8, "argument model"),
        (8, "argument ref_model"),
        (8, "argument tokenizer"),
        (8, "dataset"),
        (10, ".dataloader"),
        (11, ".generate"),
        (11, '"input_ids"'),
        (12, ".step"),
        (12, '"input_ids"'),
        (12, '"query"'),
        (13, '"objective/kl"'),
    }


def test_what_holds_a_config_or_trainer_is_followed_through_the_script():
    assert read_script(textwrap.dedent(NEW)).era == TRAIN
    assert found(NEW) == {
        (4, "PPOTrainer"),
        (8, "HfArgumentParser"),
        (8, "PPOConfig"),
        (10, ".target"),  # of the PPOConfig, and not the `target` of something else
        (14, "policy"),
        (15, "**models"),
        (17, ".generate_completions"),
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from trl import *\nPPOConfig(kl_coef=1)", {(2, "kl_coef")}),
        ("import trl\ntrl.PPOConfig(kl_coef=1)", {(2, "PPOConfig"), (2, "kl_coef")}),
        ("import trl as t\nt.trainer.PPOv2Config(kl_coef=1)", {(2, "PPOv2Config"), (2, "kl_coef")}),
        ("from trl import PPOConfig as C\nC(kl_coef=1)", {(1, "PPOConfig"), (2, "kl_coef")}),
        ("from trl import PPOConfig\ndef f(a: PPOConfig):\n    a.steps", {(1, "PPOConfig"), (3, ".steps")}),
        ('from trl import PPOConfig\n"""\nrun x\n  --kl_coef 1\n"""', {(1, "PPOConfig"), (4, "--kl_coef")}),
        # A name that TRL's PPO never had, or that transformers dropped; what is a setting here needs nothing.
        (
            "import trl\nc = trl.PPOConfig(\n  seed=1,\n  evaluation_strategy='no')\n"
            "c.logging_dir, c.seed = 'x', 2\nc.nothing",
            {(2, "PPOConfig"), (4, "evaluation_strategy"), (5, ".logging_dir")},
        ),
        ("import trl\ntrl.PPOTrainer(callbacks=None,\n  wobble=1)", {(2, "PPOTrainer"), (3, "wobble")}),
        # A name that nothing else would have is believed of any object, a common word is not.
        ("from trl import PPOConfig\na.num_ppo_epochs + a.target", {(1, "PPOConfig"), (2, ".num_ppo_epochs")}),
    ],
)
def test_names_are_followed_however_they_were_imported(source, expected):
    assert found(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "from rlhf_ext import PPOConfig, PPOTrainer\nPPOConfig(kl_coef=1)",
        "from trl import GRPOTrainer\ntrainer = GRPOTrainer()\ntrainer.step()",
        "from stable_baselines3.ppo import PPOTrainer",
    ],
)
def test_a_script_without_ppo_of_trl_needs_nothing(source):
    migration = read_script(source)
    assert (migration.era, migration.findings) == (None, [])


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["migrate", *map(str, arguments)])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_command_prints_lines_and_reasons(tmp_path, capsys):
    script = tmp_path / "old.py"
    # It would end the test if it were run.
    script.write_text("raise SystemExit(7)\n" + textwrap.dedent(LOOP))
    status, printed, _ = run(capsys, script)
    assert status == 1
    assert "PPO of TRL 0.11 or earlier; 21 places to change." in printed
    assert "   8 | model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)" in printed
    assert "       mini_batch_size -> per_device_train_batch_size and gradient_accumulation_steps" in printed
    # The learning rate is given, the clip range is not.
    assert "epsilon is not set in the script: 0.2 in TRL, 0.1 here." in printed
    assert "learning_rate is not set" not in printed
    assert "temperature is not set" not in printed
    status, printed, _ = run(capsys, script, "--json")
    data = json.loads(printed)
    assert (status, data["era"], len(data["changes"])) == (1, STEP_LOOP, 21)
    assert data["changes"][0].keys() == {"line", "name", "new", "differs"}


def test_what_nobody_knows_is_said_with_its_line(tmp_path, capsys):
    script = tmp_path / "old.py"
    script.write_text("from trl import PPOConfig, PPOTrainer\nPPOConfig(warmup_ratio=0.1)\nPPOTrainer(wobble=1)\n")
    status, printed, _ = run(capsys, script)
    assert status == 1 and "; 4 places to change." in printed
    assert "       warmup_ratio: unknown: PPOConfig takes nothing of this name (near it is warmup_steps)\n" in printed
    assert "       wobble: unknown: PPOTrainer takes nothing of this name\n" in printed
    assert "\nNot known here, so look at these yourself: warmup_ratio (line 2), wobble (line 3).\n" in printed
    script.write_text("from trl import PPOConfig\nPPOConfig(kl_coef=0.1)\n")
    assert "Not known here" not in run(capsys, script)[1]


def test_a_notebook_is_read_cell_by_cell(tmp_path, capsys):
    cells = [
        {"cell_type": "markdown", "source": ["from trl import PPOTrainer"]},
        {"cell_type": "code", "source": ["%pip install trl\n", "!ls\n", "from trl import PPOConfig"]},
    ]
    notebook = tmp_path / "old.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    status, printed, _ = run(capsys, notebook)
    assert status == 1
    assert "   3 | from trl import PPOConfig" in printed and "; 1 place to change" in printed


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.py", None, "there is no file "),
        ("broken.py", "def f(:", "is not Python 3: line 1"),
        ("two.py", "print 1", "is not Python 3"),
        ("binary.py", b"\xff\xfe", "is not a text in UTF-8"),
        ("broken.ipynb", "{", "is not a notebook"),
        ("", None, "is a folder"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, printed, error = run(capsys, path)
    assert (status, printed) == (2, "")
    assert message in error and str(path) in error and error.count("\n") == 1


def test_a_script_without_ppo_says_so(tmp_path, capsys):
    script = tmp_path / "mine.py"
    script.write_text("print(1)\n")
    status, printed, _ = run(capsys, script)
    assert (status, printed) == (0, f"{script}: no PPO of TRL in it, nothing to change.\n")
