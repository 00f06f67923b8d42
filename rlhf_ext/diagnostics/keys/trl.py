"""
TRL: the PPO trainers of both eras, GRPO and RLOO.

Sources: `trl/experimental/ppo/ppo_trainer.py` (1.12; the same names since 0.12), `trl/trainer/ppo_trainer.py` (0.11.4:
`record_step_stats`, `log_stats`, `loss`), `trl/trainer/grpo_trainer.py` and `rloo_trainer.py` (1.16).
"""

from .framework import Derivation, Framework, signature

_PADDED = "a mean over padding too, so it moves with the length of the completions"


def _beta(penalty: float, kl: float) -> float | None:
    return -penalty / kl if abs(kl) > 0.1 else None


PPO_NEW = Framework(
    name="TRL PPO 0.12 to 1.12 (and RLOO 0.12 to 0.21)",
    signatures=(signature("objective/scores", "objective/rlhf_reward"), signature("policy/approxkl_avg")),
    keys={
        "score_mean": ("objective/scores",),
        "reward_mean": ("objective/rlhf_reward",),
        "kl_ref_seq": ("objective/kl",),
        "kl_update": ("policy/approxkl_avg",),
        "entropy_tok": ("policy/entropy_avg",),
        "pg_clipfrac": ("policy/clipfrac_avg",),
        "policy_loss": ("loss/policy_avg",),
        "value_loss": ("loss/value_avg",),
        "value_clipfrac": ("val/clipfrac_avg",),
        "lr": ("lr",),
    },
    approximate={
        "policy/approxkl_avg": _PADDED,
        "policy/entropy_avg": _PADDED,
        "policy/clipfrac_avg": _PADDED,
        "objective/scores": "holds the penalty for a missing EOS",
    },
    unused={
        "objective/entropy": "before 1.10 each pad position adds -1: it falls as completions get shorter",
        "val/ratio": "a mean over all epochs and over padding",
        "val/ratio_var": "variance of the means of minibatches, not of ratios",
        "val/num_eos_tokens": "counts tokens of one process, before truncation, without the number of completions",
    },
    derived=(
        Derivation(
            "beta",
            ("objective/non_score_reward", "objective/kl"),
            _beta,
            "-non_score_reward / kl where |kl| > 0.1 (kl_estimator='k1')",
        ),
    ),
    notes=("TRL's PPO loop never applies max_grad_norm, and logs no length, gradient norm or explained variance.",),
)


def _reward(score: float, penalty: float, length: float) -> float:
    return score + penalty * length


PPO_OLD = Framework(
    name="TRL PPO up to 0.11 (and lm-human-preferences)",
    signatures=(signature("ppo/policy/approxkl"), signature("ppo/loss/value"), signature("ppo/val/var_explained")),
    keys={
        "score_mean": ("ppo/mean_scores", "env/reward_mean", "objective/score", "objective/scores"),
        "score_std": ("ppo/std_scores", "env/reward_std"),
        "reward_mean": ("objective/score_total",),
        "kl_ref_seq": ("objective/kl",),
        "beta": ("objective/kl_coef",),
        "kl_update": ("ppo/policy/approxkl",),
        "entropy_tok": ("ppo/policy/entropy",),
        "pg_clipfrac": ("ppo/policy/clipfrac",),
        "policy_loss": ("ppo/loss/policy",),
        "value_loss": ("ppo/loss/value", "ppo/val/error"),
        "return_var": ("ppo/returns/var",),
        "explained_var": ("ppo/val/var_explained",),
        "value_clipfrac": ("ppo/val/clipfrac",),
        "len_mean": ("tokens/responses_len_mean",),
        "lr": ("ppo/learning_rate",),
    },
    unused={
        "objective/entropy": "minus the sum of log-probabilities; ppo/policy/entropy is the entropy",
        "ppo/policy/policykl": "k1 of the update; ppo/policy/approxkl is used",
    },
    derived=(
        Derivation(
            "reward_mean",
            ("ppo/mean_scores", "ppo/mean_non_score_reward", "tokens/responses_len_mean"),
            _reward,
            "mean_scores + mean_non_score_reward (a mean per token) x length",
        ),
    ),
)

GRPO = Framework(
    name="TRL GRPO or RLOO",
    signatures=(
        signature("reward", "reward_std", "completions/mean_length"),
        signature("reward", "reward_std", "completion_length"),
    ),
    keys={
        "score_mean": ("reward",),
        "score_std": ("reward_std",),
        "eval_score": ("eval_reward",),
        "kl_ref_tok": ("kl",),
        "entropy_tok": ("entropy",),
        "pg_clipfrac": ("clip_ratio/region_mean", "clip_ratio"),
        "policy_loss": ("policy_loss", "loss"),
        "len_mean": ("completions/mean_length", "completion_length"),
        "trunc_rate": ("completions/clipped_ratio",),
        "rollout_gap": ("sampling/sampling_logp_difference/mean",),
        "grad_norm": ("grad_norm",),
        "lr": ("learning_rate",),
    },
    approximate={
        "loss": "the loss with its KL term",
        "reward_std": "some versions log the mean spread within a group, not that of the rollout",
    },
    notes=(
        "Nothing is logged of a critic: there is none. With beta=0 no KL is logged either.",
        "The Trainer hides a NaN loss by default (logging_nan_inf_filter): grad_norm shows it.",
    ),
)

TRL = (PPO_NEW, PPO_OLD, GRPO)
