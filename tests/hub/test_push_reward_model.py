"""A reward model goes to the Hub with its report, loads as its card says, and PPO takes it from there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from test_push_policy import run_blocks

from rlhf_ext import PPOTrainer, RewardConfig, RewardTrainer, load_data

pytestmark = pytest.mark.slow
ROWS = [{"prompt": "ab", "chosen": f"x{'c' * (i % 7)}", "rejected": f"y{'d' * (i % 5)}{i}"} for i in range(24)]
SMALL = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 2, "save_strategy": "no"}


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")])
def test_it_comes_back_with_the_same_scores_and_ppo_uses_it(
    hub, tiny_reward_path, tiny_policy_path, prompts, ppo_config, tmp_path, lora
):
    config = RewardConfig(
        str(tmp_path / "rm"), **SMALL, logging_steps=1, report_to=[], push_to_hub=True, hub_model_id="me/rm"
    )
    data = Dataset.from_list(ROWS)
    trainer = RewardTrainer(tiny_reward_path, config, train_dataset=data, eval_dataset=data, peft_config=lora)
    trainer.train()
    trainer.save_model()
    files = hub.repos["me/rm"]
    assert {"report_card.json", "reward_report.html", "README.md", "curves.svg", "tokenizer.json"} <= set(files)
    card = files["README.md"].decode()
    data_of_card = ModelCard(card).data
    assert {"trl", "rlhf-ext", "reward-trainer"} <= set(data_of_card.tags)
    assert (data_of_card.pipeline_tag, data_of_card.library_name) == (
        "text-classification",
        "peft" if lora else "transformers",
    )
    assert trainer.last_report_card.to_markdown().strip() in card and f"{tmp_path}" not in card
    names = run_blocks(card)
    with torch.no_grad():
        expected = trainer.model.eval()(**names["inputs"]).logits
        assert torch.equal(names["model"](**names["inputs"]).logits, expected)

    ppo = PPOTrainer(tiny_policy_path, "me/rm", ppo_config(max_steps=1), prompts)
    numbers = trainer.last_report_card.normalization
    assert ppo.reward_funcs[0].normalization == pytest.approx(numbers)
    ppo.save_model()
    policy_card = (Path(ppo.args.output_dir) / "README.md").read_text()
    accuracy = trainer.last_report_card.accuracy
    assert f"accuracy {accuracy:.4g}" in policy_card and "https://huggingface.co/me/rm" in policy_card


def test_the_program_takes_rankings_and_ends_with_the_page(hub, environment, tiny_reward_path, tmp_path):
    rankings = Dataset.from_list(
        [{"prompt": "ab", "completions": [f"x{i}", f"yy{i}", *([f"zzz{i}"] if i % 2 else [])]} for i in range(16)]
    )
    rankings.to_json(tmp_path / "ranked.jsonl")
    recipe = {
        **SMALL, "model_name_or_path": tiny_reward_path, "dataset_name": "ranked.jsonl", "report_to": "none",
        "dataset_train_split": "train[:8]", "dataset_test_split": "train[8:]", "output_dir": "rm", "push_to_hub": True,
        "hub_model_id": "me/rm", "per_device_train_batch_size": 4, "learning_rate": 0.0,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    program = Path(__file__).parents[2] / "trainers" / "reward.py"
    command = [sys.executable, str(program), "--config", "recipe.yaml"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Of eight rankings four have three answers: 4 * 3 + 4 * 1 pairs.
    assert "| Held-out pairs (ties) | 16 (" in done.stdout
    assert "| Prompts, of which each counts the same | 8 |" in done.stdout
    assert "Plots and mistakes: rm/reward_report.html" in done.stdout
    accuracy = re.search(r"Accuracy, ties as half[^|]*\| ([\d.]+) ", done.stdout)[1]
    config = RewardConfig(str(tmp_path / "again"), **SMALL, report_to=[])
    data = load_data(str(tmp_path / "ranked.jsonl"), "train[8:]")
    again = RewardTrainer(tiny_reward_path, config, train_dataset=data, eval_dataset=data).report_card()
    assert accuracy == f"{again.accuracy:.3f}"
    assert [summary for _, summary in hub.commits] == ["End of training"]
    assert "reward_report.html" in hub.repos["me/rm"]
