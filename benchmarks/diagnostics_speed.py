"""How fast the diagnostics read a long log, and how much they remember of it.

    python benchmarks/diagnostics_speed.py                # 10 000 rollouts with every metric

CPU time of `Diagnostics.observe` over noise around a healthy run, and the size of the saved state at a tenth and
at the end of it, which must not grow.
"""

import argparse
import json
import time

import numpy as np

from rlhf_ext.diagnostics import METRICS, Diagnostics, Record, RunSettings

PROBES = {"quality", "eval_score", "distinct2", "dup_frac", "rep4"}

SMALL = {"kl_update", "ratio_first_dev", "rollout_gap", "trunc_rate", "pg_clipfrac", "value_clipfrac", *PROBES}


def records(rows: int) -> list[Record]:
    """Every metric, positive, noisy and without an alarm, in every rollout; what a probe measures in every tenth."""
    rng = np.random.default_rng(0)
    columns = {
        name: np.exp(rng.normal(-5 if name in SMALL else 0, 0.2, rows)) for name in METRICS if name != "nonfinite"
    }
    return [
        Record(row + 1, {n: float(c[row]) for n, c in columns.items() if row % 10 == 0 or n not in PROBES})
        for row in range(rows)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    rows = parser.parse_args().rows
    rollouts = records(rows)
    for planned in (None, rows):
        diagnostics = Diagnostics(RunSettings(planned_rollouts=planned, kl_target=6.0, kl_unit="sequence"))
        start, sizes = time.process_time(), {}
        for row, record in enumerate(rollouts, 1):
            diagnostics.observe(record)
            if row in (rows // 10, rows):
                before = time.process_time()
                sizes[row] = len(json.dumps(diagnostics.state_dict())) // 1024
                start += time.process_time() - before
        seconds = time.process_time() - start
        told = ", ".join(f"{size} KiB of state after {row}" for row, size in sizes.items())
        print(f"planned {planned}: {seconds:.2f} s for {rows} rollouts, {1e6 * seconds / rows:.0f} us each; {told}")


if __name__ == "__main__":
    main()
