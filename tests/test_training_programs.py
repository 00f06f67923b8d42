"""The programs of the first two stages, run as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ext import RewardConfig, RewardTrainer
from rlhf_ext.trainer.reward_functions import as_reward_function

ROOT = Path(__file__).parent.parent
SMALL = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "report_to": "none",
    "save_strategy": "no",
}
ROWS = [{"prompt": "ab", "chosen": f"x{'c' * (i % 7)}", "rejected": f"y{'d' * (i % 5)}{i}"} for i in range(75)]
pytestmark = pytest.mark.slow


def launch(program: str, recipe: dict, folder: Path, *launch_arguments: str) -> str:
    config = folder / "recipe.yaml"
    config.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", *launch_arguments, str(ROOT / "trainers" / program), "--config", str(config)]
    # The shell's own path is kept: the package may be imported from the checkout or from an installation.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs_file(tmp_path) -> str:
    return write_lines(tmp_path / "pairs.jsonl", ROWS)


@pytest.fixture
def reward_recipe(pairs_file, tiny_reward_path, tmp_path) -> dict:
    """64 pairs to train on and 11 to measure on; a learning rate of 0 keeps the model as it was."""
    splits = {"dataset_train_split": "train[:64]", "dataset_test_split": "train[64:]"}
    places = {"dataset_name": pairs_file, "model_name_or_path": tiny_reward_path, "output_dir": str(tmp_path / "out")}
    return {**SMALL, **places, **splits, "learning_rate": 0.0, "per_device_eval_batch_size": 3}


def test_sft_program_trains_and_saves_a_model(tiny_policy_path, tmp_path) -> None:
    data = write_lines(tmp_path / "sft.jsonl", [{"prompt": f"{i}", "completion": "abc"} for i in range(16)])
    out = tmp_path / "out"
    recipe = {
        "model_name_or_path": tiny_policy_path,
        "dataset_name": data,
        "output_dir": str(out),
        "learning_rate": 0.01,
    }
    printed = launch("sft.py", {**SMALL, **recipe}, tmp_path)
    assert f"Model saved to {out}" in printed
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_policy_path, out))
    assert (after.lm_head.weight - before.lm_head.weight).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_reward_program_saves_an_adapter_with_its_head_and_its_card(reward_recipe, tmp_path) -> None:
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 0.01}
    printed = launch("reward.py", {**reward_recipe, **lora}, tmp_path)
    out = Path(reward_recipe["output_dir"])
    adapter = json.loads((out / "adapter_config.json").read_text())
    assert adapter["task_type"] == "SEQ_CLS" and "score" in adapter["modules_to_save"]
    card = json.loads((out / "report_card.json").read_text())
    assert card["num_pairs"] == 11 and card["normalization"]["score_std"] > 0
    assert "## Report card" in printed and "## Report card" in (out / "README.md").read_text()


def test_reward_adapter_of_a_base_without_padding_token_is_one_that_ppo_takes(
    reward_recipe, tiny_reward_path, tiny_tokenizer, ppo_config, tmp_path
) -> None:
    # The settings of the recipe for Llama 3.1, whose tokenizer names no padding token.
    base = tmp_path / "base"
    shutil.copytree(tiny_reward_path, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": "all-linear", "lora_modules_to_save": ["score"]}
    recipe = {**reward_recipe, **lora, "model_name_or_path": str(base), "pad_token": "<pad>", "learning_rate": 0.01}
    launch("reward.py", recipe, tmp_path)
    score = as_reward_function(recipe["output_dir"], None, tiny_tokenizer, ppo_config())
    assert (score.tokenizer.pad_token, score.model.get_base_model().config.pad_token_id) == ("<pad>", 0)
    (alone,) = score(["ab"], ["x"], [[10, 1]])
    assert score(["ab", "ab"], ["x", "xyz"], [[10, 1], [10, 11, 12, 1]])[0] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_make_the_card_that_one_makes(reward_recipe, tiny_reward_path, tmp_path, streaming) -> None:
    # 11 pairs in batches of 3 on two processes: the last round has 3 and 2 pairs, of which one is repeated to fill up.
    # Port 0: accelerate takes a free one just before it starts the processes.
    two = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    if streaming:
        (tmp_path / "data").mkdir()
        write_lines(tmp_path / "data" / "train.jsonl", ROWS[:64])
        write_lines(tmp_path / "data" / "test.jsonl", ROWS[64:])
        splits = {"dataset_train_split": "train", "dataset_test_split": "test"}
        reward_recipe |= {"dataset_name": str(tmp_path / "data"), "dataset_streaming": True, **splits}
    printed = launch("reward.py", reward_recipe, tmp_path, *two)
    # One step of 8 pairs on each of two processes is a quarter of 64.
    assert streaming or "'epoch': '0.25'" in printed
    out = Path(reward_recipe["output_dir"])
    pairs = Dataset.from_list(ROWS[64:])
    config = RewardConfig(str(tmp_path / "one"), use_cpu=True, bf16=False, report_to=[])
    one = RewardTrainer(tiny_reward_path, config, train_dataset=pairs, eval_dataset=pairs).report_card()
    card = json.loads((out / "report_card.json").read_text())
    for name in (
        "num_pairs",
        "accuracy",
        "margin_mean",
        "length_pearson",
        "score_mean",
        "score_std",
        "num_references",
    ):
        assert card[name] == pytest.approx(getattr(one, name), rel=1e-4), name
    stored = AutoModelForSequenceClassification.from_pretrained(out).config
    assert (stored.score_mean, stored.score_std) == (card["score_mean"], card["score_std"])
