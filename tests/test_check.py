"""`rlhf-ext check`, and the findings on the settings of a trainer, before anything is loaded."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import GPT2Config

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.cli import main
from rlhf_ext.diagnostics import Severity
from rlhf_ext.trainer.preflight import planned_rollouts, preflight_of

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*-ppo.yaml"))
GOOD = {
    "output_dir": "out",
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 8,
    "max_steps": 3200,
    "max_completion_length": 64,
    "kl_target": 6.0,
    "kl_unit": "sequence",
    "missing_eos_penalty": 1.0,
}
"""100 rollouts of 64, 32 optimizer steps each."""
MISTAKES = {
    "kl-target-far": {"kl_target": 60.0},
    "kl-target-near": {"kl_target": 0.1},
    "no-kl-penalty": {"beta": 0.0, "kl_target": None, "kl_unit": None},
    # exp(100 * log(1 + 0.2 * 64 / 10000)) = 1.14
    "controller-inert": {"kl_controller": "ziegler"},
    "sampler": {"top_k": 50, "allow_mismatched_sampling": True},
    "float16": {"model_init_kwargs": {"dtype": "float16"}},
    "gradient-not-clipped": {"max_grad_norm": 0.0},
    "critic-learning-rate": {"critic_learning_rate": 1e-3},
    "critic-learning-rate-low": {"critic_learning_rate": 1e-8},
    "epochs": {"num_iterations": 16, "max_steps": 12800},
    "short-run": {"max_steps": 640},
    "critic-warmup": {"critic_warmup_rollouts": 60},
    "small-rollout": {"per_device_train_batch_size": 1},
    "missing-eos": {"missing_eos_penalty": None},
}


def config(**changes):
    return PPOConfig(**GOOD | changes)


def names(findings):
    return [finding.causes[0].name for finding in findings]


def test_good_settings_are_clean():
    assert preflight_of(config()) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_settings_is_named_alone(name):
    assert names(preflight_of(config(**MISTAKES[name]))) == [name]


def test_a_target_per_token_is_far_over_many_tokens():
    found = preflight_of(config(kl_target=1.0, kl_unit="token"))
    assert names(found) == ["kl-target-far"] and "kl_target=0.094 for 6 nats" in found[0].causes[0].remedy


def test_dropout_counts_where_it_is_on_and_the_largest_is_named():
    model, adapter = GPT2Config(resid_pdrop=0.05, attn_pdrop=0.0, embd_pdrop=0.0), LoraConfig(lora_dropout=0.2)
    on = config(disable_dropout=False)
    assert preflight_of(config(), model_config=model, adapter=adapter) == []
    assert preflight_of(on) == []
    for given, largest in (({"model_config": model}, "0.05"), ({"model_config": model, "adapter": adapter}, "0.2")):
        (finding,) = preflight_of(on, **given)
        assert finding.summary.startswith(f"Dropout of {largest} is on")
    # The dropout of a classifier's head is none of a policy's.
    assert preflight_of(on, model_config=GPT2Config(resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)) == []


def test_generation_kwargs_win_over_the_settings_beside_them():
    mismatched = config(
        allow_mismatched_sampling=True, top_k=5, generation_kwargs={"top_k": 7, "min_new_tokens": 4, "use_cache": True}
    )
    (finding,) = preflight_of(mismatched)
    assert finding.summary.startswith("top_k=7, min_new_tokens=4: ")


def test_whatever_else_changes_the_sampler_is_named_and_the_scored_temperature_is_not():
    others = {"suppress_tokens": [2], "temperature": 1.5, "use_cache": True}
    (finding,) = preflight_of(config(allow_mismatched_sampling=True, generation_kwargs=others))
    assert finding.summary.startswith("suppress_tokens=[2], temperature=1.5: ")
    assert (
        preflight_of(config(temperature=1.5, allow_mismatched_sampling=True, generation_kwargs={"temperature": 1.5}))
        == []
    )


def test_no_norm_is_no_clipping_and_a_rate_that_is_not_set_is_the_policys():
    assert names(preflight_of(config(max_grad_norm=None))) == ["gradient-not-clipped"]
    assert preflight_of(config(learning_rate=1e-3, critic_learning_rate=None)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 37},
        {"max_steps": -1, "num_train_epochs": 3},
        {"max_steps": -1, "num_train_epochs": 2.5, "num_generations": 2},
        {"max_steps": -1, "num_train_epochs": 0.1},
    ],
)
def test_rollouts_are_counted_as_the_trainer_does(changes, tmp_path, tiny_policy_path):
    args = config(output_dir=str(tmp_path), **changes)
    # 200 prompts fill three rollouts of 64, and the rest none.
    dataset = Dataset.from_dict({"prompt": [f"Say {i}" for i in range(200)]})
    trainer = PPOTrainer(tiny_policy_path, lambda completions, **_: [0.0] * len(completions), args, dataset)
    steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    assert planned_rollouts(args, len(dataset)) == max(1, steps // args.updates_per_rollout)


def test_a_run_of_unknown_length_is_not_judged_by_its_length():
    args = config(max_steps=-1, critic_warmup_rollouts=60, kl_controller="ziegler")
    assert planned_rollouts(args, None) is None
    assert preflight_of(args) == []


# The command


@pytest.fixture
def check(tmp_path, capsys):
    def run(recipe, *arguments):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
        try:
            main(["check", "--config", str(path), *arguments])
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_clean(path, check):
    code, out, err = check(path.read_text(), "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["findings"]
    # The demo is short, and its texts of 16 tokens are cut as they should be.
    demo = {"settings: short-run", "settings: missing-eos"} if "demo" in path.stem else set()
    assert {finding["title"] for finding in found} == demo


def test_what_is_found_is_said_with_what_to_change(check):
    code, out, _ = check({**GOOD, "top_k": 50, "allow_mismatched_sampling": True, "missing_eos_penalty": 0.0})
    assert code == 1
    assert out.startswith("WARN sampler: top_k=50: ") and "Change: Set top_k=0" in out
    assert out.index("INFO missing-eos") > out.index("WARN sampler")
    assert check({**GOOD, "missing_eos_penalty": 0.0})[0] == 0
    assert check(GOOD) == (0, "No finding.\n", "")


def test_the_command_line_wins_and_gpus_share_in_a_rollout(check):
    code, out, _ = check(GOOD, "--kl_target", "0.1", "--json")
    assert code == 1 and json.loads(out)["findings"][0]["severity"] == "WARN"
    small = {**GOOD, "per_device_train_batch_size": 1}
    assert "8 completions per rollout" in check(small)[1]
    assert check(small, "--num_gpus", "8")[1] == "No finding.\n"


def test_the_adapter_of_the_recipe_has_dropout(check, tiny_policy_path):
    recipe = {**GOOD, "disable_dropout": False, "model_name_or_path": tiny_policy_path}
    assert check(recipe)[1] == "No finding.\n"
    assert "Dropout of 0.05 is on" in check({**recipe, "use_peft": True})[1]
    code, out, _ = check({**recipe, "model_name_or_path": "nowhere/model"})
    assert code == 0 and "Note: The dropout of 'nowhere/model' is not known" in out


def test_the_length_of_the_run_comes_from_the_dataset_if_it_is_here(check, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "Hi"}) + "\n" for _ in range(200)))
    recipe = {**GOOD, "max_steps": -1, "num_train_epochs": 2}
    assert "6 rollouts are too few" in check({**recipe, "dataset_name": str(prompts)})[1]
    assert "Note: The length of the run is not known" in check({**recipe, "dataset_name": "someone/prompts"})[1]


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("- beta\n- 1\n", [], "holds a list and no settings; a recipe has one setting a line"),
        ("", [], "is empty; a recipe has one setting a line"),
        ("beta: [1\n", [], "is not YAML"),
        ({"learning_rat": 1.0}, [], "learning_rat (did you mean learning_rate?)"),
        ({"kl_coef": 0.1}, [], "`kl_coef` is now beta"),
        ({"learning_rate": "fast"}, [], "invalid float value: 'fast'"),
        ({"kl_target": 6.0}, [], "needs kl_unit="),
        ({}, ["--config", "nothing.yaml"], "there is no file 'nothing.yaml'"),
        ({}, ["--colour", "red"], "unknown settings: colour"),
        (GOOD | {"max_steps": -1, "dataset_name": "."}, [], "error: "),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(recipe, arguments, message, check):
    code, out, err = check(recipe if isinstance(recipe, str) else {"output_dir": "out", **recipe}, *arguments)
    assert code == 2 and out == ""
    assert message in err and err.splitlines()[-1].startswith("rlhf-ext check: error: ") and "Traceback" not in err


def test_nothing_to_check_is_said(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["check"])
    assert exit_.value.code == 2 and "give a recipe with --config" in capsys.readouterr().err


def test_the_worst_comes_first():
    found = preflight_of(config(missing_eos_penalty=None, kl_target=0.1))
    assert [finding.severity for finding in found] == [Severity.WARN, Severity.INFO]
