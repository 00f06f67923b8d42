"""Does faster learn as well? Gold score at matched KL on the demo's task: this project, TRL 1.12's PPO, RLOO.

    python -m rlhf_ext.demo --output demo_run                                  # makes the base and the reward model
    python -m benchmarks.learning --demo demo_run --other VENV/bin/python      # three seeds of every side
    python -m benchmarks.learning --report                                     # the table and the plot

All sides have the same prompts, sequences, lengths, epochs, micro-batches, adapter, learning rate, a fixed KL weight and
the same reward model, whose scores are taken as they are. The gold score (VADER) is computed of the completions of every
rollout; nobody learns from it. KL is that to the initial policy, in nats a completion. A run is a file, kept when it ends;
runs that are there are not made again.
"""

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .speed.driver import RESULTS, SIDES, Side
from .speed.machine import describe

RUNS = RESULTS / "learning"
NAMES = ("ours", "ours-adapter", "ours-model", "trl-1.12", "rloo")
SEQUENCES, MICRO_BATCH, EPOCHS, TOKENS, ROLLOUTS = 32, 16, 2, 16, 20
LEARNING_RATE, BETA = 3e-4, 0.05
WINDOW = 5
"""Rollouts of a moving mean."""
TARGETS = (1.0, 2.0, 2.5, 4.0)
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t at 97.5 %, by the number of seeds."""


def specification(demo: Path, seed: int, rollouts: int) -> dict[str, Any]:
    """What every side trains."""
    from transformers import AutoTokenizer

    from rlhf_ext.demo.prompts import demo_prompts
    from rlhf_ext.demo.reward_model import READOUT

    policy = str((demo / "base").resolve())
    return {
        "policy": policy,
        "reward": str((demo / "reward_model").resolve()),
        "reward_adapter": str((demo / "reward_model").resolve()),
        "readout": AutoTokenizer.from_pretrained(policy)(READOUT)["input_ids"],
        "prompts": demo_prompts()[0],
        "sequences": SEQUENCES,
        "completion": TOKENS,
        "fixed": False,
        "micro_batch": MICRO_BATCH,
        "mini_batches": SEQUENCES // MICRO_BATCH,
        "epochs": EPOCHS,
        "lora": 16,
        "dtype": "float32",
        "learning_rate": LEARNING_RATE,
        "beta": BETA,
        "keeps_texts": True,
        "checkpointing": False,
        "rollouts": rollouts,
        "seed": seed,
        "cuda": False,
    }


def run(name: str, seed: int, demo: Path, other_python: str, rollouts: int) -> list[dict[str, float]]:
    """KL and gold score of every rollout."""
    import sys

    from rlhf_ext.demo.gold import gold_scores

    spec = specification(demo, seed, rollouts) | {"critic": SIDES[name]["critic"]}
    python = other_python if SIDES[name]["program"] == "trl_112" else sys.executable
    points = []
    with tempfile.TemporaryDirectory() as folder:
        side = Side(name, python, spec, Path(folder), threads=1)
        try:
            for _ in range(rollouts):
                row = side.rollout()
                points.append({"kl": row["kl"], "gold": mean(gold_scores(row["texts"]))})
                print(f"{name} {seed}: KL {row['kl']:.2f}, gold {points[-1]['gold']:.3f}", flush=True)
        finally:
            side.close()
    return points


def smoothed(points: list[dict[str, float]]) -> list[tuple[float, float]]:
    """Moving means of KL and gold score."""
    windows = [points[i : i + WINDOW] for i in range(len(points) - WINDOW + 1)]
    return [(mean(p["kl"] for p in window), mean(p["gold"] for p in window)) for window in windows]


def gold_at(points: list[dict[str, float]], target: float) -> float | None:
    """
    Gold score where the KL first reaches the target, between moving means; `None` where it does not.

    Args:
        points (`list[dict[str, float]]`): `kl` and `gold` of every rollout.
        target (`float`): Nats a completion.
    """
    for (kl_before, gold_before), (kl, gold) in pairwise(smoothed(points)):
        if kl_before < target <= kl:
            return gold_before + (gold - gold_before) * (target - kl_before) / (kl - kl_before)
    return None


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of the mean over seeds, by Student's t."""
    if len(values) < 2:
        return f"{values[0]:.3f} (one seed)" if values else "not reached"
    half = T_95[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.3f} ± {half:.3f} ({len(values)} seeds)"


def report(plot: Path) -> None:
    """Print the table, and draw gold against KL."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    print(
        "| side | "
        + " | ".join(f"gold at {target:g} nats" for target in TARGETS)
        + " | KL at the end | gold at the end |"
    )
    print("|---" * (len(TARGETS) + 3) + "|")
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for colour, name in enumerate(NAMES):
        runs = [
            json.loads(file.read_text(encoding="utf-8"))["points"] for file in sorted(RUNS.glob(f"{name}-s*.json"))
        ]
        cells = [interval([g for r in runs if (g := gold_at(r, target)) is not None]) for target in TARGETS]
        cells += [interval([mean(point[key] for point in r[-WINDOW:]) for r in runs]) for key in ("kl", "gold")]
        print(f"| {name} | {' | '.join(cells)} |")
        for i, points in enumerate(runs):
            style: dict[str, Any] = {"color": f"C{colour}"}
            axis.plot(*zip(*smoothed(points), strict=True), label=name if i == 0 else None, **style)
            axis.plot([p["kl"] for p in points], [p["gold"] for p in points], ".", alpha=0.2, **style)
    axis.set(xlabel="KL to the initial policy, nats a completion", ylabel="gold score")
    axis.legend()
    figure.savefig(plot, dpi=120)


def main() -> None:
    """Make the runs that are missing, or report on those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo_run"), help="folder of a finished demo")
    parser.add_argument("--other", help="interpreter with TRL 1.12")
    parser.add_argument("--sides", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--plot", type=Path, default=Path("docs") / "bench_learning.png")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.plot)
        return
    if "trl-1.12" in arguments.sides and not arguments.other:
        parser.error("--other is missing: the interpreter of an environment with TRL 1.12, which `make bench` makes")
    RUNS.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name in arguments.sides:
            file = RUNS / f"{name}-s{seed}.json"
            if file.is_file():
                continue
            points = run(name, seed, arguments.demo, arguments.other, arguments.rollouts)
            kept = {"side": name, "seed": seed, "machine": describe(), "points": points}
            file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
