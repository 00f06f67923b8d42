"""The tables of old names: complete, true of the settings here, and what docs/migration.md shows."""

import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import TrainingArguments

from rlhf_ext import PPOConfig, functional
from rlhf_ext.migration import (
    CLASSES,
    DEFAULTS,
    METHODS,
    METRICS,
    OLD_ARGUMENTS,
    OLD_NAMES,
    as_markdown,
    explain_old_names,
)
from rlhf_ext.migration.known import ARGUMENTS, SETTINGS

DOCS = Path(__file__).parents[2] / "docs"
# Own fields of TRL's classes, read from the wheels of 0.11.4 and 1.12.0.
STEP_LOOP_FIELDS = """
    exp_name seed log_with task_name model_name query_dataset reward_model remove_unused_columns tracker_kwargs
    accelerator_kwargs project_kwargs tracker_project_name push_to_hub_if_best_kwargs steps learning_rate adap_kl_ctrl
    init_kl_coef kl_penalty target horizon gamma lam cliprange cliprange_value vf_coef batch_size forward_batch_size
    mini_batch_size gradient_accumulation_steps world_size ppo_epochs max_grad_norm optimize_cuda_cache
    optimize_device_cache early_stopping target_kl compare_steps ratio_threshold use_score_scaling use_score_norm
    score_clip whiten_rewards gradient_checkpointing is_encoder_decoder is_peft_model backward_batch_size
    global_backward_batch_size global_batch_size dataset_num_proc
""".split()
TRAIN_FIELDS = """
    learning_rate dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size
    num_sample_generations response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path
    world_size num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size
    push_to_hub reward_model_path model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator
    cliprange vf_coef cliprange_value gamma lam ds3_gather_for_generation
""".split()
STEP_LOOP_ARGUMENTS = """
    config model ref_model tokenizer dataset optimizer data_collator num_shared_layers lr_scheduler training_data_collator
""".split()
TRAIN_ARGUMENTS = """
    args config processing_class tokenizer model policy ref_model ref_policy reward_model train_dataset value_model
    data_collator eval_dataset optimizers callbacks peft_config
""".split()


@pytest.mark.parametrize("name", sorted({*STEP_LOOP_FIELDS, *TRAIN_FIELDS}))
def test_a_setting_of_trl_is_one_here_or_has_a_place(name):
    here = {field.name for field in fields(PPOConfig)}
    assert (name in OLD_NAMES) != (name in here)


@pytest.mark.parametrize("name", sorted({*STEP_LOOP_ARGUMENTS, *TRAIN_ARGUMENTS}))
def test_an_argument_of_trl_is_one_here_or_has_a_place(name):
    import inspect

    from rlhf_ext import PPOTrainer

    here = set(inspect.signature(PPOTrainer.__init__).parameters)
    assert (name in OLD_ARGUMENTS) != (name in here)


@pytest.mark.parametrize(("table", "where"), [(OLD_NAMES, "settings"), (OLD_ARGUMENTS, "arguments")])
def test_a_new_name_that_is_one_word_is_a_name_here(table, where):
    import inspect

    from rlhf_ext import PPOTrainer

    here = {field.name for field in fields(PPOConfig)}
    here = here if where == "settings" else set(inspect.signature(PPOTrainer.__init__).parameters)
    words = {change.new.split("=")[0] for change in table.values() if re.fullmatch(r"[a-z_]+(='\w+')?", change.new)}
    assert len(words) > 3
    assert words - {"gone"} <= here


def test_the_names_that_are_known_are_those_of_the_classes():
    import inspect

    from rlhf_ext import PPOTrainer

    here = {field.name for field in fields(PPOConfig)}
    # From release to release transformers gives some and takes some.
    pinned = re.search(r"^transformers==(.+)$", (DOCS.parent / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert len(here & SETTINGS) > 150
    assert here == SETTINGS or version("transformers") != pinned
    assert ARGUMENTS == set(inspect.signature(PPOTrainer.__init__).parameters) - {"self"}


def test_functions_that_are_named_exist():
    named = re.findall(r"rlhf_ext\.functional\.(\w+)", " ".join(c.new for c in (CLASSES | METHODS).values()))
    assert set(named) >= {"gae", "masked_mean"}
    assert all(hasattr(functional, name) for name in named)


def test_metrics_that_are_named_are_logged():
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    logged = set(re.findall(r"`([a-z_]+/[a-z_0-9]+|num_tokens|step_time)`", page))
    named = {name for change in METRICS.values() for name in re.findall(r"[a-z]+/[a-z_0-9]+", change.new)}
    assert len(named) > 10
    assert named <= logged


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda default: default.setting)
def test_a_default_is_that_of_the_settings_class(default):
    (found,) = (field.default for field in fields(PPOConfig) if field.name == default.setting)
    assert found == default.now
    assert default.now not in default.before.values()


def test_adam_epsilon_was_the_default_of_transformers():
    (before,) = (field.default for field in fields(TrainingArguments) if field.name == "adam_epsilon")
    assert before == next(d for d in DEFAULTS if d.setting == "adam_epsilon").before["0.12 to 1.12"]


@pytest.mark.parametrize("table", ["settings", "arguments", "classes", "methods", "metrics", "defaults"])
def test_the_page_shows_the_table(table):
    page = (DOCS / "migration.md").read_text(encoding="utf-8")
    rows = as_markdown(table)
    assert rows.count("\n") > 5
    assert f"\n{rows}\n" in page, f"docs/migration.md should have this table:\n{rows}"


def test_a_sentence_names_each_old_name():
    assert explain_old_names(["cliprange", "beta", "world_size"]) == (
        "Names of TRL's old PPO: `cliprange` is now epsilon; `world_size` is gone: the launcher sets it."
    )
    assert explain_old_names(["beta"]) is None
