"""
trlX, OpenRLHF, torchtune, NeMo, RL4LMs and Stable-Baselines3.

Sources, repository and path:

- CarperAI/trlx: `trlx/models/modeling_ppo.py` (`loss`), `trlx/trainer/accelerate_ppo_trainer.py` (`make_experience`),
  `trlx/trainer/accelerate_base_trainer.py` (`evaluate`, `learn`)
- OpenRLHF/OpenRLHF: `openrlhf/trainer/ppo_trainer.py` (`_compute_rollout_stats`), `openrlhf/trainer/ray/ppo_actor.py`
  and `ppo_critic.py` (`training_step`), `openrlhf/trainer/ppo_utils/experience_maker.py`; gradient norms since #1198
- pytorch/torchtune: `recipes/ppo_full_finetune_single_device.py` (`_ppo_step`, `log_metrics`)
- NVIDIA-NeMo/RL: `nemo_rl/algorithms/ppo.py` (`ppo_train`, `validate`), `nemo_rl/algorithms/loss/loss_functions.py`
  (`ClippedPGLossFn`), `nemo_rl/experience/rollouts.py` (`run_multi_turn_rollout`)
- allenai/RL4LMs: `rl4lms/envs/text_generation/alg_wrappers.py` (`collect_rollouts`), `rl4lms/algorithms/ppo/ppo.py`
  (`train`)
- DLR-RM/stable-baselines3: `stable_baselines3/ppo/ppo.py` (`train`)
"""

from .framework import Derivation, Framework, signature


def _square(x: float) -> float:
    return x * x


def _beta(penalty: float, kl: float) -> float | None:
    return -penalty / kl if abs(kl) > 0.1 else None


def _sum(score: float, penalty: float) -> float:
    return score + penalty


def _variance(mean_of_squares: float, mean: float) -> float:
    return mean_of_squares - mean * mean


_PADDED = "a mean over padding too, so it moves with the length of the completions"

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
        "lr": ("learning_rate_group_0",),
    },
    approximate={"policy/approx_kl": _PADDED},
    derived=(
        Derivation(
            "kl_ref_k3", ("policy/sqrt_kl",), _square, "sqrt_kl squared; the prompt's tokens count too", "approximate"
        ),
        Derivation("return_var", ("returns/std",), _square, "returns/std squared"),
    ),
    unused={
        "policy/kl_per_token": "root of the mean KL per token, prompts and padding counted",
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
    approximate={
        "approx_policy_kl": _PADDED,
        "scores": "a completion without EOS has the penalty instead of its score, where one is set",
        "response_lengths": "place of the last token: one less than the length",
    },
    unused={"ratios": "a mean, which says little", "num_stop_tokens": "a count without the number of completions"},
    derived=(Derivation("beta", ("kl_reward", "kl"), _beta, "-kl_reward / kl where |kl| > 0.1"),),
    notes=("torchtune logs no entropy, gradient norm, learning rate or explained variance.",),
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
        "ratio_max": ("probs_ratio_max",),
        "policy_loss": ("loss",),
        "value_loss": ("critic/loss",),
        "explained_var": ("critic/explained_var",),
        "value_clipfrac": ("critic/vf_clipfrac",),
        "grad_norm": ("grad_norm",),
        "grad_norm_critic": ("critic/grad_norm",),
        "rollout_gap": ("gen_kl_error",),
        "len_mean": ("mean_gen_tokens_per_sample",),
        "trunc_rate": ("truncation_rate",),
        "eval_score": ("validation/accuracy",),
        "lr": ("lr",),
        "lr_critic": ("critic/lr",),
    },
    approximate={
        "approx_entropy": "minus the mean log-probability of the sampled tokens",
        "kl_penalty": "KL as it stands in the loss, with that estimator",
        "loss": "the loss with its KL term",
    },
    derived=(
        Derivation(
            "return_var",
            ("critic/returns_sq_mean", "critic/returns_mean"),
            _variance,
            "returns_sq_mean - returns_mean squared",
        ),
    ),
)

RL4LMS = Framework(
    name="RL4LMs",
    signatures=(
        signature("rollout_info/kl_div_mean"),
        signature("rollout_info/kl_coeff"),
        signature("ppo/policy_gradient_loss", "ppo/approx_kl"),
    ),
    keys={
        "score_mean": ("rollout_info/ep_rew",),
        "score_std": ("rollout_info/ep_rew_std",),
        "kl_ref_tok": ("rollout_info/kl_div_mean",),
        "beta": ("rollout_info/kl_coeff",),
        "ref_nll": ("rollout_info/ref_log_prob",),
        "len_mean": ("rollout_info/ep_lens",),
        "kl_update": ("ppo/approx_kl",),
        "entropy_tok": ("ppo/entropy_loss",),
        "policy_loss": ("ppo/policy_gradient_loss",),
        "value_loss": ("ppo/value_loss",),
        "explained_var": ("ppo/explained_variance",),
    },
    # It logs minus the entropy, and log-probabilities.
    scale={"ppo/entropy_loss": -1.0, "rollout_info/ref_log_prob": -1.0},
    derived=(
        Derivation("reward_mean", ("rollout_info/ep_rew", "rollout_info/ep_kl_rew"), _sum, "ep_rew + ep_kl_rew"),
    ),
    notes=("rollout_info.jsonl and training_info.jsonl hold half of the metrics each; the run in W&B holds all.",),
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
