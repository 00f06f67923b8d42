"""
CPU time of `rlhf_ext.diagnose` and of its report (text and page) for logs of ten thousand rollouts, median of three.

    python benchmarks/diagnose_speed.py [--rows 10000]
"""

import argparse
import json
import resource
import statistics
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

from rlhf_ext import diagnose
from rlhf_ext.diagnostics import METRICS, Record
from rlhf_ext.diagnostics.journal import record_line

REPEATS = 3
# What is measured on held-out prompts, every tenth rollout.
PROBES = {"quality", "eval_score", "distinct2", "dup_frac", "rep4"}


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
    """The same run as the Trainer keeps it and as trackers do, a run of verl, and our journal with every metric in it."""
    values = {key: column.tolist() for key, column in columns(rows).items()}
    history = [{**{key: column[i] for key, column in values.items()}, "step": i + 1} for i in range(rows)]
    state, lines = folder / "trainer_state.json", folder / "history.jsonl"
    state.write_text(json.dumps({"log_history": history}, indent=2))
    lines.write_text("".join(json.dumps(row) + "\n" for row in history))
    console = folder / "verl.log"
    console.write_text("".join(verl_line(i + 1, row) for i, row in enumerate(history)))
    events = folder / "events.out.tfevents.1"
    events.write_bytes(event(b"\x1a\x0dbrain.Event:2") + b"".join(event(*scalars(row)) for row in history))
    rng = np.random.default_rng(1)
    noise = {name: (level(name) * (1 + 0.05 * rng.normal(size=rows))).tolist() for name in METRICS}
    journal = folder / "diagnostics.jsonl"
    with journal.open("w") as file:
        for i in range(rows):
            row = {name: column[i] for name, column in noise.items() if i % 10 == 0 or name not in PROBES}
            file.write(record_line(Record(i + 1, row)))
    return [state, lines, journal, console, events]


def verl_line(step: int, row: dict[str, float]) -> str:
    """As verl prints a step, without what it prints of its speed."""
    shown = {
        "critic/score/mean": row["objective/scores"],
        "critic/rewards/mean": row["objective/rlhf_reward"],
        "actor/reward_kl_penalty": row["objective/kl"] / 50,
        "actor/reward_kl_penalty_coeff": 0.1,
        "actor/entropy": row["policy/entropy_avg"],
        "actor/pg_loss": row["loss/policy_avg"],
        "actor/pg_clipfrac": row["policy/clipfrac_avg"],
        "actor/ppo_kl": row["policy/approxkl_avg"],
        "critic/vf_loss": row["loss/value_avg"],
        "critic/vf_clipfrac": row["val/clipfrac_avg"],
        "response_length/mean": 50.0,
        "response_length/clip_ratio": 0.05,
        "actor/lr": row["lr"],
    }
    return f"step:{step} - " + " - ".join(f"{key}:{value}" for key, value in shown.items()) + "\n"


def event(*fields: bytes) -> bytes:
    """A record of an event file; nothing reads the checksums."""
    data = b"".join(fields)
    return struct.pack("<Q", len(data)) + bytes(4) + data + bytes(4)


def scalars(row: dict[str, float]) -> list[bytes]:
    """The fields of an event: the step, and a summary of all values, tags as transformers' callback writes them."""
    parts = []
    for key, value in row.items():
        if key != "step":
            tag = f"train/{key}".encode()
            body = b"\x0a" + varint(len(tag)) + tag + b"\x15" + struct.pack("<f", value)
            parts.append(b"\x0a" + varint(len(body)) + body)
    summary = b"".join(parts)
    return [b"\x10" + varint(int(row["step"])), b"\x2a" + varint(len(summary)) + summary]


def varint(number: int) -> bytes:
    """Of a protocol buffer."""
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def measure(path: Path) -> None:
    """Print a line for a log."""
    diagnosed, reported = [], []
    for _ in range(REPEATS):
        start = time.process_time()
        diagnosis = diagnose(path)
        read = time.process_time()
        size = len(diagnosis.to_text()) + len(diagnosis.to_html())
        diagnosed.append(read - start)
        reported.append(time.process_time() - read)
    both = statistics.median(map(sum, zip(diagnosed, reported, strict=True)))
    print(
        f"{path.name:<24} {diagnosis.rollouts} rollouts, {len(diagnosis.mapping)} metrics, "
        f"{len(diagnosis.episodes)} findings: {both:.2f} s of CPU ({statistics.median(diagnosed):.2f} s for the "
        f"diagnosis, {statistics.median(reported):.2f} s for a report of {size / 1e6:.1f} MB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        for path in write_logs(Path(folder), rows):
            measure(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"largest memory of the process, logs written by it included: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
