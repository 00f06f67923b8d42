"""The three programs under launchers that divide or copy the model, with sampling as it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from launching import ROOT, launch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

pytestmark = pytest.mark.slow

SMALL = {
    "use_cpu": True,
    "bf16": False,
    "dtype": "float32",
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "report_to": "none",
    "save_strategy": "no",
}
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "fsdp2": "FSDPModule",
}
LINEAR = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def run(config: str, program: str, recipe: dict, rows: list[dict], folder: Path) -> Path:
    """The output folder of a program that ran with two processes."""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = folder / "out"
    recipe = {**SMALL, **recipe, "dataset_name": str(data), "output_dir": str(output)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = str(ROOT / "trainers" / f"{program}.py")
    (facts,) = launch(config, folder, path, "--config", str(folder / "recipe.yaml"))
    assert facts["world_size"] == 2 and WRAPPERS[config] in facts["wrapped"]
    assert facts["steps"] == recipe["max_steps"]
    return output


def assert_adapter_of_all_linear_layers(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    targets = [name.rsplit(".", 1)[-1] for name in config["target_modules"]]
    assert set(targets) == LINEAR
    trained = [tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items() if "lora_B" in name]
    assert trained and all(tensor.abs().max() > 0 for tensor in trained)


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize(("config", "peft"), [("ddp", True), ("zero3", True), ("fsdp2", False)])
def test_ppo(config, peft, tiny_policy_path, tiny_reward_path, tmp_path):
    policy = tmp_path / "policy"
    shutil.copytree(tiny_policy_path, policy)
    # Answers end early and at different lengths, so that one process has to wait for the other.
    GenerationConfig(eos_token_id=[*range(1, 60)], pad_token_id=0).save_pretrained(policy)
    recipe = {
        "model_name_or_path": str(policy), "reward_model": tiny_reward_path, "use_peft": peft, "max_steps": 4,
        "dataset_train_split": "train[:48]", "dataset_test_split": "train[48:57]", "steps_per_generation": 2,
        "num_iterations": 2, "max_completion_length": 24, "kl_target": 1.0, "kl_unit": "sequence",
        "gradient_checkpointing": True, "per_device_eval_batch_size": 4, "merge": peft,
    }  # fmt: skip
    output = run(config, "ppo", recipe, [{"prompt": f"Say {i}"} for i in range(64)], tmp_path)
    base = AutoModelForCausalLM.from_pretrained(policy)
    before = outputs(base)
    if peft:
        assert_adapter_of_all_linear_layers(output)
        after = outputs(PeftModel.from_pretrained(base, str(output)))
        merged = AutoModelForCausalLM.from_pretrained(output / "merged")
        torch.testing.assert_close(outputs(merged), after, rtol=1e-4, atol=1e-4)
    else:
        after = outputs(AutoModelForCausalLM.from_pretrained(output))
    assert (after - before).abs().max() > 1e-3
    held_out = json.loads((output / "eval_results.json").read_text())
    assert held_out["eval_completions/max_length"] <= 24 and "eval_objective/score" in held_out


@pytest.mark.parametrize(("config", "peft"), [("zero2", False), ("zero3", True), ("fsdp2", True)])
def test_reward(config, peft, tiny_reward_path, tmp_path):
    rows = [{"prompt": "ab", "chosen": f"x{'c' * (i % 7)}", "rejected": f"y{'d' * (i % 5)}{i}"} for i in range(75)]
    recipe = {
        "model_name_or_path": tiny_reward_path, "use_peft": peft, "max_steps": 2, "per_device_eval_batch_size": 3,
        "dataset_train_split": "train[:64]", "dataset_test_split": "train[64:]",
    }  # fmt: skip
    output = run(config, "reward", recipe, rows, tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path, num_labels=1)
    before = outputs(base)
    if peft:
        assert_adapter_of_all_linear_layers(output)
        after = outputs(PeftModel.from_pretrained(base, str(output)))
    else:
        after = outputs(AutoModelForSequenceClassification.from_pretrained(output))
    assert (after - before).abs().max() > 1e-3
    assert json.loads((output / "report_card.json").read_text())["num_pairs"] == 11


@pytest.mark.parametrize(("config", "peft"), [("zero3", False), ("fsdp2", True)])
def test_sft(config, peft, tiny_policy_path, tmp_path):
    rows = [{"prompt": f"{i}", "completion": "abc"} for i in range(64)]
    output = run(
        config, "sft", {"model_name_or_path": tiny_policy_path, "use_peft": peft, "max_steps": 2}, rows, tmp_path
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    before = outputs(base)
    if peft:
        assert_adapter_of_all_linear_layers(output)
        after = outputs(PeftModel.from_pretrained(base, str(output)))
    else:
        after = outputs(AutoModelForCausalLM.from_pretrained(output))
    assert (after - before).abs().max() > 1e-3
