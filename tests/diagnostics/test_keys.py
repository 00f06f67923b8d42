"""Keys of each framework: metric, unit, trust."""

import math
import re
from pathlib import Path

import logs
import pytest

from rlhf_ext import diagnose
from rlhf_ext.diagnostics import METRICS
from rlhf_ext.diagnostics.keys import FRAMEWORKS, plain_key, recognise
from rlhf_ext.diagnostics.keys.ours import OURS

ROOT = Path(__file__).parents[2]

TRL_OLD_ROW = {
    "objective/kl": 3.0,
    "objective/kl_coef": 0.2,
    "objective/entropy": 60.0,
    "ppo/mean_non_score_reward": -0.02,
    "ppo/mean_scores": 1.0,
    "ppo/std_scores": 0.5,
    "tokens/responses_len_mean": 30.0,
    "ppo/policy/entropy": 1.1,
    "ppo/policy/approxkl": 0.01,
    "ppo/policy/policykl": -0.01,
    "ppo/policy/clipfrac": 0.1,
    "ppo/loss/policy": -0.1,
    "ppo/loss/value": 0.4,
    "ppo/val/error": 0.8,
    "ppo/val/clipfrac": 0.05,
    "ppo/val/var_explained": 0.2,
    "ppo/returns/var": 1.0,
    "ppo/learning_rate": 1e-5,
    "env/reward_mean": 7.0,
    "env/reward_std": 0.6,
}
OPENRLHF_ROW = {
    "policy_loss": 0.1,
    "actor_lr": 1e-6,
    "critic_lr": 9e-6,
    "kl": 0.02,
    "reward": 0.4,
    "return": 0.3,
    "response_length": 100.0,
    "total_length": 200.0,
    "critic_loss": 0.2,
    "values": 0.1,
    "ppo_kl": -0.001,
    "ppo_clip_ratio": 0.05,
    "entropy_loss": 0.9,
    "truncated": 0.25,
    "actor_grad_norm": 0.5,
    "critic_grad_norm": 2.0,
    "logprobs_diff": 0.3,
}
# Row, framework, and what the row is in canonical names and units.
CASES = {
    "TRL PPO, new": (
        logs.trl_ppo_row(20),
        "TRL PPO 0.12",
        {"kl_ref_seq": 2.0, "beta": 0.05, "score_mean": 0.5, "reward_mean": 0.4, "entropy_tok": 1.5, "lr": 3e-6},
    ),
    "TRL PPO, old": (
        TRL_OLD_ROW,
        "TRL PPO up to 0.11",
        {"kl_ref_seq": 3.0, "kl_ref_tok": 0.1, "beta": 0.2, "score_mean": 1.0, "reward_mean": 1.0 - 0.02 * 30}
        | {"value_loss": 0.4, "explained_var": 0.2, "score_std": 0.5, "entropy_tok": 1.1},
    ),
    "TRL GRPO": (
        logs.trl_grpo_row(1),
        "TRL GRPO",
        {"kl_ref_tok": 0.02, "kl_ref_seq": 1.0, "trunc_rate": 0.25, "pg_clipfrac": 0.05, "grad_norm": 0.4},
    ),
    "OpenRLHF": (
        {f"train/{key}": value for key, value in OPENRLHF_ROW.items()} | {"train/global_step": 1},
        "OpenRLHF",
        {"kl_ref_tok": 0.02, "kl_ref_seq": 2.0, "kl_update": -0.001, "lr_critic": 9e-6, "trunc_rate": 0.25},
    ),
    "verl, new": (
        logs.VERL_NEW_ROW,
        "verl",
        {"kl_ref_seq": 6.0, "beta": 0.001, "eval_score": 0.6, "explained_var": 0.6, "pg_clipfrac": 0.003},
    ),
    "verl, old": (
        logs.VERL_OLD_ROW,
        "verl (older names)",
        {"kl_ref_seq": 6.0, "lr": 1e-6, "lr_critic": 1e-5, "eval_score": 0.5, "entropy_tok": 0.4},
    ),
    "trlX": (
        {"rollout_scores/mean": 1.0, "policy/sqrt_kl": 3.0, "kl_ctl_value": 0.1, "losses/value_loss": 0.2}
        | {"returns/std": 0.5, "learning_rate_group_0": 1e-5},
        "trlX",
        {"kl_ref_k3": 9.0, "beta": 0.1, "value_loss": 0.2, "return_var": 0.25, "lr": 1e-5},
    ),
    "torchtune": (
        {"scores": 1.0, "rlhf_reward": 0.5, "kl": 4.0, "approx_policy_kl": 0.01, "response_lengths": 40.0}
        | {"kl_reward": -0.5},
        "torchtune",
        {"kl_ref_seq": 4.0, "kl_ref_tok": 0.1, "beta": 0.125},
    ),
    "NeMo-RL": (
        {"train/reward": 0.5, "train/approx_entropy": 0.9, "train/kl_penalty": 0.01, "train/probs_ratio_max": 1.5}
        | {"train/critic/explained_var": 0.4, "train/critic/returns_sq_mean": 0.5, "train/critic/returns_mean": 0.5}
        | {"train/mean_gen_tokens_per_sample": 100.0, "train/truncation_rate": 0.1, "validation/accuracy": 0.6},
        "NeMo-RL",
        {"kl_ref_seq": 1.0, "entropy_tok": 0.9, "explained_var": 0.4, "return_var": 0.25, "trunc_rate": 0.1}
        | {"ratio_max": 1.5, "eval_score": 0.6},
    ),
    "RL4LMs": (
        {"rollout_info/ep_rew": 0.5, "rollout_info/ep_kl_rew": -0.1, "rollout_info/kl_div_mean": 0.02}
        | {"rollout_info/kl_coeff": 0.1, "rollout_info/ep_lens": 50.0, "rollout_info/ref_log_prob": -1.5}
        | {"ppo/approx_kl": 0.003, "ppo/entropy_loss": -2.5, "ppo/value_loss": 0.2, "ppo/explained_variance": 0.3},
        "RL4LMs",
        {"kl_ref_seq": 1.0, "beta": 0.1, "reward_mean": 0.4, "entropy_tok": 2.5, "ref_nll": 1.5, "kl_update": 0.003},
    ),
    "SB3": (
        {
            "train/approx_kl": 0.01,
            "train/clip_fraction": 0.1,
            "train/explained_variance": 0.5,
            "train/entropy_loss": -2.0,
        },
        "Stable-Baselines3",
        {"entropy_tok": 2.0, "explained_var": 0.5},
    ),
}


def diagnosis_of(tmp_path, row, **options):
    rows = [{**row, "step": step} for step in range(1, 4)]
    return diagnose(logs.write_lines(tmp_path / "log.jsonl", rows), **options)


@pytest.mark.parametrize("case", CASES)
def test_metrics_of_a_row(case, tmp_path):
    row, framework, expected = CASES[case]
    diagnosis = diagnosis_of(tmp_path, row)
    assert diagnosis.framework.startswith(framework)
    found = {name: curve.values[-1] for name, curve in diagnosis.curves.items()}
    assert {name: found.get(name) for name in expected} == pytest.approx(expected, rel=1e-6)
    assert set(found) == {key.name for key in diagnosis.mapping}


def test_provenance_says_what_cannot_be_trusted(tmp_path):
    diagnosis = diagnosis_of(tmp_path, logs.trl_ppo_row(20) | {"my/metric": 1.0})
    trust = {key.name: (key.provenance, key.reason) for key in diagnosis.mapping}
    assert trust["kl_ref_seq"] == ("exact", "")
    assert trust["beta"][0] == "derived" and "non_score_reward" in trust["beta"][1]
    assert trust["entropy_tok"][0] == "approximate" and "padding" in trust["entropy_tok"][1]
    assert "objective/entropy" in diagnosis.unused and diagnosis.unmapped == ("my/metric",)
    # Without a length there is no KL per token.
    assert "kl_ref_tok" not in diagnosis.curves


def test_a_beta_is_not_derived_from_no_kl(tmp_path):
    assert "beta" not in diagnosis_of(tmp_path, logs.trl_ppo_row(1, **{"objective/kl": 0.05})).curves


def test_the_best_of_several_keys_is_used_and_the_others_named(tmp_path):
    diagnosis = diagnosis_of(tmp_path, TRL_OLD_ROW)
    assert "ppo/mean_scores is used for score_mean" in diagnosis.unused["env/reward_mean"]
    assert "ppo/loss/value is used" in diagnosis.unused["ppo/val/error"]


def test_keys_that_the_user_names(tmp_path):
    row = {"my_kl": 2.0, "my_reward": 1.0, "loss": 0.1}
    with pytest.raises(ValueError, match="no framework known here logs these keys: loss, my_kl, my_reward"):
        diagnosis_of(tmp_path, row)
    keys = {"kl_ref_seq": "my_kl", "score_mean": "my_reward"}
    diagnosis = diagnosis_of(tmp_path, row, keys=keys)
    assert diagnosis.curves["kl_ref_seq"].values == [2.0] * 3 and diagnosis.unmapped == ("loss",)
    with pytest.raises(ValueError, match="'kl_ref' is no metric; near it are"):
        diagnosis_of(tmp_path, row, keys={"kl_ref": "my_kl"})
    with pytest.raises(ValueError, match="no key 'my_kll' for kl_ref_seq; near it are my_kl"):
        diagnosis_of(tmp_path, row, keys={"kl_ref_seq": "my_kll"})
    # They win over the framework's own.
    given = diagnosis_of(tmp_path, logs.trl_ppo_row(1, mine=9.0), keys={"kl_ref_seq": "mine"})
    assert given.curves["kl_ref_seq"].values == [9.0] * 3


def test_one_prefix_is_taken_off():
    assert plain_key("train/train/x") == "train/x"
    assert plain_key("train/objective/kl") == plain_key("objective/kl") == "objective/kl"
    assert plain_key("eval/objective/score") == plain_key("eval_objective/score") == "eval_objective/score"
    assert plain_key("train/global_step") == "train/global_step"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_tables_hold_together(framework):
    assert set(framework.keys) | {d.name for d in framework.derived} <= set(METRICS)
    keys = {key for candidates in framework.keys.values() for key in candidates}
    known = keys | {key for d in framework.derived for key in d.keys} | set(framework.unused)
    assert set(framework.scale) | set(framework.approximate) <= keys
    assert not keys & set(framework.unused)
    for signature in framework.signatures:
        assert recognise(set(signature)) is framework
        assert all(plain_key(key) == key for key in signature)
    assert known


def test_our_own_names_are_those_of_the_metrics_page():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+)`", page)) | {"learning_rate", "loss"}
    ours = {key.removeprefix("eval_") for candidates in OURS.keys.values() for key in candidates} | set(OURS.unused)
    assert ours <= named, ours - named


def test_nan_in_one_of_several_held_out_sets_is_seen(tmp_path):
    row = logs.VERL_NEW_ROW | {"val-core/openai/math/reward/mean@1": "NaN"}
    assert math.isnan(diagnosis_of(tmp_path, row).curves["eval_score"].values[0])
