"""Makes the runs that do not exist yet."""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from datasets import disable_progress_bars as disable_datasets_bars
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from .acting import is_compared
from .demo import DemoWorld
from .recipes import RECIPES, SEEDS, split_of
from .small import SmallWorld
from .stored import folder_of
from .world import World, run_one

CACHE = Path(__file__).parent / "cache"
WORLDS: dict[str, Callable[[Path], World]] = {"small": SmallWorld, "demo": DemoWorld}


def missing(split: str, recipes: list[str], acts: bool = False) -> list[tuple[str, int]]:
    """
    Runs that do not exist, one of every recipe before the next seed, so that a set stopped at any time is balanced. Those
    that act are wanted where the run that does not exists and shows what they are compared by.
    """
    order = [(name, seed) for seed in range(SEEDS) for name in recipes if split in ("all", split_of(name, seed))]
    wanted = [key for key in order if is_compared(folder_of(*key))] if acts else order
    return [key for key in wanted if not (folder_of(*key, acts) / "records.jsonl.gz").is_file()]


def _start_worker() -> None:
    """Progress bars off; and a worker ends with the command, or it would go on and save what nobody asked for any more."""
    disable_datasets_bars()
    disable_transformers_bars()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _job(name: str, seed: int, acts: bool) -> str:
    started = time.perf_counter(), time.process_time()
    run_one(name, seed, WORLDS[RECIPES[name].world](CACHE), folder_of(name, seed, acts), acts)
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    return f"{name} {seed}: {cpu:.0f} s of processor time, {wall:.0f} s"


def run(split: str, recipes: list[str], jobs: int, minutes: float, acts: bool) -> None:
    """Make missing runs, `jobs` at a time, and start none after `minutes`; exit code 1 if one failed."""
    deadline = time.monotonic() + 60 * minutes
    todo = iter(missing(split, recipes, acts))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        pending: set[Future[str]] = set()
        failed = False
        while True:
            while len(pending) < jobs and time.monotonic() < deadline and (key := next(todo, None)):
                pending.add(pool.submit(_job, *key, acts))
            if not pending:
                sys.exit(failed)
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                failed |= error is not None
                print(repr(error) if error else future.result(), flush=True)
