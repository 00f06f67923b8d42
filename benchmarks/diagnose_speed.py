"""
Time that `rlhf_ext.diagnose` takes for logs of ten thousand rollouts, and its memory.

    python benchmarks/diagnose_speed.py [--rows 10000]
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from rlhf_ext import diagnose
from rlhf_ext.diagnostics import METRICS, Record
from rlhf_ext.diagnostics.journal import record_line


def columns(rows: int) -> dict[str, np.ndarray]:
    """A run that learns, in TRL's names, with the noise of a real one."""
    rng = np.random.default_rng(0)
    time_ = np.arange(rows) / rows
    kl = 6 * (1 - np.exp(-6 * time_)) + 0.3 * rng.normal(size=rows)
    values = {
        "objective/kl": kl,
        "objective/entropy": 60 - 20 * time_ + rng.normal(size=rows),
        "objective/non_score_reward": -0.1 * kl,
        "objective/scores": 1.5 * time_ + 0.1 * rng.normal(size=rows),
        "policy/approxkl_avg": 0.004 * np.exp(0.3 * rng.normal(size=rows)),
        "policy/clipfrac_avg": 0.03 * np.exp(0.3 * rng.normal(size=rows)),
        "loss/policy_avg": 0.01 * rng.normal(size=rows),
        "loss/value_avg": np.exp(-3 * time_ + 0.15 * rng.normal(size=rows)),
        "val/clipfrac_avg": 0.02 * np.abs(rng.normal(size=rows)),
        "policy/entropy_avg": 2 - time_ + 0.05 * rng.normal(size=rows),
        "val/ratio": 1 + 0.001 * rng.normal(size=rows),
        "val/ratio_var": 1e-5 * np.abs(rng.normal(size=rows)),
        "lr": 1e-5 * (1 - 0.9 * time_),
        "episode": 64.0 * np.arange(1, rows + 1),
    }
    return values | {"objective/rlhf_reward": values["objective/scores"] + values["objective/non_score_reward"]}


# Where a healthy run stands; half a unit for the rest.
LEVELS = {"trunc_rate": 0.05, "pg_clipfrac": 0.03, "value_clipfrac": 0.03, "kl_update": 0.004, "dup_frac": 0.01}
LEVELS |= {"rep4": 0.03, "ratio_first_dev": 1e-6, "score_max_frac": 0.02, "rollout_gap": 0.001, "nonfinite": 0.0}
LEVELS |= {
    "eos_rate": 0.95,
    "len_mean": 40.0,
    "len_p10": 20.0,
    "len_p50": 40.0,
    "len_p90": 60.0,
    "score_len_corr": 0.1,
}


def level(name: str) -> float:
    """Of a metric."""
    return LEVELS.get(name, 0.5)


def write_logs(folder: Path, rows: int) -> list[Path]:
    """The same run as the Trainer keeps it, and as our journal with every metric in it."""
    values = {key: column.tolist() for key, column in columns(rows).items()}
    history = [{**{key: column[i] for key, column in values.items()}, "step": i + 1} for i in range(rows)]
    state = folder / "trainer_state.json"
    state.write_text(json.dumps({"log_history": history}, indent=2))
    lines = folder / "history.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in history))
    rng = np.random.default_rng(1)
    noise = {name: (level(name) * (1 + 0.05 * rng.normal(size=rows))).tolist() for name in METRICS}
    journal = folder / "diagnostics.jsonl"
    with journal.open("w") as file:
        for i in range(rows):
            file.write(record_line(Record(i + 1, {name: column[i] for name, column in noise.items()})))
    return [state, lines, journal]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        for path in write_logs(Path(folder), rows):
            began = time.perf_counter()
            cpu = time.process_time()
            diagnosis = diagnose(path)
            read = time.perf_counter() - began
            cpu = time.process_time() - cpu
            page = len(diagnosis.to_html())
            print(
                f"{path.name:<20} {diagnosis.rollouts} rollouts, {len(diagnosis.mapping)} metrics: {read:.2f} s "
                f"({cpu:.2f} s of CPU), page {page / 1e6:.2f} MB, {len(diagnosis.episodes)} findings"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"largest memory of the process, logs written by it included: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
