"""Resuming as users meet it: two processes, signals from outside, SIGKILL."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


TWO_PROCESSES = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
pytestmark = pytest.mark.slow

SAME_RUN = """
import json
import sys

import test_resume as t
from rlhf_ext import PPOConfig
from rlhf_ext.trainer.checkpoint import run_state_file

path, folder, *kinds = sys.argv[1:]

def run(policy, critic, name, **kwargs):
    args = PPOConfig(
        f"{folder}/{policy}-{critic}-{name}", per_device_train_batch_size=2, steps_per_generation=2, num_iterations=2,
        max_completion_length=8, learning_rate=1e-3, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
        seed=1, critic=critic, **t.RUN,
    )
    trainer = t.trainer_of(policy, args, path)
    trainer.train(**kwargs)
    return trainer

for policy, critic in zip(kinds[::2], kinds[1::2]):
    whole = run(policy, critic, "whole")
    assert whole.accelerator.num_processes == 2
    for step in (3, 13):
        checkpoint = f"{folder}/{policy}-{critic}-whole/checkpoint-{step}"
        t.assert_same_run(whole, run(policy, critic, f"from-{step}", resume_from_checkpoint=checkpoint))
    states = [json.load(open(f"{checkpoint}/{run_state_file(rank)}")) for rank in (0, 1)]
    assert states[0]["loss"] != states[1]["loss"], "the ranks had the same data"
# As in the programs.
whole.accelerator.wait_for_everyone()
whole.accelerator.end_training()
"""


def environment():
    path = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "trainer"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    )
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def launch(*arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kinds", ["full model", "lora adapter start head"])
def test_two_processes_resume_inside_a_rollout(kinds, tiny_policy_path, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SAME_RUN)
    process = launch(*TWO_PROCESSES, program, tiny_policy_path, tmp_path, *kinds.split())
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
