"""What the demo shows at its end: numbers with intervals, completions, curves."""

import json
import random
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..markdown import inline
from .settings import DemoSettings
from .stages import AFTER, BEFORE, HELD_OUT_PAIRS, HISTORY, POLICY, REWARD_MODEL, TRAINING, write_atomically

REPORT, CURVES = "report.md", "curves.png"
CLEAR_GOLD_DIFFERENCE = 0.3
LAST_ROLLOUTS = 5

PANELS = (
    ("objective/score", "reward-model score (training prompts)", None),
    ("rewards/gold/mean", "gold score (training prompts)", None),
    ("kl/ref", "KL to the untouched model (nats per completion)", "kl/target"),
    ("kl/beta", "beta", None),
    ("policy/entropy", "entropy (nats per token)", None),
    ("value/explained_variance", "explained variance of the critic", None),
)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval over prompts."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def interval(per_prompt: np.ndarray, seed: int = 0) -> Interval:
    """Mean of one value per prompt, and the percentile bootstrap over prompts (2000 draws)."""
    draws = np.random.default_rng(seed).choice(per_prompt, size=(2000, len(per_prompt))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(per_prompt.mean()), float(low), float(high))


def summary(folder: Path) -> dict[str, Any]:
    """All numbers of the report, from the files of a finished run."""
    before, after, history = (_read(folder / name) for name in (BEFORE, AFTER, HISTORY))
    end = history[-LAST_ROLLOUTS:]
    columns = {
        f"{key}_{when}": interval(_per_prompt(rows, key))
        for key in ("gold", "reward")
        for when, rows in (("before", before), ("after", after))
    }
    return {
        **columns,
        "gold_rise": interval(_per_prompt(after, "gold") - _per_prompt(before, "gold")),
        "reward_rise": interval(_per_prompt(after, "reward") - _per_prompt(before, "reward")),
        "length_before": float(np.mean([row["length"] for row in before])),
        "length_after": float(np.mean([row["length"] for row in after])),
        "kl_target": history[-1]["kl/target"],
        "kl_end": float(np.mean([row["kl/ref"] for row in end])),
        "kl_peak": max(row["kl/ref"] for row in history),
        "reward_accuracy": _clear_pair_accuracy(folder),
        "seconds": sum(row["time/generate"] + row["time/score"] + row["time/update"] for row in history),
    }


def write_report(folder: Path, settings: DemoSettings) -> str:
    """Write `report.md` and `curves.png` and return the text."""
    numbers = summary(folder)
    draw_curves(_read(folder / HISTORY), folder / CURVES)
    text = _markdown(numbers, _examples(folder), folder, settings)
    write_atomically(folder / REPORT, text)
    return text


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """Six panels over the rollouts: score, gold, KL against its target, beta, entropy, explained variance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    rollouts = range(1, len(history) + 1)
    for axis, (name, title, target) in zip(axes.flat, PANELS, strict=True):
        axis.plot(rollouts, [row[name] for row in history], color="#1f5fa8", linewidth=1.8)
        if target:
            axis.axhline(history[-1][target], color="#c0392b", linestyle="--", linewidth=1.2, label="target")
            axis.legend(frameon=False)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("rollout")
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _markdown(n: dict[str, Any], examples: str, folder: Path, settings: DemoSettings) -> str:
    ratio = n["kl_end"] / n["kl_target"]
    return f"""# RLHF demo: SmolLM2-135M, seed {settings.seed}, `{settings.kl_placement}` placement

PPO trained against the reward model; gold (VADER sentiment) was never shown to it. All numbers are on held-out prompts,
means with 95 % intervals.

| | before | after | change |
|---|---|---|---|
| gold | {n["gold_before"]} | {n["gold_after"]} | {n["gold_rise"]} |
| reward model | {n["reward_before"]} | {n["reward_after"]} | {n["reward_rise"]} |
| completion length (tokens) | {n["length_before"]:.1f} | {n["length_after"]:.1f} | |

- KL to the untouched model: {n["kl_end"]:.1f} nats per completion over the last {LAST_ROLLOUTS} rollouts, {ratio:.0%} of
  its target of {n["kl_target"]:g}; highest {n["kl_peak"]:.1f}.
- Reward model: right on {n["reward_accuracy"]:.0%} of the held-out pairs whose gold scores differ by more than
  {CLEAR_GOLD_DIFFERENCE}.
- {settings.num_rollouts} rollouts of {settings.rollout_size} completions took {n["seconds"] / 60:.1f} minutes.

![curves]({CURVES})

## The same prompts, before and after

{examples}
## Where everything is

- policy (LoRA adapter, and the critic beside it): `{folder / POLICY}`
- reward model and its report card: `{folder / REWARD_MODEL}`
- curves: `{folder / CURVES}`; every logged number: `{folder / HISTORY}`; samples: `{folder / BEFORE}`, `{folder / AFTER}`
- what the diagnostics saw, and what they make of it: `rlhf-ext diagnose {folder / TRAINING}`
"""


def _examples(folder: Path) -> str:
    before, after = ({row["prompt"]: row for row in _read(folder / name)} for name in (BEFORE, AFTER))
    chosen = random.Random(0).sample(sorted(before), k=min(4, len(before)))
    lines = []
    for prompt in chosen:
        lines += [f"**{inline(prompt)} ...**", ""]
        for when, row in (("before", before[prompt]), ("after", after[prompt])):
            lines.append(f"- {when} (gold {row['gold']:+.2f}): {inline(row['completion'])}")
        lines.append("")
    return "\n".join(lines)


def _clear_pair_accuracy(folder: Path) -> float:
    """
    Share of the held-out pairs which gold tells apart clearly, in which the reward model agrees with gold.

    Every two completions of a prompt count, also those that no label compares: the estimate is steadier.
    """
    from .preferences import Completion
    from .stages import _reward_scores

    pairs = [json.loads(line) for line in (folder / HELD_OUT_PAIRS).read_text(encoding="utf-8").splitlines()]
    sides = [(pair, side) for pair in pairs for side in ("chosen", "rejected")]
    scores = _reward_scores(folder, [Completion(p["prompt"], p[side], [], p[f"{side}_ids"]) for p, side in sides])
    rated = [(pair["prompt"], pair[f"gold_{side}"], score) for (pair, side), score in zip(sides, scores, strict=True)]
    right = [
        (first[1] > second[1]) == (first[2] > second[2])
        for first, second in combinations(rated, 2)
        if first[0] == second[0] and abs(first[1] - second[1]) > CLEAR_GOLD_DIFFERENCE
    ]
    return float(np.mean(right))


def _per_prompt(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    values: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    for row in rows:
        values[row["prompt"]].append(row[key])
    return np.array([np.mean(values[prompt]) for prompt in prompts])


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
