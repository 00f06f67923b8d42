"""Of two processes the first one pushes, once; where that fails, both end and the way to retry is said once."""

import json
import subprocess
import sys

import pytest
import yaml

pytestmark = pytest.mark.slow
TWO = ("--accelerate_config", "ddp", "--num_processes", "2", "--main_process_port", "0")


@pytest.mark.parametrize("fails", [False, True])
def test_two_processes_push_once(hub, environment, tiny_policy_path, tiny_reward_path, tmp_path, fails):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"Say {i}"}) for i in range(16)))
    recipe = {
        "model_name_or_path": tiny_policy_path, "reward_model": tiny_reward_path, "dataset_name": "prompts.jsonl",
        "output_dir": "aligned", "per_device_train_batch_size": 4, "num_iterations": 1, "max_steps": 1,
        "max_completion_length": 4, "save_strategy": "no", "use_cpu": True, "bf16": False, "dtype": "float32",
        "gradient_checkpointing": False, "push_to_hub": True, "hub_model_id": "me/aligned",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if fails:
        hub.fail("POST /api/models/me/aligned/commit", 403)
    command = [sys.executable, "-m", "rlhf_ext.cli", "ppo", "--config", "recipe.yaml", *TWO]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    asked = [path for method, path in hub.calls if method == "POST"]
    assert asked.count("/api/repos/create") == 1
    assert len([path for path in asked if "/commit/" in path]) == 1
    assert (tmp_path / "aligned" / "model.safetensors").is_file()
    if fails:
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("The push to me/aligned failed") == done.stderr.count("hf upload me/aligned") == 1
    else:
        assert done.returncode == 0, done.stderr
        assert [summary for _, summary in hub.commits] == ["End of training"]
        assert {"model.safetensors", "README.md"} <= set(hub.repos["me/aligned"])
