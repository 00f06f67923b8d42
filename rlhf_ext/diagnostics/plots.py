"""Curves as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, _TITLE = 470, 170, 22
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 18, 22
# Width of a character of a label.
_CHARACTER = 7
# A curve that falls by this factor shows nothing of its end on a linear axis.
_LOG_FROM = 50.0
# An image finds no style sheet beside it. Colours are readable on white and on black.
_IMAGE_STYLE = """
text { font-family: sans-serif; fill: #808890; } .title { font-size: 12px; } .tick, .mark { font-size: 10px; }
.grid { stroke: #80889040; } .curve { fill: none; stroke: #3d7fc4; stroke-width: 1.5; } .point { fill: #3d7fc4; }
.target { stroke: #808890; stroke-dasharray: 5 4; } .lost { stroke: #d0353c; stroke-width: 2; }
.band { opacity: .1; } .warn .band { fill: #c27500; } .warn .edge { stroke: #c27500; } .warn .mark { fill: #c27500; }
.critical .band { fill: #d0353c; } .critical .edge { stroke: #d0353c; } .critical .mark { fill: #d0353c; }
"""


class Mark(NamedTuple):
    """A finding on a curve, from step to step."""

    label: str
    tooltip: str
    severity: str
    first_step: int
    last_step: int


class Axis(NamedTuple):
    """
    A range of values on a range of pixels.

    Args:
        low, high (`float`): The values; `high` is above `low`.
        start, end (`float`): The pixels that they have.
        log (`bool`): Whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        position, low, high = value, self.low, self.high
        if self.log:
            position, low, high = math.log(max(value, self.low)), math.log(self.low), math.log(self.high)
        return self.start + (position - low) / (high - low) * (self.end - self.start)


def plot(
    steps: Sequence[int],
    values: Sequence[float],
    marks: Sequence[Mark] = (),
    target: float | None = None,
    label: str = "",
) -> str:
    """
    A curve with the findings that concern it.

    Args:
        steps (`list[int]`): Of the points.
        values (`list[float]`): Of the points; what is not finite is a tick at the top.
        marks (`list[Mark]`): Bands on the curve.
        target (`float`, *optional*): A level that the run was to hold.
        label (`str`): For readers of a screen.
    """
    finite = [value for value in values if math.isfinite(value)]
    x = Axis(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1, LEFT, WIDTH - RIGHT)
    y = _value_axis(finite, target)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">',
        *_bands(marks, x),
        *_grid(x, y),
        _target(target, y) if target is not None else "",
        *_curve(steps, values, x, y),
        *_not_finite(steps, values, x),
        "</svg>",
    ]
    return "".join(parts)


def image(plots: Mapping[str, str], columns: int = 1, style: str = "") -> str:
    """
    Plots under their titles as one SVG file, which needs no style sheet.

    Args:
        plots (`dict[str, str]`): Title -> what [`plot`] gave.
        columns (`int`, *optional*, defaults to `1`): Plots beside each other.
        style (`str`, *optional*): Further rules.
    """
    width, height = columns * WIDTH, math.ceil(len(plots) / columns) * (HEIGHT + _TITLE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><style>{_IMAGE_STYLE}{style}</style>'
    ]
    for place, (title, picture) in enumerate(plots.items()):
        left, top = place % columns * WIDTH, place // columns * (HEIGHT + _TITLE)
        beside = f'x="{left}" ' if left else ""
        at = f'<svg {beside}y="{top + _TITLE}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(f'<text class="title" x="{left + 4}" y="{top + 15}">{escape(title)}</text>')
        parts.append(picture.replace("<svg ", at, 1))
    return "".join([*parts, "</svg>\n"])


def _value_axis(finite: list[float], target: float | None) -> Axis:
    shown = [*finite, *([target] if target is not None else [])] or [0.0]
    low, high = min(shown), max(shown)
    if low > 0 and high / low > _LOG_FROM:
        return Axis(low, high, HEIGHT - BOTTOM, TOP, log=True)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, HEIGHT - BOTTOM, TOP)


def ticks(axis: Axis, count: int) -> list[float]:
    """Round numbers on a linear axis, powers of ten on a logarithmic one."""
    if axis.log:
        first, last = math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high))
        every = max(1, (last - first) // count + 1)
        return [10.0**power for power in range(first, last + 1, every)]
    rough = (axis.high - axis.low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next((m for m in (1, 2, 5) if m * unit >= rough), 10)
    first = math.ceil(axis.low / step)
    return [step * i for i in range(first, math.floor(axis.high / step) + 1)]


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value in ticks(y, 3):
        at = f"{y.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{at}" dy="3" text-anchor="end">{value:.3g}</text>')
    for value in ticks(x, 5):
        if value == round(value):
            at = f"{x.at(value):.1f}"
            parts.append(f'<text class="tick" x="{at}" y="{HEIGHT - 7}" text-anchor="middle">{value:.0f}</text>')
    return parts


def _bands(marks: Sequence[Mark], x: Axis) -> list[str]:
    """Bands from left to right, their labels beside each other where they begin together."""
    parts = []
    free = 0.0
    for mark in sorted(marks, key=lambda mark: mark.first_step):
        at = max(x.at(max(mark.first_step, x.low)), free)
        parts.append(_band(mark, x, at))
        free = at + _CHARACTER * (len(mark.label) + 1)
    return parts


def _band(mark: Mark, x: Axis, label_at: float) -> str:
    start, end = x.at(max(mark.first_step, x.low)), x.at(min(mark.last_step, x.high))
    # The label stands inside the plot at either end.
    anchor, at = ("start", label_at) if label_at < WIDTH - 40 else ("end", WIDTH - 3.0)
    return (
        f'<g class="{mark.severity.lower()}"><title>{escape(mark.tooltip)}</title>'
        f'<rect class="band" x="{start:.1f}" y="{TOP}" width="{max(end - start, 2):.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/>'
        f'<line class="edge" x1="{start:.1f}" x2="{start:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="mark" x="{at:.1f}" y="{TOP - 5}" text-anchor="{anchor}">{escape(mark.label)}</text></g>'
    )


def _target(target: float, y: Axis) -> str:
    at = f"{y.at(target):.1f}"
    return (
        f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{at}" dy="-3" text-anchor="end">target</text>'
    )


def _curve(steps: Sequence[int], values: Sequence[float], x: Axis, y: Axis) -> list[str]:
    """Lines between neighbours that are finite; a point for one that stands alone."""
    parts: list[str] = []
    stretch: list[str] = []
    for step, value in [*zip(steps, values, strict=True), (0, math.nan)]:
        if math.isfinite(value):
            stretch.append(f"{x.at(step):.1f},{y.at(value):.1f}")
        elif len(stretch) == 1:
            cx, _, cy = stretch.pop().partition(",")
            parts.append(f'<circle class="point" cx="{cx}" cy="{cy}" r="2"/>')
        elif stretch:
            parts.append(f'<polyline class="curve" points="{" ".join(stretch)}"/>')
            stretch = []
    return parts


def _not_finite(steps: Sequence[int], values: Sequence[float], x: Axis) -> list[str]:
    return [
        f'<line class="lost" x1="{x.at(step):.1f}" x2="{x.at(step):.1f}" y1="{TOP}" y2="{TOP + 8}">'
        f"<title>{value} at step {step}</title></line>"
        for step, value in zip(steps, values, strict=True)
        if not math.isfinite(value)
    ]
