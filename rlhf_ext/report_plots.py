"""Plots of a report card as inline SVG: calibration, margins, score against length. Standard library only."""

from collections.abc import Iterable, Sequence
from html import escape

from .diagnostics.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, ticks
from .pair_statistics import ReliabilityBin

_LARGEST_MARK = 9.0
MOST_POINTS = 1500
"""Points of a scatter plot; of more, every k-th is drawn."""


def calibration_plot(table: Sequence[ReliabilityBin]) -> str:
    """
    How often the model is right at each confidence; on the diagonal it is as often right as it says. A mark's area is the
    share of the pairs.

    Args:
        table (`tuple[ReliabilityBin, ...]`): A [`reliability_table`].
    """
    x, y = _axes((0.5, 1.0), (0.0, 1.0))
    diagonal = (
        f'<line class="target" x1="{x.at(0.5):.1f}" y1="{y.at(0.5):.1f}" x2="{x.at(1):.1f}" y2="{y.at(1):.1f}"/>'
    )
    marks = [
        f'<circle class="point" cx="{x.at(row.confidence):.1f}" cy="{y.at(row.accuracy):.1f}" '
        f'r="{max(2.0, _LARGEST_MARK * row.share**0.5):.1f}"><title>{row.count} pairs: confidence {row.confidence:.3f}, '
        f"accuracy {row.accuracy:.3f}</title></circle>"
        for row in table
        if row.confidence is not None and row.accuracy is not None
    ]
    return _drawn("accuracy against confidence", x, y, [diagonal, *marks])


def margin_plot(margins: Sequence[float], bins: int = 30) -> str:
    """
    Histogram of the margins, with a line at zero: to its left the model is wrong.

    Args:
        margins (`list[float]`): Finite margins, at least one.
        bins (`int`, *optional*, defaults to `30`): Bars.
    """
    low, high = min(*margins, 0.0), max(*margins, 0.0)
    high = high if high > low else low + 1.0
    width = (high - low) / bins
    counts = [0] * bins
    for margin in margins:
        counts[min(int((margin - low) / width), bins - 1)] += 1
    x, y = _axes((low, high), (0.0, float(max(counts))))
    bars = [
        f'<rect class="point" x="{x.at(low + i * width):.1f}" y="{y.at(count):.1f}" '
        f'width="{max(x.at(low + width) - x.at(low) - 1, 0.5):.1f}" height="{y.at(0) - y.at(count):.1f}">'
        f"<title>{count} pairs from {low + i * width:.3g} to {low + (i + 1) * width:.3g}</title></rect>"
        for i, count in enumerate(counts)
        if count
    ]
    zero = f'<line class="lost" x1="{x.at(0):.1f}" x2="{x.at(0):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    return _drawn("number of pairs by margin", x, y, [*bars, zero])


def length_plot(lengths: Sequence[float], scores: Sequence[float]) -> str:
    """
    Score against length, a point a completion.

    Args:
        lengths (`list[float]`): Tokens, at least one.
        scores (`list[float]`): Finite scores, as many.
    """
    every = max(1, -(-len(scores) // MOST_POINTS))
    points = list(zip(lengths, scores, strict=True))[::every]
    x, y = _axes(_range(p[0] for p in points), _range(p[1] for p in points))
    marks = [f'<circle class="point" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="1.5" opacity=".5"/>' for a, b in points]
    return _drawn("score against length in tokens", x, y, marks)


def _range(values: Iterable[float]) -> tuple[float, float]:
    kept = list(values)
    low, high = min(kept), max(kept)
    room = (high - low) * 0.05 or 1.0
    return low - room, high + room


def _axes(x: tuple[float, float], y: tuple[float, float]) -> tuple[Axis, Axis]:
    return Axis(*x, LEFT, WIDTH - RIGHT), Axis(*y, HEIGHT - BOTTOM, TOP)


def _drawn(label: str, x: Axis, y: Axis, marks: list[str]) -> str:
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">']
    for value in ticks(y, 4):
        at = f"{y.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{at}" dy="3" text-anchor="end">{value:.3g}</text>')
    for value in ticks(x, 5):
        parts.append(
            f'<text class="tick" x="{x.at(value):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{value:.3g}</text>'
        )
    return "".join([*parts, *marks, "</svg>"])
