"""Starts a program as a user does, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
ON_CPU = str(Path(__file__).parent / "on_cpu.py")


def start(command: list[str]) -> subprocess.Popen:
    # The shell's own path is kept: the package may be imported from the checkout or from an installation.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen, timeout: int = 300) -> str:
    """What it printed, once it has ended well; a launcher that hangs takes its workers with it."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # The workers have sessions of their own, and the launcher ends them when it is asked to, by force after 30 seconds.
        process.terminate()
        printed, _ = process.communicate(timeout=60)
        raise AssertionError(f"no end after {timeout} s:\n{printed[-6000:]}") from None
    assert process.returncode == 0, printed[-6000:]
    return printed


def accelerate(config: str, *arguments: str) -> list[str]:
    """`accelerate launch` with one of the shipped configurations."""
    path = str(CONFIGS / "accelerate" / f"{config}.yaml")
    return ["accelerate.commands.launch", "--config_file", path, *arguments]


def launch(config: str, folder: Path, program: str, *arguments: str) -> list[dict]:
    """
    Run a program with two processes, or with one under `single`.

    Returns:
        What `on_cpu.py` wrote of each of the program's trainers.
    """
    facts = folder / "facts.json"
    # Port 0: accelerate takes a free one just before it starts the processes.
    two = [] if config == "single" else ["--num_processes", "2", "--main_process_port", "0"]
    finish(start([*accelerate(config, *two), ON_CPU, str(facts), program, *arguments]))
    return json.loads(facts.read_text())


def torchrun(folder: Path, program: str, *arguments: str) -> list[dict]:
    """The same by PyTorch's own launcher."""
    facts = folder / "facts.json"
    two = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finish(start([*two, ON_CPU, str(facts), program, *arguments]))
    return json.loads(facts.read_text())
