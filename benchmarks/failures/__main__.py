"""The lab of the diagnostics: small PPO runs that fail in known ways, what really happened in them, and who saw it.

python -m benchmarks.failures run --jobs 2 --minutes 60   # make runs that do not exist yet
python -m benchmarks.failures labels                      # what the oracle says of each run
python -m benchmarks.failures table --split tune          # what the diagnostics and two baselines say
python -m benchmarks.failures table --write docs/lab.md   # the tables of both halves, between the markers of that page
python -m benchmarks.failures run --split demo            # the second world
python -m benchmarks.failures table --split demo --write docs/lab_demo.md
python -m benchmarks.failures plots --output docs/failures # the images of the pages on each mode
python -m benchmarks.failures run --split test --act       # the same with diagnostics="act"
python -m benchmarks.failures act --write docs/lab.md     # what acting saved and cost
python -m benchmarks.failures bound                       # how early the gold score alone could tell of hacking
python -m benchmarks.failures accept                      # what the test of the verdicts expects from now on, and what
                                                          # the diagnostics say of how often they are right
"""

import argparse
from pathlib import Path

from .recipes import RECIPES, split_of
from .replay import write_verdicts
from .stored import RUNS, read_rows

START, END = "<!-- results: start -->", "<!-- results: end -->"
DEMO_START, DEMO_END = "<!-- second world: start -->", "<!-- second world: end -->"
ACT_START, ACT_END = "<!-- acting: start -->", "<!-- acting: end -->"


def make_runs(arguments: argparse.Namespace) -> None:
    """Make missing runs."""
    from .produce import run

    run(arguments.split, arguments.recipes, arguments.jobs, arguments.minutes, arguments.act)


def list_labels(arguments: argparse.Namespace) -> None:
    """Print what the oracle says of each run."""
    from .labels import describe

    for path in sorted(RUNS.glob(f"{arguments.split}/*/*/oracle.jsonl.gz")):
        rows = read_rows(path)
        last = rows[-1] if "gold" in rows[-1] else rows[-2]
        numbers = " ".join(f"{n} {last[n]:.2f}" for n in ("gold", "proxy", "kl", "duplicates", "mc_ev"))
        split, name, seed = path.parts[-4:-1]
        peak = max(row["gold"] for row in rows if "gold" in row)
        print(f"{split} {name} {seed}: {describe(name, rows)} | end: {numbers}, gold peak {peak:.2f}")


def print_table(arguments: argparse.Namespace) -> None:
    """Print the tables of a split, or put those of both halves, or of the second world, into a page."""
    from .table import demo_page, lead_table, page, recall_table, results, run_table

    if arguments.write and arguments.split == "demo":
        _put(arguments.write, DEMO_START, DEMO_END, demo_page(RUNS))
        return
    if arguments.write:
        _put(arguments.write, START, END, page(RUNS))
        return
    runs = results(RUNS / arguments.split)
    tables = [recall_table(runs), lead_table(runs), *([run_table(runs)] if arguments.runs else [])]
    print("\n\n".join(tables))


def draw_plots(arguments: argparse.Namespace) -> None:
    """Write the images of the documentation."""
    from .figures import write_figures

    write_figures(arguments.output)


def print_acting(arguments: argparse.Namespace) -> None:
    """Print what acting saved and cost."""
    from .acting import act_runs_table, act_table, pairs

    found, parts = pairs(), []
    for split, title in (("test", "test half"), ("tune", "tune half")):
        own = [pair for pair in found if split_of(pair.recipe, pair.seed) == split]
        parts += [f"### Acting, {title}", act_table(own), act_runs_table(own)]
    tables = "\n\n".join(parts)
    if arguments.write:
        _put(arguments.write, ACT_START, ACT_END, tables)
    else:
        print(tables)


def print_bound(arguments: argparse.Namespace) -> None:
    """Print what an ideal reader of the gold score could say."""
    from .bound import bound_table

    print(bound_table(RUNS / "tune"))


def _put(path: Path, start: str, end: str, tables: str) -> None:
    """Replace what stands between two markers of a page."""
    text = path.read_text(encoding="utf-8")
    head, tail = text.split(start)[0], text.split(end)[1]
    path.write_text(f"{head}{start}\n{tables}\n{end}{tail}", encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.failures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="make runs that do not exist yet")
    runner.add_argument("--jobs", type=int, default=1, help="processes; each keeps one core busy")
    runner.add_argument("--minutes", type=float, default=60, help="start no run later than this")
    runner.add_argument("--split", choices=["tune", "test", "demo", "all"], default="tune")
    runner.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="RECIPE")
    runner.add_argument("--act", action="store_true", help="failed and healthy runs again, with diagnostics='act'")
    runner.set_defaults(action=make_runs)
    labeller = commands.add_parser("labels", help="what the oracle says of each run")
    labeller.add_argument("--split", choices=["tune", "test", "demo"], default="tune")
    labeller.set_defaults(action=list_labels)
    printer = commands.add_parser("table", help="what the diagnostics and two baselines say")
    printer.add_argument("--split", choices=["tune", "test", "demo"], default="tune")
    printer.add_argument("--runs", action="store_true", help="also one row a run")
    printer.add_argument(
        "--write", type=Path, help="page whose tables of both halves, or of the second world, are replaced"
    )
    printer.set_defaults(action=print_table)
    figures = commands.add_parser("plots", help="one image a mode")
    figures.add_argument("--output", type=Path, required=True, help="folder of the images")
    figures.set_defaults(action=draw_plots)
    acting = commands.add_parser("act", help="what diagnostics='act' saved and cost")
    acting.add_argument("--write", type=Path, help="page whose tables on acting are replaced")
    acting.set_defaults(action=print_acting)
    bound = commands.add_parser("bound", help="how early the gold score alone could tell of hacking")
    bound.set_defaults(action=print_bound)
    accept = commands.add_parser(
        "accept",
        help="take the present verdicts as the right ones, and count how often those on the tune half are",
    )
    accept.set_defaults(action=lambda _: write_verdicts(RUNS))
    return parser


def main() -> None:
    """Do what the command line says."""
    arguments = make_parser().parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
