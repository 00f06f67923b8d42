"""What a run measured at one rollout, under one set of names and units, whoever logged it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LARGEST = 1e100
"""Beyond it a number is as good as infinite: its square would be."""


class Metric(NamedTuple):
    """Unit and meaning of a canonical name."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "kl_ref_seq": Metric("nats/sequence", "KL of the policy to the reference, k1"),
    "kl_ref_tok": Metric("nats/token", "the same per token"),
    "kl_ref_k3": Metric("nats/sequence", "the same with k3, which is never negative"),
    "kl_se": Metric("nats/sequence", "standard error of kl_ref_seq"),
    "kl_target": Metric("nats/sequence", "what the controller holds"),
    "beta": Metric("score/nat", "weight of the KL penalty"),
    "kl_update": Metric("nats/token", "KL of the policy to the one that made the rollout"),
    "entropy_tok": Metric("nats/token", "entropy of the policy"),
    "ref_nll": Metric("nats/token", "-log-probability of the completions under the reference"),
    "score_mean": Metric("score", "mean of what the reward model said"),
    "score_std": Metric("score", "spread of the scores in the rollout"),
    "score_max": Metric("score", "largest score"),
    "score_max_frac": Metric("1", "share of scores within 1 % of the spread of the largest"),
    "rm_disagreement": Metric("score", "spread of several reward models over the same completion, mean"),
    "rm_outlier_frac": Metric("1", "share of completions outside what the reward model was trained on"),
    "reward_mean": Metric("score", "mean of score minus KL penalty"),
    "quality": Metric("quality", "held-out quality that training does not see"),
    "eval_score": Metric("score", "mean score on held-out prompts"),
    "len_mean": Metric("tokens", "mean length of the completions"),
    "len_p10": Metric("tokens", "10 % quantile of the length"),
    "len_p50": Metric("tokens", "median length"),
    "len_p90": Metric("tokens", "90 % quantile of the length"),
    "eos_rate": Metric("1", "share of completions that ended with EOS"),
    "trunc_rate": Metric("1", "share of completions cut off at the limit"),
    "score_len_corr": Metric("1", "correlation of score and length within the rollout"),
    "value_loss": Metric("score^2", "value loss"),
    "return_var": Metric("score^2", "variance of the returns"),
    "explained_var": Metric("1", "share of the returns' variance that the values explain"),
    "value_clipfrac": Metric("1", "share of clipped value losses"),
    "pg_clipfrac": Metric("1", "share of clipped ratios"),
    "policy_loss": Metric("score", "policy loss"),
    "ratio_first_dev": Metric("1", "largest |ratio - 1| of the first pass over a rollout"),
    "ratio_max": Metric("1", "largest ratio"),
    "grad_norm": Metric("1", "norm of the gradient before clipping, policy (and critic where they share it)"),
    "grad_norm_critic": Metric("1", "norm of the critic's gradient before clipping"),
    "lr": Metric("1", "learning rate of the policy"),
    "lr_critic": Metric("1", "learning rate of the critic"),
    "adv_std": Metric("score", "spread of the advantages before whitening"),
    "rollout_gap": Metric("nats/token", "log-probability difference between the engine that samples and the trainer"),
    "distinct2": Metric("1", "share of distinct word pairs in the completions"),
    "dup_frac": Metric("1", "share of completions that stand under another prompt too"),
    "probe_dup_frac": Metric("1", "share of the answers to the probe's prompts that stand under another of them too"),
    "probe_distinct2": Metric("1", "share of distinct word pairs in the answers to the probe's prompts"),
    "rep4": Metric("1", "share of repeated word 4-grams within a completion"),
    "nonfinite": Metric("count", "numbers that should have been finite and were not"),
}


class Sample(NamedTuple):
    """A completion kept as evidence."""

    prompt: str
    completion: str
    score: float | None


@dataclass(frozen=True)
class Record:
    """
    One rollout of a run.

    Args:
        step (`int`):
            Optimizer step, or whatever the run counts, at which it was logged. Increases within a run.
        values (`dict[str, float]`):
            Canonical name (see `METRICS`) -> value in the unit given there. A value that was logged and is not finite
            stays in, as NaN or infinity; one that was not logged is not in.
        provenance (`dict[str, str]`):
            `"derived"` (computed from other columns) or `"approximate"` (known to be biased, such as a mean that counts
            padding), by name; what is not named is exact.
        samples (`tuple[Sample]`):
            Some completions of the rollout.

    Raises:
        ValueError: If a name is not canonical.
    """

    step: int
    values: Mapping[str, float]
    provenance: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        if not self.values.keys() <= METRICS.keys():
            unknown = sorted(set(self.values) - set(METRICS))
            raise ValueError(
                f"{unknown} are no canonical names; they are listed in rlhf_ext.diagnostics.record.METRICS."
            )

    def get(self, name: str) -> float | None:
        """The value if it was logged and is finite (and within `LARGEST`), else `None`."""
        value = self.values.get(name)
        return value if value is not None and -LARGEST <= value <= LARGEST else None


@dataclass(frozen=True)
class RunSettings:
    """
    What is known of a run before it starts; `None` where it is not.

    Args:
        planned_rollouts (`int`, *optional*): Rollouts the run will make.
        kl_target (`float`, *optional*): Target of the KL controller, in nats per `kl_unit`.
        kl_unit (`str`, *optional*): `"sequence"` or `"token"`.
        kl_controller (`str`, *optional*): Kind of the controller.
        beta (`float`, *optional*): Weight of the KL penalty at the start; `None` also where it is found from the scores.
        num_epochs (`int`, *optional*): PPO epochs over each rollout.
        rollout_size (`int`, *optional*): Completions per rollout.
        max_completion_length (`int`, *optional*): Tokens.
        epsilon (`float`, *optional*): Clip range of the ratio.
        learning_rate, critic_learning_rate (`float`, *optional*): Peak rates.
        critic_warmup_rollouts (`int`, *optional*): First rollouts during which only the critic is trained.
        max_grad_norm (`float`, *optional*): Norm the gradient is clipped to.
        entropy_coef (`float`, *optional*): Weight of the entropy bonus.
        value_clip_range (`float`, *optional*): Clip range of the value loss; infinity where clipping is off.
        score_clip (`float`, *optional*): Scores are clipped to this distance from 0; infinity where they are not.
        missing_eos_penalty (`float`, *optional*): Subtracted from a score without EOS; 0 where nothing is.
        temperature (`float`, *optional*): Sampling temperature.
        dtype (`str`, *optional*): Precision of the forward pass, such as `"float32"`.
    """

    planned_rollouts: int | None = None
    kl_target: float | None = None
    kl_unit: str | None = None
    kl_controller: str | None = None
    beta: float | None = None
    num_epochs: int | None = None
    rollout_size: int | None = None
    max_completion_length: int | None = None
    epsilon: float | None = None
    learning_rate: float | None = None
    critic_learning_rate: float | None = None
    critic_warmup_rollouts: int | None = None
    max_grad_norm: float | None = None
    entropy_coef: float | None = None
    value_clip_range: float | None = None
    score_clip: float | None = None
    missing_eos_penalty: float | None = None
    temperature: float | None = None
    dtype: str | None = None
