"""Closed-loop comparison of the KL controllers on simulated plants.

    python benchmarks/kl_plants.py                            # print the table
    python benchmarks/kl_plants.py --write docs/kl_control.md # and put it between the markers of that page

A plant turns beta into the next rollout's KL, by moving the distance sqrt(KL) at a limited speed (Adam's steps are all of
one size; on a real policy KL was seen to grow with the square of the rollouts). Two laws: `gaussian`, where the distance
relaxes to sigma / (sqrt(2) beta), and `bounded`, where the score saturates and the policy moves on while one more nat
still pays more than beta. Each with and without momentum (the optimizer's), with and without a doubling of the reward
scale in the middle, measured with the noise of 32 sequences. Falling is slower than rising. A shorter run has the larger
learning rate, so its plant is faster.
"""

import argparse
import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_ext.kl_control import KLController, KLMeasurement, auto_beta, make_kl_controller

TARGET = 6.0
SIGMA = 0.38
NUM_SEQUENCES = 32
SEEDS = range(6)
START = "<!-- plants: start -->"
END = "<!-- plants: end -->"


@dataclass(frozen=True)
class Plant:
    """One simulated policy: its law, the length of the run, momentum, and whether the reward scale doubles."""

    law: str
    rollouts: int
    momentum: float
    doubling: bool

    @property
    def speed(self) -> float:
        """Largest change of sqrt(KL) per rollout, relative to that of a run of 25 rollouts."""
        return max(25 / self.rollouts, 0.1)

    def scale(self, rollout: int) -> float:
        """Reward scale at a rollout."""
        return 2.0 if self.doubling and rollout >= self.rollouts // 2 else 1.0


def grid() -> Iterator[Plant]:
    """Every plant."""
    for rollouts in (25, 100, 400):
        for law in ("gaussian", "bounded"):
            for momentum in (0.0, 0.6):
                for doubling in (False, True):
                    yield Plant(law, rollouts, momentum, doubling)


def simulate(plant: Plant, controller: KLController, seed: int) -> list[float]:
    """True KL of each rollout, in nats per sequence, under a controller that sees it with noise."""
    rng = random.Random(seed)
    kl, velocity, path = 0.0, 0.0, []
    for rollout in range(plant.rollouts):
        path.append(kl)
        std = 0.7 * kl + 0.3
        measured = kl + rng.gauss(0.0, std / math.sqrt(NUM_SEQUENCES))
        beta = controller.update(KLMeasurement(measured, std, NUM_SEQUENCES))
        push = _gaussian_push if plant.law == "gaussian" else _bounded_push
        velocity = plant.momentum * velocity + (1 - plant.momentum) * push(plant, kl, beta, plant.scale(rollout))
        kl = max(0.0, math.sqrt(kl) + velocity) ** 2
    return path


def _gaussian_push(plant: Plant, kl: float, beta: float, scale: float) -> float:
    """Change of sqrt(KL)."""
    gap = SIGMA * scale / (math.sqrt(2) * beta) - math.sqrt(kl)
    return min(0.45, max(-0.3, 0.35 * gap)) * plant.speed


def _bounded_push(plant: Plant, kl: float, beta: float, scale: float) -> float:
    """Change of sqrt(KL); the score is scale * (1 - exp(-0.8 sqrt(KL)))."""
    root = max(math.sqrt(kl), 0.2)
    slope = scale * 0.8 * math.exp(-0.8 * root) / (2 * root)
    drive = (slope - beta) / (slope + beta)
    return drive * plant.speed * (0.3 if drive > 0 else 0.2)


def outcome(plant: Plant, kind: str, start: float) -> tuple[float, float]:
    """Median over seeds of (peak / target, mean of the last tenth / target); beta starts at `start` times auto."""
    beta = start * auto_beta(SIGMA, TARGET, "sequence", 16.0)
    peaks, ends = [], []
    for seed in SEEDS:
        controller = make_kl_controller(kind, beta, TARGET, "sequence", plant.rollouts)
        path = simulate(plant, controller, seed)
        peaks.append(max(path) / TARGET)
        ends.append(statistics.mean(path[-max(3, plant.rollouts // 10) :]) / TARGET)
    return statistics.median(peaks), statistics.median(ends)


def table() -> str:
    """Markdown table: every plant, beta starting at its automatic value and at a third of it."""
    lines = [
        "| rollouts | law | momentum | reward x 2 | start | log_pi end | log_pi peak | ziegler end | ziegler peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for plant in grid():
        for start, name in ((1.0, "auto"), (1 / 3, "auto / 3")):
            cells = [f"{x:.2f}" for kind in ("log_pi", "ziegler") for x in reversed(outcome(plant, kind, start))]
            doubling = "yes" if plant.doubling else "no"
            row = [str(plant.rollouts), plant.law, f"{plant.momentum:g}", doubling, name, *cells]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it into a page where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    text = table()
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        head, tail = page.split(START)[0], page.split(END)[1]
        arguments.write.write_text(f"{head}{START}\n{text}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
