"""Settings of [`PPOTrainer`]."""

import math
from dataclasses import dataclass, field
from typing import Any

from trl import RLOOConfig

from ..functional import KL_ESTIMATORS, PLACEMENTS
from ..kl_control import CONTROLLER_KINDS
from ..models.critic import CRITIC_KINDS

_GONE = "gone"
OLD_NAMES = {
    "accelerator_kwargs": "accelerator_config",
    "adap_kl_ctrl": "kl_controller (with kl_target and kl_unit)",
    "batch_size": "generation_batch_size",
    "cliprange": "epsilon",
    "cliprange_value": "value_clip_range",
    "compare_steps": _GONE,
    "dataset_num_proc": "gone: prompts are tokenised at each rollout",
    "early_stopping": "gone: watch kl/update, and lower num_iterations or learning_rate where it grows",
    "exp_name": "run_name",
    "forward_batch_size": "per_device_train_batch_size",
    "horizon": "kl_controller='ziegler'",
    "init_kl_coef": "beta",
    "kl_coef": "beta",
    "kl_penalty": "kl_estimator",
    "local_batch_size": "gone: it follows from generation_batch_size",
    "local_mini_batch_size": "gone: it follows from per_device_train_batch_size",
    "local_rollout_forward_batch_size": "per_device_train_batch_size",
    "log_with": "report_to",
    "micro_batch_size": "gone: it follows from per_device_train_batch_size",
    "mini_batch_size": "per_device_train_batch_size and gradient_accumulation_steps",
    "model_adapter_name": "gone: pass a PeftModel as `model`",
    "model_name": "the `model` argument of PPOTrainer",
    "num_mini_batches": "steps_per_generation / gradient_accumulation_steps",
    "num_ppo_epochs": "num_iterations",
    "num_sample_generations": "log_completions",
    "num_total_batches": "gone: it follows from max_steps",
    "optimize_cuda_cache": _GONE,
    "optimize_device_cache": _GONE,
    "ppo_epochs": "num_iterations",
    "project_kwargs": _GONE,
    "query_dataset": "the `train_dataset` argument of PPOTrainer",
    "ratio_threshold": "gone: watch policy/ratio_max",
    "ref_adapter_name": "gone: the base, or the initial adapter, is the reference",
    "response_length": "max_completion_length",
    "reward_model": "the `reward_funcs` argument of PPOTrainer",
    "reward_model_path": "the `reward_funcs` argument of PPOTrainer",
    "rollout_batch_size": "generation_batch_size",
    "sft_model_path": "the `model` argument of PPOTrainer",
    "steps": "max_steps",
    "stop_token": "the model's generation_config.eos_token_id",
    "stop_token_id": "the model's generation_config.eos_token_id",
    "target": "kl_target (with kl_unit)",
    "target_kl": "gone (it ended the epochs by kl/update; kl_target is the distance from the reference)",
    "task_name": "run_name",
    "total_episodes": "max_steps or num_train_epochs",
    "tracker_kwargs": _GONE,
    "tracker_project_name": "project",
    "use_score_norm": "normalize_scores",
    "use_score_scaling": "normalize_scores",
    "whiten_rewards": "gone: normalize_scores centres the scores, normalize_advantages the advantages",
    "world_size": "gone: the launcher sets it",
}
"""Setting of TRL's PPOConfig (0.x to 1.12) -> where it is now."""

OLD_ARGUMENTS = {
    "config": "args",
    "data_collator": "gone: the prompts are texts or conversations, not token ids",
    "dataset": "train_dataset",
    "policy": "model",
    "ref_policy": "ref_model",
    "reward_model": "reward_funcs",
    "tokenizer": "processing_class",
    "value_model": "critic_model, with critic='model' in PPOConfig",
}
"""Argument of TRL's PPOTrainer (0.x to 1.12) -> where it is now."""

_SAMPLING_DEFAULTS = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "vllm_structured_outputs_regex": None,
}
DIAGNOSTICS = ("off", "advise", "act")
_NOT_NEGATIVE = ("vf_coef", "entropy_coef", "missing_eos_penalty", "critic_learning_rate", "critic_warmup_rollouts")
_FIXED_REFERENCE = "the KL target is a distance from a fixed reference"
_UNUSED_SETTINGS: dict[str, tuple[Any, str]] = {
    "enable_jit_checkpoint": (False, "it always saves a checkpoint on SIGTERM"),
    "epsilon_high": (None, "PPO clips symmetrically: use epsilon"),
    "reward_clip_range": (None, "use score_clip"),
    "sync_ref_model": (False, _FIXED_REFERENCE),
    "ref_model_mixup_alpha": (RLOOConfig.ref_model_mixup_alpha, _FIXED_REFERENCE),
    "ref_model_sync_steps": (RLOOConfig.ref_model_sync_steps, _FIXED_REFERENCE),
}
_GENERATION_SETTINGS = {
    "eos_token_id": "set it in the model's generation_config",
    "max_new_tokens": "use max_completion_length",
}
# Generation arguments that change how tokens are computed or when sampling ends, never the distribution.
HARMLESS_GENERATION_KWARGS = {"cache_implementation", "use_cache", "stop_strings", "max_time", "compile_config"}


def explain_old_names(names: list[str], places: dict[str, str] = OLD_NAMES) -> str | None:
    """A sentence on each name of TRL's old PPO among `names`, or `None` if there is none."""
    known = {name: places[name] for name in names if name in places}
    lines = [f"`{name}` is {'' if new.startswith(_GONE) else 'now '}{new}" for name, new in known.items()]
    return "Names of TRL's old PPO: " + "; ".join(lines) + "." if lines else None


@dataclass
class PPOConfig(RLOOConfig):
    r"""
    Settings of [`PPOTrainer`]: those of [`~trl.RLOOConfig`] plus the ones below.

    These defaults differ from `RLOOConfig`: `num_generations=1`, `num_iterations=4`, `epsilon=0.1`,
    `learning_rate=3e-6`, `adam_epsilon=1e-5`, `disable_dropout=True`, `normalize_advantages=True`, and `logging_steps`
    is one log line per rollout.

    A rollout has `per_device_train_batch_size * steps_per_generation` sequences on each process; an optimizer step
    takes `per_device_train_batch_size * gradient_accumulation_steps` of them.

    Args:
        beta (`float` or `"auto"`, *optional*):
            Initial weight of the KL penalty, in score units per nat. Defaults to `"auto"` when `kl_target` is given
            (set from the spread of the first rollout's scores, see [`~rlhf_ext.auto_beta`]), else to `0.05`. `0.0`
            switches the penalty and the reference model off.
        kl_target (`float`, *optional*):
            Distance from the reference policy that the controller holds, in the unit `kl_unit`.
        kl_unit (`str`, *optional*):
            `"sequence"` (nats per completion) or `"token"` (nats per token). Required with `kl_target`.
        kl_controller (`str`, *optional*):
            `"fixed"`, `"ziegler"`, `"multiplicative"` or `"log_pi"`. Defaults to `"log_pi"` when `kl_target` is given,
            else to `"fixed"`.
        kl_placement (`str`, *optional*, defaults to `"terminal"`):
            Where the KL penalty enters the rewards: `"terminal"` (with the score, at the last token) or `"token"`
            (each token's own).
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            Per-token KL estimate of the penalty: `"k1"` (unbiased), `"k2"` or `"k3"`.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per token.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of generalised advantage estimation.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss.
        value_clip_range (`float`, *optional*, defaults to `0.5`):
            How far a value may move from its rollout value before its loss is clipped, in score units. `None`
            switches clipping off.
        entropy_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the entropy bonus, in score units per nat.
        critic (`str`, *optional*):
            Where the values come from: `"adapter"` (a second adapter on the policy's base, with a value head: the
            default when the policy is an adapter), `"head"` (a value head on the policy's own trunk: no extra forward,
            but its gradients reach the policy), or `"model"` (a model of its own, which starts as the reward model
            where one is given, else as the policy: the default for full fine-tuning).
        critic_learning_rate (`float`, *optional*):
            Learning rate of the critic, on the same schedule; by default that of the policy. A value head on the
            policy's trunk is the critic, its trunk is not.
        critic_warmup_rollouts (`int`, *optional*, defaults to `0`):
            First rollouts during which only the critic is trained: the policy's learning rate is zero. They count
            towards the schedule.
        normalize_scores (`bool`, *optional*, defaults to `True`):
            Centre and scale a reward model's scores by the mean and standard deviation that
            [`RewardTrainer`] stored in it. Without stored numbers nothing happens.
        score_clip (`float`, *optional*):
            Clip scores to `[-score_clip, score_clip]` before the KL penalty.
        missing_eos_penalty (`float`, *optional*):
            Subtracted from the score of a completion that did not end with EOS.
        allow_mismatched_sampling (`bool`, *optional*, defaults to `False`):
            Allow sampler settings that make the sampled distribution differ from the scored one.
        diagnostics (`str`, *optional*, defaults to `"advise"`):
            `"advise"` names failures, their causes and cures while training (see [`DiagnosticsCallback`]); `"act"` also
            moves the weight of the KL penalty, the learning rates and the length of an update, leaves out steps that are
            not finite, and stops a run whose output is being destroyed, all within bounds and written to
            `diagnostics.jsonl`; `"off"` does nothing.
        probe_every (`int`, *optional*):
            Rollouts between two probes, in which answers to a fixed part of `eval_dataset` are judged by `quality_fn` and
            looked at for their diversity. Defaults to 5, or to as many as it takes for 16 answers (or those to one prompt
            on every process) to cost no more than 5 % of the rollouts' completions. Without a `quality_fn` there are
            probes only where this or `probe_size` is set.
        probe_size (`int`, *optional*):
            Held-out completions of a probe. Defaults to 5 % of those of `probe_every` rollouts.
        skip_damaged_checkpoints (`bool`, *optional*, defaults to `False`):
            With `resume_from_checkpoint=True`, go back to the newest checkpoint that is whole instead of stopping at a
            damaged one.

    Raises:
        TypeError: For a setting of TRL's old `PPOConfig`, naming the one that replaces it.
        ValueError: For a value out of range or settings that contradict each other.
    """

    logging_steps: float | None = field(
        default=None, metadata={"help": "Optimizer steps between two log lines. Defaults to one line per rollout."}
    )
    num_generations: int | None = field(default=1, metadata={"help": "Completions per prompt."})
    num_iterations: int = field(default=4, metadata={"help": "PPO epochs over each rollout."})
    epsilon: float = field(default=0.1, metadata={"help": "Clip range of the probability ratio."})
    learning_rate: float = field(default=3e-6, metadata={"help": "Initial learning rate of AdamW."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Epsilon of AdamW."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "Switch dropout off, so that the ratio starts at 1."}
    )
    normalize_advantages: bool = field(
        default=True, metadata={"help": "Whiten the advantages over the whole rollout."}
    )
    beta: float | str | None = field(
        default=None, metadata={"help": "Initial weight of the KL penalty, or 'auto' (the default with kl_target)."}
    )
    kl_target: float | None = field(default=None, metadata={"help": "KL to the reference that the controller holds."})
    kl_unit: str | None = field(default=None, metadata={"help": "Unit of kl_target: 'sequence' or 'token' (nats)."})
    kl_controller: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(CONTROLLER_KINDS)}. Defaults to log_pi with kl_target."}
    )
    kl_placement: str = field(default="terminal", metadata={"help": f"One of {', '.join(PLACEMENTS)}."})
    kl_estimator: str = field(default="k1", metadata={"help": f"One of {', '.join(KL_ESTIMATORS)}."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_clip_range: float | None = field(default=0.5, metadata={"help": "Clip range of the value loss, or none."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus."})
    critic: str | None = field(
        default=None,
        metadata={"help": f"One of {', '.join(CRITIC_KINDS)}. Defaults to adapter with PEFT, else to model."},
    )
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the critic. Defaults to learning_rate."}
    )
    critic_warmup_rollouts: int = field(
        default=0, metadata={"help": "First rollouts during which only the critic is trained."}
    )
    normalize_scores: bool = field(
        default=True, metadata={"help": "Centre and scale scores by the numbers stored in the reward model."}
    )
    score_clip: float | None = field(default=None, metadata={"help": "Clip scores to [-score_clip, score_clip]."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the score of a completion without EOS."}
    )
    allow_mismatched_sampling: bool = field(
        default=False, metadata={"help": "Allow sampling from another distribution than the one that is scored."}
    )
    diagnostics: str = field(default="advise", metadata={"help": f"One of {', '.join(DIAGNOSTICS)}."})
    probe_every: int | None = field(
        default=None,
        metadata={"help": "Rollouts between two probes of held-out answers. By default they cost a twentieth."},
    )
    probe_size: int | None = field(
        default=None, metadata={"help": "Held-out completions of a probe. By default they cost a twentieth."}
    )
    skip_damaged_checkpoints: bool = field(
        default=False, metadata={"help": "Resume from the newest whole checkpoint, passing over damaged ones."}
    )

    def __new__(cls, *_: Any, **kwargs: Any) -> "PPOConfig":
        explanation = explain_old_names(list(kwargs))
        if explanation:
            raise TypeError(explanation)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        log_each_rollout = self.logging_steps is None
        if log_each_rollout:
            self.logging_steps = 1
        # The command line gives every value as text.
        resume: Any = self.resume_from_checkpoint  # type: ignore[has-type]
        self.resume_from_checkpoint = {"true": True, "false": False}.get(str(resume).lower(), resume)
        self._resolve_kl_settings()
        self._check_values()
        self._check_unused_settings()
        self._check_sampling()
        self._init_parent()
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}), so that no optimizer step mixes two rollouts. Choose a rollout "
                "size (generation_batch_size) that is a multiple of the optimizer's batch."
            )
        if log_each_rollout:
            self.logging_steps = self.updates_per_rollout

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps made on one rollout."""
        return self.steps_per_generation // self.gradient_accumulation_steps * self.num_iterations

    def _init_parent(self) -> None:
        # RLOO's leave-one-out baseline needs two completions per prompt and its config refuses fewer; PPO has a critic.
        requested = self.num_generations
        if requested is None or requested < 1:
            raise ValueError(f"num_generations must be at least 1, got {requested}.")
        self.num_generations_eval = self.num_generations_eval or requested  # type: ignore[has-type]
        if requested == 1:
            local = self.per_device_train_batch_size * (self.steps_per_generation or self.gradient_accumulation_steps)
            self.num_generations = self.generation_batch_size or local
            if self.num_generations < 2:
                raise ValueError(
                    "A rollout of one sequence cannot be standardised. Raise per_device_train_batch_size or "
                    "steps_per_generation."
                )
        super().__post_init__()
        self.num_generations = requested

    def _resolve_kl_settings(self) -> None:
        if isinstance(self.beta, str) and self.beta != "auto":
            try:
                self.beta = float(self.beta)
            except ValueError:
                raise ValueError(f"beta must be a number or 'auto', got {self.beta!r}.") from None
        if self.beta is None:
            self.beta = 0.05 if self.kl_target is None else "auto"
        if self.kl_controller is None:
            self.kl_controller = "fixed" if self.kl_target is None else "log_pi"
        if self.kl_controller not in CONTROLLER_KINDS:
            raise ValueError(f"kl_controller must be one of {CONTROLLER_KINDS}, got {self.kl_controller!r}.")
        if self.kl_target is None and (self.beta == "auto" or self.kl_controller != "fixed"):
            raise ValueError(
                f"beta={self.beta!r} with kl_controller={self.kl_controller!r} needs a kl_target (and its kl_unit)."
            )
        if self.kl_target is not None and self.kl_unit not in ("sequence", "token"):
            raise ValueError(
                f"kl_target={self.kl_target} needs kl_unit='sequence' (nats per completion) or 'token' (nats per "
                f"token), got {self.kl_unit!r}: the same number means very different distances in the two."
            )
        if self.kl_target is None and self.kl_unit is not None:
            raise ValueError(f"kl_unit={self.kl_unit!r} is the unit of kl_target, which is not set. Set it too.")
        if self.kl_target is not None and not 0 < self.kl_target < math.inf:
            raise ValueError(f"kl_target must be a positive number of nats, got {self.kl_target}.")
        if not isinstance(self.beta, str) and not 0 <= self.beta < math.inf:
            raise ValueError(
                f"beta must be a number and not negative, got {self.beta}: below zero it rewards leaving the reference."
            )
        if self.beta == 0 and self.kl_controller != "fixed":
            raise ValueError("beta=0 switches the reference off; an adaptive kl_controller has nothing to measure.")

    def _check_values(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon must lie in (0, 1), got {self.epsilon}. 0.1 to 0.2 is usual.")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        for name in _NOT_NEGATIVE:
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise ValueError(f"{name} must be a number and not negative, got {getattr(self, name)}.")
        for name in ("value_clip_range", "score_clip"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive or None, got {getattr(self, name)}.")
        if self.max_completion_length is None or self.max_completion_length < 1:
            raise ValueError(
                f"max_completion_length must be at least 1 token, got {self.max_completion_length}: PPO needs an end."
            )
        for name in ("num_iterations", "probe_every", "probe_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        self._check_choices()

    def _check_choices(self) -> None:
        for name, allowed in (
            ("kl_placement", PLACEMENTS),
            ("kl_estimator", tuple(KL_ESTIMATORS)),
            ("critic", (None, *CRITIC_KINDS)),
            ("diagnostics", DIAGNOSTICS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        if self.diagnostics == "act" and self.fp16:
            raise ValueError(
                "diagnostics='act' leaves out optimizer steps, which the gradient scaler of fp16 does not allow. Use bf16, "
                "or diagnostics='advise'."
            )

    def _check_unused_settings(self) -> None:
        for name, (unset, reason) in _UNUSED_SETTINGS.items():
            if getattr(self, name) != unset:
                raise ValueError(f"{name}={getattr(self, name)} has no effect in PPOTrainer: {reason}.")

    def _check_sampling(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be positive, got {self.temperature}: greedy decoding does not explore."
            )
        if self.allow_mismatched_sampling:
            return
        for name, place in _GENERATION_SETTINGS.items():
            if name in self._generation_kwargs():
                raise ValueError(f"{name} has no place in generation_kwargs: {place}.")
        changed = [f"{k}={getattr(self, k)}" for k, v in _SAMPLING_DEFAULTS.items() if getattr(self, k) != v]
        changed += [f"{k}={v}" for k, v in self._generation_kwargs().items() if k not in HARMLESS_GENERATION_KWARGS]
        if changed:
            raise ValueError(
                f"{', '.join(changed)}: tokens would be sampled from another distribution than the one whose "
                "log-probabilities PPO compares, which biases the ratio and can turn the KL negative. Remove them (only "
                "`temperature` is scored), or pass allow_mismatched_sampling=True if you accept that."
            )

    def _generation_kwargs(self) -> dict[str, Any]:
        if isinstance(self.generation_kwargs, str):
            raise ValueError("Pass generation_kwargs as a mapping, in Python or in the YAML recipe.")
        return self.generation_kwargs or {}
