"""Charts as HTML and SVG that stretch to any width. Pure.

Shapes lie in an SVG of 1000 by 1000 units that is stretched to its place; strokes and text do not
stretch with it. Colours are classes of `page_style`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from bt_lightning.cli.render.text import printable
from bt_lightning.cli.report.chart_scale import (
    Scale,
    linear_scale,
    means,
    scale_of,
    thinned,
    tick_labels,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bt_lightning.manage.metric_series import Point

SIDE: Final = 1000
"""Units of both sides of the SVG."""
NUM_COLOURS: Final = 8
MANY_POINTS: Final = 1000
"""A line of more is drawn faintly, under the line of its means over `MEANS` stretches of x."""
MEANS: Final = 200
_BUCKETS: Final = 400
_FEW_POINTS: Final = 60
"""So many points or fewer are dots as well."""
_MARKS: Final = 300
_X_TICKS, _Y_TICKS = 5, 4


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart; `points` in the order of x, values may be NaN or infinite."""

    points: Sequence[Point]
    colour: int = 0
    replaced: Sequence[Sequence[Point]] = ()
    """Stretches that are drawn faintly."""


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of x that is tinted, with a text for those who point at it."""

    low: float
    high: float
    title: str = ""


@dataclass(frozen=True, slots=True)
class ChartMark:
    """A mark at the bottom of a chart, with a text for those who point at it."""

    x: float
    title: str = ""


def line_chart(
    lines: Sequence[Line],
    label: str,
    x_name: str,
    *,
    bands: Sequence[Band] = (),
    marks: Sequence[ChartMark] = (),
    zero: bool = False,
) -> str:
    """Lines over x, as HTML; an empty text if there is no point.

    `label` says to screen readers what it shows. Values that are not finite are marked at the top.
    """
    every = [point for line in lines for part in (line.points, *line.replaced) for point in part]
    if not every:
        return ""
    across = linear_scale([x for x, _ in every])
    up = scale_of([y for _, y in every if math.isfinite(y)], zero=zero)
    parts = [*_bands(bands, across), grid(up)]
    for line in lines:
        css = f"l s{line.colour % NUM_COLOURS}"
        parts += [_path(part, across, up, f"{css} faint") for part in _longest(line.replaced)]
        if len(line.points) > MANY_POINTS:
            parts.append(_path(line.points, across, up, f"{css} all"))
            parts.append(_path(means(line.points, MEANS), across, up, f"{css} mean"))
        else:
            parts.append(_path(line.points, across, up, css))
    parts += _marks(marks, across)
    lost = {round(SIDE * across.at(x)) for x, y in every if not math.isfinite(y)}
    parts += [f'<path class="nan" d="M{x} 0V60"/>' for x in sorted(lost)]
    name = f"{x_name}, log scale of values" if up.is_log else x_name
    return framed("".join(parts), label, axes(across, up, name))


def bar_chart(
    bars: Sequence[tuple[float, float, str]], label: str, x_name: str, *, colour: int = 0
) -> str:
    """Bars (x, height from 0, text for those who point at it), as HTML; empty without bars."""
    finite = [bar for bar in bars if math.isfinite(bar[1])]
    if not finite:
        return ""
    xs = [x for x, _, _ in finite]
    ends = linear_scale(xs)
    room = (ends.high - ends.low) / max(2, len(finite)) / 2
    across = Scale(ends.low - room, ends.high + room)
    up = scale_of([y for _, y, _ in finite], zero=True)
    zero = SIDE - SIDE * up.at(0)
    tallest: dict[int, tuple[float, str]] = {}
    for x, y, title in finite:
        place = round(SIDE * across.at(x))
        if place not in tallest or abs(y) > abs(tallest[place][0]):
            tallest[place] = y, title
    width = max(2, min(14, 300 // len(tallest)))
    shapes = "".join(
        f'<path d="M{place} {zero:.0f}V{SIDE - SIDE * up.at(y):.0f}">{_title(title)}</path>'
        for place, (y, title) in tallest.items()
    )
    drawn = f'{grid(up)}<g class="bar s{colour}" stroke-width="{width}">{shapes}</g>'
    return framed(drawn, label, axes(across, up, x_name))


def framed(drawn: str, label: str, around: str, css: str = "") -> str:
    """Shapes of an SVG with what stands around them."""
    return (
        f'<div class="plot {css}"><svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none"'
        f' role="img" aria-label="{html_text(label)}">{drawn}</svg>{around}</div>'
    )


def axes(across: Scale, up: Scale, x_name: str) -> str:
    """The numbers at the ticks of both axes, and the name of x."""
    values = across.ticks(_X_TICKS, whole=True)  # steps, or numbers of saves
    labels = [(across.at(v), t) for v, t in zip(values, tick_labels(values), strict=True)]
    return y_labels(up) + x_labels(labels, x_name)


def x_labels(labels: Iterable[tuple[float, str]], name: str) -> str:
    """Texts below a chart, each at its position of 0 to 1, and the name of the axis."""
    spans = "".join(
        f'<span class="x{" o" if index % 2 else ""}" style="left:{100 * at:.2f}%">'
        f"{html_text(label)}</span>"
        for index, (at, label) in enumerate(labels)
    )
    return f'{spans}<span class="name">{html_text(name)}</span>'


def y_labels(up: Scale, bottom: float = 0.0, *, whole: bool = False) -> str:
    """Numbers at the left of a chart, whose scale begins at `bottom` of its height, 0 to 1."""
    values = up.ticks(_Y_TICKS, whole=whole)
    spans = []
    for value, label in zip(values, tick_labels(values), strict=True):
        place = 100 * (bottom + (1 - bottom) * up.at(value))
        spans.append(f'<span class="y" style="bottom:{place:.2f}%">{label}</span>')
    return "".join(spans)


def grid(up: Scale, bottom: float = 0.0, *, whole: bool = False) -> str:
    """Horizontal lines at the ticks of that scale, and the axis at the bottom."""
    places = (SIDE * (1 - bottom) * (1 - up.at(value)) for value in up.ticks(_Y_TICKS, whole=whole))
    lines = "".join(f"M0 {place:.0f}H{SIDE}" for place in places)
    return f'<path class="grid" d="{lines}"/><path class="axis" d="M0 {SIDE}H{SIDE}"/>'


def html_text(value: object) -> str:
    """Any text, harmless in HTML and in attributes that are in double quotes."""
    return escape(printable(str(value)))


def _path(points: Sequence[Point], across: Scale, up: Scale, css: str) -> str:
    drawn = []
    dots = []
    for line in thinned(points, _BUCKETS):
        places = [f"{SIDE * across.at(x):.1f} {SIDE - SIDE * up.at(y):.1f}" for x, y in line]
        drawn.append(f"M{'L'.join(places)}")
        if (len(points) <= _FEW_POINTS and "faint" not in css) or len(places) == 1:
            dots += [f"M{place}h0" for place in places]
    shape = f'<path class="{css}" d="{"".join(drawn)}"/>' if drawn else ""
    return shape + (f'<path class="{css} dot" d="{"".join(dots)}"/>' if dots else "")


def _longest(parts: Sequence[Sequence[Point]]) -> list[Sequence[Point]]:
    return sorted(parts, key=len, reverse=True)[:_MARKS]


def _bands(bands: Sequence[Band], across: Scale) -> list[str]:
    drawn = []
    for band in bands[-_MARKS:]:
        low, high = (min(1.0, max(0.0, across.at(x))) for x in (band.low, band.high))
        if 0 <= low <= high <= 1:
            width = max(2.0, SIDE * (high - low))
            shape = f'<rect class="redo" x="{SIDE * low:.1f}" y="0" width="{width:.1f}"'
            drawn.append(f'{shape} height="{SIDE}">{_title(band.title)}</rect>')
    return drawn


def _marks(marks: Sequence[ChartMark], across: Scale) -> list[str]:
    return [
        f'<path class="mark" d="M{SIDE * across.at(mark.x):.1f} {SIDE}V{SIDE - 50}">'
        f"{_title(mark.title)}</path>"
        for mark in marks[-_MARKS:]
        if 0 <= across.at(mark.x) <= 1
    ]


def _title(words: str) -> str:
    return f"<title>{html_text(words)}</title>" if words else ""
