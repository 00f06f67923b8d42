"""Speed and memory, side by side.

    python -m benchmarks.speed run --other VENV/bin/python        # all CPU workloads, five pairs
    python -m benchmarks.speed run --only b --pairs 3 --sides ours rloo
    python -m benchmarks.speed run --gpu                           # those for a GPU
    python -m benchmarks.speed table --write docs/bench.md         # the tables of that page

VENV is an environment with TRL 1.12 and otherwise the same packages; `make bench` makes it. Every side is a process that
makes a rollout when it is its turn: A B A B, so that whatever else the machine does meets all of them. The first rollout of
each is not counted.
"""

import argparse
from pathlib import Path


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("--other", default="", help="interpreter with TRL 1.12; without it that side is left out")
    run.add_argument("--only", nargs="+", help="workloads")
    run.add_argument("--sides", nargs="+", help="sides, in the order of their turns; by default ours, rloo, trl-1.12")
    run.add_argument("--gpu", action="store_true", help="the workloads for a GPU")
    run.add_argument("--pairs", type=int, default=5)
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--folder", type=Path, default=Path("bench_models"), help="where the models are kept")
    run.add_argument("--name", help="of the results' file; by default the workload's")
    table = commands.add_parser("table", help="tables of the results")
    table.add_argument("--write", type=Path, help="page to put them into, between its markers")
    arguments = parser.parse_args()
    if arguments.command == "run":
        measure(arguments)
    else:
        from .tables import page

        page(arguments.write)


def measure(arguments: argparse.Namespace) -> None:
    """Measure the workloads that were asked for."""
    from .driver import RESULTS, compare
    from .workloads import CPU, GPU, WORKLOADS

    chosen = [WORKLOADS[name] for name in arguments.only or [w.name for w in (GPU if arguments.gpu else CPU)]]
    for workload in chosen:
        names = arguments.sides or ["ours", "rloo", *(["trl-1.12"] if arguments.other else [])]
        if workload.lora == 0:
            names = [name for name in names if name not in ("ours-adapter", "ours-model")]
        folder = arguments.folder.resolve()
        file = RESULTS / f"speed_{arguments.name or workload.name}.json"
        compare(workload, names, arguments.pairs, folder, arguments.other, arguments.threads, file)
        print(file)


if __name__ == "__main__":
    main()
