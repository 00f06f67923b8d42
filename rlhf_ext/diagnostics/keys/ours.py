"""Names of rlhf_ext: those of docs/metrics.md, and the canonical ones."""

from ..record import METRICS
from .framework import Framework, signature

CANONICAL = Framework(
    name="rlhf_ext (canonical names)",
    signatures=(
        signature("kl_ref_seq", "score_mean"),
        signature("kl_ref_tok", "score_mean"),
        signature("kl_update", "score_mean"),
        signature("value_loss", "score_mean"),
    ),
    keys={name: (name,) for name in METRICS},
)

OURS = Framework(
    name="rlhf_ext PPOTrainer",
    signatures=(signature("objective/score", "policy/clip_fraction"), signature("objective/score", "kl/ref")),
    keys={
        "score_mean": ("objective/score",),
        "score_std": ("objective/score_std",),
        "score_max": ("objective/score_max",),
        "score_max_frac": ("objective/score_at_max",),
        "score_len_corr": ("objective/score_length_correlation",),
        "rm_disagreement": ("objective/reward_model_disagreement",),
        "rm_outlier_frac": ("objective/reward_model_outliers",),
        "nonfinite": ("objective/not_finite",),
        "reward_mean": ("objective/reward",),
        "eval_score": ("eval_objective/score",),
        "kl_ref_seq": ("kl/ref",),
        "kl_se": ("kl/ref_se",),
        "kl_ref_tok": ("kl/ref_token",),
        "kl_ref_k3": ("kl/ref_k3",),
        "beta": ("kl/beta",),
        "kl_update": ("kl/update",),
        "ratio_first_dev": ("policy/first_pass_deviation",),
        "ratio_max": ("policy/ratio_max",),
        "entropy_tok": ("policy/entropy",),
        "ref_nll": ("policy/reference_nll",),
        "adv_std": ("policy/advantage_std",),
        "pg_clipfrac": ("policy/clip_fraction",),
        "policy_loss": ("policy/loss",),
        "value_loss": ("value/loss",),
        "return_var": ("value/return_variance",),
        "explained_var": ("value/explained_variance",),
        "value_clipfrac": ("value/clip_fraction",),
        "len_mean": ("completions/mean_length",),
        "len_p10": ("completions/length_p10",),
        "len_p50": ("completions/length_p50",),
        "len_p90": ("completions/length_p90",),
        "eos_rate": ("completions/eos_fraction",),
        "trunc_rate": ("completions/clipped_ratio",),
        "grad_norm": ("grad_norm",),
        "lr": ("learning_rate",),
        "lr_critic": ("value/learning_rate",),
        "quality": ("probe/quality",),
        "probe_dup_frac": ("probe/duplicate_fraction",),
        "probe_distinct2": ("probe/distinct_2",),
    },
    unused={
        "kl/target": "in the unit of kl_unit, which the log does not hold: give --kl_target and --kl_unit",
        "objective/score_raw": "score before scaling; objective/score is used",
        "loss": "policy and value loss together; policy/loss and value/loss are used",
    },
)
