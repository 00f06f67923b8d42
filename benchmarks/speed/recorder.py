"""What a side prints of each rollout. Standard library only: it also runs in the environment of the other side."""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

PHASES = ("other", "generate", "score", "update")


class Recorder:
    """
    Seconds and peak memory of each phase of a rollout, one line of JSON a rollout.

    After each line it waits for one on the standard input, so that sides can take turns on the same cores.

    Args:
        cuda (`bool`): Whether memory is that of the GPU instead of what is resident.
    """

    def __init__(self, cuda: bool = False):
        self.cuda = cuda
        self.phase = "other"
        self.is_open = False
        self._reset()

    def begin(self, phase: str) -> None:
        """The phase so far ends and another begins."""
        self._close()
        self.phase = phase
        self.is_open = True

    def count(self, prompt_lengths: list[int], completion_lengths: list[int]) -> None:
        """Tokens of the rollout's sequences."""
        self.note(prompt_lengths=prompt_lengths, completion_lengths=completion_lengths)

    def note(self, **what: Any) -> None:
        """Something else that is printed with the rollout."""
        self.lengths |= what

    def finish(self) -> None:
        """The rollout ends: print it, and wait for leave to go on, or end with who gives it."""
        print(json.dumps(self.row()), flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self._reset()

    def row(self) -> dict[str, Any]:
        """What the rollout took; it ends here."""
        self._close()
        cost = {"cpu": dict(self.cpu), "wall": dict(self.wall), "peak_bytes": dict(self.peak)}
        return {**cost, **self.lengths}

    def _reset(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self.peak: dict[str, int] = defaultdict(int)
        self.lengths: dict[str, Any] = {}
        self.phase, self.is_open = "other", False
        self._mark()

    def _mark(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            # The kernel's high-water mark of resident memory starts again from what is resident now.
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def _close(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        else:
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        self.cpu[self.phase] += time.process_time() - self._cpu
        self.wall[self.phase] += time.perf_counter() - self._wall
        self.peak[self.phase] = max(self.peak[self.phase], peak)
        self._mark()
