"""
The names that `PPOConfig` and `PPOTrainer` take here, the inherited ones too.

They are written out because reading them from the classes would load torch; tests/migration/test_names.py holds them
against these.
"""

SETTINGS = frozenset(
    """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon
    allow_mismatched_sampling auto_find_batch_size average_tokens_across_devices batch_eval_metrics beta bf16
    bf16_full_eval cache_implementation chat_template_kwargs critic critic_learning_rate critic_warmup_rollouts
    data_seed dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend
    ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed
    diagnostics disable_dropout disable_tqdm do_eval do_predict do_train ds3_gather_for_generation
    enable_jit_checkpoint entropy_coef epsilon epsilon_high eval_accumulation_steps eval_delay
    eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval fsdp
    fsdp_config full_determinism gamma generation_batch_size generation_kwargs gradient_accumulation_steps
    gradient_checkpointing gradient_checkpointing_kwargs greater_is_better hub_always_push hub_model_id
    hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics
    include_num_input_tokens_seen kl_controller kl_estimator kl_placement kl_target kl_unit label_names
    label_smoothing_factor lam learning_rate length_column_name liger_kernel_config load_best_model_at_end
    local_rank log_completions log_level log_level_replica log_multimodal log_on_each_node log_unique_prompts
    logging_first_step logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type
    mask_truncated_completions max_completion_length max_grad_norm max_steps metric_for_best_model min_p
    missing_eos_penalty model_init_kwargs neftune_noise_alpha normalize_advantages normalize_scores
    num_completions_to_print num_generations num_generations_eval num_iterations num_train_epochs optim optim_args
    optim_target_modules output_dir pad_to_multiple_of parallelism_config per_device_eval_batch_size
    per_device_train_batch_size prediction_loss_only probe_every probe_size project push_to_hub
    ref_model_mixup_alpha ref_model_sync_steps remove_unused_columns repetition_penalty report_to
    restore_callback_states_from_checkpoint resume_from_checkpoint reward_clip_range reward_weights
    router_aux_loss_coef run_name save_on_each_node save_only_model save_steps save_strategy save_total_limit
    score_clip seed shuffle_dataset skip_damaged_checkpoints skip_memory_metrics steps_per_generation
    sync_ref_model temperature tf32 top_k top_p torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id train_sampling_strategy
    transformers_continuous_batching_config trust_remote_code use_cache use_cpu use_liger_kernel
    use_transformers_continuous_batching use_transformers_paged use_vllm value_clip_range vf_coef
    vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port vllm_max_model_length vllm_mode
    vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
    vllm_structured_outputs_regex vllm_tensor_parallel_size warmup_steps weight_decay
    """.split()
)
"""Fields of `PPOConfig`."""

ARGUMENTS = frozenset(
    """
    model reward_funcs args train_dataset eval_dataset processing_class reward_processing_classes callbacks
    optimizers quantization_config peft_config ref_model critic_model quality_fn
    """.split()
)
"""Arguments of `PPOTrainer`."""
