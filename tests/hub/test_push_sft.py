"""`rlhf-ext sft` pushes as the other programs do: its card is ours, and a push that fails says how to retry."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from test_push_policy import logits, run_blocks
from transformers import AutoModelForCausalLM

from rlhf_ext import PushError, SFTConfig, SFTTrainer

pytestmark = pytest.mark.slow
SMALL = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 2, "save_strategy": "no",
    "max_length": 32, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "push_to_hub": True,
    "hub_model_id": "me/policy",
}  # fmt: skip
ROWS = [{"prompt": f"Say {i}", "completion": "abc"} for i in range(8)]


@pytest.fixture
def sft(environment, tiny_policy_path, tmp_path):
    """A function that runs the program."""
    Dataset.from_list(ROWS).to_json(tmp_path / "texts.jsonl")
    recipe = {**SMALL, "model_name_or_path": tiny_policy_path, "dataset_name": "texts.jsonl", "output_dir": "policy"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "dtype": "float32"}))
    program = Path(__file__).parents[2] / "trainers" / "sft.py"

    def run():
        command = [sys.executable, str(program), "--config", "recipe.yaml"]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_the_model_comes_back_with_the_code_of_its_card(hub, sft, tmp_path):
    done = sft()
    assert done.returncode == 0, done.stderr
    card = hub.repos["me/policy"]["README.md"].decode()
    assert {"trl", "rlhf-ext", "sft", "generated_from_trainer"} <= set(ModelCard(card).data.tags)
    assert "by supervised fine-tuning" in card and r"| max\_steps | 2 |" in card and f"{tmp_path}" not in card
    assert "curves.svg" in hub.repos["me/policy"] and [summary for _, summary in hub.commits] == ["End of training"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert torch.equal(logits(run_blocks(card)["model"]), logits(saved))


def test_a_push_that_fails_ends_the_program_with_the_command_that_retries(hub, sft, tmp_path):
    hub.fail("POST /api/models/me/policy/commit", 403)
    done = sft()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "The push to me/policy failed: " in done.stderr and "Nothing is lost" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hf upload me/policy policy . --exclude")
    assert (tmp_path / "policy" / "model.safetensors").is_file() and "KnownSecretToken" not in done.stderr


def test_a_repository_that_cannot_be_made_is_said_before_the_training(
    hub, tiny_policy_path, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    config = SFTConfig(str(tmp_path / "policy"), **SMALL)
    with pytest.raises(PushError, match=r"'me/policy' cannot be made on the Hub: .*401.*hf auth login"):
        SFTTrainer(tiny_policy_path, config, train_dataset=Dataset.from_list(ROWS), processing_class=tiny_tokenizer)
