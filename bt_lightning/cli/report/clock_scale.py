"""A scale of time on which long pauses are narrow. Pure; times are seconds of the epoch."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_PAUSE: Final = 0.15
"""If all pauses are longer than the busy time, those of a larger part of it are drawn narrow."""
_NARROW: Final = 0.05
_ALL_NARROW: Final = 0.3
_STEPS_S: Final = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
)
_MINUTE_S, _DAY_S = 60, 86400
_TICKS: Final = 5
_APART: Final = 0.14


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause that is drawn narrower; `low` and `high` are its place, 0 to 1."""

    low: float
    high: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ClockScale:
    """Maps times to 0 ... 1, through knots (time, place)."""

    knots: tuple[tuple[float, float], ...]
    pauses: tuple[Pause, ...] = ()

    @property
    def is_long(self) -> bool:
        """Whether it spans more than a day, so that ticks have dates."""
        return self.knots[-1][0] - self.knots[0][0] > _DAY_S

    def at(self, time_s: float) -> float:
        """The place of a time; 0 or 1 beyond the ends."""
        after = bisect.bisect_left(self.knots, time_s, key=lambda knot: knot[0])
        if after in {0, len(self.knots)}:
            return self.knots[max(0, after - 1)][1]
        (low, first), (high, last) = self.knots[after - 1 : after + 1]
        return first + (last - first) * (time_s - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places of round times (UTC), each with its text."""
        busy = self._busy()
        step = next((s for s in _STEPS_S if busy / s <= _TICKS), _DAY_S)
        if step == _DAY_S:
            step *= max(1, round(busy / _DAY_S / _TICKS))
        found: list[tuple[float, str]] = []
        for (low, first), (high, last) in itertools.pairwise(self.knots):
            if any(pause.low == first and pause.high == last for pause in self.pauses):
                continue
            time_s = -(-low // step) * step
            while time_s <= high:
                place = self.at(time_s)
                if not found or place - found[-1][0] >= _APART:
                    day = f"{_at(time_s):%m-%d} " if self.is_long and step < _DAY_S else ""
                    found.append((place, day + _clock(time_s, step)))
                time_s += step
        return found

    def _busy(self) -> float:
        whole = self.knots[-1][0] - self.knots[0][0]
        return max(whole - sum(pause.seconds for pause in self.pauses), 1e-9)


def clock_scale(stretches: Iterable[tuple[float, float]]) -> ClockScale:
    """A scale for stretches (begin, end) in which something happened."""
    merged: list[list[float]] = []
    for low, high in sorted(stretches):
        if merged and low <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, max(low, high)])
    if not merged:
        return ClockScale(((0.0, 0.0), (1.0, 1.0)))
    busy = sum(high - low for low, high in merged) or 1.0
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(merged)]
    is_long = [gap > _PAUSE * busy and sum(gaps) > busy for gap in gaps]
    narrow = min(_NARROW, _ALL_NARROW / max(1, sum(is_long))) * busy
    widths = [narrow if long else gap for gap, long in zip(gaps, is_long, strict=True)]
    whole = sum(high - low for low, high in merged) + sum(widths) or 1.0
    knots: list[tuple[float, float]] = []
    pauses: list[Pause] = []
    place = 0.0
    for index, (low, high) in enumerate(merged):
        knots.append((low, place / whole))
        place += high - low
        knots.append((high, place / whole))
        if index < len(widths):
            if is_long[index]:
                first, last = place / whole, (place + widths[index]) / whole
                pauses.append(Pause(first, last, gaps[index]))
            place += widths[index]
    return ClockScale(tuple(knots), tuple(pauses))


def _at(time_s: float) -> datetime:
    return datetime.fromtimestamp(time_s, timezone.utc)


def _clock(time_s: float, step: float) -> str:
    at = _at(time_s)
    if step >= _DAY_S:
        return f"{at:%m-%d}"
    return f"{at:%H:%M}" if step >= _MINUTE_S else f"{at:%H:%M:%S}"
