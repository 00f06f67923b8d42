"""The mathematics of PPO-RLHF as free functions on tensors: no state, no configuration, no logging, no device moves.

Shapes use the same letters everywhere: `B` sequences, `C` completion tokens. Masks are bool, True = real token.
"""

from .advantages import explained_variance, explained_variance_from_moments, gae
from .kl import KL_ESTIMATORS, k1, k2, k3
from .losses import (
    MAX_LOG_RATIO,
    PolicyLoss,
    ValueLoss,
    entropy_bonus,
    policy_loss,
    preference_loss,
    value_loss,
)
from .masked import masked_mean, masked_moments, masked_sum, masked_var, masked_whiten, moments_to_mean_var
from .rewards import PLACEMENTS, apply_missing_eos_penalty, clip_scores, last_token_index, shape_rewards

__all__ = [
    "KL_ESTIMATORS",
    "MAX_LOG_RATIO",
    "PLACEMENTS",
    "PolicyLoss",
    "ValueLoss",
    "apply_missing_eos_penalty",
    "clip_scores",
    "entropy_bonus",
    "explained_variance",
    "explained_variance_from_moments",
    "gae",
    "k1",
    "k2",
    "k3",
    "last_token_index",
    "masked_mean",
    "masked_moments",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "moments_to_mean_var",
    "policy_loss",
    "preference_loss",
    "shape_rewards",
    "value_loss",
]
