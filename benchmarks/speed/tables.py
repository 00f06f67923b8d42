"""Tables of the results, and the page they stand in."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from .driver import RESULTS
from .floor import Shapes, operations
from .growth import exponent
from .workloads import CPU, GPU

START, END = "<!-- speed: start -->", "<!-- speed: end -->"
PHASES = ("generate", "score", "update")
CRITICS = {"ours": "head", "ours-adapter": "adapter", "ours-model": "model"}
OTHERS = ("trl-1.12", "rloo")


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and the smallest and largest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def seconds(row: dict[str, Any], clock: str = "cpu") -> float:
    """Of a rollout."""
    return sum(row[clock].values())


def peak(row: dict[str, Any]) -> int:
    """Highest memory of a rollout, in bytes."""
    return max(row["peak_bytes"].values())


def all_tokens(row: dict[str, Any]) -> int:
    """Of a rollout's prompts and answers."""
    return sum(row["prompt_lengths"]) + sum(row["completion_lengths"])


def ratio_rows(result: dict[str, Any]) -> list[str]:
    """Each of our sides against each other side: one row, of ratios pair by pair."""
    rows, sides = [], result["sides"]
    for ours in (name for name in sides if name in CRITICS):
        for other in (name for name in OTHERS if name in sides):
            pairs = list(zip(sides[ours], sides[other], strict=True))
            cpu = [seconds(a) / seconds(b) for a, b in pairs]
            wall = [seconds(a, "wall") / seconds(b, "wall") for a, b in pairs]
            memory = [peak(a) / peak(b) for a, b in pairs]
            tokens = [all_tokens(a) / all_tokens(b) for a, b in pairs]
            per_token = [ratio / share for ratio, share in zip(cpu, tokens, strict=True)]
            cells = [*map(spread, (cpu, per_token, wall, memory)), f"{median(tokens):.2f}", str(len(pairs))]
            rows.append(f"| {result['workload']['name']} | {ours} / {other} | {' | '.join(cells)} |")
    return rows


def phase_rows(result: dict[str, Any]) -> list[str]:
    """Every side: CPU seconds an episode by phase, tokens, peak memory."""
    rows = []
    for name, measured in result["sides"].items():
        episodes = len(measured[0]["completion_lengths"])
        phases = [median([row["cpu"].get(phase, 0.0) / episodes for row in measured]) for phase in PHASES]
        total = median([seconds(row) / episodes for row in measured])
        tokens = median([sum(row["completion_lengths"]) / episodes for row in measured])
        memory = median([peak(row) for row in measured]) / 2**30
        cells = [f"{value:.3f}" for value in (total, *phases)] + [f"{tokens:.0f}", f"{memory:.2f}"]
        rows.append(f"| {result['workload']['name']} | {name} | {' | '.join(cells)} |")
    return rows


def floor_rows(result: dict[str, Any]) -> list[str]:
    """
    Our sides: time over the floor, by phase, with the rates of the matrix product that were measured before the pair:
    torch's, and this project's where there is one.
    """
    rows, workload, shapes = [], result["workload"], Shapes(**result["shapes"])
    for name in (name for name in result["sides"] if name in CRITICS):
        critic = CRITICS[name] if workload["lora"] else "model"
        for product, key in (("torch.mm", "rates"), ("own", "own_rates")):
            measured = result.get(key)
            if not measured:
                continue
            over: dict[str, list[float]] = {phase: [] for phase in PHASES}
            for row, rates in zip(result["sides"][name], measured, strict=True):
                lengths = row["prompt_lengths"], row["completion_lengths"]
                for phase, count in operations(shapes, *lengths, workload["epochs"], critic).items():
                    over[phase].append(row["cpu"][phase] * rates[phase] / count)
            medians = [median([rate[phase] for rate in measured]) / 1e9 for phase in PHASES]
            cells = [spread(over[phase]) for phase in PHASES] + [", ".join(f"{rate:.0f}" for rate in medians)]
            rows.append(f"| {workload['name']} | {name} | {product} | {' | '.join(cells)} |")
    return rows


def tables(results: list[dict[str, Any]]) -> str:
    """Workloads, ratios, phases and floors."""
    machine = results[0]["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "trl", "peft"))
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread"
    parts = [f"Measured on {where}; {versions}; the other side has TRL 1.12.0."]
    parts.append(_table(["workload", "", "model", "sequences", "micro-batch", "epochs", "LoRA"], _workloads(results)))
    parts.append(
        "Ratios, median of the pairs (smallest to largest); CPU seconds of a rollout, the same by token of prompt "
        "and answer, wall seconds and peak memory; and of the tokens themselves.\n\n"
        + _table(
            ["workload", "sides", "CPU", "CPU a token", "wall", "memory", "tokens", "pairs"],
            _each(ratio_rows, results),
        )
    )
    parts.append(
        "CPU seconds an episode, medians.\n\n"
        + _table(["workload", "side", "all", *PHASES, "tokens of an answer", "peak GiB"], _each(phase_rows, results))
    )
    parts.append(
        "Time over the floor, and the rate of the matrix product at the shapes of the phases, in GFLOP/s.\n\n"
        + _table(["workload", "side", "product", *PHASES, "rates"], _each(floor_rows, results))
    )
    return "\n\n".join([*parts, growth_table()]).strip()


def growth_table() -> str:
    """Exponents of time and memory, and the points they are fitted to."""
    file = RESULTS / "speed_growth.json"
    if not file.is_file():
        return ""
    rows = []
    for name, points in json.loads(file.read_text(encoding="utf-8"))["points"].items():
        sizes = [point["size"] for point in points]
        costs = [[point[cost] for point in points] for cost in ("seconds", "bytes")]
        cells = [
            ", ".join(map(str, sizes)),
            *(f"{exponent(sizes, cost):.2f}" for cost in costs),
            ", ".join(f"{cost:.2f}" for cost in costs[0]),
            ", ".join(f"{cost / 2**20:.0f}" for cost in costs[1]),
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    columns = ["size", "values", "exponent of time", "of memory", "CPU seconds of a rollout", "MiB of a rollout"]
    return "Growth, on a random model of four layers and 128 dimensions.\n\n" + _table(columns, rows)


def _each(rows: Any, results: list[dict[str, Any]]) -> list[str]:
    return [row for result in results for row in rows(result)]


def _workloads(results: list[dict[str, Any]]) -> list[str]:
    names = ("name", "what", "model", "prompts", "micro_batch", "epochs", "lora")
    return [f"| {' | '.join(str(result['workload'][name]) for name in names)} |" for result in results]


def _table(columns: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *rows])


def page(file: Path | None) -> None:
    """Print the tables, and put them between the markers of a page."""
    found = [RESULTS / f"speed_{workload.name}.json" for workload in (*CPU, *GPU)]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in found if path.is_file()]
    text = tables(results)
    print(text)
    if file is not None:
        before, _, rest = file.read_text(encoding="utf-8").partition(START)
        _, _, after = rest.partition(END)
        file.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")
