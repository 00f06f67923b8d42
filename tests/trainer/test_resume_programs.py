"""Resuming as users meet it: two processes, signals from outside, SIGKILL."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rlhf_ext.trainer.checkpoint import damage

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from kills import PHASES, kill_runs, report

TWO_PROCESSES = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
pytestmark = pytest.mark.slow

SAME_RUN = """
import sys
import torch
import test_resume as t
from conftest import *  # the settings of the run
from rlhf_ext.trainer.checkpoint import rollout_file, run_state_file

path, folder, policy, critic, sharding = sys.argv[1:]
settings = t.RUN | dict(
    per_device_train_batch_size=2, steps_per_generation=2, num_iterations=2, max_steps=20, max_completion_length=8,
    learning_rate=1e-3, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, seed=1, critic=critic,
)

def run(name, **kwargs):
    from rlhf_ext import PPOConfig
    trainer = t.trainer_of(policy, PPOConfig(f"{folder}/{name}", **settings), path)
    trainer.train(**kwargs)
    return trainer

whole = run("whole")
assert whole.accelerator.num_processes == 2
for step in (3, 13):
    checkpoint = f"{folder}/whole/checkpoint-{step}"
    t.assert_same_run(whole, run(f"from-{step}", resume_from_checkpoint=checkpoint))
states = [t.json.loads(open(f"{checkpoint}/{run_state_file(rank)}").read()) for rank in (0, 1)]
assert states[0]["loss"] != states[1]["loss"], "the ranks had the same data"
whole.accelerator.wait_for_everyone()
whole.accelerator.end_training()
"""


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "trainer"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def launch(*arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("policy", ["full", "adapter"])
def test_two_processes_resume_inside_a_rollout(policy, tiny_policy_path, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SAME_RUN)
    process = launch(*TWO_PROCESSES, program, tiny_policy_path, tmp_path, policy, "head", "none")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
