"""Synthetic runs, built from what a policy, a reward and a critic do, not from what the detectors compute.

The policy moves at a steady pace in sqrt(KL) until the penalty stops it; the score follows the distance with a falling
return; the entropy falls as the distance grows; the critic's loss falls towards the noise of the returns. Noise is
autocorrelated (AR(1), 0.5), as in real logs.
"""

import numpy as np

from rlhf_ext.diagnostics import Diagnostics, Record, RunSettings, Severity

SETTINGS = {
    "planned_rollouts": 240,
    "kl_target": 6.0,
    "kl_unit": "sequence",
    "kl_controller": "log_pi",
    "num_epochs": 4,
    "rollout_size": 64,
    "max_completion_length": 64,
    "epsilon": 0.1,
    "learning_rate": 1e-5,
    "critic_learning_rate": 1e-5,
    "critic_warmup_rollouts": 0,
    "max_grad_norm": 1.0,
    "entropy_coef": 0.0,
    "value_clip_range": 0.5,
    "score_clip": float("inf"),
    "missing_eos_penalty": 0.0,
    "temperature": 1.0,
    "dtype": "float32",
}


def settings(**changes):
    return RunSettings(**SETTINGS | changes)


def noise(rng, n, sd, rho=0.5):
    """AR(1) with stationary standard deviation `sd`."""
    steps = rng.normal(0, sd * np.sqrt(1 - rho**2), n)
    out = np.empty(n)
    out[0] = rng.normal(0, sd)
    for t in range(1, n):
        out[t] = rho * out[t - 1] + steps[t]
    return out


def healthy(n=240, seed=0, target=6.0, quality=True):
    """Columns of a run that learns: KL to its target, score up, entropy down by more than half, critic learning."""
    rng = np.random.default_rng(seed)
    time = np.arange(n)
    distance = np.sqrt(target) * (1 - np.exp(-time / (0.25 * n)))
    kl = distance**2
    progress = distance / np.sqrt(target)
    score_std = 1.0 - 0.3 * progress
    length = 40 + noise(rng, n, 1.0)
    kl_se = np.sqrt(kl + 0.05) / 8
    columns = {
        "kl_ref_seq": kl + noise(rng, n, 1.0) * kl_se,
        "kl_se": kl_se,
        "kl_target": np.full(n, target),
        "beta": 0.3 * np.exp(0.3 * np.sin(time / 40)),
        "kl_update": 0.004 * np.exp(noise(rng, n, 0.2)),
        "entropy_tok": 2.5 * (1 - 0.6 * progress) * np.exp(noise(rng, n, 0.03)),
        "score_mean": 1.5 * progress + noise(rng, n, 0.12),
        "score_std": score_std * np.exp(noise(rng, n, 0.08)),
        "score_max": 1.5 * progress + 2.5 * score_std,
        "score_max_frac": np.full(n, 0.02),
        "adv_std": score_std * np.exp(noise(rng, n, 0.08)),
        "len_mean": length,
        "len_p50": length - 2,
        "eos_rate": np.clip(0.95 + noise(rng, n, 0.02), 0, 1),
        "trunc_rate": np.clip(0.05 + noise(rng, n, 0.02), 0, 1),
        "score_len_corr": 0.1 + noise(rng, n, 0.1),
        "return_var": score_std**2,
        "value_loss": score_std**2 * (0.4 + 3.0 * np.exp(-time / 8)) * np.exp(noise(rng, n, 0.15)),
        "explained_var": 0.6 - 1.5 * np.exp(-time / 8) + noise(rng, n, 0.08),
        "value_clipfrac": np.abs(noise(rng, n, 0.03)),
        "pg_clipfrac": 0.03 * np.exp(noise(rng, n, 0.3)),
        "policy_loss": noise(rng, n, 0.01),
        "ratio_first_dev": np.full(n, 1e-6),
        "ratio_max": 1.5 + np.abs(noise(rng, n, 0.3)),
        "grad_norm": np.exp(noise(rng, n, 0.3)),
        "grad_norm_critic": (1 + 300 * np.exp(-time / 3)) * np.exp(noise(rng, n, 0.3)),
        "lr": 1e-5 * (1 - 0.9 * time / n),
        "lr_critic": 1e-5 * (1 - 0.9 * time / n),
        "rollout_gap": np.full(n, 0.001),
        "ref_nll": 2.5 - 0.2 * progress + noise(rng, n, 0.05),
        "rm_disagreement": 0.3 * np.exp(noise(rng, n, 0.1)),
        "rm_outlier_frac": np.clip(0.02 + noise(rng, n, 0.01), 0, 1),
    }
    columns["kl_ref_tok"] = columns["kl_ref_seq"] / length
    columns["kl_ref_k3"] = columns["kl_ref_seq"] * 1.1 + 0.05
    columns["reward_mean"] = columns["score_mean"] - columns["beta"] * columns["kl_ref_seq"]
    probes = np.full(n, np.nan)
    at = time[::5]
    for name, value, sd in (
        ("quality", 0.8 * progress, 0.08),
        ("distinct2", 0.8 - 0.1 * progress, 0.02),
        ("dup_frac", 0.0 * progress + 0.01, 0.003),
        ("rep4", 0.0 * progress + 0.03, 0.01),
    ):
        columns[name] = probes.copy()
        columns[name][at] = np.clip(value[at] + rng.normal(0, sd, at.size), 0 if name != "quality" else -9, None)
    if not quality:
        del columns["quality"]
    return columns


SPARSE = ("quality", "distinct2", "dup_frac", "rep4", "probe_dup_frac", "probe_distinct2")


def records(columns, first_step=1):
    """One record a row; a NaN in a sparse column is a rollout without a probe."""
    n = len(next(iter(columns.values())))
    for row in range(n):
        values = {k: float(v[row]) for k, v in columns.items() if k not in SPARSE or not np.isnan(v[row])}
        yield Record(first_step + row, values)


def watch(columns, **changes):
    """Diagnostics after the run, and its events."""
    diagnostics = Diagnostics(settings(**changes))
    events = [event for record in records(columns) for event in diagnostics.observe(record)]
    return diagnostics, events


def modes(events, severity=Severity.WARN):
    """Modes that opened at that severity or above, or escalated to it."""
    return {e.finding.mode for e in events if e.kind != "closed" and e.finding.severity >= severity}


def opening(events, mode):
    """First event of a mode."""
    return next(event for event in events if event.finding.mode == mode)


def check_of(finding, name):
    """What the log says of a cause."""
    return next(c.check for c in finding.causes if c.name == name)
