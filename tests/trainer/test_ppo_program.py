"""trainers/ppo.py as a user runs it."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROGRAM = Path(__file__).parents[2] / "trainers" / "ppo.py"


def run(recipe, folder, *overrides):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(PROGRAM), "--config", str(path), *overrides]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture
def recipe(tmp_path, tiny_policy_path, tiny_reward_path):
    rows = [json.dumps({"prompt": f"Say {i}"}) for i in range(24)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    return {
        "model_name_or_path": tiny_policy_path,
        "reward_model": [tiny_reward_path, tiny_reward_path],
        "dataset_name": "prompts.jsonl",
        "dataset_train_split": "train[:16]",
        "dataset_test_split": "train[16:]",
        "output_dir": "aligned",
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "max_steps": 4,
        "max_completion_length": 4,
        "kl_target": 1.0,
        "kl_unit": "sequence",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dtype": "float32",
    }


@pytest.mark.parametrize("given", ["a/b, c", ["a/b", "c"], ["a/b,c"]], ids=["string", "list", "command-line"])
def test_several_reward_models_are_given_as_a_list_or_with_commas(given):
    arguments = runpy.run_path(str(PROGRAM))["PPOScriptArguments"]
    assert arguments(reward_model=given).reward_model == ["a/b", "c"]
    assert arguments().reward_model == []


@pytest.mark.slow
def test_a_recipe_trains_saves_and_evaluates(recipe, tmp_path):
    lora = ("--use_peft", "true", "--lora_target_modules", "all-linear", "--merge", "true")
    done = run(recipe, tmp_path, *lora, "--beta", "0.2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Policy saved to aligned" in done.stdout
    assert (tmp_path / "aligned" / "adapter_model.safetensors").is_file()
    assert "eval_objective/score" in json.loads((tmp_path / "aligned" / "eval_results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cliprange": 0.2}, "`cliprange` is now epsilon"),
        ({"colour": "blue"}, "unknown settings: colour"),
        ({"reward_model": None}, "reward_model is not set"),
    ],
    ids=["old-name", "unknown", "no-reward-model"],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(change, message, recipe, tmp_path):
    done = run({**recipe, **change}, tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
