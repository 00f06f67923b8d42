"""`rlhf-ext env`: what is installed here, for a bug report."""

import argparse
import json
import os
import platform
import runpy
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..version import __version__
from .parser import help_formatter

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "huggingface_hub",
    "numpy", "deepspeed", "bitsandbytes", "vllm", "liger-kernel", "matplotlib", "tensorboard", "wandb", "trackio",
)  # fmt: skip
# These are printed. Others may hold a password, such as that of a proxy or of an endpoint.
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "PYTORCH_ALLOC_CONF",
    "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "NCCL_DEBUG", "NCCL_P2P_DISABLE", "RLHF_EXT_DEBUG",
)  # fmt: skip
_SET_OR_NOT = ("HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "WANDB_API_KEY")


def add_command(commands: Any) -> None:
    """Add `env` to the subparsers of the command line."""
    parser = commands.add_parser(
        "env",
        help="versions and devices of this machine, for a bug report",
        description="Print what is installed here and what it runs on. No token or password is printed.",
        epilog="Exit status: 0.",
        formatter_class=help_formatter,
    )
    parser.add_argument("--json", action="store_true", help="print plain data")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, _: list[str]) -> None:
    """
    Print what is installed.

    Args:
        arguments (`argparse.Namespace`):
            What the command knows.
    """
    facts = environment()
    print(
        json.dumps(facts, indent=2)
        if arguments.json
        else "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    )


def environment() -> dict[str, str]:
    """
    What a bug report needs to know. Only PyTorch is imported, and only to ask it for devices.

    Returns:
        `dict[str, str]`: fact -> value, in the order in which to print them.
    """
    facts = {
        "rlhf-ext": __version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "CPU": f"{os.cpu_count()} cores",
        "memory": _memory(),
    }
    facts |= {name: _version(name) for name in PACKAGES}
    facts |= {"PyTorch build": _torch_build(), "devices": _devices(), "accelerate config": _accelerate_config()}
    facts |= {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return facts | {name: "set" for name in _SET_OR_NOT if name in os.environ}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this platform
        return "not known"
    return f"{total / 2**30:.1f} GiB"


def _torch_build() -> str:
    """CUDA, ROCm or CPU, as PyTorch's own build wrote it down."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "none"
    built = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    kinds = {"CUDA": built.get("cuda"), "ROCm": built.get("hip"), "XPU": built.get("xpu")}
    return ", ".join(f"{name} {number}" for name, number in kinds.items() if number) or "CPU"


def _devices() -> str:
    if find_spec("torch") is None:
        return "not known without torch"
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in found)
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "CPU only" if kind is None else f"{torch.accelerator.device_count()} x {kind.type}"


def _accelerate_config() -> str:
    """The user's own configuration, which a launch without --accelerate_config takes; accelerate is not imported."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    path = Path(home).expanduser() / "accelerate" / "default_config.yaml"
    if not path.is_file():
        return "none"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return "\n".join([str(path), *(f"    {line}" for line in lines)])
