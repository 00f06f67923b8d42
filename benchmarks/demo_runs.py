"""The demo on several seeds, with the KL penalty at the end and at every token, in one table.

    python benchmarks/demo_runs.py --output demo_runs                      # run what is missing, print the table
    python benchmarks/demo_runs.py --output demo_runs --write docs/demo.md # and put it between the markers of that page

Both placements of a seed share its samples and its reward model, so only PPO differs. A run takes about 15 minutes on two
quiet cores; an interrupted one goes on at the next call.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_ext.demo import stages
from rlhf_ext.demo.__main__ import run
from rlhf_ext.demo.report import Interval, summary
from rlhf_ext.demo.settings import DemoSettings

PLACEMENTS = ("terminal", "token")
SHARED = (stages.BASE, stages.PROMPTS, stages.PAIRS, stages.HELD_OUT_PAIRS, stages.REWARD_MODEL, stages.BEFORE)
RESULTS = Path(__file__).parent / "results" / "demo_runs.json"
START, END = "<!-- runs: start -->", "<!-- runs: end -->"


def finished(folder: Path, seed: int, placement: str) -> Path:
    """The folder of a run, after running what of it is missing."""
    path, settings = folder / f"{seed}-{placement}", DemoSettings(seed=seed, kl_placement=placement)
    stages.open_run(path, settings)
    twin = folder / f"{seed}-{PLACEMENTS[0]}"
    for name in SHARED if path != twin else ():
        if (twin / name).is_dir() and not (path / name).exists():
            shutil.copytree(twin / name, path / name)
        elif (twin / name).is_file() and not (path / name).exists():
            shutil.copy(twin / name, path / name)
    if not (path / "report.md").is_file():
        run(path, settings)
    return path


def measured(path: Path, seed: int, placement: str) -> dict[str, Any]:
    """The numbers of a finished run, as plain values."""
    numbers = summary(path)
    plain = {name: asdict(value) if isinstance(value, Interval) else value for name, value in numbers.items()}
    return {"seed": seed, "placement": placement, **plain}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table, one line a run."""
    lines = [
        "| seed | placement | reward model | gold before | gold after | rise | 95 % of the rise | KL end / target "
        "| KL peak / target | length | PPO minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rise, target = row["gold_rise"], row["kl_target"]
        lines.append(
            f"| {row['seed']} | {row['placement']} | {row['reward_accuracy']:.2f} | {row['gold_before']['mean']:+.2f} | "
            f"{row['gold_after']['mean']:+.2f} | {rise['mean']:+.2f} | {rise['low']:+.2f} to {rise['high']:+.2f} | "
            f"{row['kl_end'] / target:.2f} | {row['kl_peak'] / target:.2f} | {row['length_after']:.1f} | "
            f"{row['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_runs"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path, help="page whose table is replaced; the numbers go to results/")
    arguments = parser.parse_args()
    order = [(seed, placement) for seed in arguments.seeds for placement in PLACEMENTS]
    rows = [measured(finished(arguments.output, *key), *key) for key in order]
    rows.sort(key=lambda row: (PLACEMENTS.index(row["placement"]), row["seed"]))
    text = table(rows)
    print(text)
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        page = arguments.write.read_text(encoding="utf-8")
        head, tail = page.split(START)[0], page.split(END)[1]
        arguments.write.write_text(f"{head}{START}\n{text}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
