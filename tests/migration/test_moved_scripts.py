"""The scripts of docs/migration.md, TRL's examples among them, run on tiny models as they are printed there."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlhf_ext import PPOConfig
from rlhf_ext.migration import read_script

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
LOOP, EXAMPLE, TLDR = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
SMALL = """
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --max_steps 4 --max_completion_length 4
    --save_strategy no --use_cpu true --bf16 false --gradient_checkpointing false --dtype float32 --learning_rate 0.01
""".split()


def run(code, folder, monkeypatch, *arguments):
    script = folder / "script.py"
    script.write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    return runpy.run_path(str(script), run_name="__main__")["trainer"]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    for split, count in (("train", 24), ("validation", 6)):
        # The third prompt of the six is too long.
        rows = [json.dumps({"prompt": f"Say {'very ' * 30 * (i % 6 == 2)}{i}"}) for i in range(count)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(rows))
    return str(tmp_path / "data")


@pytest.mark.parametrize("code", [LOOP, EXAMPLE, TLDR], ids=["loop", "ppo.py", "ppo_tldr.py"])
def test_a_moved_script_has_no_old_name_left(code):
    assert read_script(code).era is None


def test_the_moved_loop_trains_against_its_reward_function(tmp_path, monkeypatch, tiny_policy_path):
    given = []

    def classifier(texts):
        given.extend(texts)
        return [[{"label": "NEGATIVE", "score": 0.0}, {"label": "POSITIVE", "score": float(len(t))}] for t in texts]

    # The module of that name has been replaced since it was first imported.
    monkeypatch.setattr(sys.modules["transformers"], "pipeline", lambda *_, **__: classifier)
    smaller = {
        '"lvwerra/gpt2-imdb"': repr(tiny_policy_path),
        "per_device_train_batch_size=16": "per_device_train_batch_size=4",
        "steps_per_generation=8": "steps_per_generation=2",
        "max_completion_length=32,": "max_completion_length=4, max_steps=8, use_cpu=True, bf16=False,",
    }
    code = LOOP
    for printed, small in smaller.items():
        assert code.count(printed) == 1
        code = code.replace(printed, small)
    trainer = run(code, tmp_path, monkeypatch)
    (row,) = [row for row in trainer.state.log_history if "objective/score" in row]
    assert row["objective/score"] == pytest.approx(sum(map(len, given)) / len(given), rel=1e-4)
    assert (row["kl/beta"], row["kl/target"], len(given)) == (pytest.approx(0.2), 6.0, 8)
    assert (tmp_path / "gpt2-imdb-positive" / "model.safetensors").is_file()


def test_the_moved_example_trains_and_judges_held_out_prompts(
    tmp_path, monkeypatch, data, tiny_policy_path, tiny_reward_path, capsys
):
    models = ("--model_name_or_path", tiny_policy_path, "--reward_model", tiny_reward_path)
    where = ("--dataset_name", data, "--output_dir", "out", "--eval_samples", "8")
    trainer = run(EXAMPLE, tmp_path, monkeypatch, *models, *where, *SMALL)
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (16, 8)
    before, after = (load_file(Path(p) / "model.safetensors") for p in (tiny_policy_path, tmp_path / "out"))
    assert (after["lm_head.weight"] - before["lm_head.weight"]).abs().max() > 1e-3
    assert "eval_objective/score" in capsys.readouterr().out


def test_the_moved_tldr_example_leaves_long_prompts_out(
    tmp_path, monkeypatch, data, tiny_policy_path, tiny_reward_path, capsys
):
    models = ("--model_name_or_path", tiny_policy_path, "--reward_model", tiny_reward_path)
    where = ("--dataset_name", data, "--dataset_test_split", "validation", "--output_dir", "out")
    # What the page gives for the defaults of TRL.
    defaults = re.search(r"^--beta .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[0].split()
    more = (
        "--longest_prompt",
        "64",
        "--eval_strategy",
        "steps",
        "--use_peft",
        "true",
        "--per_device_eval_batch_size",
        "1",
    )
    trainer = run(TLDR, tmp_path, monkeypatch, *models, *where, *defaults, *SMALL, *more)
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (20, 5)
    args = trainer.args
    assert (args.beta, args.kl_placement, args.epsilon, args.temperature) == (0.05, "token", 0.2, 0.7)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "eval_objective/score" in capsys.readouterr().out


def test_the_steps_of_the_page_are_those_of_the_formula(tmp_path):
    """16 sequences on each of 8 processes, 4 micro-batches: 512 a rollout; four epochs of one step."""
    args = PPOConfig(
        str(tmp_path), per_device_train_batch_size=16, gradient_accumulation_steps=4, use_cpu=True, bf16=False
    )
    assert (args.updates_per_rollout, args.generation_batch_size * 8) == (4, 512)
    assert f"--max_steps {1_000_000 // 512 * args.updates_per_rollout}" in PAGE.read_text(encoding="utf-8")
