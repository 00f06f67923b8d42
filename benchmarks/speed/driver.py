"""Runs the sides in turns."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .floor import matrix_rates, shapes_of
from .machine import describe
from .models import prepare
from .workloads import Workload

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SIDES = {
    "ours": {"program": "trl_116", "critic": "head"},
    "ours-adapter": {"program": "trl_116", "critic": "adapter"},
    "ours-model": {"program": "trl_116", "critic": "model"},
    "rloo": {"program": "trl_116", "critic": None},
    "trl-1.12": {"program": "trl_112", "critic": None},
}
"""Programs and the kind of critic; full fine-tuning always has a critic of its own."""


class Side:
    """
    A side that runs as a process of its own and works only when it is its turn.

    Args:
        name (`str`): Name in `SIDES`.
        python (`str`): Interpreter.
        spec (`dict`): What it trains.
        folder (`Path`): For its files.
        threads (`int`): Of its matrix products.
    """

    def __init__(self, name: str, python: str, spec: dict[str, Any], folder: Path, threads: int):
        self.name = name
        file = folder / f"{name}.json"
        file.write_text(json.dumps({**spec, "side": name, "output_dir": str(folder / name)}), encoding="utf-8")
        self.log = folder / f"{name}.log"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.speed.{SIDES[name]['program']}", str(file)],
            cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log.open("w", encoding="utf-8"),
        )  # fmt: skip
        self.waits = False

    def rollout(self) -> dict[str, Any]:
        """Let it make its next rollout."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.waits:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"cpu"'):
                self.waits = True
                return json.loads(line)
        end = self.log.read_text(encoding="utf-8")[-3000:]
        raise RuntimeError(f"The side {self.name} ended before its rollouts did:\n{end}")

    def close(self) -> None:
        """It has no more turns."""
        self.process.kill()
        self.process.wait()


def specification(workload: Workload, models: dict[str, str], rollouts: int, cuda: bool) -> dict[str, Any]:
    """What every side trains."""
    return {
        **models,
        # Those of one rollout: every rollout of every side has the same, and so the same expected length of its answers.
        "prompts": workload.texts(workload.prompts),
        "sequences": workload.prompts,
        "completion": workload.completion,
        "fixed": workload.fixed,
        "micro_batch": workload.micro_batch,
        "mini_batches": 1,
        "epochs": workload.epochs,
        "lora": workload.lora,
        "dtype": workload.dtype,
        "learning_rate": 1e-5,
        "beta": 0.05,
        "keeps_texts": False,
        "readout": [],
        "checkpointing": cuda,
        "rollouts": rollouts,
        "seed": 0,
        "cuda": cuda,
    }


def compare(
    workload: Workload, names: list[str], pairs: int, folder: Path, other_python: str, threads: int, file: Path
) -> None:
    """
    One warm-up rollout of each side, then `pairs` rollouts each, the sides taking turns.

    Args:
        workload ([`Workload`]): What is measured.
        names (`list[str]`): Sides, in the order of their turns.
        pairs (`int`): Measured rollouts of each.
        folder (`Path`): Where the models are kept.
        other_python (`str`): Interpreter of the environment with TRL 1.12.
        threads (`int`): Of the matrix products.
        file (`Path`): Written after every pair: rows of each side, rates of the matrix product before the pair (torch's,
            and that of [`rlhf_ext.models.products`]), workload, shapes and machine.
    """
    cuda = workload.name.startswith("gpu")
    models = prepare(folder, workload.model, workload.dtype)
    spec = specification(workload, models, pairs + 1, cuda)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    rates: list[dict[str, float]] = []
    own_rates: list[dict[str, float]] = []
    result = {
        "workload": vars(workload),
        "machine": describe() | {"threads": threads},
        "shapes": asdict(shapes_of(models["policy"], workload.lora)),
        "rates": rates,
        "own_rates": own_rates,
        "sides": rows,
    }
    with tempfile.TemporaryDirectory() as temporary:
        sides: list[Side] = []
        try:
            for name in names:
                python = other_python if SIDES[name]["program"] == "trl_112" else sys.executable
                critic = "model" if workload.lora == 0 else SIDES[name]["critic"]
                side = Side(name, python, {**spec, "critic": critic}, Path(temporary), threads)
                sides.append(side)
                # Alone while it loads and warms up.
                print(f"{workload.name} {name} warm-up {summary(side.rollout())}", flush=True)
            for _ in range(pairs):
                for found, own in ((rates, False), (own_rates, True)):
                    found.append(matrix_rates(workload, models["policy"], threads, own))
                pair = {side.name: side.rollout() for side in sides}
                for name, row in pair.items():
                    rows[name].append(row)
                    print(f"{workload.name} {name} {summary(row)}", flush=True)
                file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        finally:
            for side in sides:
                side.close()


def summary(row: dict[str, Any]) -> str:
    """A rollout in a line."""
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in row["cpu"].items())
    tokens = sum(row["completion_lengths"])
    peak = max(row["peak_bytes"].values()) / 2**30
    return f"{sum(row['cpu'].values()):.1f} CPU s ({phases}), {tokens} tokens, {peak:.2f} GiB"
