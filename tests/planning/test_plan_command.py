"""`rlhf-ext plan` as a user runs it, on configs alone."""

import json
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig
from test_counts import llama_8b

from rlhf_ext.cli import main

ROOT = Path(__file__).parents[2]
RECIPE_8B = ROOT / "configs" / "recipes" / "llama-3.1-8b-lora-ppo.yaml"


@pytest.fixture
def recipe(tmp_path, tiny_policy_path, tiny_reward_path):
    prompts = [{"prompt": "Say " + "a" * n} for n in range(1, 33)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    return {
        "model_name_or_path": tiny_policy_path,
        "reward_model": tiny_reward_path,
        "dataset_name": str(tmp_path / "prompts.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 8,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
    }


@pytest.fixture
def run_plan(tmp_path, capsys):
    def run(recipe, *arguments):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        main(["plan", "--config", str(path), *arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def llama_folder(tmp_path):
    """Llama 3.1 8B and a reward model of the recipe's LoRA on it, without weights."""
    folder = tmp_path / "llama-3.1-8b"
    llama_8b().save_pretrained(folder)
    reward = tmp_path / "reward"
    LoraConfig(
        r=32,
        target_modules="all-linear",
        task_type="SEQ_CLS",
        base_model_name_or_path=str(folder),
        modules_to_save=["score"],
    ).save_pretrained(reward)
    return folder, reward


def test_the_plan_of_a_recipe_adds_up(recipe, run_plan):
    plan = json.loads(run_plan(recipe, "--json"))
    # Bytes are tokens of the tiny tokenizer: "Say " and 32 letters.
    assert plan["prompt_length"] == 36
    assert set(plan["phases"]) == {"generate", "score", "update"}
    for phase in plan["phases"].values():
        assert phase["bytes"] == sum(part["bytes"] for part in phase["parts"])
    assert plan["peak"]["bytes"] == max(phase["bytes"] for phase in plan["phases"].values())
    text = run_plan(recipe)
    assert f"peak: {plan['peak']['bytes'] / 2**20:.1f} MiB in {plan['peak']['phase']}" in text


@pytest.mark.parametrize(
    ("setting", "overrides"),
    [
        ("gradient_checkpointing: true", ["--gradient_checkpointing", "true"]),
        ("steps_per_generation: 2 (half the rollout)", ["--steps_per_generation", "2"]),
        (
            "per_device_train_batch_size: 2 (with gradient_accumulation_steps: 4 and steps_per_generation: 8)",
            "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --steps_per_generation 8".split(),
        ),
        ("use_peft: true (rank 16 on all-linear)", "--use_peft true --lora_target_modules all-linear".split()),
        ("critic: head", ["--critic", "head"]),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_change_that_is_advised_does_what_it_says(setting, overrides, recipe, run_plan):
    plan = json.loads(run_plan(recipe, "--json", "--prompt_length", "120"))
    advised = {change["setting"]: change["peak"] for change in plan["changes"]}
    changed = json.loads(run_plan(recipe, "--json", "--prompt_length", "120", *overrides))["peak"]["bytes"]
    if setting in advised:
        assert changed == advised[setting] < plan["peak"]["bytes"]
    else:
        assert changed >= plan["peak"]["bytes"]
    assert list(advised.values()) == sorted(advised.values())


def test_lora_is_planned_where_the_programs_put_it_by_default(recipe, run_plan):
    recipe |= {"use_peft": True, "lora_r": 4}
    everywhere = run_plan(recipe | {"lora_target_modules": "all-linear"}, "--json")
    assert (
        run_plan(recipe, "--json")
        == everywhere
        != run_plan(recipe | {"lora_target_modules": ["q_proj", "v_proj"]}, "--json")
    )


@pytest.mark.parametrize(("half", "lora"), [("bf16", True), ("fp16", False)])
def test_zero_is_advised_with_the_peak_that_it_is_planned_with(half, lora, recipe, run_plan):
    recipe |= {"use_cpu": False, "bf16": False, half: True, "use_peft": lora}
    plan = json.loads(run_plan(recipe, "--json", "--num_gpus", "2"))
    advised = {change["setting"]: change["peak"] for change in plan["changes"]}
    for stage in ("2", "3"):
        changed = json.loads(run_plan(recipe, "--json", "--num_gpus", "2", "--zero_stage", stage))["peak"]["bytes"]
        expected = advised.get(f"--zero_stage {stage}")
        assert changed == expected if expected else changed >= plan["peak"]["bytes"]
    assert "--zero_stage 3" in advised


def test_gpus_share_a_rollout_that_is_given_as_a_whole(recipe, run_plan):
    del recipe["steps_per_generation"]
    recipe |= {"generation_batch_size": 32, "use_cpu": False, "bf16": True}
    caches = {}
    for gpus in ("1", "2"):
        plan = json.loads(run_plan(recipe, "--json", "--num_gpus", gpus))
        parts = plan["phases"]["generate"]["parts"]
        caches[gpus] = sum(part["bytes"] for part in parts if part["what"] == "KV cache")
    assert caches["1"] == 2 * caches["2"] > 0


def test_four_roles_of_llama_8b_fit_one_gpu(llama_folder, capsys):
    folder, reward = map(str, llama_folder)
    arguments = ["--model_name_or_path", folder, "--reward_model", reward, "--prompt_length", "512"]
    main(["plan", "--config", str(RECIPE_8B), *arguments, "--json"])
    plan = json.loads(capsys.readouterr().out)
    parts = {(p["role"], p["what"]): p["bytes"] for p in plan["phases"]["score"]["parts"]}
    # One base in bfloat16 for all, and three adapters of rank 32 in float32: r * (in + out) of the seven matrices.
    assert parts["policy", "weights"] == 2 * 8_030_261_248
    per_layer = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert parts["policy", "adapter"] == parts["critic", "adapter"] == 4 * 32 * 32 * per_layer
    # Its score head is in the precision of the base.
    assert parts["reward model", "adapter"] == 4 * 32 * 32 * per_layer + 2 * 4096
    assert {what for role, what in parts if role == "reference"} <= {"activations", "LM head"}
    assert ("reward model", "weights") not in parts
    assert plan["peak"]["bytes"] < 80e9
    assert plan["notes"] == []


def test_a_reward_model_that_is_not_there_yet_is_said(recipe, run_plan):
    text = run_plan({**recipe, "reward_model": "runs/later"})
    assert "note: There is no reward model at 'runs/later' yet: planned as a whole model of the policy's kind." in text


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"model_name_or_path": None}, [], "model_name_or_path is not set"),
        ({"model_name_or_path": "./nowhere"}, ["--prompt_length", "8"], "no config of a model at './nowhere'"),
        ({"dataset_name": "someone/prompts"}, [], "give the longest prompt, in tokens, with --prompt_length"),
        ({}, ["--offload", "optimizer"], "offload='optimizer' needs zero_stage 1 or higher, got 0"),
        ({"optim": "sgd"}, [], "optim=OptimizerNames.SGD is not planned for"),
        ({"critic": "adapter"}, [], "critic='adapter'"),
        ({"cliprange": 0.1}, [], "`cliprange` is now epsilon"),
        ({}, ["--colour", "blue"], "unknown settings: colour"),
        ({}, ["--prompt_length", "0"], "argument --prompt_length: must be a whole number of at least 1, got '0'"),
    ],
    ids=["no-model", "no-config", "no-data", "offload", "optimizer", "critic", "old-name", "unknown", "no-prompt"],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(change, arguments, message, recipe, run_plan, capsys):
    settings = {name: value for name, value in {**recipe, **change}.items() if value is not None}
    with pytest.raises(SystemExit) as stop:
        run_plan(settings, *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_page_shows_what_the_command_prints(llama_folder, capsys):
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    example = page.split("<!-- example: start -->")[1].split("<!-- example: end -->")[0]
    folder, reward = map(str, llama_folder)
    arguments = ["--model_name_or_path", folder, "--reward_model", reward, "--prompt_length", "512"]
    main(["plan", "--config", str(RECIPE_8B), *arguments])
    # Activations depend on the versions of torch and transformers; what is counted from shapes does not.
    counted = ("weights", "adapter", "optimizer states", "KV cache", "gradients", "value head", "LM head")
    lines = [line for line in capsys.readouterr().out.splitlines() if any(f"  {what}  " in line for what in counted)]
    assert len(lines) == 11
    assert set(lines) <= set(example.splitlines())
