"""The models behind [`PPOTrainer`]: who computes what, who is trained at which rate, and what is saved of them."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType, is_peft_model, set_seed
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from ..models import products
from ..models.actor_critic import ACTOR_CRITIC, REFERENCE, add_roles
from ..models.critic import CRITIC_FOLDER, Critic, load_critic, load_critic_model, save_critic
from ..models.fused_head import at_labels
from ..models.merging import merged
from ..models.normalization import read_score_normalization
from ..models.products import PART_TOKENS
from ..models.reward_adapter import RewardAdapter
from ..models.roles import (
    CRITIC,
    INITIAL_POLICY,
    POLICY,
    REWARD,
    AdapterSwitch,
    add_critic_adapter,
    make_checkpointing_role_aware,
)
from ..models.scoring import RewardModelScorer, same_vocabulary
from ..rollout import Sequences
from .checks import check_prompt_ids
from .contexts import kept_for_continuous_batching, saving_adapters
from .forward import TokenOutputs, completion_outputs, group_by_length, in_chunks, parts_of
from .generation import Sampler
from .launch import return_unrounded
from .measured import MeasuredTrainer
from .optimization import IS_CRITIC, hold_policy, split_off_critic
from .out_of_memory import in_phase
from .reward_functions import loading_arguments, score_affine
from .vllm import PROBE_PROMPTS, check_engine, sync_policy_only


class RoleTrainer(MeasuredTrainer):
    """
    Policy, reference, critic and reward models: their forward calls, their optimizer groups and their files.

    What differs from the parent:

    - `create_accelerator_and_postprocess` keeps FSDP2 from rounding outputs;
    - `_prepare_inputs` puts rows of similar length into one micro-batch; `compute_loss` computes a part of it at a time;
    - `_generate_single_turn` samples by [`Sampler`] instead of transformers, checks vLLM after each weight synchronisation,
      and keeps continuous batching from changing the model;
    - `create_optimizer` and `create_scheduler` give the critic parameter groups of its own;
    - `_save`, `_load_from_checkpoint` and `_load_best_model` also keep the critic.
    """

    _buffered_inputs: Any
    longest_prompt = 1
    """Tokens of the longest prompt of the present rollout, on this process."""

    def create_accelerator_and_postprocess(self) -> None:
        """As the parent; before it prepares the reference, outputs are kept from being rounded."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            return_unrounded(self.accelerator)

    def _init_roles(self, kind: str, critic_model: str | PreTrainedModel | None) -> None:
        """Complete the policy, as the parent made it, with the roles that live on it, and prepare the others."""
        policy = self.model.get_base_model() if is_peft_model(self.model) else self.model
        scorers = [function for function in self.reward_funcs if isinstance(function, RewardModelScorer)]
        score_heads: dict[str, nn.Linear] = {}
        for scorer in scorers:
            if isinstance(scorer.model, RewardAdapter):
                name = f"{REWARD}{len(score_heads)}"
                score_heads[name] = scorer.model.attach(self.model, name)
        if kind == "adapter":
            # The parent has given each rank a seed of its own by now; all must start from the same critic.
            set_seed(self.args.seed)
            add_critic_adapter(self.model)
            set_seed(self.args.seed, device_specific=True)
        weight = policy.get_output_embeddings().weight
        self.critic = self._make_critic(kind, critic_model, policy).to(weight.device)
        if is_deepspeed_zero3_enabled():
            # ZeRO-3 flattens all parameters together, in one format; its optimizer keeps them in float32.
            self.critic.value_head.to(weight.dtype)
        adapters = self.model.peft_config if is_peft_model(self.model) else {}
        switch = AdapterSwitch(policy)
        add_roles(
            policy,
            self.critic,
            switch,
            critic_adapter=CRITIC if CRITIC in adapters else None,
            reference_adapter=INITIAL_POLICY if INITIAL_POLICY in adapters else None,
            score_heads=score_heads,
        )
        if adapters:
            make_checkpointing_role_aware(policy, switch)
        if kind != "model" and critic_model is not None:
            load_critic(self.critic, critic_model, self.model)
        if self.args.disable_dropout:
            disable_dropout_in_model(self.model)
        for scorer in scorers:
            if isinstance(scorer.model, nn.Module):
                scorer.model = self._prepare_frozen(scorer.model)
        products.use_in(self.model, self.ref_model, *(scorer.model for scorer in scorers))
        self._score_affine = score_affine(self.reward_funcs, self.args.normalize_scores)
        if self.use_vllm:
            sync_policy_only(self.vllm_generation)
        self._sampler = Sampler(self.critic.value_head if kind == "head" else None, self.args.temperature)

    def _make_critic(self, kind: str, critic_model: str | PreTrainedModel | None, policy: PreTrainedModel) -> Critic:
        if kind != "model":
            return Critic(policy.config.get_text_config().hidden_size)
        kwargs = {**loading_arguments(self.args), "dtype": policy.dtype}
        normalize = self.args.normalize_scores
        if critic_model is not None:
            normalization = read_score_normalization(critic_model) if normalize else None
            return load_critic_model(critic_model, normalization, **kwargs)
        for function, weight in zip(self.reward_funcs, self.reward_weights.tolist(), strict=True):
            if isinstance(function, RewardModelScorer) and same_vocabulary(function.tokenizer, self._tokenizer):
                source = function.source if isinstance(function.source, str) else copy.deepcopy(function.source)
                return load_critic_model(source, function.normalization if normalize else None, weight, **kwargs)
        if self._policy_repository is not None or hasattr(policy, "hf_quantizer") or is_deepspeed_zero3_enabled():
            return load_critic_model(policy.config._name_or_path, **kwargs | (self._policy_repository or {}))
        # The weights of an instance need not be those of the folder it came from.
        own = copy.deepcopy(self.model)
        return load_critic_model((own.unload() if is_peft_model(own) else own).base_model)

    def _prepare_reference(self, ref_model: PreTrainedModel) -> nn.Module:
        if self.args.disable_dropout:
            disable_dropout_in_model(ref_model)
        add_fused_lm_head(ref_model, temperature=self.temperature)
        ref_model.forward = at_labels(ref_model, ref_model.forward)
        return self._prepare_frozen(ref_model.eval().requires_grad_(False))

    def _prepare_frozen(self, model: PreTrainedModel) -> nn.Module:
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True, device_placement=True)

    # ---- Forward calls ----------------------------------------------------------------------------------------------

    def _forward(
        self,
        model: nn.Module,
        sequences: Sequences,
        rows: slice | Tensor = slice(None),
        role: str | None = ACTOR_CRITIC,
    ) -> TokenOutputs:
        with self.accelerator.autocast():
            return completion_outputs(model, sequences, rows, self.aux_loss_enabled, role)

    @in_phase("score")
    @torch.no_grad()
    def _forward_in_chunks(
        self, model: nn.Module, sequences: Sequences, role: str | None = ACTOR_CRITIC
    ) -> TokenOutputs:
        training = self.model.training
        size = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
        return in_chunks(lambda rows: self._forward(model, sequences, rows, role), sequences, size)

    def _reference_logprobs(self, sequences: Sequences) -> Tensor | None:
        if not self._measures_kl:
            return None
        if self.ref_model is not None:
            return self._forward_in_chunks(self.ref_model, sequences, role=None).logprobs
        return self._forward_in_chunks(self.model, sequences, role=REFERENCE).logprobs

    def _policy_outputs(self, sequences: Sequences) -> TokenOutputs:
        """
        Log-probabilities and values of a rollout that has just been sampled: in float32 (and not TF32) as the sampler found
        them, which is what a forward call would find; else, and for a critic with a trunk of its own, by that call.
        Kernels of quantised layers round otherwise for one token a row than for many.
        """
        known = self._sampler.take(int(sequences.completion_mask.sum()))
        is_float32 = self._compute_dtype() == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        is_exact = is_float32 and not hasattr(self.model, "hf_quantizer")
        if known is None or not is_exact:
            return self._forward_in_chunks(self.model, sequences)
        if known.values is None:
            return known._replace(values=self._forward_in_chunks(self.model, sequences, role=CRITIC).values)
        return known

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = group_by_length(self._buffered_inputs, self.args.gradient_accumulation_steps)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """
        As the parent; of a micro-batch in several parts, the gradients of all but the last are taken here. So what is to
        change the loss belongs in `_compute_loss`, and must be a sum over rows.
        """
        *parts, last = parts_of(inputs, PART_TOKENS) if self._takes_parts() else [inputs]
        done = torch.zeros((), device=self.accelerator.device)
        for part in parts:
            loss = super().compute_loss(model, part, *args, **kwargs)
            self.accelerator.backward(loss)
            done += loss.detach()
        loss = super().compute_loss(model, last, *args, **kwargs) + done
        if (self._step + 1) % self.current_gradient_accumulation_steps == 0:
            self._finish_update_sums()
        return loss

    def _takes_parts(self) -> bool:
        """
        On a GPU larger calls are faster; several processes, DeepSpeed and autocast want one backward pass a call; adding up
        the gradients of a whole model once more takes a fifth of the time; the loss of a router is no sum over rows.
        """
        accelerator = self.accelerator
        is_plain = accelerator.distributed_type == DistributedType.NO and accelerator.mixed_precision == "no"
        trains_adapters = isinstance(self.model, PeftModel) and self.critic.trunk is None
        return is_plain and accelerator.device.type == "cpu" and trains_adapters and not self.aux_loss_enabled

    # ---- Generation -------------------------------------------------------------------------------------------------

    @in_phase("generate")
    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> list[list[int]]:
        self.longest_prompt = max(map(len, prompt_ids))
        check_prompt_ids(prompt_ids, self._tokenizer, self.model.config)
        if self.use_transformers_continuous_batching:
            with kept_for_continuous_batching(self.model, self.args):
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if not self.use_vllm:
            with self._fast_sampling():
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        is_synced = self._last_loaded_step == self.state.global_step
        completion_ids = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if not is_synced:
            answers = self.num_generations if self.model.training else self.num_generations_eval
            self._check_engine(prompt_ids[: PROBE_PROMPTS * answers], answers)
        return completion_ids

    @contextmanager
    def _fast_sampling(self) -> Iterator[None]:
        """Where every rank has whole weights: sampled by [`Sampler`], and on a CPU with the adapter merged."""
        if is_deepspeed_zero3_enabled() or self.is_fsdp_enabled:
            yield
            return
        # On a GPU a second copy of the weights is what the four roles on one base are there to save.
        merges = is_peft_model(self.model) and self.accelerator.device.type == "cpu"
        model = self.accelerator.unwrap_model(self.model)
        with merged(model) if merges else nullcontext(), self._sampler.sampling(model):
            yield

    def _check_engine(self, prompt_ids: list[list[int]], num_generations: int) -> None:
        """Scores a few answers of vLLM by the policy too; each prompt is there once per answer."""
        engine = self.vllm_generation
        engine.logprobs = 0  # of the sampled token
        _, completion_ids, reported, _ = engine.generate(
            prompts=prompt_ids, images=None, num_generations=num_generations
        )
        sequences = Sequences.from_lists(
            prompt_ids, completion_ids, self._tokenizer.pad_token_id, self.accelerator.device
        )
        ours = self._forward_in_chunks(self.model, sequences).logprobs[sequences.completion_mask]
        engine_logprobs = torch.tensor([token[0] for row in reported for token in row], device=ours.device)
        check_engine(ours, engine_logprobs, self._compute_dtype())

    # ---- Optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """As the parent, with the critic's parameters in groups of their own, after the policy's."""
        optimizer = super().create_optimizer(model)
        if not any(IS_CRITIC in group for group in optimizer.param_groups):
            split_off_critic(optimizer, self.model if model is None else model, self.args.critic_learning_rate)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """As the parent, with the policy's learning rate at zero for the first `critic_warmup_rollouts`."""
        is_new = self.lr_scheduler is None  # type: ignore[has-type]
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if is_new and self.args.critic_warmup_rollouts:
            steps = self.args.critic_warmup_rollouts * self.args.updates_per_rollout
            self.lr_scheduler = scheduler = hold_policy(scheduler, steps, num_training_steps)
        return scheduler

    # ---- Files ------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = output_dir or self.args.output_dir
        if self.args.should_save:
            # First: the parent takes what is not the policy's out of `state_dict`.
            save_critic(self.critic, os.path.join(folder, CRITIC_FOLDER), state_dict)
        if not is_peft_model(self.model):
            super()._save(folder, state_dict)
            return
        with saving_adapters(self.model, [name for name in (POLICY, CRITIC) if name in self.model.peft_config]):
            super()._save(folder, state_dict)
        if self.args.should_save:
            self.model.generation_config.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        dtypes = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if is_peft_model(self.model) and not self.is_fsdp_enabled:
            # transformers before 5.23 loads the adapters in subfolders alone where there is one, as the critic's.
            self.model.load_adapter(resume_from_checkpoint, POLICY, is_trainable=True)
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != dtypes[name]:
                # PEFT makes adapters that it loads float32, also those that TRL trains in bfloat16.
                parameter.data = parameter.data.to(dtypes[name])
        self._load_critic(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            self._load_critic(self.state.best_model_checkpoint)

    def _load_critic(self, checkpoint: str) -> None:
        load_critic(self.critic, os.path.join(checkpoint, CRITIC_FOLDER), self.model)
        if is_peft_model(self.model) and CRITIC in self.model.peft_config:
            # PEFT freezes every adapter but the active one when it loads any.
            self.model.set_requires_grad(CRITIC)
