"""The lab of the diagnostics: small PPO runs that fail in known ways, what really happened in them, and who saw it.

    python -m benchmarks.failures run --jobs 2 --minutes 60   # make runs that do not exist yet
    python -m benchmarks.failures labels                      # what the oracle says of each run
    python -m benchmarks.failures table --split tune          # what the diagnostics and two baselines say
"""

import argparse

from .produce import run
from .recipes import RECIPES


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.failures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="make runs that do not exist yet")
    runner.add_argument("--jobs", type=int, default=1, help="processes; each keeps one core busy")
    runner.add_argument("--minutes", type=float, default=60, help="start no run later than this")
    runner.add_argument("--split", choices=["tune", "test", "all"], default="tune")
    runner.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="RECIPE")
    runner.set_defaults(action=run)
    return parser


def main() -> None:
    """Do what the command line says."""
    arguments = make_parser().parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
