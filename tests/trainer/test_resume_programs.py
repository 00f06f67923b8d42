"""Resuming as users meet it: two processes, signals from outside, SIGKILL."""

import json
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

from kills import PHASES, kill_runs, report  # noqa: E402

ON_CPU = ROOT / "tests" / "launch" / "on_cpu.py"
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
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize(
    ("zero_stage", "kinds"),
    [(None, "full model"), (None, "lora adapter start head"), (2, "full model lora adapter")],
    ids=["ddp-full", "ddp-lora", "zero2"],
)
def test_two_processes_resume_inside_a_rollout(zero_stage, kinds, tiny_policy_path, tmp_path):
    program, facts = tmp_path / "program.py", tmp_path / "facts.json"
    program.write_text(SAME_RUN)
    options = ("--multi_gpu",) if zero_stage is None else ("--use_deepspeed", "--zero_stage", zero_stage)
    two = ("--num_processes", "2", "--main_process_port", "0", ON_CPU, facts)
    process = launch(*options, *two, program, tiny_policy_path, tmp_path, *kinds.split())
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert {run["zero_stage"] for run in json.loads(facts.read_text())} == {zero_stage}


@pytest.fixture
def recipe(tmp_path, tiny_policy_path, tiny_reward_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(16)))
    settings = {
        "model_name_or_path": tiny_policy_path, "reward_model": tiny_reward_path, "dataset_name": str(data),
        "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "steps_per_generation": 2,
        "num_iterations": 2, "max_steps": 60, "max_completion_length": 4, "beta": 0.1, "save_steps": 7, "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "dtype": "float32", "use_peft": True,
        "lora_target_modules": "all-linear",
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    ("interrupt", "processes"),
    [(signal.SIGINT, ()), (signal.SIGTERM, TWO_PROCESSES)],
    ids=["ctrl-c", "sigterm-to-two-processes"],
)
def test_an_interrupted_program_saves_and_the_same_command_goes_on(interrupt, processes, recipe, tmp_path):
    arguments = (*processes, ROOT / "trainers" / "ppo.py", "--config", recipe)
    process = launch(*arguments)
    while not (tmp_path / "out" / "checkpoint-7").is_dir():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)
    # Ctrl-C reaches the launcher and what it started.
    os.killpg(process.pid, interrupt) if interrupt == signal.SIGINT else process.send_signal(interrupt)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    (step,) = {line.split()[2] for line in err.splitlines() if line.startswith("Saved step")}
    assert 7 <= int(step) < 60
    assert damage(str(tmp_path / "out" / f"checkpoint-{step}")) is None
    process = launch(*arguments, "--resume_from_checkpoint", "true")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert "Policy saved to" in out
    steps = [
        row["step"]
        for row in json.loads((tmp_path / "out/checkpoint-60/trainer_state.json").read_text())["log_history"]
    ]
    assert steps == list(range(4, 61, 4))


def test_killed_runs_resume_to_the_same_bits(tmp_path):
    kills = kill_runs(tmp_path, len(PHASES), seed=0)
    assert {kill.moment.phase for kill in kills} == set(PHASES), report(kills)
    assert not any(kill.difference for kill in kills), report(kills)
