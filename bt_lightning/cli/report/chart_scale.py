"""Scales of charts: ranges, round numbers on an axis, and points thinned to what a screen shows.

Pure. Numbers are finite, and of at most 1e300.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_STEPS: Final = (1, 2, 2.5, 5, 10)
_FACTORS: Final = (1, 2, 5)
_LOG_SPAN: Final = 30.0
"""A largest value so many times the median leaves a linear axis nearly empty."""
_PAD: Final = 0.06
_LEAST: Final = 1e-280
_FEW_DECADES: Final = 2.0
_MOST_DIGITS: Final = 17


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to 0 ... 1."""

    low: float
    high: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Position of a value: 0 at `low`, 1 at `high`, within if the value is."""
        low, high = self._of(self.low), self._of(self.high)
        span = high / 2 - low / 2  # halved, as the distance may overflow
        return (self._of(value) / 2 - low / 2) / span if span else 0.5

    def ticks(self, about: int, *, whole: bool = False) -> list[float]:
        """Round values between the ends, approximately `about` of them; with `whole`, integers."""
        if not self.is_log:
            found = ticks(self.low, self.high, about)
            return [value for value in found if value == round(value)] if whole else found
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        few = math.log10(self.high) - math.log10(self.low) < _FEW_DECADES
        every = max(1, round((last - first) / about))
        decades = range(first - first % every, last + 1, every)
        found = [f * 10.0**p for p in decades for f in (_FACTORS if few else (1,))]
        return [value for value in found if self.low <= value <= self.high] or [self.low]

    def _of(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def linear_scale(values: Sequence[float]) -> Scale:
    """A linear scale from the lowest of some values to the highest."""
    low, high = min(values), max(values)
    room = 0.0 if high > low else max(abs(high) * 0.1, 0.5)
    return Scale(low - room, high + room)


def scale_of(values: Sequence[float], *, zero: bool = False) -> Scale:
    """A scale for values: logarithmic if a few large ones would hide the others.

    With `zero` it is linear and begins at 0. Without values it is that of 0 to 1.
    """
    if not values:
        return Scale(0.0, 1.0)
    low, high = min(values), max(values)
    if not zero and low > _LEAST and high / _median(values) > _LOG_SPAN:
        room = (math.log10(high) - math.log10(low)) * _PAD
        least, most = math.log10(low) - room, math.log10(high) + room
        return Scale(10.0 ** max(-300.0, least), 10.0 ** min(305.0, most), is_log=True)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    room = (high - low) * _PAD if high > low else max(abs(high) * 0.1, 0.5)
    below = low if zero and low == 0 else low - room
    return Scale(below, high if zero and high == 0 > low else high + room)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, approximately `about` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    if not math.isfinite(rough) or rough == 0:
        return [low]
    power = 10 ** math.floor(math.log10(rough))
    step = next((step * power for step in _STEPS if step * power >= rough), 0.0)
    if not step or not math.isfinite(low / step):
        return [low]
    first = math.ceil(low / step)
    return [n * step for n in range(first, first + 3 * about) if n * step <= high + step * 1e-9]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Texts of numbers on an axis: as short as tells them apart."""
    labels = [""]
    for digits in range(3, _MOST_DIGITS):
        labels = [number_text(value, digits) for value in values]
        if len(set(labels)) == len(set(values)):
            break
    return labels


def number_text(value: float, digits: int = 4) -> str:
    """A number for people, of at least so many significant digits: `1,200`, `0.0625`, `1e-07`."""
    if math.isfinite(value) and value == round(value) and abs(value) < 1e7:  # noqa: PLR2004 - fits
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+0" in text and abs(value) < 1e7 else text  # noqa: PLR2004


def thinned(points: Iterable[tuple[float, float]], buckets: int) -> list[list[tuple[float, float]]]:
    """The lines of points, at most `4 * buckets` of them; a value that is not finite ends a line.

    Of the points in each of `buckets` stretches of x, the first, the last, the lowest and the
    highest stay, so that no peak is lost. x does not fall.
    """
    every = list(points)
    if len(every) > 4 * buckets:
        every = _fewer(every, buckets)
    lines: list[list[tuple[float, float]]] = [[]]
    for point in every:
        if math.isfinite(point[1]):
            lines[-1].append(point)
        elif lines[-1]:
            lines.append([])
    return [line for line in lines if line]


def means(points: Sequence[tuple[float, float]], buckets: int) -> list[tuple[float, float]]:
    """The means of the finite values in each of `buckets` stretches of x, and of their x.

    Of none in a stretch the value is NaN.
    """
    kept = []
    for group in _groups(points, buckets):
        finite = [y for _, y in group if math.isfinite(y)]
        size = max(1, len(finite))
        mean = math.fsum(y / size for y in finite) if finite else math.nan
        kept.append((math.fsum(x / len(group) for x, _ in group), mean))
    return kept


def _groups(
    points: Sequence[tuple[float, float]], buckets: int
) -> Iterable[list[tuple[float, float]]]:
    across = Scale(points[0][0], points[-1][0])
    groups: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        group = min(buckets - 1, int(across.at(point[0]) * buckets))
        groups.setdefault(group, []).append(point)
    return groups.values()


def _fewer(points: list[tuple[float, float]], buckets: int) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for group in _groups(points, buckets):
        finite = [point for point in group if math.isfinite(point[1])]
        if finite:
            ends = (finite[0], min(finite, key=_y), max(finite, key=_y), finite[-1])
            kept += sorted(dict.fromkeys(ends))
        if len(finite) < len(group):
            kept.append((group[-1][0], math.nan))
    return kept


def _y(point: tuple[float, float]) -> float:
    return point[1]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
