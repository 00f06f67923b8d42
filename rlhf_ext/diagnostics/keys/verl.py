"""
verl, in its names of 2025 and 2026 and the older ones, and ROLL, which took them over.

Sources, in verl-project/verl and volcengine/verl before it: `verl/trainer/ppo/metric_utils.py` (`compute_data_metrics`),
`verl/trainer/ppo/ray_trainer.py` (`apply_kl_penalty`), `verl/trainer/ppo/rollout_corr_helper.py`
(`compute_offpolicy_metrics`), `verl/workers/actor/dp_actor.py` and `verl/workers/critic/dp_critic.py`; older names from
the logs published with the project.
"""

from .framework import Framework, signature

_KEYS: dict[str, tuple[str, ...]] = {
    "score_mean": ("critic/score/mean",),
    "score_max": ("critic/score/max",),
    "reward_mean": ("critic/rewards/mean",),
    "policy_loss": ("actor/pg_loss",),
    "pg_clipfrac": ("actor/pg_clipfrac",),
    "kl_update": ("actor/ppo_kl",),
    "value_loss": ("critic/vf_loss",),
    "explained_var": ("critic/vf_explained_var",),
    "value_clipfrac": ("critic/vf_clipfrac",),
    "len_mean": ("response_length/mean",),
    "trunc_rate": ("response_length/clip_ratio",),
    "grad_norm": ("actor/grad_norm",),
    "grad_norm_critic": ("critic/grad_norm",),
    "rollout_gap": ("rollout_corr/kl",),
}
_K1 = "k1 of the update, which may be negative"
_UNUSED = {
    "actor/pg_clipfrac_lower": "share of the second (dual) clip, not of the lower bound",
    "training/rollout_probs_diff_mean": "a difference of probabilities, not of log-probabilities",
}

OLD = Framework(
    name="verl (older names)",
    signatures=(signature("critic/kl", "critic/score/mean"), signature("actor/entropy_loss", "critic/score/mean")),
    keys=_KEYS
    | {
        "kl_ref_tok": ("critic/kl",),
        "beta": ("critic/kl_coeff", "critic/kl_coef"),
        "entropy_tok": ("actor/entropy_loss",),
        "eval_score": ("val/test_score/*",),
        "lr": ("actor/lr", "actor/lr(1e-4)"),
        "lr_critic": ("critic/lr", "critic/lr(1e-4)"),
    },
    scale={"actor/lr(1e-4)": 1e-4, "critic/lr(1e-4)": 1e-4},
    approximate={"actor/ppo_kl": _K1},
    unused=_UNUSED,
)

NEW = Framework(
    name="verl",
    signatures=(signature("critic/score/mean", "response_length/mean"), signature("actor/pg_loss", "actor/ppo_kl")),
    keys=_KEYS
    | {
        "kl_ref_tok": ("actor/reward_kl_penalty", "actor/kl_loss"),
        "beta": ("actor/reward_kl_penalty_coeff", "actor/kl_coef"),
        "entropy_tok": ("actor/entropy",),
        "eval_score": ("val-core/*/mean@*", "val/test_score/*"),
        "lr": ("actor/lr",),
        "lr_critic": ("critic/lr",),
    },
    approximate={"actor/ppo_kl": _K1, "actor/kl_loss": "KL as it stands in the loss, with that estimator"},
    unused=_UNUSED,
)


ROLL = Framework(
    name="ROLL",
    signatures=(signature("actor/ppo_ratio_clipfrac", "actor/approxkl"),),
    keys={
        "score_mean": ("critic/score/mean",),
        "reward_mean": ("critic/rewards/mean",),
        "kl_ref_tok": ("critic/kl",),
        "beta": ("critic/kl_coef",),
        "entropy_tok": ("critic/entropy/mean",),
        "kl_update": ("actor/approxkl",),
        "pg_clipfrac": ("actor/ppo_ratio_clipfrac",),
        "policy_loss": ("actor/pg_loss",),
        "ratio_max": ("actor/ratio_max",),
        "value_loss": ("critic/loss",),
        "len_mean": ("tokens/response_length/mean",),
        "grad_norm": ("actor_train/grad_norm",),
        "lr": ("actor/lr",),
    },
    approximate={"critic/kl": "unit not documented; taken as a mean per token"},
)

VERL = (ROLL, OLD, NEW)
