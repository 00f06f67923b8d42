"""PPO on TRL's online trainer."""

import os
import textwrap
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..functional import (
    KL_ESTIMATORS,
    apply_missing_eos_penalty,
    clip_scores,
    entropy_bonus,
    gae,
    masked_moments,
    masked_whiten,
    moments_to_mean_var,
    policy_loss,
    shape_rewards,
    value_loss,
)
from ..kl_control import KLController
from ..migration import OLD_ARGUMENTS, explain_old_names
from ..rollout import Rollout, Sequences
from .checkpoint import check_beginning, checkpoint_to_resume
from .checks import check_arguments, check_inputs, check_models, check_prompts, check_roles, repository_arguments
from .contexts import beta_for_parent, evaluation_mode
from .control import new_controller
from .launch import check_optimizer_has_critic, check_saves_weights
from .measured import Samples
from .out_of_memory import in_phase
from .policy import copy_of_shared, load_adapter_policy, policy_source
from .ppo_config import PPOConfig
from .preflight import warn_of_settings
from .probe import Probe, check_probe, held_out, wants_probe
from .progress import show_rollouts
from .resumable import ResumableTrainer
from .reward_functions import RewardFunc, as_reward_functions, checked_scores, unique_names
from .statistics import SequenceTable
from .surroundings import check_surroundings

logger = get_logger(__name__)


class PPOTrainer(ResumableTrainer):
    """
    Proximal policy optimisation against a reward model, with a KL penalty to a reference and a learned critic
    ([Schulman et al. 2017](https://huggingface.co/papers/1707.06347), [Ziegler et al.
    2019](https://huggingface.co/papers/1909.08593)).

    Generation, data loading, reward functions, distributed preparation, checkpoints and the completions table are those
    of [`~trl.RLOOTrainer`]. What differs from the parent:

    - `_generate_and_score_completions`: generate, score, shape rewards, estimate advantages per token;
    - `_compute_loss`: clipped policy loss per token, value loss, entropy bonus;
    - `prediction_step`: evaluation measures score, KL and length instead of a loss;
    - `training_step`: measures the seconds of the update ([`MeasuredTrainer`] holds all that is measured);
    - `create_optimizer`, `create_scheduler`, `_save`, `_load_from_checkpoint`, `_load_best_model`: the critic's learning
      rate, warm-up and files ([`RoleTrainer`] holds all that is about the models);
    - `train`, `_save_checkpoint` and what they call: resume bit for bit ([`ResumableTrainer`]).

    Example:

    ```python
    >>> trainer = PPOTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     reward_funcs="my-reward-model",
    ...     args=PPOConfig("aligned", kl_target=6.0, kl_unit="sequence"),
    ...     train_dataset=prompts,
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy. A saved adapter (its Hub id or folder, or a [`~peft.PeftModel`]) is trained further, and its
            initial state is the reference.
        reward_funcs (`str`, [`~transformers.PreTrainedModel`], callable, or a list of them):
            Reward models (Hub id, folder, or sequence classifier with one label) and Python functions in TRL's sense;
            their scores are added with `args.reward_weights`. A function that raises is called again sample by sample, for
            the error to name the one.
        args ([`PPOConfig`], *optional*):
            Settings.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts, in a column `prompt`: text or conversations. Other columns reach the reward functions.
        eval_dataset ([`~datasets.Dataset`] or a `dict` of them, *optional*):
            Held-out prompts for [`~PPOTrainer.evaluate`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer; by default the one saved with `model`.
        reward_processing_classes (tokenizer or list, *optional*):
            Tokenizers of the reward models; by default the ones saved with them.
        callbacks, quantization_config:
            As in [`~trl.RLOOTrainer`].
        optimizers (`tuple`, *optional*):
            An optimizer of the policy, and `None`: the critic is added to it, and the schedule is that of `args`.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Train an adapter; the reference is then the base model with the adapter off, and reward models that were
            saved as adapters of the same base share it too, where `model` is an id or folder.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference. By default the initial policy: loaded again for a model id, copied for an instance, and with
            PEFT the base model or the initial adapter.
        critic_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            What the critic starts from: the folder `critic` of an earlier run, and with `critic="model"` also a reward
            model or a language model. By default see `critic` in [`PPOConfig`].

    Raises:
        TypeError, ValueError: For settings, data or tokenizers that cannot work, before a model is loaded.
        RuntimeError: During training, when the first pass over a rollout does not give a ratio of 1, or loss or gradient
            were not finite in a third optimizer step (none of which reached the weights).
    """

    loss_is_scaled_for_ga = True

    _tag_names = ("trl", "rlhf-ext", "ppo")
    _name = "PPO"
    _paper = {  # noqa: RUF012
        "title": "Fine-Tuning Language Models from Human Preferences",
        "id": "1909.08593",
        "citation": textwrap.dedent("""\
            @article{ziegler2019fine,
                title        = {{Fine-Tuning Language Models from Human Preferences}},
                author       = {Daniel M. Ziegler and Nisan Stiennon and Jeffrey Wu and Tom B. Brown and Alec Radford and Dario Amodei and Paul Christiano and Geoffrey Irving},
                year         = 2019,
                eprint       = {arXiv:1909.08593},
            }"""),  # noqa: E501
    }

    def __new__(cls, *_: Any, **kwargs: Any) -> "PPOTrainer":
        explanation = explain_old_names(list(kwargs), OLD_ARGUMENTS)
        if explanation:
            raise TypeError(explanation)
        return super().__new__(cls)

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFunc | list[RewardFunc],
        args: PPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        ref_model: PreTrainedModel | None = None,
        critic_model: str | PreTrainedModel | None = None,
        quality_fn: Callable[..., list[float | None]] | None = None,
    ):
        check_models(model, ref_model)
        name = model if isinstance(model, str) else model.config._name_or_path
        if args is None:
            args = PPOConfig(f"{os.path.basename(name)}-PPO")
        check_arguments(args)
        check_surroundings(args, eval_dataset)
        check_saves_weights(args)
        check_optimizer_has_critic(args)
        if optimizers[1] is not None:
            raise ValueError(
                "A schedule that is passed with its optimizer does not know the critic, which is added to the optimizer "
                "here. Pass optimizers=(optimizer, None) and set lr_scheduler_type."
            )
        if args.resume_from_checkpoint:
            wanted, skip = args.resume_from_checkpoint, args.skip_damaged_checkpoints
            check_beginning(checkpoint_to_resume(wanted, args.output_dir, skip), name)
        source = policy_source(model, peft_config, args)
        critic = check_roles(source.adapter, args, critic_model)
        processing_class = check_inputs(model, source, args, train_dataset, eval_dataset, processing_class, ref_model)
        check_probe(quality_fn, eval_dataset, args)
        if args.diagnostics != "off":
            warn_of_settings(args, train_dataset, source.adapter)
        self._measures_kl = args.beta != 0.0
        is_plain_instance = not isinstance(model, str) and peft_config is None and not is_peft_model(model)
        if ref_model is None and self._measures_kl and is_plain_instance:
            ref_model = model
        rewards = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        ref_model = copy_of_shared(ref_model, [model])
        critic_model = copy_of_shared(critic_model, [model, *rewards])
        functions = as_reward_functions(reward_funcs, reward_processing_classes, processing_class, args, source)
        self._policy_repository: dict[str, Any] | None = None  # of an instance
        if isinstance(model, str) and source.base == model:
            self._policy_repository = repository_arguments(args, "subfolder")
        elif isinstance(model, str):
            self._policy_repository = {}
            model = load_adapter_policy(model, source, args, quantization_config)
        with beta_for_parent(args, builds_reference=self._measures_kl and ref_model is None):
            super().__init__(
                model=model,
                reward_funcs=functions,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        self.reward_func_names: list[str] = unique_names(self.reward_func_names)
        if ref_model is not None and self._measures_kl:
            self.ref_model = self._prepare_reference(ref_model)
        self._init_roles(critic, critic_model)
        self.kl_controller: KLController | None = None
        self._step_tokens = torch.ones(())
        self._init_measurements()
        self._probe = Probe(quality_fn, held_out(eval_dataset), args) if wants_probe(quality_fn, args) else None
        self._init_diagnostics()
        show_rollouts(self)
        self._init_resuming(critic, name)

    # ---- Collecting -------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        started = time.perf_counter()
        with evaluation_mode(self.model):
            samples = self._sample(inputs)
            generated = time.perf_counter()
            policy = self._policy_outputs(samples.sequences)
            ref_logprobs = self._reference_logprobs(samples.sequences)
            raw_scores, scores = self._score(inputs, samples)
        logprobs = policy.logprobs
        ref_logprobs = logprobs if ref_logprobs is None else ref_logprobs
        sequences = self._leave_out(samples, ~scores.isnan())
        table = self._sequence_table(samples, sequences, scores, raw_scores, logprobs, ref_logprobs)
        controller = self._controller_for(table)
        beta = controller.beta

        kl = KL_ESTIMATORS[self.args.kl_estimator](logprobs, ref_logprobs)
        mask = sequences.completion_mask
        rewards = shape_rewards(scores.nan_to_num(0.0), kl, mask, beta, self.args.kl_placement)
        advantages, returns = gae(rewards, policy.values, mask, self.args.gamma, self.args.lam)
        if self.args.normalize_advantages:
            mean, var = moments_to_mean_var(self._reduce(masked_moments(advantages, mask)))
            advantages = masked_whiten(advantages, mask, mean, var)

        self._log_rollout(table, rewards, policy.values, returns, advantages, mask)
        self._control_kl(controller, table)
        self._append({"time/generate": generated - started, "time/score": time.perf_counter() - generated})
        if self._probe is not None and self._step // self._steps_per_rollout % self._probe.every == 0:
            self._append(self._probe.measure(self, table.length.sum().item()))
        self._rollout_seconds = time.perf_counter() - started
        return vars(
            Rollout(
                **vars(sequences),
                old_logprobs=logprobs,
                old_values=policy.values,
                advantages=advantages,
                returns=returns,
            )
        )

    def _sample(self, inputs: list[dict[str, Any]]) -> Samples:
        prompts = [example["prompt"] for example in inputs]
        # A stream could not be read through beforehand.
        check_prompts(prompts, "prompts")
        prompt_ids, completion_ids, completions = self._generate(prompts)
        device = self.accelerator.device
        sequences = Sequences.from_lists(prompt_ids, completion_ids, self._tokenizer.pad_token_id, device)
        has_eos = torch.tensor([ids[-1] in self.eos_token_ids for ids in completion_ids], device=device)
        return Samples(prompts, completions, completion_ids, sequences, has_eos)

    @in_phase("score")
    def _score(self, inputs: list[dict[str, Any]], samples: Samples) -> tuple[Tensor, Tensor]:
        """
        Raw and final scores `(B,)` of this rank's sequences; NaN where every reward function abstained.

        The final score is the weighted sum of the centred and scaled scores, minus the penalty for a missing EOS,
        clipped.
        """
        arguments = (inputs, samples.prompts, samples.completions, samples.completion_ids)
        with checked_scores(self) as check:
            gathered = self._calculate_rewards(*arguments)
        if gathered.isnan().all():
            raise ValueError(
                "Every reward function returned None or NaN for every completion of the rollout, so there is nothing to "
                "learn from. Check the reward functions on these prompts."
            )
        if gathered.isinf().any():
            raise ValueError("A reward function returned an infinite score. Scores must be finite numbers or None.")
        count = len(samples.prompts)
        own = gathered[self.accelerator.process_index * count :][:count]
        shift, scale = (x.to(own.device) for x in self._score_affine)
        weights = self.reward_weights.to(own.device)
        abstained = own.isnan().all(dim=1)
        raw = (own * weights).nansum(dim=1).masked_fill(abstained, torch.nan)
        scores = ((own - shift) / scale * weights).nansum(dim=1).masked_fill(abstained, torch.nan)
        if self.args.missing_eos_penalty:
            scores = apply_missing_eos_penalty(scores, samples.has_eos, self.args.missing_eos_penalty)
        if self.args.score_clip is not None:
            scores = clip_scores(scores, self.args.score_clip)
        self._log_scores(samples, gathered, own, check.nan_count)
        return raw, scores

    def _leave_out(self, samples: Samples, scored: Tensor) -> Sequences:
        """The sequences with an empty mask where no score was given, or where truncated ones are to be left out."""
        keep = scored & samples.has_eos if self.mask_truncated_completions else scored
        sequences = samples.sequences
        return Sequences(**{**vars(sequences), "completion_mask": sequences.completion_mask & keep.unsqueeze(1)})

    # ---- KL control -------------------------------------------------------------------------------------------------

    def _controller_for(self, table: SequenceTable) -> KLController:
        """The controller, made at the first rollout, whose scores decide on `beta="auto"`."""
        if self.kl_controller is None:
            self.kl_controller = new_controller(self.args, table, self._num_rollouts())
        return self.kl_controller

    def _control_kl(self, controller: KLController, table: SequenceTable) -> None:
        if not self._measures_kl:
            return
        beta, status = controller.beta, controller.status
        self.beta = controller.update(table.kl_measurement(controller.unit))
        if controller.finding is not None and controller.status != status:
            logger.warning(controller.finding)
        self._append({"kl/beta": beta} | ({} if controller.target is None else {"kl/target": controller.target}))
        if controller.wants_stop:
            raise RuntimeError(
                "The measured KL was not a finite number for three rollouts in a row. The policy is broken: lower the "
                "learning rate and start again from an earlier checkpoint."
            )

    # ---- Updating ---------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        args, rollout = self.args, Rollout(**inputs)
        mask = rollout.completion_mask
        num_tokens = self._tokens_of_step()
        outputs = self._forward(model, rollout)
        policy = policy_loss(
            outputs.logprobs, rollout.old_logprobs, rollout.advantages, mask, args.epsilon, num_tokens
        )
        value = value_loss(
            outputs.values, rollout.old_values, rollout.returns, mask, args.value_clip_range, num_tokens
        )
        entropy = entropy_bonus(outputs.entropies, mask, num_tokens)
        loss = policy.loss + args.vf_coef * value.loss
        if args.entropy_coef:
            # A gradient, also one of zeros, costs the head a pass over the vocabulary.
            loss = loss - args.entropy_coef * entropy
        if self.aux_loss_enabled:
            # A mean of this micro-batch, not a share of the step.
            micro_batches = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / micro_batches
        self._update_sums.add(rollout, outputs.logprobs, outputs.entropies, policy, value, loss, num_tokens)
        # Ranks average their gradients, while each loss is already its share of the whole step.
        return loss * self.accelerator.num_processes

    def _tokens_of_step(self) -> Tensor:
        """Completion tokens of the whole optimizer step, over all micro-batches and ranks."""
        size = self.current_gradient_accumulation_steps
        if self._step % size == 0:
            first = self._step % self.args.steps_per_generation
            step = self._buffered_inputs[first : first + size]
            self._step_tokens = self._reduce(sum(batch["completion_mask"].sum() for batch in step).float()).clamp(
                min=1
            )
        return self._step_tokens

    # ---- Evaluating -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Samples answers to held-out prompts and measures score, KL, length and EOS rate; there is no loss."""
        samples = self._sample(inputs)
        logprobs = self._policy_outputs(samples.sequences).logprobs
        ref_logprobs = self._reference_logprobs(samples.sequences)
        raw_scores, scores = self._score(inputs, samples)
        sequences = self._leave_out(samples, ~scores.isnan())
        reference = logprobs if ref_logprobs is None else ref_logprobs
        table = self._sequence_table(samples, sequences, scores, raw_scores, logprobs, reference)
        columns = {
            "objective/score": table.score,
            "objective/score_raw": table.raw_score,
            "completions/eos_fraction": table.has_eos,
        }
        if ref_logprobs is not None:
            columns |= {"kl/ref": table.kl, "kl/ref_k3": table.k3}
        for name, column in columns.items():
            # One entry per sequence: the parent's mean over entries is then the mean over prompts.
            self._metrics["eval"][name].extend(column.tolist())
        return None, None, None
