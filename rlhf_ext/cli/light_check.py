"""`rlhf-ext check` where TRL is not installed: the settings as the recipe has them, with the defaults of `PPOConfig`."""

from typing import Any

from ..diagnostics import Finding, RunSettings, preflight
from ..diagnostics.run_config import settings_from
from ..migration import explain_old_names
from .recipe_file import read_settings_file
from .settings import PPO, explain_unknown

DEFAULTS: dict[str, Any] = {
    "beta": None,
    "bf16": True,
    "critic_learning_rate": None,
    "critic_warmup_rollouts": 0,
    "entropy_coef": 0.0,
    "epsilon": 0.1,
    "fp16": False,
    "generation_batch_size": None,
    "generation_kwargs": None,
    "gradient_accumulation_steps": 1,
    "kl_controller": None,
    "kl_target": None,
    "kl_unit": None,
    "learning_rate": 3e-6,
    "max_completion_length": 512,
    "max_grad_norm": 1.0,
    "max_steps": -1,
    "min_p": None,
    "missing_eos_penalty": None,
    "model_init_kwargs": None,
    "num_iterations": 4,
    "per_device_train_batch_size": 8,
    "repetition_penalty": 1.0,
    "score_clip": None,
    "steps_per_generation": None,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "value_clip_range": 0.5,
}
"""Of the settings that the check reads; tests/cli/test_light_check.py holds them against `PPOConfig`."""
_UNNAMED = """
accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2
auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16_full_eval bnb_4bit_quant_storage
bnb_4bit_quant_type cache_implementation data_seed dataloader_drop_last dataloader_in_order
dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters
ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval do_predict do_train ds3_gather_for_generation
enable_jit_checkpoint epsilon_high eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start
eval_steps eval_strategy eval_use_gather_object fp16_full_eval fsdp fsdp_config full_determinism
generation_kwargs gradient_checkpointing_kwargs greater_is_better hub_always_push hub_private_repo hub_revision
hub_strategy hub_token ignore_bias_buffers ignore_data_skip include_for_metrics include_num_input_tokens_seen
label_names label_smoothing_factor length_column_name liger_kernel_config load_best_model_at_end load_in_8bit
local_rank log_level log_level_replica log_multimodal log_on_each_node log_unique_prompts logging_first_step
logging_nan_inf_filter logging_strategy lora_target_parameters lora_task_type lr_scheduler_kwargs
mask_truncated_completions metric_for_best_model min_p neftune_noise_alpha num_completions_to_print
num_generations_eval optim_args optim_target_modules pad_to_multiple_of parallelism_config
per_device_eval_batch_size prediction_loss_only project ref_model_mixup_alpha ref_model_sync_steps
remove_unused_columns repetition_penalty restore_callback_states_from_checkpoint reward_clip_range
router_aux_loss_coef save_on_each_node save_only_model save_strategy shuffle_dataset skip_memory_metrics
sync_ref_model tf32 top_k top_p torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
trackio_bucket_id trackio_space_id trackio_static_space_id train_sampling_strategy
transformers_continuous_batching_config use_bnb_nested_quant use_cache use_dora use_liger_kernel use_rslora
use_transformers_continuous_batching use_transformers_paged vllm_enable_sleep_mode vllm_gpu_memory_utilization
vllm_group_port vllm_max_model_length vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host
vllm_server_port vllm_server_timeout vllm_structured_outputs_regex vllm_tensor_parallel_size
"""
NAMES = frozenset([*PPO.names(), *_UNNAMED.split()])
"""Every setting of `rlhf-ext ppo`, those too that its `--help` does not name; held against the classes as well."""
_SAMPLER = ("top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens")
_NOTE = (
    "trl is not installed here: values were not checked as the run will check them, dropout and the length of the dataset "
    "not at all."
)


def preflight_of_text(recipe: str | None, overrides: list[str], num_gpus: int) -> tuple[list[Finding], list[str]]:
    """
    What cannot work in a recipe, or works otherwise than it looks, without the settings classes.

    Args:
        recipe (`str`, *optional*):
            Path of the recipe.
        overrides (`list[str]`):
            Settings on the command line.
        num_gpus (`int`):
            Processes of the run.

    Returns:
        `tuple`: the findings, and sentences on what could not be judged.

    Raises:
        ValueError: If the recipe is no YAML mapping, what is overridden has no name, a name is no setting, or kl_target
            has no unit.
    """
    in_recipe, on_command_line = read_settings_file(recipe) if recipe else {}, _pairs(overrides)
    # A recipe may set environment variables; of what is on by default the command line has a switch that turns it off.
    unknown = [name for name in in_recipe if name not in NAMES | {"env"}]
    unknown += [name for name in on_command_line if name.removeprefix("no_") not in NAMES]
    if unknown:
        raise ValueError(explain_unknown(unknown, NAMES, explain_old_names))
    settings = DEFAULTS | in_recipe | on_command_line
    if settings["kl_target"] is not None and settings["kl_unit"] not in ("sequence", "token"):
        raise ValueError(
            f"kl_target={settings['kl_target']} needs kl_unit='sequence' or 'token' (nats per completion or token)."
        )
    sampler = {name: settings.get(name) for name in _SAMPLER} | (settings["generation_kwargs"] or {})
    findings = preflight(
        RunSettings(**settings_from(_resolved(settings, num_gpus))),
        **{name: sampler[name] for name in _SAMPLER},
        temperature_is_scored=True,
        clips_gradient=True,
    )
    return findings, [_NOTE]


def _resolved(settings: dict[str, Any], num_gpus: int) -> dict[str, Any]:
    """The settings that follow from others, as `PPOConfig` makes them."""
    micro_batch = settings["per_device_train_batch_size"] * num_gpus
    accumulated, total = settings["gradient_accumulation_steps"], settings["generation_batch_size"]
    steps = settings["steps_per_generation"] or (total // micro_batch if total else accumulated)
    updates = max(1, steps // accumulated * settings["num_iterations"])
    has_target = settings["kl_target"] is not None
    dtype = (settings["model_init_kwargs"] or {}).get("dtype", settings.get("dtype"))
    resolved = {
        "generation_batch_size": total or micro_batch * steps,
        "planned_rollouts": max(1, settings["max_steps"] // updates) if settings["max_steps"] > 0 else None,
        "kl_controller": settings["kl_controller"] or ("log_pi" if has_target else "fixed"),
        "beta": settings["beta"] if settings["beta"] is not None else "auto" if has_target else 0.05,
    }
    if not (settings["bf16"] or settings["fp16"]) and dtype not in (None, "auto"):
        resolved["dtype"] = dtype
    return {name: value for name, value in settings.items() if name != "dtype"} | resolved


def _pairs(overrides: list[str]) -> dict[str, Any]:
    import yaml

    given: dict[str, list[Any]] = {}
    current: list[Any] | None = None
    for part in overrides:
        if part.startswith("--"):
            name, equals, value = part.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            current = given[name] = [yaml.safe_load(value)] if equals else []
        elif current is None:
            raise ValueError(f"not a setting: {part}. A recipe is given with --config, a value with its --name.")
        else:
            current.append(yaml.safe_load(part))
    # As argparse has it: a switch needs no value, a list has several.
    for name, values in given.items():
        if not values and not isinstance(DEFAULTS.get(name, True), bool):
            raise ValueError(f"--{name} needs a value.")
    return {name: values[0] if len(values) == 1 else values or True for name, values in given.items()}
