"""A plan as text and as plain data."""

from typing import Any

from .advice import Change
from .plan import PHASES, MemoryPlan

GIB = 2**30
MIB = 2**20
_ROLES = ("policy", "reference", "critic", "reward model", "rollout")
_MOST_CHANGES = 5


def as_text(plan: MemoryPlan, changes: list[Change], notes: list[str]) -> str:
    """
    The table: a row for each thing that a role holds, a column for each phase at its highest moment.

    Args:
        plan ([`MemoryPlan`]):
            The plan.
        changes (list of [`Change`]):
            Settings that lower the peak, the best first.
        notes (`list[str]`):
            What was assumed.
    """
    unit, name = (GIB, "GiB") if plan.peak.bytes >= 4 * GIB else (MIB, "MiB")
    rows = [("", "", *PHASES), *_rows(plan, unit)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"{name} {_per_process(plan)}, at the highest moment of each phase", ""]
    for row in rows:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines += ["", *(f"{phase}: highest at {plan.phase(phase).name}" for phase in PHASES)]
    lines.append(f"peak: {_number(plan.peak.bytes, unit)} {name} in {plan.peak.phase} ({plan.peak.name})")
    if changes:
        lines += ["", f"what would lower the peak, each alone ({name}):"]
        lines += [f"  {_number(change.peak, unit):>8}  {change.setting}" for change in changes[:_MOST_CHANGES]]
    else:
        lines += ["", "no single setting would lower the peak"]
    return "\n".join([*lines, *([""] if notes else []), *(f"note: {note}" for note in notes)])


def as_data(plan: MemoryPlan, changes: list[Change], notes: list[str]) -> dict[str, Any]:
    """The same as plain data, in bytes."""
    phases = {
        phase: {
            "moment": plan.phase(phase).name,
            "bytes": plan.phase(phase).bytes,
            "host_bytes": plan.phase(phase).host_bytes,
            "parts": [vars(part) for part in plan.phase(phase).parts if part.bytes],
        }
        for phase in PHASES
    }
    return {
        "peak": {"bytes": plan.peak.bytes, "phase": plan.peak.phase, "moment": plan.peak.name},
        "phases": phases,
        "changes": [vars(change) for change in changes],
        "prompt_length": plan.settings.prompt_length,
        "notes": notes,
    }


def _per_process(plan: MemoryPlan) -> str:
    settings = plan.settings
    if not settings.on_gpu:
        return "of a process on CPU"
    zero = f" with ZeRO-{settings.zero_stage}" if settings.zero_stage else ""
    return f"on each of {settings.num_gpus} GPUs{zero}" if settings.num_gpus > 1 else f"on one GPU{zero}"


def _rows(plan: MemoryPlan, unit: int) -> list[tuple[str, ...]]:
    sums: dict[tuple[int, str, bool], dict[str, int]] = {}
    for phase in PHASES:
        for part in plan.phase(phase).parts:
            sizes = sums.setdefault((_ROLES.index(part.role), part.what, part.on_host), {})
            sizes[phase] = sizes.get(phase, 0) + part.bytes
    rows: list[tuple[str, ...]] = []
    for (role, what, on_host), sizes in sorted(sums.items(), key=lambda item: item[0][0]):
        if any(sizes.values()):
            label = f"{what} (on the host)" if on_host else what
            rows.append((_ROLES[role], label, *(_number(sizes.get(phase, 0), unit) for phase in PHASES)))
    rows.append(("total", "", *(_number(plan.phase(phase).bytes, unit) for phase in PHASES)))
    if plan.peak.host_bytes:
        rows.append(("on the host", "", *(_number(plan.phase(phase).host_bytes, unit) for phase in PHASES)))
    return rows


def _number(size: int, unit: int) -> str:
    if not size:
        return "-"
    number = size / unit
    return f"{number:.2f}" if unit == GIB else f"{number:.1f}"
