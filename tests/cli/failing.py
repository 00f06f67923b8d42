"""A program to launch that needs no torch: it ends as its first argument says."""

import os
import signal
import sys
from pathlib import Path

from rlhf_ext.cli.exits import run_program


def main() -> None:
    how, *rest = sys.argv[1:]
    if how == "write":
        Path(rest[0]).write_text("\n".join([os.environ["ACCELERATE_MIXED_PRECISION"], *rest[1:]]))
    elif how == "refuse":
        raise ValueError(f"batch_size={rest[0]} is too small. Raise it.")
    elif how == "break":
        raise RuntimeError("no such tensor")
    elif how == "exit":
        sys.exit(int(rest[0]))
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "wait":
        print("ready", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        signal.pause()


if __name__ == "__main__":
    run_program(main)
