"""The command as a user runs it, in an empty folder: trained, refused, and refused by two processes at once."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SMALL = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "num_iterations": 1,
    "max_steps": 2,
    "max_completion_length": 4,
    "kl_target": 1.0,
    "kl_unit": "sequence",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dtype": "float32",
    "learning_rate": 0.01,
    "output_dir": "aligned",
}


@pytest.fixture
def rlhf_ext(tmp_path, tiny_policy_path, tiny_reward_path):
    """A function that runs `rlhf-ext ppo` with a recipe, and options."""
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"Say {i}"}) for i in range(16)))
    places = {
        "model_name_or_path": tiny_policy_path,
        "reward_model": tiny_reward_path,
        "dataset_name": "prompts.jsonl",
    }

    def run(changes, *options):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**SMALL, **places, **changes}))
        command = [sys.executable, "-m", "rlhf_ext.cli", "ppo", "--config", "recipe.yaml", *options]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)

    return run


def test_a_recipe_trains_in_an_empty_folder(rlhf_ext, tmp_path, tiny_policy_path):
    done = rlhf_ext({"max_steps": 4}, "--accelerate_config", "single", "--max_steps", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Policy saved to aligned" in done.stdout
    before, after = (load_file(os.path.join(p, "model.safetensors")) for p in (tiny_policy_path, tmp_path / "aligned"))
    assert (after["lm_head.weight"] - before["lm_head.weight"]).abs().max() > 1e-3


def test_two_processes_are_refused_in_one_message(rlhf_ext):
    two = ("--accelerate_config", "ddp", "--num_processes", "2", "--main_process_port", "0")
    done = rlhf_ext({"dataset_train_split": "nothing"}, *two)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "rlhf-ext ppo" in line]
    assert len(lines) == 1 and lines[0].startswith(
        "rlhf-ext ppo: error: dataset 'prompts.jsonl' has no split 'nothing'"
    )
    assert "Traceback" not in done.stderr and "ChildFailedError" not in done.stderr


def test_a_setting_that_two_processes_refuse_is_said_once(rlhf_ext):
    two = ("--accelerate_config", "ddp", "--num_processes", "2", "--main_process_port", "0")
    done = rlhf_ext({"colour": "blue"}, *two)
    assert done.returncode == 2
    assert done.stderr.count("rlhf-ext ppo: error: unknown settings: colour") == 1
    assert "Traceback" not in done.stderr
