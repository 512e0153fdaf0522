"""Charts as SVG, for a page without other files. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WIDTH, _HEIGHT = 720, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 34
_MAX_VALUE = 1e300
"""Larger values are left out: their range would overflow. So is NaN."""
_STEPS = (1, 2, 2.5, 5, 10)
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")


@dataclass(frozen=True, slots=True)
class Series:
    """Named points, in order of x; values that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, approximately `about` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    if not math.isfinite(rough) or rough == 0:
        return [low]
    power = 10 ** math.floor(math.log10(rough))
    step = next(step * power for step in _STEPS if step * power >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, first + 3 * about) if n * step <= high + step * 1e-9]


def chart(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    *,
    marks: Sequence[float] = (),
    bars: bool = False,
) -> str:
    """A chart of lines with points, or of bars, as HTML; `marks` are x of dashed vertical lines.

    Returns an empty text if there is nothing to draw.
    """
    finite = [
        Series(
            one.name,
            [(x, y) for x, y in one.points if abs(x) <= _MAX_VALUE and abs(y) <= _MAX_VALUE],
        )
        for one in series
    ]
    xs = [x for one in finite for x, _ in one.points]
    ys = [y for one in finite for _, y in one.points]
    if not xs:
        return ""
    x_range = _padded(min(xs), max(xs), least=0.5 if bars else 0.0)
    y_range = _padded(min(0.0, *ys), max(0.0, *ys)) if bars else _padded(min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = _fraction(x, x_range) * (_WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, _HEIGHT - _BOTTOM - _fraction(y, y_range) * (
            _HEIGHT - _TOP - _BOTTOM
        )

    parts = [_axes(x_range, y_range, (x_name, y_name), at)]
    parts += [
        f'<line class="mark" x1="{at(x, 0)[0]:.1f}" x2="{at(x, 0)[0]:.1f}" y1="{_TOP}"'
        f' y2="{_HEIGHT - _BOTTOM}"/>'
        for x in marks
        if x_range[0] <= x <= x_range[1]
    ]
    for index, one in enumerate(finite):
        colour = COLOURS[index % len(COLOURS)]
        places = [at(x, y) for x, y in one.points]
        parts.append(_bars(places, at(0, 0)[1], colour) if bars else _line(places, colour))
    legend = "".join(
        f'<span><i style="background:{COLOURS[index % len(COLOURS)]}"></i>{escape(one.name)}</span>'
        for index, one in enumerate(finite)
    )
    drawn = "".join(parts)
    label = escape(f"{y_name} over {x_name}")
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{drawn}</svg><figcaption>{legend}</figcaption></figure>"
    )


def tick_text(value: float) -> str:
    """The label of a tick, without trailing zeros."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):  # noqa: PLR2004 - beyond, digits mislead
        return f"{value:.3g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def _axes(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    names: tuple[str, str],
    at: Callable[[float, float], tuple[float, float]],
) -> str:
    x_name, y_name = names
    low = _HEIGHT - _BOTTOM
    parts = []
    for value in ticks(*y_range, about=4):
        _, y = at(x_range[0], value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(value)}</text>'
        )
    for value in ticks(*x_range, about=7):
        x, _ = at(value, y_range[0])
        parts.append(
            f'<text x="{x:.1f}" y="{low + 15}" text-anchor="middle">{tick_text(value)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{low}" y2="{low}"/>'
        f'<text class="name" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" text-anchor="end">'
        f"{escape(x_name)}</text>"
        f'<text class="name" x="2" y="{_TOP - 3}">{escape(y_name)}</text>'
    )
    return "".join(parts)


def _line(places: list[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in places)
    return f'<g fill="{colour}"><polyline points="{path}" fill="none" stroke="{colour}"/>{dots}</g>'


def _bars(places: list[tuple[float, float]], zero: float, colour: str) -> str:
    room = (_WIDTH - _LEFT - _RIGHT) / max(1, len(places))
    width = max(1.0, min(18.0, room * 0.6))
    drawn = "".join(
        f'<rect x="{x - width / 2:.1f}" y="{min(y, zero):.1f}" width="{width:.1f}"'
        f' height="{abs(zero - y):.1f}"/>'
        for x, y in places
    )
    return f'<g fill="{colour}">{drawn}</g>'


def _padded(low: float, high: float, least: float = 0.0) -> tuple[float, float]:
    room = max((high / 2 - low / 2) * 0.08, least)
    if high == low:
        room = max(room, abs(high) * 0.1, 0.5)
    below = low if low == 0 and not least else low - room
    return below, high + room


def _fraction(value: float, limits: tuple[float, float]) -> float:
    """Position of a value between the limits, 0 to 1; halved, as their distance may overflow."""
    low, high = limits
    span = high / 2 - low / 2
    return (value / 2 - low / 2) / span if span else 0.5
