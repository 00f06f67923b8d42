"""
trlX, OpenRLHF, torchtune, NeMo, RL4LMs and Stable-Baselines3.

Sources: trlX `modeling_ppo.py`, `accelerate_ppo_trainer.py`; OpenRLHF `trainer/ppo_trainer.py`,
`trainer/ray/ppo_actor.py`, `trainer/ray/ppo_critic.py`, `utils/logging_utils.py`; torchtune
`recipes/ppo_full_finetune_single_device.py`; RL4LMs `algorithms/common/maskable`; Stable-Baselines3 `ppo/ppo.py`.
"""

from .framework import Derivation, Framework, signature


def _square(x: float) -> float:
    return x * x


TRLX = Framework(
    name="trlX",
    signatures=(signature("rollout_scores/mean", "policy/sqrt_kl"),),
    keys={
        "score_mean": ("rollout_scores/mean",),
        "score_std": ("rollout_scores/std",),
        "beta": ("kl_ctl_value",),
        "kl_update": ("policy/approx_kl",),
        "pg_clipfrac": ("policy/clipfrac",),
        "policy_loss": ("losses/policy_loss",),
        "value_loss": ("losses/value_loss",),
        "value_clipfrac": ("values/clipfrac",),
        "eval_score": ("reward/mean",),
    },
    derived=(
        Derivation(
            "kl_ref_k3", ("policy/sqrt_kl",), _square, "sqrt_kl squared; the prompt's tokens count too", "approximate"
        ),
    ),
    unused={
        "policy/kl_per_token": "root of the mean KL per token, prompts counted",
        "ratio": "a mean, which says little",
    },
)

OPENRLHF = Framework(
    name="OpenRLHF",
    signatures=(
        signature("policy_loss", "response_length", "return"),
        signature("policy_loss", "response_length", "actor_lr"),
        signature("policy_loss", "rollout/reward_mean"),
    ),
    keys={
        "score_mean": ("reward", "rollout/reward_mean"),
        "score_std": ("rollout/reward_std",),
        "reward_mean": ("return",),
        "kl_ref_tok": ("kl",),
        "kl_update": ("ppo_kl",),
        "entropy_tok": ("entropy_loss",),
        "pg_clipfrac": ("ppo_clip_ratio",),
        "policy_loss": ("policy_loss",),
        "value_loss": ("critic_loss",),
        "len_mean": ("response_length", "rollout/response_length_mean"),
        "trunc_rate": ("rollout/truncated_rate", "truncated"),
        "rollout_gap": ("vllm_kl",),
        "grad_norm": ("actor_grad_norm",),
        "grad_norm_critic": ("critic_grad_norm",),
        "lr": ("actor_lr",),
        "lr_critic": ("critic_lr",),
    },
    approximate={"ppo_kl": "k1 of the update, which may be negative"},
    unused={
        "logprobs_diff": "against the reference, not against the engine that samples",
        "values": "a mean of values says nothing of the critic's error",
    },
    notes=("OpenRLHF logs neither beta nor explained variance.",),
)

TORCHTUNE = Framework(
    name="torchtune PPO",
    signatures=(signature("scores", "rlhf_reward", "approx_policy_kl"),),
    keys={
        "score_mean": ("scores",),
        "reward_mean": ("rlhf_reward",),
        "kl_ref_seq": ("kl",),
        "kl_update": ("approx_policy_kl",),
        "pg_clipfrac": ("clipfrac",),
        "policy_loss": ("policy_loss",),
        "value_loss": ("value_loss",),
        "len_mean": ("response_lengths",),
    },
    unused={"ratios": "a mean, which says little", "num_stop_tokens": "a count without the number of completions"},
)

NEMO_ALIGNER = Framework(
    name="NeMo-Aligner PPO",
    signatures=(signature("train_rollouts/init_policy_kl", "train_rollouts/rewards"),),
    keys={
        "score_mean": ("train_rollouts/rewards",),
        "reward_mean": ("train_rollouts/rewards_with_kl",),
        "kl_ref_tok": ("train_rollouts/init_policy_kl",),
        "len_mean": ("train_rollouts/response_lengths",),
    },
    approximate={"train_rollouts/init_policy_kl": "unit not documented; taken as a mean per token"},
)

NEMO_RL = Framework(
    name="NeMo-RL PPO",
    signatures=(signature("critic/explained_var", "approx_entropy"), signature("approx_entropy", "gen_kl_error")),
    keys={
        "score_mean": ("reward",),
        "kl_ref_tok": ("kl_penalty",),
        "entropy_tok": ("approx_entropy",),
        "value_loss": ("critic/loss",),
        "explained_var": ("critic/explained_var",),
        "value_clipfrac": ("critic/vf_clipfrac",),
        "grad_norm": ("grad_norm",),
        "grad_norm_critic": ("critic/grad_norm",),
        "rollout_gap": ("gen_kl_error",),
        "len_mean": ("mean_gen_tokens_per_sample",),
        "lr": ("lr",),
    },
    approximate={"approx_entropy": "minus the mean log-probability of the sampled tokens"},
)

RL4LMS = Framework(
    name="RL4LMs",
    signatures=(signature("rollout_info/kl_div_mean"), signature("rollout_info/kl_coeff")),
    keys={
        "score_mean": ("rollout_info/ep_rew", "ep_rew"),
        "kl_ref_tok": ("rollout_info/kl_div_mean",),
        "beta": ("rollout_info/kl_coeff",),
        "len_mean": ("rollout_info/ep_lens", "ep_lens"),
    },
)

SB3 = Framework(
    name="Stable-Baselines3 PPO",
    signatures=(signature("approx_kl", "clip_fraction", "explained_variance"),),
    keys={
        "score_mean": ("rollout/ep_rew_mean",),
        "kl_update": ("approx_kl",),
        "entropy_tok": ("entropy_loss",),
        "pg_clipfrac": ("clip_fraction",),
        "policy_loss": ("policy_gradient_loss",),
        "value_loss": ("value_loss",),
        "explained_var": ("explained_variance",),
        "lr": ("learning_rate",),
        "len_mean": ("rollout/ep_len_mean",),
    },
    # It logs minus the entropy.
    scale={"entropy_loss": -1.0},
    notes=("Not a language model: there is no reference and no KL to it.",),
)

OTHERS = (TRLX, OPENRLHF, TORCHTUNE, NEMO_ALIGNER, NEMO_RL, RL4LMS, SB3)
